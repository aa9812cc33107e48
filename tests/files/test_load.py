"""What a file may hold, and that it says the same as the Python API with the same names."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from asgi_agents import (
    AgentConfig,
    AgentMiddleware,
    AgentRoute,
    BodyMode,
    CircuitBreakerConfig,
    Configuration,
    FailureMode,
    load,
)
from asgi_agents.agents import SecurityHeaders
from asgi_agents.files.shape import AGENT, ROOT
from asgi_agents.guardrails import Guardrail, ToolPolicy
from asgi_agents.manager import registry_of

from .writing import FORMATS, REMOTE, TEAPOT, Teapot, loaded, write

MODULE = "tests.files.writing"


def agent_of(configuration: Configuration) -> AgentConfig:
    [agent] = configuration.agents
    return agent


#: What a file says of an agent, and the argument that it is the same as.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "events": (
        {"events": ["request_headers", "response_headers"]},
        {"events": {"request_headers", "response_headers"}},
    ),
    "failure mode": ({"failure_mode": "open"}, {"failure_mode": FailureMode.OPEN}),
    "a whole number for seconds": ({"timeout": 3}, {"timeout": 3.0}),
    "chunk_timeout": ({"chunk_timeout": 0.25}, {"chunk_timeout": 0.25}),
    "max_concurrent_calls": ({"max_concurrent_calls": 7}, {"max_concurrent_calls": 7}),
    "no breaker": ({"circuit_breaker": False}, {"circuit_breaker": None}),
    "breaker": (
        {"circuit_breaker": {"failure_threshold": 3, "window": 2, "failure_rate": False}},
        {"circuit_breaker": CircuitBreakerConfig(failure_threshold=3, window=2, failure_rate=None)},
    ),
    "body mode by name": ({"request_body_mode": "stream"}, {"request_body_mode": BodyMode.STREAM}),
    "body mode with a threshold": (
        {"response_body_mode": {"name": "hybrid", "threshold": 9}},
        {"response_body_mode": BodyMode.hybrid(9)},
    ),
    "a limit": ({"max_request_body_bytes": 10}, {"max_request_body_bytes": 10}),
    "no limit": ({"max_request_body_bytes": False}, {"max_request_body_bytes": None}),
    "types": ({"response_content_types": ["text/*"]}, {"response_content_types": {"text/*"}}),
    "all types": ({"response_content_types": False}, {"response_content_types": None}),
    "flags": (
        {"decode": True, "hold_head": True, "ranges": True, "enforce": False, "may_set_host": True},
        {"decode": True, "hold_head": True, "ranges": True, "enforce": False, "may_set_host": True},
    ),
    "body access": ({"body_access": "write", "request_length": "unknown"},) * 2,
    "config": (
        {"config": {"rules": [1, 2.5, "a", True, {"b": []}]}},
        {"config": {"rules": [1, 2.5, "a", True, {"b": []}]}},
    ),
    "required": ({"require_at_startup": True}, {"require_at_startup": True}),
    "sets": ({"sets": ["X-User"]}, {"sets": {"x-user"}}),
    "replaces": ({"replaces": ["Authorization"]}, {"replaces": {"authorization"}}),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("case", FIELDS)
def test_an_agent_of_a_file_is_the_one_with_the_same_arguments(tmp_path: Path, suffix: str, case: str) -> None:
    in_file, arguments = FIELDS[case]
    agent = agent_of(loaded(tmp_path, {"agents": [{**REMOTE, **in_file}]}, suffix))

    expected = AgentConfig("waf", "tcp://127.0.0.1:9", **{"events": {"request_headers"}, **arguments})
    for field in fields(AgentConfig):
        if field.name != "transport":
            assert getattr(agent, field.name) == getattr(expected, field.name), field.name
    assert repr(agent.transport) == repr(expected.transport)


def test_every_parameter_of_an_agent_is_a_key() -> None:
    assert set(AGENT.fields) == {field.name for field in fields(AgentConfig) if field.init}


def test_the_keys_at_the_top_are_parameters_of_the_middleware_that_are_plain_data() -> None:
    assert set(ROOT.fields) == {
        "agents",
        "audit_headers",
        "correlation_header",
        "debug",
        "default_agents",
        "expose_correlation_id",
        "guardrails",
        "routes",
        "state_key",
        "stop_grace",
    }


TRANSPORTS: dict[str, tuple[Any, str]] = {
    "a URL": ("http://127.0.0.1:8001/agent", "<HttpTransport 'http://127.0.0.1:8001/agent'>"),
    "a socket": ("unix:///run/waf.sock", "<StreamTransport unix:///run/waf.sock>"),
    "several": (["tcp://127.0.0.1:9", "tcp://127.0.0.1:10"], "<StreamTransport tcp://127.0.0.1:9 tcp://127.0.0.1:10>"),
    "http with a header": (
        {"url": "https://agents.example/waf", "headers": {"authorization": "Bearer x"}, "encoding": "msgpack"},
        "<HttpTransport 'https://agents.example/waf'>",
    ),
    "a stream with settings": (
        {"endpoints": "tcp://127.0.0.1:9", "connections": 2, "load_balancing": "random", "framing": "envelope"},
        "<StreamTransport tcp://127.0.0.1:9>",
    ),
}


@pytest.mark.parametrize("case", TRANSPORTS)
def test_a_transport_is_an_address_or_a_table_of_its_parameters(tmp_path: Path, case: str) -> None:
    transport, expected = TRANSPORTS[case]
    assert repr(agent_of(loaded(tmp_path, {"agents": [{**REMOTE, "transport": transport}]})).transport) == expected


@pytest.mark.parametrize("name", ["Teapot", "TEAPOT"])
def test_an_agent_in_the_process_is_named_by_its_module(tmp_path: Path, name: str) -> None:
    entry = {"id": "tea", "transport": f"{MODULE}:{name}"}
    agent = agent_of(loaded(tmp_path, {"agents": [entry]}, imports=[MODULE]))
    found = getattr(agent.transport, "agent", None)
    assert isinstance(found, Teapot)
    assert (found is TEAPOT) == (name == "TEAPOT")


def test_an_agent_may_be_one_that_its_module_imports_when_it_is_asked_for(tmp_path: Path) -> None:
    entry = {"id": "headers", "transport": "asgi_agents.agents:SecurityHeaders"}
    agent = agent_of(loaded(tmp_path, {"agents": [entry]}, imports=["asgi_agents.agents"]))
    assert isinstance(getattr(agent.transport, "agent", None), SecurityHeaders)


WHOLE: dict[str, Any] = {
    "default_agents": ["waf"],
    "stop_grace": 2,
    "state_key": False,
    "correlation_header": False,
    "expose_correlation_id": True,
    "audit_headers": ["user-agent"],
    "debug": True,
    "agents": [REMOTE, {**REMOTE, "id": "pii", "events": ["guardrail_inspect"], "after": ["waf"]}],
    "routes": [
        {"path": "/admin/{rest:path}", "agents": [["waf", "open"], "pii"], "methods": ["GET"]},
        {"path": "/", "agents": [], "guardrails": [{"agent_id": "pii", "on": ["input"]}]},
    ],
    "guardrails": [
        {"agent_id": "pii", "on": ["output", "input"], "action": "block", "min_severity": "high", "window": 500},
        {"deny": ["delete_*", {"name": "rm", "reason": "no"}], "allow": ["*"]},
    ],
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_says_the_same_in_every_format(tmp_path: Path, suffix: str) -> None:
    configuration = loaded(tmp_path, WHOLE, suffix)

    assert [agent.id for agent in configuration.agents] == ["waf", "pii"]
    assert configuration.default_agents == ["waf"]
    assert configuration.settings == {
        "stop_grace": 2.0,
        "state_key": None,
        "correlation_header": None,
        "expose_correlation_id": True,
        "audit_headers": ["user-agent"],
        "debug": True,
    }
    assert configuration.routes is not None
    admin, top = configuration.routes
    assert (admin.path, admin.agents) == ("/admin/{rest:path}", (("waf", FailureMode.OPEN), "pii"))
    assert admin.methods == frozenset({"GET", "HEAD"})
    assert admin.guardrails is None
    assert top.guardrails is not None
    assert [type(one) for one in top.guardrails] == [Guardrail]
    guardrail, policy = configuration.guardrails
    assert isinstance(guardrail, Guardrail)
    assert isinstance(policy, ToolPolicy)
    assert guardrail.kinds == {"output", "input"}
    assert (guardrail.action, guardrail.window) == ("block", 500)
    assert [rule.name for rule in policy.deny] == ["delete_*", "rm"]
    assert [rule.reason for rule in policy.deny] == [None, "no"]
    middleware = AgentMiddleware(Starlette(), **configuration.arguments)
    assert registry_of(middleware.manager).agent_ids == ("waf", "pii")


def test_what_code_gives_stands_first_and_may_be_named(tmp_path: Path) -> None:
    own = AgentConfig("own", Teapot())
    policy = ToolPolicy(deny=["x"])
    data = {
        "agents": [{**REMOTE, "after": ["own"]}],
        "routes": [{"path": "/", "agents": ["waf", "own"]}],
        "guardrails": [{"deny": ["y"]}],
    }
    configuration = loaded(tmp_path, data, agents=[own], guardrails=[policy])
    assert [agent.id for agent in configuration.agents] == ["own", "waf"]
    assert configuration.agents[0] is own
    assert configuration.guardrails[0] is policy
    assert len(configuration.guardrails) == 2


def test_a_file_may_hold_tool_policies_alone(tmp_path: Path) -> None:
    configuration = loaded(tmp_path, {"guardrails": [{"deny": ["x"]}]})
    AgentMiddleware(Starlette(), **configuration.arguments)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_may_say_where_its_schema_is(tmp_path: Path, suffix: str) -> None:
    assert loaded(tmp_path, {"$schema": "https://example.org/schema.json", "agents": [REMOTE]}, suffix).agents


def test_what_a_file_lacks_is_no_argument(tmp_path: Path) -> None:
    arguments = loaded(tmp_path, {"agents": [REMOTE]}).arguments
    assert set(arguments) == {"agents", "guardrails"}
    route = AgentRoute("/", agents=["waf"])
    AgentMiddleware(Starlette(), **arguments, routes=[route])


def test_a_file_with_a_byte_order_mark_and_crlf_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, {"agents": [REMOTE]})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(str(path)).agents


def test_repr_shows_neither_settings_nor_agents(tmp_path: Path) -> None:
    data = {"agents": [{**REMOTE, "config": {"key": "hunter2"}}]}
    shown = repr(loaded(tmp_path, data)).replace(str(tmp_path), "")
    assert shown == "<Configuration '/agents.toml': agents ['waf']>"


def test_yaml_keys_are_texts_and_references_are_followed(tmp_path: Path) -> None:
    text = """
agents:
  - &waf
    id: waf
    transport: tcp://127.0.0.1:9
    events: [guardrail_inspect]
    timeout: 2
  - <<: *waf
    id: pii
guardrails:
  - agent_id: pii
    on: [output]
"""
    configuration = loaded(tmp_path, text, "yaml")
    assert [(agent.id, agent.timeout) for agent in configuration.agents] == [("waf", 2.0), ("pii", 2.0)]
    [guardrail] = configuration.guardrails
    assert isinstance(guardrail, Guardrail)
    assert guardrail.kinds == {"output"}
