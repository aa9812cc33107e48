"""OpenApiValidation beside what a FastAPI app itself accepts, with values that nobody has thought of."""

import json
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tests.support.examples import examples

from .openapi_apps import Everything, guarded_app, routes

JSON = {"content-type": "application/json"}
PROBLEM = "application/problem+json"
STRICT = TypeAdapter(Everything)
# What the app refuses that no schema says: formats, which Pydantic reads in its own way.
FORMATS = {
    "date_from_datetime_inexact",
    "date_from_datetime_parsing",
    "decimal_parsing",
    "uuid_parsing",
}

# Of numbers that only Python reads.
SPELLINGS = {"int_from_float", "int_parsing", "float_parsing"}

many = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
few = settings(max_examples=examples(400), deadline=None, suppress_health_check=list(HealthCheck))


def is_spelled_otherwise(text: str) -> bool:
    """Whether it is a number such as ``1.``, ``1e2`` or `` 1_0``, of which Pydantic reads some, and not others."""
    try:
        float(text)
    except ValueError:
        return False
    return text.strip().isascii() and not text.strip("+-").isdecimal()


class Pair:
    """The same request to the app as it is, and to the app behind the agent."""

    def __init__(self, bare: TestClient, guarded: TestClient) -> None:
        self._bare = bare
        self._guarded = guarded

    def ask(self, method: str, url: str, texts: Iterable[str] = (), **given_request: Any) -> tuple[Any, Any]:
        """Both responses. What the agent lets pass is answered as without it, and the app refuses formats alone.

        :param texts: parameters and fields of forms, which the agent reads as numbers where Python does.
        """
        bare = self._bare.request(method, url, **given_request)
        guarded = self._guarded.request(method, url, **given_request)
        if guarded.headers["content-type"] != PROBLEM:
            assert (guarded.status_code, guarded.content) == (bare.status_code, bare.content)
            if bare.status_code == 422:
                refused = {error["type"] for error in bare.json()["detail"]}
                assert refused <= (FORMATS | SPELLINGS if any(map(is_spelled_otherwise, texts)) else FORMATS)
        return bare, guarded


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with TestClient(routes(FastAPI())) as bare, TestClient(guarded_app(routes(FastAPI()))) as guarded:
        yield Pair(bare, guarded)


words = st.text(alphabet="abé_ 1", max_size=9)
scalars = st.none() | st.booleans() | st.integers(-10, 110) | st.floats(-9, 9, width=16) | words
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))
strict = st.fixed_dictionaries({}, optional={"a": st.integers() | anything, "b": words | anything, "c": anything})
pets = st.fixed_dictionaries(
    {}, optional={"kind": st.sampled_from(["cat", "dog", "cow", 1]), "lives": st.integers(-1, 10), "name": words}
)
shapes = st.fixed_dictionaries({}, optional={"radius": st.integers() | words, "corners": st.integers() | words})
good_words = st.text(alphabet="abé 1", min_size=1, max_size=5)
good: dict[str, st.SearchStrategy[Any]] = {
    "text": good_words,
    "number": st.integers(-5, 99),
    "ratio": st.floats(-9, 9) | st.integers() | st.none(),
    "flag": st.booleans(),
    "colour": st.sampled_from(["red", "blue"]),
    "size": st.sampled_from([1, 2, None]),
    "literal": st.sampled_from(["x", 3]),
    "price": st.sampled_from(["1.5", 2, 2.5, "1e3", None]),
    "day": st.dates().map(str),
    "id": st.uuids().map(str),
    "either": st.integers() | st.lists(words, max_size=2),
    "table": st.dictionaries(words, st.integers(), max_size=3),
    "pair": st.tuples(st.integers(), words),
    "tags": st.lists(words, max_size=3),
    "pet": st.builds(lambda lives: {"kind": "cat", "lives": lives}, st.integers(0, 9))
    | st.just({"kind": "dog", "name": "x"}),
    "shape": st.fixed_dictionaries({}, optional={"radius": st.integers(), "corners": st.integers()}),
    "strict": st.fixed_dictionaries({"a": st.integers()}, optional={"b": words | st.none()}),
    "re-named": st.integers(-3, 3).map(lambda n: 3 * n),
    "anything": anything,
}
bad: dict[str, st.SearchStrategy[Any]] = {
    "text": words,
    "number": st.sampled_from([-6, 100, "1", 1.0, 1.5, True]),
    "size": st.sampled_from([3, "1"]),
    "literal": st.just("3"),
    "price": st.sampled_from(["x", ""]),
    "day": st.sampled_from(["2026-13-31", "2026-01-31T00:00:00", 0, "x"]),
    "id": words,
    "table": st.dictionaries(words, scalars, max_size=3),
    "pair": st.lists(scalars, max_size=3),
    "tags": st.lists(words, max_size=4),
    "pet": pets,
    "shape": shapes,
    "strict": strict,
    "re-named": st.integers(-9, 9),
    "renamed": st.integers(),
}
plain = st.fixed_dictionaries(
    {"text": good["text"], "number": good["number"]},
    optional={name: one for name, one in good.items() if name not in ("text", "number")},
)


@st.composite
def bodies(draw: st.DrawFn) -> Any:
    """One that the description allows, in which one thing may be otherwise."""
    body: dict[str, Any] = draw(plain)
    if draw(st.booleans()):
        body["inner"] = draw(st.lists(plain, max_size=3))
    if draw(st.booleans()):
        there: dict[str, Any] = draw(st.sampled_from([body, *body.get("inner", [])]))
        name = draw(st.sampled_from([*good, "renamed"]))
        if draw(st.integers(0, 3)):
            there[name] = draw(bad.get(name, anything) | anything)
        else:
            there.pop(name, None)
    return body


def conforms_strictly(data: bytes) -> bool:
    """Whether Pydantic takes it with each value of the type that the description names."""
    try:
        STRICT.validate_json(data, strict=True)
    except ValidationError:
        return False
    return True


def repeats_a_tag(value: Any) -> bool:
    """Sets are lists in which nothing is twice: Pydantic would drop it."""
    if isinstance(value, dict):
        tags = value.get("tags")
        twice = isinstance(tags, list) and any(one == other for i, one in enumerate(tags) for other in tags[:i])
        return twice or any(map(repeats_a_tag, value.values()))
    return isinstance(value, list) and any(map(repeats_a_tag, value))


@few
@given(bodies() | anything)
@example({"text": "José", "number": 1, "shape": {"radius": 1, "corners": 2}})
@example({"text": "a", "number": 1.0, "price": "1e3"})
def test_bodies_are_taken_as_the_app_takes_them(pair: Pair, body: Any) -> None:
    data = json.dumps(body).encode()
    _, guarded = pair.ask("POST", "/everything", content=data, headers=JSON)
    if guarded.headers["content-type"] == PROBLEM:
        assert guarded.status_code == 422
        # Where the app would have taken it, it would have made another type of something.
        assert not conforms_strictly(data) or repeats_a_tag(body)


@pytest.mark.slow
@many
@given(st.binary(max_size=20) | st.text(alphabet='{}[]",:0123456789eE.-truefalsn \\u', max_size=20).map(str.encode))
def test_what_is_no_json_or_list_never_passes(pair: Pair, data: bytes) -> None:
    bare, guarded = pair.ask("POST", "/list", content=data, headers=JSON)
    if guarded.headers["content-type"] == PROBLEM:
        assert guarded.status_code in (400, 422)
    else:
        assert bare.status_code == 200


texts = st.one_of(
    st.sampled_from(
        ["true", "ON", "1", "0", "off", "n", "t", "", " 1 ", "+1", "1_0", "1.0", "1e2", "-0", "2026-01-31"]
    ),
    st.sampled_from(
        ["red", "RED", "é", "ab c", "\u0663", "null", "None", "0x1", "1,2", "1e400", "Infinity", "nan", "9" * 400]
    ),
    st.integers(-3, 9).map(str),
    st.text(max_size=6),
)
numbers = st.integers(-3, 9).map(str) | st.sampled_from([" 1 ", "+1", "1_0", "1.0", "1.5", "1e2", "-0", "", "\u0663"])
booleans = st.sampled_from(["true", "ON", "1", "0", "off", "n", "t", "F", "yes", "False", "2", ""])
parameters = st.one_of(
    st.tuples(st.sampled_from(["i", "z", "many", "f", "dec"]), numbers),
    st.tuples(st.sampled_from(["b", "mixed"]), booleans),
    st.tuples(st.sampled_from(["s", "c", "d", "mixed", "more"]), texts),
    st.tuples(st.just("c"), st.sampled_from(["red", "blue"])),
    st.tuples(st.just("pair"), numbers | texts),
    st.tuples(st.sampled_from(["i", "f", "b", "s", "c", "z", "d", "many", "mixed", "dec", "more"]), texts),
)


def is_not_finite(text: str) -> bool:
    """What JSON has no number for: Pydantic takes it for a float."""
    try:
        return float(text) in (float("inf"), float("-inf")) or float(text) != float(text)
    except ValueError:
        return False


tuples = st.tuples(st.just("pair"), numbers, texts | numbers) | st.tuples(
    st.just("trio"), booleans, numbers, st.sampled_from(["red", "blue", "green"])
)


@few
@given(st.lists(parameters, max_size=4) | tuples.map(lambda found: [(found[0], text) for text in found[1:]]))
def test_queries_are_taken_as_the_app_takes_them(pair: Pair, query: list[tuple[str, str]]) -> None:
    bare, guarded = pair.ask("GET", "/search", [text for _, text in query], params=query)
    if bare.status_code == 200 and guarded.status_code != 200:
        single = [name for name, _ in query if name not in ("many", "mixed", "more", "pair", "trio")]
        # Of a parameter that is no list, the app reads the last and the agent all.
        assert len(single) > len(set(single)) or any(is_not_finite(text) for _, text in query)


@pytest.mark.slow
@many
@given(st.sampled_from(["1", "0", "x", "9", "1.0", "%31", "1%2F2", "-1", "é"]), st.text(min_size=1, max_size=5))
def test_paths_are_taken_as_the_app_takes_them(pair: Pair, number: str, word: str) -> None:
    word = quote(word, safe="")
    for url in (f"/paths/{number}/{word}", f"/converted/{number}/{word}/x", f"/words/{number}"):
        bare, guarded = pair.ask("GET", url)
        assert bare.status_code == guarded.status_code


fields_of_forms = st.lists(
    st.tuples(st.sampled_from(["n", "many"]), numbers)
    | st.tuples(st.just("b"), booleans)
    | st.tuples(st.sampled_from(["n", "b", "s", "many", "more"]), texts),
    max_size=4,
)


@pytest.mark.slow
@many
@given(fields_of_forms, st.booleans(), st.sampled_from(["/form", "/form-model"]))
def test_forms_are_taken_as_the_app_takes_them(
    pair: Pair, given_fields: list[tuple[str, str]], multipart: bool, url: str
) -> None:
    as_files = [(name, (None, text.encode())) for name, text in given_fields]
    as_data: dict[str, list[str]] = {}
    for name, text in given_fields:
        as_data.setdefault(name, []).append(text)
    request: dict[str, Any] = {"files": as_files} if multipart else {"data": as_data}
    bare, guarded = pair.ask("POST", url, [text for _, text in given_fields], **request)
    if bare.status_code == 200 and guarded.status_code != 200:
        single = [name for name, _ in given_fields if name in ("n", "b", "s")]
        assert len(single) > len(set(single))
