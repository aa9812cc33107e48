import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.guardrails.framing import MAX_UNIT_BYTES, Unit, UnreadableError
from asgi_agents.guardrails.json_array import ArrayFramer
from tests.guardrails.test_json_text import VALUES
from tests.guardrails.test_sse import cut_at

ARRAYS = st.tuples(
    st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=5), st.sampled_from([None, 1])
)


def framed(data: bytes, places: list[int]) -> list[Unit]:
    framer = ArrayFramer()
    return [unit for piece in cut_at(data, places) for unit in framer.feed(piece)] + framer.end()


@given(ARRAYS, st.lists(st.integers(0, 500), max_size=8))
def test_any_cutting_keeps_every_byte_and_finds_the_elements(
    array: tuple[list[Any], int | None], places: list[int]
) -> None:
    elements, indent = array
    data = json.dumps(elements, indent=indent).encode() + b"\n"
    units = framed(data, places)
    assert b"".join(unit.raw for unit in units) == data
    assert [repr(json.loads(unit.data)) for unit in units if unit.data] == list(map(repr, elements))
    for unit in units:
        assert unit.put_back(unit.data or b"") == unit.raw


@given(st.binary(max_size=30).map(lambda data: data.replace(b"\x00", b'"')), st.lists(st.integers(0, 30), max_size=4))
def test_what_is_no_array_keeps_every_byte(data: bytes, places: list[int]) -> None:
    assert b"".join(unit.raw for unit in framed(data, places)) == data


def test_a_document_that_is_no_array_is_one_unit() -> None:
    (unit,) = [unit for unit in framed(b' {"error": {"code": 400}} ', [3]) if unit.data]
    assert unit.data == b'{"error": {"code": 400}}'


def test_an_element_that_never_ends_is_refused() -> None:
    framer = ArrayFramer()
    with pytest.raises(UnreadableError, match="has not ended"):
        framer.feed(b'[{"a": "' + b"x" * MAX_UNIT_BYTES)
