"""One connection to an agent: the handshake, calls under way, and the messages that the agent sends by itself."""

import asyncio
import math
import time
from typing import Any, Final, Protocol

import anyio
from anyio.lowlevel import checkpoint

from ...concurrency.background import asyncio_loop
from ...errors import AgentConnectionError, AgentError, AgentProtocolError, AgentTimeoutError, AgentUnavailableError
from ...protocol import ALLOW, Answer, Encoding, Event, EventType, SpanUnit
from ...protocol.stream import (
    MAX_HANDSHAKE_RESPONSE_BYTES,
    CallIds,
    CancelReason,
    ConfigUpdateRequest,
    FlowControl,
    FrameReader,
    Framing,
    HealthState,
    HealthStatus,
    MessageType,
    MetricsReport,
    check_ping,
    decode_message,
    encode_frame,
)
from ..base import cancel_reason
from ..partial import PartialFrame, PartialFrames
from ..wire import Wire
from .deadlines import Deadlines
from .flow_control import Capacity, Flow
from .handshake import ENVELOPE_HINT, Handshake
from .health import Health
from .pending_calls import PendingCall, PendingCalls
from .wire_format import WireFormat

# An event loop needs two or three turns to read what a socket holds.
_MAX_TURNS: Final = 20
# Seconds. Twenty of them are several times what another thread waits for the interpreter (`sys.getswitchinterval`).
_PAUSE: Final = 0.002
_UNASKED: Final = "an answer to no call"
# To look a member of an enumeration up by its name takes long (CPython 3.11).
_AGENT_RESPONSE: Final = int(MessageType.AGENT_RESPONSE)
_TAKES_CALLS: Final = (HealthState.HEALTHY, HealthState.DEGRADED)


class Owner(Protocol):
    """Who uses a connection. The connection calls these on the event loop; they must not raise."""

    def capacity_freed(self, connection: "AgentConnection") -> None:
        """The connection may be able to take another call."""
        ...

    def health_changed(self, connection: "AgentConnection", before: HealthState) -> None:
        """The agent has reported its health, which was ``before`` until now."""
        ...

    def rated(self, connection: "AgentConnection", *, answered: bool) -> None:
        """A call was answered, or it failed by the agent's fault. Answers are only reported while it is watched."""
        ...

    def hears(self, event_type: EventType) -> bool:
        """Whether the agent is to be asked about such events, on this connection or on another."""
        ...

    def lost(self, connection: "AgentConnection", failed: int) -> None:
        """The connection takes no more calls. ``failed`` calls were under way that somebody waited for."""
        ...

    def message_received(self, connection: "AgentConnection", message: MetricsReport | ConfigUpdateRequest) -> None:
        """The agent has sent a message that is not about this connection."""
        ...


class AgentConnection:
    """Carries many calls at a time, all events of a request among them.

    A :class:`~asgi_agents.transports.wire.Receiver`. A caller takes a place first, with :meth:`Flow.reserve`, and then
    either uses it in :meth:`call` or returns it with :meth:`give_back`.

    A peer with the feature ``call_ids`` names the call in its answer. An answer of any other peer is matched by its
    correlation id, or by order. An answer that nobody asked for could then be taken for the answer to the next event.
    Therefore an answer that matches no call fails the connection. So does an answer that had begun to arrive before the
    event of the call that it matches was sent. What the socket holds is read before an event is sent on an idle
    connection. An unasked answer that begins to arrive later can't be told from the answer to that event.

    :param encodings: what to offer in the handshake, best first; in the older framing the first is used.
    :param capacity: shared by all connections to the same instance.
    :param max_calls: how many calls may be under way, those included that were given up and are still owed an answer.
    :param partial: the bytes that all connections to the agent may hold of frames that have not come whole.
    :param span_unit: what the agent counts in the spans of its detections.
    :param handshake: how the connection begins, where not with frames.

    :ivar address: where the agent is.
    :ivar events: what the agent is asked about here: what its handshake names, or the configuration in its place.
    :ivar alive: whether calls can be made.
    :ivar fault: why it was lost.
    :ivar requests: correlation ids of the requests whose events have to come here.
    :ivar wire_format: how events and answers are encoded.
    :ivar overwritten: how often, by the count of its client, the agent had lost its configuration when it was given it.
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
        handshake: Handshake | None = None,
    ) -> None:
        self.address = address
        self.events = frozenset(EventType)
        self.alive = False
        self.fault = ""
        self.requests: set[str] = set()
        self.overwritten = 0
        self.health = Health(time.monotonic())
        self.flow = Flow(capacity, max_calls)
        self.pending_calls = PendingCalls()
        self.handshake = Handshake(framing, encodings, span_unit) if handshake is None else handshake
        self.wire_format = self.handshake.provisional
        self._framing = framing
        self._owner = owner
        self._wire: Wire | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader = FrameReader(framing, None if self.handshake.done else MAX_HANDSHAKE_RESPONSE_BYTES)
        self._partial = PartialFrame(self._reader, PartialFrames() if partial is None else partial, self.fail)
        # The position of the first call that was sent after the frame that is now arriving had begun.
        self._too_late_for: int | None = None
        self._deadlines = Deadlines(self.pending_calls, self._expire)
        self._greeted = anyio.Event()
        self._shutting_down = False

    # Beginning and end

    async def shake_hands(self, wire: Wire, *, proxy_id: str, config: object) -> None:
        """Start using ``wire``, whose receiver this is. In the older framing nothing is sent.

        :raises AgentConnectionError: the peer refuses, or is no agent.
        """
        self._wire = wire
        self._loop = asyncio_loop()
        if not self.handshake.done:
            wire.write(self.handshake.request(proxy_id, config))
            await self._greeted.wait()
        if self.fault:
            raise AgentConnectionError(self.fault)
        self.alive = True

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
        self.flow.capacity.taken -= len(self.pending_calls)
        for call in self.pending_calls.clear():
            self._announce_cancellation(call, reason)
            call.fail("its connections are being closed")

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
        self._deadlines.close()
        self._partial.close()
        self._greeted.set()
        self.flow.capacity.taken -= len(self.pending_calls)
        failed = self.pending_calls.clear()
        for call in failed:
            call.fail(self.fault)
        if was_alive:
            self._owner.lost(self, len(failed))

    # Calls

    @property
    def in_rotation(self) -> bool:
        """Whether it takes events of requests that are new to it."""
        health = self.health
        return self.alive and not health.retired and health.state in _TAKES_CALLS

    @property
    def calls(self) -> int:
        """Calls under way and places taken."""
        return len(self.pending_calls) + self.flow.reserved

    @property
    def waited_for(self) -> int:
        """Calls and places that somebody waits for."""
        return self.pending_calls.waited_for + self.flow.reserved

    def has_room(self, correlation_id: str) -> bool:
        """Whether another call may begin now."""
        flow = self.flow
        return (
            self.alive
            and len(self.pending_calls) + flow.reserved < flow.max_calls
            and flow.capacity.taken < flow.capacity.limit
            and (not flow.limited or flow.admits(correlation_id, self.pending_calls.size))
        )

    def give_back(self) -> None:
        """Give a place back that was not used."""
        self.flow.give_back()
        self._owner.capacity_freed(self)

    async def call(self, event: Event, deadline: float = math.inf) -> Answer:
        """Send ``event`` and return the agent's answer. Uses up a place.

        :param deadline: on :func:`time.monotonic`.
        :raises AgentConnectionError: the connection was lost before the answer came.
        :raises AgentProtocolError: the answer is not what the protocol allows.
        :raises AgentTimeoutError: the deadline has passed.
        :raises AgentUnavailableError: the agent is to be asked about such events, but not on this connection.
        :raises EventTooLargeError: the event is larger than what the agent takes at a time.
        """
        if event.event_type not in self.events:
            self.give_back()
            if self._owner.hears(event.event_type):
                # Nothing was sent, so that the agent has not failed; nor has it given a verdict.
                raise AgentUnavailableError(f"no instance that supports {event.event_type} can be asked")
            # No instance supports it, and nobody has configured it: the request began before the agent had said so.
            return ALLOW
        wire_format, flow, pending_calls = self.wire_format, self.flow, self.pending_calls
        try:
            call, frame = wire_format.prepare(event, deadline, self._loop)
            assert self._wire is not None
            if self._wire.congested:
                await _drain(self._wire, deadline)
            if not (wire_format.call_ids or pending_calls) and (self._wire.turns_behind or self._wire.unread):
                await self._read_first(self._wire)
            if not self.alive:
                raise self._lost(self.fault)
        except BaseException:
            self.give_back()
            raise
        # From here on it is counted as a pending call.
        flow.reserved -= 1
        pending_calls.add(call)
        if self._too_late_for is None and not wire_format.call_ids and self._reader.pending:
            self._too_late_for = call.position
        if deadline < self._deadlines.next:
            self._deadlines.set(deadline)
        self._wire.write(frame)
        if flow.window is not None:
            # Only now it is known how much of the window is left.
            self._owner.capacity_freed(self)
        try:
            await call.answered
        except BaseException:
            if not call.answered.is_set:
                why = cancel_reason.get()
                pending_calls.abandon(call)
                self._announce_cancellation(call, CancelReason.CLIENT_DISCONNECT if why is None else why())
            raise
        if call.expired:
            raise AgentTimeoutError("no answer")
        if call.fault is not None:
            raise self._lost(call.fault)
        if call.payload is None:
            answer: Answer = ALLOW
        else:
            try:
                answer = wire_format.decode(call.payload, event)
            except AgentError:
                self._rate(answered=False)
                raise
        if self.health.watched or self.health.score < 1.0:
            self._rate(answered=True)
        return answer

    def _lost(self, fault: str) -> AgentError:
        # The agent has not failed where we have closed the connection.
        return AgentUnavailableError(fault) if self._shutting_down else AgentConnectionError(fault)

    async def _read_first(self, wire: Wire) -> None:
        """Let the event loop read what has come before anything is sent: it may be an answer to no event."""
        quiet = 0
        for _ in range(_MAX_TURNS):
            await checkpoint()
            if wire.unread and wire.turns_behind:
                # Another thread hands it over, and that may have to wait for the interpreter.
                await anyio.sleep(_PAUSE)
            quiet = 0 if wire.unread else quiet + 1
            if quiet > wire.turns_behind or self.pending_calls or not self.alive:
                return
        self.fail("it sends more than can be read")

    def _expire(self, call: PendingCall) -> None:
        """The deadline of ``call`` has passed."""
        call.expired = True
        self._announce_cancellation(call, CancelReason.TIMEOUT)
        self._rate(answered=False)
        call.answered.set()

    def _announce_cancellation(self, call: PendingCall, reason: CancelReason) -> None:
        if self.wire_format.cancellation and self._wire is not None:
            self._wire.write(self.wire_format.cancel(call, reason))

    def _rate(self, *, answered: bool) -> None:
        self.health.rate(answered=answered)
        self._owner.rated(self, answered=answered)

    # What the agent sends

    def data_received(self, data: bytes) -> None:
        self.health.heard_at = time.monotonic()
        enveloped = self.wire_format.enveloped
        try:
            for frame in self._reader.feed(data):
                if self.fault:
                    break
                too_late_for, self._too_late_for = self._too_late_for, None
                call = self.pending_calls.match_plain(frame)
                if call is not None:
                    self._settle(call, None)
                elif enveloped:
                    self._answer_received(CallIds(), frame, too_late_for)
                elif frame[0] == _AGENT_RESPONSE and self.handshake.done:
                    payload = frame[1:]
                    self._answer_received(self.wire_format.answer_ids(payload), payload, too_late_for)
                else:
                    self._message_received(frame[0], frame[1:])
            if enveloped and self._reader.pending and not self.pending_calls:
                raise AgentProtocolError(_UNASKED)
        except AgentProtocolError as exc:
            self.fail(str(exc))
        if (self._reader.pending or self._partial.noted) and not self.fault:
            self._partial.note()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.fault:
            reason = "closed the connection" if exc is None else f"the connection broke: {type(exc).__name__}"
            if not self.handshake.done:
                reason += f" during the handshake; {ENVELOPE_HINT}"
            self.fault = reason
        self._end()

    def _answer_received(self, ids: CallIds, payload: Any, too_late_for: int | None) -> None:
        """An answer has come whole.

        ``too_late_for``: the position of the first call that was sent after the answer had begun to arrive.
        """
        call = self.pending_calls.match(ids, before=too_late_for)
        if call is not None:
            self._settle(call, payload)
        elif not self.wire_format.call_ids or ids == CallIds():
            # Which call it was for can't be told; nor, then, which call the next one is for.
            raise AgentProtocolError(_UNASKED)

    def _settle(self, call: PendingCall, payload: Any) -> None:
        """The answer to ``call`` has come; ``payload`` is None for a plain allow."""
        self.flow.capacity.taken -= 1
        if not call.abandoned:
            call.payload = payload
            call.answered.set()
        self._owner.capacity_freed(self)

    def _message_received(self, message_type: int, payload: bytes) -> None:
        """Anything but an answer."""
        encoding = self.wire_format.encoding
        if not self.handshake.done:
            self._agreed(self.handshake.receive(message_type, payload))
        elif message_type == MessageType.PING:
            assert self._wire is not None
            check_ping(payload)
            if not self._wire.congested:
                # A peer that asks and doesn't read must not fill our memory with answers.
                self._wire.write(encode_frame(MessageType.PONG, payload))
        elif message_type == MessageType.HEALTH_STATUS:
            self._health_reported(decode_message(HealthStatus, payload, encoding, at="health_status"))
        elif message_type == MessageType.FLOW_CONTROL:
            self._flow_controlled(decode_message(FlowControl, payload, encoding, at="flow_control"))
        elif message_type == MessageType.METRICS_REPORT:
            self._owner.message_received(self, decode_message(MetricsReport, payload, encoding, at="metrics_report"))
        elif message_type == MessageType.CONFIG_UPDATE_REQUEST:
            request: ConfigUpdateRequest = decode_message(
                ConfigUpdateRequest, payload, encoding, at="config_update_request"
            )
            self._owner.message_received(self, request)
        # A pong is noticed by its bytes alone; types that this version does not know are ignored.

    def _health_reported(self, status: HealthStatus) -> None:
        before = self.health.state
        self.health.apply(status)
        self._owner.health_changed(self, before)

    def _flow_controlled(self, control: FlowControl) -> None:
        self.flow.apply(control, self.requests)
        self._owner.capacity_freed(self)

    def _agreed(self, wire_format: WireFormat) -> None:
        """The agent's first message has come, and the handshake is done."""
        self.wire_format = wire_format
        assert self.wire_format.capabilities is not None
        self.events = self.wire_format.capabilities.events
        self.flow.agree(self.wire_format.capabilities)
        self._reader.max_bytes = self._framing.max_bytes
        self._greeted.set()

    def check(self, stall_timeout: float) -> None:
        """Close it if the agent is gone (:meth:`Health.is_gone`), else ask whether it is there."""
        now = time.monotonic()
        if self.health.is_gone(self.pending_calls.oldest, now, stall_timeout):
            self.fail(f"nothing was heard of the agent for {stall_timeout:g} s")
        if self.alive and self._framing is Framing.V2:
            ping = self.health.next_ping(now)
            if ping is not None:
                assert self._wire is not None
                self._wire.write(self.wire_format.ping(ping))


async def _drain(wire: Wire, deadline: float) -> None:
    """Wait until the agent has read what was sent; raises :class:`AgentTimeoutError` at ``deadline``."""
    with anyio.CancelScope(deadline=anyio.current_time() + deadline - time.monotonic()):
        await wire.drain()
        return
    raise AgentTimeoutError("not sent, for the agent does not read")
