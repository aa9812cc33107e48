"""The head of a request: nothing that is put into it ends a line."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.transports.http1.request import RequestHead

HEADERS = [(b"host", b"agent:9000"), (b"x-empty", b"")]


def test_a_head_says_where_it_goes_and_how_long_the_body_is() -> None:
    head = RequestHead(b"POST", b"/hook?a=b", HEADERS)
    assert head.encode(17, {}) == (
        b"POST /hook?a=b HTTP/1.1\r\nhost: agent:9000\r\nx-empty: \r\ncontent-length: 17\r\n\r\n"
    )
    assert head.encode(0, {"traceparent": "00-1-2-01", "tracestate": "a=b, c=d"}) == (
        b"POST /hook?a=b HTTP/1.1\r\nhost: agent:9000\r\nx-empty: \r\n"
        b"traceparent: 00-1-2-01\r\ntracestate: a=b, c=d\r\ncontent-length: 0\r\n\r\n"
    )


def test_a_request_without_a_body_says_nothing_of_one() -> None:
    head = RequestHead(b"GET", b"/", [(b"host", b"agent")])
    assert head.encode(None, {}) == b"GET / HTTP/1.1\r\nhost: agent\r\n\r\n"
    assert head.encode(None, {"traceparent": "00-1-2-01"}).endswith(b"traceparent: 00-1-2-01\r\n\r\n")


def test_a_method_is_a_token() -> None:
    for method in (b"", b"G T", b"GET\r\nx: y", b"G\xe9T"):
        with pytest.raises(ValueError, match="the method of the request is not a token"):
            RequestHead(method, b"/", HEADERS)


def test_values_of_a_client_may_have_bytes_beyond_ascii_and_nothing_that_ends_a_line() -> None:
    value = "é".encode()
    head = RequestHead(b"GET", b"/", [(b"x-name", value)], of_client=True)
    assert head.encode(None, {}) == b"GET / HTTP/1.1\r\nx-name: \xc3\xa9\r\n\r\n"
    for bad in (b"a\r\nb", b"a\n", b"\0", b" a", b"a\x7f"):
        with pytest.raises(ValueError, match="the value of 'x-name' is"):
            RequestHead(b"GET", b"/", [(b"x-name", bad)], of_client=True)


BAD = ["\r", "\n", "\r\nx: y", "a\0", "\x7f", " a", "a ", "é", "\r\n\r\n"]


@pytest.mark.parametrize("text", BAD)
def test_what_would_end_a_line_is_refused(text: str) -> None:
    value = text.encode("latin-1")
    for target, headers in ((b"/" + value, HEADERS), (b"/", [(b"x-key", value)]), (b"/", [(b"x" + value, b"1")])):
        with pytest.raises(ValueError, match=r"the target of|the name of a header is|the value of 'x-key' is"):
            RequestHead(b"POST", target, headers)


@pytest.mark.parametrize("text", [*BAD, ""])
def test_a_trace_header_that_would_end_a_line_is_left_out(text: str) -> None:
    head = RequestHead(b"POST", b"/", HEADERS)
    trace_context = {"traceparent": "00-1-2-01", "tracestate": text, f"x{text}:": "1"}
    assert head.encode(0, trace_context) == head.encode(0, {"traceparent": "00-1-2-01"})


@given(target=st.binary(max_size=6), name=st.binary(max_size=6), value=st.binary(max_size=6), trace=st.text(max_size=6))
def test_a_head_is_one_request_with_the_headers_that_were_given(
    target: bytes, name: bytes, value: bytes, trace: str
) -> None:
    try:
        head = RequestHead(b"POST", b"/" + target, [(b"host", b"agent"), (b"x" + name, value)])
    except ValueError:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(head.encode(4, {"tracestate": trace}) + b"body")
    request, body = server.next_event(), server.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (b"POST", b"/" + target)
    headers = [(each.lower(), text) for each, text in request.headers]
    assert [each for each in headers if each[0] != b"tracestate"] == [
        (b"host", b"agent"),
        ((b"x" + name).lower(), value),
        (b"content-length", b"4"),
    ]
    assert [text for each, text in headers if each == b"tracestate"] in ([], [trace.encode()])
    assert isinstance(body, h11.Data)
    assert bytes(body.data) == b"body"
