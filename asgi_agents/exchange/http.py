"""One HTTP request and its response."""

import math
import time
from collections.abc import Awaitable
from functools import cached_property, partial
from typing import Any

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from ..decision import ALLOWED, AgentDecision, Verdict, merge, unanimous
from ..errors import caused_by_closing
from ..evaluation.evaluate import evaluate
from ..protocol import EventType, RequestCompleteEvent
from .body import BodyInspection
from .head import head_event, judge_head, skipping_body, tell_complete
from .headers import acceptable, apply_request_ops, codings_of, with_length, without_body_claims, without_headers
from .inbound import Inbound
from .rendering import Renderers
from .response import BODY_BYPASSES, ResponseInspection
from .scope import App, OwnScope, RawHeaders, certainly_bodiless, declared_length, header, headers_of, may_have_body
from .spool import Spool
from .state import ExchangeState

_DISCONNECT: Message = {"type": "http.disconnect"}
_RANGE_HEADERS = frozenset({b"range", b"if-range"})
_CODING_HEADERS = frozenset({b"accept-encoding"})


async def serve_http(
    app: App,
    context: ExchangeState,
    scope: Scope,
    receive: Receive,
    send: Send,
    renderers: Renderers,
    stop_grace: float,
) -> Any:
    """Take a request past its agents, and the response back. Returns what the app returns."""
    if context.resolved_route.plain_heads_only:
        verdicts = await evaluate(context.resolved_route.head_agents, head_event(context, scope))
        if unanimous(verdicts):
            # Nothing has changed, and nothing else of this connection concerns any agent.
            context.record_allow(verdicts)
            return await app(scope, receive, send)
        context.record(verdicts)
        exchange = HttpExchange(context, scope, receive, send, renderers, stop_grace)
        return await exchange.go_on(app, merge(verdicts), {})
    return await HttpExchange(context, scope, receive, send, renderers, stop_grace).run(app)


class HttpExchange:
    """Takes a request to its agents, then to the app, and the response back past the agents.

    An app whose request is refused while it runs, or whose response is broken off or ended early, finds its client
    gone. It is cancelled ``stop_grace`` seconds later unless it has ended or noticed.
    """

    def __init__(
        self,
        context: ExchangeState,
        scope: Scope,
        receive: Receive,
        send: Send,
        renderers: Renderers,
        stop_grace: float,
    ) -> None:
        self._context = context
        self._scope = scope
        self._raw_receive = receive
        self._raw_send = send
        self._resolved_route = context.resolved_route
        self._renderers = renderers
        self._stop_grace = stop_grace
        self._made_response: ResponseInspection | None = None
        self._inbound: Inbound | None = None
        self._body: BodyInspection | None = None
        self._body_ended = False
        self._declared_length: int | None = None
        self._disconnected = False
        self._app_called = False
        self._bytes_received = 0
        self._bytes_passed = 0
        self._app_scope: anyio.CancelScope | None = None
        self._spool: Spool | None = None

    @cached_property
    def _may_have_body(self) -> bool:
        return may_have_body(self._scope)

    @property
    def _response(self) -> ResponseInspection:
        # Most requests are allowed, and most agents have no say in responses.
        if self._made_response is None:
            self._made_response = ResponseInspection(
                self._context,
                self._scope,
                self._raw_send,
                method=self._scope.get("method", "GET"),
                renderers=self._renderers,
                on_stop=self._stop_app,
                on_told=self._app_told,
            )
        return self._made_response

    async def run(self, app: App) -> Any:
        """The whole exchange. Returns what the app returns."""
        started = time.monotonic()
        error: BaseException | None = None
        try:
            return await self._run(app)
        except BaseException as exc:
            error = exc
            raise
        finally:
            if self._resolved_route.agents_for(EventType.REQUEST_COMPLETE):
                await self._complete(started, error)

    async def _run(self, app: App) -> Any:
        decision, provisional = await self._judge_request_head()
        return await self.go_on(app, decision, provisional)

    async def go_on(self, app: App, decision: AgentDecision, provisional: dict[str, Verdict]) -> Any:
        """What comes after the decision on the request's head."""
        if not decision.is_allow:
            await self._response.stop(decision)
            return None
        self._context.note_ops(decision)
        if self._resolved_route.hears_heads_only:
            return await self._call_app(app)
        agents = self._resolved_route.agents_for(EventType.REQUEST_BODY_CHUNK)
        if agents:
            skipping = skipping_body(decision)
            agents = tuple(agent for agent in agents if agent.guard.config.id not in skipping)
        if agents:
            self._declared_length = declared_length(headers_of(self._scope))
            self._body = BodyInspection(
                self._context,
                EventType.REQUEST_BODY_CHUNK,
                agents=agents,
                codings=codings_of(headers_of(self._scope)),
                length=self._declared_length,
                provisional=provisional,
            )
            refusal = self._body.admit()
            if refusal is not None:
                await self._response.stop(refusal)
                return None
        if (
            self._body is not None
            or self._resolved_route.inspects_responses
            or self._resolved_route.agents_for(EventType.REQUEST_COMPLETE)
        ):
            self._inbound = Inbound(
                self._raw_receive,
                screen=self._screen,
                judge=self._judge,
                may_suspend=lambda: self._body is not None and self._body.may_suspend,
                on_told=self._app_told,
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

    @property
    def _waits_for_body(self) -> bool:
        """Whether the app must not be started before more of the body was judged."""
        assert self._body is not None
        if self._body_ended or self._disconnected or self._stopped:
            return False
        return self._body.holding or (self._spool is not None and self._body.spools)

    async def _judge_request_head(self) -> tuple[AgentDecision, dict[str, Verdict]]:
        if not self._resolved_route.agents_for(EventType.REQUEST_HEADERS):
            return ALLOWED, {}
        event = head_event(self._context, self._scope)
        body_agents = self._resolved_route.agents_for(EventType.REQUEST_BODY_CHUNK)
        return await judge_head(self._context, event, body_agents=body_agents if self._may_have_body else ())

    async def _call_app(self, app: App) -> Any:
        """Run the app in this task, with its own view of the scope."""
        self._app_called = self._context.request_head_gone = True
        changes: dict[str, Any] = {}
        headers = headers_of(self._scope)
        headers_for_app = self._headers_for_app(headers)
        if headers_for_app is not headers:
            changes["headers"] = headers_for_app
        extensions = self._scope.get("extensions")
        if (
            extensions
            and self._resolved_route.agents_for(EventType.RESPONSE_BODY_CHUNK)
            and not BODY_BYPASSES.isdisjoint(extensions)
        ):
            changes["extensions"] = {name: value for name, value in extensions.items() if name not in BODY_BYPASSES}
        stoppable = self._resolved_route.inspects_responses or not self._body_settled
        if not changes:
            return await (self._call_stoppable if stoppable else self._call_freely)(app, self._scope)
        own = OwnScope(self._scope, changes)
        # Nobody has the other one yet: the inspection of the response is made below, with the call of the app.
        self._raw_send = own.sending(self._raw_send)
        try:
            return await (self._call_stoppable if stoppable else self._call_freely)(app, own.scope)
        finally:
            own.hand_back()

    def _call_freely(self, app: App, scope: Scope) -> Awaitable[Any]:
        return app(scope, self._receive_for_app(), self._send_for_app())

    def _receive_for_app(self) -> Receive:
        receive = self._raw_receive if self._inbound is None else self._inbound.receive
        if self._spool is None:
            return receive
        return self._spool.receive(receive, ended=self._body_ended)

    async def _call_stoppable(self, app: App, scope: Scope) -> Any:
        """Run the app where a decision may end it, and nothing but it."""
        result: Any = None
        inbound, body = self._inbound, self._body
        assert inbound is not None
        with anyio.CancelScope() as self._app_scope:
            try:
                result = await inbound.run_app(
                    partial(app, scope, self._receive_for_app(), self._response.send),
                    beside=not self._body_settled and body is not None and body.may_wait and self._may_have_body,
                )
                await self._response.release_head()
            except Exception as exc:
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

    @property
    def _stopped(self) -> bool:
        """Whether the client gets something else than what the app answers."""
        return self._made_response is not None and self._made_response.stopped

    @property
    def _body_settled(self) -> bool:
        """Whether nothing of the request body is left to be judged."""
        return self._body is None or self._body_ended

    def _headers_for_app(self, headers: RawHeaders) -> RawHeaders:
        body, ops = self._body, self._context.request_ops
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

    def _send_for_app(self) -> Send:
        if self._context.response_ops or self._resolved_route.agents_for(EventType.REQUEST_COMPLETE):
            return self._response.send
        return self._raw_send

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
        result = await self._body.feed(data, last)
        if isinstance(result, AgentDecision):
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
        if cut_off and self._app_scope is not None:
            if self._stop_grace:
                # A timer of the event loop, and no task.
                self._app_scope.deadline = anyio.current_time() + self._stop_grace
            else:
                self._app_scope.cancel()
        if self._inbound is not None:
            self._inbound.end(_DISCONNECT)

    def _app_told(self) -> None:
        """The app has noticed the end, and may take the time that it would take over a client that left.

        Not where its response is broken off: servers break the connection off when we raise, for which the app has to
        have ended, and the client waits for that.
        """
        if self._app_scope is not None and self._response.error is None:
            self._app_scope.deadline = math.inf

    async def _complete(self, started: float, error: BaseException | None) -> None:
        response = self._response
        ended = response.finished_at or time.monotonic()
        status = response.status
        if not status:
            # What the server makes of an app that raises; and what is customary for a client that left.
            status = 499 if self._disconnected else 500
        event = RequestCompleteEvent(
            correlation_id=self._context.correlation_id,
            status=status,
            duration_ms=round((ended - started) * 1000),
            request_body_size=self._bytes_received,
            response_body_size=response.bytes_sent,
            upstream_attempts=int(self._app_called),
            error=None if error is None else type(error).__name__,
        )
        await tell_complete(self._context, event)
