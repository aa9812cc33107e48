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

What can't be seen from here: a middleware between the agents and the app's router that rewrites the path.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from starlette import routing
from starlette.routing import BaseRoute, Host, Match, Mount, WebSocketRoute
from starlette.types import Scope

from .app_chain import app_chain, attribute
from .patterns import without_names
from .routes import AgentRoute, Router, path_below_root

# Those of these modules decide by path, method and scope type alone; except ``Host``.
_KNOWN_MODULES: Final = frozenset({"starlette.routing", "fastapi.routing"})

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

        None where they have no say, because every connection has the same agents.
        """
        return self._app_routes_of(scope) if self._varied else None

    def resolve(self, scope: Scope, app_routes: "AppRoutes | None") -> tuple[AgentRoute | None, bool]:
        """The route that holds for a connection, None for the default agents; and whether it lasts.

        What lasts holds for every connection with the same path, root path and method. All else holds for those of the
        same scope type as well, as long as the app has ``app_routes``, and those are not ``volatile``.

        :param app_routes: what :meth:`app_routes` has returned.
        """
        if app_routes is None:
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

    def endpoints(self, scope: Scope) -> Sequence[Endpoint] | None:
        """All routes that the app has now. None where they can't all be read."""
        return self._app_routes_of(scope).endpoints

    def may_pass_over(self, route: AgentRoute, scope: Scope) -> bool:
        """Whether ``route`` is spelt like one of the app's, and so may be passed over for a later one."""
        return self._app_routes_of(scope).has(route)

    def _app_routes_of(self, scope: Scope) -> "AppRoutes":
        router, _ = _router_of(self._app)
        if router is None:
            router = _router_around(scope)
        app_routes = self._app_routes
        if not app_routes.still_holds(router):
            app_routes = self._app_routes = AppRoutes(router)
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
    """

    def __init__(self, router: routing.Router | None) -> None:
        self._router = router
        #: Every list of routes below, by its owner, and every app in a mount with what was found in it.
        self._lists: dict[int, tuple[routing.Router, list[BaseRoute]]] = {}
        self._apps: list[tuple[object, routing.Router | None, str]] = []
        self._spellings: set[str] = set()
        self._mounts: set[str] = set()
        self._endpoints: list[Endpoint] = []
        # Whether something of the app can't be read, that may answer any path.
        self._answers_more = router is None
        #: Whether something other than path, method and scope type has a say, so that nothing may be remembered.
        self.volatile = False
        #: Whether a mounted app sets a root path of its own, so that its router may see any part of the path.
        self.shifts = False
        if router is not None:
            try:
                self._add_router(router, "", frozenset())
            except Exception:
                # Of an app like none that is known. What has no spelling is not skipped.
                self.volatile = True

    @property
    def endpoints(self) -> Sequence[Endpoint] | None:
        """All endpoints; None where there may be others."""
        return None if self._answers_more or self.volatile or self.shifts else tuple(self._endpoints)

    def still_holds(self, router: routing.Router | None) -> bool:
        """Whether ``router`` is the one of these routes, and has them still."""
        if router is not self._router:
            return False
        try:
            for owner, routes in self._lists.values():
                if owner.routes != routes:
                    return False
            return all(_router_of(app) == (inner, root) for app, inner, root in self._apps)
        except Exception:
            return False

    def has(self, route: AgentRoute) -> bool:
        """Whether a route of the app has the full spelling of ``route``; a mounted app has any parameter's name."""
        return route.path in self._spellings or (bool(self._mounts) and without_names(route.path) in self._mounts)

    def match(self, scope: Scope, root_path: str) -> str | None:
        """The full spelling of the route that the app's router runs, or None if it runs none.

        Empty for a route that has no pattern.
        """
        if self._router is None:
            return None
        # Some routes write to the scope that they match.
        asked = {**scope}
        if root_path:
            asked["root_path"] = root_path
        if isinstance(asked.get("fastapi"), dict):
            asked["fastapi"] = {**asked["fastapi"]}
        try:
            return _match(self._router, asked, "")
        except Exception:
            return None

    def _add_router(self, router: routing.Router, prefix: str, around: frozenset[int]) -> None:
        if id(router) in around:
            return  # an app within itself
        routes = router.routes[:]
        self._lists[id(router)] = (router, routes)
        self.volatile = self.volatile or _is_foreign(router, "app")
        # A fallback, or the pages of a frontend, that FastAPI looks through when no route matches.
        self._answers_more = (
            self._answers_more or router.default != router.not_found or bool(attribute(router, "_low_priority_routes"))
        )
        for route in routes:
            self._add(route, prefix, around | {id(router)})

    def _add(self, route: Any, prefix: str, around: frozenset[int]) -> None:
        self.volatile = self.volatile or isinstance(route, Host) or _is_foreign(route)
        if _is_included(route):
            included = route.original_router
            self.volatile = self.volatile or _is_foreign(included)  # it may have a `matches` of its own
            self._lists[id(included)] = (included, included.routes[:])
            for candidate in route.effective_candidates():
                if _is_included(candidate):
                    self._add(candidate, prefix, around)
                    continue
                self.volatile = self.volatile or _is_foreign(candidate.original_route)
                if candidate.starlette_route is not None:
                    self._add(candidate.starlette_route, prefix, around)
                else:
                    self._note(prefix + candidate.path, candidate.original_route)
        elif isinstance(route, Mount | Host):
            if isinstance(route, Mount):
                prefix += route.path
            router, root_path = _router_of(route.app)
            self._apps.append((route.app, router, root_path))
            self.shifts = self.shifts or root_path != ""
            if router is not None:
                self._add_router(router, prefix, around)
            elif isinstance(route, Mount):
                self._mounts.add(without_names(_mounted(prefix)))
                self._endpoints.append((_mounted(prefix), None))
        elif isinstance(path := getattr(route, "path", None), str):
            self._note(prefix + path, route)
        else:
            self._answers_more = True

    def _note(self, spelling: str, route: Any) -> None:
        self._spellings.add(spelling)
        methods = {"GET"} if isinstance(route, WebSocketRoute) else attribute(route, "methods")
        self._endpoints.append((spelling, None if methods is None else frozenset(map(str.upper, methods))))


def _match(router: routing.Router, scope: Scope, prefix: str) -> str | None:
    """What Starlette's ``Router`` does: the first full match runs. A mount is one, whatever is in it."""
    for route in router.routes:
        match, child_scope = route.matches(scope)
        if match is Match.FULL:
            return _match_within(route, child_scope, scope, prefix)
    return None


def _match_within(route: Any, child_scope: Scope, scope: Scope, prefix: str) -> str | None:
    path = None
    while _is_included(route):
        match, child_scope, route, context = route._match(scope)
        if match is not Match.FULL:
            return None
        # A route's own path lacks the prefix with which it was included.
        path = None if context is None or context.starlette_route is not None else context.path
    if path is None and isinstance(route, Mount | Host):
        scope.update(child_scope)
        if isinstance(route, Mount):
            prefix += route.path
        router, root_path = _router_of(route.app)
        if root_path:
            scope["root_path"] = root_path
        if router is not None:
            return _match(router, scope, prefix)
        return _mounted(prefix) if isinstance(route, Mount) else ""
    if path is None:
        path = getattr(route, "path", None)
    return prefix + path if isinstance(path, str) else ""


def _router_of(app: object) -> tuple[routing.Router | None, str]:
    """The router of an app, or None; and the root path that FastAPI sets on the way to it."""
    root_path = ""
    for wrapped in app_chain(app):
        if isinstance(wrapped, BaseRoute):
            break
        own = attribute(wrapped, "root_path")
        if not root_path and isinstance(own, str):
            root_path = own
        for router in (attribute(wrapped, "router"), wrapped):
            if isinstance(router, routing.Router):
                return router, root_path
    return None, root_path


def _router_around(scope: Scope) -> routing.Router | None:
    """The router of the app that the connection is in, unless that router has sent it here already."""
    app = scope.get("app")
    endpoint = scope.get("endpoint")
    router = None if app is None else _router_of(app)[0]
    if endpoint is None or router is None or _router_of(endpoint)[0] is router:
        return router
    return None


def _is_included(route: object) -> bool:
    """Whether it is what FastAPI's ``include_router`` leaves in an app: it combines prefix and routes when asked."""
    return hasattr(route, "effective_candidates") and hasattr(route, "_match") and hasattr(route, "original_router")


def _is_foreign(route: object, method: str = "matches") -> bool:
    """Whether a route or a router decides in a way of its own, as by a header."""
    module = getattr(getattr(type(route), method, None), "__module__", None)
    return module not in _KNOWN_MODULES or method in getattr(route, "__dict__", ())


def _mounted(prefix: str) -> str:
    return prefix + "/{path:path}"


def _agree(candidates: Iterable[AgentRoute]) -> bool:
    return len({route.agents for route in candidates}) < 2
