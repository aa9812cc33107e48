"""One connection to an agent: the handshake, calls under way, and what the agent says of its own accord."""

import asyncio
import math
import time
from typing import Final, Protocol

import anyio
from anyio.lowlevel import checkpoint
from msgspec import UNSET, structs

from ..._version import __version__
from ...concurrency.background import Signal, Timer, asyncio_loop
from ...errors import (
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    AgentTimeoutError,
    AgentUnavailableError,
    EventTooLargeError,
)
from ...observability.trace_context import current_traceparent
from ...protocol import (
    ALLOW,
    PROTOCOL_VERSION,
    AgentResponse,
    Answer,
    Encoding,
    Event,
    EventType,
    GuardrailInspectEvent,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    SpanUnit,
    decode_answer,
    encode_event,
    in_code_points,
)
from ...protocol.codec import decode_value
from ...protocol.stream import (
    ANSWER_IDS,
    MAX_HANDSHAKE_REQUEST_BYTES,
    MAX_HANDSHAKE_RESPONSE_BYTES,
    AgentCapabilities,
    CallIds,
    Cancel,
    CancelReason,
    FlowAction,
    FlowControl,
    FrameReader,
    Framing,
    HandshakeRequest,
    HandshakeResponse,
    HealthState,
    HealthStatus,
    MessageType,
    Ping,
    check_ping,
    correlation_id_of,
    decode_answer_ids,
    decode_message,
    encode_envelope_frame,
    encode_event_frame,
    encode_frame,
    encode_message,
    now_ms,
    plain_allow,
)
from ..base import cancel_reason
from ..partial import FrameDeadline, PartialFrames
from ..wire import Wire
from .pending_calls import PendingCall, PendingCalls

# An agent that is degraded may ask for more time, but not for any amount of it.
_MAX_TIMEOUT_MULTIPLIER: Final = 10.0
# How much one call counts in a connection's score.
_SCORE_WEIGHT: Final = 0.1
_GOOD_SCORE: Final = 0.99
#: Bytes of frames that have begun to come, over all connections to an agent on one event loop.
MAX_PARTIAL_BYTES: Final = 64 * 1024 * 1024
# An event loop needs two or three to read what a socket holds.
_MAX_TURNS: Final = 20
_UNASKED: Final = "an answer to no call"
# To look a member of an enumeration up by its name takes long (CPython 3.11).
_AGENT_RESPONSE: Final = int(MessageType.AGENT_RESPONSE)
_TAKES_CALLS: Final = (HealthState.HEALTHY, HealthState.DEGRADED)
_BODY_CHUNKS: Final = (RequestBodyChunkEvent, ResponseBodyChunkEvent)
#: For whoever takes the one framing for the other.
ENVELOPE_HINT: Final = "an agent of the older kits needs framing='envelope'"


class Owner(Protocol):
    """Who has a connection, and is told what becomes of it. Called on the event loop; must not raise."""

    def capacity_freed(self, connection: "AgentConnection") -> None:
        """It may be able to take another call."""
        ...

    def health_changed(self, connection: "AgentConnection", status: HealthStatus) -> None:
        """The agent has said how it is."""
        ...

    def rated(self, connection: "AgentConnection", *, answered: bool) -> None:
        """A call was answered, or it failed by the agent's fault. Answers are only told of while it is ``watched``."""
        ...

    def keeps(self, connection: "AgentConnection", correlation_id: str) -> bool:
        """Whether the events of that request come here."""
        ...

    def hears(self, event_type: EventType) -> bool:
        """Whether the agent is to be asked about such events, on this connection or on another."""
        ...

    def lost(self, connection: "AgentConnection", failed: int) -> None:
        """It takes no more calls; those under way, so many that somebody waited for, have failed."""
        ...

    def message_received(
        self, connection: "AgentConnection", message_type: MessageType, payload: bytes, encoding: Encoding
    ) -> None:
        """A message that is not about this connection."""
        ...


class Capacity:
    """How many calls an instance of the agent takes at a time, whichever connection they come on."""

    __slots__ = ("limit", "taken")

    def __init__(self) -> None:
        self.limit = math.inf
        self.taken = 0


class AgentConnection:
    """Carries many calls at a time, all events of a request among them.

    A :class:`~asgi_agents.transports.wire.Receiver`. Whoever wants to call takes a place first, with :meth:`reserve`,
    and either uses it in :meth:`call` or gives it back.

    A peer with the feature ``call_ids`` names the call in its answer. An answer of any other peer is matched by its
    correlation id, or by order. One that nobody asked for could then be taken for the answer to the next event:

    - An answer that matches no call fails the connection. So does one that had begun to arrive before the event of the
      call that it matches was sent. What the socket holds is read before an event is sent on an idle connection. An
      answer that begins to arrive later, unasked for, can't be told from the answer to that event.
    - Agents that don't know guardrail events may never answer one. The ``correlation_id`` of such an event on the wire
      is ``<correlation id>/inspect-<n>``, with an ``n`` that no other has, so that the answer it is still owed is not
      matched with the next answer about the same request.

    :param encodings: what to offer in the handshake, best first; in the older framing the first is spoken.
    :param capacity: shared by all connections to the same instance.
    :param max_calls: how many calls may be under way, those included that were given up and are still owed an answer.
    :param partial: what all connections to the agent hold of frames that have begun to come.
    :param span_unit: what the agent counts in the spans of its detections.
    """

    def __init__(
        self,
        framing: Framing,
        encodings: tuple[Encoding, ...],
        owner: Owner,
        capacity: Capacity,
        *,
        max_calls: int,
        address: str = "",
        partial: PartialFrames | None = None,
        span_unit: SpanUnit = "codepoints",
    ) -> None:
        self.capabilities: AgentCapabilities | None = None
        #: What it is asked about: what its handshake names, or the configuration in its place.
        self.events = frozenset(EventType)
        #: Where it leads.
        self.address = address
        self.alive = False
        #: Takes no new requests, because the agent has forgotten to answer.
        self.retired = False
        self.health = HealthState.HEALTHY
        self.timeout_multiplier = 1.0
        self.paused = False
        #: Whether an answer is news to the owner.
        self.watched = True
        #: Requests whose events have to come here.
        self.requests = 0
        #: Share of the latest calls that were answered in time, 0 to 1.
        self.score = 1.0
        self.late_answers = 0
        self.unmatched_answers = 0
        #: Why it was lost.
        self.fault = ""
        #: Whether the configuration is too long for the handshake.
        self.needs_configure = False
        self._framing = framing
        self._enveloped = framing is Framing.ENVELOPE
        self._owner = owner
        self._capacity = capacity
        self._max_calls = max_calls
        self._span_unit = span_unit
        self._encodings = encodings
        self._encoding = encodings[0]
        self._wire: Wire | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader = FrameReader(framing, None if self._enveloped else MAX_HANDSHAKE_RESPONSE_BYTES)
        self._deadline = FrameDeadline(self._reader, self.fail)
        self._partial = PartialFrames(MAX_PARTIAL_BYTES) if partial is None else partial
        self._holds_partial = False
        # The position of the first call that was sent after the frame that is now arriving had begun.
        self._too_late_for: int | None = None
        self._pending_calls = PendingCalls()
        self._reserved = 0
        self._paused_ids: set[str] = set()
        self._window: int | None = None
        self._unanswered_bytes = 0
        self._call_ids = False
        self._knows_plain_allows = False
        self._cancellation = False
        self._greeted = anyio.Event()
        self._heard_at = time.monotonic()
        self._shutting_down = False
        self._timer = Timer(self._expire)
        self._timer_at = math.inf
        #: Whether anything but the number of calls can stand in the way of another.
        self.flow_limited = False
        self._pings = 0
        self._pinged_at: float | None = None

    # Beginning and end

    async def shake_hands(self, wire: Wire, *, proxy_id: str, config: object) -> None:
        """Start using ``wire``, whose receiver this is. In the older framing nothing is said.

        :raises AgentConnectionError: the peer refuses, or is no agent.
        """
        self._wire = wire
        self._loop = asyncio_loop()
        if self._framing is Framing.V2:
            request = HandshakeRequest(
                supported_versions=[PROTOCOL_VERSION],
                proxy_id=proxy_id,
                proxy_version=__version__,
                config=config,
                supported_encodings=self._encodings,
            )
            message = encode_message(MessageType.HANDSHAKE_REQUEST, request)
            if len(message) > MAX_HANDSHAKE_REQUEST_BYTES:
                # The agent gets it in a configure event.
                self.needs_configure = True
                request.config = None
                message = encode_message(MessageType.HANDSHAKE_REQUEST, request)
            wire.write(message)
            await self._greeted.wait()
        if self.fault:
            raise AgentConnectionError(self.fault)
        self.alive = True

    def _accept(self, greeting: bytes) -> None:
        response: HandshakeResponse = decode_value(HandshakeResponse, greeting, Encoding.JSON, at="handshake")
        if not response.success:
            raise AgentProtocolError(f"refused the handshake: {response.error or 'no reason given'}")
        if response.protocol_version != PROTOCOL_VERSION:
            raise AgentProtocolError(
                f"speaks version {response.protocol_version} of the protocol, expected {PROTOCOL_VERSION}"
            )
        if response.encoding not in self._encodings:
            offered = " or ".join(self._encodings)
            raise AgentProtocolError(f"chose the encoding {response.encoding!r:.40}, expected {offered}")
        if response.capabilities is None:
            raise AgentProtocolError("says nothing of its capabilities in the handshake")
        self._encoding = Encoding(response.encoding)
        self.capabilities = response.capabilities
        self.events = response.capabilities.events
        features, limits = response.capabilities.features, response.capabilities.limits
        self._call_ids = features.call_ids
        self._knows_plain_allows = self._call_ids and self._encoding is Encoding.JSON
        self._cancellation = features.cancellation
        if features.concurrent_requests > 0:
            self._max_calls = min(self._max_calls, features.concurrent_requests)
        self._capacity.limit = limits.max_concurrency if limits.max_concurrency > 0 else math.inf
        self._reader.max_bytes = self._framing.max_bytes
        self._greeted.set()

    def fail(self, fault: str) -> None:
        """Take no more calls, fail those under way, and close at once."""
        if not self.fault:
            self.fault = fault
        if self._wire is not None:
            self._wire.abort()
        self._end()

    def cancel_all(self, reason: CancelReason) -> None:
        """Tell the agent that nobody waits for any of the calls under way, and fail them."""
        self._shutting_down = True
        for call in self._clear():
            self._announce_cancellation(call, reason)
            self._fail_call(call, "its connections are being closed")

    def close(self, why: str) -> None:
        """Close once all that was written is sent, if the peer reads at all."""
        self.fault = self.fault or why
        if self._wire is not None:
            if self._wire.congested:
                self._wire.abort()
            else:
                self._wire.close()
        self._end()

    @property
    def closed(self) -> bool:
        """Whether nothing of it is left."""
        return self._wire is None or self._wire.closed

    async def wait_closed(self) -> None:
        """Wait until nothing of it is left."""
        if self._wire is not None:
            await self._wire.wait_closed()

    def _end(self) -> None:
        was_alive, self.alive = self.alive, False
        self._timer.disarm()
        self._deadline.close()
        self._partial.note(self, 0)
        self._greeted.set()
        failed = self._clear()
        for call in failed:
            self._fail_call(call, self.fault)
        if was_alive:
            self._owner.lost(self, len(failed))

    def _clear(self) -> list[PendingCall]:
        self._capacity.taken -= len(self._pending_calls)
        return self._pending_calls.clear()

    @staticmethod
    def _fail_call(call: PendingCall, fault: str) -> None:
        call.fault = fault
        call.answered.set()

    # Calls

    @property
    def in_rotation(self) -> bool:
        """Whether it takes events of requests that are new to it."""
        return self.alive and not self.retired and self.health in _TAKES_CALLS

    @property
    def calls(self) -> int:
        """Calls under way and places taken."""
        return len(self._pending_calls) + self._reserved

    @property
    def waited_for(self) -> int:
        """Calls and places that somebody waits for."""
        return self._pending_calls.waited_for + self._reserved

    def has_room(self, correlation_id: str) -> bool:
        """Whether another call may begin now."""
        if (
            not self.alive
            or len(self._pending_calls) + self._reserved >= self._max_calls
            or self._capacity.taken >= self._capacity.limit
        ):
            return False
        return not self.flow_limited or not (
            self.paused
            or (self._window is not None and (self._reserved > 0 or self._unanswered_bytes >= self._window))
            or correlation_id in self._paused_ids
        )

    def is_paused(self, correlation_id: str) -> bool:
        """Whether the agent has asked to be sent nothing, or nothing about this."""
        return self.paused or self._window == 0 or correlation_id in self._paused_ids

    def reserve(self) -> None:
        """Take a place."""
        self._reserved += 1
        self._capacity.taken += 1

    def give_back(self) -> None:
        """Give a place back that was not used."""
        self._reserved -= 1
        self._capacity.taken -= 1
        self._owner.capacity_freed(self)

    async def call(self, event: Event, deadline: float = math.inf) -> Answer:
        """Send ``event`` and return the agent's answer. Uses up a place.

        :param deadline: on :func:`time.monotonic`.
        :raises AgentConnectionError: the connection was lost before the answer came.
        :raises AgentProtocolError: the answer is not what the protocol allows.
        :raises AgentTimeoutError: the deadline has passed.
        :raises AgentUnavailableError: the agent is to be asked about such events, but not on this connection.
        :raises EventTooLargeError: the agent can't be shown that much at a time.
        """
        if event.event_type not in self.events:
            self.give_back()
            if self._owner.hears(event.event_type):
                # Nothing was sent, so it is no failure of the agent's; nor is it a verdict.
                raise AgentUnavailableError(f"no instance that supports {event.event_type} can be asked")
            # No instance supports it, and nobody has configured it: the request began before the agent had said so.
            return ALLOW
        try:
            call, frame = self._prepare(event, deadline)
            assert self._wire is not None
            if self._wire.congested:
                await self._drain(self._wire, deadline)
            if not (self._call_ids or self._pending_calls) and (self._wire.turns_behind or self._wire.unread):
                await self._read_first(self._wire)
            if not self.alive:
                raise self._lost(self.fault)
        except BaseException:
            self.give_back()
            raise
        # From here on the line counts it.
        self._reserved -= 1
        self._pending_calls.add(call)
        if self._too_late_for is None and not self._call_ids and self._reader.pending:
            self._too_late_for = call.position
        self._unanswered_bytes += call.size
        if deadline < self._timer_at:
            self._set_timer(deadline)
        self._wire.write(frame)
        if self._window is not None:
            # Only now it is known how much of it is left.
            self._owner.capacity_freed(self)
        try:
            await call.answered
        except BaseException:
            if not call.answered.is_set:
                why = cancel_reason.get()
                self._give_up(call, CancelReason.CLIENT_DISCONNECT if why is None else why())
            raise
        if call.expired:
            raise AgentTimeoutError("no answer")
        if call.fault is not None:
            raise self._lost(call.fault)
        if call.payload is None:
            if self.watched or self.score < 1.0:
                self._rate(answered=True)
            return ALLOW
        try:
            answer = decode_answer(call.payload, self._encoding, event.event_type, without=ANSWER_IDS)
            if isinstance(answer, AgentResponse) and answer.version == 0:
                # There is no such version, and so no verdict, whatever the decision.
                raise AgentError("; ".join(answer.audit.reason_codes) or "the agent failed")
            answer = in_code_points(answer, event, self._span_unit)
        except AgentError:
            self._rate(answered=False)
            raise
        if self.watched or self.score < 1.0:
            self._rate(answered=True)
        return answer

    def _lost(self, fault: str) -> AgentError:
        # Nobody's fault where it was ourselves who closed it.
        return AgentUnavailableError(fault) if self._shutting_down else AgentConnectionError(fault)

    @staticmethod
    async def _drain(wire: Wire, deadline: float) -> None:
        with anyio.CancelScope(deadline=anyio.current_time() + deadline - time.monotonic()):
            await wire.drain()
            return
        raise AgentTimeoutError("not sent, for the agent does not read")

    async def _read_first(self, wire: Wire) -> None:
        """Let the event loop read what has come before anything is sent: it may be what nobody has asked for."""
        quiet = 0
        for _ in range(_MAX_TURNS):
            await checkpoint()
            quiet = 0 if wire.unread else quiet + 1
            if quiet > wire.turns_behind or self._pending_calls or not self.alive:
                return
        self.fail("it sends more than can be read")

    def _expire(self) -> None:
        """The timer has fired: give up the calls whose deadline has passed."""
        expired, first = self._pending_calls.expire(time.monotonic())
        for call in expired:
            call.expired = True
            self._announce_cancellation(call, CancelReason.TIMEOUT)
            self._rate(answered=False)
            call.answered.set()
        self._timer_at = math.inf
        if first is not None:
            self._set_timer(first)

    def _set_timer(self, deadline: float) -> None:
        # One timer for all calls: it is set anew once a timeout, not once a call.
        if deadline < math.inf:
            self._timer_at = deadline
            self._timer.arm(max(0.001, deadline - time.monotonic()))

    def _prepare(self, event: Event, deadline: float) -> tuple[PendingCall, bytes]:
        if isinstance(event, _BODY_CHUNKS) and self.capabilities is not None:
            limit = self.capabilities.limits.max_body_size
            if len(event.data) > limit > 0:
                raise EventTooLargeError(f"{len(event.data)} bytes at a time, the agent takes {limit}")
        call = PendingCall(correlation_id_of(event), deadline, Signal(self._loop))
        if self._enveloped:
            frame = encode_envelope_frame(encode_event(event, self._encoding))
        else:
            if isinstance(event, GuardrailInspectEvent) and not self._call_ids:
                event = structs.replace(event, correlation_id=f"{event.correlation_id}/inspect-{call.number}")
                call.correlation_id = event.correlation_id
            # An event about no connection gets an id all the same, to tell its answer by.
            ids = CallIds(
                call.correlation_id or f"{event.event_type.value}-{call.number}",
                call.number if self._call_ids else UNSET,
            )
            call.correlation_id = ids.correlation_id
            if self._knows_plain_allows:
                call.plain = plain_allow(call.correlation_id, call.number)
            # The head of a request carries it by itself.
            traced = self._call_ids and not isinstance(event, RequestHeadersEvent)
            frame = encode_event_frame(event, self._encoding, ids, current_traceparent() if traced else None)
        call.size = len(frame)
        return call, frame

    def _give_up(self, call: PendingCall, reason: CancelReason) -> None:
        self._pending_calls.abandon(call)
        self._announce_cancellation(call, reason)

    def _announce_cancellation(self, call: PendingCall, reason: CancelReason) -> None:
        if self._cancellation and self._wire is not None:
            cancel = Cancel(
                correlation_id=call.correlation_id,
                reason=reason,
                timestamp_ms=now_ms(),
                call_id=call.number if self._call_ids else UNSET,
            )
            # In JSON, whatever the encoding: other hosts know it in no other.
            self._wire.write(encode_message(MessageType.CANCEL, cancel))

    def _rate(self, *, answered: bool) -> None:
        self.score += _SCORE_WEIGHT * ((1.0 if answered else 0.0) - self.score)
        if self.score > _GOOD_SCORE:
            self.score = 1.0
        self._owner.rated(self, answered=answered)

    # What comes

    def data_received(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        try:
            for frame in self._reader.feed(data):
                if self.fault:
                    break
                too_late_for, self._too_late_for = self._too_late_for, None
                call = self._pending_calls.match_plain(frame)
                if call is not None:
                    self._settle(call, None)
                elif self._enveloped:
                    self._answer_received(CallIds(), frame, too_late_for)
                else:
                    self._message_received(frame[0], frame[1:], too_late_for)
            if self._enveloped and self._reader.pending and not self._pending_calls:
                raise AgentProtocolError(_UNASKED)
        except AgentProtocolError as exc:
            self.fail(str(exc))
        if (self._reader.pending or self._holds_partial) and not self.fault:
            self._note_partial()

    def _note_partial(self) -> None:
        """A frame has begun to come, goes on coming, or has come whole."""
        self._holds_partial = self._reader.pending
        if self._reader.pending:
            self._deadline.note()
        self._partial.note(self, self._reader.held)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.fault:
            reason = "closed the connection" if exc is None else f"the connection broke: {type(exc).__name__}"
            if self._framing is Framing.V2 and not self._greeted.is_set():
                reason += f" during the handshake; {ENVELOPE_HINT}"
            self.fault = reason
        self._end()

    def _message_received(self, message_type: int, payload: bytes, too_late_for: int | None) -> None:
        if message_type == _AGENT_RESPONSE and self.capabilities is not None:
            self._answer_received(decode_answer_ids(payload, self._encoding), payload, too_late_for)
        elif not self._greeted.is_set():
            if message_type != MessageType.HANDSHAKE_RESPONSE:
                fault = f"answered the handshake with a message of type {message_type:#04x}"
                # An envelope begins like this.
                raise AgentProtocolError(f"{fault}; {ENVELOPE_HINT}" if message_type == ord("{") else fault)
            self._accept(payload)
        elif message_type == MessageType.PING:
            self._answer_ping(payload)
        elif message_type == MessageType.HEALTH_STATUS:
            self._owner.health_changed(self, decode_message(HealthStatus, payload, self._encoding, at="health_status"))
        elif message_type == MessageType.FLOW_CONTROL:
            self._control_flow(decode_message(FlowControl, payload, self._encoding, at="flow_control"))
        elif message_type in (MessageType.METRICS_REPORT, MessageType.CONFIG_UPDATE_REQUEST):
            self._owner.message_received(self, MessageType(message_type), payload, self._encoding)
        # A pong says by coming that the peer is there; types that nobody knows are from the future.

    def _answer_ping(self, payload: bytes) -> None:
        assert self._wire is not None
        check_ping(payload)
        if not self._wire.congested:
            # A peer that asks and doesn't listen must not fill our memory with answers.
            self._wire.write(encode_frame(MessageType.PONG, payload))

    def _answer_received(self, ids: CallIds, payload: bytes, too_late_for: int | None) -> None:
        """An answer has come whole.

        ``too_late_for``: the position of the first call that was sent after the answer had begun to arrive.
        """
        if not self._call_ids and ids.call_id is not UNSET:
            # An entry of that name is the agent's own.
            ids = CallIds(ids.correlation_id)
        call = self._pending_calls.match(ids, before=too_late_for)
        if call is not None:
            self._settle(call, payload)
            return
        self.unmatched_answers += 1
        if not self._call_ids or ids == CallIds():
            # Whose it is can't be told; nor, then, whose the next one is.
            raise AgentProtocolError(_UNASKED)

    def _settle(self, call: PendingCall, payload: bytes | None) -> None:
        """The answer to ``call`` has come; ``payload`` is None for a plain allow."""
        self._unanswered_bytes -= call.size
        self._capacity.taken -= 1
        if call.abandoned:
            self.late_answers += 1
        else:
            call.payload = payload
            call.answered.set()
        self._owner.capacity_freed(self)

    def apply(self, status: HealthStatus) -> None:
        """Take over how the agent says it is; states from the future say nothing."""
        try:
            self.health = HealthState(status.state)
        except ValueError:
            return
        degraded = self.health is HealthState.DEGRADED
        multiplier = status.timeout_multiplier if degraded else 1.0
        self.timeout_multiplier = min(max(1.0, multiplier), _MAX_TIMEOUT_MULTIPLIER)

    def _control_flow(self, control: FlowControl) -> None:
        if control.action not in tuple(FlowAction):
            return
        if control.action == FlowAction.UPDATE_CAPACITY:
            self._window = None if control.buffer_available is None else max(0, control.buffer_available)
        elif control.correlation_id:
            if control.action != FlowAction.PAUSE:
                self._paused_ids.discard(control.correlation_id)
            elif self._owner.keeps(self, control.correlation_id):
                # Of any other there is nothing more to come, and nobody to forget it.
                self._paused_ids.add(control.correlation_id)
        else:
            self.paused = control.action == FlowAction.PAUSE
        self.flow_limited = self.paused or self._window is not None or bool(self._paused_ids)
        self._owner.capacity_freed(self)

    def forget(self, correlation_id: str) -> None:
        """A request whose events came here is over, or goes elsewhere."""
        self.requests -= 1
        self._paused_ids.discard(correlation_id)

    # Is it there?

    def check(self, stall_timeout: float) -> None:
        """Ping, and see whether the agent has answered.

        One that has owed something for ``stall_timeout`` seconds and said nothing else either is gone: the connection
        fails. One that goes on without having answered some call that was given up never will: the connection is
        retired, before what it owes takes all its room.
        """
        now = time.monotonic()
        if self._pinged_at is not None and self._heard_at > self._pinged_at:
            self._pinged_at = None
        oldest = self._pending_calls.oldest
        owed_since = now if oldest is None or not oldest.abandoned else oldest.sent_at
        silent_since = max(self._heard_at, min(owed_since, now if self._pinged_at is None else self._pinged_at))
        if now - silent_since >= stall_timeout:
            self.fail(f"nothing was heard of the agent for {stall_timeout:g} s")
        elif now - owed_since >= stall_timeout:
            self.retired = True
        if self.alive and self._framing is Framing.V2 and self._pinged_at is None:
            assert self._wire is not None
            self._pings += 1
            self._pinged_at = now
            ping = Ping(sequence=self._pings, timestamp_ms=now_ms())
            self._wire.write(encode_message(MessageType.PING, ping))
