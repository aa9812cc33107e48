"""The keyword ``uniqueItems``, which is our own, and the time that each keyword takes for large integers."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.agents.openapi import unique_items
from asgi_agents.agents.openapi.bodies import _ALONE
from asgi_agents.agents.openapi.document import ApiDocument

POINTER = "#/components/schemas/It"
# Its own items are such lists as well, at any depth.
UNIQUE = {"uniqueItems": True, "items": {"$ref": POINTER}, "additionalProperties": {"$ref": POINTER}}
BIG = 2**64
# Python's hash of an integer is what is left by this one.
SAME_HASH = sys.hash_info.modulus


def document(schema: Any) -> ApiDocument:
    return ApiDocument({"openapi": "3.1.0", "components": {"schemas": {"It": schema}}})


SCALARS: list[Any] = [
    *(None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, 0.5, 2**53, 2.0**53, 1e-320),
    *("", " ", "1", "0x1", "True", "None", "@0", "@1", "1:1", "[", "{", "1:a 0x1"),
]
VALUES = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "1:a"]), inner, max_size=2),
    max_leaves=6,
)


@given(st.lists(VALUES, min_size=2, max_size=3).flatmap(lambda pool: st.lists(st.sampled_from(pool), max_size=4)))
def test_it_says_what_the_library_says(items: list[Any]) -> None:
    theirs = jsonschema_rs.Draft202012Validator({"uniqueItems": True})
    everywhere = jsonschema_rs.Draft202012Validator(
        {**UNIQUE, "items": {"$ref": "#"}, "additionalProperties": {"$ref": "#"}}
    )
    assert document({"uniqueItems": True}).is_valid(POINTER, items) == theirs.is_valid(items)
    assert document({"uniqueItems": False}).is_valid(POINTER, items)
    assert document(UNIQUE).is_valid(POINTER, items) == everywhere.is_valid(items)


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (0, -0.0, True),
        (1, "1", False),
        (None, "None", False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, ["a", 1], False),
        ([], {}, False),
        ([[]], [[], []], False),
        (["a", "b"], ["a b"], False),
        (BIG, BIG + 1, False),
        (BIG, 2.0**64, True),
        (BIG + 1, 2.0**64, False),
        (2**53 + 1, 2.0**53, False),
        (int(1e300), 1e300, True),
        (-(10**4000), -(10**4000), True),
        (10**4000, 10**4000 + SAME_HASH, False),
        (BIG, -BIG, False),
    ],
    ids=repr,
)
def test_two_values_are_equal_as_json_schema_has_it(first: Any, second: Any, equal: bool) -> None:
    for one, other in ((first, second), (second, first), ([first], [second]), ({"x": first}, {"x": second})):
        # Among texts and integers alone there are shorter ways.
        for more in ([], [0.25], ["other"], [7]):
            assert document({"uniqueItems": True}).is_valid(POINTER, [one, *more, other]) is not equal


def nested(items: list[Any], depth: int) -> Any:
    value: Any = items
    for level in range(depth):
        # As long as the other one, so that neither the type nor the length tells them apart.
        value = [value, {"x": [level, "x"]}, ["x", level]]
    return value


def test_lists_within_lists_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[float] = []

    def reading(value: float) -> str:
        read.append(value)
        return value.hex()

    monkeypatch.setitem(unique_items._SCALARS, float, reading)
    judged, items = document(UNIQUE), [number + 0.5 for number in range(100)]
    for depth in (0, 1, 150):
        read.clear()
        assert judged.is_valid(POINTER, nested(items, depth))
        # Once where they are, and once in the list that they are in.
        assert 100 <= len(read) <= 200
        assert not judged.is_valid(POINTER, nested([*items, 0.5], depth))


def test_nothing_of_a_value_is_kept() -> None:
    judged = document(UNIQUE)
    for items in ([["a"], ["b"]], [["a"], ["a"]]):
        judged.is_valid(POINTER, items)
        assert not unique_items._OF_THREAD.__dict__


ITEMS: dict[str, Callable[[int], Any]] = {
    "large": lambda number: BIG + number,
    "small": lambda number: -BIG - number,
    "just too large": lambda number: 2**63 + number,
    "in lists": lambda number: [BIG + number],
    "in objects": lambda number: {"a": BIG + number},
    "deep": lambda number: [{"a": [BIG + number]}],
    "of one hash": lambda number: number * SAME_HASH,
    "of one hash, in lists": lambda number: [number * SAME_HASH],
    "of one hash, mixed": lambda number: number * SAME_HASH if number else "x",
    "floats": lambda number: 2.0**63 * (1 + number),
    "long": lambda number: 10**300 + number,
    "texts": str,
    "mixed": lambda number: [number, str(number), BIG + number, [number], {"a": number}][number % 5],
}
# A schema for a list of so many large integers, or an object of them.
KEYWORDS: dict[str, Callable[[int], Any]] = {
    "type": lambda n: {"items": {"type": "integer"}},
    "enum": lambda n: {"items": {"enum": [1, BIG, BIG - 1, 2.0**64]}},
    "const": lambda n: {"items": {"const": BIG}},
    "pattern": lambda n: {"items": {"pattern": "^a"}},
    "maxLength": lambda n: {"items": {"maxLength": 1}},
    "minLength": lambda n: {"items": {"minLength": 1}},
    "maximum": lambda n: {"items": {"maximum": 2**70}},
    "exclusiveMaximum": lambda n: {"items": {"exclusiveMaximum": 1e300}},
    "minimum": lambda n: {"items": {"minimum": 0.5}},
    "exclusiveMinimum": lambda n: {"items": {"exclusiveMinimum": 2**63}},
    "multipleOf": lambda n: {"items": {"multipleOf": 7}},
    "maxItems": lambda n: {"maxItems": n},
    "minItems": lambda n: {"minItems": n},
    "uniqueItems": lambda n: {"uniqueItems": True},
    "maxProperties": lambda n: {"maxProperties": n},
    "minProperties": lambda n: {"minProperties": n},
    "required": lambda n: {"required": ["a"]},
    "dependentRequired": lambda n: {"dependentRequired": {"a": ["b"]}},
    "const of a list": lambda n: {"const": [BIG + number for number in range(n)]},
    "enum of lists": lambda n: {"enum": [[BIG + number for number in range(n)], [BIG] * n]},
    "contains": lambda n: {"contains": {"const": -BIG}},
    "minContains": lambda n: {"contains": {"minimum": BIG}, "minContains": n, "maxContains": n},
    "prefixItems": lambda n: {"prefixItems": [{"const": BIG}], "items": {"minimum": 1}},
    "unevaluatedItems": lambda n: {"contains": {"const": BIG}, "unevaluatedItems": {"type": "integer"}},
    "anyOf": lambda n: {"items": {"anyOf": [{"type": "string"}, {"const": 1}, {"multipleOf": 3}]}},
    "oneOf": lambda n: {"oneOf": [{"items": {"type": "string"}}, {"items": {"minimum": 1}}]},
    "not": lambda n: {"not": {"items": {"const": BIG}}},
    "if": lambda n: {"if": {"items": {"minimum": BIG}}, "then": {"contains": {"const": BIG}}},
    "additionalProperties": lambda n: {"additionalProperties": {"minimum": 1}},
    "propertyNames": lambda n: {"propertyNames": {"pattern": "^n"}},
    "patternProperties": lambda n: {"patternProperties": {"^n": {"multipleOf": 3}}},
    "unevaluatedProperties": lambda n: {"allOf": [{"patternProperties": {"1$": True}}], "unevaluatedProperties": {}},
}


def takes(schema: Any, value: Any) -> float:
    judged, found = document(schema), []
    judged.prepare(POINTER)
    for _ in range(3):
        began = time.thread_time()
        judged.is_valid(POINTER, value)
        found.append(time.thread_time() - began)
    return min(found)


def grows_as_its_length(run: Callable[[int], float]) -> bool:
    # Eight times as long takes 64 times as long where it is quadratic.
    return run(800) < 24 * (run(100) + 0.0002)


@pytest.mark.parametrize("kind", ITEMS)
def test_unique_items_take_time_in_proportion_to_their_number(kind: str) -> None:
    assert grows_as_its_length(lambda n: takes({"uniqueItems": True}, [ITEMS[kind](number) for number in range(n)]))


def test_each_keyword_that_can_be_broken_is_among_those_that_are_measured() -> None:
    assert {*_ALONE} <= {*KEYWORDS}


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_each_keyword_takes_time_in_proportion_to_the_number_of_large_integers(keyword: str) -> None:
    schema = KEYWORDS[keyword]
    assert grows_as_its_length(lambda n: takes(schema(n), [BIG + number for number in range(n)]))
    assert grows_as_its_length(lambda n: takes(schema(n), {f"n{number}": BIG + number for number in range(n)}))
