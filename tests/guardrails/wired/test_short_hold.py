"""What holds less text back than its agent says that it needs is one warning, when it is configured."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from asgi_agents import AgentConfig, AgentMiddleware, AgentRoute, EventType, guard_router, protect
from asgi_agents.guardrails import Decision, Guardrail, TextGuardrail, Window

WARNING = (
    "Guardrail('g'): hold=20 is less than the 320 code points that the agent looks for: what is longer may leave in"
    " part; leave hold out"
)


class Long(TextGuardrail):
    hold = 320

    async def check(self, window: Window) -> Sequence[Decision]:
        return []


class Unsaid(TextGuardrail):
    async def check(self, window: Window) -> Sequence[Decision]:
        return []


def of_all(guardrail: Guardrail, transport: Any, **options: Any) -> FastAPI:
    app = FastAPI()
    app.add_api_route("/a", answer)
    protect(app, agents=[AgentConfig("g", transport, **options)], guardrails=[guardrail])
    return app


def of_routes(guardrail: Guardrail, transport: Any, **options: Any) -> FastAPI:
    app = FastAPI()
    routes = [AgentRoute(path, agents=[], guardrails=[guardrail]) for path in ("/a", "/b")]
    app.add_middleware(AgentMiddleware, agents=[AgentConfig("g", transport, **options)], routes=routes)
    return app


def of_a_policy(guardrail: Guardrail, transport: Any, **options: Any) -> FastAPI:
    app, router = FastAPI(), APIRouter()
    for path in ("/a", "/a/b"):
        router.add_api_route(path, answer)
    guard_router(router, guardrails=[guardrail])
    app.include_router(router)
    protect(app, agents=[AgentConfig("g", transport, **options)])
    return app


async def answer() -> str:
    return "hello"


def told(caplog: pytest.LogCaptureFixture, app: FastAPI) -> list[str]:
    with TestClient(app, raise_server_exceptions=False) as client:
        for path in ("/a", "/a", "/a/b", "/a?b"):
            client.get(path)
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return [line for line in found if line.startswith("Guardrail('g'): hold")]


@pytest.mark.parametrize("make", [of_all, of_routes, of_a_policy])
def test_it_is_told_once(make: Callable[..., FastAPI], caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, make(Guardrail("g", on={"output"}, hold=20), Long())) == [WARNING]


@pytest.mark.parametrize("make", [of_all, of_routes, of_a_policy])
def test_so_is_that_nobody_has_said_what_a_remote_agent_needs(
    make: Callable[..., FastAPI], caplog: pytest.LogCaptureFixture
) -> None:
    app = make(Guardrail("g", on={"output"}), "http://127.0.0.1:9/", events={EventType.GUARDRAIL_INSPECT})
    (line,) = told(caplog, app)
    assert line.startswith("Guardrail('g'): hold is not given")


@pytest.mark.parametrize("make", [of_all, of_routes, of_a_policy])
@pytest.mark.parametrize(("hold", "agent"), [(None, Long), (320, Long), (400, Long), (20, Unsaid)])
def test_what_is_enough_or_unsaid_is_not(
    make: Callable[..., FastAPI], hold: int | None, agent: type[TextGuardrail], caplog: pytest.LogCaptureFixture
) -> None:
    assert told(caplog, make(Guardrail("g", on={"output"}, hold=hold), agent())) == []
