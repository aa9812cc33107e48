"""One exchange of an app with an Envoy external processor: a stream, and what is known of it."""

from typing import Any, Final

from anyio import move_on_after
from msgspec.structs import replace

from ...errors import AgentConnectionError, AgentError, AgentProtocolError, AgentUnavailableError, EventTooLargeError
from ...observability.trace_context import inject_trace_context
from ...protocol import (
    ALLOW,
    AgentResponse,
    BodyMutation,
    EventType,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
)
from .channel import Channel, StreamWire
from .ext_proc_answers import (
    CARRIES,
    Heads,
    ShownEvent,
    attributes_of,
    common_answer,
    expects_body,
    mutation_of,
    refusal,
    refusal_of,
    replaces_message,
    request_of,
    side_of_event,
    streamed_of,
)
from .ext_proc_messages import (
    METHOD,
    ProcessingMode,
    Side,
    decode,
    first,
    messages,
    pairs_of,
    side_of,
    streamed_reply,
)
from .ext_proc_sides import Held, TwoSides
from .settings import GrpcSettings

#: Seconds that a FULL_DUPLEX_STREAMED processor gets to answer a piece of a body, or a head with a body to come, before
#: the answer is that it holds that back. The next piece, or the end, brings what it has released meanwhile.
PATIENCE: Final = 0.05

# It counts unless the answer to the body says something else. Of a body that is empty its end is shown, as by Envoy.
_UNDECIDED: Final = AgentResponse.block(503, "Agent unavailable", needs_more=True)
# What a message may be, but for a reply in pieces, which not all stubs know.
_KNOWN: Final = frozenset(
    {"immediate_response", *(f"{side.value}_{part}" for side in Side for part in ("headers", "body", "trailers"))}
)
_FORBIDDEN: Final = 403
# Stands for a body that could not be read, as any other that is no UTF-8 would.
_NO_TEXT: Final = b"\xff"
# Bytes that are kept to see whether a processor releases what it was sent.
_MOST_COMPARED: Final = 1024 * 1024


class _HalfState:
    """What is known of the request, or of the response.

    :ivar skips_body: the processor wants to see nothing of the body.
    :ivar head_due: it has not answered the head.
    :ivar over: it has released all of the body.
    :ivar answers: it has released something for the last piece, so that it is worth waiting for the next.
    """

    def __init__(self) -> None:
        self.skips_body = False
        self.head_due = False
        self.over = False
        self.answers = True
        # What it was sent and has not released, as long as it changes nothing. None: it has changed something, or there
        # is much of it, so that nobody knows what it still has.
        self._unreleased: bytearray | None = bytearray()

    @property
    def holds(self) -> bool:
        """Whether the processor may have bytes that it has not released."""
        return not self.over and (self._unreleased is None or bool(self._unreleased))

    def sent(self, data: bytes) -> None:
        """It was sent these bytes."""
        if self._unreleased is not None:
            self._unreleased += data
            if len(self._unreleased) > _MOST_COMPARED:
                self._unreleased = None

    def released(self, data: bytes) -> None:
        """It has released these bytes."""
        if self._unreleased is not None:
            if self._unreleased.startswith(data):
                del self._unreleased[: len(data)]
            else:
                self._unreleased = None


class ProcessedExchange:
    """See above.

    :param heard: the events that the processor is shown.
    :param held: counts what the processor has said and nobody has taken.
    """

    def __init__(self, channel: Channel, settings: GrpcSettings, heard: frozenset[EventType], held: Held) -> None:
        self._channel = channel
        self._settings = settings
        self._heard = heard & CARRIES
        self._full_duplex = settings.body_mode == "full_duplex_streamed"
        self._halves = {side: _HalfState() for side in Side}
        self._heads = Heads()
        self._begun = self._done = self._broken = False
        self._skips_response_head = False
        self._method = ""
        self._incoming: TwoSides[Any] = TwoSides(self._pause, self._resume, held)
        carrier: dict[str, str] = {}
        inject_trace_context(carrier)
        self._wire: StreamWire = channel.wire(METHOD, self, metadata=(*settings.metadata.pairs, *carrier.items()))

    def holds(self, side: Side) -> bool:
        """Whether the processor may have bytes of that side that it has not released."""
        return self._halves[side].holds

    def head_due(self, side: Side) -> bool:
        """Whether the processor has not answered the head of that side."""
        return self._halves[side].head_due

    def close(self) -> None:
        """The exchange is over."""
        self._end()
        self._wire.close()

    def abort(self) -> None:
        """Nothing more can be asked on this stream: no answer says which of the events it is to."""
        self._broken = True
        self._end()
        self._wire.abort()

    def _end(self) -> None:
        """Whoever still waits for an answer gets none. It is not the processor that has ended the stream."""
        self._incoming.discard()
        self._incoming.end(AgentUnavailableError("its stream was ended before it has answered"))

    # What the wire calls

    def data_received(self, data: bytes) -> None:
        try:
            response = decode(messages.ProcessingResponse, data)
            kind = response.WhichOneof("response")
            side = side_of(kind)
            if kind not in _KNOWN:
                if response.HasField("override_message_timeout"):
                    # It asks for more time, which Envoy does not grant either unless it was told to.
                    return
                if streamed_reply(response) is None:
                    raise AgentProtocolError("a message says nothing")
                side = Side.REQUEST
        except AgentProtocolError as exc:
            self._incoming.end(exc)
            return
        self._incoming.put(response, side, len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._channel.closed:
            # A processor that ends the stream lets the rest pass. This one has not.
            exc = AgentConnectionError("the channel was closed")
        self._incoming.end(exc)

    def _pause(self) -> None:
        self._wire.pause_reading()

    def _resume(self) -> None:
        self._wire.resume_reading()

    # Calls

    async def call(self, event: ShownEvent) -> AgentResponse:
        """Show ``event`` to the processor; its answer. To be cancelled at the deadline."""
        side = side_of_event(event)
        half = self._halves[side]
        if self._broken:
            raise AgentUnavailableError("its stream for this exchange was ended after a call that failed")
        if isinstance(event, RequestHeadersEvent | ResponseHeadersEvent):
            self._heads.note(event)
            if self._done or (side is Side.RESPONSE and self._skips_response_head):
                return _skipping(ALLOW) if half.skips_body or self._done else ALLOW
            await self._send(event)
            return await self._head(event, side)
        if half.skips_body or (self._done and not half.holds):
            return ALLOW
        if self._settings.body_mode == "buffered" and not (event.is_last and event.chunk_index == 0):
            raise AgentError(f"body_mode='buffered', expected {side.value}_body_mode='buffer' in its AgentConfig")
        await self._send(event)
        return await (self._duplex(event, side) if self._full_duplex else self._body(event, side))

    async def _send(self, event: ShownEvent) -> None:
        if self._begun and not self._full_duplex:
            await self._wire.catch_up()
        if not self._full_duplex and self._incoming.waits(side_of_event(event)):
            # It would be taken for the answer to this event, and all later answers for those to others.
            raise AgentProtocolError("it has answered what it was not asked")
        request = request_of(event, begins=None if self._begun else self._heard, mode=self._settings.body_mode)
        if not self._begun and isinstance(event, RequestHeadersEvent):
            for name, values in attributes_of(event).items():
                request.attributes[name].CopyFrom(values)
        message = request.SerializeToString()
        if len(message) > self._settings.max_event_bytes:
            raise EventTooLargeError(f"its message has more than max_event_bytes={self._settings.max_event_bytes}")
        self._begun = True
        self._wire.write(message)
        if self._wire.congested:
            await self._wire.drain()

    async def _next(self, side: Side) -> Any | None:
        """The next message of the processor; None: it has ended the stream in order, and wants to see no more."""
        response = await self._incoming.next(side)
        if response is None:
            self._done = True
        return response

    async def _head(self, event: RequestHeadersEvent | ResponseHeadersEvent, side: Side) -> AgentResponse:
        self._halves[side].head_due = True
        body = EventType.REQUEST_BODY_CHUNK if side is Side.REQUEST else EventType.RESPONSE_BODY_CHUNK
        if isinstance(event, RequestHeadersEvent):
            self._method = event.method
        if self._full_duplex and body in self._heard and expects_body(event, self._method):
            return await self._head_answer(side, PATIENCE)
        return await self._head_answer(side, None)

    async def _head_answer(self, side: Side, patience: float | None) -> AgentResponse:
        """What it says of a head, or :data:`_UNDECIDED` where it has said nothing for ``patience`` seconds."""
        half = self._halves[side]
        with move_on_after(patience):
            response = await self._next(side)
            half.head_due = False
        if half.head_due:
            return _UNDECIDED
        if response is None:
            return _skipping(ALLOW)
        if response.HasField("immediate_response"):
            return refusal_of(response)
        if response.WhichOneof("response") not in _KNOWN:
            return await self._streamed_refusal(response)
        common = expected(response, side, "headers").response
        answer = common_answer(response, common, side, self._heads)
        if replaces_message(common):
            half.skips_body = True
        if response.HasField("mode_override") and not self._full_duplex:
            mode = response.mode_override
            self._skips_response_head = mode.response_header_mode == ProcessingMode.SKIP
            for each, wanted in ((Side.REQUEST, mode.request_body_mode), (Side.RESPONSE, mode.response_body_mode)):
                self._halves[each].skips_body |= wanted == ProcessingMode.NONE
        return _skipping(answer) if half.skips_body else answer

    async def _body(self, event: RequestBodyChunkEvent | ResponseBodyChunkEvent, side: Side) -> AgentResponse:
        response = await self._next(side)
        if response is None:
            return ALLOW
        if response.HasField("immediate_response"):
            return refusal_of(response)
        common = expected(response, side, "body").response
        # Envoy takes changes of headers where the body is buffered, and in no other mode.
        whole = event.is_last and event.chunk_index == 0
        answer = common_answer(response, common, side, self._heads, with_headers=whole)
        return _with_mutation(answer, side, mutation_of(common))

    async def _duplex(self, event: RequestBodyChunkEvent | ResponseBodyChunkEvent, side: Side) -> AgentResponse:
        half = self._halves[side]
        half.sent(event.data)
        answer = ALLOW
        if half.head_due:
            # Some take all of the body before they say anything.
            answer = await self._head_answer(side, None if event.is_last else PATIENCE)
            if answer is _UNDECIDED:
                # It has the piece: whatever becomes of that comes with what it releases.
                return _with_mutation(answer, side, BodyMutation(b""))
            if not answer.is_allow:
                return answer
        released = b""
        waits = event.is_last or half.answers
        with move_on_after(None if event.is_last else PATIENCE):
            while not half.over:
                response = (await self._next(side)) if waits else self._incoming.take(side)
                if response is None:
                    if self._done:
                        raise AgentProtocolError("it has ended the stream, and has not released all of the body")
                    break
                if response.HasField("immediate_response"):
                    return refusal_of(response)
                data, half.over = streamed_of(expected(response, side, "body").response)
                half.released(data)
                released += data
                if len(released) > self._settings.max_answer_bytes:
                    raise AgentProtocolError("what it releases at once is longer than max_answer_bytes")
                waits = event.is_last
        half.answers = bool(released)
        return _with_mutation(answer, side, None if released == event.data else BodyMutation(released))

    async def _streamed_refusal(self, response: Any) -> AgentResponse:
        """A reply in the app's place that comes in pieces: agents answer with all of it.

        Where the rest of it can't be had it is a denial all the same, without a body.
        """
        head = streamed_reply(response)
        if not isinstance(head, messages.HttpHeaders):
            return refusal(_FORBIDDEN, (), _NO_TEXT, response)
        pairs = pairs_of(head.headers)
        try:
            body = b"" if head.end_of_stream else await self._streamed_body()
        except AgentError:
            body = _NO_TEXT
        status = first(pairs, b":status")
        texts = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs]
        return refusal(int(status) if status.isdecimal() and len(status) == 3 else 0, texts, body, response)

    async def _streamed_body(self) -> bytes:
        body, over = b"", False
        while not over:
            piece = await self._next(Side.REQUEST)
            part = None if piece is None else streamed_reply(piece)
            if part is None:
                raise AgentProtocolError("streamed_immediate_response: it has no end")
            over = True
            if isinstance(part, messages.StreamedBodyResponse):
                body += part.body
                over = part.end_of_stream
                if len(body) > self._settings.max_answer_bytes:
                    raise AgentProtocolError("streamed_immediate_response: it is longer than max_answer_bytes")
        return body


def expected(response: Any, side: Side, part: str) -> Any:
    """The part of a response that answers what was sent last; raises :class:`AgentProtocolError` for any other."""
    kind, right = response.WhichOneof("response"), f"{side.value}_{part}"
    if kind != right:
        raise AgentProtocolError(f"expected a response to {right}, got {kind}")
    return getattr(response, right)


def _skipping(answer: AgentResponse) -> AgentResponse:
    return replace(answer, skip_body=True)


def _with_mutation(answer: AgentResponse, side: Side, mutation: BodyMutation | None) -> AgentResponse:
    if mutation is None:
        return answer
    return replace(answer, **{f"{side.value}_body_mutation": mutation})
