"""Tests of a guarded app, as users write them."""

from collections.abc import Iterator, Sequence
from typing import assert_type

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from asgi_agents import (
    AgentResponse,
    AuditRecord,
    BadInput,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    RequestHeadersEvent,
    RequestMetadata,
)
from asgi_agents.testing import (
    FakeAgent,
    Recorded,
    Recording,
    agent_down,
    assert_blocked_by,
    assert_failed_closed,
    assert_failed_open,
    breaker_open,
    guardrail_inspect_event,
    override_agents,
    request_headers_event,
    request_metadata,
    run_in_virtual_time,
    virtual_time,
)
from asgi_agents.testing.plugin import AgentOverrides, VirtualTime

from .agents import Everything

app = Starlette()


def judge(event: RequestHeadersEvent) -> AgentResponse | None:
    """A reaction that is a function."""
    return None if event.header("x-a") else AgentResponse.block(403)


async def slow(event: GuardrailInspectEvent) -> GuardrailResponse:
    """A reaction that is a coroutine function."""
    await anyio.sleep(1)
    return GuardrailResponse(detected="password" in event.content)


@pytest.fixture
def waf(agent_overrides: AgentOverrides) -> FakeAgent:
    """A fake for a test."""
    fake = FakeAgent(request_headers=[None, judge, ConnectionError, BadInput("no")], guardrail_inspect=slow, delay=0.5)
    assert_type(agent_overrides(app, {"api-key": Everything()}, waf=fake), Recording)
    return fake


@pytest.fixture
def fake_waf() -> Iterator[FakeAgent]:
    """The same without the plugin."""
    fake = FakeAgent(AgentResponse.block(403), events={EventType.REQUEST_HEADERS})
    with override_agents(app, waf=fake):
        yield fake


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest, virtual_time: VirtualTime) -> object:
    """Virtual time for the tests of this module."""
    return virtual_time(request.param)


def who_has_blocked(fake_waf: FakeAgent) -> None:
    """What there is to assert."""
    with agent_down(app, "a", "b"), breaker_open(app, "c") as recorded, TestClient(app) as client:
        response = client.get("/")
    assert_type(recorded, Recording)
    assert_type(recorded.records, Sequence[AuditRecord])
    assert_type(assert_blocked_by(response, "waf"), AuditRecord)
    assert_failed_open(recorded.records[-1], "a")
    given: Recorded = response
    assert_failed_closed(given, "c")
    assert_type(fake_waf.received, list[Event])
    assert_type(fake_waf.received_of(RequestHeadersEvent), list[RequestHeadersEvent])


async def ask(path: str) -> httpx.Response:
    """A request on the event loop of the test."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


def in_virtual_time() -> None:
    """A coroutine function in virtual time."""
    assert_type(run_in_virtual_time(ask, "/", backend="trio"), httpx.Response)
    assert_blocked_by(run_in_virtual_time(ask, "/"), "waf")
    with virtual_time() as (backend, options):
        anyio.run(ask, "/", backend=backend, backend_options=options)


def events() -> None:
    """Events of which only some fields matter."""
    assert_type(request_metadata(client_ip="192.0.2.1"), RequestMetadata)
    event = request_headers_event("POST", "/", {"x-a": "1", "x-b": ["2", "3"]}, metadata=request_metadata())
    assert_type(event, RequestHeadersEvent)
    assert_type(guardrail_inspect_event("text", categories=["email"]), GuardrailInspectEvent)


FakeAgent("block")  # type: ignore[arg-type]
FakeAgent(request_headres=None)  # type: ignore[call-arg]
FakeAgent().received_of(str)  # type: ignore[type-var]
override_agents(app, waf="http://127.0.0.1")  # type: ignore[arg-type]
agent_down("waf")  # type: ignore[arg-type]
assert_blocked_by(403, "waf")  # type: ignore[arg-type]
run_in_virtual_time(ask, backend="curio")  # type: ignore[arg-type]
request_headers_event(headers=["x-a"])  # type: ignore[arg-type]
