"""The ASGI middleware."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Never

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .advice import warn_of_seconds
from .audit import Audit, AuditHook, Auditor, Redact, watched
from .config import AgentConfig
from .errors import ConfigurationError
from .evaluation.resolved_route import ResolvedRoute
from .evaluation.route_agent import AgentReference
from .exchange import (
    AgentContext,
    ChallengeRenderer,
    ErrorRenderer,
    Renderers,
    answer_departed,
    refuse_target,
    serve_http,
    serve_websocket,
)
from .exchange.arguments import check_call, checked_alias, checked_grace, checked_header, has_policy
from .exchange.context import STATE_KEY, state_of
from .exchange.plan import HeadPlan
from .exchange.scope import CORRELATION_HEADER, App, OwnScope, RawHeaders, cleaned, has_target, headers_of
from .exchange.state import ExchangeState
from .guard import Guard
from .guardrails import Guardrail, ToolPolicy
from .guardrails.guardrail import checked_guardrails
from .manager import AgentManager, registry_of, require_manager
from .messages.throttle import Throttle
from .observability.correlation import current, reset_current, set_current
from .observability.redaction import redact_secrets
from .observability.tracing import mark_current_span
from .protocol import Headers
from .routing.advice import agents_asked_twice
from .routing.app_chain import AsksAgents
from .routing.finder import RouteFinder
from .routing.order_advice import set_around, setting_around
from .routing.refusal import Refusing
from .routing.routes import AgentRoute

if TYPE_CHECKING:
    from .exchange.text import TextGuardrails
    from .guardrails import Dialect

logger: Final = logging.getLogger("asgi_agents")

_FAILED_LIFESPAN = frozenset({"lifespan.startup.failed", "lifespan.shutdown.failed"})
_CONNECTIONS = frozenset({"http", "websocket"})


class AgentMiddleware(AsksAgents):
    """Shows requests, responses and websocket messages of ``app`` to agents, and does what they decide.

    ::

        app.add_middleware(AgentMiddleware, agents=[AgentConfig("waf", Waf())])

    :param agents: the agents; or
    :param manager: a manager that has them, to be shared or changed while serving.
    :param routes: which agents are asked about which paths; the first match wins. But a route that is spelt like one of
        the app's is passed over where the app's router runs another (:mod:`asgi_agents.routing.resolver`). None: all
        agents are asked about every path, in the order given.
    :param default_agents: the agents of connections that no route matches. None: no agents, if there are routes.
    :param guardrails: whose agents judge the text of requests and answers, on all routes that have none of their own,
        and policies for tools, which need no agents.
    :param dialects: the ways in which apps and clients write calls and answers, which are tried in this order: users'
        own before the built-in ones, which are always there. None: the built-in ones.
    :param challenge_renderer: makes a response of a ``challenge`` answer, instead of 401 with ``www-authenticate`` for
        HTTP auth schemes and 403 for all others. Its response must have its body in memory.
    :param render_error: makes the response to a client that an agent denies or fails for, from an :class:`ErrorInfo`
        and the scope, on the event loop: it must not block. :func:`fastapi_error` makes FastAPI's
        ``{"detail": ...}``. None: text, or ``application/problem+json`` for a client that prefers JSON. Its response
        must have its body in memory; background tasks of it are not run. The headers that agents give to the reply are
        put on it. A status below 400 is replaced by that of the denial or failure. Where it raises, or returns
        something else, the client gets the built-in reply, and the log says so once a minute. It is not called for
        redirects and challenges, nor for what ends a response that has begun.
    :param state_key: a second name of the connection's :class:`AgentContext` in ``scope["state"]``, where it is always
        ``asgi_agents``: ``request.state.agents``. A state that has something else of that name keeps it. None: no
        second name.
    :param stop_grace: seconds for an app that an agent has stopped while it ran: its request was refused, its response
        was broken off or ended early, or its websocket closed. It finds its client gone: ``receive`` gives a
        disconnect, and ``send`` does nothing, or raises an OSError where the server's would (``spec_version`` 2.4). One
        that has noticed neither by then is cancelled. So is one that has noticed and has not ended, where its response
        is to be broken off: the server breaks the connection off when the app has ended. 0: cancelled at once.
    :param correlation_header: the request header whose value, if it is a sane token of at most 128 characters, names
        the connection to agents, in logs and in spans. None: it is always named here, with a UUIDv7.
    :param expose_correlation_id: put that name into every response that comes from here or from within, in the header
        ``correlation_header`` (``x-request-id`` where that is None). Not into what is made around this middleware: a
        server's own 500, for one.
    :param audit_headers: request headers whose values belong into the audit record.
    :param on_audit: called with the :class:`AuditRecord` of each connection that has agents, on the event loop: it must
        not block. What it raises is logged, once a minute.
    :param audit_redact: what is done to every text from clients and agents before it is recorded. None: nothing.
    :param tracer_provider: where the spans go, if not to OpenTelemetry's global provider; ``meter_provider`` likewise.
        With ``manager``, they are given to that.
    :param debug: when the log says that an agent in this process fails, add the traceback of what it has raised. It may
        show what requests carry: for development. With ``manager``, it is given to that.

    Raises :class:`ConfigurationError` for what can't work.
    """

    #: Other ways to guard an exchange have records of their own.
    _make_auditor: Callable[..., Auditor] = Auditor

    def __init__(
        self,
        app: ASGIApp,
        *others: Never,
        agents: Iterable[AgentConfig] | None = None,
        manager: AgentManager | None = None,
        routes: Sequence[AgentRoute] | None = None,
        default_agents: Iterable[AgentReference] | None = None,
        guardrails: Iterable[Guardrail | ToolPolicy] = (),
        dialects: "Sequence[Dialect] | None" = None,
        challenge_renderer: ChallengeRenderer | None = None,
        render_error: ErrorRenderer | None = None,
        state_key: str | None = "agents",
        stop_grace: float = 1.0,
        correlation_header: str | None = "x-request-id",
        expose_correlation_id: bool = False,
        audit_headers: Iterable[str] = (),
        on_audit: AuditHook | None = None,
        audit_redact: Redact | None = redact_secrets,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        debug: bool = False,
    ) -> None:
        check_call(app, others)
        of_all_routes = checked_guardrails("AgentMiddleware: guardrails", guardrails)
        if agents is None and manager is None and not has_policy(of_all_routes, routes):
            raise ConfigurationError("AgentMiddleware: no agents, expected agents=[AgentConfig(...)] or manager=...")
        if agents is not None and manager is not None:
            raise ConfigurationError("AgentMiddleware: both agents and manager are given, expected one of them")
        if manager is not None:
            require_manager("AgentMiddleware: manager=", manager)
        self._renderers = Renderers(challenge_renderer, render_error)
        if manager is None:
            if not isinstance(debug, bool):
                raise ConfigurationError(f"AgentMiddleware: debug={debug!r}, expected True or False")
            manager = AgentManager(
                agents or (), tracer_provider=tracer_provider, meter_provider=meter_provider, debug=debug
            )
            if agents is not None and not manager.agent_ids:
                logger.warning("AgentMiddleware: agents=[]: no agent is ever asked; expected [AgentConfig(...)]")
        elif tracer_provider is not None or meter_provider is not None:
            raise ConfigurationError("AgentMiddleware: a provider beside manager, expected it to be given to that")
        elif debug:
            raise ConfigurationError(
                f"AgentMiddleware: debug={debug!r} beside manager, expected AgentManager(..., debug=True)"
            )
        self._stop_grace = checked_grace(stop_grace)
        warn_of_seconds("AgentMiddleware", "stop_grace", stop_grace)
        self.app = app
        self.manager = manager
        self._correlation_header = checked_header(correlation_header)
        if not isinstance(expose_correlation_id, bool):
            raise ConfigurationError(
                f"AgentMiddleware: expose_correlation_id={expose_correlation_id!r}, expected True or False"
            )
        exposed_as = self._correlation_header or CORRELATION_HEADER
        self._exposed_as = exposed_as.encode() if expose_correlation_id else None
        self._auditor = self._make_auditor(headers=audit_headers, hook=on_audit, redact=audit_redact)
        self._alias = checked_alias(state_key)
        self._registry = registry_of(manager)
        # The agents of a manager that was given may be on the routes of another middleware.
        self._finder = RouteFinder(
            app,
            self._registry,
            routes,
            default_agents,
            owns_agents=agents is not None,
            guardrails=of_all_routes,
        )
        self._dialects = dialects
        self._guardrails: TextGuardrails | None = None
        if self._finder.has_guardrails or dialects is not None:
            self._text_guardrails()
        # Takes the file of `protect(config=...)` anew.
        self._reloader: Callable[[], Awaitable[object]] | None = None
        #: None: every request takes the general way.
        self._plan: HeadPlan | None = None
        if self._exposed_as is None:
            self._plan = HeadPlan(
                self._registry,
                self._serve_guarded,
                alias=self._alias,
                correlation_header=self._correlation_header,
                audited=self._auditor.wanted,
                renderers=self._renderers,
                stop_grace=self._stop_grace,
            )
        self._refusals = Throttle()
        self._warned_of_doubles = False

    async def reload(self) -> None:
        """Take the configuration file of ``protect(config=...)`` as it is now.

        Its agents, routes and guardrails are put in place in one step. Connections that are open keep those with which
        they began. Agents that are as before keep their connections, breakers and counts.

        Raises :class:`ConfigurationError` where the file is refused, and :class:`AgentError` where an agent does not
        take its configuration: all stays as it was. Both say why, as the log does.
        """
        if self._reloader is None:
            raise ConfigurationError("AgentMiddleware.reload: there is no file, expected protect(app, config='...')")
        await self._reloader()

    def _prepare_routes(
        self,
        routes: Sequence[AgentRoute] | None,
        default_agents: Iterable[AgentReference] | None,
        guardrails: Iterable[Guardrail | ToolPolicy],
        guard_of: Callable[[str], Guard],
    ) -> Callable[[], None]:
        """Check other routes, and return the function that puts them in place.

        ``guard_of`` finds the agents that there are by then. Raises :class:`ConfigurationError`.
        """
        old = self._finder
        finder = RouteFinder(
            self.app,
            self._registry,
            routes,
            default_agents,
            owns_agents=True,
            guardrails=checked_guardrails("AgentMiddleware: guardrails", guardrails),
            guard_of=guard_of,
        )
        finder.check_policies(guard_of)
        if finder.has_guardrails:
            self._text_guardrails()

        def commit() -> None:
            self._finder = old.successor = finder
            finder.list_routes(guard_of, instead_of=old)

        return commit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Serve one connection."""
        kind = scope["type"]
        if kind not in _CONNECTIONS:
            serve = self._serve_lifespan if kind == "lifespan" else self.app
            return await serve(scope, receive, send)
        finder = self._finder
        key = scope["path"]
        if finder.goes_by_method or scope.get("root_path"):
            key = (key, scope.get("root_path") or "", str(scope.get("method", "GET")))
        resolved_route = finder.known.get(key)
        if resolved_route is None or resolved_route.retired:
            resolved_route = finder.find(key, scope)
        if resolved_route.planned and (plan := self._plan) is not None and kind == "http":
            return await plan.serve(self.app, resolved_route, scope, receive, send)
        if resolved_route.guarded or self._exposed_as is not None:
            return await self._serve_guarded(resolved_route, scope, receive, send)
        if not current() or _is_guarded(scope):
            return await self.app(scope, receive, send)
        # Servers let a connection's requests inherit what an earlier one has set (uvicorn#2167).
        token = set_current("")
        try:
            return await self.app(scope, receive, send)
        finally:
            reset_current(token)

    def _text_guardrails(self) -> "TextGuardrails":
        """What judges text. An endpoint's own guardrails are known only when the app's routes are read."""
        if self._guardrails is None:
            # It takes a quarter as long to import as all the rest.
            from .exchange import text

            self._guardrails = text.TextGuardrails(self._dialects, self._renderers, self._stop_grace)
        return self._guardrails

    async def _serve_guarded(
        self,
        resolved_route: ResolvedRoute,
        scope: Scope,
        receive: Receive,
        send: Send,
        given: Scope | None = None,
        shown: RawHeaders | None = None,
    ) -> Any:
        """Serve a connection that has agents, or whose response is to carry its correlation id.

        ``given`` is the scope as it came, where ``scope`` is a copy with cleaned headers, and ``shown`` are the headers
        that agents see. None: ``scope`` is as it came.
        """
        state = scope.setdefault("state", {})
        outer = state.get(STATE_KEY)
        raw = headers_of(scope) if shown is None else shown
        headers = Headers.of_request(raw, whole=not resolved_route.headers_in_process_only)
        if (headers.cookies_joined or resolved_route.cleans_headers) and given is None and resolved_route.agents:
            shown = cleaned(raw, resolved_route.sets)
            others = cleaned(shown, resolved_route.replaces)
            if others is not raw:
                own = OwnScope(scope, {"headers": others})
                try:
                    return await self._serve_guarded(
                        resolved_route, own.scope, receive, own.sending(send), scope, shown
                    )
                finally:
                    own.hand_back()
        name = self._correlation_header
        if name and headers.first(name) is None:
            # The client has given no name: the headers need not be searched for it again.
            name = ""
        exchange = ExchangeState(self._registry, resolved_route, None, resolved_route.route, name, headers)
        exchange.given_path = scope.get("raw_path") or scope["path"]
        exchange.root_path = scope.get("root_path") or ""
        exchange.is_websocket = scope["type"] == "websocket"
        exchange.app, exchange.scope_app = self.app, scope.get("app")
        # A websocket lets go of them once it is open.
        del headers, raw, shown
        if outer is not None:
            exchange.join(state_of(outer))
        audit: Audit | None = None
        error: str | None = None
        given_send = send
        state[STATE_KEY] = context = AgentContext(exchange)
        alias = self._alias
        aliased = None if alias is None else state.get(alias, context)
        if isinstance(aliased, AgentContext):
            state[alias] = context
        resolved_route.begun += 1
        token = set_current(exchange)
        try:
            if name:
                # A name that the client has given is reserved at once: no other connection gets it.
                exchange.find_name()
            exchange.server_span = mark_current_span(exchange)
            if resolved_route.guarded and self._auditor.wanted():
                audit = self._auditor.begin(given or scope, exchange)
                send = audit.around(send)
            if audit is not None or self._exposed_as is not None:
                send = watched(send, audit, self._exposed_as, exchange)
            if resolved_route.guarded and not has_target(scope):
                return await refuse_target(
                    exchange, scope, receive, send, self._renderers, self._stop_grace, self._refusals
                )
            app: App = self.app if resolved_route.refusal is None else Refusing(self._refusals, resolved_route.refusal)
            guardrails = None if resolved_route.judges is None else self._text_guardrails()
            if scope["type"] == "http":
                if guardrails is not None:
                    app = guardrails.around(app, exchange)
                if resolved_route.concerns_http:
                    result = await serve_http(app, exchange, scope, receive, send, self._renderers, self._stop_grace)
                else:
                    result = await app(scope, receive, send)
                if exchange.departed:
                    # Not in the audit record: the client has got nothing.
                    await answer_departed(given_send)
                return result
            if guardrails is not None:
                app = guardrails.around_websocket(app, exchange)
            if resolved_route.concerns_websockets:
                return await serve_websocket(app, exchange, scope, receive, send, self._renderers, self._stop_grace)
            return await app(scope, receive, send)
        except BaseException as exc:
            error = type(exc).__name__
            raise
        finally:
            resolved_route.ended += 1
            exchange.close()
            if audit is not None:
                audit.end(error)
            reset_current(token)
            if outer is not None:
                # A middleware around this one has agents of its own.
                around = state_of(outer)
                if not self._warned_of_doubles and around is not None and exchange.joined:
                    self._warned_of_doubles = agents_asked_twice(around.resolved_route, resolved_route)
                state[STATE_KEY] = outer
                if alias is not None and state.get(alias) is context:
                    state[alias] = aliased
                    if aliased is context:
                        del state[alias]

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Connect the agents before the app starts, close them when it has ended.

        Right after the last message of the app, servers check whether the app has ended, and go on with one that has
        not. So nothing may suspend here between that message, or an exception of the app, and the end.
        """
        unread = [await receive()]
        try:
            close = await self._registry.lifecycle.start()
        except Exception as exc:
            # Both, as Starlette does it. Raising alone would not stop the server: it would take lifespan for
            # unsupported.
            await send({"type": "lifespan.startup.failed", "message": str(exc) or type(exc).__name__})
            raise
        stopping = False
        around = set_around()

        async def replay() -> Message:
            nonlocal stopping
            message = unread.pop() if unread else await receive()
            stopping = stopping or message["type"] == "lifespan.shutdown"
            return message

        refused: str | None = None

        async def close_first(message: Message) -> None:
            nonlocal refused
            if message["type"] == "lifespan.startup.complete":
                # By now the app has its routes, also those that it adds as it starts.
                try:
                    self._finder.examine(scope, strict=True, around=around)
                except ConfigurationError as exc:
                    refused = str(exc)
                    raise
            if refused is not None and message["type"] == "lifespan.startup.failed":
                # Frameworks write the traceback of what was raised here.
                message = {**message, "message": refused}
            # The server may end the event loop as soon as it has the last one.
            if message["type"] == "lifespan.shutdown.complete":
                await close()
            elif message["type"] in _FAILED_LIFESPAN:
                try:
                    await close()
                finally:
                    # Whatever else goes wrong, the server must not serve an app that has failed to start.
                    await send(message)
                return
            await send(message)

        try:
            with setting_around(self._finder.headers_set):
                await self.app(scope, replay, close_first)
        except Exception:
            if stopping:
                await close()
            raise
        except BaseException:
            await close()
            raise
        if stopping:
            await close()
        # Else the app has no lifespan, or has ended it too soon. The server goes on, and so do the agents, as for apps
        # without one.


def replace_auditor(middleware: AgentMiddleware, replacement: Callable[[Auditor], Auditor]) -> Callable[[], None]:
    """Have all connections that begin from now on recorded by another auditor, which is made of the present one.

    For :mod:`asgi_agents.testing`. None of the connections takes the short way, which has no records. Returns a
    function that puts back what was before.
    """
    before = middleware._auditor, middleware._plan
    middleware._auditor, middleware._plan = replacement(middleware._auditor), None

    def put_back() -> None:
        middleware._auditor, middleware._plan = before

    return put_back


#: Checks routes, default agents and guardrails with the function that finds an agent by its id, and returns what puts
#: them in place.
PrepareRoutes = Callable[
    [
        Sequence[AgentRoute] | None,
        Iterable[AgentReference] | None,
        Iterable[Guardrail | ToolPolicy],
        Callable[[str], Guard],
    ],
    Callable[[], None],
]


def let_reload(middleware: AgentMiddleware, reload: Callable[[], Awaitable[object]]) -> PrepareRoutes:
    """For the package's own code: have :meth:`AgentMiddleware.reload` call ``reload``, which may change the routes."""
    middleware._reloader = reload
    return middleware._prepare_routes


def finder_of(middleware: AgentMiddleware) -> RouteFinder:
    """What finds the agents of a connection, for the package's own code."""
    return middleware._finder


def _is_guarded(scope: Scope) -> bool:
    """Whether a middleware around this one has given the connection its id."""
    return isinstance((scope.get("state") or {}).get(STATE_KEY), AgentContext)
