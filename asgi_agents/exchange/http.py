"""One HTTP request and its response."""

import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Final, TypeVar

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from ..decision import AgentDecision, Verdict, merge, unanimous
from ..errors import caused_by_closing
from ..evaluation.evaluate import evaluate
from ..evaluation.route_agent import RouteAgent
from ..protocol import EventType
from .attendance import Attendance
from .base import Exchange, Summary
from .body import BodyInspection
from .head import head_event, skipping_body
from .headers import acceptable, apply_request_ops, codings_of, with_length, without_body_claims, without_headers
from .inbound import Inbound
from .rendering import Renderers
from .response import ResponseInspection, without_bypasses
from .scope import App, OwnScope, RawHeaders, certainly_bodiless, declared_length, header, headers_of, may_have_body
from .spool import Spool
from .state import ExchangeState

T = TypeVar("T")

_DISCONNECT: Message = {"type": "http.disconnect"}
_RANGE_HEADERS = frozenset({b"range", b"if-range"})
_CODING_HEADERS = frozenset({b"accept-encoding"})

# To look a member of an enumeration up by its name takes long (CPython 3.11).
_REQUEST_BODY_CHUNK: Final = EventType.REQUEST_BODY_CHUNK
_RESPONSE_BODY_CHUNK: Final = EventType.RESPONSE_BODY_CHUNK
_REQUEST_COMPLETE: Final = EventType.REQUEST_COMPLETE


async def serve_http(
    app: App,
    state: ExchangeState,
    scope: Scope,
    receive: Receive,
    send: Send,
    renderers: Renderers,
    stop_grace: float,
) -> Any:
    """Take a request past its agents, and the response back. Returns what the app returns.

    An exchange carries out what agents decide. Of most requests the head is all that any agent receives, and all agents
    simply allow it: there is nothing to carry out then. So the agents of such a head are asked here, and their decision
    is given to an exchange only where it is something else. For any other request the exchange asks the agents itself.
    """
    if not state.resolved_route.plain_heads_only:
        return await HttpExchange(state, scope, receive, send, renderers, stop_grace).run(app)
    asking = evaluate(state.resolved_route.head_agents, head_event(state, scope))
    verdicts: Sequence[Verdict] | None
    if state.resolved_route.heads_may_wait:
        attendance = Attendance(receive, state, head=scope)
        verdicts = await attendance.wait_for(asking)
        if verdicts is None:
            return None
        receive = attendance.remaining
    else:
        verdicts = await asking
    if unanimous(verdicts):
        state.record_allow(verdicts)
        return await app(scope, receive, send)
    state.record(verdicts)
    return await HttpExchange(state, scope, receive, send, renderers, stop_grace).run(app, merge(verdicts))


class HttpExchange(Exchange):
    """Takes a request to its agents, then to the app, and the response back past the agents.

    An app whose request is refused while it runs, or whose response is broken off or ended early, finds its client
    gone. It is cancelled ``stop_grace`` seconds later unless it has ended or noticed.
    """

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
        self._made_response: ResponseInspection | None = None
        self._inbound: Inbound | None = None
        self._body: BodyInspection | None = None
        self._body_ended = False
        self._declared_length: int | None = None
        self._disconnected = False
        # While the body is judged before the app is called.
        self._attendance: Attendance | None = None
        self._bytes_received = 0
        self._bytes_passed = 0
        self._app_scope: anyio.CancelScope | None = None
        self._spool: Spool | None = None

    @cached_property
    def _may_have_body(self) -> bool:
        return may_have_body(self._scope)

    @property
    def _response(self) -> ResponseInspection:
        # Most requests are allowed, and most agents are not shown responses.
        if self._made_response is None:
            self._made_response = ResponseInspection(
                self._state,
                self._scope,
                self._raw_send,
                method=self._scope.get("method", "GET"),
                renderers=self._renderers,
                on_stop=self._stop_app,
                on_noticed=self._app_noticed,
            )
        return self._made_response

    def _body_agents(self) -> Sequence[RouteAgent]:
        return self._resolved_route.agents_for(_REQUEST_BODY_CHUNK) if self._may_have_body else ()

    def _while_there(self, call: Coroutine[Any, Any, T]) -> Awaitable[T | None]:
        return self._ask_while_there(call) if self._resolved_route.heads_may_wait else call

    async def _ask_while_there(self, call: Coroutine[Any, Any, T]) -> T | None:
        attendance = Attendance(self._raw_receive, self._state, head=self._scope)
        result = await attendance.wait_for(call)
        self._disconnected = attendance.left
        self._raw_receive = attendance.remaining
        return result

    async def _deny(self, decision: AgentDecision) -> None:
        await self._response.stop(decision)

    async def _serve(self, app: App, decision: AgentDecision, provisional: Mapping[str, Verdict]) -> Any:
        refusal = self._begin_body(decision, provisional)
        if refusal is not None:
            await self._response.stop(refusal)
            return None
        if (
            self._body is not None
            or self._resolved_route.inspects_responses
            or self._resolved_route.agents_for(_REQUEST_COMPLETE)
        ):
            source, body = self._raw_receive, self._body
            if body is not None and body.may_suspend and (body.holding or body.spools):
                self._attendance = Attendance(source, self._state)
                source = self._attendance.receive
            self._inbound = Inbound(
                source,
                screen=self._screen,
                judge=self._judge,
                may_suspend=lambda: self._body is not None and self._body.may_suspend,
                on_noticed=self._app_noticed,
                # The server takes a client whose response we break off for one that is still there.
                wakeable=self._body is not None or self._resolved_route.inspects_responses,
            )
        if self._body is None or certainly_bodiless(self._scope):
            return await self._call_app(app)
        if self._body.spools:
            self._spool = Spool()
        try:
            # Whatever the head declares: what counts is what arrives.
            while self._waits_for_body:
                assert self._inbound is not None
                await self._inbound.pull()
            if self._stopped:
                return None
            if self._disconnected and (self._bytes_received or self._may_have_body):
                # What the client did send can't be judged as a whole any more, so that the app must not see it.
                return None
            if self._spool is not None:
                await self._spool.rewind()
            return await self._call_app(app)
        finally:
            if self._spool is not None:
                await self._spool.aclose()

    def _begin_body(self, decision: AgentDecision, provisional: Mapping[str, Verdict]) -> AgentDecision | None:
        """Get ready to show the body to its agents. Returns the decision that refuses it by its head alone, or None."""
        agents = self._resolved_route.agents_for(_REQUEST_BODY_CHUNK)
        if agents:
            skipping = skipping_body(decision)
            agents = tuple(agent for agent in agents if agent.guard.config.id not in skipping)
        if not agents:
            return None
        self._declared_length = declared_length(headers_of(self._scope))
        self._body = BodyInspection(
            self._state,
            _REQUEST_BODY_CHUNK,
            agents=agents,
            codings=codings_of(headers_of(self._scope)),
            length=self._declared_length,
            provisional=provisional,
        )
        return self._body.admit()

    @property
    def _waits_for_body(self) -> bool:
        """Whether the app must not be started before more of the body was judged."""
        assert self._body is not None
        if self._body_ended or self._disconnected or self._stopped:
            return False
        return self._body.holding or (self._spool is not None and self._body.spools)

    async def _call_app(self, app: App) -> Any:
        """Run the app in this task. A decision may end it, and nothing but it."""
        own = self._scope_for_app()
        scope = self._scope if own is None else own.scope
        self._app_called = self._state.request_head_gone = True
        inbound, body = self._inbound, self._body
        try:
            if self._body_settled and not self._resolved_route.inspects_responses:
                # No decision is left to be made.
                return await app(scope, self._receive_for_app(), self._send_for_app())
            assert inbound is not None
            result: Any = None
            try:
                with anyio.CancelScope() as self._app_scope:
                    result = await inbound.run_app(
                        partial(app, scope, self._receive_for_app(), self._response.send),
                        beside=not self._body_settled and body is not None and body.may_wait and self._may_have_body,
                    )
                    await self._response.release_head()
            except Exception as exc:
                # On trio, the scope takes its cancellation out of a group of the app's.
                if not (self._response.stopped and caused_by_closing(exc, ClientDisconnect)):
                    await self._response.release_head()
                    raise
            # What the app did not meet in its receive any more.
            if inbound.error is not None:
                raise inbound.error
            if self._response.error is not None and not self._disconnected:
                await self._response.send_abort_marker()
                raise self._response.error
            return result
        finally:
            if own is not None:
                own.hand_back()

    def _scope_for_app(self) -> OwnScope | None:
        """The app's own scope, where its headers or extensions differ from those that the server has given."""
        changes: dict[str, Any] = {}
        headers = headers_of(self._scope)
        headers_for_app = self._headers_for_app(headers)
        if headers_for_app is not headers:
            changes["headers"] = headers_for_app
        if self._resolved_route.agents_for(_RESPONSE_BODY_CHUNK):
            changes |= without_bypasses(self._scope)
        if not changes:
            return None
        own = OwnScope(self._scope, changes)
        # The inspection of the response has not been given the other one: it is made with the call of the app.
        self._raw_send = own.sending(self._raw_send)
        return own

    def _receive_for_app(self) -> Receive:
        receive = self._raw_receive if self._inbound is None else self._inbound.receive
        if self._spool is None:
            return receive
        return self._spool.receive(receive, ended=self._body_ended)

    def _send_for_app(self) -> Send:
        """The ``send`` of an app whose response no agent receives."""
        if self._state.response_ops or self._resolved_route.agents_for(_REQUEST_COMPLETE):
            return self._response.send
        return self._raw_send

    @property
    def _stopped(self) -> bool:
        """Whether the client gets something else than what the app answers."""
        return self._made_response is not None and self._made_response.stopped

    @property
    def _body_settled(self) -> bool:
        """Whether nothing of the request body is left to be judged."""
        return self._body is None or self._body_ended

    def _headers_for_app(self, headers: RawHeaders) -> RawHeaders:
        body, ops = self._body, self._state.request_ops
        if self._resolved_route.reshapes_requests:
            # What the client has asked for; what an agent asks for in its place is its own to say.
            headers = self._asked_for(headers)
        if ops:
            headers = apply_request_ops(headers, ops)
        if body is not None and body.alters(ended=self._body_ended):
            counted = self._body_ended and header(headers, b"content-length") is not None
            headers = without_body_claims(headers, self._bytes_passed if counted else None, decoded=body.decoded)
        elif self._declares_wrong_length:
            headers = with_length(headers, self._bytes_passed)
        return headers

    def _asked_for(self, headers: RawHeaders) -> RawHeaders:
        """``headers`` that ask for no response whose body its agents could not judge."""
        resolved_route = self._resolved_route
        if resolved_route.asks_for_whole_bodies:
            headers = without_headers(headers, _RANGE_HEADERS)
        if resolved_route.asks_for_plain_bodies:
            return without_headers(headers, _CODING_HEADERS)
        return acceptable(headers) if resolved_route.unpacks_bodies else headers

    @property
    def _declares_wrong_length(self) -> bool:
        """Whether the head says something else of the body than what the agents have judged, all of it.

        An app that goes by its content-length would take another body.
        """
        if not self._body_ended or self._declared_length == self._bytes_passed or not self._may_have_body:
            return False
        return header(headers_of(self._scope), b"content-length") is not None

    def _screen(self, message: Message) -> bool:
        """What needs no agent: the end of the connection, and empty messages of an empty body."""
        if message["type"] != "http.request":
            self._disconnected = self._disconnected or message["type"] == "http.disconnect"
            return True
        data, last = message.get("body", b""), not message.get("more_body", False)
        self._bytes_received += len(data)
        if self._body is not None and not self._body_ended and (data or not self._body.judges_nothing):
            return False
        self._body_ended = self._body_ended or last
        return True

    async def _judge(self, message: Message) -> None:
        assert self._body is not None
        assert self._inbound is not None
        given, last = message.get("body", b""), not message.get("more_body", False)
        data = given if isinstance(given, bytes) else bytes(given)
        judging = self._body.feed(data, last)
        result: bytes | AgentDecision | None
        if self._attendance is not None and not self._app_called:
            result = await self._attendance.wait_for(judging)
            if result is None:
                self._disconnected = True
                return
        else:
            result = await judging
        if not isinstance(result, bytes):
            await self._refuse(result)
            return
        self._body_ended = last
        self._bytes_passed += len(result)
        if self._spool is not None and not self._app_called:
            await self._spool.write(result)
            refusal = self._body.limit_spooled(self._spool.size)
            if refusal is not None:
                await self._refuse(refusal)
        elif result or last or not data:
            self._inbound.deliver(message if result is given else {**message, "body": result})

    async def _refuse(self, decision: AgentDecision) -> None:
        """An agent refused the request body, perhaps while the app runs."""
        assert self._inbound is not None
        self._inbound.pause()
        await self._response.stop(decision, cut_off=True)
        # Also where the response was complete already, or broken off by the app itself: what it still does is its own
        # business, but it gets no more of the body.
        self._inbound.end(_DISCONNECT)

    def _stop_app(self, cut_off: bool) -> None:
        """The client has its answer, or is to have no more of it: the app finds its client gone.

        Cancelling it at once would be no such end. A framework that runs its handlers in tasks of its own ends these
        when the client leaves, and leaves them behind when it is cancelled itself.
        """
        if cut_off:
            self._cancel_after_grace()
        if self._inbound is not None:
            self._inbound.end(_DISCONNECT)

    @property
    def _running(self) -> anyio.CancelScope | None:
        return self._app_scope

    def _app_noticed(self) -> None:
        # Not where its response is broken off: servers break the connection off when we raise, for which the app has to
        # have ended, and the client waits for that.
        if self._response.error is None:
            super()._app_noticed()

    def _summary(self, error: BaseException | None) -> Summary:
        response = self._response
        status = response.status
        if not status:
            # What the server makes of an app that raises; and what is customary for a client that left.
            status = 499 if self._disconnected else 500
        return Summary(status, response.finished_at or time.monotonic(), self._bytes_received, response.bytes_sent)
