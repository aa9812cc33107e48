"""What is recorded of the calls to agents: of all kinds of agents and events, and nothing while it is off."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    BadInput,
    CircuitBreakerConfig,
    ConfigurationError,
    EventType,
    Failure,
    FailureKind,
    FailureMode,
    GuardrailInspectEvent,
    HttpTransport,
    Opcode,
    RequestHeadersEvent,
    Verdict,
    WebSocketFrameEvent,
)
from asgi_agents.calls.outside import event_outside
from asgi_agents.guard import Guard
from asgi_agents.guardrails import Guardrail
from asgi_agents.manager import registry_of
from asgi_agents.protocol import ALLOW
from asgi_agents.recording import record
from asgi_agents.recording.reading import Traffic
from asgi_agents.serve import agent_app
from asgi_agents.testing import FakeAgent, override_agents
from tests.observability.spans import serving
from tests.support.asgi import Client
from tests.support.sample_events import COMPLETE, HEAD, QUESTION, head

from .judges import Heads, Judge, answering, ask, ask_all, exchanges_in, fail, guarded, text_in


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


class Slow(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        await anyio.sleep(10 if event.uri == "/slow" else 0.001)


# What is recorded


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("mode", ["buffer", "stream"])
async def test_what_an_agent_was_shown_and_answered_is_what_is_recorded(suspends: bool, mode: Any, path: Path) -> None:
    judge = Judge(suspends=suspends)
    app = guarded(judge, request_body_mode=mode, response_body_mode=mode, body_access="write")
    async with record(app, path, bodies=True, redact=None) as log:
        await ask_all(app, 20)
    exchanges = exchanges_in(path)
    assert [exchange.event for exchange in exchanges] == judge.heard
    assert {exchange.event.event_type for exchange in exchanges} == {
        EventType.REQUEST_HEADERS,
        EventType.REQUEST_BODY_CHUNK,
        EventType.RESPONSE_HEADERS,
        EventType.RESPONSE_BODY_CHUNK,
        EventType.REQUEST_COMPLETE,
    }
    again = Judge()
    for exchange in exchanges:
        hook = getattr(again, f"on_{exchange.event.event_type.value}")
        assert exchange.decoded_answer() == ((await hook(exchange.event)) or ALLOW)
    assert [exchange.about.n for exchange in exchanges] == list(range(1, len(exchanges) + 1))
    assert (log.exchanges, log.dropped, log.stopped, log.size) == (len(exchanges), 0, "", len(text_in(path).encode()))
    assert all(exchange.about.chunk is (mode == "stream") for exchange in exchanges if hasattr(exchange.event, "data"))


@pytest.mark.parametrize("way", ["planned", "general"])
async def test_heads_are_recorded_on_the_short_way_too(way: str, path: Path) -> None:
    app = AgentMiddleware(
        answering(), agents=[AgentConfig("a", Heads(lambda event: None)), AgentConfig("b", Heads(lambda event: None))]
    )
    # A request that names itself takes the general way.
    headers = [(b"x-request-id", b"r-1")] if way == "general" else []
    async with record(app, path):
        for _ in range(3):
            await ask(app, "/", None, *headers)
    found = exchanges_in(path)
    assert [exchange.about.agent for exchange in found] == ["a", "b"] * 3
    assert [exchange.answer for exchange in found] == [{"decision": "allow"}] * 6


@asynccontextmanager
async def remote(kind: str, agent: Agent) -> Any:
    """Settings of an agent that is in the process, behind the stream transport, or behind HTTP."""
    async with AsyncExitStack() as stack:
        match kind:
            case "in_process":
                yield {"transport": agent}
            case "stream":
                address = await stack.enter_async_context(serving(agent))
                yield {"transport": address, "events": agent.events, "timeout": 30.0}
            case _:
                transport = HttpTransport("http://agent/", transport=httpx.ASGITransport(agent_app(agent)))
                yield {"transport": transport, "events": agent.events, "timeout": 30.0}


@pytest.mark.parametrize("kind", ["in_process", "stream", "http"])
async def test_every_event_of_every_kind_of_agent_is_recorded(kind: str, path: Path) -> None:
    judge = Judge()
    frame = WebSocketFrameEvent(
        correlation_id="c", opcode=Opcode.TEXT, data=b"hi", client_to_server=True, frame_index=0, client_ip=""
    )
    async with remote(kind, judge) as settings, AgentManager([AgentConfig("waf", **settings)]) as manager:
        async with record(manager, path, bodies=True):
            await manager.process_request_headers(HEAD)
            await manager.process_websocket_frame(frame)
            await manager.call_guardrail_agent("waf", QUESTION)
            await manager.process_request_complete(COMPLETE)
        await manager.process_request_headers(HEAD)
    exchanges = exchanges_in(path)
    heard = [exchange.event if kind == "in_process" else event_outside(exchange.event) for exchange in exchanges]
    assert heard == judge.heard[:4]
    assert [exchange.event for exchange in exchanges] == [HEAD, frame, QUESTION, COMPLETE]
    assert [exchange.about.window for exchange in exchanges] == [False] * 4
    assert exchanges[0].agent.transport == kind
    assert exchanges[2].answer == {"detected": False, "confidence": 0.0}
    assert all(exchange.about.seconds > 0 for exchange in exchanges)


async def test_a_question_and_its_finding_are_recorded_as_they_were(path: Path) -> None:
    question = GuardrailInspectEvent(correlation_id="c", inspection_type="x", content="to ada@example.com, please")
    async with AgentManager([AgentConfig("pii", Judge())]) as manager:
        async with record(manager, path, bodies=True):
            said = await manager.call_guardrail_agent("pii", question)
        async with record(manager, path.with_suffix(".none")):
            await manager.call_guardrail_agent("pii", question)
    (exchange,) = exchanges_in(path)
    assert exchange.decoded_answer() == said
    (bare,) = exchanges_in(path.with_suffix(".none"))
    assert bare.about.left_out == {"content": len(question.content)}
    assert bare.about.answer_left_out == {"detections.description": 10, "detections.replacement": 7}
    assert "example.com" not in text_in(path.with_suffix(".none"))


@pytest.mark.parametrize(
    ("agent", "outcome"),
    [
        (Heads(lambda event: fail(ValueError("what a client has sent"))), "error"),
        (Heads(lambda event: "allow"), "error"),
        (Heads(lambda event: AgentResponse.block(99)), "error"),
        (Heads(lambda event: fail(asyncio.CancelledError())), "error"),
        (Heads(lambda event: fail(BadInput("no", status=400))), "block"),
    ],
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_call_that_fails_is_recorded_as_its_failure(agent: Agent, outcome: str, path: Path) -> None:
    app = guarded(agent)
    async with record(app, path):
        await ask(app, "/")
    (exchange,) = exchanges_in(path)
    if outcome == "block":
        assert exchange.answer is not None
        assert exchange.answer["decision"] == {"block": {"status": 400, "body": "no", "headers": None}}
    else:
        assert exchange.failure is not None
        assert (exchange.failure.kind, exchange.answer) == (FailureKind(outcome), None)
        assert "what a client has sent" not in text_in(path)


async def test_timeouts_and_what_the_breaker_refuses_are_recorded_with_their_times(path: Path) -> None:
    breaker = CircuitBreakerConfig(failure_threshold=2, reset_timeout=60)
    app = guarded(Slow(), timeout=2.0, circuit_breaker=breaker)
    async with record(app, path):
        for _ in range(3):
            await ask(app, "/slow")
    found = exchanges_in(path)
    assert [exchange.failure and exchange.failure.kind for exchange in found] == [
        FailureKind.TIMEOUT,
        FailureKind.TIMEOUT,
        FailureKind.BREAKER_OPEN,
    ]
    assert [round(exchange.about.seconds) for exchange in found] == [2, 2, 0]
    assert [round(exchange.about.at) for exchange in found] == [0, 2, 4]
    assert found[2].failure is not None
    assert found[2].failure.retry_after is not None


async def test_a_call_that_nobody_waits_for_any_more_has_no_outcome(path: Path) -> None:
    app = AgentMiddleware(
        answering(),
        agents=[AgentConfig("fast", Heads(lambda event: AgentResponse.block(403))), AgentConfig("slow", Slow())],
    )
    manager = AgentManager([AgentConfig("slow", Slow(), timeout=60)])
    async with record(app, path):
        assert await ask(app, "/slow") == 403
    assert [exchange.about.agent for exchange in exchanges_in(path)] == ["fast"]
    async with manager, record(manager, path):
        with anyio.move_on_after(1):
            await manager.process_request_headers(head(uri="/slow"))
    (exchange,) = exchanges_in(path)
    assert (exchange.about.given_up, exchange.answer, exchange.failure) == (True, None, None)
    assert round(exchange.about.seconds) == 1


@pytest.mark.parametrize(
    ("kind", "given_up"),
    [
        (FailureKind.ERROR, True),
        (FailureKind.UNAVAILABLE, True),
        (FailureKind.TIMEOUT, False),
        (FailureKind.BREAKER_OPEN, False),
        (FailureKind.QUEUE_TIMEOUT, False),
    ],
)
async def test_a_call_that_fails_over_its_cancellation_has_no_outcome(
    kind: FailureKind, given_up: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = guarded(Heads(lambda event: None))
    (guard,) = registry_of(app.manager).guards()
    verdict = Verdict("waf", EventType.REQUEST_HEADERS, None, Failure(kind, "because"), True, True, 0.0)

    async def call(*_: object) -> Verdict:
        scope.cancel()
        return verdict

    monkeypatch.setattr(Guard, "call", call)
    async with record(app, path):
        with anyio.CancelScope() as scope:
            assert await guard.call(HEAD, FailureMode.CLOSED) is verdict
    (exchange,) = exchanges_in(path)
    assert exchange.about.given_up is given_up
    assert (exchange.failure is None) is given_up


async def test_an_agent_that_denies_while_another_is_asked_leaves_that_without_an_outcome(path: Path) -> None:
    class Denies(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
            await checkpoint()
            return AgentResponse.block(403)

    app = AgentMiddleware(
        answering(), agents=[AgentConfig("denies", Denies()), AgentConfig("slow", Slow(), timeout=60)]
    )
    async with record(app, path):
        assert await ask(app, "/slow") == 403
    assert {exchange.about.agent: exchange.about.given_up for exchange in exchanges_in(path)} == {
        "denies": False,
        "slow": True,
    }


async def test_calls_that_overtake_one_another_are_numbered_as_they_began(path: Path) -> None:
    app = guarded(Slow(), timeout=60)
    async with record(app, path), anyio.create_task_group() as tasks:
        tasks.start_soon(ask, app, "/slow")
        await anyio.sleep(0.1)
        for number in range(3):
            await ask(app, f"/{number}")
    uris = [exchange.event.uri for exchange in exchanges_in(path) if isinstance(exchange.event, RequestHeadersEvent)]
    assert uris == ["/slow", "/0", "/1", "/2"]


async def test_only_the_agents_that_are_named_are_recorded(path: Path) -> None:
    ids = ("a", "b", "c")
    app = AgentMiddleware(answering(), agents=[AgentConfig(name, Heads(lambda event: None)) for name in ids])
    async with record(app, path, agents=["a", "c"]):
        await ask(app, "/")
    assert [exchange.about.agent for exchange in exchanges_in(path)] == ["a", "c"]


async def test_an_agent_that_is_added_or_replaced_meanwhile_is_recorded_with_its_settings(path: Path) -> None:
    app = guarded(Heads(lambda event: None))
    async with app.manager, record(app, path):
        await ask(app, "/1")
        await app.manager.replace_agent(AgentConfig("waf", Heads(lambda event: AgentResponse.block(403)), timeout=7.0))
        await ask(app, "/2")
        await app.manager.add_agent(AgentConfig("new", Heads(lambda event: None)))
        await ask(app, "/3")
    found = exchanges_in(path)
    assert [(exchange.about.agent, exchange.agent.timeout) for exchange in found] == [
        ("waf", 1.0),
        ("waf", 7.0),
        ("waf", 7.0),
    ]
    assert [exchange.answer and exchange.answer["decision"] != "allow" for exchange in found] == [False, True, True]
    assert all("call" not in vars(guard) for guard in registry_of(app.manager).guards())


@pytest.mark.parametrize("begins", ["before", "within", "within the inner"])
def test_an_agent_that_was_overridden_is_recorded_when_it_is_back(begins: str, path: Path) -> None:
    app = guarded(Heads(lambda event: None))
    log = record(app, path)
    steps = {"before": 0, "within": 1, "within the inner": 2}

    def step(number: int) -> None:
        if steps[begins] == number:
            log.start()
        anyio.run(ask, app, f"/{number}")

    step(0)
    with override_agents(app, waf=FakeAgent()):
        step(1)
        with override_agents(app, waf=FakeAgent()):
            step(2)
        step(3)
    step(4)
    log.close()
    uris = [exchange.event.uri for exchange in exchanges_in(path) if isinstance(exchange.event, RequestHeadersEvent)]
    assert uris == [f"/{number}" for number in range(steps[begins], 5)]
    assert all("call" not in vars(guard) for guard in registry_of(app.manager).guards())


async def test_an_agent_that_was_replaced_is_not_kept(path: Path) -> None:
    app = guarded(Heads(lambda event: None))
    async with app.manager, record(app, path):
        old = weakref.ref(registry_of(app.manager).guard("waf"))
        await app.manager.replace_agent(AgentConfig("waf", Heads(lambda event: None)))
        await anyio.sleep(1)
        gc.collect()
        assert old() is None


async def test_the_events_of_an_agent_that_names_them_itself_are_those_that_it_names(path: Path) -> None:
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(Heads(lambda event: None)))
        manager = await stack.enter_async_context(AgentManager([AgentConfig("waf", address, timeout=30.0)]))
        await stack.enter_async_context(record(manager, path))
        await manager.process_request_headers(HEAD)
    (exchange,) = exchanges_in(path)
    assert list(exchange.agent.events) == [EventType.REQUEST_HEADERS]


async def test_the_windows_of_a_text_guardrail_are_recorded_as_such(path: Path) -> None:
    app = AgentMiddleware(
        answering(b"write to ada@example.com"),
        agents=[AgentConfig("pii", Judge(), events={EventType.GUARDRAIL_INSPECT})],
        guardrails=[Guardrail("pii", on={"output"})],
    )
    client = Client("GET", "/")
    async with record(app, path, bodies=True):
        await client.call(app)
    assert client.body == b"write to [email]"
    found = exchanges_in(path)
    assert [exchange.event.content for exchange in found] == ["write to ada@example.com"]  # type: ignore[union-attr]
    assert [exchange.about.window for exchange in found] == [True]


async def test_shadow_agents_are_recorded_like_all_others(path: Path) -> None:
    app = guarded(Heads(lambda event: AgentResponse.block(403)), enforce=False)
    async with record(app, path):
        assert await ask(app, "/") == 200
    (exchange,) = exchanges_in(path)
    assert exchange.answer == {"decision": {"block": {"status": 403, "body": None, "headers": None}}}


async def test_configure_is_not_recorded(path: Path) -> None:
    class Configured(Judge):
        async def on_configure(self, event: Any) -> None:
            self.key = event.config["key"]

        @property
        def events(self) -> frozenset[EventType]:
            return frozenset({EventType.CONFIGURE, EventType.REQUEST_HEADERS})

    agent = Configured()
    app = guarded(agent, config={"key": "hunter2"})
    async with record(app, path, redact=None):
        await ask(app, "/")
    assert agent.key == "hunter2"
    assert len(exchanges_in(path)) == 1
    assert "hunter2" not in text_in(path)


# On, off, and several at a time


async def test_nothing_of_it_is_there_while_it_is_off(path: Path) -> None:
    app = guarded(Heads(lambda event: None))
    (guard,) = registry_of(app.manager).guards()
    before = dict(vars(guard))
    async with record(app, path):
        assert "call" in vars(guard)
        await ask(app, "/")
    assert vars(guard) == before
    assert registry_of(app.manager).on_guard == []
    await ask(app, "/")
    assert len(exchanges_in(path)) == 1


async def test_recordings_begin_and_end_in_any_order(path: Path) -> None:
    app = guarded(Heads(lambda event: None))
    first, second = record(app, path), record(app, path.with_suffix(".two"))
    steps: list[Callable[[], None]] = [first.start, second.start, first.close, second.close, first.close]
    for number, step in enumerate(steps):
        step()
        await ask(app, f"/{number}")
    (guard,) = registry_of(app.manager).guards()
    assert "call" not in vars(guard)
    for file, expected in ((path, ["/0", "/1"]), (path.with_suffix(".two"), ["/1", "/2"])):
        assert [exchange.event.uri for exchange in exchanges_in(file)] == expected  # type: ignore[union-attr]


async def test_calls_under_way_at_the_end_are_not_in_the_file_and_harm_nothing(path: Path) -> None:
    app = guarded(Slow(), timeout=60)
    log = record(app, path)
    async with anyio.create_task_group() as tasks:
        log.start()
        tasks.start_soon(ask, app, "/slow")
        await anyio.sleep(1)
        log.close()
    assert exchanges_in(path) == []
    assert log.dropped == 1


def test_several_event_loops_in_threads_write_one_file(path: Path) -> None:
    app = guarded(Judge())

    def serve(backend: str) -> None:
        anyio.run(ask_all, app, 40, backend=backend)

    with record(app, path, bodies=True) as log:
        threads = [threading.Thread(target=serve, args=(name,)) for name in ("asyncio", "asyncio", "trio")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = exchanges_in(path)
    assert [exchange.about.n for exchange in found] == list(range(1, len(found) + 1))
    assert sum(exchange.event.event_type is EventType.REQUEST_HEADERS for exchange in found) == 120
    assert log.dropped == 0


def test_a_log_says_how_it_is(path: Path) -> None:
    log = record(guarded(Judge()), path)
    assert (log.exchanges, log.dropped, log.size, log.stopped) == (0, 0, 0, "")
    with log:
        assert repr(log) == f"<TrafficLog {str(path)!r}: 0 exchanges>"
    with pytest.raises(ConfigurationError, match="started before"):
        log.start()
    with Traffic(path) as traffic:
        assert list(traffic.exchanges()) == []
        assert traffic.end is not None
        assert (traffic.end.exchanges, traffic.end.reason) == (0, "closed")


async def test_a_file_that_is_full_ends_the_recording_and_no_request(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = guarded(Judge())
    async with record(app, path, max_bytes=8192) as log:
        statuses = await ask_all(app, 40)
    assert len(statuses) == 40
    assert 0 < log.exchanges < 40
    assert log.dropped > 0
    assert log.stopped == "it has reached max_bytes=8192"
    assert len(text_in(path).encode()) <= 8192
    assert len([record for record in caplog.records if "has stopped" in record.getMessage()]) == 1
    with Traffic(path) as traffic:
        assert len(list(traffic.exchanges())) == log.exchanges
        assert traffic.end is not None
        assert (traffic.end.dropped, traffic.end.reason) == (log.dropped, log.stopped)
