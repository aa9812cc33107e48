"""One client of a served agent: its frames, and which of its events are still to be answered."""

import logging
import time
from collections import deque
from typing import Final

import anyio
from anyio import move_on_after
from anyio.abc import TaskGroup
from msgspec import UNSET
from msgspec.structs import replace

from ..errors import AgentError, AgentProtocolError
from ..memory.weighing import weigh
from ..protocol import (
    PROTOCOL_VERSION,
    AgentResponse,
    Answer,
    BodyChunkEvent,
    Encoding,
    Event,
    EventType,
    RequestHeadersEvent,
    WebSocketFrameEvent,
    decode_event,
    encode_answer,
)
from ..protocol.codec import answer_with, decode_value, encode_value
from ..protocol.stream import (
    EVENT_OF_MESSAGE,
    MAX_HANDSHAKE_REQUEST_BYTES,
    AgentCapabilities,
    CallIds,
    Cancel,
    FrameReader,
    Framing,
    HandshakeRequest,
    HandshakeResponse,
    HealthState,
    HealthStatus,
    MessageType,
    check_ping,
    decode_message,
    decode_payload,
    decode_payload_ids,
    encode_answer_frame,
    encode_envelope_frame,
    encode_frame,
    encode_message,
    now_ms,
)
from ..transports.wire import Wire
from . import held
from .dispatch import Dispatcher, ServedCall
from .held import EVENT_BYTES, MAX_HELD_BYTES, SMALL_BYTES, Budget, Intake
from .hooks import Hooks, NoAnswer
from .shapes import Shaped, no_verdict, shape, shape_refusal

logger: Final = logging.getLogger("asgi_agents.serve")

# Seconds within which a client has to introduce itself.
HANDSHAKE_TIMEOUT: float = 5.0
# Answers that are ready together are sent together, up to this many bytes.
_BATCH_BYTES: Final = 64 * 1024

_CANCELLED: Final = no_verdict("cancelled")
_MALFORMED: Final = "the event is malformed"
_BUSY: Final = "too many events of the connection are unanswered"
# Events whose frames are no longer count for that length, as long as their connection holds little.
_SHORT: Final = 16 * 1024
_DRAINING: Final = "the agent is shutting down"
_KNOWN_ENCODINGS: Final = frozenset(encoding.value for encoding in Encoding)


class Service:
    """What the connections of one address have in common."""

    def __init__(
        self,
        hooks: Hooks,
        framing: Framing,
        capabilities: AgentCapabilities,
        max_concurrency: int,
        max_body_size: int,
        tasks: TaskGroup,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self.hooks = hooks
        self.framing = framing
        self.capabilities = capabilities
        self.max_body_size = max_body_size
        #: Events that a connection may have unanswered: what fits the limit, and generously more.
        self.max_unanswered = 10 * max_concurrency + 1000
        #: And the bytes that these, and frames that have begun, may hold over all connections.
        self.budget = Budget(max_held_bytes)
        self.dispatcher = Dispatcher(tasks, max_concurrency)
        self.connections: set[ServedConnection] = set()
        self.draining = False
        self.stopped = False
        #: When the last event came, on :func:`time.monotonic`.
        self.last_event = 0.0

    @property
    def unanswered(self) -> int:
        """Events under way, on all connections."""
        return sum(connection.unanswered for connection in self.connections)

    def client(self) -> "ServedConnection":
        """The server's end of a new connection."""
        return (V2Connection if self.framing is Framing.V2 else EnvelopeConnection)(self)

    def drain(self) -> None:
        """Tell the clients that it's time to go elsewhere, and take no more events of those that don't listen."""
        self.draining = True
        for connection in list(self.connections):
            connection.report_health()
            connection.close_if_drained()


class ServedConnection:
    """A connection, without what sets the framings apart.

    Each event is answered once, whatever becomes of its hook, and of those that have no call id, those with the same
    correlation id in the order they came: the client takes an answer for that of the oldest call with that id. An
    answer without any id is taken for that of the oldest call of all, and is held until it is that.

    While the agent drains, a client that names its calls goes elsewhere with new requests. What it still sends belongs
    to requests that it has begun, or was sent before it was told: that is answered. Other clients send on. Their events
    are refused, and their connections closed as soon as they are owed no answer.
    """

    framing: Framing
    # Whether the client has sent events without call ids.
    _unnamed = False
    _told_of_malformed = False

    def __init__(self, service: Service) -> None:
        self.waiting: deque[ServedCall] = deque()
        self.stalled = False
        self.owed = 0
        self.unanswered = 0
        self._service = service
        self._dispatcher = service.dispatcher
        self._reader = FrameReader(self.framing)
        self._intake = Intake(service.budget, self._reader, service.hooks.name, self._fail)
        # Of the frame that is being dealt with.
        self._frame_bytes = 0
        self._wire: Wire
        self._batch: list[bytes] | None = None
        self._batch_bytes = 0
        # Unanswered calls in the order they came, by correlation id, and those that have no call id.
        self._lines: dict[str, dict[ServedCall, None]] = {}
        self._ordered: dict[ServedCall, None] = {}
        self._deaf = False
        self._lost = False

    # What the wire calls

    def connected(self, wire: Wire) -> None:
        self._wire = wire
        self._intake.start(wire)
        if self._service.stopped:
            wire.abort()
            return
        self._service.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._begin_batch()
        try:
            for frame in self._reader.feed(data):
                self._frame_bytes = len(frame) + len(self._reader.data or b"")
                self._received(frame)
                if self._deaf:
                    break
        except AgentProtocolError as exc:
            self._fail(str(exc))
        finally:
            self._end_batch()
        self._intake.noted()
        self.close_if_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = self._lost = True
        self._intake.close()
        self._service.connections.discard(self)
        self.waiting.clear()
        for line in self._lines.values():
            for call in line:
                call.cancel()
        self._lines.clear()
        self._ordered.clear()
        self.unanswered = 0

    # What the service calls

    def report_health(self) -> None:
        """Say whether the agent is draining, where the framing has words for it."""

    def close_if_drained(self) -> None:
        """While the agent drains, close the connection of a client that sends on, once it is owed no answer."""
        if self._service.draining and self._unnamed and not self.unanswered and self._batch is None and not self._deaf:
            self.close()

    def close(self) -> None:
        """Close once all answers so far are sent."""
        self._deaf = True
        self._wire.close()

    def abort(self) -> None:
        """Close at once."""
        self._deaf = True
        self._wire.abort()

    async def wait_closed(self) -> None:
        """Wait until nothing of it is left."""
        await self._wire.wait_closed()

    # What the framings define

    def _received(self, frame: bytes) -> None:
        raise NotImplementedError

    def _encode(self, shaped: Shaped, call: ServedCall) -> bytes:
        raise NotImplementedError

    # What the dispatcher calls

    def refusal(self, call: ServedCall, reason: str, error: str) -> bytes:
        return self._spell_or_fail(shape_refusal(call.event_type, reason, error), call)

    def cancellation(self, call: ServedCall) -> bytes:
        return self._spell_or_fail(_CANCELLED, call)

    async def perform(self, call: ServedCall) -> bytes:
        assert call.event is not None
        caller = {"traceparent": [call.ids.traceparent]} if call.ids.traceparent else {}
        try:
            return await self._service.hooks.answer(call.event, lambda answer: self._spell(answer, call), caller)
        except NoAnswer as exc:
            return self.refusal(call, str(exc), type(exc.__cause__).__name__)

    def settle(self, call: ServedCall, answer: bytes) -> None:
        call.answer = answer
        if self._lost:
            return
        if call.ordered:
            # Until its turn comes the answer is held in place of the event.
            call.event = None
            self._intake.add(len(answer) + EVENT_BYTES - call.size)
            call.size = len(answer) + EVENT_BYTES
            self._send_due(call.ids.correlation_id)
            if call.ids.correlation_id and "" in self._lines:
                self._send_due("")
        else:
            self._forget(call)
            self._send(answer)
        self.close_if_drained()

    # Events

    def _heard(self, ids: CallIds, event: Event) -> None:
        suspends = self._service.hooks.may_suspend(event.event_type)
        call = ServedCall(self, ids, event.event_type, event, suspends)
        if call.ordered:
            self._unnamed = True
            if self._service.draining:
                self._refuse(call, _DRAINING)
                return
        self._service.last_event = time.monotonic()
        if isinstance(event, BodyChunkEvent) and len(event.data) > self._service.max_body_size:
            self._refuse(call, f"the body is larger than max_body_size, {self._service.max_body_size} bytes")
        elif self._intake.refusing:
            self._refuse(call, _BUSY)
        else:
            self._admit(call)

    def _malformed(self, ids: CallIds, event_type: EventType | None, exc: AgentProtocolError) -> None:
        if not self._told_of_malformed:
            # A client that sends thousands of them does not fill the log.
            self._told_of_malformed = True
            name = "event" if event_type is None else event_type.value
            logger.warning(
                "%s: %s: malformed: %.300r (logged once a connection)", self._service.hooks.name, name, str(exc)
            )
        self._refuse(ServedCall(self, ids, event_type, None, False), _MALFORMED)

    def _refuse(self, call: ServedCall, reason: str) -> None:
        call.suspends = False
        call.event = None
        call.refusal = self.refusal(call, reason, reason)
        self._admit(call)

    def _admit(self, call: ServedCall) -> None:
        """Answer it where nothing has to be waited for, else let it wait."""
        ids = call.ids
        # A refusal waits for no hook, nor for those that wait.
        if self.stalled or (call.refusal is None and (call.suspends or self.waiting)):
            if self._file(call):
                self._dispatcher.queue(call)
            return
        answer = self._dispatcher.at_once(call)
        if not call.ordered or (ids.correlation_id not in self._lines and (ids.correlation_id or not self._ordered)):
            self._send(answer)
        elif self._file(call):
            self.settle(call, answer)

    def _file(self, call: ServedCall) -> bool:
        """Keep account of a call that isn't answered at once."""
        self._lines.setdefault(call.ids.correlation_id, {})[call] = None
        if call.ordered:
            self._ordered[call] = None
        self.unanswered += 1
        if call.refusal is not None:
            call.size = EVENT_BYTES + len(call.refusal)
        elif isinstance(call.event, BodyChunkEvent | WebSocketFrameEvent) or (
            self._frame_bytes <= _SHORT and self._intake.held <= SMALL_BYTES
        ):
            call.size = EVENT_BYTES + self._frame_bytes
        else:
            # Many short texts take much more memory than what they are spelt in.
            call.size = EVENT_BYTES + max(self._frame_bytes, weigh(call.event, self._service.budget.limit))
        self._intake.add(call.size)
        if self.unanswered > self._service.max_unanswered:
            self._fail(f"more than {self._service.max_unanswered} of its events are unanswered")
            return False
        return True

    def _forget(self, call: ServedCall) -> None:
        line = self._lines[call.ids.correlation_id]
        del line[call]
        if not line:
            del self._lines[call.ids.correlation_id]
        self._ordered.pop(call, None)
        self.unanswered -= 1
        self._intake.add(-call.size)

    def _send_due(self, correlation_id: str) -> None:
        """Send the answers of a line whose turn has come."""
        due: list[ServedCall] = []
        for call in self._lines[correlation_id]:
            if not call.ordered:
                continue
            if call.answer is None:
                break
            due.append(call)
        for call in due:
            if not correlation_id and next(iter(self._ordered)) is not call:
                break
            assert call.answer is not None
            self._forget(call)
            self._send(call.answer)

    def _give_up(self, call: ServedCall) -> None:
        if call.at_work:
            call.cancel()
        elif call.answer is None:
            self.waiting.remove(call)
            self.settle(call, self.cancellation(call))

    # Bytes

    def _spell(self, answer: Answer, call: ServedCall) -> bytes:
        return self._encode(shape(answer, call.event_type, named=not call.ordered), call)

    def _spell_or_fail(self, shaped: Shaped, call: ServedCall) -> bytes:
        try:
            return self._encode(shaped, call)
        except AgentError as exc:
            # By ids that can't be sent back, or are too long for that; without an answer, client and agent would go out
            # of step.
            self._fail(str(exc))
            return b""

    def _send(self, frame: bytes) -> None:
        if self._batch is None:
            self._write(frame)
            return
        self._batch.append(frame)
        self._batch_bytes += len(frame)
        if self._batch_bytes > _BATCH_BYTES:
            self._end_batch()
            self._begin_batch()

    def _begin_batch(self) -> None:
        self._batch = []
        self._batch_bytes = 0

    def _end_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch:
            self._write(b"".join(batch))

    def _write(self, data: bytes) -> None:
        self._wire.write(data)
        if self._deaf or not (self.stalled or self._wire.congested):
            return
        self._intake.add_unread(len(data))
        if not self.stalled:
            self.stalled = True
            self._dispatcher.spawn(self._resume_when_drained)

    async def _resume_when_drained(self) -> None:
        with move_on_after(held.READ_TIMEOUT) as scope:
            await self._wire.drain()
        if self._lost:
            return
        if scope.cancelled_caught:
            self._fail(f"it has not read its answers within {held.READ_TIMEOUT:g} s")
            return
        self._intake.caught_up()
        self.stalled = False
        self._begin_batch()
        try:
            self._resumed()
            self._dispatcher.resume(self)
        finally:
            self._end_batch()
        self.close_if_drained()

    def _resumed(self) -> None:
        """The client reads again."""

    def _fail(self, fault: str) -> None:
        """Close a connection that can't go on."""
        if not self._deaf:
            logger.warning("%s: closed a connection: %.300r", self._service.hooks.name, fault)
            self.abort()


class V2Connection(ServedConnection):
    """A connection in version 2 framing."""

    framing = Framing.V2

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        # Known once the client has introduced itself.
        self._encoding: Encoding | None = None
        self._introduced = anyio.Event()
        self._unsent_pong: bytes | None = None
        self._reader.max_bytes = MAX_HANDSHAKE_REQUEST_BYTES

    def connected(self, wire: Wire) -> None:
        super().connected(wire)
        if not self._service.stopped:
            self._dispatcher.spawn(self._expect_handshake)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._introduced.set()

    def report_health(self) -> None:
        if self._encoding is None or self._deaf:
            return
        service = self._service
        status = HealthStatus(
            state=HealthState.DRAINING if service.draining else HealthState.HEALTHY,
            agent_id=service.capabilities.agent_id,
            timestamp_ms=now_ms(),
        )
        self._send(encode_message(MessageType.HEALTH_STATUS, status, self._encoding))

    async def _expect_handshake(self) -> None:
        with move_on_after(HANDSHAKE_TIMEOUT):
            await self._introduced.wait()
        if not self._introduced.is_set():
            self._fail(f"no handshake within {HANDSHAKE_TIMEOUT:g} s")
            # Also one that was refused, and that doesn't read why.
            self._wire.abort()

    def _received(self, frame: bytes) -> None:
        # Without copying what can be long.
        message_type, payload = frame[0], memoryview(frame)[1:]
        encoding = self._encoding
        if encoding is None:
            if message_type != MessageType.HANDSHAKE_REQUEST:
                raise AgentProtocolError(f"expected a handshake, got a message of type {message_type:#04x}")
            self._handshake(bytes(payload))
            return
        event_type = EVENT_OF_MESSAGE.get(message_type)
        if event_type is not None:
            data = self._reader.take_data()
            ids = decode_payload_ids(payload, encoding)
            try:
                event = decode_payload(event_type, payload, encoding)
                if data is not None:
                    event = replace(event, data=data)
            except AgentProtocolError as exc:
                self._malformed(ids, event_type, exc)
            else:
                self._heard(ids, event)
        elif message_type == MessageType.PING:
            check_ping(payload)
            pong = encode_frame(MessageType.PONG, bytes(payload))
            if self.stalled:
                # One that doesn't read is owed no more than one.
                self._unsent_pong = pong
            else:
                self._send(pong)
        elif message_type == MessageType.CANCEL:
            self._cancel(decode_message(Cancel, bytes(payload), encoding))

    def _handshake(self, payload: bytes) -> None:
        try:
            request: HandshakeRequest = decode_value(HandshakeRequest, payload, Encoding.JSON)
        except AgentProtocolError as exc:
            self._turn_away(f"not a handshake: {exc}")
            return
        if PROTOCOL_VERSION not in request.supported_versions:
            self._turn_away(f"version {PROTOCOL_VERSION} is supported, and none of {list(request.supported_versions)}")
            return
        known = [Encoding(name) for name in request.supported_encodings if name in _KNOWN_ENCODINGS]
        self._encoding = known[0] if known else Encoding.JSON
        self._reader.max_bytes = self.framing.max_bytes
        self._reader.extracts = self._encoding is Encoding.JSON
        self._introduced.set()
        response = HandshakeResponse(
            protocol_version=PROTOCOL_VERSION,
            success=True,
            encoding=self._encoding,
            capabilities=self._service.capabilities,
        )
        self._send(encode_message(MessageType.HANDSHAKE_RESPONSE, response))
        self.report_health()

    def _turn_away(self, error: str) -> None:
        response = HandshakeResponse(protocol_version=PROTOCOL_VERSION, success=False, error=error[:300])
        logger.warning("%s: closed a connection: %.300r", self._service.hooks.name, error)
        self._wire.write(encode_message(MessageType.HANDSHAKE_RESPONSE, response))
        self.close()

    def _cancel(self, cancel: Cancel) -> None:
        for call in list(self._lines.get(cancel.correlation_id, ())):
            if cancel.call_id is UNSET or cancel.call_id == call.ids.call_id:
                self._give_up(call)

    def _resumed(self) -> None:
        if self._unsent_pong is not None:
            self._send(self._unsent_pong)
            self._unsent_pong = None

    def _encode(self, shaped: Shaped, call: ServedCall) -> bytes:
        assert self._encoding is not None
        return encode_answer_frame(shaped.answer, self._encoding, call.ids, fields=shaped.fields)


class EnvelopeConnection(ServedConnection):
    """A connection in the older framing: no ids, so that all answers go out in the order of their events."""

    framing = Framing.ENVELOPE
    _unnamed = True

    def _received(self, frame: bytes) -> None:
        try:
            event = decode_event(frame, Encoding.JSON)
        except AgentProtocolError as exc:
            self._malformed(CallIds(), None, exc)
        else:
            traceparent = event.metadata.traceparent if isinstance(event, RequestHeadersEvent) else None
            self._heard(CallIds(traceparent=traceparent or ""), event)

    def _encode(self, shaped: Shaped, call: ServedCall) -> bytes:
        answer, fields = shaped
        if fields and isinstance(answer, AgentResponse):
            return encode_envelope_frame(encode_value(answer_with(answer, fields, {}), Encoding.JSON, "answer"))
        return encode_envelope_frame(encode_answer(answer, Encoding.JSON))
