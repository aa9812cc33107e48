"""The JSON Schema of files: it is up to date, and takes what ``load`` takes."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents import ConfigurationError, load
from asgi_agents.files.schema import SCHEMA_PATH, schema, schema_text
from asgi_agents.files.shape import ROOT, Shape, Table
from tests.support.examples import some_are_short

from .test_load import FIELDS, TRANSPORTS, WHOLE
from .test_mistakes_of_files import MISTAKES, MODULE
from .writing import REMOTE, loaded

#: Mistakes that depend on a range of numbers, on other parts of the file, or on what is elsewhere.
BEYOND = {
    "a negative number",
    "no call",
    "an id with a space",
    "no events",
    "no events though the address is a variable",
    "events that are none",
    "a route with a failure mode outside of a pair",
    "default agents with a failure mode outside of a pair",
    "a route with a failure mode and no agent",
    "an object of a module behind a dot",
    "a class behind a dot, of a module that may not be named",
    "a host without a scheme",
    "a breaker with two mistakes",
    "an address without a scheme",
    "an unsafe header",
    "the same id twice",
    "after an agent that there is not",
    "after itself",
    "a cycle",
    "a default agent that there is not",
    "a route to an agent that there is not",
    "a route with an agent twice",
    "a route with a pattern of others",
    "a guardrail of no agent",
    "a guardrail of a route, of no agent",
    "a guardrail on nothing",
    "a policy without a rule",
    "no agents at all",
    "settings that the middleware refuses",
    "a module that can't be imported",
    "a module that may not be named",
    "an object that there is not",
    "an object that is no agent",
    "a function",
    "a class with arguments",
    "the class of all agents",
    "a default agent in a list twice",
    "an action for an agent that says itself what to do",
    "categories for an agent that says itself what to do, on a route",
    "a guardrail whose agent judges no text",
    "a guardrail that redacts what the app has already",
    "a window that is no longer than what is held",
}


@cache
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def takes(data: Any) -> bool:
    return bool(validator().is_valid(data))


def test_the_schema_in_the_package_is_that_of_the_code() -> None:
    """Otherwise: ``python -m asgi_agents.files.schema``."""
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema_text()


def test_every_key_is_described_or_its_neighbour_is() -> None:
    properties = schema()["$defs"]["AgentConfig"]["properties"]
    assert properties["timeout"]["description"].startswith("one deadline for a call")
    assert properties["timeout"]["default"] == 1.0
    assert sum("description" in each for each in properties.values()) > 20


@pytest.mark.parametrize("case", FIELDS)
def test_the_schema_takes_every_key_of_an_agent(case: str) -> None:
    assert takes({"agents": [{**REMOTE, **FIELDS[case][0]}]})


@pytest.mark.parametrize("case", TRANSPORTS)
def test_the_schema_takes_every_transport(case: str) -> None:
    assert takes({"agents": [{**REMOTE, "transport": TRANSPORTS[case][0]}]})


def test_the_schema_takes_a_whole_file() -> None:
    assert takes({"$schema": "x", **WHOLE})


@pytest.mark.parametrize("case", MISTAKES)
def test_the_schema_refuses_mistakes_of_names_and_types(case: str) -> None:
    assert takes(MISTAKES[case][0]) == (case in BEYOND)


# Whatever stands wherever: the schema refuses nothing that `load` takes.

JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2.5,
    "",
    "a",
    "${V}",
    "x${V}",
    "${V:-true}",
    "open",
    "waf",
    [],
    ["a"],
    [1],
    ["${V}"],
    [["waf", "open"]],
    [["waf", "${V}"]],
    {},
    {"a": 1},
    {"name": "x"},
    {"url": "http://127.0.0.1:9"},
]


def places(table: Table, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The places of a file's keys, each table of a list as the first one there."""
    found: list[tuple[str | int, ...]] = []
    for key, field in table.fields.items():
        place = (*prefix, key)
        found.append(place)
        for inner in field.shape.tables:
            found += places(inner, (*place, 0) if field.shape.many else place)
    return found


def put(data: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """``data`` with a value at a place, if there is such a place in it."""
    changed = deepcopy(data)
    target = changed
    for part in place[:-1]:
        try:
            target = target[part]
        except (KeyError, IndexError, TypeError):
            return None
        if not isinstance(target, dict | list):
            return None
    if not isinstance(target, dict):
        return None
    target[place[-1]] = value
    return changed


PLACES = [place for place in dict.fromkeys(places(ROOT)) if put(WHOLE, place, 0) is not None]


def is_loaded(path: Path, data: Any) -> bool:
    path.write_text(json.dumps(data))
    try:
        load(path, environ={"V": "1"}, imports=[MODULE])
    except ConfigurationError:
        return False
    return True


@pytest.mark.parametrize("place", some_are_short(PLACES, one_in=3), ids=str)
def test_what_load_takes_the_schema_takes(tmp_path: Path, place: tuple[str | int, ...]) -> None:
    path = tmp_path / "agents.json"
    for value in JUNK:
        data = put(WHOLE, place, value)
        if is_loaded(path, data):
            assert takes(data), (place, value)


@given(st.data())
def test_values_of_the_wrong_type_are_refused_by_both(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # What agents are given as their configuration may be anything.
    place = data.draw(st.sampled_from([place for place in PLACES if place[-1] != "config"]))
    shape = shape_at(ROOT, place)
    wrong = data.draw(st.sampled_from(of_no_use(shape)))
    changed = put(WHOLE, place, wrong)
    directory = tmp_path_factory.getbasetemp() / "of_wrong_types"
    directory.mkdir(exist_ok=True)
    assert not is_loaded(directory / "agents.json", changed)
    assert not takes(changed)


def shape_at(table: Table, place: tuple[str | int, ...]) -> Shape:
    key, *rest = (part for part in place if isinstance(part, str))
    shapes = [table.fields[key].shape] if key in table.fields else []
    for inner in shapes[0].tables if rest else ():
        if rest[0] in inner.fields:
            return shape_at(inner, tuple(rest))
    return shapes[0]


def of_no_use(shape: Shape) -> list[Any]:
    """Values of types that the shape does not take."""
    kinds = str(shape.leaf)
    found: list[Any] = []
    if "float" not in kinds and "int" not in kinds:
        found.append(5)
    if "str" not in kinds and "Literal" not in kinds:
        found.append("nothing like it")
    if not shape.tables and "dict" not in kinds:
        found.append({"a": 1})
    found.append([[[[]]]])
    return found


def test_the_schema_knows_variables(tmp_path: Path) -> None:
    data = {"agents": [{**REMOTE, "timeout": "${T}", "enforce": "${E:-true}", "circuit_breaker": "${B}"}]}
    assert takes(data)
    assert loaded(tmp_path, data, "json", environ={"T": "1", "B": "false"})
    data["agents"][0]["timeout"] = "1${T}"
    assert not takes(data)
