"""Apps with routers, mounts and hosts within one another, and policies on any of them.

What is to be asked for each endpoint follows from how the app was made: the policy that was nearest.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from fastapi import APIRouter
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Router, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp

from asgi_agents import AgentRoute, guard_router, guarded_by, unguarded

from .asking import World, fastapi

METHODS = ("GET", "POST", "PUT", "HEAD", "DELETE")
_POLICIES = (("waf",), ("pii", "waf"), ("auth",), (("auth", "open"), "pii"))
# None: no policy.
Policy = tuple[Any, ...] | None


class RandomApp:
    """An app, and who is to be asked.

    :ivar policies: of each handler, by its name; None where the routes decide.
    :ivar calls: lines of method and path that most likely reach some handler, each with a host.
    :ivar routes: routes of the middleware for some handlers, and those handlers.
    """

    def __init__(self, chance: Random, world: World) -> None:
        self._chance = chance
        self._world = world
        self._later: list[Callable[[], object]] = []
        self.policies: dict[str, Policy] = {}
        self.by_route: set[str] = set()
        self.routes: list[AgentRoute] = []
        self.calls: list[tuple[str, str]] = []
        #: The paths at which something answers every method, if only with 405.
        self.all_methods: set[str] = set()
        self.app = self._app("", "a.example", None, 0)
        # Policies may be put on routers before and after these are filled, included or mounted.
        chance.shuffle(self._later)
        for put in self._later:
            put()

    def expected(self, name: str) -> list[str]:
        """Who is to be asked before a handler runs."""
        policy = self.policies[name]
        if policy is None:
            return ["route"] if name in self.by_route else ["rest"]
        return [agent if isinstance(agent, str) else agent[0] for agent in policy]

    def _size(self, depth: int) -> int:
        return self._chance.randint(1, 4) if depth else self._chance.randint(4, 8)

    def _policy(self) -> Policy:
        return self._chance.choice(_POLICIES) if self._chance.random() < 0.4 else None

    def _app(self, prefix: str, host: str, around: Policy, depth: int) -> Any:
        """An app of any kind, often with a policy for all that is in it."""
        own = self._policy()
        around = own or around
        kind = self._chance.randrange(3)
        app: Any
        if kind == 0:
            app = fastapi()
            self._fill(app.router, prefix, host, around, depth)
        else:
            routes = [self._route(prefix, host, around, depth) for _ in range(self._size(depth))]
            app = Starlette(routes=routes) if kind == 1 else Router(routes)
        if own is not None:
            self._later.append(lambda: guard_router(app, *own))
        return app

    def _fill(self, router: APIRouter, prefix: str, host: str, around: Policy, depth: int) -> None:
        for _ in range(self._size(depth)):
            kind = self._chance.randrange(5)
            if kind == 0 and depth < 3:
                self._include(router, prefix, host, around, depth)
            elif kind == 1:
                router.routes.append(self._route(prefix, host, around, depth))
                router._mark_routes_changed()
            else:
                self._api_route(router, prefix, host, around)

    def _include(self, router: APIRouter, prefix: str, host: str, around: Policy, depth: int) -> None:
        own, added = self._policy(), self._prefix()
        inner = APIRouter()
        if self._chance.random() < 0.5:
            router.include_router(inner, prefix=added)
            self._fill(inner, prefix + added, host, own or around, depth + 1)
        else:
            self._fill(inner, prefix + added, host, own or around, depth + 1)
            router.include_router(inner, prefix=added)
        if own is not None:
            self._later.append(lambda: guard_router(inner, *own))

    def _api_route(self, router: APIRouter, prefix: str, host: str, around: Policy) -> None:
        pattern = self._pattern()
        if self._chance.random() < 0.3:
            router.add_api_websocket_route(pattern, self._handler("WS", prefix + pattern, host, around))
            return
        for method in self._chance.sample(METHODS, self._chance.randint(1, 2)):
            endpoint = self._handler(method, prefix + pattern, host, around)
            router.add_api_route(pattern, endpoint, methods=[method], response_model=None)

    def _route(self, prefix: str, host: str, around: Policy, depth: int) -> Any:
        kind = self._chance.randrange(7)
        if kind <= 1 and depth < 3:
            added, own = self._prefix(), self._policy()
            route: Any = Mount(added, self._leaf_or_app(prefix + added, host, own or around, depth))
            return route if own is None else guard_router(route, *own)
        if kind == 2 and depth == 0:
            own = self._policy()
            name = f"h{len(self.calls)}.example"
            route = Host(name, self._app(prefix, name, own or around, depth + 1))
            return route if own is None else guard_router(route, *own)
        pattern = self._pattern()
        if kind == 3:
            return WebSocketRoute(pattern, self._handler("WS", prefix + pattern, host, around))
        if kind == 4:
            return AppRoute(pattern, self._class(prefix + pattern, host, around))
        method = self._chance.choice(METHODS)
        return AppRoute(pattern, self._handler(method, prefix + pattern, host, around), methods=[method])

    def _leaf_or_app(self, prefix: str, host: str, around: Policy, depth: int) -> ASGIApp:
        if self._chance.random() < 0.7:
            return self._app(prefix, host, around, depth + 1)  # type: ignore[no-any-return]
        name = self._note("GET", prefix + "/{path:path}", host, around)
        self.all_methods.add(_path(prefix + "/{path:path}"))
        return self._world.app(name)

    def _handler(self, method: str, spelling: str, host: str, around: Policy) -> Any:
        own = self._policy()
        free = own is None and self._chance.random() < 0.15
        name = self._note(method, spelling, host, () if free else own or around)
        make = self._world.websocket if method == "WS" else self._chance.choice((self._world.http, self._world.sync))
        return self._marked(make(name), own, free)

    def _class(self, spelling: str, host: str, around: Policy) -> Any:
        """An HTTPEndpoint with policies of its own on any of its methods, and on all of it."""
        own = self._policy()
        self.all_methods.add(_path(spelling))
        body: dict[str, Any] = {}
        for method in self._chance.sample(("GET", "POST", "DELETE"), 2):
            of_method = self._policy()
            name = self._note(method, spelling, host, of_method or own or around)
            body[method.lower()] = self._marked(self._method(name), of_method, free=False)
        endpoint = type("Endpoint", (HTTPEndpoint,), body)
        return self._marked(endpoint, own, free=False)

    def _method(self, name: str) -> Any:
        async def handler(endpoint: HTTPEndpoint, request: Request) -> Response:
            self._world.ran.append(name)
            return PlainTextResponse("")

        return handler

    def _marked(self, endpoint: Any, own: Policy, free: bool) -> Any:
        if free:
            return unguarded(endpoint)
        return endpoint if own is None else guarded_by(*own)(endpoint)

    def _note(self, method: str, spelling: str, host: str, policy: Policy) -> str:
        """A new name for a handler whose nearest policy is this one."""
        name = f"{method} {spelling} #{len(self.policies)}"
        self.policies[name] = policy
        self.calls.append((f"{method} {_path(spelling)}", host))
        if self._chance.random() < 0.3 and not any(route.path == spelling for route in self.routes):
            self.routes.append(AgentRoute(spelling, ["route"]))
        return name

    def settle(self) -> None:
        """Find out for which handlers there are routes of the middleware, once all are there."""
        spellings = {route.path for route in self.routes}
        self.by_route = {name for name in self.policies if name.split(" ")[1] in spellings}

    def _pattern(self) -> str:
        """Most are for one handler alone; a few are not."""
        if self._chance.random() < 0.1:
            return "/same"
        return self._chance.choice(("/e%d", "/e%d/{p}", "/{p}/e%d", "/e%d/{n:int}/x")) % len(self.policies)

    def _prefix(self) -> str:
        return f"/m{len(self._later)}-{len(self.policies)}"


def _path(spelling: str) -> str:
    return spelling.replace("{path:path}", "any/thing").replace("{p}", "value").replace("{n:int}", "7")
