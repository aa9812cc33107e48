"""From a connection to the agents that are asked about it."""

from collections.abc import Callable, Iterable, Sequence

from starlette.types import Scope

from ..errors import ConfigurationError, UnknownAgentError
from ..evaluation.resolved_route import ResolvedRoute
from ..evaluation.route_agent import AgentReference
from ..evaluation.text_judges import check_guardrail
from ..guard import Guard
from ..guardrails import Guardrail, ToolPolicy
from ..registry import AgentRegistry
from .advice import check_agents, check_routes, check_text_guardrails
from .app_chain import app_chain, attribute
from .cache import PathCache, PathKey
from .resolver import Resolver
from .routes import AgentRoute, Router


class RouteFinder:
    """Finds the resolved route of a connection, and remembers it by its path.

    :param app: what the middleware wraps.
    :param registry: the agents that ``routes`` and ``default_agents`` name.
    :param owns_agents: whether no other middleware has routes for the same agents.
    :param guardrails: those of all connections whose route has none of its own.
    :param guard_of: finds an agent that is named, or raises :class:`UnknownAgentError`. None: those of ``registry`` are
        meant, and the routes are listed there at once.

    Raises :class:`ConfigurationError` where that can't work.
    """

    def __init__(
        self,
        app: object,
        registry: AgentRegistry,
        routes: Sequence[AgentRoute] | None,
        default_agents: Iterable[AgentReference] | None,
        *,
        owns_agents: bool,
        guardrails: tuple[Guardrail | ToolPolicy, ...] = (),
        guard_of: Callable[[str], Guard] | None = None,
    ) -> None:
        self._registry = registry
        find_guard = registry.guard if guard_of is None else guard_of
        #: The routes that hold in place of these. None: these hold.
        self.successor: RouteFinder | None = None
        self._router = Router(routes, default_agents, _root_path_of(app), guardrails)
        self._resolver = Resolver(self._router, app)
        self._owns_agents = owns_agents
        # Routes and agents are checked for likely mistakes once, and not before the app has its routes.
        self._examined = False
        for reference in self._router.references:
            agent_id = reference if isinstance(reference, str) else reference[0]
            try:
                find_guard(agent_id)
            except UnknownAgentError as exc:
                raise ConfigurationError(f"AgentMiddleware: routes or default_agents name {agent_id!r}: {exc}") from exc
        for guardrail in self._router.guardrails:
            try:
                check_guardrail(guardrail, find_guard(guardrail.agent_id))
            except UnknownAgentError as exc:
                raise ConfigurationError(f"Guardrail({guardrail.agent_id!r}): {exc}") from exc
        #: The routes, for the status page.
        self.listings = self._router.listings
        if guard_of is None:
            registry.list_routes(self.listings)
        #: Whether the method has a say as well as the path.
        self.goes_by_method = self._router.goes_by_method
        #: Whether there are guardrails, or tool policies, on any route.
        self.has_guardrails = self._router.has_guardrails
        #: By path; where the method or a root path has a say, by path, root path and method. The middleware looks here
        #: first, itself: a call of :meth:`find` for each request would cost more than all the rest of the look-up.
        self.known = PathCache()

    def find(self, key: PathKey, scope: Scope) -> ResolvedRoute:
        """The resolved route of a connection for whose ``key`` there is none in :attr:`known`, or one that retired."""
        if not self._examined:
            self.examine(scope)
        app_routes = self._resolver.app_routes(scope)
        known = self.known
        if known.basis is not app_routes:
            # In place of the old one, which a thread may still fill with what held for the app's routes of before.
            known = self.known = PathCache(app_routes)
        if app_routes is not None:
            full_key = (scope["type"], str(scope.get("method", "")), scope.get("root_path") or "", scope["path"])
            resolved_route = known.get(full_key)
            if resolved_route is not None and not resolved_route.retired:
                return resolved_route
        found, lasts = self._resolver.resolve(scope, app_routes)
        references, route = self._router.agents_of(found)
        resolved_route = self._registry.resolved_route(
            references,
            route=route,
            missing_ok=True,
            guardrails=self._router.guardrails_of(found),
            handlers_too=self._router.guardrails_of(None),
        )
        if self.successor is not None:
            # Another thread has put other agents and routes in place: these routes may lack agents of those.
            return self.successor.find(self.successor.key_of(scope), scope)
        if lasts:
            known.remember(key, resolved_route)
        elif app_routes is not None and not app_routes.volatile:
            # Found here as long as the app's routes stay the same, which only this method checks.
            known.remember(full_key, resolved_route)
        return resolved_route

    def key_of(self, scope: Scope) -> PathKey:
        """What :attr:`known` remembers the route of a connection by."""
        root_path = scope.get("root_path") or ""
        if self.goes_by_method or root_path:
            return (scope["path"], root_path, str(scope.get("method", "GET")))
        return str(scope["path"])

    def examine(self, scope: Scope) -> None:
        """Warn in the log of routes and agents that are most likely mistakes, once.

        :param scope: a connection, or the lifespan of an app that has its routes.
        """
        if self._examined:
            return
        self._examined = True
        check_routes(self._router, self._resolver, scope)
        if self._owns_agents:
            check_text_guardrails(self._registry, self._router)
            if self._router.default_agents is not None:
                check_agents(self._registry, self._router)


def _root_path_of(app: object) -> str:
    """The root_path that FastAPI puts on the scope itself, only further in than an outermost middleware can see."""
    for wrapped in app_chain(app):
        root_path = attribute(wrapped, "root_path")
        if isinstance(root_path, str) and root_path:
            return root_path
    return ""
