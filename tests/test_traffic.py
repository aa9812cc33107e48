"""How many connections were guarded, and how many of them were stopped."""

from collections.abc import Sequence

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    FailureMode,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseAborted,
    ResponseHeadersEvent,
    Route,
    WebSocketFrameEvent,
)
from asgi_agents.guardrails import Block, Guardrail, TextGuardrail, Window
from asgi_agents.manager import registry_of
from asgi_agents.observability.history import SLOTS, Rates, TimeSlot, Totals, rates_of
from tests.status.world import head_event
from tests.support.asgi import App, Client

ROUTES = [Route("/free/{rest:path}", agents=[]), Route("/open/{rest:path}", agents=[("waf", FailureMode.OPEN)])]


class Heads(Agent):
    """Does what a path says."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        if event.uri.endswith("fail"):
            raise AgentError("as it was told")
        return AgentResponse.block() if event.uri.endswith("block") else None


class More(Heads):
    """With it a request takes the general way."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block() if event.data == b"block" else None

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        return AgentResponse.block() if event.header("x-block") else None


class Words(TextGuardrail):
    async def check(self, window: Window) -> Sequence[Block]:
        return [Block("no")] if "hello" in window.text else []


def counted(manager: AgentManager) -> tuple[int, int, int]:
    """Connections, those that were denied, and those that were stopped by a failure."""
    totals = registry_of(manager).traffic.totals()
    return totals.calls, totals.denials, totals.failures


def guarded(agent: Agent) -> tuple[AgentMiddleware, AgentManager]:
    manager = AgentManager([AgentConfig("waf", agent, circuit_breaker=None)])
    return AgentMiddleware(App(), manager=manager, routes=ROUTES, default_agents=["waf"]), manager


@pytest.mark.parametrize("agent", [Heads, More])
async def test_every_guarded_request_is_counted_and_whether_it_was_stopped(agent: type[Agent]) -> None:
    app, manager = guarded(agent())
    expected = [0, 0, 0]
    for path, change in {
        "/": (1, 0, 0),
        "/block": (1, 1, 0),
        "/fail": (1, 0, 1),
        "/open/fail": (1, 0, 0),
        "/open/block": (1, 1, 0),
        "/free/block": (0, 0, 0),
    }.items():
        await Client(path=path).call(app)
        expected = [before + more for before, more in zip(expected, change, strict=True)]
        assert counted(manager) == tuple(expected), path


async def test_a_request_that_is_stopped_late_is_counted_once() -> None:
    app, manager = guarded(More())
    await Client("POST", body=b"block").call(app)
    assert counted(manager) == (1, 1, 0)


async def test_what_a_guardrail_stops_is_counted() -> None:
    manager = AgentManager([AgentConfig("words", Words())])
    app = AgentMiddleware(App(), manager=manager, guardrails=[Guardrail("words", on={"output"})])
    # The head has left before.
    with pytest.raises(ResponseAborted):
        await Client().call(app)
    assert counted(manager) == (1, 1, 0)


def test_a_websocket_session_is_one_connection_however_it_ends() -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    class Frames(Heads):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
            return AgentResponse.websocket_close(1008, "no") if event.data == b"close" else None

    manager = AgentManager([AgentConfig("waf", Frames())])
    app = AgentMiddleware(Starlette(routes=[WebSocketRoute("/{rest:path}", echo)]), manager=manager)
    client = TestClient(app)
    with client.websocket_connect("/") as session:
        session.send_text("hello")
        assert session.receive_text() == "hello"
    assert counted(manager) == (1, 0, 0)
    with client.websocket_connect("/") as session:
        session.send_text("close")
        with pytest.raises(WebSocketDisconnect):
            session.receive_text()
    assert counted(manager) == (2, 1, 0)
    for path, stopped in {"/block": (3, 2, 0), "/fail": (4, 2, 1)}.items():
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(path):
            pass
        assert counted(manager) == stopped


async def test_a_shadow_agent_stops_nothing() -> None:
    manager = AgentManager([AgentConfig("waf", Heads(), enforce=False)])
    app = AgentMiddleware(App(), manager=manager)
    for path in ("/block", "/fail"):
        await Client(path=path).call(app)
    assert counted(manager) == (2, 0, 0)


async def test_counts_outlive_the_routes_that_were_resolved() -> None:
    app, manager = guarded(Heads())
    for number in range(1, 4):
        await Client(path="/block").call(app)
        await manager.replace_agent(AgentConfig("waf", Heads()))
        assert counted(manager) == (number, number, 0)


async def test_calls_by_hand_are_no_connections_and_hold_the_agent_all_the_same() -> None:
    _, manager = guarded(Heads())
    await manager.process_request_headers(head_event(uri="/block"))
    assert counted(manager) == (0, 0, 0)
    resolved_route = registry_of(manager).resolved_route(None)
    assert resolved_route.connections == 0
    resolved_route.held += 1
    resolved_route.begun += 1
    assert (resolved_route.connections, resolved_route.begun) == (2, 1)
    resolved_route.ended += 1
    resolved_route.held -= 1
    assert (resolved_route.connections, counted(manager)) == (0, (1, 0, 0))


async def test_a_slot_of_the_history_ends_with_that_of_any_agent() -> None:
    app, manager = guarded(Heads())
    registry = registry_of(manager)
    traffic, history = registry.traffic.history, registry.guard("waf").tally.history
    await Client().call(app)
    begun = history.until
    assert traffic.until == begun
    history.turn(begun + 30)
    slots = traffic.slots(begun + 30)
    # Nobody has looked at it meanwhile, and what was counted is where it belongs.
    assert [index for index, slot in enumerate(slots) if slot.calls] == [SLOTS - 5]


# Rates


def slots(**latest: int) -> list[TimeSlot]:
    empty = TimeSlot(calls=0, denials=0, failures=0, p50=None, p99=None)
    made = [empty] * SLOTS
    for index, calls in latest.items():
        made[-int(index.lstrip("s"))] = TimeSlot(
            calls=calls, denials=calls // 2, failures=calls // 5, p50=None, p99=None
        )
    return made


def test_without_calls_there_are_no_parts() -> None:
    assert rates_of(slots(), 1005.0, 0.0) == Rates(per_second=0.0, denied=None, failed=None)


def test_rates_are_of_the_last_minute_and_parts_of_ten() -> None:
    rates = rates_of(slots(s1=10, s7=55, s8=1000, s60=1000), 1005.0, 0.0)
    assert rates.per_second == 65 / 65
    assert rates.denied == (5 + 27 + 500 + 500) / 2065
    assert rates.failed == (2 + 11 + 200 + 200) / 2065


@pytest.mark.parametrize(("started", "seconds"), [(1004.9, 1.0), (985.0, 20.0), (0.0, 65.0)])
def test_the_rate_of_a_young_process_is_of_its_life(started: float, seconds: float) -> None:
    assert rates_of(slots(s1=10), 1005.0, started).per_second == 10 / seconds


def test_totals_have_no_durations() -> None:
    manager = AgentManager([])
    assert registry_of(manager).traffic.totals() == Totals()
