from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.guardrails.plain_text import TextFramer
from tests.guardrails.test_sse import cut_at


@given(st.text(), st.lists(st.integers(0, 100), max_size=8))
def test_no_character_is_cut(text: str, places: list[int]) -> None:
    framer = TextFramer()
    units = [
        unit for piece in cut_at(text.encode(errors="ignore"), places) for unit in framer.feed(piece)
    ] + framer.end()
    assert "".join(unit.raw.decode() for unit in units) == text.encode(errors="ignore").decode()


@given(st.binary(max_size=20), st.lists(st.integers(0, 20), max_size=4))
def test_what_is_no_utf_8_keeps_every_byte(data: bytes, places: list[int]) -> None:
    framer = TextFramer()
    units = [unit for piece in cut_at(data, places) for unit in framer.feed(piece)] + framer.end()
    assert b"".join(unit.raw for unit in units) == data


def test_words_are_units_so_that_what_is_settled_can_leave() -> None:
    assert [unit.raw for unit in TextFramer().feed(b"one two\n" + b"x" * 300)] == [
        b"one ",
        b"two\n",
        b"x" * 256,
        b"x" * 44,
    ]
