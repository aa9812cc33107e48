"""Two values beside one another: what differs is in what is shown, whatever the width."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.recording.beside import MOST_PLACES, lines_beside

OPS = [{"remove": {"name": "x-api-key"}}, {"set": {"name": "x-user", "value": "alice", "always": False}}]
OTHERS = [{"remove": {"name": "x-api-key"}}, {"set": {"name": "x-user", "value": "bob", "always": False}}]
ADDED = {"set": {"name": "x-tenant", "value": "t", "always": True}}


def shown(recorded: Any, now: Any, width: int = 80) -> list[str]:
    return list(lines_beside("field", recorded, now, width))


def test_values_that_fit_are_shown_whole() -> None:
    assert shown("allow", {"block": {"status": 403}}) == [
        "  field",
        "    recorded  allow",
        '    now       {"block":{"status":403}}',
    ]
    assert shown(OPS, OTHERS, 150)[1].endswith('"value":"alice","always":false}}]')


def test_of_longer_values_the_places_are_shown_that_differ() -> None:
    assert shown(OPS, OTHERS) == [
        "  field[1].set.value",
        '    recorded  "alice"',
        '    now       "bob"',
    ]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_element_more_is_one_place(at: int) -> None:
    more = [*OPS[:at], ADDED, *OPS[at:]]
    added = '{"set":{"name":"x-tenant","value":"t","always":true}}'
    assert shown(OPS, more) == [f"  field[{at}]", "    recorded  -", f"    now       {added}"]
    assert shown(more, OPS) == [f"  field[{at}]", f"    recorded  {added}", "    now       -"]


def test_of_a_long_text_the_part_is_shown_that_differs() -> None:
    recorded, now = "a" * 500 + "<b>" + "c" * 500, "a" * 500 + "[b]" + "c" * 500
    lines = shown(recorded, now)
    assert lines[1].startswith("    recorded  …aaaaaaaaaaaaaaa<b>ccc")
    assert lines[2].startswith("    now       …aaaaaaaaaaaaaaa[b]ccc")
    assert shown("a" * 90, "a" * 91)[1:] == ["    recorded  …" + "a" * 15, "    now       …" + "a" * 16]


def test_many_places_are_not_all_shown() -> None:
    recorded, now = {f"k{n}": n for n in range(90)}, {f"k{n}": -n - 1 for n in range(90)}
    lines = shown(recorded, now)
    assert len(lines) == 3 * MOST_PLACES + 1
    assert lines[-1] == "  field: more places differ; --json has all"
    few = {name: now[name] if name in ("k1", "k2", "k3", "k4", "k5") else value for name, value in recorded.items()}
    assert len(shown(recorded, few)) == 3 * MOST_PLACES


def test_what_differed_in_credentials_alone_is_said_to() -> None:
    assert shown("[redacted]", "[redacted]") == ["  field", "    differs in what is not shown: [redacted]"]


@pytest.mark.parametrize(("one", "other"), [(None, "-"), (1, "1"), (True, "true"), ("\x1b", "\\x1b"), ([], "[]")])
@pytest.mark.parametrize("long", [False, True])
def test_what_reads_alike_is_not_shown_alike(one: Any, other: Any, long: bool) -> None:
    around: tuple[Any, Any] = ({"a": one, "b": "x" * 90}, {"a": other, "b": "x" * 90}) if long else (one, other)
    _, recorded, now = shown(*around)
    assert recorded.split(maxsplit=1)[1] != now.split(maxsplit=1)[1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(st.characters(codec="utf-8"), max_size=120),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab.[", max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, VALUES, st.integers(40, 120))
def test_two_values_that_differ_are_never_shown_alike(recorded: Any, now: Any, width: int) -> None:
    if recorded == now:
        now = [now, "more"]
    lines = shown(recorded, now, width)
    assert all(len(line) <= width and line.isprintable() for line in lines)
    assert len(lines) >= 3
    for place in range(0, len(lines) - 2, 3):
        name, before, after = lines[place : place + 3]
        assert name.startswith("  field")
        assert before.removeprefix("    recorded  ") != after.removeprefix("    now       ")
