"""What is configured to no effect, or most likely in milliseconds, is one warning in the log."""

from collections.abc import Callable
from typing import Any

import pytest

from asgi_agents import Agent, AgentConfig, AgentManager, AgentMiddleware, BodyMode, CircuitBreakerConfig, EventType


class Complete(Agent):
    """Hears of nothing that any of the fields below is about."""

    async def on_request_complete(self, event: Any) -> None: ...


class Everything(Complete):
    async def on_configure(self, event: Any) -> None: ...
    async def on_request_headers(self, event: Any) -> None: ...
    async def on_request_body_chunk(self, event: Any) -> None: ...
    async def on_response_headers(self, event: Any) -> None: ...
    async def on_response_body_chunk(self, event: Any) -> None: ...
    async def on_websocket_frame(self, event: Any) -> None: ...


OPTIONS: list[tuple[str, Any]] = [
    ("sets", {"x-user"}),
    ("replaces", {"authorization"}),
    ("after", ["first"]),
    ("may_set_host", True),
    ("decode", True),
    ("body_access", "write"),
    ("request_body_mode", "stream"),
    ("request_body_mode", BodyMode.hybrid()),
    ("max_request_body_bytes", 10),
    ("request_length", "unknown"),
    ("response_body_mode", "stream"),
    ("max_response_body_bytes", 10),
    ("response_content_types", {"text/*"}),
    ("hold_head", True),
    ("ranges", True),
    ("config", {"a": 1}),
]


def warnings_of(caplog: pytest.LogCaptureFixture, make: Callable[[], object]) -> list[str]:
    caplog.clear()
    make()
    assert all(record.levelname == "WARNING" and record.name == "asgi_agents" for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


def managed(agent: Any, **options: Any) -> Callable[[], AgentManager]:
    first = AgentConfig("first", Everything())
    return lambda: AgentManager([first, AgentConfig("waf", agent, **options)])


@pytest.mark.parametrize(("field", "value"), OPTIONS)
def test_a_field_that_no_hook_can_use_is_one_warning(caplog: pytest.LogCaptureFixture, field: str, value: Any) -> None:
    (warning,) = warnings_of(caplog, managed(Complete(), **{field: value}))

    assert warning.startswith(f"AgentConfig('waf'): {field} has no effect, because the agent has no on_")
    assert warning.endswith(f"add that, or leave {field} out")


@pytest.mark.parametrize(("field", "value"), OPTIONS)
def test_a_field_that_a_hook_can_use_is_none(caplog: pytest.LogCaptureFixture, field: str, value: Any) -> None:
    assert warnings_of(caplog, managed(Everything(), **{field: value})) == []


@pytest.mark.parametrize(("field", "value"), OPTIONS)
async def test_an_agent_that_has_the_hook_is_warned_of_by_its_events(
    caplog: pytest.LogCaptureFixture, field: str, value: Any
) -> None:
    """Where that is true: it is given its configuration whichever events ``events`` names."""
    given: list[Any] = []

    class Asked(Everything):
        async def on_configure(self, event: Any) -> None:
            given.append(event.config)

    found = warnings_of(caplog, managed(Asked(), events={EventType.REQUEST_COMPLETE}, **{field: value}))
    async with AgentManager([AgentConfig("waf", Asked(), events={EventType.REQUEST_COMPLETE}, config={"a": 1})]):
        assert given == [{"a": 1}]
    if field == "config":
        assert found == []
    else:
        (warning,) = found
        assert warning.startswith(f"AgentConfig('waf'): {field} has no effect, because its events have no ")


def test_a_remote_agent_is_warned_of_by_its_events(caplog: pytest.LogCaptureFixture) -> None:
    (warning,) = warnings_of(caplog, managed("http://agent.example/", events={EventType.REQUEST_HEADERS}, decode=True))

    assert "decode has no effect, because its events have no request_body_chunk or response_body_chunk" in warning


def test_an_agent_that_will_say_what_it_hears_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, managed("unix:///run/agent.sock", decode=True, config={"a": 1})) == []


def test_what_a_shadow_agent_sets_is_one(caplog: pytest.LogCaptureFixture) -> None:
    (warning,) = warnings_of(caplog, managed(Everything(), sets={"x-user"}, enforce=False))

    assert "sets has no effect, because a shadow agent" in warning


@pytest.mark.parametrize("field", ["timeout", "chunk_timeout"])
@pytest.mark.parametrize(("seconds", "warned"), [(0.5, False), (300, False), (300.5, True), (500, True)])
def test_a_deadline_that_looks_like_milliseconds_is_one(
    caplog: pytest.LogCaptureFixture, field: str, seconds: float, warned: bool
) -> None:
    found = warnings_of(caplog, managed(Everything(), **{field: seconds}))

    assert len(found) == warned
    assert all(f"{field}={seconds:g} is more than 300 seconds" in warning for warning in found)


def test_so_is_the_time_of_a_breaker_and_of_an_app_that_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreakerConfig(reset_timeout=30_000)
    (warning,) = warnings_of(caplog, managed(Everything(), circuit_breaker=breaker))
    assert warning.endswith("for milliseconds write reset_timeout=30")

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    agents = [AgentConfig("waf", Everything())]
    (warning,) = warnings_of(caplog, lambda: AgentMiddleware(app, agents=agents, stop_grace=1000))
    assert warning.startswith("AgentMiddleware: stop_grace=1000")


async def test_a_configuration_that_is_pushed_is_not_warned_of_again(caplog: pytest.LogCaptureFixture) -> None:
    manager = managed(Everything(), timeout=500)()
    caplog.clear()

    await manager.push_config("waf", {"a": 2})

    assert not caplog.records
