import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.guardrails.framing import MAX_UNIT_BYTES, UnreadableError
from asgi_agents.guardrails.ndjson import LineFramer
from tests.guardrails.test_sse import cut_at

STREAMS = st.lists(st.sampled_from([b'{"a":1}', b"\n", b"\r\n", b" ", b"\r", b"x", b"\xe2\x80\xa8"]), max_size=30).map(
    b"".join
)


@given(STREAMS, st.lists(st.integers(0, 100), max_size=8))
def test_any_cutting_keeps_every_byte_and_reads_the_same(data: bytes, places: list[int]) -> None:
    framer = LineFramer()
    units = [unit for piece in cut_at(data, places) for unit in framer.feed(piece)] + framer.end()
    assert b"".join(unit.raw for unit in units) == data
    assert [unit.data for unit in units if unit.data is not None] == [
        line.strip(b" \t\r\n") for line in data.split(b"\n") if line.strip(b" \t\r\n")
    ]
    for unit in units:
        if unit.data is not None:
            assert unit.put_back(unit.data) == unit.raw


def test_line_ends_and_white_space_stay_where_a_line_is_changed() -> None:
    (unit,) = LineFramer().feed(b' {"a":1} \r\n')
    assert unit.put_back(b"{}") == b" {} \r\n"


def test_a_line_that_never_ends_is_refused() -> None:
    framer = LineFramer()
    with pytest.raises(UnreadableError, match="1048577 bytes"):
        framer.feed(b"x" * (MAX_UNIT_BYTES + 1))
