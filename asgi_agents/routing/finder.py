"""From a connection to the agents that are asked about it."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from starlette.types import Scope

from ..errors import ConfigurationError, UnknownAgentError
from ..evaluation.read_headers import headers_set
from ..evaluation.resolved_route import ResolvedRoute, RouteListing
from ..evaluation.route_agent import AgentReference
from ..evaluation.text_judges import check_guardrail, require_guardrail, warn_of_guardrail
from ..guard import Guard
from ..guardrails import Guardrail, ToolPolicy
from ..protocol.target import NO_PATH, is_path
from ..registry import AgentRegistry
from .advice import check_agents, check_routes, check_text_guardrails
from .app_chain import app_chain, attribute
from .cache import PathCache, PathKey
from .endpoints import AppEndpoint
from .marks import PolicyMark, marks
from .order_advice import AskedTogether, check_headers, set_around
from .refusal import consequence
from .resolver import AppRoutes, Resolver
from .router_checks import check_endpoints
from .routes import AgentRoute, Router

logger: Final = logging.getLogger("asgi_agents")

# Of policies that can't be carried out, so many are logged.
_MOST_FAULTS: Final = 20


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
        # Whose routes are listed: those of a successor are in the same place.
        self._listed_as = object()
        if guard_of is None:
            registry.listings.put(self._listed_as, self._router.listings)
        # A policy may be for what was remembered while there was none.
        marks.changed(used=False)
        marks.on_first_use(self._forget)
        #: Whether the method has a say as well as the path.
        self.goes_by_method = self._router.goes_by_method
        #: Whether there are guardrails, or tool policies, on any route.
        self.has_guardrails = self._router.has_guardrails
        #: By path; where the method or a root path has a say, by path, root path and method. The middleware looks here
        #: first, itself: a call of :meth:`find` for each request would cost more than all the rest of the look-up.
        self.known = PathCache()

    @property
    def registry(self) -> AgentRegistry:
        """The agents that it finds."""
        return self._registry

    @property
    def headers_set(self) -> frozenset[str]:
        """The request headers that any of its agents sets."""
        return headers_set([guard.config for guard in self._registry.guards()])

    @property
    def patterns(self) -> Sequence[str]:
        """Those of our routes, each once."""
        return tuple(dict.fromkeys(route.path for route in self._router.routes or ()))

    def look_up(self, scope: Scope) -> ResolvedRoute:
        """The resolved route of a connection, as the middleware finds it, which has these lines itself."""
        key = self.key_of(scope)
        resolved_route = self.known.get(key)
        return self.find(key, scope) if resolved_route is None or resolved_route.retired else resolved_route

    def ask(self, scope: Scope) -> ResolvedRoute:
        """The resolved route of a connection, as it would be found. Nothing is remembered, and nothing logged."""
        return self._resolve(scope, self._resolver.app_routes(scope))[0]

    def routes_now(self, scope: Scope) -> object:
        """The routes that the app has: the same object as long as they stay the same.

        :param scope: a connection, or a lifespan, in which the app is found if nothing leads to it.
        """
        return self._resolver.routes_now(scope)

    def find(self, key: PathKey, scope: Scope) -> ResolvedRoute:
        """The resolved route of a connection for whose ``key`` there is none in :attr:`known`, or one that retired."""
        if not self._examined:
            self.examine(scope)
        if not is_path(scope["path"], scope.get("root_path") or ""):
            # Not remembered, so that each of them comes here.
            return self._registry.resolved_route((), route=None, missing_ok=True, refusal=NO_PATH)
        app_routes = self._resolver.app_routes(scope)
        known = self.known
        if known.basis is not app_routes:
            # In place of the old one, which a thread may still fill with what held for the app's routes of before.
            known = self.known = PathCache(app_routes)
            if marks.used:
                self._list_routes(scope)
        if app_routes is not None:
            full_key = (scope["type"], str(scope.get("method", "")), scope.get("root_path") or "", scope["path"])
            resolved_route = known.get(full_key)
            if resolved_route is not None and not resolved_route.retired:
                return resolved_route
        resolved_route, lasts = self._resolve(scope, app_routes)
        if self.successor is not None:
            # Another thread has put other agents and routes in place: these routes may lack agents of those.
            return self.successor.find(self.successor.key_of(scope), scope)
        if lasts and not marks.used:
            known.remember(key, resolved_route)
        elif app_routes is not None and (not app_routes.volatile or (lasts and not app_routes.has_policies)):
            # Found here as long as the app's routes stay the same, which only this method checks.
            known.remember(full_key, resolved_route)
        return resolved_route

    def _resolve(self, scope: Scope, app_routes: AppRoutes | None) -> tuple[ResolvedRoute, bool]:
        """The resolved route of a connection, and whether it lasts (:meth:`Resolver.resolve`)."""
        leaf = self._resolver.leaf(scope, app_routes)
        if leaf is not None and leaf.mark is not None:
            return self._of_policy(leaf.mark, leaf.spelling), False
        found, lasts = self._resolver.resolve(scope, app_routes)
        references, route = self._router.agents_of(found)
        resolved_route = self._registry.resolved_route(
            references,
            route=route,
            missing_ok=True,
            guardrails=self._router.guardrails_of(found),
            handlers_too=self._router.guardrails_of(None),
        )
        return resolved_route, lasts

    def key_of(self, scope: Scope) -> PathKey:
        """What :attr:`known` remembers the route of a connection by."""
        root_path = scope.get("root_path") or ""
        if self.goes_by_method or root_path:
            return (scope["path"], root_path, str(scope.get("method", "GET")))
        return str(scope["path"])

    def _of_policy(self, mark: PolicyMark, spelling: str | None) -> ResolvedRoute:
        """The resolved route of an endpoint with a policy."""
        policy = mark.policy
        fault = self._fault(mark)
        of_all = self._router.guardrails_of(None)
        return self._registry.resolved_route(
            policy.agents,
            route=spelling or None,
            missing_ok=True,
            guardrails=of_all if policy.guardrails is None else policy.guardrails,
            handlers_too=of_all,
            policy=policy,
            refusal=None if fault is None else f"{mark} on {spelling or 'an endpoint'}: {fault}",
        )

    def _fault(self, mark: PolicyMark, find_guard: Callable[[str], Guard] | None = None) -> str | None:
        """Why what a policy asks for can't be done, by the agents that there are or will be; None where it can."""
        find_guard = find_guard or self._registry.guard
        if not mark.checked:
            return (
                "it stands above the decorator that registers the endpoint, which has the function without its check;"
                " swap the two lines, so that it stands below"
            )
        for reference in mark.policy.agents:
            agent_id = reference if isinstance(reference, str) else reference[0]
            try:
                find_guard(agent_id)
            except UnknownAgentError as exc:
                return str(exc)
        for guardrail in mark.policy.guardrails or ():
            if isinstance(guardrail, Guardrail):
                try:
                    require_guardrail(guardrail, find_guard(guardrail.agent_id))
                except (UnknownAgentError, ConfigurationError) as exc:
                    return f"Guardrail({guardrail.agent_id!r}): {exc}"
        return None

    def _forget(self) -> None:
        self.known = PathCache()

    def check_policies(self, find_guard: Callable[[str], Guard]) -> None:
        """Raise :class:`ConfigurationError` where an endpoint's policy can't be carried out with other agents.

        :param find_guard: finds an agent that there will be, or raises :class:`UnknownAgentError`.
        """
        if not marks.used:
            return
        endpoints, _ = self._resolver.policies({"type": "lifespan"})
        for endpoint in endpoints:
            for mark, _ in endpoint.policies:
                if mark is not None and (fault := self._fault(mark, find_guard)) is not None:
                    raise ConfigurationError(f"{mark} on {endpoint.name} at {endpoint.path!r}: {fault}")

    def examine(self, scope: Scope, *, strict: bool = False, around: frozenset[str] | None = None) -> None:
        """Warn in the log of routes and agents that are most likely mistakes, once.

        :param scope: a connection, or the lifespan of an app that has its routes.
        :param strict: raise :class:`ConfigurationError` where an endpoint's policy can't be carried out, rather than
            log it.
        :param around: the headers that agents of middlewares around this one set. None: as the running code is called.
        """
        if marks.used:
            self._list_routes(scope)
            # An app that is started once more is refused once more.
            if strict or not self._examined:
                self._examine_policies(scope, strict=strict)
        if self._examined:
            return
        self._examined = True
        check_routes(self._router, self._resolver, scope)
        check_headers(self._registry, self._asked_together(scope), set_around() if around is None else around)
        if self._owns_agents:
            check_text_guardrails(self._registry)
            if self._router.default_agents is not None:
                check_agents(self._registry, self._router)

    def _asked_together(self, scope: Scope) -> Iterator[AskedTogether]:
        routes = self._router.routes or ()
        for route in routes:
            yield AskedTogether(repr(route.path), route.agents)
        if marks.used:
            for endpoint in self._resolver.policies(scope)[0]:
                for mark, _ in endpoint.policies:
                    if mark is not None:
                        yield AskedTogether(repr(endpoint.path), mark.policy.agents)
        yield AskedTogether("paths that match no route" if routes else None, self._router.default_agents)

    def _examine_policies(self, scope: Scope, *, strict: bool) -> None:
        endpoints, readable = self._resolver.policies(scope)
        if not readable and not self._examined:
            logger.warning(
                "the router of the app can't be found: policies on endpoints, by guarded_by and guard_router, are not"
                " seen, and these endpoints do not run unless the routes name the same agents"
            )
        faults: list[tuple[AppEndpoint, str]] = []
        judging: dict[Guardrail, None] = {}
        for endpoint in endpoints:
            for mark, _ in endpoint.policies:
                if mark is None:
                    continue
                if (fault := self._fault(mark)) is not None:
                    faults.append((endpoint, f"{mark} on {endpoint.name} at {endpoint.path!r}: {fault}"))
                else:
                    judging |= dict.fromkeys(one for one in mark.policy.guardrails or () if isinstance(one, Guardrail))
        for guardrail in judging if not self._examined else ():
            warn_of_guardrail(guardrail, self._registry.guard(guardrail.agent_id))
        if faults and strict:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise ConfigurationError(faults[0][1] + more)
        for endpoint, fault in faults[:_MOST_FAULTS]:
            logger.error("%s; %s", fault, consequence(endpoint.kind))

    def list_routes(self, find_guard: Callable[[str], Guard], instead_of: "RouteFinder") -> None:
        """Have the routes and policies shown on the status page in place of those of another finder.

        :param find_guard: finds an agent that there will be, or raises :class:`UnknownAgentError`.
        """
        self._listed_as = instead_of._listed_as
        self._list_routes({"type": "lifespan"}, find_guard)

    def _list_routes(self, scope: Scope, find_guard: Callable[[str], Guard] | None = None) -> None:
        listings = [*self._router.listings]
        for endpoint in self._resolver.policies(scope)[0] if marks.used else ():
            for mark, of_mark in endpoint.policies:
                if mark is not None and not mark.checked:
                    # A middleware within may rewrite the path, so that it is not found before it runs.
                    check_endpoints(endpoint.within[-1][0])
                if mark is None or self._fault(mark, find_guard) is not None:
                    continue
                policy = mark.policy
                guardrails = self._router.guardrails_of(None) if policy.guardrails is None else policy.guardrails
                judging = tuple(one for one in guardrails if isinstance(one, Guardrail))
                methods = None if of_mark is None else tuple(sorted(of_mark))
                listings.append(RouteListing(endpoint.path, methods, policy.agents, judging))
        if self.successor is None:
            self._registry.listings.put(self._listed_as, listings)


def _root_path_of(app: object) -> str:
    """The root_path that FastAPI puts on the scope itself, only further in than an outermost middleware can see."""
    for wrapped in app_chain(app):
        root_path = attribute(wrapped, "root_path")
        if isinstance(root_path, str) and root_path:
            return root_path
    return ""
