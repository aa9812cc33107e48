"""The two framings of the stream transport, at the end that serves."""

from typing import Final

import anyio
from anyio import move_on_after
from msgspec import UNSET
from msgspec.structs import replace

from ..errors import AgentProtocolError
from ..protocol import PROTOCOL_VERSION, AgentResponse, Encoding, RequestHeadersEvent, decode_event, encode_answer
from ..protocol.codec import answer_with, decode_value, encode_value
from ..protocol.stream import (
    EVENT_OF_MESSAGE,
    MAX_HANDSHAKE_REQUEST_BYTES,
    CallIds,
    Cancel,
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
from .connection import ServedConnection, Service, logger
from .dispatch import ServedCall
from .shapes import Shaped

# Seconds within which a client has to introduce itself.
HANDSHAKE_TIMEOUT: float = 5.0

_KNOWN_ENCODINGS: Final = frozenset(encoding.value for encoding in Encoding)


def new_connection(service: Service) -> ServedConnection:
    """The server's end of a new connection."""
    return (V2Connection if service.framing is Framing.V2 else EnvelopeConnection)(service)


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
            # Also where it was refused, and does not read why.
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
                # However many pings it sends, it gets one answer once it reads again.
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
        self._service.heard += 1
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
        for call in self._unanswered.with_id(cancel.correlation_id):
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
    """A connection in the older framing. It has no ids, so that all answers are sent in the order of their events."""

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
