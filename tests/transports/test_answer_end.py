"""An answer ends where an HTTP parser says that it does, or else its end is not known."""

from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents.transports.answer_end import AnswerEnd

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
PLAIN = HEAD + b"content-length: 5\r\n\r\n12345"
CHUNKED = HEAD + b"Transfer-Encoding:  chunked\r\n\r\n3\r\n123\r\na\r\n1234567890\r\n0\r\n\r\n"
EMPTY = HEAD + b"content-length: 0\r\n\r\n"
EMPTY_CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"


def ended(*pieces: bytes) -> bool:
    end = AnswerEnd()
    for piece in pieces:
        end.feed(piece)
    return end.ended


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, EMPTY, EMPTY_CHUNKED])
def test_an_answer_has_ended_at_its_last_byte_and_no_other(answer: bytes) -> None:
    for cut in range(len(answer)):
        assert not ended(answer[:cut])
        assert ended(answer[:cut], answer[cut:])
        assert not ended(answer[:cut], answer[cut:] + b"H")
    assert ended(*(answer[at : at + 1] for at in range(len(answer))))
    assert not ended(answer, b"\r\n")
    assert not ended(answer, b"x", answer)


def test_of_a_head_that_does_not_end_no_more_is_kept_than_a_head_may_have() -> None:
    end = AnswerEnd()
    for _ in range(100):
        end.feed(b"x" * 1000)
    assert len(end._part) <= 65536
    end.feed(b"\r\ncontent-length: 0\r\n\r\n")
    assert not end.ended


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN,
        HEAD + b"content-length: 5\r\ncontent-length: 5\r\n\r\n12345",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"content-length: +5\r\n\r\n12345",
        HEAD + b"content-length: 5, 5\r\n\r\n12345",
        HEAD + b"content-length: \xd9\xa3\r\n\r\n123",
        HEAD + b"content-length: " + b"0" * 30 + b"5\r\n\r\n12345",
        HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n3;x=y\r\n123\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx-trailer: 1\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n0x3\r\n123\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"0" * 100 + b"\r\n\r\n",
        HEAD.replace(b"\r\n", b"\n") + b"content-length: 5\n\n12345",
    ],
)
def test_of_an_answer_that_is_not_plain_the_end_is_not_known(answer: bytes) -> None:
    assert not ended(answer)
    assert not ended(*(answer[at : at + 1] for at in range(len(answer))))


PARTS = st.lists(
    st.one_of(
        st.sampled_from(
            [PLAIN, CHUNKED, EMPTY, HEAD, b"\r\n", b"content-length: 3\r\n", b"0\r\n\r\n", b"123", b"\r\n\r\n"]
        ),
        st.binary(max_size=6),
    ),
    min_size=1,
    max_size=6,
)


@given(parts=PARTS, cuts=st.lists(st.integers(0, 400), max_size=6))
@settings(max_examples=500, derandomize=True, database=None)
def test_it_never_says_so_where_h11_sees_no_end_or_more_than_an_answer(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    if not ended(*(data[start:stop] for start, stop in pairwise(places))):
        return
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="POST", target="/", headers=[("host", "agent"), ("content-length", "0")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    try:
        while (event := parser.next_event()) not in (h11.PAUSED, h11.NEED_DATA) and type(event) is not h11.EndOfMessage:
            pass
    except h11.RemoteProtocolError:
        # Then its connection is not used again for that reason.
        return
    assert type(event) is h11.EndOfMessage
    assert parser.trailing_data == (b"", False)
