"""The app's response on its way to the client."""

import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from typing import Any, Final

from starlette.types import Message, Scope, Send

from ..concurrency.limiter import Limiter
from ..decision import AgentDecision, Verdict
from ..errors import ResponseAborted
from ..evaluation.route_agent import RouteAgent
from ..protocol import Block, EventType, Headers, ResponseHeadersEvent
from .body import BodyInspection
from .head import judge_head, skipping_body
from .headers import codings_of, media_type, without_body_claims, without_headers
from .rendering import Renderers
from .reply import describe, render_reply
from .response_agents import agents_for_types, agents_shown_parts, enforced, needing_whole_bodies
from .response_headers import HeaderChanges
from .scope import RawHeaders, declared_length, header
from .state import ExchangeState
from .stopping import Dropping, send_abort_marker, send_whole
from .units import Cutter, StreamedType, last_unit, streamed_type


class _Phase(Enum):
    IDLE = auto()  # the app has sent nothing
    HELD = auto()  # its http.response.start waits for a verdict
    OPEN = auto()  # the client has the start
    DONE = auto()  # the client has everything
    REPLACED = auto()  # the client has, or is getting, something else
    CUT = auto()  # the client has a part, and the connection is to be broken off


# To look a member of an enumeration up by its name takes long (CPython 3.11).
_IDLE, _HELD, _OPEN, _DONE, _REPLACED, _CUT = _Phase
_RESPONSE_HEADERS: Final = EventType.RESPONSE_HEADERS
_RESPONSE_BODY_CHUNK: Final = EventType.RESPONSE_BODY_CHUNK

RESPONSE_EVENTS = (_RESPONSE_HEADERS, _RESPONSE_BODY_CHUNK)

# What would send a file's bytes past us. They are not offered where bodies are inspected.
BODY_BYPASSES = frozenset({"http.response.pathsend", "http.response.zerocopysend"})


def without_bypasses(scope: Scope) -> dict[str, Any]:
    """The change in the scope of an app whose response body is inspected: no extension may send a file past us."""
    extensions = scope.get("extensions")
    if not extensions or BODY_BYPASSES.isdisjoint(extensions):
        return {}
    return {"extensions": {name: value for name, value in extensions.items() if name not in BODY_BYPASSES}}


class ResponseInspection:
    """The app's ``send``: holds the response back until it is judged, and replaces it or breaks it off if it is denied.

    :param on_stop: called when the client has its answer. True: the app is cut off, because its request was refused or
        its response was broken off or ended early. False: its response was replaced, and it may go on as it likes.
    :param on_noticed: called when an app that was stopped has noticed it, or has sent its whole response nevertheless.
    """

    __slots__ = (
        "_bodiless",
        "_body",
        "_body_agents",
        "_changes",
        "_dropping",
        "_encoded",
        "_head_agents",
        "_headers",
        "_last_piece",
        "_method",
        "_on_stop",
        "_phase",
        "_prefix",
        "_promised",
        "_renderers",
        "_scope",
        "_send",
        "_start",
        "_started",
        "_state",
        "_streamed",
        "_tail",
        "_turn",
        "_waits_for_first",
        "bytes_sent",
        "error",
        "finished_at",
        "inspects",
        "inspects_bodies",
        "status",
    )

    def __init__(
        self,
        state: ExchangeState,
        scope: Scope,
        send: Send,
        *,
        method: str,
        renderers: Renderers,
        on_stop: Callable[[bool], None],
        on_noticed: Callable[[], None],
        prefix: str = "",
    ) -> None:
        self.status = 0
        self.bytes_sent = 0
        self.finished_at: float | None = None
        self.error: ResponseAborted | None = None
        self._state = state
        self._scope = scope
        self._send = send
        self._method = method
        self._renderers = renderers
        self._on_stop = on_stop
        self._prefix = prefix
        self._phase = _IDLE
        self._started = False
        self._dropping = Dropping(scope, "an agent has stopped this response", on_stop=on_stop, on_noticed=on_noticed)
        self._turn = Limiter(1)
        self._start: Message = {}
        self._headers: RawHeaders = []
        self._body: BodyInspection | None = None
        self._bodiless = False
        self._changes = HeaderChanges()
        self._encoded = False
        # What is known of a body that streams in units, and the end of what the client has of it.
        self._streamed: StreamedType | None = None
        self._tail = b""
        # The length that the head has declared, where the end is still to be judged, and the piece that waits for that.
        self._promised: int | None = None
        self._last_piece = b""
        # The head waits for the verdict on the body's first piece, and for no more.
        self._waits_for_first = False
        resolved_route = state.resolved_route
        self._head_agents = resolved_route.agents_for(_RESPONSE_HEADERS)
        self._body_agents = resolved_route.agents_for(_RESPONSE_BODY_CHUNK)
        self.inspects_bodies = bool(self._body_agents)
        #: Whether any agent receives the response.
        self.inspects = self.inspects_bodies or bool(self._head_agents)

    @property
    def stopped(self) -> bool:
        """Whether the client gets something else than what the app sends."""
        return self._phase in (_REPLACED, _CUT)

    async def send(self, message: Message) -> None:
        """The app's ``send``."""
        if not self.inspects:
            await self._dispatch(message)
            return
        # What is sent from two tasks must not overtake what is being judged.
        if not self._turn.try_acquire():
            await self._turn.acquire()
        try:
            await self._dispatch(message)
        finally:
            self._turn.release()

    async def _dispatch(self, message: Message) -> None:
        phase = self._phase
        if phase is _REPLACED or phase is _CUT:
            await self._dropping.take(message)
            return
        kind = message["type"].removeprefix(self._prefix)
        if kind == "http.response.start":
            await self._take_start(message)
        elif kind == "http.response.body":
            await self._take_body(message)
        elif kind in BODY_BYPASSES:
            await self._take_file(message)
        elif kind == "http.response.trailers" and self._phase is _HELD:
            await self._show_too_early(message)
        elif kind == "http.response.trailers":
            await self._send(self._changes.trailers(message))
        elif kind == "http.response.early_hint":
            if self._changes.allow_hint(self._state.response_ops):
                await self._send(message)
        else:
            # Push, debug, and whatever comes to be.
            await self._send(message)
        if self._dropping.cut_off:
            # By what was sent just now, or while it was judged: as for a client that leaves meanwhile.
            await self._dropping.take(message)

    async def stop(self, decision: AgentDecision, *, cut_off: bool = False) -> None:
        """Carry out a decision that isn't allow: reply in the app's place, or break off what has begun.

        Sends first; ``on_stop`` follows, so that the client does not wait for an app that is slow to end.

        :param cut_off: the app is to find its client gone also where nothing of its response has reached the client.
        """
        match self._phase:
            case _Phase.IDLE | _Phase.HELD:
                self._phase = _REPLACED
                self._state.decide(decision)
                try:
                    await self._reply(decision)
                finally:
                    self._dropping.cut_off = cut_off
                    self._on_stop(cut_off)
            case _Phase.OPEN if (ending := self._ending(decision)) is not None:
                self._phase = _REPLACED
                self._state.decide(decision)
                try:
                    await self._send_last(ending)
                finally:
                    self._dropping.cut_off = True
                    self._on_stop(True)
            case _Phase.OPEN:
                self._phase = _CUT
                self._state.decide(decision)
                self.finished_at = time.monotonic()
                self.error = ResponseAborted(f"response broken off after it had started: {describe(decision)}")
                self._dropping.cut_off = True
                self._on_stop(True)
            case _:
                # The client has the whole response, or another decision was quicker.
                pass

    async def send_abort_marker(self) -> None:
        """Tell the middlewares around this one that the response was broken off, if it was."""
        if self._phase is _CUT and self._started:
            await send_abort_marker(self._send, self.error, self._prefix)

    async def release_head(self) -> None:
        """The app has ended, perhaps by raising, before it sent any of the body: the head waits for nothing more.

        Then the server makes of it what it would have made of the app alone. But the head is not let go where an agent
        has denied it, and only its answer to the body could have taken that back; nor where the body is buffered, so
        that the decision on the body would have been one on the head as well.
        """
        if self._phase is not _HELD or not self._waits_for_first:
            return
        assert self._body is not None
        if self._body.denial is not None:
            await self.stop(self._body.denial)
        elif not self._body.holding:
            await self._release_start(None)

    def _ending(self, decision: AgentDecision) -> bytes | None:
        """What ends the body in good order, whole units behind it; None where the connection has to be broken off."""
        if self._streamed is None or (self._encoded and not (self._body and self._body.decoded)):
            return None
        return last_unit(self._streamed, decision, media_type(self._headers) or "", sent=self._tail)

    async def _reply(self, decision: AgentDecision) -> None:
        # Those of earlier events have not met a response yet.
        earlier = [*self._changes.always, *(op for op in self._state.response_ops if op.always)]
        reply = render_reply(decision, self._scope, self._renderers, earlier=earlier)
        start, body = reply.messages(self._prefix)
        if self._method == "HEAD":
            body["body"] = b""
        self.status = reply.status
        if await self._send_whole(start, body):
            self.bytes_sent = len(body["body"])

    async def _send_last(self, data: bytes) -> None:
        if await self._send_whole({"type": f"{self._prefix}http.response.body", "body": data}):
            self.bytes_sent += len(data)

    async def _send_whole(self, *messages: Message) -> bool:
        """Send messages that belong together. Returns whether the client has taken them."""
        error = await send_whole(self._send, *messages)
        self.finished_at = time.monotonic()
        if error is not None:
            self._phase = _CUT
            self.error = error
        return error is None

    async def _take_start(self, message: Message) -> None:
        if self._phase is _HELD:
            # The server has not seen the first one, so it could not complain about the second.
            raise RuntimeError("Unexpected ASGI message 'http.response.start': the response has already been started.")
        if self._phase is not _IDLE:
            await self._send({**message, "headers": []} if self.inspects else message)
            return
        try:
            await self._judge_start(message)
        except BaseException as exc:
            self._interrupted(exc)
            raise

    async def _judge_start(self, message: Message) -> None:
        status: int = message["status"]
        # RFC 9110, section 6.4.1: these have no content.
        self._bodiless = self._method == "HEAD" or status < 200 or status in (204, 304)
        if not self.inspects and not self._state.response_ops:
            self.status = status
            self._phase = _OPEN
            self._state.response_head_gone = True
            await self._send(message)
            return
        self._phase = _HELD
        self._start = message
        self._headers = self._changes.apply(message.get("headers", ()), self._state.response_ops)
        self._state.response_ops = ()
        given_type = media_type(self._headers)
        provisional: dict[str, Verdict] = {}
        skipping: set[str] = set()
        if self._head_agents:
            event = ResponseHeadersEvent(
                correlation_id=self._state.correlation_id,
                status=status,
                headers=Headers.from_raw(self._headers),
            )
            body_agents = () if self._bodiless else agents_for_types(self._body_agents, [given_type])
            decision, provisional = await judge_head(self._state, event, body_agents=body_agents)
            if self.stopped:
                return
            if not decision.is_allow:
                await self.stop(decision)
                return
            self._headers = self._changes.apply(self._headers, decision.response_headers)
            skipping = skipping_body(decision)
        # The type that counts is the one that the client is sent. But an agent that was shown the type of the app's
        # response as one that it receives is shown the body as well.
        agents = agents_for_types(self._body_agents, [given_type, media_type(self._headers)], skipping)
        if needing_whole_bodies(agents):
            # The client must not be told that it may ask for parts.
            self._headers = without_headers(self._headers, {b"accept-ranges"})
        shown_parts = agents_shown_parts(agents, self._body_agents, status, self._headers, skipping)
        refused_by = () if self._bodiless else needing_whole_bodies(shown_parts)
        if refused_by:
            # RFC 9110, section 15.5.17.
            block = Block(416, "Ranges are not available here")
            await self.stop(AgentDecision(decision=block, decided_by=refused_by[0]))
            return
        if self._method == "HEAD" and any(agent.guard.config.body_access == "write" for agent in enforced(agents)):
            # What GET would say of the body is not known (RFC 9110, section 9.3.2): an agent could change it.
            self._headers = without_body_claims(self._headers, None)
        if agents and not self._bodiless:
            refusal = self._begin_body(agents, provisional)
            if refusal is not None:
                await self.stop(refusal)
                return
            assert self._body is not None
            if self._body.holding or self._waits_for_first:
                return
        await self._release_start(None)

    def _begin_body(self, agents: Sequence[RouteAgent], provisional: Mapping[str, Verdict]) -> AgentDecision | None:
        """Get ready to show the body to ``agents``. Returns the decision that refuses it by its head alone, or None."""
        codings = codings_of(self._headers)
        self._encoded = bool(codings)
        self._streamed = streamed_type(media_type(self._headers))
        cutter: Callable[[], Cutter] | None = None
        if self._streamed is not None:
            # Its end may be one of ours, so that its length is not the app's to say.
            self._headers = without_headers(self._headers, {b"content-length"})
            cutter = partial(self._streamed.cutter, header(self._headers, b"content-type") or "")
        length = declared_length(self._headers)
        self._body = BodyInspection(
            self._state,
            _RESPONSE_BODY_CHUNK,
            agents=agents,
            codings=codings,
            length=length,
            provisional=provisional,
            cutter=cutter,
        )
        self._waits_for_first = bool(length) or any(agent.guard.config.hold_head for agent in agents)
        return self._body.admit()

    async def _take_body(self, message: Message) -> None:
        if self.inspects_bodies and self._phase not in (_HELD, _OPEN):
            # Too early or too late: the server raises. If it doesn't, it has been given nothing that was not judged.
            await self._send({**message, "body": b""})
            return
        last = not message.get("more_body", False)
        body = self._body
        if body is None:
            if self._bodiless and self.inspects_bodies and message.get("body"):
                # No client may see it, so no agent did: keep it from a server that would send it all the same.
                message = {**message, "body": b""}
            await self._forward(message, last)
            return
        given = message.get("body", b"")
        data = given if isinstance(given, bytes) else bytes(given)
        try:
            result = await body.feed(data, last)
            if self._phase is not _OPEN:
                if self.stopped:
                    return
                if not isinstance(result, bytes):
                    await self.stop(result)
                    return
                if self._phase is _HELD:
                    if not last and (body.holding or (self._waits_for_first and not body.judged)):
                        return
                    await self._release_start(len(result) if last else None)
                    if self.stopped:
                        return
            elif not isinstance(result, bytes):
                await self.stop(result)
                return
            if self._promised is not None:
                result = await self._short_of_the_end(message, result, last)
            if result or last or not data:
                if self._streamed is not None:
                    self._tail = (self._tail + result[-4:])[-4:]
                await self._forward(message if result is given else {**message, "body": result}, last)
        except BaseException as exc:
            self._interrupted(exc)
            raise

    async def _short_of_the_end(self, message: Message, data: bytes, last: bool) -> bytes:
        """``data``, or nothing while the client would take the response for complete with it, and it is not."""
        assert self._promised is not None
        if self._last_piece and (last or data):
            piece, self._last_piece = self._last_piece, b""
            # The messages are those of the app: it may end by an empty one.
            await self._forward({**message, "body": piece, "more_body": True}, False)
            if not last:
                # It is longer than it should be, which the server tells the app. No more of it waits.
                self._promised = None
        elif not last and data and self.bytes_sent + len(data) >= self._promised:
            self._last_piece = data
            return b""
        return data

    async def _take_file(self, message: Message) -> None:
        if self.inspects_bodies:
            raise RuntimeError(
                f"The app sent {message['type']!r}, which was not offered to it: agents inspect this response's body."
            )
        await self._forward(message, not message.get("more_body", False))

    async def _show_too_early(self, message: Message) -> None:
        """Trailers before the body has ended: a server says so, but needs to have seen the start for it.

        It gets both without headers, and so nothing that was not judged.
        """
        self._phase = _CUT
        self.error = ResponseAborted("response broken off: the app sent trailers before the end of the body")
        await self._send({**self._start, "headers": []})
        await self._send({**message, "headers": []})

    def _interrupted(self, exc: BaseException) -> None:
        """Break the response off if the app gives up a send while its message is judged, or held back here.

        The message is lost then, and what the app sends next would be sent with a gap before it.
        """
        if self.inspects and self._phase in (_HELD, _OPEN):
            self._phase = _CUT
            # An OSError is how a server says that the client is gone, so that there is no response to break off.
            if not isinstance(exc, OSError):
                self.error = ResponseAborted("response broken off: the app cancelled a send that was under way")

    async def _release_start(self, length: int | None) -> None:
        """Let the head go; ``length`` is the size of the body where all of it is known."""
        body = self._body
        headers = self._changes.apply(self._headers, self._state.response_ops)
        if body is not None and body.alters(ended=length is not None):
            headers = without_body_claims(headers, length, decoded=body.decoded)
        if body is not None and length is None:
            self._promised = declared_length(headers)
        self._phase = _OPEN
        self._started = self._state.response_head_gone = True
        self.status = self._start["status"]
        await self._send({**self._start, "headers": headers})

    async def _forward(self, message: Message, last: bool) -> None:
        if last:
            # Before the send, not after it: the decision on what the client has must not wait for the client.
            self._phase = _DONE
        await self._send(message)
        if not self._bodiless:
            self.bytes_sent += len(message.get("body", b""))
        if last:
            self.finished_at = time.monotonic()
