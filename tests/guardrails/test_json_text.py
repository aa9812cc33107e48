"""Strings are changed; everything else stays to the character."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.guardrails import json_text
from asgi_agents.guardrails.framing import UnreadableError

_TEXT = st.text(st.characters(codec=None), max_size=8) | st.sampled_from(
    ["\u2028", "\ud83d", "\U0001f600", '"\\', "\x00"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=20,
)
_SPELLINGS: list[dict[str, Any]] = [
    {},
    {"ensure_ascii": False},
    {"indent": 1},
    {"separators": (",", ":")},
    {"separators": (" ,\r\n", "\t: ")},
]
DOCUMENTS = st.tuples(VALUES, st.sampled_from(_SPELLINGS)).map(lambda pair: json.dumps(pair[0], **pair[1]))


def at(value: Any, path: json_text.Path) -> Any:
    for part in path:
        value = value[part]
    return value


def strings_in(value: Any, path: json_text.Path = ()) -> list[tuple[json_text.Path, str]]:
    if isinstance(value, str):
        return [(path, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in strings_in(inner, (*path, key))]


@given(DOCUMENTS)
def test_strings_are_found_and_decoded_as_json_does(text: str) -> None:
    found = [(path, json_text.decode(text[start:end])) for path, start, end in json_text.strings(text)]
    assert found == strings_in(json.loads(text))
    assert json_text.loads(text)[1] is False


@given(DOCUMENTS, st.data(), _TEXT)
def test_one_string_is_changed_and_nothing_else(text: str, data: st.DataObject, new: str) -> None:
    places = list(json_text.strings(text))
    if not places:
        return
    path, start, end = data.draw(st.sampled_from(places))
    changed = json_text.replace(text, {path: lambda old: json_text.encode(new, old)})
    assert changed.startswith(text[:start])
    assert changed.endswith(text[end:])
    literal = changed[start : len(changed) - (len(text) - end)]
    assert json.loads(literal) == json.loads(json.dumps(new)), "surrogates that make a pair are one character"
    assert not {"\u2028", "\u2029", "\x85"} & set(literal)
    literal.encode()


@given(st.text(alphabet='{}[]",:\\ntrue1-.e0 u\n\x01Na', max_size=20))
def test_malformed_json_is_refused_where_json_refuses_it(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(UnreadableError, match="expected JSON"):
            json_text.loads(text)
        with pytest.raises(UnreadableError, match="expected JSON"):
            list(json_text.strings(text))
    else:
        assert repr(json_text.loads(text)[0]) == repr(expected)
        for _, start, end in json_text.strings(text):
            json_text.decode(text[start:end])


@pytest.mark.parametrize(
    ("text", "shadowed", "last"),
    [
        ('{"a":"x","a":"y"}', ["x"], "y"),
        ('{"a":{"b":["x"]},"a":"y"}', ["x"], "y"),
        ('{"a":"x", "\\u0061" : "y"}', ["x"], "y"),
        ('{"a":"x","a":"z","a":"y"}', ["x", "z"], "y"),
    ],
)
def test_duplicate_keys_stay_and_are_found(text: str, shadowed: list[str], last: str) -> None:
    assert json_text.loads(text) == ({"a": last}, True)
    places = json_text.shadowed(text)
    assert [json_text.decode(text[start:end]) for start, end in places] == shadowed
    assert json_text.replace(text, {("a",): '"new"'}) == text[: text.rindex('"y"')] + '"new"' + "}"
    changed = json_text.replace(text, {}, dict.fromkeys(places, "gone"))
    assert changed.count("gone") == len(shadowed)
    assert json.loads(changed) == {"a": last}


def test_no_strings_are_shadowed_in_arrays_of_objects_with_the_same_keys() -> None:
    assert json_text.shadowed('[{"a":"x"},{"a":"y","b":{"a":"z"}}]') == []


@pytest.mark.parametrize(
    ("like", "encoded"),
    [
        ('"caf\\u00e9"', '"\\u00fc\\u2028\\ud83d\\ude00\\ud800"'),
        ('"café"', '"ü\\u2028\U0001f600\\ud800"'),
        ('"plain"', '"ü\\u2028\U0001f600\\ud800"'),
    ],
)
def test_a_changed_string_is_spelt_like_the_old_one(like: str, encoded: str) -> None:
    assert json_text.encode("ü\u2028\U0001f600\ud800", like) == encoded


def test_values_of_any_kind_are_replaced() -> None:
    text = '{"a": [1, {"b": {}}], "n": 1.50e+01, "z": []}'
    assert json_text.replace(text, {("a",): "null", ("z",): "[0]"}) == '{"a": null, "n": 1.50e+01, "z": [0]}'
    assert json_text.replace(text, {("a", 1, "b"): "1", ("n",): '"x"'}) == '{"a": [1, {"b": 1}], "n": "x", "z": []}'
    with pytest.raises(UnreadableError, match="expected a value at /a/7"):
        json_text.replace(text, {("a", 7): "1"})


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ((0,), "[ 2 , {} ]"),
        ((1,), "[ 1, {} ]"),
        ((2,), "[ 1, 2 ]"),
        ((0, 1), "[ {} ]"),
        ((1, 2), "[ 1 ]"),
        ((0, 1, 2), "[  ]"),
    ],
)
def test_elements_are_taken_out_of_an_array(gone: tuple[int, ...], left: str) -> None:
    text = '{"a": [ 1, 2 , {} ], "b": [1, 2, 3]}'
    paths = {("a", index) for index in gone}
    assert json_text.without(text, paths, {("a",)}) == f'{{"a": {left}, "b": [1, 2, 3]}}'


@pytest.mark.parametrize("deep", ["[" * 201 + "]" * 201, '{"a":' * 201 + "1" + "}" * 201, "[" * 100_000])
def test_deep_nesting_is_refused(deep: str) -> None:
    with pytest.raises(UnreadableError, match="deeper than 200"):
        json_text.loads(deep)
    with pytest.raises(UnreadableError, match="deeper than 200"):
        list(json_text.strings(deep))


def test_brackets_in_strings_and_side_by_side_nest_nothing() -> None:
    text = json.dumps([["[" * 300]] * 300)
    assert json_text.loads(text)[0] == json.loads(text)


def test_pointers() -> None:
    assert json_text.pointer(()) == ""
    assert json_text.pointer(("a/b", 0, "~")) == "/a~1b/0/~0"
