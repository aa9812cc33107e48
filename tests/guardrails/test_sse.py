"""Server-sent events keep their bytes, wherever they are cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents.guardrails.framing import MAX_UNIT_BYTES, Unit, UnreadableError
from asgi_agents.guardrails.sse import SSEFramer, parse

_LINES = (
    b"data: a|data:b|data|data:|data:  c|event: x|event:y|event|id: 1|retry: 10|: comment|:|unknown: z||||datax: q"
    b"| data: w|\xef\xbb\xbfdata: bom|data: \xef\xbb\xbf"
)
_LINE = st.sampled_from(_LINES.split(b"|"))
_LINE_END = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.tuples(
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(_LINE, _LINE_END).map(b"".join), max_size=20).map(b"".join),
    st.sampled_from([b"", b"data: unfinished", b"data: x\r", b"\xef\xbb"]),
).map(b"".join)


def units_of(pieces: list[bytes]) -> list[Unit]:
    framer = SSEFramer()
    units = [unit for piece in pieces for unit in framer.feed(piece)]
    return units + framer.end()


def cut_at(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(bounds)]


def by_the_book(data: bytes) -> list[tuple[bytes | None, bytes]]:
    """The events of a stream, as WHATWG HTML 9.2.6 has it, read line by line. The last one need not end."""
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[tuple[bytes | None, bytes]] = []
    event: bytes | None = None
    lines: list[bytes] = []
    for line in [*text.split(b"\n"), b""]:
        if not line:
            if lines:
                events.append((event, b"\n".join(lines)))
            event, lines = None, []
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            lines.append(value)
        elif name == b"event":
            event = value
    return events


# Fewer find none of the cuts between two line ends.
@settings(max_examples=100)
@given(STREAMS, st.lists(st.integers(0, 400), max_size=8))
def test_any_cutting_keeps_every_byte_and_reads_the_same(data: bytes, places: list[int]) -> None:
    units = units_of(cut_at(data, places))
    assert b"".join(unit.raw for unit in units) == data
    assert [(unit.event, unit.data) for unit in units if unit.data is not None] == by_the_book(data)


@given(STREAMS)
def test_byte_for_byte(data: bytes) -> None:
    units = units_of([data[index : index + 1] for index in range(len(data))])
    assert b"".join(unit.raw for unit in units) == data
    assert [(unit.event, unit.data) for unit in units if unit.data is not None] == by_the_book(data)


@given(STREAMS, st.sampled_from([b"", b"new", b"two\nlines", b" three\n lines\nnow"]))
def test_data_that_is_put_back_is_read_again(data: bytes, new: bytes) -> None:
    units = units_of([data])
    for index, unit in enumerate(units):
        if unit.data is None:
            continue
        assert unit.put_back(unit.data) == unit.raw
        changed = parse(unit.put_back(new), first=index == 0)
        assert (changed.event, changed.data) == (unit.event, new)


@pytest.mark.parametrize(
    ("raw", "changed"),
    [
        (b"data: {1}\n\n", b"data: {2}\n\n"),
        (b"data:{1}\r\n\r\n", b"data:{2}\r\n\r\n"),
        (b"event: x\rdata: {1}\rid: 7\r\r", b"event: x\rdata: {2}\rid: 7\r\r"),
        (b": why\nid: 1\ndata:  {1}\nretry: 3\n\n", b": why\nid: 1\ndata: {2}\nretry: 3\n\n"),
        (b"data\n\n", b"data: {2}\n\n"),
        (b"data: a\r\ndata:b\r\nevent: x\r\n\r\n", b"data: {2}\r\nevent: x\r\n\r\n"),
        (b"data: {1}", b"data: {2}"),
    ],
)
def test_framing_stays_where_data_is_changed(raw: bytes, changed: bytes) -> None:
    assert parse(raw).put_back(b"{2}") == changed


def test_an_event_leaves_with_the_carriage_return_of_its_blank_line() -> None:
    framer = SSEFramer()
    assert [unit.raw for unit in framer.feed(b"data: a\r\n\r")] == [b"data: a\r\n\r"]
    assert [unit.raw for unit in framer.feed(b"\ndata: b\r\n\r\n")] == [b"\n", b"data: b\r\n\r\n"]


def test_blank_lines_and_comments_wait_for_nothing() -> None:
    framer = SSEFramer()
    assert [unit.raw for unit in framer.feed(b"\n\n: ping\n\ndata")] == [b"\n", b"\n", b": ping\n\n"]
    assert framer.held == 4


def test_a_unit_that_never_ends_is_refused() -> None:
    framer = SSEFramer()
    with pytest.raises(UnreadableError, match="1048577 bytes"):
        framer.feed(b"data: " + b"x" * (MAX_UNIT_BYTES - 5))
    assert len(framer.rest()) == MAX_UNIT_BYTES + 1


def test_a_long_event_in_small_pieces_takes_linear_time() -> None:
    framer = SSEFramer()
    data = b"data: " + b"x\r" * 100_000
    for index in range(0, len(data), 7):
        framer.feed(data[index : index + 7])
    assert framer._looked_at >= framer.held - 7
