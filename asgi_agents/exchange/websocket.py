"""One websocket session."""

import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any, Final

import anyio
from anyio.lowlevel import checkpoint
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from ..concurrency.limiter import Limiter
from ..decision import ALLOWED, AgentDecision, Verdict, unanimous
from ..errors import ClosedByAgent, caused_by_closing
from ..evaluation.chain import settle_frame
from ..evaluation.route_agent import RouteAgent
from ..protocol import ALLOW, Allow, EventType, Opcode, WebSocketDrop, WebSocketFrameEvent
from .base import Exchange, Summary
from .headers import apply_header_ops, apply_request_ops
from .inbound import Inbound
from .rendering import Renderers
from .reply import close_message, render_reply
from .response import RESPONSE_EVENTS, ResponseInspection
from .scope import App, OwnScope, client_ip, headers_of
from .state import ExchangeState
from .stopping import send_whole

# Seconds for a peer that doesn't answer a close frame.
_CLOSE_TIMEOUT = 5.0
# To look a member of an enumeration up by its name takes long (CPython 3.11).
_WEBSOCKET_FRAME = EventType.WEBSOCKET_FRAME
_TEXT, _BINARY = Opcode.TEXT, Opcode.BINARY

# What is customary for a client that left before the handshake was answered.
_LEFT: Final = 499


def serve_websocket(
    app: App,
    state: ExchangeState,
    scope: Scope,
    receive: Receive,
    send: Send,
    renderers: Renderers,
    stop_grace: float,
) -> Awaitable[Any]:
    """Take a session past its agents. Await what this returns; it comes to what the app returns."""
    return WebSocketExchange(state, scope, receive, send, renderers, stop_grace).run(app)


class _Direction:
    """What has passed in one direction: how many messages, and how many bytes."""

    __slots__ = ("client_to_server", "messages", "size")

    def __init__(self, *, client_to_server: bool) -> None:
        self.client_to_server = client_to_server
        self.messages = 0
        self.size = 0

    def count(self, message: Message) -> bytes:
        """The data of a message, counted. Of two payloads, the bytes."""
        self.messages += 1
        payload = message.get("bytes")
        if payload is None:
            # Python's str can hold what UTF-8 can't: an agent is to see that too.
            payload = (message.get("text") or "").encode("utf-8", "surrogatepass")
        self.size += len(payload)
        return payload if type(payload) is bytes else bytes(payload)


class WebSocketExchange(Exchange):
    """Takes the handshake and then every message, in both directions, past the agents.

    An app whose session an agent closes is cancelled ``stop_grace`` seconds later unless it has ended or noticed.
    """

    # A websocket may be open for days, beside thousands of others.
    __slots__ = (
        "_agents",
        "_app_scope",
        "_client_ip",
        "_close_error",
        "_closed",
        "_correlation_id",
        "_counting",
        "_denial",
        "_from_client",
        "_inbound",
        "_only",
        "_over",
        "_status",
        "_steps",
        "_to_client",
        "_tracing",
        "_turn",
    )

    def __init__(
        self,
        state: ExchangeState,
        scope: Scope,
        receive: Receive,
        send: Send,
        renderers: Renderers,
        stop_grace: float,
    ) -> None:
        super().__init__(state, scope, receive, send, renderers, stop_grace)
        self._agents = self._resolved_route.agents_for(EventType.WEBSOCKET_FRAME)
        self._steps = self._resolved_route.frame_steps
        # Where one agent receives messages, and keeps nothing of the connection: that one.
        self._only: RouteAgent | None = None
        if len(self._agents) == 1 and not self._resolved_route.keeping_requests:
            self._only = self._agents[0]
        self._counting = state.counting
        self._tracing = state.tracing
        self._correlation_id = state.correlation_id if self._agents else ""
        self._client_ip = client_ip(scope)
        self._from_client = _Direction(client_to_server=True)
        self._to_client = _Direction(client_to_server=False)
        # Messages of one direction must not overtake each other while they are judged.
        self._turn = Limiter(1)
        self._denial: ResponseInspection | None = None
        self._status = 0
        # One side has closed already: the server would raise for a second close.
        self._over = False
        self._closed: AgentDecision | None = None
        self._close_error: Exception | None = None
        self._app_scope: anyio.CancelScope | None = None
        self._inbound = Inbound(
            receive,
            screen=self._screen,
            judge=self._judge_received,
            may_suspend=self._may_suspend,
            wakeable=bool(self._agents),
            on_noticed=self._app_noticed,
        )

    async def _deny(self, decision: AgentDecision) -> None:
        self._state.decide(decision)
        if (await self._raw_receive())["type"] != "websocket.connect":
            self._status = _LEFT
            return
        if decision.websocket_decision is not None or not self._can_send_response:
            self._status = 403  # what servers make of a close before accept
            await self._raw_send(close_message(decision.close))
            return
        reply = render_reply(decision, self._scope, self._renderers)
        self._status = reply.status
        # Once the head is out the body has to follow.
        await send_whole(self._raw_send, *reply.messages("websocket."))
        self._to_client.size += len(reply.body)

    @property
    def _can_send_response(self) -> bool:
        return "websocket.http.response" in (self._scope.get("extensions") or {})

    async def _serve(self, app: App, decision: AgentDecision, provisional: Mapping[str, Verdict]) -> Any:
        self._app_called = True
        scope = self._scope
        own: OwnScope | None = None
        if self._state.request_ops:
            own = OwnScope(scope, {"headers": apply_request_ops(headers_of(scope), self._state.request_ops)})
            scope, self._raw_send = own.scope, own.sending(self._raw_send)
        result: Any = None
        try:
            if not self._listens:
                result = await app(scope, self._raw_receive, self._raw_send)
            elif not self._agents:
                result = await app(scope, self._inbound.receive, self._send)
            else:
                # The connection has its id by now.
                self._state.headers = None
                with anyio.CancelScope() as self._app_scope:
                    async with self._inbound.room():
                        result = await app(scope, self._inbound.receive, self._send)
        except Exception as exc:
            # The session ended as an agent decided; that the app met the end of it is no error. On trio, the scope
            # takes its cancellation out of a group of the app's.
            stopped = self._closed is not None or self._refusal_stopped
            if not (stopped and caused_by_closing(exc, WebSocketDisconnect)):
                raise
        finally:
            if own is not None:
                own.hand_back()
        if self._close_error is not None:
            raise self._close_error
        if self._denial is not None and self._denial.error is not None:
            raise self._denial.error
        return result

    def _may_suspend(self) -> bool:
        only = self._only
        if only is not None:
            return only.guard.may_suspend(_WEBSOCKET_FRAME)
        for agent in self._agents:  # noqa: SIM110 - any() and a generator, for each message, take longer
            if agent.guard.may_suspend(_WEBSOCKET_FRAME):
                return True
        return False

    @property
    def _refusal_stopped(self) -> bool:
        return self._denial is not None and self._denial.stopped

    @property
    def _listens(self) -> bool:
        """Whether anything of what follows the handshake concerns an agent."""
        events = (EventType.WEBSOCKET_FRAME, EventType.REQUEST_COMPLETE, *RESPONSE_EVENTS)
        return bool(self._state.response_ops) or any(self._resolved_route.agents_for(event) for event in events)

    def _screen(self, message: Message) -> bool:
        if message["type"] != "websocket.receive":
            if message["type"] == "websocket.disconnect":
                if not self._status and not self._over:
                    self._status = _LEFT
                self._over = True
            return True
        if self._agents:
            return False
        self._from_client.count(message)
        return True

    async def _send(self, message: Message) -> None:
        if not self._agents:
            await self._send_in_turn(message)
            return
        if not self._turn.try_acquire():
            await self._turn.acquire()
        try:
            if message["type"] == "websocket.send" and self._closed is None:
                await self._judge(self._to_client, message)
            else:
                await self._send_in_turn(message)
        finally:
            self._turn.release()

    async def _send_in_turn(self, message: Message) -> None:
        if self._closed is not None:
            # An app that goes on sending must let go of the event loop.
            await checkpoint()
            self._app_noticed()
            if message["type"] == "websocket.close":
                return  # the app agrees; a second close would make the server raise
            raise ClosedByAgent("an agent has closed this websocket")
        match message["type"]:
            case "websocket.send":
                self._to_client.count(message)
                await self._raw_send(message)
            case "websocket.accept":
                if self._state.response_ops:
                    headers = apply_header_ops(message.get("headers") or (), self._state.response_ops)
                    message = {**message, "headers": headers}
                await self._accept(message)
            case "websocket.http.response.start" | "websocket.http.response.body":
                await self._send_denial(message)
            case "websocket.close":
                if self._status == _LEFT and self._denial is None:
                    return  # nobody is there to be refused, so that no refusal is written down
                self._over = True
                await self._raw_send(message)
            case _:
                await self._raw_send(message)

    async def _accept(self, message: Message) -> None:
        try:
            await self._raw_send(message)
        except OSError:
            # The server says so that the client has left.
            self._status = _LEFT
            raise
        self._status = 101

    async def _send_denial(self, message: Message) -> None:
        """The app itself refuses the handshake: that is a response like any other."""
        if self._denial is None:
            self._denial = ResponseInspection(
                self._state,
                self._scope,
                self._raw_send,
                method="GET",
                renderers=self._renderers,
                on_stop=lambda cut_off: None,
                on_noticed=self._app_noticed,
                prefix="websocket.",
            )
        await self._denial.send(message)
        self._status = self._denial.status
        self._to_client.size = self._denial.bytes_sent

    def _judge_received(self, message: Message) -> Awaitable[None]:
        return self._judge(self._from_client, message)

    async def _judge(self, direction: _Direction, message: Message) -> None:
        """Show a message to the agents, and pass it on, drop it, or close the session, as they decide."""
        payload = message.get("bytes")
        if payload is not None and message.get("text") is not None:
            # Servers and apps differ in which of two payloads they take; one is judged, so one goes on.
            message = {**message, "text": None}
        state = self._state
        client_to_server = direction.client_to_server
        data = direction.count(message)
        event = WebSocketFrameEvent(
            correlation_id=self._correlation_id,
            opcode=_TEXT if payload is None else _BINARY,
            data=data,
            client_to_server=client_to_server,
            frame_index=direction.messages - 1,
            route_id=state.route,
            client_ip=self._client_ip,
        )
        only, decision = self._only, ALLOWED
        if only is None or state.closed or not self._tracing.idle:
            decision, event = await self._evaluate(event)
        else:
            # Most messages are like this: one agent, and it simply allows them.
            counting = self._counting
            verdict = await only.guard.call(event, only.failure_mode, False, only.route, True, not counting)
            if counting or verdict.response is not ALLOW:
                state.record((verdict,), every=False)
                if verdict.response is not ALLOW:
                    decision, event = settle_frame((verdict,), event)
        passes = decision is ALLOWED
        if not passes:
            passes = decision.is_allow
            if event.data is not data:
                message = _with_data(message, event)
                if not client_to_server:
                    direction.size += len(event.data) - len(data)
        if client_to_server:
            if passes:
                self._inbound.deliver(message)
            elif not _drops(decision):
                await self._close(decision)
        elif self._closed is not None:
            # By an agent, on a message in the other direction, meanwhile.
            self._app_noticed()
            raise ClosedByAgent("an agent has closed this websocket")
        elif passes:
            await self._raw_send(message)
        elif not _drops(decision):
            await self._close(decision)
            if self._inbound.tasks is None:
                raise ClosedByAgent("an agent has closed this websocket")

    async def _evaluate(self, event: WebSocketFrameEvent) -> tuple[AgentDecision, WebSocketFrameEvent]:
        """What the agents decide on a message, and the message as they have changed it."""
        decision = ALLOWED
        continued = False
        for step in self._steps:
            verdicts = await self._state.evaluate(step, event, chunk=False, final=True, continued=continued)
            continued = True
            plain = unanimous(verdicts)
            if not plain or self._counting:
                self._state.record(verdicts, every=False)
            if not plain:
                decision, event = settle_frame(verdicts, event)
                if not decision.is_allow:
                    break
        return decision, event

    async def _close(self, decision: AgentDecision) -> None:
        """Close the session on both sides. The app is told at once, however slow the client is to answer."""
        if self._closed is not None:
            return
        self._closed = decision
        self._state.decide(decision)
        message = close_message(decision.close)
        tasks = self._inbound.tasks
        # Without tasks the app has returned, and the server has closed the session: a task that it left behind is told.
        if not self._over and tasks is not None:
            tasks.start_soon(self._send_close, message)
            self._cancel_after_grace()
        self._inbound.end({**message, "type": "websocket.disconnect"})

    @property
    def _running(self) -> anyio.CancelScope | None:
        return None if self._inbound.tasks is None else self._app_scope

    async def _send_close(self, message: Message) -> None:
        try:
            # The client may have been quicker.
            with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True), suppress(OSError):
                await self._raw_send(message)
        except Exception as exc:
            # Out of the task group, which would wrap it.
            self._close_error = exc

    def _summary(self, error: BaseException | None) -> Summary:
        status = self._status or (403 if error is None else 500)
        return Summary(status, time.monotonic(), self._from_client.size, self._to_client.size)


def _with_data(message: Message, event: WebSocketFrameEvent) -> Message:
    # What is no UTF-8 is no mutation of a text: its agent has failed.
    return {**message, "text": event.data.decode()} if event.opcode is _TEXT else {**message, "bytes": event.data}


def _drops(decision: AgentDecision) -> bool:
    return isinstance(decision.websocket_decision, WebSocketDrop) and isinstance(decision.decision, Allow)
