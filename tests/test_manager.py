import asyncio
import contextvars
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from asgi_agents.agent import Agent
from asgi_agents.breaker import BreakerState
from asgi_agents.calls.outside import event_outside
from asgi_agents.config import AgentConfig
from asgi_agents.decision import AgentDecision
from asgi_agents.errors import (
    AgentConnectionError,
    AgentError,
    ConfigurationError,
    GuardrailUnavailableError,
    UnknownAgentError,
)
from asgi_agents.evaluation.guardrail import inspect_guardrail
from asgi_agents.failures import FailureKind
from asgi_agents.manager import AgentManager, registry_of
from asgi_agents.policy import FailureMode
from asgi_agents.protocol import (
    AgentResponse,
    Allow,
    Answer,
    AuditMetadata,
    Block,
    BodyMutation,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    InspectionType,
    Opcode,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    WebSocketClose,
    WebSocketDrop,
    WebSocketFrameEvent,
)
from tests.support.sample_events import COMPLETE, RESPONSE_HEAD, head

CLOSED, OPEN = FailureMode.CLOSED, FailureMode.OPEN
BLOCK = AgentResponse.block(418)
MIB = 1024 * 1024

REQUEST = head()
RESPONSE = RESPONSE_HEAD
FRAME = WebSocketFrameEvent(
    correlation_id="c", opcode=Opcode.TEXT, data=b"x", client_to_server=True, frame_index=0, client_ip=""
)
QUESTION = GuardrailInspectEvent(correlation_id="c", inspection_type=InspectionType.PII_DETECTION, content="x")

Behaviour = Callable[[Any], Awaitable[Any]]
HEARD = frozenset(EventType) - {EventType.CONFIGURE}


def body(data: bytes, *, last: bool = True) -> RequestBodyChunkEvent:
    return RequestBodyChunkEvent(correlation_id="c", data=data, is_last=last, bytes_received=len(data))


def response_body(data: bytes, *, last: bool = True) -> ResponseBodyChunkEvent:
    return ResponseBodyChunkEvent(correlation_id="c", data=data, is_last=last, bytes_sent=len(data))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A transport to an agent that does as it is told, and notes what happens to it."""

    kind = "fake"
    remote = True
    events: frozenset[EventType] | None = HEARD
    carries = frozenset(EventType)

    def __init__(self, behave: Behaviour | None = None, *, configure: Behaviour | None = None) -> None:
        self.behave = behave or answering(None)
        self.configure = configure or answering(None)
        self.heard: list[Any] = []
        self.configured = 0
        self.closed = 0
        self.cancelled = 0
        self.close_error: Exception | None = None

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event) -> Answer | None:
        try:
            answer: Answer | None
            if event.event_type is EventType.CONFIGURE:
                self.configured += 1
                answer = await self.configure(event)
            else:
                self.heard.append(event)
                answer = await self.behave(event)
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        return answer

    async def aclose(self) -> None:
        await checkpoint()
        self.closed += 1
        if self.close_error is not None:
            raise self.close_error


def answering(answer: Any) -> Behaviour:
    async def behave(event: object) -> Any:
        return answer

    return behave


def raising(exc: BaseException) -> Behaviour:
    async def behave(event: object) -> Any:
        # Without what it gathered the last time.
        raise exc.with_traceback(None)

    return behave


async def hang(event: object) -> None:
    await anyio.sleep_forever()


def config(agent_id: str, transport: Any, **fields: Any) -> AgentConfig:
    return AgentConfig(agent_id, transport, **{"timeout": 60.0, "chunk_timeout": 60.0} | fields)


def agents(*behaviours: Behaviour, **fields: Any) -> list[AgentConfig]:
    """Agents a, b, c, … that behave like that."""
    return [config("abcdefgh"[index], Fake(behave), **fields) for index, behave in enumerate(behaviours)]


def fake(manager: AgentManager, agent_id: str) -> Fake:
    transport = registry_of(manager).guard(agent_id).config.resolved_transport
    assert isinstance(transport, Fake)
    return transport


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await checkpoint()


def is_idle(manager: AgentManager) -> bool:
    return all((metrics.in_flight, metrics.waiting) == (0, 0) for metrics in manager.metrics.values())


# What is there


def test_a_manager_knows_its_agents_in_order() -> None:
    manager = AgentManager([config("b", Fake()), config("a", Fake(), events={EventType.RESPONSE_HEADERS})])

    assert tuple(manager.agent_ids) == ("b", "a")
    assert tuple(manager.get_agents_for_event(EventType.RESPONSE_HEADERS)) == ("b", "a")
    assert tuple(manager.get_agents_for_event(EventType.REQUEST_HEADERS)) == ("b",)
    assert tuple(manager.get_agents_for_event(EventType.CONFIGURE)) == ()
    assert manager.any_agent_handles_event(None, EventType.REQUEST_HEADERS)
    assert manager.any_agent_handles_event(["a", "b"], EventType.REQUEST_HEADERS)
    assert not manager.any_agent_handles_event(["a"], EventType.REQUEST_HEADERS)
    assert not manager.any_agent_handles_event([], EventType.REQUEST_HEADERS)
    assert set(manager.metrics) == {"a", "b"}
    assert registry_of(manager).guard("a").config.id == "a"


def test_a_manager_may_be_empty() -> None:
    manager = AgentManager()

    assert tuple(manager.agent_ids) == ()
    assert not manager.any_agent_handles_event(None, EventType.REQUEST_HEADERS)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (1, "agents=1, expected a list of AgentConfig"),
        (None, "agents=None, expected a list of AgentConfig"),
        (config("a", Fake()), "expected a list of AgentConfig"),
        ([Agent()], r"agents contains an Agent, expected AgentConfig\('agent', Agent\(\.\.\.\)\)"),
        (["a"], "agents contains 'a', expected AgentConfig"),
        ([config("a", Fake()), config("a", Fake())], "two agents have the id 'a', expected each to be unique"),
    ],
)
def test_wrong_agents_are_refused(given: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        AgentManager(given)


@pytest.mark.parametrize("references", [["x"], ["a", ("x", OPEN)], ["a", ("x", "open")]])
async def test_an_unknown_agent_is_an_error_that_names_those_there_are(references: Any) -> None:
    manager = AgentManager([config("a", Fake()), config("b", Fake())])

    for call in (
        lambda: manager.process_request_headers(REQUEST, references),
        lambda: manager.process_response_headers(RESPONSE, references),
        lambda: manager.process_request_body(body(b"x"), references),
        lambda: manager.process_request_body_streaming(body(b"x"), references),
        lambda: manager.process_response_body_streaming(response_body(b"x"), references),
        lambda: manager.process_websocket_frame(FRAME, references),
        lambda: manager.process_request_complete(COMPLETE, references),
        lambda: manager.call_guardrail_agent("x", QUESTION),
        lambda: manager.remove_agent("x"),
        lambda: manager.replace_agent(config("x", Fake())),
    ):
        with pytest.raises(UnknownAgentError, match="no agent has the id 'x'; there are: a, b"):
            await call()
    with pytest.raises(UnknownAgentError):
        manager.any_agent_handles_event(references, EventType.REQUEST_HEADERS)
    with pytest.raises(UnknownAgentError, match="there are: none"):
        registry_of(AgentManager()).guard("x")


def test_the_same_agents_are_resolved_once() -> None:
    manager = AgentManager([config("a", Fake()), config("b", Fake())])

    resolve = registry_of(manager).resolved_route
    assert resolve(["a", ("b", OPEN)]) is resolve(("a", ("b", OPEN)))
    assert resolve(["a"]) is not resolve(None)


def test_a_lineup_that_left_out_an_unknown_agent_does_not_hide_it_from_others() -> None:
    manager = AgentManager([config("a", Fake())])

    assert [
        agent.guard.config.id for agent in registry_of(manager).resolved_route(["a", "x"], missing_ok=True).agents
    ] == ["a"]
    with pytest.raises(UnknownAgentError):
        registry_of(manager).resolved_route(["a", "x"])


# The verbs

VERBS: dict[str, tuple[Event, Callable[..., Awaitable[AgentDecision]]]] = {
    "request headers": (REQUEST, AgentManager.process_request_headers),
    "response headers": (RESPONSE, AgentManager.process_response_headers),
    "request body": (body(b"x"), AgentManager.process_request_body),
    "request body chunk": (body(b"x"), AgentManager.process_request_body_streaming),
    "response body chunk": (response_body(b"x"), AgentManager.process_response_body_streaming),
    "frame": (FRAME, AgentManager.process_websocket_frame),
    "complete": (COMPLETE, AgentManager.process_request_complete),
}
verbs = pytest.mark.parametrize(("event", "process"), list(VERBS.values()), ids=list(VERBS))


@verbs
async def test_an_event_goes_to_all_agents_that_hear_it(event: Event, process: Any) -> None:
    deaf = config("deaf", Fake(), events=HEARD - {event.event_type})
    manager = AgentManager([config("a", Fake()), deaf, config("b", Fake(answering(BLOCK)))])

    decision = await process(manager, event)

    assert fake(manager, "a").heard == fake(manager, "b").heard == [event_outside(event)]
    assert fake(manager, "deaf").heard == []
    assert (decision.decided_by, decision.decision) == ("b", Block(418))
    assert [verdict.agent_id for verdict in decision.verdicts] == ["a", "b"]
    assert is_idle(manager)


@verbs
async def test_an_event_goes_to_the_agents_that_are_named_and_in_that_order(event: Event, process: Any) -> None:
    manager = AgentManager(agents(answering(BLOCK), answering(None), answering(BLOCK)))

    decision = await process(manager, event, ["c", "b"])

    assert decision.decided_by == "c"
    assert fake(manager, "a").heard == []
    assert (await process(manager, event, [])) == AgentDecision()


@verbs
async def test_the_failure_mode_is_the_references_for_that_agent_else_the_agents(event: Event, process: Any) -> None:
    manager = AgentManager(
        [
            config("closed", Fake(raising(ValueError()))),
            config("open", Fake(raising(ValueError())), failure_mode=OPEN),
        ]
    )

    assert (await process(manager, event)).decided_by == "closed"
    assert (await process(manager, event, ["open"])).is_allow
    assert (await process(manager, event, [("closed", OPEN)])).is_allow
    assert (await process(manager, event, [("open", CLOSED)])).decided_by == "open"


async def test_a_failure_mode_that_is_spelt_as_text_never_fails_open_by_accident() -> None:
    manager = AgentManager(agents(raising(ValueError())))
    references: Any = [("a", "closed")]

    try:
        decision = await manager.process_request_headers(REQUEST, references)
    except (ConfigurationError, TypeError, ValueError):
        pass
    else:
        assert not decision.is_allow
    # Nor must it poison what others get.
    assert not (await manager.process_request_headers(REQUEST, [("a", CLOSED)])).is_allow
    mode: Any = "closed"
    with pytest.raises((GuardrailUnavailableError, ConfigurationError, TypeError, ValueError)):
        await manager.call_guardrail_agent("a", QUESTION, mode)


@pytest.mark.parametrize(
    ("response", "decision"),
    [
        (AgentResponse.websocket_drop(), WebSocketDrop()),
        (AgentResponse.websocket_close(4000, "x"), WebSocketClose(4000, "x")),
    ],
)
async def test_a_frame_is_stopped_by_a_websocket_decision(response: AgentResponse, decision: object) -> None:
    manager = AgentManager(agents(answering(None), answering(response)))

    result = await manager.process_websocket_frame(FRAME)

    assert not result.is_allow
    assert result.websocket_decision == decision
    assert result.decision == Allow()


@pytest.mark.parametrize("stop", [AgentResponse.websocket_drop(), BLOCK, None], ids=["drop", "block", "failure"])
async def test_a_frame_goes_along_the_chain_as_pieces_of_bodies_do(stop: AgentResponse | None) -> None:
    """Consecutive readers are asked in parallel, a writer by itself, and none after one that stops it."""
    together = Barrier(2)
    manager = AgentManager(
        [
            config("r1", Fake(together.behave)),
            config("r2", Fake(together.behave)),
            config("w", Fake(raising(ValueError()) if stop is None else answering(stop)), body_access="write"),
            config("r3", Fake()),
        ]
    )

    with anyio.fail_after(10):
        decision = await manager.process_websocket_frame(FRAME)

    assert decision.decided_by == "w"
    assert [verdict.agent_id for verdict in decision.verdicts] == ["r1", "r2", "w"]
    assert shown(manager, "r3") == []


async def test_everyone_hears_how_a_request_ended_whatever_the_others_say() -> None:
    class Quick(Agent):
        async def on_request_complete(self, event: RequestCompleteEvent) -> AgentResponse:
            return BLOCK

    late = anyio.Event()

    async def answer_late(event: object) -> None:
        await late.wait()

    manager = AgentManager(
        [config("quick", Quick()), *agents(answering(BLOCK), answer_late, raising(ValueError()), answering(None))]
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.process_request_complete, COMPLETE)
        await settle()
        late.set()

    assert all(fake(manager, agent_id).heard == [event_outside(COMPLETE)] for agent_id in "abcd")
    assert {agent_id: metrics.outcomes for agent_id, metrics in manager.metrics.items()} == {
        "quick": {"block": 1},
        "a": {"block": 1},
        "b": {"allow": 1},
        "c": {"error": 1},
        "d": {"allow": 1},
    }


# Side by side


class Answer_:  # noqa: N801
    """One agent's part in a race: what it says, and what should come of it."""

    def __init__(self, behave: Behaviour, *, quick: bool = False, **fields: Any) -> None:
        self.behave = behave
        self.quick = quick
        self.fields = fields


def op(value: str) -> AgentResponse:
    return AgentResponse.allow(
        request_headers=[HeaderOp.add("x", value)],
        routing_metadata={"pool": value},
        audit=AuditMetadata(tags=(value,)),
    )


ALLOWS = Answer_(answering(None))
SETS_1, SETS_2 = Answer_(answering(op("1"))), Answer_(answering(op("2")))
BLOCKS_1, BLOCKS_2 = Answer_(answering(AgentResponse.block(401))), Answer_(answering(AgentResponse.block(402)))
REDIRECTS = Answer_(answering(AgentResponse.redirect("/")))
FAILS = Answer_(raising(ValueError()))
FAILS_OPEN = Answer_(raising(ValueError()), failure_mode=OPEN)
SHADOW = Answer_(answering(BLOCK), enforce=False)
QUICK_BLOCKS = Answer_(answering(AgentResponse.block(403)), quick=True)
QUICK_ALLOWS = Answer_(answering(op("quick")), quick=True)
UNSURE = Answer_(answering(AgentResponse.block(405, needs_more=True)))

# The agents in route order, and the index of the one that decides.
RACES: list[tuple[Sequence[Answer_], int | None]] = [
    ([ALLOWS, ALLOWS, ALLOWS], None),
    ([SETS_1, FAILS_OPEN, SETS_2, SHADOW], None),
    ([BLOCKS_1, BLOCKS_2, REDIRECTS], 0),
    ([SETS_1, REDIRECTS, BLOCKS_1, ALLOWS], 1),
    ([FAILS, ALLOWS, BLOCKS_1, FAILS], 2),
    ([ALLOWS, FAILS, FAILS_OPEN, FAILS], 1),
    ([SHADOW, FAILS, SETS_1], 1),
    ([SHADOW, BLOCKS_1, FAILS], 1),
    ([UNSURE, BLOCKS_1, ALLOWS], 0),
    ([SETS_1, QUICK_BLOCKS, BLOCKS_1, FAILS], 1),
    ([BLOCKS_1, QUICK_BLOCKS, FAILS], 0),
    ([FAILS, QUICK_BLOCKS, ALLOWS], 1),
    ([FAILS, QUICK_ALLOWS, SETS_1], 0),
    ([SETS_1, QUICK_ALLOWS, SETS_2, FAILS_OPEN], None),
]


class QuickAgent(Agent):
    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        try:
            self.behave(event).__await__().send(None)
        except StopIteration as done:
            answer: AgentResponse | None = done.value
            return answer
        raise AssertionError("it did suspend")


class Race:
    """Agents that answer when they are let go, one after the other or all at once."""

    def __init__(self, contenders: Sequence[Answer_]) -> None:
        self.gates = [anyio.Event() for _ in contenders]
        self.manager = AgentManager(
            [
                config(
                    "abcdefgh"[index],
                    QuickAgent(contender.behave) if contender.quick else Fake(self.behind_gate(index, contender)),
                    **contender.fields,
                )
                for index, contender in enumerate(contenders)
            ]
        )

    def behind_gate(self, index: int, contender: Answer_) -> Behaviour:
        async def behave(event: object) -> Any:
            await self.gates[index].wait()
            return await contender.behave(event)

        return behave

    async def run(self, order: Sequence[int], *, at_once: bool) -> AgentDecision:
        decisions: list[AgentDecision] = []

        async def decide() -> None:
            decisions.append(await self.manager.process_request_headers(REQUEST))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(decide)
            await settle()
            for index in order:
                self.gates[index].set()
                if not at_once:
                    await settle()
        assert is_idle(self.manager)
        return decisions[0]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(("contenders", "decider"), RACES)
async def test_the_decision_is_the_same_whatever_finishes_first(
    contenders: Sequence[Answer_], decider: int | None, at_once: bool
) -> None:
    decisions = [
        await Race(contenders).run(order, at_once=at_once) for order in itertools.permutations(range(len(contenders)))
    ]

    first = decisions[0]
    assert first.decided_by == (None if decider is None else "abcdefgh"[decider])
    assert all(replace(decision, verdicts=()) == replace(first, verdicts=()) for decision in decisions)
    for decision in decisions:
        order = [verdict.agent_id for verdict in decision.verdicts]
        assert order == sorted(order), "verdicts are in route order"
    if decider is None:
        values = [op_.value for op_ in first.request_headers]
        assert values == sorted(values, key=["1", "quick", "2"].index)


async def test_agents_are_asked_at_the_same_time() -> None:
    barrier = Barrier(3)
    manager = AgentManager(agents(barrier.behave, barrier.behave, barrier.behave))

    with anyio.fail_after(10):
        assert (await manager.process_request_headers(REQUEST)).is_allow


class Barrier:
    """Lets nobody through until everyone has come."""

    def __init__(self, parties: int) -> None:
        self.parties = parties
        self.full = anyio.Event()

    async def behave(self, event: object) -> None:
        self.parties -= 1
        if self.parties == 0:
            self.full.set()
        await self.full.wait()


async def test_a_denial_cancels_whoever_can_not_change_it_any_more() -> None:
    manager = AgentManager(agents(answering(None), answering(BLOCK), hang, hang, max_concurrent_calls=1))

    with anyio.fail_after(10):
        decision = await manager.process_request_headers(REQUEST)

    assert decision.decided_by == "b"
    assert [verdict.agent_id for verdict in decision.verdicts] == ["a", "b"]
    for agent_id in "cd":
        assert fake(manager, agent_id).cancelled == len(fake(manager, agent_id).heard)
        assert manager.metrics[agent_id].calls == 0
        breaker = registry_of(manager).guard(agent_id).breaker
        assert breaker is not None
        assert breaker.state is BreakerState.CLOSED
    assert is_idle(manager)


async def test_a_denial_waits_for_everyone_before_it() -> None:
    race = Race([BLOCKS_1, BLOCKS_2, ALLOWS])
    decisions: list[AgentDecision] = []

    async def decide() -> None:
        decisions.append(await race.manager.process_request_headers(REQUEST))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(decide)
        await settle()
        race.gates[1].set()
        await settle()
        assert decisions == []
        assert fake(race.manager, "c").cancelled == 0
        race.gates[0].set()

    assert decisions[0].decided_by == "a"
    assert fake(race.manager, "c").cancelled == 1


async def test_a_shadow_agent_that_is_slow_is_waited_for_where_nobody_denies() -> None:
    async def late(event: object) -> AgentResponse:
        await settle()
        return BLOCK

    async def early(event: object) -> AgentResponse | None:
        await checkpoint()
        return None

    manager = AgentManager(
        [config("a", Fake(early)), config("shadow", Fake(late), enforce=False), config("b", Fake(early))]
    )
    decision = await manager.process_request_headers(REQUEST)

    assert decision.is_allow
    assert [(verdict.agent_id, verdict.outcome) for verdict in decision.verdicts] == [
        ("a", "allow"),
        ("shadow", "block"),
        ("b", "allow"),
    ]


async def test_a_shadow_agent_that_is_slow_holds_no_denial_up() -> None:
    manager = AgentManager([config("shadow", Fake(hang), enforce=False), config("a", Fake(answering(BLOCK)))])

    with anyio.fail_after(10):
        assert (await manager.process_request_headers(REQUEST)).decided_by == "a"

    assert is_idle(manager)


async def test_a_failure_waits_for_everyone_because_a_denial_beats_it() -> None:
    race = Race([FAILS, ALLOWS, BLOCKS_1])

    assert (await race.run([0, 1, 2], at_once=False)).decided_by == "c"


async def test_agents_that_can_not_suspend_are_asked_in_order_and_not_after_a_denial() -> None:
    asked: list[str] = []

    class Quick(Agent):
        def __init__(self, name: str, response: AgentResponse | None = None) -> None:
            self.name = name
            self.response = response

        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
            asked.append(self.name)
            return self.response

    async def ask(event: object) -> None:
        asked.append("slow")

    manager = AgentManager(
        [
            config("a", Quick("a")),
            config("slow", Fake(ask)),
            config("b", Quick("b", BLOCK)),
            config("c", Quick("c")),
            config("late", Fake()),
        ]
    )

    decision = await manager.process_request_headers(REQUEST)

    assert asked == ["a", "b", "slow"]
    assert decision.decided_by == "b"
    assert [verdict.agent_id for verdict in decision.verdicts] == ["a", "slow", "b"]
    assert fake(manager, "late").heard == []


def test_agents_that_can_not_suspend_need_no_event_loop() -> None:
    manager = AgentManager([config("a", QuickAgent(answering(None))), config("b", QuickAgent(answering(BLOCK)))])
    processing = manager.process_request_headers(REQUEST)

    with pytest.raises(StopIteration) as done:
        processing.send(None)

    assert done.value.value.decided_by == "b"


async def test_a_single_agent_is_asked_in_the_callers_own_task() -> None:
    seen: list[int] = []
    variable = contextvars.ContextVar("variable", default=0)

    async def look(event: object) -> None:
        await checkpoint()
        seen.append(anyio.get_current_task().id)
        variable.set(1)

    manager = AgentManager([config("a", Fake(look)), config("b", QuickAgent(answering(None)))])

    for references in (["a"], ["a", "b"]):
        variable.set(0)
        await manager.process_request_headers(REQUEST, references)
        assert variable.get() == 1

    assert set(seen) == {anyio.get_current_task().id}


async def test_cancelling_the_caller_cancels_every_agent_and_counts_for_nobody() -> None:
    manager = AgentManager(agents(hang, hang, answering(None), hang))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.process_request_headers, REQUEST)
        await settle()
        tasks.cancel_scope.cancel()

    assert is_idle(manager)
    assert [fake(manager, agent_id).cancelled for agent_id in "abd"] == [1, 1, 1]
    assert [manager.metrics[agent_id].calls for agent_id in "abcd"] == [0, 0, 1, 0]


async def stray_cancellation(event: object) -> None:
    """What awaiting a task does that somebody else has cancelled, a shared token refresh for instance."""
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task


async def soon(event: object) -> None:
    await settle()


async def block_soon(event: object) -> AgentResponse:
    await settle()
    return BLOCK


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize(
    ("behaviours", "decider"),
    [
        ([stray_cancellation, soon], "a"),
        ([soon, stray_cancellation], "b"),
        ([soon, stray_cancellation, soon], "b"),
        ([block_soon, stray_cancellation], "a"),
        ([stray_cancellation, block_soon], "b"),
    ],
)
async def test_a_cancelled_error_in_one_agent_silences_none_of_the_others(
    behaviours: list[Behaviour], decider: str
) -> None:
    manager = AgentManager(agents(*behaviours))

    decision = await manager.process_request_headers(REQUEST)

    assert decision.decided_by == decider
    assert len(decision.verdicts) == len(behaviours)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("others", [1, 2])
async def test_an_agent_whose_task_is_cancelled_from_inside_does_not_let_the_event_pass(others: int) -> None:
    async def cancel_itself(event: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    manager = AgentManager(agents(block_soon, *[cancel_itself] * others))

    decision = await manager.process_request_headers(REQUEST)

    assert decision.decided_by == "a"


async def test_an_agent_that_fails_while_it_is_cancelled_changes_no_decision() -> None:
    async def clean_up_badly() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError

    async def in_a_group(event: object) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clean_up_badly)
            await anyio.sleep_forever()

    async def on_its_own(event: object) -> None:
        await clean_up_badly()

    manager = AgentManager(agents(block_soon, in_a_group, on_its_own, in_a_group))

    assert (await manager.process_request_headers(REQUEST)).decided_by == "a"
    assert is_idle(manager)
    for agent_id in "bcd":
        breaker = registry_of(manager).guard(agent_id).breaker
        assert breaker is not None
        for _ in range(4):
            generation = breaker.acquire()
            assert generation is not None
            breaker.failure(generation)
        assert breaker.state is BreakerState.CLOSED, "a failure while cancelled has counted"


# Along a chain


def writing(data: bytes | None) -> Behaviour:
    async def behave(event: Event) -> AgentResponse:
        await checkpoint()
        mutation = None if data is None else BodyMutation(data)
        if event.event_type is EventType.REQUEST_BODY_CHUNK:
            return AgentResponse.allow(request_body_mutation=mutation)
        return AgentResponse.allow(response_body_mutation=mutation)

    return behave


class Redactor(Fake):
    """Takes one word out of what it is shown."""

    def __init__(self, word: bytes) -> None:
        super().__init__(self.redact)
        self.word = word

    async def redact(self, event: Any) -> AgentResponse:
        await checkpoint()
        mutation = BodyMutation(event.data.replace(self.word, b"***"))
        if event.event_type is EventType.REQUEST_BODY_CHUNK:
            return AgentResponse.allow(request_body_mutation=mutation)
        return AgentResponse.allow(response_body_mutation=mutation)


CHAIN = [
    (AgentManager.process_request_body, body),
    (AgentManager.process_request_body_streaming, body),
    (AgentManager.process_response_body_streaming, response_body),
]
chains = pytest.mark.parametrize(("process", "make"), CHAIN, ids=["request", "request chunk", "response chunk"])


def output(decision: AgentDecision) -> bytes | None:
    mutation = decision.request_body_mutation or decision.response_body_mutation
    return None if mutation is None else mutation.data


def shown(manager: AgentManager, agent_id: str) -> list[bytes]:
    return [event.data for event in fake(manager, agent_id).heard]


@chains
async def test_neighbouring_readers_are_asked_at_the_same_time(process: Any, make: Any) -> None:
    barrier = Barrier(3)
    manager = AgentManager(agents(barrier.behave, barrier.behave, barrier.behave))

    with anyio.fail_after(10):
        assert (await process(manager, make(b"x"))).is_allow


@chains
async def test_a_writer_is_alone_and_everyone_after_it_sees_its_output(process: Any, make: Any) -> None:
    at_work: set[str] = set()
    together: list[set[str]] = []

    def noting(name: str, behave: Behaviour) -> Behaviour:
        async def behave_and_note(event: Event) -> Any:
            at_work.add(name)
            together.append(set(at_work))
            for _ in range(3):
                await checkpoint()
            answer = await behave(event)
            together.append(set(at_work))
            at_work.discard(name)
            return answer

        return behave_and_note

    before, after = Barrier(2), Barrier(2)
    manager = AgentManager(
        [
            config("r1", Fake(noting("r1", before.behave))),
            config("r2", Fake(noting("r2", before.behave))),
            config("w1", Fake(noting("w1", writing(b"one"))), body_access="write"),
            config("w2", Fake(noting("w2", writing(b"two"))), body_access="write"),
            config("r3", Fake(noting("r3", after.behave))),
            config("r4", Fake(noting("r4", after.behave))),
        ]
    )

    with anyio.fail_after(10):
        decision = await process(manager, make(b"zero"))

    for alone in ("w1", "w2"):
        assert all(group == {alone} for group in together if alone in group)
    assert {"r1", "r2"} in together
    assert {"r3", "r4"} in together
    assert {agent_id: shown(manager, agent_id) for agent_id in manager.agent_ids} == {
        "r1": [b"zero"],
        "r2": [b"zero"],
        "w1": [b"zero"],
        "w2": [b"one"],
        "r3": [b"two"],
        "r4": [b"two"],
    }
    assert output(decision) == b"two"


@chains
@pytest.mark.parametrize("order", list(itertools.permutations(["alice", "bob", "carol"])))
async def test_later_redactions_do_not_undo_earlier_ones(order: Sequence[str], process: Any, make: Any) -> None:
    manager = AgentManager([config(word, Redactor(word.encode()), body_access="write") for word in order])

    decision = await process(manager, make(b"alice, bob and carol"))

    assert output(decision) == b"***, *** and ***"


@chains
async def test_a_writer_that_passes_leaves_what_earlier_ones_wrote(process: Any, make: Any) -> None:
    manager = AgentManager(agents(writing(b"one"), writing(None), answering(None), body_access="write"))

    decision = await process(manager, make(b"zero"))

    assert output(decision) == b"one"
    assert shown(manager, "c") == [b"one"]


@chains
async def test_where_nobody_writes_nothing_is_changed(process: Any, make: Any) -> None:
    manager = AgentManager(agents(writing(None), answering(None), body_access="write"))

    assert output(await process(manager, make(b"zero"))) is None


@chains
async def test_a_writer_may_drop_all_of_it(process: Any, make: Any) -> None:
    manager = AgentManager(agents(writing(b""), body_access="write"))

    assert output(await process(manager, make(b"zero"))) == b""


@chains
async def test_nobody_sees_what_a_shadow_agent_wrote(process: Any, make: Any) -> None:
    manager = AgentManager(
        [config("shadow", Fake(writing(b"one")), body_access="write", enforce=False), config("a", Fake())]
    )

    decision = await process(manager, make(b"zero"))

    assert output(decision) is None
    assert shown(manager, "a") == [b"zero"]


@chains
async def test_what_a_reader_writes_is_an_agent_error_and_not_ignored(process: Any, make: Any) -> None:
    manager = AgentManager(agents(writing(b"one"), answering(None)))

    assert (await process(manager, make(b"zero"))).decided_by == "a"


@chains
@pytest.mark.parametrize(("stop", "kind"), [(answering(BLOCK), None), (raising(ValueError()), FailureKind.ERROR)])
async def test_nobody_after_one_that_stops_it_is_asked(process: Any, make: Any, stop: Behaviour, kind: Any) -> None:
    manager = AgentManager(
        [
            config("a", Fake()),
            config("b", Fake(stop), body_access="write"),
            config("c", Fake()),
        ]
    )

    decision = await process(manager, make(b"x"))

    assert decision.decided_by == "b"
    assert (decision.failure and decision.failure.kind) == kind
    assert [verdict.agent_id for verdict in decision.verdicts] == ["a", "b"]
    assert shown(manager, "c") == []
    assert output(decision) is None


@chains
async def test_a_failed_writer_that_fails_open_changes_nothing(process: Any, make: Any) -> None:
    manager = AgentManager(
        [config("a", Fake(raising(ValueError())), body_access="write", failure_mode=OPEN), config("b", Fake())]
    )

    decision = await process(manager, make(b"x"))

    assert decision.is_allow
    assert shown(manager, "b") == [b"x"]


@chains
async def test_a_provisional_denial_decides_only_at_the_last_chunk(process: Any, make: Any) -> None:
    unsure = answering(AgentResponse.block(418, needs_more=True))
    manager = AgentManager([config("a", Fake(unsure), body_access="write"), config("b", Fake())])

    first = await process(manager, make(b"x", last=False))
    last = await process(manager, make(b"y"))

    assert first.is_allow
    assert first.needs_more
    assert shown(manager, "b") == [b"x"]
    assert last.decided_by == "a"


async def test_chunks_are_under_the_chunk_deadline_and_whole_bodies_are_not() -> None:
    manager = AgentManager(agents(hang, timeout=60.0, chunk_timeout=0.01, circuit_breaker=None))

    for decision in (
        await manager.process_request_body_streaming(body(b"x")),
        await manager.process_response_body_streaming(response_body(b"x")),
    ):
        assert decision.failure is not None
        assert decision.failure.kind is FailureKind.TIMEOUT
    with anyio.move_on_after(0.02) as scope:
        await manager.process_request_body(body(b"x"))
    assert scope.cancelled_caught


# Body limits


@pytest.mark.parametrize(("limit", "largest"), [(None, MIB), (10, 10)])
async def test_a_body_over_an_agents_limit_is_not_shown_to_it(limit: int | None, largest: int) -> None:
    manager = AgentManager(agents(answering(None), max_request_body_bytes=limit))

    within = await manager.process_request_body(body(b"x" * largest))
    over = await manager.process_request_body(body(b"x" * (largest + 1)))

    assert within.is_allow
    assert over.decision == Block(413, "Payload too large for security inspection")
    assert over.failure is not None
    assert over.failure.kind is FailureKind.REQUEST_TOO_LARGE
    assert len(fake(manager, "a").heard) == 1
    breaker = registry_of(manager).guard("a").breaker
    assert breaker is not None
    assert breaker.state is BreakerState.CLOSED


async def test_a_fail_open_agent_is_left_out_and_the_others_still_judge() -> None:
    manager = AgentManager(
        [
            config("small", Fake(answering(BLOCK)), max_request_body_bytes=1, failure_mode=OPEN),
            config("large", Fake(answering(BLOCK))),
        ]
    )

    decision = await manager.process_request_body(body(b"xx"))

    assert decision.decided_by == "large"
    assert [(verdict.agent_id, verdict.outcome) for verdict in decision.verdicts] == [
        ("small", "request_too_large"),
        ("large", "block"),
    ]
    assert manager.metrics["small"].outcomes == {"request_too_large": 1}
    assert manager.metrics["small"].passed_open == 1


async def test_a_denial_beats_a_body_that_is_too_large_for_someone() -> None:
    manager = AgentManager([config("small", Fake(), max_request_body_bytes=1), config("large", Fake(answering(BLOCK)))])

    assert (await manager.process_request_body(body(b"xx"))).decided_by == "large"


async def test_among_failures_the_first_in_route_order_decides_whatever_they_are() -> None:
    manager = AgentManager(
        [config("down", Fake(raising(ValueError()))), config("small", Fake(), max_request_body_bytes=1)]
    )

    decision = await manager.process_request_body(body(b"xx"))

    assert decision.decided_by == "down"
    assert [verdict.agent_id for verdict in decision.verdicts] == ["down", "small"]


async def test_the_limit_is_for_what_the_agent_would_be_shown() -> None:
    manager = AgentManager(
        [
            config("w", Fake(writing(b"longer")), body_access="write"),
            config("small", Fake(), max_request_body_bytes=5),
        ]
    )

    assert (await manager.process_request_body(body(b"short"))).decided_by == "small"


async def test_chunks_have_no_limit_here() -> None:
    manager = AgentManager(agents(answering(None), max_request_body_bytes=1, max_response_body_bytes=1))

    assert (await manager.process_request_body_streaming(body(b"xx"))).is_allow
    assert (await manager.process_response_body_streaming(response_body(b"xx"))).is_allow


# Guardrails

DETECTED = GuardrailResponse(detected=True, confidence=0.9)


async def test_a_guardrail_agent_is_asked_by_its_id() -> None:
    manager = AgentManager(agents(answering(DETECTED), answering(None)))

    assert await manager.call_guardrail_agent("a", QUESTION) is DETECTED
    assert await manager.call_guardrail_agent("b", QUESTION) == GuardrailResponse(detected=False)
    assert fake(manager, "a").heard == [event_outside(QUESTION)]


async def test_a_guardrail_denial_in_the_general_shape_is_a_detection() -> None:
    manager = AgentManager(agents(answering(AgentResponse.block(403, "pii found"))))

    verdict, response = await inspect_guardrail(registry_of(manager).guard("a"), QUESTION)

    assert response.detected
    assert response.detections[0].description == "pii found"
    assert verdict.outcome == "block"


async def test_an_agent_that_hears_no_questions_can_not_be_asked() -> None:
    manager = AgentManager([config("a", Fake(), events={EventType.REQUEST_HEADERS})])

    with pytest.raises(UnknownAgentError, match="agent 'a' does not receive guardrail_inspect"):
        await manager.call_guardrail_agent("a", QUESTION)


@pytest.mark.parametrize(
    ("behave", "fields", "status", "detail"),
    [
        (raising(AgentConnectionError("refused")), {}, 503, "Agent unavailable"),
        (answering("no"), {}, 503, "Agent unavailable"),
        (hang, {"timeout": 0.01}, 504, "Gateway timeout"),
    ],
)
async def test_a_fail_closed_guardrail_without_a_verdict_raises(
    behave: Behaviour, fields: dict[str, Any], status: int, detail: str
) -> None:
    manager = AgentManager(agents(behave, **fields))

    with pytest.raises(GuardrailUnavailableError, match="agent 'a', guardrail_inspect: ") as caught:
        await manager.call_guardrail_agent("a", QUESTION)

    assert (caught.value.status_code, caught.value.detail, caught.value.headers) == (status, detail, None)


async def test_an_open_breaker_says_when_a_guardrail_can_be_asked_again() -> None:
    manager = AgentManager(agents(raising(ValueError())), clock=Clock())

    for _ in range(5):
        with pytest.raises(GuardrailUnavailableError):
            await manager.call_guardrail_agent("a", QUESTION)
    with pytest.raises(GuardrailUnavailableError) as caught:
        await manager.call_guardrail_agent("a", QUESTION)

    assert (caught.value.status_code, caught.value.detail) == (503, "Service unavailable")
    assert caught.value.headers == {"retry-after": "30"}


@pytest.mark.parametrize(
    ("fields", "mode"),
    [({"failure_mode": OPEN}, None), ({}, OPEN), ({"enforce": False}, None), ({"enforce": False}, CLOSED)],
)
async def test_a_guardrail_failure_that_is_let_through_detects_nothing(
    fields: dict[str, Any], mode: FailureMode | None
) -> None:
    manager = AgentManager(agents(raising(ValueError()), **fields))

    verdict, response = await inspect_guardrail(registry_of(manager).guard("a"), QUESTION, mode)

    assert response == GuardrailResponse(detected=False)
    assert verdict.failure is not None


async def test_the_given_failure_mode_beats_the_agents() -> None:
    manager = AgentManager(agents(raising(ValueError()), failure_mode=OPEN))

    with pytest.raises(GuardrailUnavailableError):
        await manager.call_guardrail_agent("a", QUESTION, CLOSED)


@pytest.mark.parametrize("answer", [DETECTED, BLOCK])
async def test_a_shadow_guardrail_detects_nothing_but_is_recorded(answer: Any) -> None:
    manager = AgentManager(agents(answering(answer), enforce=False))

    assert await manager.call_guardrail_agent("a", QUESTION, CLOSED) == GuardrailResponse(detected=False)
    assert manager.metrics["a"].calls == 1


# Life


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> "Fast":
    return Fast(monkeypatch)


class Fast:
    """Makes waiting take no time: the clock jumps ahead instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.delays: list[float] = []
        monkeypatch.setattr(anyio, "sleep", self.sleep)

    async def sleep(self, delay: float) -> None:
        self.delays.append(round(delay, 6))
        self.clock.now += delay
        await checkpoint()


def configured(behave: Behaviour | None = None, **fields: Any) -> AgentConfig:
    agent_id = fields.pop("id", "a")
    return config(agent_id, Fake(configure=behave), config={"key": 1}, **fields)


async def test_entering_configures_all_agents_at_the_same_time_and_leaving_closes_them() -> None:
    barrier = Barrier(2)
    manager = AgentManager([configured(barrier.behave), configured(barrier.behave, id="b"), config("c", Fake())])

    with anyio.fail_after(10):
        async with manager as entered:
            assert entered is manager
            assert [fake(manager, agent_id).configured for agent_id in "abc"] == [1, 1, 0]
            assert [fake(manager, agent_id).closed for agent_id in "abc"] == [0, 0, 0]

    assert [fake(manager, agent_id).closed for agent_id in "abc"] == [1, 1, 1]
    assert not registry_of(manager).guard("a").configured


async def test_a_manager_can_be_entered_again() -> None:
    manager = AgentManager([configured()])

    for times in range(1, 4):
        async with manager:
            assert fake(manager, "a").configured == times
            assert (await manager.process_request_headers(REQUEST)).is_allow
        assert fake(manager, "a").closed == times


async def test_initialize_and_shutdown_do_the_same_by_hand() -> None:
    manager = AgentManager([configured()])

    await manager.initialize()
    await manager.initialize()
    assert fake(manager, "a").configured == 1
    await manager.shutdown()
    assert fake(manager, "a").closed == 1
    await manager.initialize()
    assert fake(manager, "a").configured == 2


async def test_a_manager_that_is_entered_within_itself_closes_at_the_end() -> None:
    manager = AgentManager([configured()])

    async with manager:
        async with manager:
            pass
        assert fake(manager, "a").closed == 0
        assert registry_of(manager).guard("a").configured
    assert (fake(manager, "a").configured, fake(manager, "a").closed) == (1, 1)


async def test_several_tasks_may_use_a_manager_and_the_last_one_closes_it() -> None:
    manager = AgentManager([configured()])

    async with anyio.create_task_group() as tasks, manager:
        leave = anyio.Event()

        async def use() -> None:
            async with manager:
                await leave.wait()

        tasks.start_soon(use)
        await settle()
        leave.set()
        await settle()
        assert fake(manager, "a").closed == 0
        assert registry_of(manager).guard("a").configured

    assert (fake(manager, "a").configured, fake(manager, "a").closed) == (1, 1)


class Observed(AgentManager):
    """Shows which task enters and which one leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.left_by_another_task = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        task = anyio.get_current_task().id
        yield self.shutdown
        # With the scopes of the real one this would break the event loop, and this test run with it.
        self.left_by_another_task = self.left_by_another_task or anyio.get_current_task().id != task


async def test_who_entered_first_may_leave_first() -> None:
    manager = Observed()
    leaves = [anyio.Event(), anyio.Event()]

    async def use(leave: anyio.Event) -> None:
        async with manager:
            await leave.wait()

    async with anyio.create_task_group() as tasks:
        for leave in leaves:
            tasks.start_soon(use, leave)
            await settle()
        for leave in leaves:
            leave.set()
            await settle()

    assert not manager.left_by_another_task


async def test_another_task_may_leave_than_the_one_that_has_entered() -> None:
    """As fixtures of tests do, which are set up and torn down in tasks of their own."""
    manager = AgentManager([configured()])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.__aenter__)
        tasks.start_soon(manager.__aenter__)
        await settle()
        assert fake(manager, "a").configured == 1
        for closed in range(2):
            assert fake(manager, "a").closed == 0, closed
            tasks.start_soon(manager.__aexit__, None, None, None)
            await settle()

    assert fake(manager, "a").closed == 1
    assert not registry_of(manager).lifecycle._users.loops
    async with manager:
        assert fake(manager, "a").configured == 2
    assert fake(manager, "a").closed == 2


async def test_leaving_what_was_not_entered_is_an_error() -> None:
    manager = AgentManager([configured()])
    async with manager.running():
        with pytest.raises(RuntimeError, match="AgentManager: it is left on an event loop on which it was not entered"):
            await manager.__aexit__(None, None, None)
        assert fake(manager, "a").closed == 0


async def test_leaving_before_the_end_closes_and_configures_nobody_again(fast: Fast) -> None:
    manager = AgentManager([configured(), configured(raising(ValueError()), id="down")], clock=fast.clock)

    async with manager.running() as leave:
        await settle()
        await leave()
        asked = fake(manager, "down").configured
        await settle()
        assert (fake(manager, "a").configured, fake(manager, "a").closed) == (1, 1)
        assert fake(manager, "down").configured == asked
        await leave()

    assert (fake(manager, "a").configured, fake(manager, "a").closed) == (1, 1)


async def test_an_agent_that_is_down_is_asked_again_until_it_is_back(fast: Fast) -> None:
    down = anyio.Event()

    async def refuse_for_a_while(event: object) -> None:
        if fake(manager, "a").configured < 6:
            raise AgentConnectionError("refused")
        down.set()

    manager = AgentManager([configured(refuse_for_a_while), configured(id="b")], clock=fast.clock)

    with anyio.fail_after(10):
        async with manager:
            assert not registry_of(manager).guard("a").configured
            assert registry_of(manager).guard("b").configured
            await down.wait()
            await settle()
            assert registry_of(manager).guard("a").configured
            assert (await manager.process_request_headers(REQUEST)).is_allow

    assert (fake(manager, "a").configured, fake(manager, "b").configured) == (6, 1)
    assert [delay for delay in fast.delays if delay != 1.0] == [0.1, 0.2, 0.4, 0.8, 1.6]


async def test_an_agent_that_is_down_when_it_comes_is_asked_again_until_it_is_back(fast: Fast) -> None:
    back = anyio.Event()

    async def refuse_for_a_while(event: object) -> None:
        if fake(manager, "b").configured < 3:
            raise AgentConnectionError("refused")
        back.set()

    manager = AgentManager([configured()], clock=fast.clock)

    with anyio.fail_after(10):
        async with manager:
            await settle()
            await manager.add_agent(configured(refuse_for_a_while, id="b"))
            assert not registry_of(manager).guard("b").configured
            await back.wait()
            await settle()
            assert registry_of(manager).guard("b").configured


async def test_an_agent_that_is_down_and_removed_is_not_asked_again(fast: Fast) -> None:
    down = configured(raising(AgentConnectionError("refused")))
    manager = AgentManager([down], clock=fast.clock)

    async with manager:
        await settle()
        gone = fake(manager, "a")
        await manager.remove_agent("a")
        await settle()
        asked = gone.configured
        await settle()

    assert gone.configured == asked


async def test_an_agent_that_is_down_at_startup_is_treated_by_its_failure_mode_meanwhile() -> None:
    manager = AgentManager([configured(raising(AgentConnectionError("refused")))])

    async with manager:
        closed = await manager.process_request_headers(REQUEST)
        opened = await manager.process_request_headers(REQUEST, [("a", OPEN)])

    assert closed.decided_by == "a"
    assert opened.is_allow
    assert fake(manager, "a").heard == []


async def test_one_agent_that_hangs_keeps_none_of_the_others_from_coming_back(fast: Fast) -> None:
    back = anyio.Event()

    async def hang_later(event: object) -> None:
        if fake(manager, "hung").configured > 1:
            await anyio.sleep_forever()
        raise AgentConnectionError("refused")

    async def come_back(event: object) -> None:
        if fake(manager, "a").configured < 3:
            raise AgentConnectionError("refused")
        back.set()

    manager = AgentManager([configured(hang_later, id="hung"), configured(come_back)], clock=fast.clock)

    with anyio.fail_after(10):
        async with manager:
            await back.wait()
            await settle()

    assert not registry_of(manager).guard("hung").configured
    assert fake(manager, "hung").cancelled == 1


async def test_a_required_agent_that_is_down_fails_the_startup() -> None:
    manager = AgentManager(
        [configured(raising(AgentConnectionError("refused")), require_at_startup=True), configured(id="b")]
    )

    for start in (manager.__aenter__, manager.initialize):
        with pytest.raises(AgentError, match=r"agent 'a' is required at startup: not configured: .*refused"):
            await start()
    assert fake(manager, "b").closed == 1, "entering that failed has left again"


async def test_a_startup_that_failed_can_be_tried_again() -> None:
    manager = AgentManager([configured(raising(AgentConnectionError("refused")), require_at_startup=True)])
    with pytest.raises(AgentError):
        await manager.__aenter__()
    fake(manager, "a").configure = answering(None)

    async with manager:
        assert registry_of(manager).guard("a").configured


@pytest.mark.parametrize("exc", [ValueError("x"), AgentError("x"), ExceptionGroup("x", [ValueError()])])
async def test_an_error_inside_comes_out_as_it_is(exc: Exception) -> None:
    manager = AgentManager([configured(), configured(raising(ValueError()), id="down")])

    with pytest.raises(type(exc)) as caught:
        async with manager:
            raise exc

    assert caught.value is exc
    assert fake(manager, "a").closed == 1


async def test_a_cancelled_block_closes_its_agents() -> None:
    manager = AgentManager([configured()])

    with anyio.move_on_after(0.01) as scope:
        async with manager:
            await anyio.sleep_forever()

    assert scope.cancelled_caught
    assert fake(manager, "a").closed == 1


async def test_a_startup_that_is_cancelled_leaves_nothing_open() -> None:
    manager = AgentManager([configured(hang), configured(id="b")])

    with anyio.move_on_after(0.01) as scope:
        async with manager:
            pytest.fail("entered")  # pragma: no cover

    assert scope.cancelled_caught
    assert [fake(manager, agent_id).closed for agent_id in "ab"] == [1, 1]


async def test_an_agent_that_does_not_close_keeps_none_of_the_others_open() -> None:
    manager = AgentManager([configured(), configured(id="b")])
    fake(manager, "a").close_error = OSError("stuck")

    with pytest.raises(OSError, match="stuck"):
        async with manager:
            pass

    assert fake(manager, "b").closed == 1
    assert not registry_of(manager).guard("b").configured


async def test_without_entering_agents_are_configured_before_their_first_call() -> None:
    manager = AgentManager([configured(), configured(id="b")])

    for _ in range(2):
        assert (await manager.process_request_headers(REQUEST)).is_allow

    assert (fake(manager, "a").configured, fake(manager, "b").configured) == (1, 1)


# Change while serving


class Busy:
    """An agent that is at work until it is let go."""

    def __init__(self, answer: Any = None) -> None:
        self.go = anyio.Event()
        self.transport = Fake(self.behave)
        self.answer = answer
        self.closed_while_at_work = False

    async def behave(self, event: object) -> Any:
        await self.go.wait()
        self.closed_while_at_work = self.transport.closed > 0
        return self.answer


async def test_an_added_agent_is_last_and_heard_from_the_next_event_on() -> None:
    manager = AgentManager(agents(answering(None)))
    assert (await manager.process_request_headers(REQUEST)).is_allow

    await manager.add_agent(configured(id="b"))
    fake(manager, "b").behave = answering(BLOCK)

    assert tuple(manager.agent_ids) == ("a", "b")
    assert registry_of(manager).guard("b").configured
    assert (await manager.process_request_headers(REQUEST)).decided_by == "b"
    assert tuple(manager.get_agents_for_event(EventType.REQUEST_HEADERS)) == ("a", "b")


async def test_an_added_agent_that_is_down_is_added_all_the_same() -> None:
    manager = AgentManager()

    await manager.add_agent(configured(raising(AgentConnectionError("refused"))))

    assert (await manager.process_request_headers(REQUEST)).decided_by == "a"


async def test_an_agent_with_a_taken_id_is_not_added() -> None:
    manager = AgentManager(agents(answering(None)))

    with pytest.raises(ConfigurationError, match="an agent has the id 'a' already; replace_agent replaces it"):
        await manager.add_agent(config("a", Fake()))


async def test_of_two_agents_that_are_added_at_once_with_one_id_only_one_is() -> None:
    manager = AgentManager()
    refused: list[str] = []

    async def add(number: int) -> None:
        try:
            await manager.add_agent(configured(soon, timeout=number))
        except ConfigurationError as exc:
            refused.append(str(exc))

    async with anyio.create_task_group() as tasks:
        for number in (1, 2):
            tasks.start_soon(add, number)

    assert len(refused) == 1
    assert tuple(manager.agent_ids) == ("a",)


async def test_a_replaced_agent_keeps_its_place() -> None:
    manager = AgentManager(agents(answering(None), answering(None)))
    old = fake(manager, "a")

    await manager.replace_agent(config("a", Fake(answering(BLOCK))))

    assert tuple(manager.agent_ids) == ("a", "b")
    assert (await manager.process_request_headers(REQUEST)).decided_by == "a"
    assert (await manager.process_request_headers(REQUEST, ["b", "a"])).decided_by == "a"
    assert old.heard == []
    assert old.closed == 1
    assert fake(manager, "a").closed == 0


async def test_a_removed_agent_is_gone_also_from_the_routes_that_name_it() -> None:
    manager = AgentManager(agents(answering(BLOCK), answering(None)))
    old = fake(manager, "a")
    registry_of(manager).resolved_route(["a", "b"])

    await manager.remove_agent("a")

    assert tuple(manager.agent_ids) == ("b",)
    assert old.closed == 1
    assert [
        agent.guard.config.id for agent in registry_of(manager).resolved_route(["a", "b"], missing_ok=True).agents
    ] == ["b"]
    assert (await manager.process_request_headers(REQUEST)).is_allow
    with pytest.raises(UnknownAgentError):
        await manager.process_request_headers(REQUEST, ["a"])


@pytest.mark.parametrize("change", ["replace", "remove"])
async def test_a_call_that_is_under_way_is_finished_by_the_old_agent_before_that_is_closed(change: str) -> None:
    busy = Busy(BLOCK)
    manager = AgentManager([config("a", busy.transport)])
    decisions: list[AgentDecision] = []

    async def process() -> None:
        decisions.append(await manager.process_request_headers(REQUEST))

    async def alter() -> None:
        if change == "replace":
            await manager.replace_agent(config("a", Fake()))
        else:
            await manager.remove_agent("a")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process)
        await settle()
        tasks.start_soon(alter)
        await settle()
        # Already in effect for whoever comes now.
        assert (await manager.process_request_headers(REQUEST)).is_allow
        assert decisions == []
        busy.go.set()

    assert decisions[0].decided_by == "a"
    assert not busy.closed_while_at_work
    assert busy.transport.closed == 1


async def test_a_question_that_is_under_way_is_answered_by_the_old_agent_before_that_is_closed() -> None:
    busy = Busy(DETECTED)
    manager = AgentManager([config("a", busy.transport)])
    answers: list[GuardrailResponse] = []

    async def ask() -> None:
        answers.append(await manager.call_guardrail_agent("a", QUESTION))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await settle()
        tasks.start_soon(manager.remove_agent, "a")
        await settle()
        busy.go.set()

    assert answers == [DETECTED]
    assert not busy.closed_while_at_work
    assert busy.transport.closed == 1


async def test_an_agent_further_down_the_chain_is_not_closed_before_its_turn() -> None:
    busy, later = Busy(), Busy(BLOCK)
    later.go.set()
    manager = AgentManager(
        [config("a", busy.transport, body_access="write"), config("b", later.transport, body_access="write")]
    )
    decisions: list[AgentDecision] = []

    async def process() -> None:
        decisions.append(await manager.process_request_body(body(b"x")))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process)
        await settle()
        tasks.start_soon(manager.remove_agent, "b")
        await settle()
        busy.go.set()

    assert decisions[0].decided_by == "b"
    assert not later.closed_while_at_work
    assert later.transport.closed == 1


@pytest.mark.parametrize("change", ["replace", "remove"])
async def test_an_old_agent_is_closed_when_the_last_connection_that_knows_it_ends(change: str) -> None:
    manager = AgentManager(agents(answering(BLOCK), answering(None)))
    old = fake(manager, "a")
    all_agents, only_b = registry_of(manager).resolved_route(None), registry_of(manager).resolved_route(["b"])
    for resolved_route in (all_agents, all_agents, only_b):
        resolved_route.held += 1

    async with anyio.create_task_group() as tasks:
        if change == "replace":
            tasks.start_soon(manager.replace_agent, config("a", Fake()))
        else:
            tasks.start_soon(manager.remove_agent, "a")
        await settle()
        for left in (1, 0):
            assert old.closed == 0
            assert all_agents.agents_for(EventType.REQUEST_HEADERS)[0].guard.config.resolved_transport is old
            all_agents.held -= 1
            assert all_agents.connections == left
            await settle()

    assert old.closed == 1
    assert only_b.connections == 1


async def test_an_old_agent_is_closed_after_the_drain_timeout_at_the_latest() -> None:
    manager = AgentManager(agents(answering(None)))
    old = fake(manager, "a")
    registry_of(manager).resolved_route(None).held += 1

    await manager.remove_agent("a", drain_timeout=0.02)

    assert old.closed == 1


async def test_an_agent_that_is_removed_while_another_is_to_replace_it_does_not_come_back() -> None:
    manager = AgentManager(agents(answering(None)))
    new = configured(soon)

    async with anyio.create_task_group() as tasks:

        async def replace_it() -> None:
            with pytest.raises(UnknownAgentError):
                await manager.replace_agent(new)

        tasks.start_soon(replace_it)
        await checkpoint()
        await manager.remove_agent("a")

    assert tuple(manager.agent_ids) == ()


async def test_of_two_replacements_at_once_all_but_the_one_that_stays_are_closed() -> None:
    manager = AgentManager(agents(answering(None)))
    made = [fake(manager, "a")]

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            new = configured(soon)
            assert isinstance(new.resolved_transport, Fake)
            made.append(new.resolved_transport)
            tasks.start_soon(manager.replace_agent, new)

    stays = fake(manager, "a")
    assert [transport.closed for transport in made if transport is not stays] == [1, 1]
    assert stays.closed == 0


async def test_agents_may_come_and_go_while_the_manager_shuts_down() -> None:
    manager = AgentManager([configured(), configured(id="b"), configured(id="c")])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.shutdown)
        await checkpoint()
        tasks.start_soon(manager.add_agent, configured(id="d"))
        await manager.remove_agent("c")

    assert fake(manager, "b").closed == 1


async def test_agents_may_come_and_go_while_the_manager_starts() -> None:
    clock = Clock()
    asked_again = anyio.Event()

    async def refuse_at_first(event: object) -> None:
        if fake(manager, "a").configured == 1:
            raise AgentConnectionError("refused")
        asked_again.set()
        await settle()

    async def take_its_time(event: object) -> None:
        await settle()
        clock.now += 1.0

    manager = AgentManager(
        [configured(refuse_at_first, require_at_startup=True), configured(take_its_time, id="b")], clock=clock
    )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.initialize)
        await asked_again.wait()
        await manager.add_agent(configured(id="c"))

    assert tuple(manager.agent_ids) == ("a", "b", "c")
    assert registry_of(manager).guard("a").configured


async def test_no_event_is_lost_while_agents_come_and_go() -> None:
    manager = AgentManager(agents(answering(None)))
    decisions: list[AgentDecision] = []

    async def process() -> None:
        for _ in range(30):
            decisions.append(await manager.process_request_headers(REQUEST))
            await checkpoint()

    async def change() -> None:
        for number in range(5):
            await manager.add_agent(configured(soon, id=f"x{number}"))
            await manager.replace_agent(config("a", Fake(soon)))
            await manager.remove_agent(f"x{number}")

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(process)
        tasks.start_soon(change)

    assert len(decisions) == 90
    assert all(decision.is_allow and decision.verdicts for decision in decisions)
    assert tuple(manager.agent_ids) == ("a",)
    assert is_idle(manager)


# What it shows


def test_it_shows_what_is_documented_and_nothing_else() -> None:
    assert {name for name in dir(AgentManager([config("a", Fake())])) if not name.startswith("_")} == {
        "add_agent",
        "agent_capabilities",
        "agent_ids",
        "any_agent_handles_event",
        "call_guardrail_agent",
        "export_prometheus",
        "forget_request",
        "get_agents_for_event",
        "initialize",
        "metrics",
        "process_request_body",
        "process_request_body_streaming",
        "process_request_complete",
        "process_request_headers",
        "process_response_body_streaming",
        "process_response_headers",
        "process_websocket_frame",
        "push_config",
        "remove_agent",
        "replace_agent",
        "running",
        "shutdown",
        "statistics",
    }
