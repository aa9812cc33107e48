"""One client of a served agent: its events, their answers, and what is written to it."""

import logging
from collections import deque
from typing import Final

from anyio import CancelScope, move_on_after
from anyio.abc import TaskGroup

from ..errors import AgentError, AgentProtocolError
from ..memory.weighing import weigh
from ..protocol import BodyChunkEvent, Event, EventType, WebSocketFrameEvent
from ..protocol.stream import AgentCapabilities, CallIds, FrameReader, Framing
from ..transports.wire import Wire
from . import held
from .dispatch import Dispatcher, ServedCall
from .held import EVENT_BYTES, MAX_HELD_BYTES, SMALL_BYTES, Budget, Intake
from .hooks import Hooks, NoAnswer
from .shapes import Shaped, no_verdict, shape, shape_refusal
from .unanswered import Unanswered

logger: Final = logging.getLogger("asgi_agents.serve")

# Answers that are ready together are sent together, up to this many bytes.
_BATCH_BYTES: Final = 64 * 1024

_CANCELLED: Final = no_verdict("cancelled")
_MALFORMED: Final = "the event is malformed"
_BUSY: Final = "too many events of the connection are unanswered"
# Events with frames of up to this length count as many bytes as the frame has, while their connection holds little.
_SHORT: Final = 16 * 1024
_DRAINING: Final = "the agent is shutting down"


class Service:
    """What the connections to one address share."""

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
        #: Events that a connection may have unanswered: many more than hooks that may be at work.
        self.max_unanswered = 10 * max_concurrency + 1000
        #: The bytes that unanswered events, and frames that have not come whole, may hold over all connections.
        self.budget = Budget(max_held_bytes)
        self.dispatcher = Dispatcher(tasks, max_concurrency)
        self.connections: set[ServedConnection] = set()
        self.draining = False
        self.stopped = False
        #: Connections, handshakes and events so far: who drains it sees whether anything has come.
        self.heard = 0

    @property
    def owes(self) -> bool:
        """Whether an event is under way on any connection: it has no answer, or more of its frame is to come."""
        return any(connection.unanswered or connection.intake.partial for connection in self.connections)

    def drain(self) -> None:
        """Tell the clients that the agent shuts down. Events of clients that can't be told are refused from now on."""
        self.draining = True
        for connection in list(self.connections):
            connection.report_health()
            connection.close_if_drained()

    async def stop(self) -> None:
        """End the connections, and take no more. It takes a moment, and is not cancelled."""
        self.stopped = True
        with CancelScope(shield=True):
            for connection in list(self.connections):
                connection.abort()
                await connection.wait_closed()


class ServedConnection:
    """A connection, in either framing.

    Each event is answered once, whatever becomes of its hook. Where the client does not name its calls, the answers are
    sent in the order by which it matches them: see :class:`Unanswered`.

    While the agent drains, a client that names its calls sends new requests elsewhere. What it still sends here belongs
    to requests that it has begun, or was sent before it knew: that is answered. Other clients don't know, and send on.
    Their events are refused, and their connections are closed as soon as no event is unanswered.
    """

    framing: Framing
    # Whether a client learns that the agent drains though it does not name its calls.
    _always_told = False
    # Whether the client has sent events without call ids.
    _unnamed = False
    _warned_of_malformed = False

    def __init__(self, service: Service) -> None:
        self.waiting: deque[ServedCall] = deque()
        self.stalled = False
        self.owed = 0
        self._service = service
        self._dispatcher = service.dispatcher
        self._reader = FrameReader(self.framing)
        #: What it holds.
        self.intake = Intake(service.budget, self._reader, service.hooks.name, self._fail)
        # Of the frame that was read last.
        self._frame_bytes = 0
        self._wire: Wire
        self._batch: list[bytes] | None = None
        self._batch_bytes = 0
        self._unanswered = Unanswered()
        self._deaf = False
        self._lost = False

    # What the wire calls

    def connected(self, wire: Wire) -> None:
        self._wire = wire
        self.intake.start(wire)
        if self._service.stopped:
            wire.abort()
            return
        self._service.connections.add(self)
        self._service.heard += 1

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
        self.intake.noted()
        self.close_if_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = self._lost = True
        self.intake.close()
        self._service.connections.discard(self)
        self.waiting.clear()
        for call in self._unanswered:
            call.cancel()
        self._unanswered.clear()

    # What the service calls

    @property
    def unanswered(self) -> int:
        """Events under way."""
        return len(self._unanswered)

    def report_health(self) -> None:
        """Tell the client whether the agent is draining, where the framing has a message for it."""

    def close_if_drained(self) -> None:
        """While the agent drains, close the connection of a client that can't be told, once all is answered."""
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
        return self._encode_or_fail(shape_refusal(call.event_type, reason, error), call)

    def cancellation(self, call: ServedCall) -> bytes:
        return self._encode_or_fail(_CANCELLED, call)

    async def perform(self, call: ServedCall) -> bytes:
        assert call.event is not None
        caller = {"traceparent": [call.ids.traceparent]} if call.ids.traceparent else {}
        try:
            return await self._service.hooks.answer(
                call.event,
                lambda answer: self._encode(shape(answer, call.event_type, named=not call.ordered), call),
                caller,
            )
        except NoAnswer as exc:
            return self.refusal(call, str(exc), type(exc.__cause__).__name__)

    def settle(self, call: ServedCall, answer: bytes) -> None:
        call.answer = answer
        if self._lost:
            return
        if call.ordered:
            # The answer is held instead of the event until it can be sent.
            call.event = None
            self.intake.add(len(answer) + EVENT_BYTES - call.size)
            call.size = len(answer) + EVENT_BYTES
            for due in self._unanswered.take_due(call):
                assert due.answer is not None
                self.intake.add(-due.size)
                self._send(due.answer)
        else:
            self._unanswered.remove(call)
            self.intake.add(-call.size)
            self._send(answer)
        self.close_if_drained()

    # Events

    def _heard(self, ids: CallIds, event: Event) -> None:
        suspends = self._service.hooks.may_suspend(event.event_type)
        call = ServedCall(self, ids, event.event_type, event, suspends)
        if call.ordered and not self._always_told:
            self._unnamed = True
            if self._service.draining:
                self._refuse(call, _DRAINING)
                return
        self._service.heard += 1
        if isinstance(event, BodyChunkEvent) and len(event.data) > self._service.max_body_size:
            self._refuse(call, f"the body is larger than max_body_size, {self._service.max_body_size} bytes")
        elif self.intake.refusing:
            self._refuse(call, _BUSY)
        else:
            self._admit(call)

    def _malformed(self, ids: CallIds, event_type: EventType | None, exc: AgentProtocolError) -> None:
        if not self._warned_of_malformed:
            # A client that sends thousands of them must not fill the log.
            self._warned_of_malformed = True
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
        """Answer the call at once if its hook needs not wait for anything, else queue it."""
        # A refusal runs no hook, and so doesn't wait for those of other calls.
        if self.stalled or (call.refusal is None and (call.suspends or self.waiting)):
            if self._file(call):
                self._dispatcher.queue(call)
            return
        answer = self._dispatcher.at_once(call)
        if not (call.ordered and self._unanswered.holds_up(call)):
            self._send(answer)
        elif self._file(call):
            self.settle(call, answer)

    def _file(self, call: ServedCall) -> bool:
        """Count a call that isn't answered at once; returns False where that closes the connection."""
        self._unanswered.add(call)
        if call.refusal is not None:
            call.size = EVENT_BYTES + len(call.refusal)
        elif isinstance(call.event, BodyChunkEvent | WebSocketFrameEvent) or (
            self._frame_bytes <= _SHORT and self.intake.held <= SMALL_BYTES
        ):
            call.size = EVENT_BYTES + self._frame_bytes
        else:
            # Many short texts take much more memory than their encoding.
            call.size = EVENT_BYTES + max(self._frame_bytes, weigh(call.event, self._service.budget.limit))
        self.intake.add(call.size)
        if len(self._unanswered) > self._service.max_unanswered:
            self._fail(f"more than {self._service.max_unanswered} of its events are unanswered")
            return False
        return True

    def _give_up(self, call: ServedCall) -> None:
        if call.at_work:
            call.cancel()
        elif call.answer is None:
            self.waiting.remove(call)
            self.settle(call, self.cancellation(call))

    # Bytes

    def _encode_or_fail(self, shaped: Shaped, call: ServedCall) -> bytes:
        try:
            return self._encode(shaped, call)
        except AgentError as exc:
            # Its ids can't be sent back, or are too long for that. An event without an answer would make the client
            # match all later answers with the wrong events.
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
        self.intake.add_unread(len(data))
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
        self.intake.caught_up()
        self.stalled = False
        self._begin_batch()
        try:
            self._resumed()
            self._dispatcher.resume(self)
        finally:
            self._end_batch()
        self.close_if_drained()

    def _resumed(self) -> None:
        """Called when the client has caught up with its answers."""

    def _fail(self, fault: str) -> None:
        """Close the connection because of a fault."""
        if not self._deaf:
            logger.warning("%s: closed a connection: %.300r", self._service.hooks.name, fault)
            self.abort()
