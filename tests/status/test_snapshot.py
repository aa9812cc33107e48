import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    CircuitBreakerConfig,
    ConfigureEvent,
    EventType,
    FailureMode,
    HttpTransport,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseHeadersEvent,
    Route,
)
from asgi_agents.manager import registry_of
from asgi_agents.observability.metrics import Tally
from asgi_agents.serve import serve_stream
from asgi_agents.status.snapshot import take_snapshot
from tests.support.asgi import App, Client, Held, SlowProbe

from .world import head_event, scripted

PATIENCE = 60.0  # seconds after which a test that hangs has failed
SECRET = "s3cr3t-f0r-n0b0dy"


def shown(manager: AgentManager) -> Any:
    """The snapshot as readers get it."""
    return json.loads(msgspec.json.encode(take_snapshot(registry_of(manager))))


def agent_shown(manager: AgentManager, agent_id: str = "waf") -> Any:
    (agent,) = [agent for agent in shown(manager)["agents"] if agent["id"] == agent_id]
    return agent


def routes_shown(manager: AgentManager) -> Any:
    """Path to what there is about its agents."""
    return {route["path"]: route["agents"] for route in shown(manager)["routes"]}


async def ask(manager: AgentManager, correlation_id: str = "c-1", **headers: str) -> None:
    await manager.process_request_headers(head_event(correlation_id, **headers))


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait for
            await anyio.sleep(0.005)


class Everything(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None: ...
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None: ...
    async def on_response_headers(self, event: ResponseHeadersEvent) -> None: ...
    async def on_configure(self, event: ConfigureEvent) -> None: ...


# One agent


async def test_an_agent_that_nobody_has_asked_says_so() -> None:
    agent = agent_shown(AgentManager([scripted("waf", max_concurrent_calls=7)]))

    empty = {"calls": 0, "denials": 0, "failures": 0, "p50": None, "p99": None}
    assert agent == {
        "id": "waf",
        "transport": "in_process",
        "hears": ["request_headers"],
        "failure_mode": "closed",
        "enforced": True,
        "trouble": {},
        "configured": True,
        "breaker": "closed",
        "retry_after": 0.0,
        "in_flight": 0,
        "max_in_flight": 7,
        "waiting": 0,
        "calls": 0,
        "outcomes": {},
        "passed_open": 0,
        "shadowed": 0,
        "skipped_bodies": 0,
        "rates": {"per_second": 0.0, "denied": None, "failed": None},
        "latency": {"p50": None, "p90": None, "p99": None},
        "slots": [empty] * 60,
        "failures": [],
        "denials": [],
        "endpoints": [],
        "text": None,
    }


async def test_the_snapshot_says_when_and_of_what_version_it_is() -> None:
    before = time.time()
    status = shown(AgentManager())
    assert status["agents"] == status["routes"] == []
    assert status["slot_seconds"] == 10
    assert before <= status["time"] <= time.time()
    assert status["version"]


async def test_calls_and_outcomes_are_counted() -> None:
    manager = AgentManager([scripted("waf", failure_mode=FailureMode.OPEN)])
    for _ in range(3):
        await ask(manager)
    await ask(manager, x_waf="block")
    await ask(manager, x_waf="fail")

    agent = agent_shown(manager)

    assert agent["calls"] == 5
    assert agent["outcomes"] == {"allow": 3, "block": 1, "error": 1}
    assert agent["passed_open"] == 1
    # They may be in two slots, should one end in between.
    assert [sum(slot[name] for slot in agent["slots"]) for name in ("calls", "denials", "failures")] == [5, 1, 1]
    assert len(agent["slots"]) == 60
    assert sum(slot["calls"] for slot in agent["slots"][-2:]) == 5


async def test_latency_is_in_seconds() -> None:
    async def slowly(event: object) -> None:
        await anyio.sleep(0.02)

    manager = AgentManager([AgentConfig("waf", SlowProbe(request_headers=slowly))])
    await ask(manager)

    agent = agent_shown(manager)

    for name in ("p50", "p90", "p99"):
        assert 0.015 < agent["latency"][name] < 1
    assert 0.015 < agent["slots"][-1]["p50"] < 1 or 0.015 < agent["slots"][-2]["p50"] < 1


async def test_the_longest_duration_there_can_be_is_a_number() -> None:
    manager = AgentManager([scripted("waf")])
    series = Tally("waf")
    await ask(manager)
    tally = registry_of(manager).guard("waf").tally
    (seen,) = tally.series
    tally.add(seen, 1e9, time.monotonic())

    assert agent_shown(manager)["latency"]["p99"] == 100.0
    assert list(series.series) == []


async def test_calls_under_way_and_waiting_are_counted_while_they_are() -> None:
    held = Held()
    config = AgentConfig("waf", SlowProbe(request_headers=held), max_concurrent_calls=2, timeout=PATIENCE)
    manager = AgentManager([config])
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask, manager)
        await until(lambda: agent_shown(manager)["waiting"] == 3)
        agent = agent_shown(manager)
        held.gate.set()

    assert (agent["in_flight"], agent["max_in_flight"], agent["waiting"]) == (2, 2, 3)
    agent = agent_shown(manager)
    assert (agent["in_flight"], agent["waiting"], agent["calls"]) == (0, 0, 5)


async def test_an_open_breaker_is_shown_and_when_it_lets_calls_through_again() -> None:
    now = 1000.0
    breaker = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, reset_timeout=30.0)
    manager = AgentManager([scripted("waf", circuit_breaker=breaker)], clock=lambda: now)
    seen = []

    def look() -> None:
        agent = agent_shown(manager)
        seen.append((agent["breaker"], agent["retry_after"]))

    await ask(manager, x_waf="fail")
    look()
    await ask(manager, x_waf="fail")
    look()
    now += 20.0
    look()
    await ask(manager)
    now += 10.0
    look()
    await ask(manager)
    look()

    assert seen == [("closed", 0.0), ("open", 30.0), ("open", 10.0), ("half_open", 0.0), ("closed", 0.0)]
    assert agent_shown(manager)["outcomes"] == {"error": 2, "breaker_open": 1, "allow": 1}


async def test_an_agent_without_breaker_has_none() -> None:
    agent = agent_shown(AgentManager([scripted("waf", circuit_breaker=None)]))
    assert (agent["breaker"], agent["retry_after"]) == (None, 0.0)


async def test_looking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = AgentManager([scripted("waf")])
    await ask(manager, x_waf="block")
    # At one moment.
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, partial(float, getattr(time, name)()))
    first, second = shown(manager), shown(manager)
    assert first == second


async def test_the_events_are_in_the_order_in_which_they_happen() -> None:
    agent = agent_shown(AgentManager([AgentConfig("waf", Everything())]))
    assert agent["hears"] == ["configure", "request_headers", "request_body_chunk", "response_headers"]


async def test_an_agent_that_does_not_take_its_configuration_is_shown_as_not_configured() -> None:
    class Refuses(Everything):
        async def on_configure(self, event: ConfigureEvent) -> None:
            raise AgentError("no")

    manager = AgentManager([AgentConfig("waf", Refuses(), config={})])
    async with manager:
        assert agent_shown(manager)["configured"] is False


# Incidents


async def test_failures_and_denials_have_what_it_takes_to_find_them() -> None:
    before = time.time()
    manager = AgentManager([scripted("waf", "the disk is full", failure_mode=FailureMode.OPEN)])
    app = AgentMiddleware(App(), manager=manager, routes=[Route("/a/{x}", agents=[("waf", FailureMode.CLOSED)])])
    for correlation_id, what in (("id-of-failure", b"fail"), ("id-of-denial", b"block")):
        client = Client(path="/a/1", headers=[(b"x-waf", what), (b"x-request-id", correlation_id.encode())])
        await client.call(app)

    agent = agent_shown(manager)

    (failure,), (denial,) = agent["failures"], agent["denials"]
    for incident in (failure, denial):
        assert before <= incident.pop("time") <= time.time()
        assert 0 <= incident.pop("duration") < 1
    assert failure == {
        "correlation_id": "id-of-failure",
        "route": "/a/{x}",
        "event": "request_headers",
        "outcome": "error",
        "failed": True,
        "failure_mode": "closed",
        "enforced": True,
        "message": "agent 'waf', request_headers: the disk is full",
        "window": False,
        "path": "/a/1",
        "rule_ids": [],
        "tags": [],
        "reason_codes": [],
        "worker": None,
    }
    assert denial == {
        "correlation_id": "id-of-denial",
        "route": "/a/{x}",
        "event": "request_headers",
        "outcome": "block",
        "failed": False,
        "failure_mode": "closed",
        "enforced": True,
        "message": "",
        "window": False,
        "path": "/a/1",
        "rule_ids": ["R-1"],
        "tags": ["test"],
        "reason_codes": ["told_to"],
        "worker": None,
    }


async def test_the_latest_fifty_are_kept_newest_first() -> None:
    manager = AgentManager([scripted("waf", circuit_breaker=None)])
    for number in range(60):
        await ask(manager, f"failure-{number}", x_waf="fail")
        await ask(manager, f"denial-{number}", x_waf="block")

    agent = agent_shown(manager)

    for kind in ("failure", "denial"):
        ids = [incident["correlation_id"] for incident in agent[f"{kind}s"]]
        assert ids == [f"{kind}-{number}" for number in range(59, 9, -1)]


async def test_what_a_shadow_agent_would_have_stopped_is_marked() -> None:
    manager = AgentManager([scripted("waf", enforce=False)])
    await ask(manager, x_waf="block")
    await ask(manager, x_waf="fail")

    agent = agent_shown(manager)

    assert (agent["enforced"], agent["shadowed"]) == (False, 2)
    assert [incident["enforced"] for incident in (*agent["denials"], *agent["failures"])] == [False, False]


async def test_a_failure_that_was_let_through_is_marked() -> None:
    manager = AgentManager([scripted("waf")])
    await manager.process_request_headers(head_event("c", x_waf="fail"), [("waf", FailureMode.OPEN)])

    agent = agent_shown(manager)

    assert agent["failure_mode"] == "closed"
    assert agent["passed_open"] == 1
    assert [incident["failure_mode"] for incident in agent["failures"]] == ["open"]


async def test_a_body_that_was_not_inspected_is_counted() -> None:
    config = AgentConfig("waf", Everything(), max_request_body_bytes=3, failure_mode=FailureMode.OPEN)
    manager = AgentManager([config])
    await Client("POST", body=b"four").call(AgentMiddleware(App(), manager=manager))

    agent = agent_shown(manager)

    assert agent["skipped_bodies"] == 1
    assert [incident["outcome"] for incident in agent["failures"]] == ["request_too_large"]


# Stream agents


@asynccontextmanager
async def stream_agent(path: Path) -> AsyncIterator[str]:
    """Its URL."""
    async with anyio.create_task_group() as tasks:
        url = await tasks.start(serve_stream, Everything(), f"unix://{path}")
        yield url
        tasks.cancel_scope.cancel()


async def test_each_endpoint_of_a_stream_agent_says_how_it_is(tmp_path: Path) -> None:
    there, missing = tmp_path / "a", tmp_path / "b"
    async with stream_agent(there):
        manager = AgentManager([AgentConfig("waf", [f"unix://{there}", f"unix://{missing}"])])
        async with manager:
            await until(lambda: agent_shown(manager)["endpoints"][0]["state"] == "up")
            await until(lambda: agent_shown(manager)["endpoints"][1]["state"] == "down")
            agent = agent_shown(manager)
    assert agent["transport"] == "stream"
    up, down = agent["endpoints"]
    assert (up["address"], up["connections"] > 0, up["fault"]) == (f"unix://{there}", True, "")
    assert (down["address"], down["connections"]) == (f"unix://{missing}", 0)
    assert down["fault"]


async def test_a_stream_agent_that_was_never_there_is_shown(tmp_path: Path) -> None:
    agent = agent_shown(AgentManager([AgentConfig("waf", f"unix://{tmp_path / 'nobody'}")]))
    assert (agent["transport"], agent["calls"], agent["waiting"]) == ("stream", 0, 0)


# Routes


async def test_routes_say_who_hears_what_with_which_failure_mode() -> None:
    manager = AgentManager([scripted("waf"), AgentConfig("pii", Everything(), enforce=False), scripted("idle")])
    AgentMiddleware(
        App(),
        manager=manager,
        routes=[
            Route("/healthz", agents=[]),
            Route("/api/{rest:path}", agents=["pii", ("waf", FailureMode.OPEN)], methods=["POST", "GET"]),
        ],
        default_agents=["waf"],
    )

    waf = {"id": "waf", "hears": ["request_headers"], "failure_mode": "closed", "enforced": True}
    pii = {
        "id": "pii",
        "hears": ["configure", "request_headers", "request_body_chunk", "response_headers"],
        "failure_mode": "closed",
        "enforced": False,
    }
    assert shown(manager)["routes"] == [
        {"path": "/healthz", "methods": None, "agents": [], "guardrails": []},
        {
            "path": "/api/{rest:path}",
            "methods": ["GET", "HEAD", "POST"],
            "agents": [pii, {**waf, "failure_mode": "open"}],
            "guardrails": [],
        },
        {"path": None, "methods": None, "agents": [waf], "guardrails": []},
    ]


async def test_without_routes_everyone_hears_everything() -> None:
    manager = AgentManager([scripted("waf"), scripted("pii")])
    AgentMiddleware(App(), manager=manager)
    await manager.add_agent(scripted("late"))

    (route,) = shown(manager)["routes"]

    assert (route["path"], route["methods"]) == (None, None)
    assert [agent["id"] for agent in route["agents"]] == ["waf", "pii", "late"]


async def test_the_routes_of_all_middlewares_that_share_a_manager_are_shown_once() -> None:
    manager = AgentManager([scripted("waf")])
    for path in ("/a", "/b", "/b"):
        AgentMiddleware(App(), manager=manager, routes=[Route(path, agents=["waf"])])

    paths = [route["path"] for route in shown(manager)["routes"]]

    assert sorted(paths, key=str) == ["/a", "/b", None]


# Change while serving


async def test_agents_that_come_and_go_while_serving_come_and_go_here() -> None:
    manager = AgentManager([scripted("waf"), scripted("pii")])
    routes = [Route("/both", agents=["waf", "pii"]), Route("/one", agents=[("waf", FailureMode.OPEN)])]
    AgentMiddleware(App(), manager=manager, routes=routes, default_agents=["pii", "waf"])

    await manager.add_agent(scripted("late"))
    assert [agent["id"] for agent in shown(manager)["agents"]] == ["waf", "pii", "late"]
    await manager.remove_agent("waf")

    assert [agent["id"] for agent in shown(manager)["agents"]] == ["pii", "late"]
    assert {path: [agent["id"] for agent in agents] for path, agents in routes_shown(manager).items()} == {
        "/both": ["pii"],
        "/one": [],
        None: ["pii"],
    }


async def test_an_agent_that_was_replaced_keeps_its_place_and_counts_and_shows_what_is_new() -> None:
    manager = AgentManager([scripted("waf"), scripted("pii")])
    AgentMiddleware(App(), manager=manager, routes=[Route("/", agents=["waf"])])
    await ask(manager, "before", x_waf="block")

    await manager.replace_agent(
        AgentConfig("waf", Everything(), failure_mode=FailureMode.OPEN, enforce=False, max_concurrent_calls=3)
    )

    assert [agent["id"] for agent in shown(manager)["agents"]] == ["waf", "pii"]
    agent = agent_shown(manager)
    assert (agent["calls"], agent["denials"][0]["correlation_id"]) == (1, "before")
    assert (agent["failure_mode"], agent["enforced"], agent["max_in_flight"]) == ("open", False, 3)
    (on_route,) = routes_shown(manager)["/"]
    assert (on_route["failure_mode"], on_route["enforced"]) == ("open", False)
    assert "request_body_chunk" in on_route["hears"]


async def test_an_agent_that_comes_back_under_a_removed_id_starts_from_nothing() -> None:
    manager = AgentManager([scripted("waf")])
    await ask(manager, x_waf="block")
    await manager.remove_agent("waf")
    await manager.add_agent(scripted("waf"))
    agent = agent_shown(manager)
    assert (agent["calls"], agent["denials"]) == (0, [])


async def test_it_can_be_looked_at_from_inside_a_call() -> None:
    looks: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        looks.append(shown(manager))
        await App()(scope, receive, send)

    manager = AgentManager([AgentConfig("waf", Everything(), request_body_mode=BodyMode.STREAM)])
    await Client("POST", body=b"x").call(AgentMiddleware(app, manager=manager))
    assert looks[0]["agents"][0]["outcomes"]["allow"] >= 1


# What is not in there


class Leaks(Agent):
    """Fails over everything that it is shown."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        await checkpoint()
        if event.header("x-block"):
            return AgentResponse.block(403, SECRET, headers={"x-reason": SECRET})
        raise ValueError(event.uri, event.headers)

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        raise KeyError(event.data)

    async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
        raise LookupError(event.headers)


async def test_nothing_of_headers_bodies_queries_or_configuration_is_shown() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route to host", request=request)

    remote = HttpTransport(
        f"http://agent.example/{SECRET}/?key={SECRET}",
        headers={"authorization": f"Bearer {SECRET}"},
        transport=httpx.MockTransport(refuse),
    )
    open_mode: dict[str, Any] = {"failure_mode": FailureMode.OPEN, "circuit_breaker": None}
    manager = AgentManager(
        [
            AgentConfig("leaks", Leaks(), config={"password": SECRET}, **open_mode),
            AgentConfig("remote", remote, events={EventType.REQUEST_HEADERS}, config={"k": SECRET}, **open_mode),
        ]
    )
    app = AgentMiddleware(App(), manager=manager, routes=[Route("/{rest:path}", agents=["leaks", "remote"])])
    for extra in ([], [(b"x-block", b"1")]):
        client = Client("POST", "/a", body=SECRET.encode(), headers=[(b"cookie", SECRET.encode()), *extra])
        client.scope["query_string"] = f"token={SECRET}".encode()
        await client.call(app)
    async with manager:
        pass

    agents = {agent["id"]: agent for agent in shown(manager)["agents"]}
    assert agents["leaks"]["failures"]
    assert agents["leaks"]["denials"]
    assert agents["remote"]["failures"]
    assert SECRET not in json.dumps(shown(manager))


async def test_a_message_is_one_line_that_nothing_in_it_can_reorder() -> None:
    manager = AgentManager([scripted("waf", "\u202egnp.exe\r\n\x1b[31m\0\ud800" + "x" * 100_000)])
    await ask(manager, x_waf="fail")

    (failure,) = agent_shown(manager)["failures"]

    assert failure["message"].isprintable()
    assert len(failure["message"]) < 3000


async def test_a_correlation_id_that_is_no_unicode_does_not_take_the_page_down() -> None:
    manager = AgentManager([scripted("waf")])
    await ask(manager, "lone \ud800 surrogate", x_waf="block")
    shown(manager)


async def test_fifty_agents_with_all_that_they_remember_are_told_in_a_few_megabytes() -> None:
    manager = AgentManager([scripted(f"agent-{number}", circuit_breaker=None) for number in range(50)])
    routes = [Route(f"/{number}/{{rest:path}}", agents=manager.agent_ids) for number in range(200)]
    AgentMiddleware(App(), manager=manager, routes=routes)
    for agent_id in manager.agent_ids:
        for what in ("fail", "block"):
            for _ in range(50):
                await manager.process_request_headers(head_event("c" * 36, **{f"x_{agent_id}": what}), [agent_id])
    encoded = msgspec.json.encode(take_snapshot(registry_of(manager)))
    assert len(encoded) < 5_000_000
