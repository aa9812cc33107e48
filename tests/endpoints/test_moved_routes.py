"""The policy of a router holds where its routes are moved or copied, and where the router of an app is replaced."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi import routing as fastapi_routing
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Host, Mount, Router, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient

from asgi_agents import ConfigurationError, guard_router, guarded_by, unguarded
from asgi_agents.middleware import finder_of
from asgi_agents.routing.survey import survey_of

from .asking import World, fastapi
from .test_rewriting_within import Rewriting


def routes(world: World) -> list[BaseRoute]:
    class Page(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            world.ran.append("page")
            return PlainTextResponse("")

    return [
        AppRoute("/x", world.http("x")),
        AppRoute("/page", Page),
        AppRoute("/own", guarded_by("pii")(world.http("own"))),
        AppRoute("/free", unguarded(world.http("free"))),
        WebSocketRoute("/x", world.websocket("ws")),
        Mount("/leaf", world.app("leaf")),
        Mount("/deep", routes=[AppRoute("/x", world.http("deep"))]),
        guard_router(Mount("/nearer", world.app("nearer")), "auth"),
    ]


#: Each path, and who is to be asked there.
ASKED = {
    "GET /x": ["waf"],
    "HEAD /x": ["waf"],
    "GET /page": ["waf"],
    "GET /own": ["pii"],
    "GET /free": [],
    "WS /x": ["waf"],
    "GET /leaf/any": ["waf"],
    "GET /deep/x": ["waf"],
    "GET /nearer/any": ["auth"],
}
#: What runs no endpoint.
NOTHING = {"POST /x": 405, "GET /none": 404, "GET /deep/none": 404}

Move = Callable[[World], Starlette]


def extended(world: World) -> Starlette:
    app, guarded = Starlette(), guard_router(Router(routes(world)), "waf")
    app.router.routes.extend(guarded.routes)
    return app


def moved_before(world: World) -> Starlette:
    app, router = Starlette(), Router(routes(world))
    app.router.routes += router.routes
    guard_router(router, "waf")
    return app


def taken_one_by_one(world: World) -> Starlette:
    app, guarded = Starlette(), guard_router(Router(), "waf")
    for route in routes(world):
        guarded.routes.append(route)
    for route in reversed(guarded.routes):
        app.router.routes.insert(0, route)
    return app


def put_in_slices(world: World) -> Starlette:
    guarded, [first, *others] = guard_router(Router([AppRoute("/", world.http("one"))]), "waf"), routes(world)
    guarded.routes[:] = others
    guarded.routes.insert(0, others[0])
    guarded.routes[0] = first
    return Starlette(routes=guarded.routes)


def of_an_app(world: World) -> Starlette:
    guarded = guard_router(Starlette(), "waf")
    guarded.router.routes += routes(world)
    return Starlette(routes=[*guarded.routes])


def in_a_mount(world: World) -> Starlette:
    guarded = guard_router(Router(routes(world)), "waf")
    return Starlette(routes=[Mount("/", routes=guarded.routes)])


def in_a_fastapi(world: World) -> Starlette:
    app = fastapi()
    app.router.routes.extend(guard_router(Router(routes(world)), "waf").routes)
    return app


def replaced_router(world: World) -> Starlette:
    app = guard_router(Starlette(), "waf")
    app.router = Router(routes(world))
    return app


def replaced_router_of_fastapi(world: World) -> Starlette:
    app = guard_router(fastapi(), "waf")
    app.router = APIRouter(routes=routes(world))
    return app


def replaced_in_a_mounted_app(world: World) -> Starlette:
    app = guard_router(Starlette(), "waf")
    app.router = Router(routes(world))
    return Starlette(routes=[Mount("/", app)])


def replaced_in_a_mount(world: World) -> Starlette:
    mount = guard_router(Mount("/", Router()), "waf")
    mount.app = Router(routes(world))
    return Starlette(routes=[mount])


def replaced_in_a_host(world: World) -> Starlette:
    host = guard_router(Host("a.example", Router()), "waf")
    host.app = Router(routes(world))
    return Starlette(routes=[host])


MOVES: list[Move] = [
    extended,
    moved_before,
    taken_one_by_one,
    put_in_slices,
    of_an_app,
    in_a_mount,
    in_a_fastapi,
    replaced_router,
    replaced_router_of_fastapi,
    replaced_in_a_mounted_app,
    replaced_in_a_mount,
    replaced_in_a_host,
]


@pytest.mark.parametrize("move", MOVES)
async def test_the_policy_holds_where_routes_are_moved_or_a_router_is_replaced(move: Move) -> None:
    world = World()
    app = move(world)
    guarded = world.guard(app)
    for _ in range(2):
        for line, asked in ASKED.items():
            status, ran, found = await world.call(guarded, line)
            assert (status in (200, 101), len(ran), found) == (True, 1, asked), line
        for line, status in NOTHING.items():
            assert await world.call(guarded, line) == (status, [], ["rest"]), line
    for line, asked in ASKED.items():
        # Without any agents.
        refusal = 1011 if line.startswith("WS") else 503
        status, ran, _ = await world.call(app, line)
        assert (status == refusal, len(ran)) == ((True, 0) if asked else (False, 1)), line


@pytest.mark.parametrize("move", MOVES)
async def test_no_path_that_is_rewritten_within_leads_past_it(move: Move) -> None:
    world = World()
    app = move(world)
    app.add_middleware(Rewriting)
    world.protect(app)
    for line, asked in ASKED.items():
        refusal = 1011 if line.startswith("WS") else 503
        status, ran, found = await world.call(app, line.replace(" ", " /to"))
        assert found == ["rest"]
        assert (status == refusal, len(ran)) == ((True, 0) if asked else (False, 1)), line
    for line, status in NOTHING.items():
        assert await world.call(app, line.replace(" ", " /to")) == (status, [], ["rest"]), line


@pytest.mark.parametrize("move", MOVES)
def test_the_policy_is_listed_there(move: Move) -> None:
    world = World()
    app = move(world)
    guarded = world.guard(app)
    # The middlewares of an app are built with its first connection.
    with TestClient(guarded):
        rows = survey_of(guarded, finder_of(guarded), app)
    asked = {row.path: [agent.guard.config.id for one in row.asked for agent in one.agents] for row in rows}
    assert asked == {
        "/x": ["waf"],
        "/page": ["waf"],
        "/own": ["pii"],
        "/free": [],
        "/leaf/{path:path}": ["waf"],
        "/deep/x": ["waf"],
        "/nearer/{path:path}": ["auth"],
    }


@pytest.mark.parametrize("nested", [False, True])
async def test_routes_of_fastapi_that_are_moved_into_a_router_that_is_included_keep_it(nested: bool) -> None:
    world, app, plain = World(), fastapi(), APIRouter()
    guarded = guard_router(APIRouter(prefix="/admin"), "auth")
    inner = APIRouter() if nested else guarded
    inner.get("/a", response_model=None)(world.http("a"))
    inner.websocket("/a")(world.websocket("ws"))
    if nested:
        guarded.include_router(inner)
    plain.routes.extend(guarded.routes)
    if hasattr(plain, "_mark_routes_changed"):
        plain._mark_routes_changed()
    app.include_router(plain, prefix="/v1")
    wrapped = world.guard(app)
    assert await world.call(wrapped, "GET /v1/admin/a") == (200, ["a"], ["auth"])
    assert await world.call(wrapped, "WS /v1/admin/a") == (101, ["ws"], ["auth"])


@pytest.mark.parametrize("inner", ["routes", "an app", "agents of its own"])
async def test_a_host_in_a_router_that_is_included_keeps_its_policy(inner: str) -> None:
    """FastAPI makes another Host of it, around a router with the prefix."""
    if not hasattr(fastapi_routing, "_IncludedRouter"):
        pytest.skip("this FastAPI includes no hosts")
    world, within, app, router = World(), World(), fastapi(), APIRouter()
    sub: Any = Router([AppRoute("/x", world.http("x"))])
    if inner == "an app":
        sub = world.app("x")
    elif inner == "agents of its own":
        sub = within.guard(sub)
    router.routes.append(guard_router(Host("b.example", sub), "waf"))
    app.include_router(router, prefix="/v1")
    assert await world.call(world.guard(app), "GET /v1/x", host="b.example") == (200, ["x"], ["waf"])
    assert await world.call(app, "GET /v1/x", host="b.example") == (503, [], [])
    detour = world.guard(Rewriting(app))
    assert await world.call(detour, "GET /to/v1/x", host="b.example") == (503, [], ["rest"])


def test_a_route_in_two_routers_with_different_policies_is_refused() -> None:
    world = World()
    route = AppRoute("/x", world.http("x"))
    guarded = guard_router(Router([route]), "waf")
    with pytest.raises(ConfigurationError, match="'/x' is in two routers with different policies: guard_router"):
        guard_router(Router([route]), "auth")
    other = guard_router(Router(), "auth")
    with pytest.raises(ConfigurationError, match="in two routers"):
        other.routes.extend(guarded.routes)
    assert other.routes == []
    # One policy in two places is no contradiction.
    assert guard_router(Router([route]), "waf").routes == [route]


def test_a_mount_in_a_guarded_router_may_be_given_a_policy_of_its_own_later() -> None:
    world = World()
    mount = Mount("/leaf", world.app("leaf"))
    router = guard_router(Router([mount]), "waf")
    guard_router(mount, "auth")
    client = TestClient(world.guard(router))
    assert (client.get("/leaf/x").status_code, world.asked) == (200, ["auth"])
    with pytest.raises(ConfigurationError, match="has a policy already"):
        guard_router(mount, "pii")


def test_an_app_is_built_with_its_policy_as_often_as_it_is_built() -> None:
    world = World()
    app = guard_router(Starlette(routes=routes(world)), "waf")
    for _ in range(3):
        app.middleware_stack = app.build_middleware_stack()
        assert TestClient(app).get("/x").status_code == 503
    with pytest.raises(ConfigurationError, match="has a policy already"):
        guard_router(app, "auth")
    assert guard_router(app, "waf") is app


# FastAPI below 0.137


class Copying(APIRouter):
    """Includes routers as FastAPI does below 0.137."""

    def include_router(self, router: APIRouter, *, prefix: str = "", **options: Any) -> None:
        for route in router.routes:
            if isinstance(route, APIRoute):
                self.add_api_route(
                    prefix + route.path, route.endpoint, methods=route.methods, response_model=None, name=route.name
                )
            elif isinstance(route, AppRoute):
                self.add_route(prefix + route.path, route.endpoint, methods=list(route.methods or ()))
            elif isinstance(route, APIWebSocketRoute):
                self.add_api_websocket_route(prefix + route.path, route.endpoint)
            elif isinstance(route, WebSocketRoute):
                self.add_websocket_route(prefix + route.path, route.endpoint)


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(fastapi_routing, "_IncludedRouter"):
        monkeypatch.setattr("asgi_agents.routing.guarding.copies_routes", lambda router: isinstance(router, APIRouter))


def filled(world: World, router: Copying) -> Copying:
    async def number(number: int) -> str:
        world.ran.append("api")
        return str(number)

    router.get("/api/{number}")(number)
    router.get("/own", response_model=None)(guarded_by("pii")(world.http("own")))
    router.get("/free", response_model=None)(unguarded(world.http("free")))
    router.websocket("/ws")(world.websocket("ws"))
    router.add_route("/plain", world.http("plain"))
    router.add_websocket_route("/plain", world.websocket("plain ws"))
    return router


COPIED = {
    "GET /v1/api/5": ["auth"],
    "GET /v1/own": ["pii"],
    "GET /v1/free": [],
    "WS /v1/ws": ["auth"],
    "GET /v1/plain": ["auth"],
    "WS /v1/plain": ["auth"],
}


@pytest.mark.usefixtures("copying")
@pytest.mark.parametrize("nested", [False, True])
async def test_where_fastapi_copies_routes_their_endpoints_have_the_policy(nested: bool) -> None:
    world, app = World(), fastapi()
    router = filled(world, guard_router(Copying(), "auth"))
    outer = Copying()
    if nested:
        # The nearer one holds.
        outer = guard_router(Copying(), "waf")
        outer.include_router(router)
    app.router.routes.clear()
    root = Copying()
    root.include_router(outer if nested else router, prefix="/v1")
    app.router.routes.extend(root.routes)
    guarded = world.guard(app)
    for line, asked in COPIED.items():
        status, ran, found = await world.call(guarded, line)
        assert (status in (200, 101), len(ran), found) == (True, 1, asked), line
        refusal = 1011 if line.startswith("WS") else 503
        status, ran, _ = await world.call(app, line)
        assert (status == refusal, len(ran)) == ((True, 0) if asked else (False, 1)), line
    with TestClient(guarded):
        pass


@pytest.mark.usefixtures("copying")
def test_a_router_whose_routes_may_have_been_copied_already_says_what_to_write_instead() -> None:
    router = filled(World(), Copying())
    with pytest.raises(ConfigurationError, match=r"write router = guard_router\(APIRouter\(...\), 'auth'\) above them"):
        guard_router(router, "auth")


@pytest.mark.usefixtures("copying")
def test_an_endpoint_that_cant_be_wrapped_says_what_to_write_instead() -> None:
    class Page(HTTPEndpoint):
        pass

    page: Any = Page
    router = guard_router(APIRouter(), "auth", "waf")
    with pytest.raises(ConfigurationError, match=r"write @guarded_by\('auth', 'waf'\) on it, or install fastapi>="):
        router.add_route("/page", page)


def test_a_whole_app_is_not_included() -> None:
    app: FastAPI = fastapi()
    assert guard_router(app, "auth") is app
