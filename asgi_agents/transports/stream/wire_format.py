"""How events and answers are encoded on one connection, as it was agreed in the handshake. No I/O."""

import asyncio
from typing import Any, Final

from msgspec import UNSET, structs

from ...concurrency.background import Signal
from ...errors import AgentError, EventTooLargeError
from ...observability.trace_context import current_traceparent
from ...protocol import (
    AgentResponse,
    Answer,
    Encoding,
    Event,
    GuardrailInspectEvent,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    SpanUnit,
    decode_answer,
    encode_event,
    in_code_points,
)
from ...protocol.stream import (
    ANSWER_IDS,
    AgentCapabilities,
    CallIds,
    Cancel,
    CancelReason,
    Framing,
    MessageType,
    Ping,
    correlation_id_of,
    decode_answer_ids,
    encode_envelope_frame,
    encode_event_frame,
    encode_message,
    now_ms,
    plain_allow,
)
from .pending_calls import PendingCall

_BODY_CHUNKS: Final = (RequestBodyChunkEvent, ResponseBodyChunkEvent)


class WireFormat:
    """What one agent understands.

    Agents that don't know guardrail events may never answer one. Where answers don't name their call, the
    ``correlation_id`` of such an event on the wire is ``<correlation id>/inspect-<n>``, with an ``n`` that no other
    has. Its missing answer is then not matched with the next answer about the same request.

    :ivar call_ids: whether an answer names its call.
    """

    __slots__ = (
        "_knows_plain_allows",
        "_span_unit",
        "call_ids",
        "cancellation",
        "capabilities",
        "encoding",
        "enveloped",
    )

    def __init__(
        self,
        framing: Framing,
        encoding: Encoding,
        span_unit: SpanUnit = "codepoints",
        capabilities: AgentCapabilities | None = None,
    ) -> None:
        #: Whether it is the older framing.
        self.enveloped = framing is Framing.ENVELOPE
        self.encoding = encoding
        #: None in the older framing, and until the agent has answered the handshake.
        self.capabilities = capabilities
        self.call_ids = capabilities is not None and capabilities.features.call_ids
        #: Whether the agent wants to know which calls nobody waits for any more.
        self.cancellation = capabilities is not None and capabilities.features.cancellation
        self._span_unit = span_unit
        self._knows_plain_allows = self.call_ids and encoding is Encoding.JSON

    def prepare(
        self, event: Event, deadline: float, loop: asyncio.AbstractEventLoop | None
    ) -> tuple[PendingCall, bytes]:
        """A call about ``event``, and its frame.

        :param deadline: on :func:`time.monotonic`.
        :param loop: asyncio's running event loop; None on others.
        :raises EventTooLargeError: the agent takes less at a time.
        """
        self.check_size(event)
        call = PendingCall(correlation_id_of(event), deadline, Signal(loop))
        if self.enveloped:
            frame = encode_envelope_frame(encode_event(event, self.encoding))
        else:
            if isinstance(event, GuardrailInspectEvent) and not self.call_ids:
                event = structs.replace(event, correlation_id=f"{event.correlation_id}/inspect-{call.number}")
                call.correlation_id = event.correlation_id
            # An event about no request gets an id too, so that its answer can be matched.
            ids = CallIds(
                call.correlation_id or f"{event.event_type.value}-{call.number}",
                call.number if self.call_ids else UNSET,
            )
            call.correlation_id = ids.correlation_id
            if self._knows_plain_allows:
                call.plain = plain_allow(call.correlation_id, call.number)
            # The headers event of a request has a field of its own for it.
            traced = self.call_ids and not isinstance(event, RequestHeadersEvent)
            frame = encode_event_frame(event, self.encoding, ids, current_traceparent() if traced else None)
        call.size = len(frame)
        return call, frame

    def check_size(self, event: Event) -> None:
        """Raise :class:`EventTooLargeError` for more of a body than the agent takes at a time."""
        if isinstance(event, _BODY_CHUNKS) and self.capabilities is not None:
            limit = self.capabilities.limits.max_body_size
            if len(event.data) > limit > 0:
                raise EventTooLargeError(f"{len(event.data)} bytes at a time, the agent takes {limit}")

    def cancel(self, call: PendingCall, reason: CancelReason) -> bytes:
        """The frame that tells the agent that nobody waits for the answer to ``call`` any more."""
        cancel = Cancel(
            correlation_id=call.correlation_id,
            reason=reason,
            timestamp_ms=now_ms(),
            call_id=call.number if self.call_ids else UNSET,
        )
        # In JSON, whatever the encoding: other agents understand it in no other.
        return encode_message(MessageType.CANCEL, cancel)

    def ping(self, ping: Ping) -> bytes:
        """The frame that asks whether the agent is there."""
        return encode_message(MessageType.PING, ping)

    def answer_ids(self, payload: bytes) -> CallIds:
        """Which call an answer is for, as far as it says. Not for the older framing, whose answers have no ids."""
        ids = decode_answer_ids(payload, self.encoding)
        if not self.call_ids and ids.call_id is not UNSET:
            # The agent uses that name for something else.
            ids = CallIds(ids.correlation_id)
        return ids

    def decode(self, payload: Any, event: Event) -> Answer:
        """The answer to ``event``; raises :class:`AgentError` for one that is not allowed, or is no verdict."""
        answer = decode_answer(payload, self.encoding, event.event_type, without=ANSWER_IDS)
        if isinstance(answer, AgentResponse) and answer.version == 0:
            # There is no such version: whatever the decision says, it is no verdict.
            raise AgentError("; ".join(answer.audit.reason_codes) or "the agent failed")
        return in_code_points(answer, event, self._span_unit)
