"""Each part of an answer is applied, or its agent has failed: none is ignored."""

from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentResponse,
    AuditRecord,
    BodyMode,
    BodyMutation,
    BreakerState,
    CircuitBreakerConfig,
    EventType,
    FailureKind,
    FailureMode,
    HeaderOp,
    Headers,
    InspectionType,
    ResponseAborted,
    Verdict,
    WebSocketDrop,
)
from asgi_agents.agent import HOOKS
from asgi_agents.errors import AgentError
from asgi_agents.guard import Guard
from asgi_agents.protocol import (
    Event,
    GuardrailInspectEvent,
    Opcode,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)
from tests.support.asgi import App, Client, Held, Probe, SlowProbe, body, guarded, start
from tests.support.sample_events import HEAD

CLOSED, OPEN = FailureMode.CLOSED, FailureMode.OPEN
BUFFER, STREAM, HYBRID = BodyMode.BUFFER, BodyMode.STREAM, BodyMode.hybrid(4)
OP = [HeaderOp.set("x-op", "1")]
TRIGGER = CircuitBreakerConfig(failure_threshold=1)

modes = pytest.mark.parametrize("mode", FailureMode)
body_modes = pytest.mark.parametrize("body_mode", [BUFFER, STREAM, HYBRID], ids=lambda mode: mode.name)

FIELDS: dict[str, Any] = {
    "request_headers": OP,
    "response_headers": OP,
    "request_body_mutation": BodyMutation(b"changed"),
    "response_body_mutation": BodyMutation(b""),
}
#: Which fields apply to an event at all.
APPLY: dict[EventType, set[str]] = {
    EventType.CONFIGURE: set(),
    EventType.REQUEST_HEADERS: {"request_headers", "response_headers"},
    EventType.REQUEST_BODY_CHUNK: {"request_headers", "response_headers", "request_body_mutation"},
    EventType.RESPONSE_HEADERS: {"response_headers"},
    EventType.RESPONSE_BODY_CHUNK: {"response_headers", "response_body_mutation"},
    # Each of a message in one of the directions.
    EventType.WEBSOCKET_FRAME: {"request_body_mutation", "response_body_mutation"},
    EventType.GUARDRAIL_INSPECT: set(),
    EventType.REQUEST_COMPLETE: set(),
}
EVENTS: dict[EventType, Event] = {
    EventType.REQUEST_HEADERS: HEAD,
    EventType.REQUEST_BODY_CHUNK: RequestBodyChunkEvent(correlation_id="c", data=b"x", is_last=True),
    EventType.RESPONSE_HEADERS: ResponseHeadersEvent(correlation_id="c", status=200, headers=Headers()),
    EventType.RESPONSE_BODY_CHUNK: ResponseBodyChunkEvent(correlation_id="c", data=b"x", is_last=True),
    EventType.WEBSOCKET_FRAME: WebSocketFrameEvent(
        correlation_id="c", opcode=Opcode.TEXT, data=b"x", client_to_server=True, frame_index=0, client_ip=""
    ),
    EventType.GUARDRAIL_INSPECT: GuardrailInspectEvent(
        correlation_id="c", inspection_type=InspectionType.PII_DETECTION, content=""
    ),
    EventType.REQUEST_COMPLETE: RequestCompleteEvent(
        correlation_id="c", status=200, duration_ms=0, request_body_size=0, response_body_size=0, upstream_attempts=1
    ),
}

fields = pytest.mark.parametrize("field", FIELDS)
events = pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS.keys())


def answering(event_type: EventType, answer: AgentResponse) -> Agent:
    """An agent that gives this answer, from a hook that never suspends."""

    async def hook(self: Agent, event: Event) -> AgentResponse:
        return answer

    # One that is only configured hears nothing, and is refused.
    hooks = {HOOKS[event_type]: hook, HOOKS[EventType.REQUEST_COMPLETE]: hook}
    kind: type[Agent] = type("Answering", (Agent,), hooks)
    return kind()


class Faraway:
    """The same, as if it were in another process."""

    kind = "fake"
    remote = True
    events = frozenset(EventType)
    carries = frozenset(EventType)

    def __init__(self, answer: AgentResponse) -> None:
        self._answer = answer

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event) -> AgentResponse:
        await anyio.lowlevel.checkpoint()
        return self._answer

    async def aclose(self) -> None:
        pass


def guards(event_type: EventType, answer: AgentResponse) -> list[Guard]:
    options: dict[str, Any] = {"body_access": "write", "circuit_breaker": TRIGGER}
    if event_type is EventType.CONFIGURE:
        # An agent elsewhere is not asked to take what there is not.
        options["config"] = {}
    return [
        Guard(AgentConfig("waf", answering(event_type, answer), **options)),
        Guard(AgentConfig("waf", Faraway(answer), events={event_type}, **options)),
    ]


async def ask(guard: Guard, event: Event, mode: FailureMode) -> Verdict:
    if isinstance(event, GuardrailInspectEvent):
        verdict, _ = await guard.inspect(event, mode)
        return verdict
    return await guard.call(event, mode)


# By the event


@events
@fields
@modes
async def test_a_part_that_does_not_apply_to_its_event_is_a_failure(
    event: Event, field: str, mode: FailureMode
) -> None:
    answer = AgentResponse(**{field: FIELDS[field]})
    if isinstance(event, WebSocketFrameEvent):
        event = replace(event, client_to_server=field == "request_body_mutation")
    for guard in guards(event.event_type, answer):
        verdict = await ask(guard, event, mode)

        assert guard.breaker is not None
        assert guard.breaker.state is BreakerState.CLOSED
        if field in APPLY[event.event_type]:
            assert verdict.response is answer
            continue
        assert verdict.response is None
        assert verdict.failure is not None
        assert verdict.failure.kind is FailureKind.NOT_APPLICABLE
        assert verdict.fail_closed is (mode is CLOSED)
        assert f"agent 'waf', {event.event_type}: {field} does not apply to {event.event_type}" in (
            verdict.failure.message
        )
        right = [event_type.value for event_type in EventType if field in APPLY[event_type]]
        assert verdict.failure.message.endswith(f"may only be in answers to {', '.join(right)}")
        assert guard.metrics().outcomes == {"not_applicable": 1}


@events
async def test_a_mutation_without_data_is_none(event: Event) -> None:
    nothing = BodyMutation(None)
    answer = AgentResponse.allow(request_body_mutation=nothing, response_body_mutation=nothing)
    for guard in guards(event.event_type, answer):
        assert (await ask(guard, event, CLOSED)).failure is None


@events
@fields
@pytest.mark.parametrize(
    "denial", [AgentResponse.block(418), AgentResponse(websocket_decision=WebSocketDrop())], ids=["block", "drop"]
)
async def test_a_denial_is_never_undone_by_what_comes_with_it(event: Event, field: str, denial: AgentResponse) -> None:
    """A failure would let through what a fail-open agent has denied, and a denial changes nothing else anyway."""
    given = FIELDS[field]
    # msgspec's replace() before 0.20 leaves a list a list.
    answer = replace(denial, **{field: tuple(given) if isinstance(given, list) else given})
    for guard in guards(event.event_type, answer):
        verdict = await ask(guard, event, OPEN)
        assert verdict.failure is None
        assert verdict.denies or event.event_type is EventType.GUARDRAIL_INSPECT


async def test_half_open_breakers_get_their_slot_back() -> None:
    class Fickle(Agent):
        answer: Any = None

        async def on_response_headers(self, event: Any) -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    now = 0.0
    agent = Fickle()
    guard = Guard(AgentConfig("waf", agent, circuit_breaker=TRIGGER), clock=lambda: now)
    event = EVENTS[EventType.RESPONSE_HEADERS]
    agent.answer = ValueError()
    await guard.call(event, CLOSED)
    assert guard.breaker is not None
    now = 1000.0
    agent.answer = AgentResponse.allow(request_headers=OP)
    for _ in range(3):
        verdict = await guard.call(event, CLOSED)
        assert verdict.failure is not None
        assert verdict.failure.kind is FailureKind.NOT_APPLICABLE
    assert guard.breaker.state is BreakerState.HALF_OPEN


@fields
async def test_a_configuration_that_is_answered_with_changes_is_not_taken(field: str) -> None:
    for guard in guards(EventType.CONFIGURE, AgentResponse(**{field: FIELDS[field]})):
        with pytest.raises(AgentError, match=f"not configured: .*{field} does not apply to configure"):
            await guard.configuring.configure()


async def test_it_is_logged_like_an_agent_error(caplog: pytest.LogCaptureFixture) -> None:
    guard, _ = guards(EventType.RESPONSE_HEADERS, AgentResponse.allow(request_headers=OP))

    await guard.call(EVENTS[EventType.RESPONSE_HEADERS], CLOSED)
    await guard.call(EVENTS[EventType.RESPONSE_HEADERS], CLOSED)

    (line,) = [record.getMessage() for record in caplog.records]
    assert "request_headers does not apply to response_headers" in line


async def test_the_manager_says_so_too() -> None:
    answer = AgentResponse.allow(response_body_mutation=BodyMutation(b"changed"))
    config = AgentConfig("waf", answering(EventType.WEBSOCKET_FRAME, answer), body_access="write")
    event = EVENTS[EventType.WEBSOCKET_FRAME]
    assert isinstance(event, WebSocketFrameEvent)

    decision = await AgentManager([config]).process_websocket_frame(event)

    assert (decision.close.code, decision.close.reason) == (1011, "Agent error")


# By the moment


class Early(App):
    """Answers before it reads."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        self.calls += 1
        self.headers = list(scope["headers"])
        await send(start(200))
        more = True
        while more:
            message = await receive()
            self.received.append(message)
            more = message.get("more_body", False)
        await send(body(b"hello"))


PIECES = [b"ab", b"cdef", b"gh"]


class Moment:
    """An agent that gives header operations in its answer to one chunk, and what was gone by then."""

    def __init__(self, number: int, field: str, client: Client, app: App) -> None:
        self.field = field
        self.gone: bool | None = None
        self._number = number
        self._client = client
        self._app = app

    def react(self, event: Any) -> AgentResponse | None:
        if event.chunk_index != self._number:
            return None
        self.gone = bool(self._app.calls if self.field == "request_headers" else self._client.starts)
        changes: dict[str, Any] = {self.field: OP}
        return AgentResponse(**changes)


def check(
    moment: Moment, client: Client, app: App, records: list[AuditRecord], mode: FailureMode, error: BaseException | None
) -> None:
    """Applied, or a failure: and the audit says which."""
    far = (app if moment.field == "request_headers" else client).header(b"x-op")
    (record,) = records
    told = [(answer.failure, list(answer.changed)) for answer in record.answers]
    if moment.gone is None:
        assert (far, record.decision) == (None, "allow")
    elif not moment.gone:
        assert (far, record.decision) == (b"1", "allow")
        assert (None, [moment.field]) in told
    else:
        assert far is None
        assert told.count(("not_applicable", [])) == 1
        assert not any(changed for _, changed in told)
        if mode is OPEN:
            assert (record.decision, record.passed_open) == ("allow", ["judge"])
            assert client.complete
        else:
            assert (record.decision, record.decided_by) == ("not_applicable", "judge")
            assert client.status == 503 or isinstance(error, ResponseAborted)


@pytest.mark.parametrize("make", [App, Early], ids=["reads first", "answers first"])
@pytest.mark.parametrize("field", ["request_headers", "response_headers"])
@pytest.mark.parametrize("number", range(3))
@body_modes
@modes
async def test_operations_in_an_answer_to_a_piece_of_a_request_are_applied_or_a_failure(
    make: type[App], field: str, number: int, body_mode: BodyMode, mode: FailureMode, probe: type[Probe]
) -> None:
    client, app, records = Client("POST", body=PIECES), make(), list[AuditRecord]()
    moment = Moment(number, field, client, app)
    config = AgentConfig("judge", probe(request_body=moment.react), request_body_mode=body_mode, failure_mode=mode)
    error = None
    try:
        await client.call(guarded(app, config, on_audit=records.append))
    except ResponseAborted as exc:
        error = exc

    check(moment, client, app, records, mode, error)


@pytest.mark.parametrize("number", range(3))
@body_modes
@modes
async def test_operations_in_an_answer_to_a_piece_of_a_response_are_applied_or_a_failure(
    number: int, body_mode: BodyMode, mode: FailureMode, probe: type[Probe]
) -> None:
    client, records = Client(), list[AuditRecord]()
    app = App(start(), *(body(piece, more=index < 2) for index, piece in enumerate(PIECES)))
    moment = Moment(number, "response_headers", client, app)
    config = AgentConfig("judge", probe(response_body=moment.react), response_body_mode=body_mode, failure_mode=mode)
    error = None
    try:
        await client.call(guarded(app, config, on_audit=records.append))
    except ResponseAborted as exc:
        error = exc

    check(moment, client, app, records, mode, error)


@modes
async def test_what_is_applied_is_judged_when_it_is_applied(mode: FailureMode) -> None:
    """One agent has answered, the other still thinks, and meanwhile the head of the response goes out."""
    client, records = Client("POST", body=[b"one"]), list[AuditRecord]()
    held = Held()
    answered: list[bool] = []

    def quick(event: Any) -> AgentResponse:
        answered.append(bool(client.starts))
        return AgentResponse.allow(response_headers=OP)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await held.reached.wait()
            await send(start())
            held.gate.set()
        await send(body(b"hello"))

    middleware = guarded(
        app,
        AgentConfig("judge", Probe(request_body=quick), request_body_mode=STREAM, failure_mode=mode),
        AgentConfig("slow", SlowProbe(request_body=held), request_body_mode=STREAM),
        on_audit=records.append,
    )
    if mode is CLOSED:
        with pytest.raises(ResponseAborted, match="judge"):
            await client.call(middleware)
    else:
        await client.call(middleware)

    assert answered == [False]
    assert client.header(b"x-op") is None
    (record,) = records
    assert [answer.failure for answer in record.answers if answer.agent == "judge"] == ["not_applicable"]
    assert record.decision == ("not_applicable" if mode is CLOSED else "allow")


@pytest.mark.parametrize("late", ["request_headers", "response_headers"])
async def test_a_shadow_agent_is_told_what_it_would_have_come_to(late: str) -> None:
    client, app, records = Client("POST", body=PIECES), Early(), list[AuditRecord]()
    moment = Moment(1, late, client, app)
    config = AgentConfig("judge", Probe(request_body=moment.react), request_body_mode=STREAM, enforce=False)

    await client.call(guarded(app, config, on_audit=records.append))

    (record,) = records
    assert (client.status, record.decision, record.would_stop) == (200, "allow", ["judge"])
    assert [answer.failure for answer in record.answers] == ["not_applicable"]


async def test_a_client_can_not_open_the_breaker_with_large_bodies() -> None:
    middleware = guarded(
        App(),
        AgentConfig(
            "judge",
            Probe(request_body=AgentResponse.allow(request_headers=OP)),
            request_body_mode=HYBRID,
            circuit_breaker=TRIGGER,
        ),
    )
    for _ in range(5):
        large = Client("POST", body=PIECES)
        await large.call(middleware)
        assert (large.status, large.body) == (503, b"Agent unavailable")
    small = Client("POST", body=[b"ab"])
    await small.call(middleware)

    assert small.status == 200


@pytest.mark.parametrize(
    ("name", "field"),
    [("request_body", "request_body_mutation"), ("response_body", "response_body_mutation")],
)
@pytest.mark.parametrize("data", [None, b"", b"new"])
async def test_the_audit_names_a_mutation_only_where_there_is_one(name: str, field: str, data: bytes | None) -> None:
    records: list[AuditRecord] = []
    changes: dict[str, Any] = {field: BodyMutation(data, chunk_index=7)}
    config = AgentConfig("judge", Probe(**{name: AgentResponse(**changes)}), body_access="write")

    await Client("POST", body=b"old").call(guarded(App(), config, on_audit=records.append))

    assert [list(said.changed) for said in records[0].answers] == [[] if data is None else [name]]


async def test_the_audit_of_a_denial_names_nothing_but_the_headers_of_its_reply() -> None:
    records: list[AuditRecord] = []
    answer = replace(AgentResponse.block(418), request_headers=tuple(OP), response_headers=tuple(OP))
    client = Client()

    await client.call(guarded(App(), AgentConfig("judge", Probe(request_headers=answer)), on_audit=records.append))

    assert (client.status, client.header(b"x-op")) == (418, b"1")
    assert [list(said.changed) for said in records[0].answers] == [["response_headers"]]
