"""A file with one mistake is told of that one: nothing else is wrong because of it."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from asgi_agents.files.mistakes import Place, place_named
from tests.support.examples import some_are_short

from .test_mistakes_of_files import MODULE
from .writing import loaded, refusal_of

HTTP = "http://127.0.0.1:9"
JUDGE: dict[str, Any] = {"id": "judge", "transport": HTTP, "events": ["guardrail_inspect"]}
#: Of each key that another one needs, the two; and what needs any of several.
FILE: dict[str, Any] = {
    "default_agents": ["http", ["stream", "open"]],
    "stop_grace": 2,
    "state_key": "guards",
    "correlation_header": "x-request-id",
    "expose_correlation_id": True,
    "audit_headers": ["user-agent"],
    "debug": True,
    "agents": [
        {
            "id": "http",
            "transport": HTTP,
            "events": ["request_headers", "request_body_chunk", "response_headers", "response_body_chunk"],
            "timeout": 1,
            "chunk_timeout": 2,
            "failure_mode": "open",
            "max_concurrent_calls": 8,
            "circuit_breaker": {"failure_threshold": 3, "window": 2, "failure_rate": 0.5, "minimum_calls": 4},
            "request_body_mode": {"name": "hybrid", "threshold": 1000},
            "response_body_mode": "stream",
            "max_request_body_bytes": 5000,
            "max_response_body_bytes": 5000,
            "response_content_types": ["text/*"],
            "body_access": "write",
            "decode": True,
            "may_set_host": True,
            "sets": ["host", "x-user"],
            "replaces": ["authorization"],
        },
        {
            "id": "table",
            "transport": {"url": HTTP, "headers": {"authorization": "x"}, "encoding": "json"},
            "events": ["request_headers"],
        },
        {
            "id": "stream",
            "transport": {"endpoints": ["tcp://127.0.0.1:9"], "connections": 2, "load_balancing": "random"},
            "after": ["http"],
            "config": {"rules": [1]},
            "require_at_startup": True,
        },
        {
            "id": "sso",
            "transport": {"address": HTTP, "upstream_headers": ["x-user"], "client_headers": ["location"]},
        },
        {"id": "local", "transport": f"{MODULE}:Teapot", "enforce": False},
        JUDGE,
    ],
    "routes": [
        {"path": "/a/{rest:path}", "agents": [["http", "open"], "stream"], "methods": ["GET"]},
        {"path": "/b", "agents": [], "guardrails": [{"agent_id": "judge", "on": ["input"]}, {"allow": ["a"]}]},
    ],
    "guardrails": [
        {
            "agent_id": "judge",
            "on": ["output", "input"],
            "action": "block",
            "min_severity": "high",
            "window": 500,
            "hold": 100,
            "categories": ["email"],
        },
        {"deny": ["delete_*"]},
        {"deny": [{"name": "rm", "reason": "no"}]},
        {"allow": ["list_*", {"name": "get"}], "deny": ["x"]},
    ],
}
WRONG: list[Any] = [-5, "nothing like it", ["nothing like it"], {"a": 1}, [[[[]]]], True]


def places(data: Any, at: Place = ()) -> Iterator[Place]:
    """The places of a file, but for those inside of what may have any keys."""
    if at:
        yield at
    if at and at[-1] in ("config", "headers"):
        return
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def changed(place: Place, value: Any) -> Any:
    data = deepcopy(FILE)
    inner: Any = data
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    return data


def test_nothing_is_wrong_with_the_file(tmp_path: Path) -> None:
    assert loaded(tmp_path, FILE, "json", imports=[MODULE])


@pytest.mark.parametrize("place", some_are_short(list(places(FILE)), one_in=3), ids=place_named)
def test_what_is_wrong_at_a_place_is_said_of_no_other(tmp_path: Path, place: Place) -> None:
    # What a class refuses in a list is said of the list.
    key = max(number for number, part in enumerate(place) if isinstance(part, str))
    for value in WRONG:
        for line in refusal_of(tmp_path, changed(place, value), "json", imports=[MODULE]):
            where = line.removeprefix("agents.json: ")
            assert where.startswith(place_named(place[: key + 1])), (value, line)


#: What leaves so little that what is left would be refused as well.
ALONE: dict[str, tuple[dict[str, Any], str]] = {
    "the only events": ({"agents": [{**JUDGE, "events": ["request_header"]}]}, "agents[0].events[0]: found {any}"),
    "events of an address in a variable": (
        {"agents": [{**JUDGE, "transport": f"${{A:-{HTTP}}}", "events": ["request_header"]}]},
        "agents[0].events[0]: found {any}",
    ),
    "the only list": ({"guardrails": [{"deny": "delete_*"}]}, "guardrails[0].deny: found 'delete_*', {any}"),
    "the only item of the only list": ({"guardrails": [{"deny": [5]}]}, "guardrails[0].deny[0]: found 5, {any}"),
    "the only table of the only list": (
        {"guardrails": [{"deny": [{"name": "rm", "reason": 5}]}]},
        "guardrails[0].deny[0].reason: found 5, {any}",
    ),
    "what another key needs": (
        {"agents": [{**JUDGE, "sets": ["host"], "may_set_host": "yes"}]},
        "agents[0].may_set_host: found 'yes', {any}",
    ),
}


@pytest.mark.parametrize("case", ALONE)
def test_what_is_left_of_a_file_is_not_refused_for_what_was_left_out(tmp_path: Path, case: str) -> None:
    data, expected = ALONE[case]
    [line] = refusal_of(tmp_path, data, "json")
    begin, _, _ = expected.partition("{any}")
    assert line.removeprefix("agents.json: ").startswith(begin)
