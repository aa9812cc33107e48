"""One stream of the agent protocol over gRPC: how it begins, and what is said on it."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final

from ..._version import __version__
from ...concurrency.background import Signal
from ...errors import AgentError, AgentProtocolError, EventTooLargeError, printable
from ...messages.throttle import Throttle
from ...protocol import Answer, Encoding, Event, EventType
from ...protocol.grpc import control
from ...protocol.grpc.answers import decode_answer
from ...protocol.grpc.events import CARRIED, encode_event
from ...protocol.grpc.messages import AgentToProxy, parse
from ...protocol.stream import AgentCapabilities, CallIds, CancelReason, Framing, Ping, correlation_id_of
from ..stream.connection import AgentConnection, Owner
from ..stream.flow_control import Capacity
from ..stream.handshake import Handshake
from ..stream.pending_calls import PendingCall
from ..stream.wire_format import WireFormat
from .channel import StreamWire

logger: Final = logging.getLogger("asgi_agents")

# By the numbers of the protocol.
_LEVELS: Final = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


class GrpcWireFormat(WireFormat):
    """Events and answers as messages of protobuf. An answer names the request, and not the call."""

    __slots__ = ("_max_event_bytes",)

    def __init__(self, max_event_bytes: int, capabilities: AgentCapabilities | None = None) -> None:
        super().__init__(Framing.V2, Encoding.JSON, capabilities=capabilities)
        self._max_event_bytes = max_event_bytes

    def prepare(
        self, event: Event, deadline: float, loop: asyncio.AbstractEventLoop | None
    ) -> tuple[PendingCall, bytes]:
        self.check_size(event)
        call = PendingCall(correlation_id_of(event), deadline, Signal(loop))
        message = encode_event(event)
        if len(message) > self._max_event_bytes:
            raise EventTooLargeError(
                f"it takes a message of {len(message)} bytes, expected {self._max_event_bytes} at most"
            )
        call.size = len(message)
        return call, message

    def cancel(self, call: PendingCall, reason: CancelReason) -> bytes:
        return control.encode_cancel(call.correlation_id, reason)

    def ping(self, ping: Ping) -> bytes:
        return control.encode_ping(ping.sequence)

    def decode(self, payload: Any, event: Event) -> Answer:
        return decode_answer(payload)


class GrpcHandshake(Handshake):
    """How a stream begins. The configuration is in it, whatever its length."""

    def __init__(self, max_event_bytes: int) -> None:
        super().__init__(Framing.V2, (Encoding.JSON,), "codepoints")
        self._max_event_bytes = max_event_bytes

    def request(self, proxy_id: str, config: object) -> bytes:
        request = control.encode_handshake(proxy_id, __version__, config)
        if len(request) > self._max_event_bytes:
            raise EventTooLargeError(
                f"the handshake, with the configuration, has {len(request)} bytes, expected {self._max_event_bytes} at "
                "most"
            )
        return request

    @property
    def provisional(self) -> GrpcWireFormat:
        return GrpcWireFormat(self._max_event_bytes)

    def agree(self, kind: str | None, message: Any) -> GrpcWireFormat:
        """Read the agent's first message, whose field ``kind`` is set.

        :raises AgentProtocolError: it is no answer to a handshake, or it refuses.
        """
        if kind != "handshake":
            raise AgentProtocolError(f"answered the handshake with {kind or 'an empty message'}")
        capabilities = control.decode_handshake_response(message.handshake)
        self.done = True
        return GrpcWireFormat(self._max_event_bytes, capabilities)


class GrpcConnection(AgentConnection):
    """A stream with the messages of the agent protocol.

    :param max_event_bytes: of a message.
    :param not_carried: called with the events that the agent supports and gRPC does not carry.
    """

    def __init__(
        self,
        owner: Owner,
        capacity: Capacity,
        *,
        max_calls: int,
        address: str,
        max_event_bytes: int,
        not_carried: Callable[[frozenset[EventType]], object],
    ) -> None:
        self._grpc_handshake = GrpcHandshake(max_event_bytes)
        #: Its wire, once that is open.
        self.stream: StreamWire | None = None
        # Whether an answer has named no request, as it may where one call is under way.
        self._names_none = False
        self._not_carried = not_carried
        self._logs = Throttle()
        super().__init__(
            Framing.V2,
            (Encoding.JSON,),
            owner,
            capacity,
            max_calls=max_calls,
            address=address,
            handshake=self._grpc_handshake,
        )

    async def call(self, event: Event, deadline: float = math.inf) -> Answer:
        # An answer names the request: one too many that has come already would be taken for that to the next event of
        # the request. To the first event of a request nobody can have answered yet.
        if self.stream is not None and (self._names_none or event.event_type is not EventType.REQUEST_HEADERS):
            try:
                await self.stream.catch_up()
            except BaseException:
                self.give_back()
                raise
        return await super().call(event, deadline)

    def data_received(self, data: bytes) -> None:
        self.health.heard_at = time.monotonic()
        if self.fault:
            return
        try:
            message = parse(AgentToProxy, data)
            kind = message.WhichOneof("message")
            if not self.handshake.done:
                self._agreed(self._grpc_handshake.agree(kind, message))
            elif kind == "response":
                response = message.response
                if not response.correlation_id:
                    self._names_none = True
                    if len(self.pending_calls) > 1:
                        raise AgentProtocolError("an answer names no request, and there are several")
                self._answer_received(CallIds(response.correlation_id), response, None)
            else:
                self._said(kind, message)
        except AgentProtocolError as exc:
            self.fail(str(exc))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.fault:
            self.fault = str(exc) if isinstance(exc, AgentError) else "ended the stream"
        self._end()

    def _agreed(self, wire_format: WireFormat) -> None:
        super()._agreed(wire_format)
        # A configuration travels in the handshake, and in no event.
        not_carried = self.events - CARRIED - {EventType.CONFIGURE}
        self.events &= CARRIED
        if not_carried:
            self._not_carried(not_carried)

    def _announce_cancellation(self, call: PendingCall, reason: CancelReason) -> None:
        # It would cancel the other calls about the request too.
        if not self.pending_calls.is_waited_for(call.correlation_id):
            super()._announce_cancellation(call, reason)

    def _said(self, kind: str | None, message: Any) -> None:
        """Anything but an answer."""
        match kind:
            case "health":
                self._health_reported(control.decode_health(message.health))
            case "flow_control":
                self._flow_controlled(control.decode_flow_control(message.flow_control))
            case "metrics":
                self._owner.message_received(self, control.decode_metrics(message.metrics))
            case "config_update":
                self._owner.message_received(self, control.decode_config_update(message.config_update))
            case "log":
                self._log(message.log)
        # A pong is noticed by its bytes alone; what this version does not know is ignored.

    def _log(self, log: Any) -> None:
        if self._logs.due("log"):
            logger.log(
                _LEVELS.get(log.level, logging.INFO),
                "agent at %s says: %s (others of the minute are left out)",
                self.address,
                printable(log.message),
            )
