"""Guardrails around an app's websocket session: the messages of both directions.

They stand nearest to the app. The agents of the route see what a client sends before them, and what the app sends as it
leaves here.

::

    TextSession.run      runs the app
      ├─> StreamedText   of the client's messages: what may reach the app is delivered to its `receive`
      └─> StreamedText   of the app's messages: what may leave is sent
"""

from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
from anyio.lowlevel import checkpoint
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from ..errors import ClosedByAgent, caused_by_closing
from ..failures import FailureKind
from ..guardrails.message import MAX_MESSAGE_BYTES, Payload, Reason
from ..guardrails.slots import Call, Kind
from .headers import without_body_claims
from .inbound import Inbound
from .reply import close_message, close_reason
from .scope import App, raises_when_gone
from .state import ExchangeState
from .text_answer import ANSWER_KINDS
from .text_asking import Asking, Stopped
from .text_leaving import LeavingMessages
from .text_messages import JudgedMessages, PolicedMessages, message_of, payload_of
from .text_stream import StreamedText

_CLIENT_KINDS: Final[frozenset[Kind]] = frozenset({"input", "tool_call", "tool_result", "reasoning"})
# Seconds for a peer that doesn't answer a close frame.
_CLOSE_TIMEOUT: Final = 5.0
_CLOSED: Final = "guardrails have closed this websocket"


class TextSession:
    """One websocket session on its way through guardrails."""

    def __init__(self, state: ExchangeState, stop_grace: float, scope: Scope, receive: Receive, send: Send) -> None:
        assert state.resolved_route.judges is not None
        self._state = state
        self._stop_grace = stop_grace
        self._scope = scope
        self._source = receive
        self._raw_send = send
        call = Call(dialect="websocket", scope=scope)
        self._policies = PolicedMessages(state.resolved_route.judges, state)
        self._asking = Asking(state, state.resolved_route.judges.of(call), call)
        path = str(scope["path"])
        self._from_client = JudgedMessages(self._asking, _CLIENT_KINDS, from_client=True, path=path)
        self._to_client = JudgedMessages(self._asking, ANSWER_KINDS, from_client=False, path=path)
        # No message was sent in either direction. What the app says before it has heard anything is its own.
        self._silent = True
        self._inbound = Inbound(
            self._next,
            screen=self._screen,
            judge=self._judge,
            may_suspend=lambda: False,
            wakeable=True,
            on_noticed=self._app_noticed,
        )
        # What was read of the client and has not been judged, and whether more is being read.
        self._unjudged: deque[Message] = deque()
        self._reading = False
        # The end of the client's messages: the app gets it behind them.
        self._disconnect: Message | None = None
        self._accepted = False
        self._client_gone = False
        # One side has closed already: the server would raise for a second close.
        self._over = False
        self._closed = False
        self._close_error: Exception | None = None
        self._app_scope: anyio.CancelScope | None = None
        self._leaving = LeavingMessages(send, self._broken_off)
        # The head of a response to the handshake, until its body was judged.
        self._denial: Message | None = None
        # What the server has raised while something was sent beside the app.
        self._gone: Exception | None = None

    async def run(self, app: App) -> Any:
        """The whole session. Returns what the app returns."""
        result: Any = None
        try:
            with anyio.CancelScope() as self._app_scope:
                result = await self._inbound.run_app(partial(self._call_app, app), beside=True)
        except Exception as exc:
            # The session ended as a guardrail decided; that the app met the end of it is no error. On trio, the scope
            # takes its cancellation out of a group of the app's.
            if not (self._closed and caused_by_closing(exc, WebSocketDisconnect)):
                raise
        finally:
            for direction in (self._from_client, self._to_client):
                if direction.text is not None:
                    direction.text.close()
        if self._close_error is not None:
            raise self._close_error
        return result

    async def _call_app(self, app: App) -> Any:
        self._from_client.text = self._text_of(
            self._from_client, _CLIENT_KINDS, FailureKind.REQUEST_UNREADABLE, leave=self._deliver, end=self._end_client
        )
        self._to_client.text = self._text_of(
            self._to_client, ANSWER_KINDS, FailureKind.RESPONSE_UNREADABLE, leave=self._leave, end=self._end_app
        )
        result = await app(self._scope, self._inbound.receive, self._send)
        if self._accepted:
            # The server closes it now.
            await self._finish()
        return result

    def _text_of(
        self, direction: JudgedMessages, kinds: frozenset[Kind], unreadable: FailureKind, *, leave: Any, end: Any
    ) -> StreamedText[list[Payload]] | None:
        judges = self._asking.judges.on(kinds)
        if not judges:
            return None
        return StreamedText(
            direction.stream,
            self._asking,
            judges,
            direction.turn,
            self._inbound.tasks,
            leave=leave,
            end=end,
            broken=partial(self._broken, direction is self._from_client),
            unreadable=unreadable,
            may_be_earlier=True,
        )

    # What the client sends

    async def _next(self) -> Message | None:
        """The next message of the client. None: something may have been delivered meanwhile."""
        if self._unjudged:
            return self._unjudged.popleft()
        text, stream, tasks = self._from_client.text, self._from_client.stream, self._inbound.tasks
        if text is None or text.over or tasks is None or not (stream.waiting or self._reading or self._disconnect):
            return await self._read()
        # What waits may be due before the next message comes. The server must not be asked twice at a time.
        if not (self._reading or self._disconnect or stream.full):
            self._reading = True
            tasks.start_soon(self._read_ahead, text)
        await text.progress()
        return None

    async def _read(self) -> Message:
        message = await self._source()
        if message["type"] == "websocket.receive":
            self._silent = False
        return message

    async def _read_ahead(self, text: StreamedText[list[Payload]]) -> None:
        try:
            self._unjudged.append(await self._read())
        except Exception as exc:
            # That is for the app's receive to tell.
            self._inbound.error = exc
        finally:
            self._reading = False
            text.notify()

    def _screen(self, message: Message) -> bool:
        """Whether a message passes as it is."""
        kind = message["type"]
        text = self._from_client.text
        if kind == "websocket.disconnect":
            self._over = self._client_gone = True
            self._leaving.clear()
            if self._to_client.text is not None:
                self._to_client.text.abandon()
            # What the client has sent before is judged and delivered first, and its reason is judged.
            return text is None or text.over or not (self._from_client.stream.waiting or message.get("reason"))
        return kind != "websocket.receive" or ((text is None or text.over) and not self._policies.guards)

    async def _judge(self, message: Message) -> None:
        text, turn = self._from_client.text, self._from_client.turn
        if self._policies.guards and message["type"] == "websocket.receive":
            denied = self._policies.check(payload_of(message))
            if denied is not None:
                self._close(denied)
                return
        if text is None or text.over:
            self._inbound.deliver(message)
            return
        # The app may give up waiting for it: it is the next one's then.
        self._unjudged.append(message)
        if not turn.try_acquire():
            await turn.acquire()
        try:
            message = self._unjudged.popleft()
            if message["type"] == "websocket.disconnect":
                self._disconnect = message
                await text.take(_reason_of(message), True)
            else:
                await text.take([payload_of(message)], False)
        finally:
            turn.release()

    async def _deliver(self, messages: list[Payload], done: bool) -> None:
        """The app is to get what may reach it."""
        for payload in messages:
            if isinstance(payload, Reason):
                self._disconnect = {**(self._disconnect or {}), "reason": close_reason(payload)}
            else:
                self._inbound.deliver(message_of("websocket.receive", payload))
        if done and self._disconnect is not None:
            self._inbound.deliver(self._disconnect)

    async def _end_client(self, stopped: Stopped, messages: list[Payload], cut_off: bool) -> None:
        self._close(stopped)

    # What the app sends

    async def _send(self, message: Message) -> None:
        if self._closed:
            # An app that goes on sending must let go of the event loop.
            await checkpoint()
            self._app_noticed()
            if message["type"] == "websocket.close":
                return  # the app agrees; a second close would make the server raise
            raise ClosedByAgent(_CLOSED)
        if self._gone is not None:
            raise self._gone
        kind, text = message["type"], self._to_client.text
        if self._silent and kind == "websocket.send":
            self._silent = False
            for direction in (self._from_client, self._to_client):
                direction.stream.note_first(payload_of(message))
        if kind == "websocket.send" and self._policies.guards:
            given = payload_of(message)
            try:
                listed = self._policies.listed(given)
            except Stopped as stopped:
                self._close(stopped)
                return
            if listed is not given:
                message = message_of(kind, listed)
        if kind == "websocket.send" and text is not None:
            await self._take(text, [payload_of(message)], last=False)
            return
        if text is not None and kind == "websocket.http.response.start":
            self._denial, self._leaving.body = message, []
            return
        body = self._leaving.body
        if (
            text is not None
            and kind == "websocket.http.response.body"
            and self._denial is not None
            and body is not None
        ):
            await self._deny(text, self._denial, body, message)
            return
        if kind == "websocket.close":
            reason = _reason_of(message)
            await self._finish(reason)
            if self._closed:
                return
            self._over = True
            if reason and text is not None:
                message = {**message, "reason": self._leaving.reason}
        self._accepted = self._accepted or kind == "websocket.accept"
        await self._raw_send(message)

    async def _take(self, text: StreamedText[list[Payload]], messages: list[Payload], *, last: bool) -> None:
        if text.over:
            # It would be judged by nobody, and there is nobody to read it: as servers do then.
            if not self._client_gone:
                raise RuntimeError("Unexpected ASGI message 'websocket.send': the websocket is closed.")
            if raises_when_gone(self._scope):
                raise OSError("the client has closed this websocket")
            return
        turn = self._to_client.turn
        # What is sent from two tasks must not overtake what is being judged.
        if not turn.try_acquire():
            await turn.acquire()
        try:
            self._leaving.sends = "own" if messages else "close"
            await text.take(messages, last)
        finally:
            self._leaving.sends = None
            turn.release()
        if last or self._to_client.stream.full:
            await text.wait(last)
        if self._gone is not None:
            raise self._gone

    async def _deny(
        self, text: StreamedText[list[Payload]], start: Message, pieces: list[bytes], message: Message
    ) -> None:
        """The app refuses the handshake with a response: its body is judged as one message, before its head leaves."""
        pieces.append(bytes(message.get("body", b"")))
        if message.get("more_body", False) and sum(map(len, pieces)) <= MAX_MESSAGE_BYTES:
            return
        given = b"".join(pieces)
        pieces.clear()
        await self._take(text, [given], last=True)
        if self._closed:
            return
        body = b"".join(pieces)
        self._denial = self._leaving.body = None
        if body != given:
            start = {**start, "headers": without_body_claims(list(start.get("headers", ())), len(body))}
        await self._raw_send(start)
        await self._raw_send({**message, "body": body})

    async def _finish(self, reason: list[Payload] | None = None) -> None:
        """The app has sent everything: send what is held, unless it must not pass.

        :param reason: why the app closes the session, if it says so.
        """
        text = self._to_client.text
        if text is not None and not text.over:
            # The app may have given up closing it before.
            again = self._to_client.stream.finished
            await self._take(text, [] if again or reason is None else reason, last=True)
        if self._leaving.pending:
            # What an earlier send was given up over.
            await self._leaving.drain()

    async def _leave(self, messages: list[Payload], done: bool) -> None:
        """Send what may leave. The turn is the caller's."""
        await self._leaving.leave(messages, self._inbound.tasks, last=not self._to_client.stream.waiting)

    def _broken_off(self, error: Exception) -> None:
        if self._to_client.text is not None:
            self._to_client.text.abandon()
        self._broken(False, error)

    async def _end_app(self, stopped: Stopped, messages: list[Payload], cut_off: bool) -> None:
        try:
            if not self._closed:
                await self._leave(messages, True)
        finally:
            self._close(stopped)

    # The end of the session

    def _close(self, stopped: Stopped) -> None:
        """Close the session on both sides. The app is told at once, however slow the client is to answer."""
        if self._closed:
            return
        self._closed = True
        self._leaving.clear()
        for direction in (self._from_client, self._to_client):
            if direction.text is not None:
                direction.text.abandon()
        self._state.decide(stopped.decision)
        message = close_message(stopped.decision.close)
        tasks, scope = self._inbound.tasks, self._app_scope
        # Without tasks the app has returned, and the server has closed the session: a task that it left behind is told.
        if not self._over and tasks is not None and scope is not None:
            tasks.start_soon(self._send_close, message)
            if self._stop_grace:
                scope.deadline = anyio.current_time() + self._stop_grace
            else:
                scope.cancel()
        self._inbound.end({**message, "type": "websocket.disconnect"})

    async def _send_close(self, message: Message) -> None:
        try:
            # The client may have been quicker.
            with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True), suppress(OSError):
                await self._raw_send(message)
        except Exception as exc:
            # Out of the task group, which would wrap it.
            self._close_error = exc

    def _app_noticed(self) -> None:
        if self._app_scope is not None:
            self._app_scope.deadline = float("inf")

    def _broken(self, from_client: bool, error: Exception) -> None:
        """Something was raised beside the app: that is for its next send or receive. Nothing passes any more."""
        if from_client:
            self._inbound.error = error
        else:
            self._gone = error


def _reason_of(message: Message) -> list[Payload]:
    """The reason of a close or disconnect, if it has one."""
    reason = message.get("reason")
    return [Reason(reason)] if reason else []
