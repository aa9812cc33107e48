"""The app's answer on its way through guardrails: a stream as it comes, anything else when it is complete."""

from collections.abc import Callable, Sequence
from typing import Final

from anyio.abc import TaskGroup
from starlette.types import Message, Scope, Send

from ..concurrency.limiter import Limiter
from ..errors import ResponseAborted
from ..evaluation.text_judges import JudgeSet
from ..failures import FailureKind
from ..guardrails.dialect import Dialect, Stop, is_bound
from ..guardrails.dialects.known import has_units, is_general, is_ours, of_stream
from ..guardrails.dialects.unknown import PlainText
from ..guardrails.framing import UnreadableError
from ..guardrails.slots import Kind
from ..guardrails.stream import Stream
from . import answer_form
from .answer_form import AnswerMode
from .decoding import UnreadableBody
from .encoded_answer import EncodedAnswer
from .event_lines import EventLines, is_events
from .headers import codings_of, in_utf_8, media_type, without_body_claims
from .rendering import Renderers
from .response import BODY_BYPASSES
from .scope import RawHeaders, declared_length
from .state import ExchangeState
from .stopping import Dropping, send_abort_marker, send_whole
from .text_asking import Asking, Stopped, failed_with
from .text_reply import stopped_reply
from .text_stream import StreamedText
from .whole_answer import whole_answer

ANSWER_KINDS: Final[frozenset[Kind]] = frozenset({"output", "tool_call", "tool_result", "reasoning"})
#: How many bytes of an answer that is no stream are held.
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
# How many bytes of text wait for the end of an answer whose length was declared, so that its head can still be another.
_MAX_HELD_TEXT: Final = 1024 * 1024


class TextAnswer:
    """The app's ``send``.

    :param judges: those who judge it.
    :param dialect: that of the request.
    :param on_stop: called when the client has its answer. True: it was ended early, and the app is to be stopped.
    :param on_noticed: called when an app that was stopped has noticed it.
    :ivar tasks: where windows are judged beside the app.
    """

    def __init__(
        self,
        state: ExchangeState,
        asking: Asking,
        judges: JudgeSet,
        dialect: Dialect,
        dialects: Sequence[Dialect],
        renderers: Renderers,
        scope: Scope,
        send: Send,
        *,
        on_stop: Callable[[bool], None],
        on_noticed: Callable[[], None],
    ) -> None:
        self._state = state
        self._asking = asking
        self._called = dialect
        self._dialects = dialects
        self._renderers = renderers
        self._scope = scope
        self._send = send
        self._on_stop = on_stop
        self._judge_set = judges
        self._judges = judges.on(ANSWER_KINDS)
        self._strict = judges.strict(ANSWER_KINDS)
        self._mode = AnswerMode.IDLE if self._judges else AnswerMode.PASSING
        self._head_only = str(scope.get("method", "GET")).upper() == "HEAD"
        self._bodiless = False
        self._start: Message = {}
        # The head waits: it has not been sent.
        self._holds_head = False
        # The head is sent with the first content that is decoded.
        self._head_is_due = False
        self._encoded: EncodedAnswer | None = None
        self._held: list[bytes] = []
        self._held_size = 0
        self._max_bytes = MAX_ANSWER_BYTES
        # What the app has sent of a stream whose head waits.
        self._given: list[bytes] = []
        self._streamed: StreamedText[bytes] | None = None
        self._stream: Stream | None = None
        # The type of a stream, and its beginning while it is not known what it is.
        self._type = ""
        self._may_be_json = False
        self._unknown = b""
        self._turn = Limiter(1)
        self._dropping = Dropping(
            scope, "guardrails let nothing more of this response pass", on_stop=on_stop, on_noticed=on_noticed
        )
        # What the server has raised while something was sent beside the app.
        self._gone: Exception | None = None
        self.tasks: TaskGroup | None = None
        #: Why the answer has to be broken off.
        self.error: ResponseAborted | None = None

    @property
    def may_judge(self) -> bool:
        """Whether anybody judges answers to this call."""
        return bool(self._judges)

    @property
    def stopped(self) -> bool:
        """Whether the client gets something else than what the app sends."""
        return self._mode is AnswerMode.STOPPED

    @property
    def judging(self) -> bool:
        """Whether there may be more of it to judge."""
        return self._mode in (AnswerMode.IDLE, AnswerMode.WHOLE, AnswerMode.STREAM)

    def use(self, send: Send) -> None:
        """Send with this from now on."""
        self._send = send

    # Answers in the app's place

    async def stop(self, stopped: Stopped) -> None:
        """Answer in the app's place. Nothing of its answer has left."""
        self._mode = AnswerMode.STOPPED
        self._state.decide(stopped.decision)
        if self._streamed is not None:
            self._streamed.abandon()
        dialect = self._called
        if self._stream is not None and self._stream.dialect is not None and not is_bound(dialect):
            dialect = self._stream.dialect
        status, headers, body = stopped_reply(stopped, dialect, self._scope, self._renderers)
        await self._send_whole(
            {"type": "http.response.start", "status": status, "headers": headers},
            {"type": "http.response.body", "body": b"" if self._head_only else body},
        )

    async def replace(self, stopped: Stopped) -> None:
        """Answer in the place of an app that runs, and that has sent nothing. The app is told before the client."""
        self.abandon()
        self._on_stop(True)
        await self.stop(stopped)

    def abandon(self) -> None:
        """Take all that the app still sends as servers do for a client that has left."""
        self._mode = AnswerMode.STOPPED
        self._dropping.cut_off = True

    async def _send_whole(self, *messages: Message) -> None:
        """Send messages that belong together."""
        self.error = await send_whole(self._send, *messages) or self.error

    # The app's answer

    @property
    def takes_content(self) -> bool:
        """Whether what the app sends of the body is judged."""
        return self._mode is AnswerMode.WHOLE or self._mode is AnswerMode.STREAM

    async def send(self, message: Message) -> None:
        """The app's ``send``."""
        if self._encoded is not None and message["type"] == "http.response.body":
            await self._encoded.take(message)
        else:
            await self.take(message)

    async def take(self, message: Message) -> None:
        """A message of the app, decoded."""
        if self._mode is AnswerMode.PASSING or self._mode is AnswerMode.DONE:
            if (self._bodiless or self._mode is AnswerMode.DONE) and message.get("body"):
                # Not all servers keep back what no client expects, and nobody has judged it.
                message = {**message, "body": b""}
            await self._send(message)
            return
        # What is sent from two tasks must not overtake what is being judged.
        if not self._turn.try_acquire():
            await self._turn.acquire()
        try:
            await self._dispatch(message)
        finally:
            self._turn.release()
        streamed = self._streamed
        if streamed is not None and not streamed.over and message["type"] == "http.response.body":
            last = not message.get("more_body", False)
            if last or streamed.stream.full:
                await streamed.wait(last)
        if self._dropping.cut_off:
            # By what was sent just now, or while it was judged: as for a client that leaves meanwhile.
            await self._drop(message)

    async def _dispatch(self, message: Message) -> None:
        kind = message["type"]
        if self.stopped:
            if not self._dropping.cut_off:
                await self._drop(message)
        elif self._mode is AnswerMode.IDLE and kind == "http.response.start":
            await self._take_start(message)
        elif kind == "http.response.body" and self._mode is AnswerMode.WHOLE:
            await self._take_whole(bytes(message.get("body", b"")), not message.get("more_body", False))
        elif kind == "http.response.body" and self._mode is AnswerMode.STREAM:
            data, last = bytes(message.get("body", b"")), not message.get("more_body", False)
            if self._head_is_due:
                await self._send_start(None)
            if data or last or self._holds_head:
                await self._take_piece(data, last)
            else:
                # It says nothing, but the app may count on being slowed down by it.
                await self._send(message)
        elif kind == "http.response.start" and (self._holds_head or self._head_is_due):
            # The server has not seen the first one, so it could not complain about the second.
            raise RuntimeError("Unexpected ASGI message 'http.response.start': the response has already been started.")
        elif kind in BODY_BYPASSES:
            raise RuntimeError(f"The app sent {kind!r}, which was not offered to it: guardrails judge this response.")
        else:
            # Early hints, and what servers complain about.
            await self._send(message)

    async def _take_start(self, message: Message) -> None:
        status: int = message["status"]
        headers: RawHeaders = list(message.get("headers", ()))
        self._start = {**message, "headers": headers}
        given = media_type(headers)
        if self._head_only or status < 200 or status in (204, 304):
            # What GET would say of the body is not known: a guardrail could change it.
            self._mode, self._bodiless = AnswerMode.PASSING, True
            plain = without_body_claims(headers, None, decoded=not answer_form.is_binary(given))
            await self._send({**message, "headers": plain} if self._head_only else self._start)
            return
        if answer_form.is_binary(given):
            self._mode = AnswerMode.PASSING
            await self._send(self._start)
            return
        encoded: EncodedAnswer | None = None
        if codings := codings_of(headers):
            try:
                encoded = EncodedAnswer(codings, self, self._undecodable)
            except UnreadableBody as exc:
                await self._unreadable(f"{exc}, and none was asked for")
                return
        if not in_utf_8(headers):
            await self._unreadable("its charset is another than UTF-8")
            return
        self._encoded = encoded
        if answer_form.is_json(given) and not answer_form.streams_json(self._called.name, self._scope["path"]):
            self._mode, self._holds_head = AnswerMode.WHOLE, True
            return
        self._mode = AnswerMode.STREAM
        self._type = given or ""
        if has_units(self._type):
            self._begin_stream(self._type)
        elif not is_ours(self._called):
            # Its user has said what its streams are.
            self._begin_stream(self._type)
        elif self._type in ("", "application/octet-stream") or not is_general(self._called):
            # Clients read JSON whatever its type is said to be: the head waits for the first piece.
            self._may_be_json = True
        # Where its length is declared it is no stream: a block can still be answered with a status.
        self._holds_head = declared_length(headers) is not None or self._may_be_json
        # What turns out not to be encoded so can pass as it is while nothing has left.
        self._head_is_due = not self._holds_head and encoded is not None
        if not (self._holds_head or self._head_is_due):
            await self._send_start(None)

    def _begin_stream(self, given: str, lines: EventLines | None = None) -> StreamedText[bytes]:
        given = given or "text/plain"
        dialects = of_stream(self._called, given, self._dialects) or [PlainText()]
        self._stream = Stream(dialects, given, self._judge_set, strict=self._strict)
        streamed = self._streamed = StreamedText(
            self._stream,
            self._asking,
            self._judges,
            self._turn,
            self.tasks,
            leave=self._leave,
            end=self._end,
            broken=self._break_off,
            pure=None if lines is None else lines.feed,
        )
        return streamed

    def _stream_of(self, data: bytes, last: bool) -> StreamedText[bytes] | None:
        """What ``data`` is fed to: the stream, which begins once it is known what it is. None: that is not known yet.

        Events are often sent as text, or without a type.
        """
        if self._streamed is not None:
            return self._streamed
        events = is_events(data, last)
        if events is None:
            return None
        return self._begin_stream("text/event-stream", EventLines()) if events else self._begin_stream(self._type)

    async def _send_start(self, length: int | None, *, changed: bool = True) -> None:
        self._holds_head = self._head_is_due = False
        headers: RawHeaders = self._start["headers"]
        if self._encoded is not None:
            self._encoded.forget_originals()
            headers = without_body_claims(headers, length, decoded=True)
        elif changed:
            headers = without_body_claims(headers, length)
        await self._send({**self._start, "headers": headers})

    # An answer that is complete before it is judged

    async def _take_whole(self, piece: bytes, last: bool) -> None:
        self._held.append(piece)
        self._held_size += len(piece)
        if self._held_size > self._max_bytes:
            fault = f"an answer of more than {self._max_bytes} bytes"
            if not await self._pass_unjudged(FailureKind.RESPONSE_TOO_LARGE, fault, last=last):
                self._on_stop(True)
            return
        if not last:
            return
        data = b"".join(self._held)
        if not data:
            await self._send_start(None, changed=False)
            await self._finish(b"")
            return
        called, status = self._called, self._start["status"]
        try:
            whole = whole_answer(data, called, self._dialects, status, self._judge_set, may_be_json=self._may_be_json)
        except UnreadableError as exc:
            await self._unreadable(str(exc), last=True)
            return
        if whole is None:
            # Its type has not said so.
            self._mode = AnswerMode.STREAM
            self._held.clear()
            self._held_size = 0
            self._given.append(data)
            await self._begin_stream("application/x-ndjson").take(data, True)
            return
        try:
            await self._asking.judge_body(whole.body)
        except Stopped as stopped:
            await self.stop(stopped)
            self._on_stop(False)
            return
        after = whole.data
        await self._send_start(len(after), changed=after != data)
        await self._finish(after)

    async def _unreadable(self, fault: str, *, last: bool = False) -> None:
        if not await self._pass_unjudged(FailureKind.RESPONSE_UNREADABLE, fault, last=last):
            self._on_stop(not last)

    async def _undecodable(self, fault: str, message: Message) -> None:
        """The answer is not what its content-encoding says, as far as ``message``."""
        await self._turn.acquire()
        try:
            if self.takes_content and (self._holds_head or self._head_is_due):
                await self._unreadable(fault, last=not message.get("more_body", False))
            elif self.takes_content:
                # What has left of it was decoded, and so the rest can't follow as it is: whatever the failure mode.
                streamed = self._streamed or self._begin_stream(self._type)
                await streamed.refuse(Stop(f"the answer can't be decoded: {fault}", 503))
        finally:
            self._turn.release()
        if self._dropping.cut_off:
            await self._drop(message)

    async def _pass_unjudged(self, kind: FailureKind, fault: str, *, last: bool) -> bool:
        """Nobody can judge the answer: let it pass if nobody fails closed. Returns whether it passes."""
        verdict = self._asking.not_shown(self._judges, kind, fault)
        if verdict is not None:
            await self.stop(failed_with(verdict))
            self._dropping.cut_off = True
            return False
        self._mode = AnswerMode.PASSING
        held = b"".join(self._held)
        self._held.clear()
        if self._encoded is not None:
            # As it came.
            held, last = self._encoded.take_originals(), self._encoded.complete
            self._encoded = None
        if self._streamed is not None:
            self._streamed.abandon()
        await self._send_start(None, changed=False)
        if held or last:
            await self._send({"type": "http.response.body", "body": held, "more_body": not last})
        return True

    async def _finish(self, data: bytes) -> None:
        self._mode = AnswerMode.DONE
        self._held.clear()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    # A stream

    async def _take_piece(self, data: bytes, last: bool) -> None:
        data = self._unknown + data
        if self._may_be_json:
            blank = not last and answer_form.MAYBE_JSON.fullmatch(data) is not None
            if blank and len(data) <= answer_form.MAX_BLANK:
                self._unknown = data
                return
            if blank or answer_form.JSON_BEGINS.match(data):
                self._unknown = b""
                self._mode = AnswerMode.WHOLE
                await self._take_whole(data, last)
                return
            self._may_be_json = False
            self._holds_head = declared_length(self._start["headers"]) is not None
            if not self._holds_head:
                await self._send_start(None)
        streamed = self._stream_of(data, last)
        if streamed is None:
            self._unknown = data
            return
        self._unknown = b""
        if self._holds_head:
            self._given.append(data)
        await streamed.take(data, last)

    async def _leave(self, data: bytes, done: bool) -> None:
        """Send what may leave of a stream; ``done``: there is no more. The turn is the caller's."""
        if self._holds_head:
            if data:
                self._held.append(data)
                self._held_size += len(data)
            if not done and self._held_size <= _MAX_HELD_TEXT:
                return
            data = b"".join(self._held)
            self._held.clear()
            changed = not done or data != b"".join(self._given)
            self._given.clear()
            try:
                await self._send_start(len(data) if done else None, changed=changed)
            except BaseException as exc:
                self.lost(exc)
                raise
        if done:
            self._mode = AnswerMode.DONE
        if data or done:
            try:
                await self._send({"type": "http.response.body", "body": data, "more_body": not done})
            except BaseException as exc:
                self.lost(exc)
                raise

    async def _end(self, stopped: Stopped, last: bytes, cut_off: bool) -> None:
        """A stream was stopped; ``last`` is all that is still to be sent of it. The turn is the caller's."""
        self._dropping.cut_off = True
        try:
            if self._holds_head:
                await self.stop(stopped)
                return
            self._mode = AnswerMode.STOPPED
            self._state.decide(stopped.decision)
            if cut_off:
                if last:
                    await self._send({"type": "http.response.body", "body": last, "more_body": True})
                self.error = ResponseAborted(f"response broken off after it had started: {stopped.cause}")
            else:
                await self._send_whole({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            self._on_stop(True)

    def _break_off(self, exc: Exception) -> None:
        """What leaves beside the app can't be sent any more: that is for the app's next send to raise."""
        self._mode = AnswerMode.STOPPED
        self._gone = exc
        self._dropping.cut_off = True

    def lost(self, exc: BaseException) -> None:
        """Break the answer off: a send was given up that was under way, and what it has taken will not come."""
        self._mode = AnswerMode.STOPPED
        self._dropping.cut_off = True
        if self._streamed is not None:
            self._streamed.abandon()
        # An OSError is how a server says that the client is gone, so that there is nothing to break off.
        if not isinstance(exc, OSError):
            self.error = ResponseAborted("response broken off: a send was cancelled that was under way")

    async def _drop(self, message: Message) -> None:
        """Take what the app sends although its answer was stopped."""
        if self._gone is not None:
            raise self._gone
        await self._dropping.take(message)

    async def send_abort_marker(self) -> None:
        """Tell the middlewares around this one that the answer was broken off."""
        await send_abort_marker(self._send, self.error)

    def close(self) -> None:
        """The exchange is over."""
        if self.judging:
            # A task that the app has left behind may still send. As for a client that has left: nobody judges it now.
            self.abandon()
        if self._streamed is not None:
            self._streamed.close()
