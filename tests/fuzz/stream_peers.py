"""Both ends of the stream transport, before a peer that says anything at all."""

import math
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
from anyio.lowlevel import checkpoint

from asgi_agents import Agent, AgentError, AgentResponse
from asgi_agents.errors import AgentProtocolError
from asgi_agents.protocol import Acknowledgement, Encoding, EventType, GuardrailResponse, decode_answer, encode_event
from asgi_agents.protocol.codec import NO_VERDICT, decode_value
from asgi_agents.protocol.stream import (
    EVENT_NUMBERS,
    EVENT_OF_MESSAGE,
    AgentCapabilities,
    CallIds,
    ConfigUpdateRequest,
    FrameReader,
    Framing,
    HandshakeRequest,
    HealthState,
    MessageType,
    MetricsReport,
    encode_answer_frame,
    encode_envelope_frame,
    encode_event_frame,
    encode_message,
)
from asgi_agents.serve.connection import Service
from asgi_agents.serve.framings import new_connection
from asgi_agents.serve.hooks import Hooks
from asgi_agents.transports.stream.connection import AgentConnection
from asgi_agents.transports.stream.flow_control import Capacity

from . import framing, wire
from .choices import Choices
from .loops import BACKENDS, run

_CALLS: Final = 4


class FakeWire:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False
        self.congested = False
        self.unread = False
        self.turns_behind = 0

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.written += data

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    async def drain(self) -> None:
        await checkpoint()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    async def wait_closed(self) -> None:
        await checkpoint()

    def frames(self, framing: Framing) -> list[bytes]:
        """All that was written; raises for what is no frame."""
        reader = FrameReader(framing)
        found = list(reader.feed(bytes(self.written)))
        assert not reader.pending, "a frame that does not end"
        return found


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def _anything(choices: Choices, encoding: Encoding) -> bytes:
    """A frame of any type with any payload, and sometimes what is no frame."""
    kind = choices.byte() if choices.one_in(8) else choices.pick(tuple(MessageType))
    payload = wire.message(choices, encoding, framing.NAMES if choices.flag() else wire.NAMES)
    if choices.one_in(32):
        return choices.take(12)
    return _frame(bytes([kind]) + payload)


# The middleware's end


class _Owner:
    """As the pool is one."""

    def __init__(self) -> None:
        self.failed = 0

    def capacity_freed(self, connection: AgentConnection) -> None: ...

    def health_changed(self, connection: AgentConnection, before: HealthState) -> None: ...

    def rated(self, connection: AgentConnection, *, answered: bool) -> None: ...

    def hears(self, event_type: EventType) -> bool:
        return True

    def lost(self, connection: AgentConnection, failed: int) -> None:
        self.failed += failed

    def message_received(self, connection: AgentConnection, message: MetricsReport | ConfigUpdateRequest) -> None: ...


def calling_end(data: bytes) -> None:
    """Whatever an agent says, every call ends, in an answer or an agent error, and nothing stays taken."""
    choices = Choices(data)
    run(choices.pick(BACKENDS), partial(_call, choices))


async def _call(choices: Choices) -> None:
    kind, encoding = choices.pick(tuple(Framing)), choices.pick(tuple(Encoding))
    owner, capacity, line = _Owner(), Capacity(), FakeWire()
    connection = AgentConnection(kind, (encoding, Encoding.JSON), owner, capacity, max_calls=3)
    connection.requests.add("c-1")
    outcomes: list[object] = []

    async def greet() -> None:
        try:
            await connection.shake_hands(line, proxy_id="p", config=None)
        except AgentError as exc:
            outcomes.append(exc)

    async def call(event: Any) -> None:
        try:
            outcomes.append(await connection.call(event, math.inf))
        except AgentError as exc:
            outcomes.append(exc)

    called = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(greet)
        await anyio.wait_all_tasks_blocked()
        greeting = _greeting(choices, encoding) if kind is Framing.V2 else b""
        connection.data_received(greeting)
        await anyio.wait_all_tasks_blocked()
        for _ in choices.times(_CALLS):
            event = wire.event(choices, encoding)
            if connection.has_room(getattr(event, "correlation_id", "")):
                connection.flow.reserve()
                called += 1
                tasks.start_soon(call, event)
        await anyio.wait_all_tasks_blocked()
        said = b"".join(_said(choices, connection, kind, encoding) for _ in choices.times(8))
        for piece in choices.cuts(said):
            connection.data_received(piece)
        await anyio.wait_all_tasks_blocked()
        assert connection._reader.held <= len(greeting + said), "more is kept than was said"
        assert 1.0 <= connection.health.timeout_multiplier <= 10.0
        assert connection.flow._paused_ids <= {"c-1"}, "it remembers what nobody will make it forget"
        connection.connection_lost(None)
    answers = [outcome for outcome in outcomes if not isinstance(outcome, AgentError)]
    assert all(isinstance(answer, AgentResponse | GuardrailResponse | Acknowledgement) for answer in answers), answers
    assert len(outcomes) >= called, "a call that never ended"
    assert (capacity.taken, connection.calls) == (0, 0), "a place that was not given back"
    line.frames(kind)


def _greeting(choices: Choices, encoding: Encoding) -> bytes:
    if choices.one_in(4):
        return _anything(choices, Encoding.JSON)
    response: dict[str, Any] = {
        "protocol_version": 2,
        "success": True,
        "encoding": str(encoding),
        "capabilities": {
            "supported_events": sorted(EVENT_NUMBERS.values()),
            "features": {
                "call_ids": choices.flag(),
                "cancellation": choices.flag(),
                "concurrent_requests": choices.pick((0, 1, 50, -1)),
            },
            "limits": {"max_body_size": choices.pick((10**7, 8, 0, -1)), "max_concurrency": choices.pick((100, 0, -5))},
        },
    }
    if choices.one_in(4):
        response[choices.pick(tuple(response))] = choices.value(framing.NAMES)
    return _frame(bytes([MessageType.HANDSHAKE_RESPONSE]) + wire.spelt(response, Encoding.JSON))


def _said(choices: Choices, connection: AgentConnection, kind: Framing, encoding: Encoding) -> bytes:
    if choices.one_in(3):
        return _anything(choices, encoding)
    answer = wire.answer(choices, choices.pick(tuple(EventType)), encoding)
    if kind is Framing.ENVELOPE:
        return encode_envelope_frame(wire.spelt({"decision": "allow"}, encoding))
    oldest = connection.pending_calls.oldest
    number = choices.pick((0 if oldest is None else oldest.number, 1, 2**40))
    ids = CallIds(choices.pick(("c-1", "c-2", "")), number) if choices.flag() else CallIds(choices.pick(("c-1", "x")))
    return encode_answer_frame(answer, encoding, ids)


# The agent's end


class Served(Agent):
    """Answers every event, with what may be sent."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = answers

    @property
    def events(self) -> frozenset[EventType]:
        return frozenset(EventType)

    def _answer(self) -> Any:
        return self._answers.pop() if self._answers else None

    async def on_configure(self, event: Any) -> Any:
        return self._answer()

    async def on_request_headers(self, event: Any) -> Any:
        await checkpoint()
        return self._answer()

    async def on_request_body_chunk(self, event: Any) -> Any:
        return self._answer()

    async def on_response_headers(self, event: Any) -> Any:
        await anyio.sleep(1)
        return self._answer()

    async def on_guardrail_inspect(self, event: Any) -> Any:
        raise ValueError("the agent is at fault")


def serving_end(data: bytes) -> None:
    """Whatever a client says, every event is answered once, and nothing stays behind."""
    choices = Choices(data)
    run(choices.pick(BACKENDS), partial(_serve, choices))


async def _serve(choices: Choices) -> None:
    kind = choices.pick(tuple(Framing))
    encoding = choices.pick(tuple(Encoding)) if kind is Framing.V2 else Encoding.JSON
    answers = [wire.answer(choices, EventType.REQUEST_HEADERS, encoding) for _ in choices.times(3)]
    line = FakeWire()
    async with anyio.create_task_group() as tasks:
        service = Service(Hooks(Served(answers)), kind, AgentCapabilities(), choices.pick((1, 100)), 16, tasks)
        connection = new_connection(service)
        connection.connected(line)
        said = [_introduction(choices, encoding)] if kind is Framing.V2 else []
        said += [_asked(choices, kind, encoding) for _ in choices.times(10)]
        stream = b"".join(said)
        for piece in choices.cuts(stream):
            connection.data_received(piece)
            if choices.one_in(4):
                await anyio.sleep(0.5)
        # Longer than any hook takes.
        await anyio.sleep(100)
        frames = line.frames(kind)
        answered = frames if kind is Framing.ENVELOPE else [f for f in frames if f[0] == MessageType.AGENT_RESPONSE]
        events = _events(stream, kind)
        assert len(answered) <= events, "more answers than events"
        assert connection.unanswered == 0 or line.closed, "an event without an answer"
        if not line.closed:
            assert len(answered) == events, f"{len(answered)} answers to {events} events"
        for frame in answered:
            payload = frame if kind is Framing.ENVELOPE else frame[1:]
            spoken = encoding if frames[0][0] == MessageType.HANDSHAKE_RESPONSE else Encoding.JSON
            if decode_value(dict[str, Any], payload, spoken).get("decision") != NO_VERDICT:
                decode_answer(payload, spoken, EventType.CONFIGURE)
        connection.connection_lost(None)
        assert not service.connections
        assert not service.owes
        tasks.cancel_scope.cancel()


def _events(stream: bytes, kind: Framing) -> int:
    """How many frames of ``stream`` want an answer."""
    found: list[bytes] = []
    with suppress(AgentProtocolError):
        found.extend(FrameReader(kind).feed(stream))
    return len(found) if kind is Framing.ENVELOPE else sum(frame[0] in EVENT_OF_MESSAGE for frame in found)


def _introduction(choices: Choices, encoding: Encoding) -> bytes:
    if choices.one_in(6):
        return _anything(choices, Encoding.JSON)
    request = HandshakeRequest(supported_versions=[2], supported_encodings=[choices.pick(("xml", encoding)), encoding])
    return encode_message(MessageType.HANDSHAKE_REQUEST, request)


def _asked(choices: Choices, kind: Framing, encoding: Encoding) -> bytes:
    event = wire.event(choices, encoding)
    if kind is Framing.ENVELOPE:
        if choices.one_in(4):
            return _frame(wire.message(choices, encoding) or b"?")
        return encode_envelope_frame(encode_event(event, encoding))
    match choices.below(6):
        case 0:
            return _anything(choices, encoding)
        case 1:
            cancel = {"correlation_id": choices.pick(("c-1", "c-2")), "call_id": choices.below(4)}
            return _frame(bytes([MessageType.CANCEL]) + wire.spelt(cancel, encoding))
        case _:
            ids = CallIds("c-1", choices.below(4)) if choices.flag() else CallIds(choices.pick(("c-1", "c-2", "é")))
            return encode_event_frame(event, encoding, ids, choices.pick((None, "x", "00-" + "1" * 32)))
