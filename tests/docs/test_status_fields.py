"""The page about status.json has every field, with its type and the values that it can have, and no other."""

import typing
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Final, Literal

import anyio
import msgspec
import pytest
from msgspec import Struct

from asgi_agents import AgentManager
from asgi_agents.breaker import BreakerState
from asgi_agents.manager import registry_of
from asgi_agents.observability.endpoints import EndpointState
from asgi_agents.observability.sources import ReloadOutcome
from asgi_agents.policy import FailureMode
from asgi_agents.status import Status
from asgi_agents.status.snapshot import _KINDS, take_snapshot
from asgi_agents.status.trouble import SERIOUS
from tests.status.world import head_event, scripted

from .markdown import headings_of
from .pages import DOCS
from .test_tables import codes, table

PAGE: Final = DOCS / "reference" / "status-json.md"
_NAMES: Final[dict[Any, str]] = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def name_of(struct: type[Struct]) -> str:
    """What the page calls it: the name of its section."""
    return struct.__name__.removesuffix("Status").removesuffix("Statistics") or "Status"


def type_of(hint: Any) -> str:
    """A type as the page writes it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is UnionType:
        return " or ".join(map(type_of, arguments))
    if origin is Sequence:
        return f"list of {type_of(arguments[0])}"
    if origin is Mapping:
        return f"object of {type_of(arguments[1])}"
    if origin is Literal:
        return "string"
    if isinstance(hint, type) and issubclass(hint, Struct):
        return f"[{name_of(hint)}](#{name_of(hint).lower()})"
    return _NAMES[hint]


def structs() -> list[type[Struct]]:
    """All that a status is made of, in the order in which they are named first."""
    found: list[type[Struct]] = []

    def visit(hint: Any) -> None:
        if isinstance(hint, type) and issubclass(hint, Struct) and hint not in found:
            found.append(hint)
            for inner in typing.get_type_hints(hint).values():
                visit(inner)
        for inner in typing.get_args(hint):
            visit(inner)

    visit(Status)
    return found


STRUCTS: Final = {name_of(struct): struct for struct in structs()}


def rows(name: str) -> Iterator[list[str]]:
    yield from table(PAGE, f"| `{name}` | type | |")


def test_each_object_has_a_section() -> None:
    assert len(STRUCTS) == len(structs())
    assert sorted(headings_of(PAGE.read_text())[1:]) == sorted(STRUCTS)


@pytest.mark.parametrize("name", STRUCTS)
def test_each_field_is_there_with_its_type_and_a_meaning(name: str) -> None:
    hints = typing.get_type_hints(STRUCTS[name])
    expected = [(field.name, type_of(hints[field.name])) for field in msgspec.structs.fields(STRUCTS[name])]
    assert [(codes(field)[0], given) for field, given, _ in rows(name)] == expected
    assert all(len(meaning) > 5 for _, _, meaning in rows(name))


VALUES: Final[dict[tuple[str, str], set[str]]] = {
    ("Agent", "breaker"): {state.value for state in BreakerState},
    ("Agent", "failure_mode"): {mode.value for mode in FailureMode},
    ("Agent", "trouble"): {*SERIOUS, "breaker_half_open", "endpoint_down"},
    ("Endpoint", "state"): set(typing.get_args(EndpointState)),
    ("RouteGuardrail", "on"): set(_KINDS),
    ("Source", "reloads"): {outcome.value for outcome in ReloadOutcome},
}


@pytest.mark.parametrize("field", VALUES, ids=".".join)
def test_each_value_that_a_field_can_have_is_named(field: tuple[str, str]) -> None:
    (meaning,) = [meaning for name, _, meaning in rows(field[0]) if codes(name) == [field[1]]]
    assert set(codes(meaning)) == VALUES[field]


def test_what_is_answered_has_these_fields() -> None:
    """As JSON: no field has another name there, and none is left out where it has its default."""

    async def status() -> Any:
        manager = AgentManager([scripted("waf")])
        await manager.process_request_headers(head_event("c-1", x_waf="block"))
        return msgspec.json.decode(msgspec.json.encode(take_snapshot(registry_of(manager))))

    found = anyio.run(status)
    (agent,) = found["agents"]
    for name, given in {
        "Status": found,
        "Worker": found["worker"],
        "Agent": agent,
        "Incident": agent["denials"][0],
        "Rates": agent["rates"],
        "Latency": agent["latency"],
        "TimeSlot": agent["slots"][0],
    }.items():
        assert list(given) == [codes(field)[0] for field, _, _ in rows(name)]
