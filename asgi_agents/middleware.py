"""The ASGI middleware."""

from collections.abc import Iterable, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import AgentConfig
from .errors import AgentError, ConfigurationError, UnknownAgentError
from .exchange import AgentContext, ChallengeRenderer, HttpExchange, WebSocketExchange, correlation_id
from .lineup import AgentReference
from .manager import AgentManager
from .protocol import EventType
from .routing import Route, Router

_HTTP_EVENTS = frozenset(
    {
        EventType.REQUEST_HEADERS,
        EventType.REQUEST_BODY_CHUNK,
        EventType.RESPONSE_HEADERS,
        EventType.RESPONSE_BODY_CHUNK,
        EventType.REQUEST_COMPLETE,
    }
)
_WEBSOCKET_EVENTS = _HTTP_EVENTS | {EventType.WEBSOCKET_FRAME}


class AgentMiddleware:
    """Shows requests, responses and websocket messages of ``app`` to agents, and does what they decide.

    ::

        app.add_middleware(AgentMiddleware, agents=[AgentConfig("waf", Waf())])

    :param agents: the agents; or
    :param manager: a manager that has them, to be shared or changed while serving.
    :param routes: which agents hear which paths; the first match wins. None: every agent hears everything, in the order
        given.
    :param default_agents: who hears connections that no route matches. None: nobody, if there are routes.
    :param challenge_renderer: makes a response of a ``challenge`` answer, instead of 401 with ``www-authenticate`` for
        HTTP auth schemes and 403 for all others. Its response must have its body in memory.

    Raises :class:`ConfigurationError` for what can't work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        agents: Iterable[AgentConfig] | None = None,
        manager: AgentManager | None = None,
        routes: Sequence[Route] | None = None,
        default_agents: Iterable[AgentReference] | None = None,
        challenge_renderer: ChallengeRenderer | None = None,
    ) -> None:
        if (agents is None) == (manager is None):
            raise ConfigurationError("AgentMiddleware: expected either agents or manager, and not both")
        if manager is not None and not isinstance(manager, AgentManager):
            raise ConfigurationError(f"AgentMiddleware: manager={manager!r}, expected an AgentManager")
        if challenge_renderer is not None and not callable(challenge_renderer):
            raise ConfigurationError(f"AgentMiddleware: challenge_renderer={challenge_renderer!r}, expected a callable")
        self.app = app
        self.manager = AgentManager(agents or ()) if manager is None else manager
        # FastAPI sets this root_path on the scope itself, but only further in than an outermost middleware can see.
        root_path = getattr(app, "root_path", "")
        self._router = Router(routes, default_agents, root_path if isinstance(root_path, str) else "")
        self._render_challenge = challenge_renderer
        for reference in self._router.references:
            agent_id = reference if isinstance(reference, str) else reference[0]
            try:
                self.manager.guard(agent_id)
            except UnknownAgentError as exc:
                raise ConfigurationError(f"AgentMiddleware: routes or default_agents name {agent_id!r}: {exc}") from exc

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Serve one connection."""
        match scope["type"]:
            case "http":
                return await self._serve(HttpExchange, _HTTP_EVENTS, scope, receive, send)
            case "websocket":
                return await self._serve(WebSocketExchange, _WEBSOCKET_EVENTS, scope, receive, send)
            case "lifespan":
                return await self._live(scope, receive, send)
            case _:
                return await self.app(scope, receive, send)

    async def _serve(
        self,
        exchange: type[HttpExchange] | type[WebSocketExchange],
        events: frozenset[EventType],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> Any:
        references, route = self._router.find(scope)
        lineup = self.manager.lineup(references, missing_ok=True)
        if not lineup.agents:
            return await self.app(scope, receive, send)
        live = self.manager.live_correlation_ids
        correlation = correlation_id(scope, live)
        live.add(correlation)
        context = AgentContext(self.manager, lineup, correlation, route)
        state = scope.setdefault("state", {})
        outer = state.get("agents")
        state["agents"] = context
        lineup.connections += 1
        try:
            if lineup.hears.isdisjoint(events):
                return await self.app(scope, receive, send)
            return await exchange(context, scope, receive, send, self._render_challenge).run(self.app)
        finally:
            lineup.connections -= 1
            live.discard(correlation)
            context.close()
            if outer is not None:
                # A middleware around this one has agents of its own.
                state["agents"] = outer

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Connect the agents before the app starts, close them after it has ended."""
        unread = [await receive()]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        running = False
        try:
            async with self.manager.running() as close:

                async def close_first(message: Message) -> None:
                    # The server may end the event loop as soon as it has this.
                    if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                        await close()
                    await send(message)

                running = True
                return await self.app(scope, replay, close_first)
        except AgentError as exc:
            if running:
                raise
            # Raising would not stop the server: it would take lifespan for unsupported.
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            return None
