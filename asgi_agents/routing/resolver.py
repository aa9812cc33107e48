"""Which of our routes holds for a connection.

The candidates are the routes that match it, in the order given. Usually the first one holds. But a route of ours can
match more than the app's route of the same spelling does: ``AgentRoute("/items")`` is for all methods, the app's
``/items`` perhaps for GET alone, and the app sends a POST on to another handler. So where the candidates name different
agents, the app's own router has the last word:

- The router is asked which of its routes it runs. What counts is the *full spelling* of that route: the prefixes of the
  mounts and included routers around it, and its own pattern.
- A candidate is skipped if a route of the app has its full spelling and the router runs another one. A candidate that
  is spelt like no route of the app, such as a catch-all, is never skipped.
- If that leaves no candidate, or if the router runs nothing (404, 405, a redirect, an error while matching), the first
  candidate holds.

Therefore, whenever a handler runs, the agents of the route that is spelt like the handler's own have been asked,
whatever the order of the routes; unless an earlier one also matches and is spelt like no route of the app.

An endpoint's own policy (:mod:`asgi_agents.routing.guarding`) goes before all that: where the router runs an endpoint
with a policy, :meth:`Resolver.leaf` has it, and the routes are not asked.

What can't be seen from here: a middleware between the agents and the app's router that rewrites the path.
"""

from collections.abc import Iterable, Sequence

from starlette import routing
from starlette.types import Scope

from .endpoints import AppEndpoint, AppWalk
from .marks import mark_of, marks
from .matching import Around, Leaf, copy_of, match, router_around, router_of
from .patterns import without_names
from .routes import AgentRoute, Router, path_below_root

#: The full spelling of a route of the app, and its methods; None: all.
Endpoint = tuple[str, frozenset[str] | None]


class Resolver:
    """Finds the route of a connection.

    :param router: our routes.
    :param app: what the middleware wraps. The app's router is looked for when it is needed, since apps build themselves
        late: along the ``app`` attributes of middlewares, then in ``scope["app"]``. Its routes may change at any time,
        except that a mounted app with a ``root_path`` of its own must be there before the first request.

    It keeps nothing of a single request. It may be used from several event loops.
    """

    def __init__(self, router: Router, app: object) -> None:
        self._router = router
        self._app = app
        self._routes = router.routes or ()
        self._default = frozenset(router.default_agents or ())
        #: Whether it matters at all which route holds.
        self._varied = len({*(route.agents for route in self._routes), router.default_agents}) > 1
        self._by_spelling: dict[str, list[AgentRoute]] = {}
        self._by_shape: dict[str, list[AgentRoute]] = {}
        for route in self._routes:
            self._by_spelling.setdefault(route.path, []).append(route)
            self._by_shape.setdefault(without_names(route.path), []).append(route)
        self._app_routes = AppRoutes(None)

    def app_routes(self, scope: Scope) -> "AppRoutes | None":
        """The routes that the app has now: the same object as long as they stay the same.

        None where they have no say, because every connection has the same agents, and no endpoint has a policy.
        """
        return self.routes_now(scope) if self._varied or marks.used else None

    def resolve(self, scope: Scope, app_routes: "AppRoutes | None") -> tuple[AgentRoute | None, bool]:
        """The route that holds for a connection, None for the default agents; and whether it lasts.

        What lasts holds for every connection with the same path, root path and method. All else holds for those of the
        same scope type as well, as long as the app has ``app_routes``, and those are not ``volatile``.

        :param app_routes: what :meth:`app_routes` has returned.
        """
        if app_routes is None or not self._varied:
            return self._router.match(scope), True
        path, method = self._router.target(scope)
        candidates = self._router.candidates(path, method)
        # Where a mount makes the app's routers see another path than the rest of ours, a handler can run whose pattern
        # does not match it. Starlette does so for a path that ends in a line break, and below a root path that is not a
        # prefix of the path.
        root = self._router.root_of(scope)
        outside = root != "" and path_below_root(scope["path"], root) == scope["path"]
        shifted = app_routes.shifts or outside or "\n" in path
        if not shifted and _agree(candidates):
            return (candidates[0] if candidates else None), True
        if not shifted and not app_routes.has(candidates[0]):
            route: AgentRoute | None = candidates[0]
        else:
            route = self._settle(candidates, app_routes.match(scope, root), method, app_routes)
        if "\n" in path:
            route = self._across_lines(route, candidates, path, method, app_routes)
        return route, False

    def leaf(self, scope: Scope, app_routes: "AppRoutes | None") -> Leaf | None:
        """What the app's router runs for a connection, where that has a policy; None where the routes decide.

        :param app_routes: what :meth:`app_routes` has returned.
        """
        if app_routes is None or not app_routes.has_policies:
            return None
        leaf = app_routes.leaf(scope, self._router.root_of(scope))
        return None if leaf is None or leaf.mark is None else leaf

    def policies(self, scope: Scope) -> "tuple[Sequence[AppEndpoint], bool]":
        """The endpoints of the app that it has now, with their policies; and whether its router was found."""
        app_routes = self.routes_now(scope)
        return app_routes.listed, app_routes.readable

    def endpoints(self, scope: Scope) -> Sequence[Endpoint] | None:
        """All routes that the app has now. None where they can't all be read."""
        return self.routes_now(scope).endpoints

    def may_pass_over(self, route: AgentRoute, scope: Scope) -> bool:
        """Whether ``route`` is spelt like one of the app's, and so may be passed over for a later one."""
        return self.routes_now(scope).has(route)

    def routes_now(self, scope: Scope) -> "AppRoutes":
        """The routes that the app has now, whether or not they have a say."""
        router, _ = router_of(self._app)
        found = router is not None
        if router is None:
            router = router_around(scope)
        app_routes = self._app_routes
        if not app_routes.still_holds(router):
            around = Around()
            if marks.used and router is not None:
                around = around.into(self._app) if found else around.within(router)
            app_routes = self._app_routes = AppRoutes(router, around)
        return app_routes

    def _settle(
        self, candidates: list[AgentRoute], match: str | None, method: str, app_routes: "AppRoutes"
    ) -> AgentRoute | None:
        """The first candidate that is not about another handler than the one that the app's router runs."""
        if match is None:
            return candidates[0] if candidates else None
        own = [route for route in self._by_spelling.get(match, ()) if route.takes(method)]
        if not own:
            # No route has the same parameter names: those that differ in nothing else are for this handler.
            own = [route for route in self._by_shape.get(without_names(match), ()) if route.takes(method)]
        if not all(route in candidates for route in own):
            candidates = [route for route in self._routes if route in candidates or route in own]
        for route in candidates:
            if route in own or not app_routes.has(route):
                return route
        return candidates[0] if candidates else None

    def _across_lines(
        self, found: AgentRoute | None, candidates: list[AgentRoute], path: str, method: str, app_routes: "AppRoutes"
    ) -> AgentRoute | None:
        """A catch-all of ours before ``found`` whose pattern only fails to match for a line break, if it adds agents.

        ``/api/{rest:path}`` stops at a line break, as in Starlette; the app's ``/api/users/{name}`` does not. No
        connection loses an agent by this.
        """
        wanted = self._default if found is None else frozenset(found.agents)
        for route in self._routes:
            if route is found:
                break
            if (
                wanted.issubset(route.agents)
                and route not in candidates
                and route.takes(method)
                and route.across_lines.match(path)
                and not app_routes.has(route)
            ):
                return route
        return found


class AppRoutes:
    """The routes of the app, as they were when it was made.

    :param router: the app's router; None where none was found.
    :param around: what holds in the app for endpoints without a policy of their own.
    """

    def __init__(self, router: routing.Router | None, around: Around = Around()) -> None:  # noqa: B008 - it is frozen
        self._router = router
        self._around = around
        self._generation = marks.generation
        self._walk = None if router is None else AppWalk(router, around)
        walk = self._walk
        #: Whether something other than path, method and scope type has a say, so that nothing may be remembered.
        self.volatile = walk is not None and walk.volatile
        #: Whether any endpoint has a policy, or may have one.
        self.has_policies = marks.used and (walk is None or walk.has_policies)
        if walk is None and marks.used:
            # Which endpoint a connection is for is seen in its scope, if a router around has put it there.
            self.volatile = True
        #: Every endpoint that can be read, with its policies.
        self.listed: Sequence[AppEndpoint] = () if walk is None else walk.endpoints
        #: Whether a mounted app sets a root path of its own, so that its router may see any part of the path.
        self.shifts = walk is not None and walk.shifts
        self._spellings = {one.path for one in self.listed if one.kind in ("http", "websocket")}
        self._mounts = set() if walk is None else set(map(without_names, walk.mounts))

    @property
    def readable(self) -> bool:
        """Whether there is a router."""
        return self._router is not None

    @property
    def endpoints(self) -> Sequence[Endpoint] | None:
        """All endpoints; None where there may be others."""
        walk = self._walk
        if walk is None or walk.open_ended or walk.volatile or walk.shifts:
            return None
        if any(endpoint.kind == "unreadable" for endpoint in walk.endpoints):
            return None
        return tuple((one.path, frozenset({"GET"}) if one.kind == "websocket" else one.methods) for one in self.listed)

    def still_holds(self, router: routing.Router | None) -> bool:
        """Whether ``router`` is the one of these routes, and has them still."""
        if router is not self._router or self._generation != marks.generation:
            return False
        if self._walk is None:
            return True
        try:
            for owner, routes in self._walk.lists.values():
                if owner.routes != routes:
                    return False
            return all(router_of(app) == (inner, root) for app, inner, root in self._walk.apps)
        except Exception:
            return False

    def has(self, route: AgentRoute) -> bool:
        """Whether a route of the app has the full spelling of ``route``; a mounted app has any parameter's name."""
        return route.path in self._spellings or (bool(self._mounts) and without_names(route.path) in self._mounts)

    def match(self, scope: Scope, root_path: str) -> str | None:
        """The full spelling of the route that the app's router runs, or None if it runs none.

        Empty for a route that has no pattern.
        """
        leaf = None if self._router is None else self.leaf(scope, root_path)
        return None if leaf is None else leaf.spelling

    def leaf(self, scope: Scope, root_path: str) -> Leaf | None:
        """What the app's router runs; None where it runs nothing, or that can't be found out."""
        if self._router is None:
            endpoint = scope.get("endpoint")
            if endpoint is None or router_of(endpoint)[0] is not None:
                return None
            return Leaf(None, mark_of(endpoint, scope.get("method")))
        asked = copy_of(scope)
        if root_path:
            asked["root_path"] = root_path
        try:
            return match(self._router, asked, "", self._around)
        except Exception:
            return None


def _agree(candidates: Iterable[AgentRoute]) -> bool:
    return len({route.agents for route in candidates}) < 2
