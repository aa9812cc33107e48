"""What an answer is, where it ends, and whether anything has come after it."""

import sys
from collections.abc import Iterable, Mapping
from itertools import pairwise

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents.errors import AgentConnectionError, AgentError, AgentProtocolError
from asgi_agents.transports.http1.answer import MAX_HEAD_BYTES, AnswerParser
from tests.support.examples import examples

OK = b"HTTP/1.1 200 OK\r\n"
HEAD = OK + b"Content-Type: application/json\r\n"
PLAIN = HEAD + b"Content-Length: 5\r\n\r\n[123]"
CHUNKED = HEAD + b"Transfer-Encoding: Chunked\r\n\r\n3\r\n[12\r\n2\r\n3]\r\n0\r\n\r\n"
LINE_END = HEAD + b"content-length: 6\r\n\r\n[123]\n"
LINE_ENDS = HEAD + b"content-length: 9\r\n\r\n[123]\r\n\r\n"


class Heads:
    """The heads that were looked at, of which those of other statuses than 200 are refused."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, str]]] = []

    def __call__(self, status: int, headers: Mapping[str, str]) -> None:
        self.seen.append((status, dict(headers)))
        if status != 200:
            raise AgentProtocolError(f"expected status 200, got {status}")


def parser(limit: int = 1000) -> AnswerParser:
    return AnswerParser(Heads(), limit)


def parse(*pieces: bytes, limit: int = 1000) -> AnswerParser:
    found = parser(limit)
    feed(found, pieces)
    return found


def feed(found: AnswerParser, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        found.feed(piece)


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


WHOLE = {
    "length": (PLAIN, b"[123]"),
    "chunks": (CHUNKED, b"[123]"),
    "no content": (HEAD + b"content-length: 0\r\n\r\n", b""),
    "a line end": (LINE_END, b"[123]\n"),
    "line ends": (LINE_ENDS, b"[123]\r\n\r\n"),
    "nothing but line ends": (HEAD + b"content-length: 4\r\n\r\n\r\n\r\n", b"\r\n\r\n"),
    "chunk extensions": (HEAD + b'transfer-encoding: chunked\r\n\r\n5;a=b;c="d"\r\n[123]\r\n0\r\n\r\n', b"[123]"),
    "trailers": (HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n[123]\r\n0\r\nx: y\r\nx: z\r\n\r\n", b"[123]"),
    "100": (b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, b"[123]"),
    "103 and 102": (
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + CHUNKED,
        b"[123]",
    ),
    "no reason": (b"HTTP/1.1 200\r\ncontent-length: 1\r\n\r\n1", b"1"),
    "an offer to upgrade": (OK + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 1\r\n\r\n1", b"1"),
}
#: Of these it is not clear whether a line end would belong to them: of whole ones, and of their last bytes alone.
UNCLEAR = {"nothing but line ends", "trailers"}
UNCLEAR_BYTEWISE = {*UNCLEAR, "a line end", "line ends"}


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_is_complete_at_its_last_byte_and_no_other(name: str) -> None:
    answer, content = WHOLE[name]
    for cut in range(1, len(answer)):
        parser = parse(answer[:cut])
        assert not parser.complete
        assert not parser.feed_eof()
        parser = parse(answer[:cut], answer[cut:])
        assert (parser.complete, parser.take()) == (True, content)
    for pieces, unclear in (([answer], UNCLEAR), (bytewise(answer), UNCLEAR_BYTEWISE)):
        parser = parse(*pieces)
        assert (parser.complete, parser.reusable, parser.take()) == (True, name not in unclear, content)


@pytest.mark.parametrize("name", WHOLE)
def test_one_parser_takes_one_answer_after_the_other(name: str) -> None:
    answer, content = WHOLE[name]
    found = parser()
    for _ in range(3):
        found.begin()
        assert found.feed(answer)
        assert found.take() == content


SURPLUS = [b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"H", b"\0", b"x", b"0\r\n\r\n", b"]\r\n", PLAIN, CHUNKED, PLAIN[:-1]]


@pytest.mark.parametrize("surplus", SURPLUS)
@pytest.mark.parametrize("name", WHOLE)
def test_a_connection_on_which_more_has_come_is_not_used_again(name: str, surplus: bytes) -> None:
    answer, content = WHOLE[name]
    for cut in (0, len(answer) - 1, len(answer) - 2, len(answer) - 4):
        parser = parse(*filter(None, (answer[:cut], answer[cut:] + surplus)))
        assert (parser.complete, parser.reusable, parser.take()) == (True, False, content)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"connection: close\r\ncontent-length: 1\r\n\r\n1",
        b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n1",
        b"HTTP/2.0 200 OK\r\ncontent-length: 1\r\n\r\n1",
    ],
)
def test_a_connection_that_the_agent_will_close_is_not_used_again(answer: bytes) -> None:
    parser = parse(answer)
    assert (parser.complete, parser.reusable, parser.take()) == (True, False, b"1")


def test_an_answer_without_length_ends_with_the_connection() -> None:
    parser = parse(HEAD + b"\r\n[1", b"23", b"]")
    assert not parser.complete
    assert parser.feed_eof()
    assert (parser.reusable, parser.take()) == (False, b"[123]")


def test_of_the_headers_those_that_say_what_comes_are_shown() -> None:
    heads = Heads()
    parser = AnswerParser(heads, 1000)
    parser.feed(b"HTTP/1.1 103 Early\r\ncontent-type: text/html\r\n\r\n")
    parser.feed(OK + b"Content-Type: a\r\nDate: now\r\nCONTENT-ENCODING: gzip\r\ncontent-encoding: \xe9\r\n")
    parser.feed(b"transfer-encoding: chunked\r\n\r\n0\r\ncontent-type: b\r\n\r\n")
    expected = {"content-type": "a", "content-encoding": "gzip, é", "transfer-encoding": "chunked"}
    assert heads.seen == [(200, expected)]


def test_all_headers_are_kept_where_they_are_wanted() -> None:
    found = AnswerParser(lambda *_: None, 1000, keep_headers=True)
    for _ in range(2):
        found.begin()
        found.feed(b"HTTP/1.1 103 Early\r\nx-a: early\r\n\r\n")
        found.feed(b"HTTP/1.1 401 No\r\nSet-Cookie: a\r\nset-cookie: \xff\r\ntransfer-encoding: chunked\r\n\r\n")
        found.feed(b"0\r\nx-a: trailer\r\n\r\n")
        expected = [(b"set-cookie", b"a"), (b"set-cookie", b"\xff"), (b"transfer-encoding", b"chunked")]
        assert (found.status, found.headers) == (401, expected)
    assert parse(PLAIN).headers == []


@pytest.mark.parametrize("framing", [b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b""])
def test_an_answer_to_head_ends_with_its_head(framing: bytes) -> None:
    for pieces in ([OK + framing + b"\r\n"], bytewise(OK + framing + b"\r\n")):
        found = parser()
        found.begin(head_only=True)
        feed(found, pieces)
        # Its connection is not used again.
        assert (found.complete, found.reusable, found.take()) == (True, False, b"")


def test_a_head_like_the_one_before_is_not_looked_at_again_and_any_other_is() -> None:
    heads = Heads()
    found = AnswerParser(heads, 1000)
    head = OK + b"transfer-encoding: chunked\r\ncontent-type: a"
    for answer in (
        head + b"\r\n\r\n0\r\ncontent-type: 0\r\n\r\n",
        head + b"\r\ndate: now\r\n\r\n0\r\n\r\n",
        # As the first, with its trailer.
        head + b"\r\ncontent-type: 0\r\n\r\n0\r\n\r\n",
        head + b"\r\n\r\n0\r\n\r\n",
    ):
        found.begin()
        assert found.feed(answer)
        assert found.reusable
    assert [headers["content-type"] for _, headers in heads.seen] == ["a", "a, 0", "a"]


def test_a_head_is_not_like_that_of_another_status() -> None:
    seen: list[int] = []
    found = AnswerParser(lambda status, _: seen.append(status), 1000)
    for status in (201, 200, 200, 201):
        found.begin()
        assert found.feed(b"HTTP/1.1 %d X\r\ncontent-length: 1\r\n\r\n1" % status)
    assert seen == [201, 200, 201]


@pytest.mark.parametrize("status", [101, 204, 304, 404, 413, 503, 99])
def test_what_the_head_is_refused_for_is_raised_before_more_is_read(status: int) -> None:
    head = b"HTTP/1.1 %03d X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" % status
    with pytest.raises(AgentProtocolError, match=f"expected status 200, got {status}"):
        parse(head + b"x" * 100)
    with pytest.raises(AgentProtocolError, match=f"expected status 200, got {status}"):
        parse(*bytewise(head))


NOT_HTTP = {
    "binary": b"\x00\x01\x02",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "version": b"HTTP/3.7 200 OK\r\n\r\n",
    "status": b"HTTP/1.1 2xx OK\r\n\r\n",
    "no colon": OK + b"set-cookie s3cret\r\n\r\n",
    "blank before the colon": OK + b"content-length : 1\r\n\r\n1",
    "NUL": OK + b"a: \0\r\n\r\n",
    "folded": OK + b"a: b\r\n c\r\ncontent-length: 1\r\n\r\n1",
    "bare CR": OK + b"a: b\rc: d\r\ncontent-length: 1\r\n\r\n1",
    "bare LF": b"HTTP/1.1 200 OK\ncontent-length: 1\n\n1",
    "LF after the head": OK + b"content-length: 1\r\n\n1",
    "two lengths": OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\n12",
    "the same length twice": OK + b"content-length: 1\r\ncontent-length: 1\r\n\r\n1",
    "a list of lengths": OK + b"content-length: 1, 1\r\n\r\n1",
    "a sign": OK + b"content-length: +1\r\n\r\n1",
    "no digits": OK + b"content-length: \r\n\r\n1",
    "a length beyond any": OK + b"content-length: " + b"9" * 30 + b"\r\n\r\n1",
    "length and chunks": OK + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": OK + b"transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n",
    "another coding": OK + b"transfer-encoding: gzip\r\n\r\n123",
    "two codings": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": OK + b"transfer-encoding: identity\r\n\r\n123",
    "chunk size": OK + b"transfer-encoding: chunked\r\n\r\n0x1\r\n1\r\n0\r\n\r\n",
    "chunk size beyond any": OK + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n1",
    "blank after a chunk size": OK + b"transfer-encoding: chunked\r\n\r\n1 \r\n1\r\n0\r\n\r\n",
    "no line end after a chunk": OK + b"transfer-encoding: chunked\r\n\r\n1\r\n1XX0\r\n\r\n",
    "interim with a length": b"HTTP/1.1 100 Continue\r\ncontent-length: 3\r\n\r\n" + b"abc" + PLAIN,
    "interim in chunks": b"HTTP/1.1 103 Early\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + PLAIN,
    "interim that closes": b"HTTP/1.1 100 Continue\r\nconnection: close\r\n\r\n" + PLAIN,
}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_parsers_disagree_about_is_no_answer(data: bytes) -> None:
    for pieces in ([data], bytewise(data)):
        with pytest.raises(AgentConnectionError, match=r"not HTTP/1\.1: |has content|other than chunked") as caught:
            parse(*pieces)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "answer", [HEAD + b"content-length: 11\r\n\r\n", HEAD + b"\r\n"], ids=["length", "until the end"]
)
def test_an_answer_may_be_as_long_as_the_limit_and_no_longer(answer: bytes) -> None:
    found = parse(answer, b"x" * 10, limit=10)
    with pytest.raises(AgentProtocolError, match="longer than 10 bytes"):
        found.feed(b"x")


def test_heads_may_be_as_long_as_the_limit_and_no_longer() -> None:
    line = b"x: " + b"y" * (MAX_HEAD_BYTES // 4 - 1) + b"\r\n"
    end = b"content-length: 1\r\n\r\n1"
    assert parse(OK + line * 3 + end).complete
    for pieces in (
        [OK + line * 5 + end],
        # Over all of them together.
        [b"HTTP/1.1 103 Early\r\n" + line + b"\r\n"] * 3 + [OK + line * 2 + end],
        [OK + b"transfer-encoding: chunked\r\n\r\n0\r\n" + line * 5 + b"\r\n"],
    ):
        with pytest.raises(AgentConnectionError, match=f"more than {MAX_HEAD_BYTES} bytes of headers"):
            parse(*pieces)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 ",
        OK + b"x",
        OK + b"x: y",
        OK + b"transfer-encoding: chunked\r\n\r\n1;",
        OK + b"transfer-encoding: chunked\r\n\r\n0\r\nx: y",
        b"\r\n",
    ],
    ids=["reason", "name", "value", "extension", "trailer", "line ends"],
)
def test_what_never_ends_is_cut_off(start: bytes) -> None:
    found = parse(start)
    more = b"\r\n" * 500 if start == b"\r\n" else b"z" * 1000
    with pytest.raises(AgentConnectionError):
        feed(found, [more] * 100)


def test_interim_answers_without_end_are_cut_off() -> None:
    found = parser()
    with pytest.raises(AgentConnectionError):
        feed(found, [b"HTTP/1.1 100 Continue\r\n\r\n"] * 5000)


def test_a_content_in_chunks_of_one_byte_is_taken() -> None:
    found = parse(OK + b"transfer-encoding: chunked\r\n\r\n", limit=100_000)
    for _ in range(100_000):
        found.feed(b"1\r\nx\r\n")
    assert found.feed(b"0\r\n\r\n")
    assert found.take() == b"x" * 100_000


def test_an_idle_connection_keeps_no_content() -> None:
    found = parse(HEAD + b"content-length: 1000\r\n\r\n" + b"x" * 1000)
    assert found.take() == b"x" * 1000
    assert found.take() == b""


def test_an_httptools_that_is_too_old_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "asgi_agents.transports.http1.answer")
    monkeypatch.setattr(httptools, "HttpResponseParser", object)
    with pytest.raises(ImportError, match=r"httptools 0\.6\.4"):
        import asgi_agents.transports.http1.answer  # noqa: F401


PARTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                PLAIN,
                CHUNKED,
                LINE_END,
                LINE_ENDS,
                HEAD,
                OK,
                b"HTTP/1.1 100 Continue\r\n\r\n",
                b"\r\n",
                b"content-length: 3\r\n",
                b"transfer-encoding: chunked\r\n",
                b"0\r\n\r\n",
                b"3\r\n",
                b"123",
                b"\r\n\r\n",
                b"connection: close\r\n",
            ]
        ),
        st.binary(max_size=6),
    ),
    min_size=1,
    max_size=6,
)
CUTS = st.lists(st.integers(0, 400), max_size=6)


@given(parts=PARTS, cuts=CUTS)
@settings(max_examples=examples(1000))
def test_no_connection_is_used_again_where_h11_sees_another_answer_or_more_than_one(
    parts: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(parts)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    found = parser()
    try:
        for start, stop in pairwise(places):
            if found.complete:
                # A connection is not fed any further: that it was, is seen by others.
                return
            found.feed(data[start:stop])
    except AgentError:
        return
    if not found.reusable:
        return
    reference = h11.Connection(h11.CLIENT)
    reference.send(h11.Request(method="POST", target="/", headers=[("host", "agent"), ("content-length", "0")]))
    reference.send(h11.EndOfMessage())
    reference.receive_data(data.lstrip(b"\r\n"))
    content = b""
    try:
        while type(event := reference.next_event()) is not h11.EndOfMessage:
            assert type(event) in (h11.InformationalResponse, h11.Response, h11.Data)
            if isinstance(event, h11.Data):
                content += event.data
    except h11.RemoteProtocolError as exc:
        # An empty line behind an interim response, which has no meaning to httptools.
        assert str(exc) == "no response line received"  # noqa: PT017
        return
    assert content == found.take()
    assert reference.trailing_data == (b"", False)
