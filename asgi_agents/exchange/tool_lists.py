"""An answer that may list tools, on its way to whoever judges its text: those that may not be called are left out."""

from collections.abc import Callable
from typing import Final

from anyio.lowlevel import checkpoint
from starlette.types import Message, Send

from ..guardrails.dialect import Dialect, Stop
from ..guardrails.framing import UnreadableError
from ..guardrails.sse import SSEFramer
from ..guardrails.tool_listing import without_tools
from . import answer_form
from .headers import codings_of, media_type, without_body_claims
from .scope import RawHeaders
from .tool_gate import ToolGate

# How many bytes of an answer that is no stream are held.
_MAX_BYTES: Final = 16 * 1024 * 1024
_EVENTS: Final = "text/event-stream"


class ToolLists:
    """The app's ``send``.

    :param dialect: bound to the request, if that has been read.
    :param asked: whether a list was asked for. Otherwise the answer may be anything.
    :param send: takes what is left.
    :param on_stop: called when the client has an error in the list's place, to stop the app.
    """

    def __init__(
        self, gate: ToolGate, dialect: Dialect, asked: bool, send: Send, on_stop: Callable[[bool], None]
    ) -> None:
        self._gate = gate
        self._dialect = dialect
        self._asked = asked
        self._send = send
        self._on_stop = on_stop
        self._framer: SSEFramer | None = None
        # The head of an answer that is held until it is complete.
        self._start: Message | None = None
        self._held: list[bytes] = []
        self._size = 0
        self._stopped = False

    async def send(self, message: Message) -> None:
        """The app's ``send``."""
        if self._stopped:
            # The app is being stopped.
            await checkpoint()
        elif message["type"] == "http.response.start":
            await self._take_start(message)
        elif message["type"] == "http.response.body" and self._framer is not None:
            await self._take_events(self._framer, message)
        elif message["type"] == "http.response.body" and self._start is not None:
            await self._take_whole(self._start, message)
        else:
            await self._send(message)

    async def _take_start(self, message: Message) -> None:
        headers: RawHeaders = list(message.get("headers", ()))
        given = media_type(headers)
        if codings_of(headers):
            if self._asked or given == _EVENTS:
                await self._fail("a list of tools has a content-encoding")
                return
        elif given == _EVENTS:
            self._framer = SSEFramer()
            message = {**message, "headers": without_body_claims(headers, None)}
        elif self._asked and (given is None or answer_form.is_json(given)):
            self._start = {**message, "headers": headers}
            return
        await self._send(message)

    async def _take_events(self, framer: SSEFramer, message: Message) -> None:
        more = message.get("more_body", False)
        out: list[bytes] = []
        try:
            units = framer.feed(bytes(message.get("body", b"")))
            if not more:
                units += framer.end()
            for unit in units:
                data, hidden = without_tools(unit.data or b"", self._gate.hides)
                self._gate.note_hidden(hidden)
                out.append(unit.put_back(data) if hidden else unit.raw)
        except UnreadableError as exc:
            ending = self._dialect.reader(_EVENTS).ending(Stop(str(exc), 503)) or b""
            await self._end(b"".join((*out, ending)))
            return
        body = b"".join(out)
        if body or not more or not message.get("body"):
            await self._send({**message, "body": body})

    async def _take_whole(self, start: Message, message: Message) -> None:
        body = bytes(message.get("body", b""))
        self._held.append(body)
        self._size += len(body)
        if self._size > _MAX_BYTES:
            await self._fail(f"a list of tools of more than {_MAX_BYTES} bytes")
            return
        if message.get("more_body", False):
            return
        data = b"".join(self._held)
        self._held.clear()
        try:
            after, hidden = without_tools(data, self._gate.hides)
        except UnreadableError as exc:
            await self._fail(str(exc))
            return
        self._gate.note_hidden(hidden)
        if hidden:
            start = {**start, "headers": without_body_claims(start["headers"], len(after))}
        self._start = None
        await self._send(start)
        await self._send({**message, "body": after})

    async def _fail(self, fault: str) -> None:
        """Answer in the app's place. Nothing of its answer has left."""
        reply = self._dialect.reply(Stop(fault, 503))
        headers: RawHeaders = [
            (b"content-type", reply.media_type.encode()),
            (b"content-length", b"%d" % len(reply.body)),
        ]
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await self._end(reply.body)

    async def _end(self, last: bytes) -> None:
        self._stopped = True
        self._held.clear()
        await self._send({"type": "http.response.body", "body": last, "more_body": False})
        self._on_stop(True)
