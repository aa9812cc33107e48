"""What the log says of an agent in the process that raises: where, and with ``debug=True`` what."""

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.types import ASGIApp

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    ConfigurationError,
    EventType,
    FailureMode,
    protect,
)
from asgi_agents.guard import Guard
from asgi_agents.guardrails import TextGuardrail
from asgi_agents.messages.places import raised_by
from asgi_agents.protocol import ConfigureEvent, Event, GuardrailInspectEvent, Headers, ResponseHeadersEvent
from tests.support.sample_events import RESPONSE_HEAD as EVENT

from .support.asgi import Client

pytestmark = pytest.mark.anyio

SECRET = "hunter2"


def simply() -> None:
    raise ValueError(SECRET)


def in_a_library() -> None:
    json.loads("{" + SECRET)


def in_this_package() -> None:
    Headers(SECRET)  # type: ignore[arg-type]


async def in_a_group() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(grouped)


async def grouped() -> None:
    await checkpoint()
    raise KeyError(SECRET)


class Failing(Agent):
    def __init__(self, fail: Callable[[], Any]) -> None:
        self.fail = fail

    async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
        made = self.fail()
        if made is not None:
            await made


class Uncallable(Agent):
    async def on_response_headers(self) -> None:  # type: ignore[override]
        return None


async def message(agent: Agent, **options: Any) -> str:
    verdict = await Guard(AgentConfig("waf", agent), **options).call(EVENT, FailureMode.CLOSED)
    assert verdict.failure is not None
    return verdict.failure.message.removeprefix("agent 'waf', response_headers: ")


def line_of(function: Any, offset: int) -> int:
    line: int = function.__code__.co_firstlineno + offset
    return line


async def test_the_place_is_the_last_line_of_the_agents_own_file() -> None:
    assert await message(Failing(simply)) == f"raised ValueError at test_places.py:{line_of(simply, 1)}"


async def test_where_a_library_raises_both_places_are_told() -> None:
    found = await message(Failing(in_a_library))

    assert re.fullmatch(
        rf"raised JSONDecodeError at test_places\.py:{line_of(in_a_library, 1)} \(in json/\w+\.py:\d+\)", found
    )


async def test_where_this_package_raises_the_line_that_called_it_comes_first() -> None:
    found = await message(Failing(in_this_package))

    assert re.match(rf"raised \w+ at test_places\.py:{line_of(in_this_package, 1)}", found)


async def test_of_a_group_it_is_the_place_of_the_first_in_it() -> None:
    found = await message(Failing(in_a_group))

    assert found == f"raised ExceptionGroup of KeyError at test_places.py:{line_of(grouped, 2)}"


async def test_a_hook_that_cannot_be_called_so_is_named_by_where_it_begins() -> None:
    # At construction it may be refused already; here it is about what the log says of any that is not.
    agent = Uncallable()

    first = line_of(Uncallable.on_response_headers, 0)
    assert raised_by(TypeError(), agent.on_response_headers) == f"raised TypeError at test_places.py:{first}"


def test_what_is_known_of_no_function_is_the_place_alone() -> None:
    with pytest.raises(ValueError, match=SECRET) as raised:
        simply()

    assert raised_by(raised.value, None) == f"raised ValueError at test_places.py:{line_of(simply, 1)}"
    assert raised_by(raised.value.with_traceback(None), None) == "raised ValueError at an unknown place"


def failures(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "'waf', " in record.getMessage()]


@pytest.mark.parametrize("fail", [simply, in_a_library, in_a_group])
@pytest.mark.parametrize("debug", [False, True])
async def test_debug_puts_the_traceback_into_the_log(
    fail: Callable[[], Any], debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await message(Failing(fail), debug=debug)

    [record] = failures(caplog)
    assert (record.exc_info is not None) is debug
    assert (SECRET in caplog.text) is (debug and fail is not in_a_library)
    assert (f", in {fail.__name__}\n" in caplog.text) is debug
    assert SECRET not in record.getMessage()


def plain(app: Starlette, **options: Any) -> ASGIApp:
    return AgentMiddleware(app, **options)


def protected(app: Starlette, **options: Any) -> ASGIApp:
    protect(app, **options)
    return app


def managed(app: Starlette, *, agents: list[AgentConfig], debug: bool) -> ASGIApp:
    return AgentMiddleware(app, manager=AgentManager(agents, debug=debug))


@pytest.mark.parametrize("guard", [plain, protected, managed])
@pytest.mark.parametrize("debug", [False, True])
async def test_each_way_to_guard_an_app_has_debug(
    guard: Callable[..., ASGIApp], debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await Client().call(guard(Starlette(), agents=[AgentConfig("waf", Failing(simply))], debug=debug))

    [record] = failures(caplog)
    assert (record.exc_info is not None) is debug


async def test_an_agent_that_raises_as_it_is_configured_is_shown_too(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Failing):
        async def on_configure(self, event: ConfigureEvent) -> None:
            simply()

    await message(Refusing(simply), debug=True)

    assert any(record.exc_info and "configure" in record.getMessage() for record in failures(caplog))


async def test_with_debug_the_lines_are_as_few_as_without(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(AgentConfig("waf", Failing(simply), circuit_breaker=None), debug=True)
    for _ in range(5):
        await guard.call(EVENT, FailureMode.CLOSED)

    assert len(failures(caplog)) == 1


class Remote:
    """Its failures are those of a connection: our own code is all that a traceback would show."""

    kind = "custom"
    remote = True
    events = carries = frozenset({EventType.RESPONSE_HEADERS})

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event) -> None:
        raise ConnectionResetError(SECRET)

    async def aclose(self) -> None:
        pass


async def test_of_remote_agents_there_is_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    verdict = await Guard(AgentConfig("waf", Remote()), debug=True).call(EVENT, FailureMode.CLOSED)

    assert verdict.failure is not None
    assert [record.exc_info for record in failures(caplog)] == [None]


def test_what_debug_cannot_be_is_refused() -> None:
    agents = [AgentConfig("waf", Failing(simply))]
    for make in (AgentManager, lambda agents, debug: AgentMiddleware(Starlette(), agents=agents, debug=debug)):
        with pytest.raises(ConfigurationError, match="debug='yes', expected True or False"):
            make(agents, debug="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"beside manager, expected AgentManager\(\.\.\., debug=True\)"):
        AgentMiddleware(Starlette(), manager=AgentManager(agents), debug=True)


async def test_a_line_of_this_package_that_calls_an_agents_method_is_not_the_place() -> None:
    names: dict[str, Any] = {"TextGuardrail": TextGuardrail, "__name__": "a_module_that_is_not_there"}
    code = "class Emails(TextGuardrail):\n    async def check(self, window):\n        return window.txt"
    exec(compile(code, "emails.py", "exec"), names)  # noqa: S102 - code of this test
    guard = Guard(AgentConfig("emails", names["Emails"]()))
    event = GuardrailInspectEvent(correlation_id="c", inspection_type="pii_detection", content="text")

    verdict, _ = await guard.inspect(event, FailureMode.CLOSED)

    assert verdict.failure is not None
    assert "raised AttributeError at emails.py:3" in verdict.failure.message
