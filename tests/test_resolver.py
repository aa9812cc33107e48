"""Which route holds where several match: the app's own router has the last word."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Final

import anyio
import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Host, Match, Mount, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.routing import Router as AppRouter
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from asgi_agents import Agent, AgentConfig, AgentManager, AgentMiddleware, RequestHeadersEvent, Route
from asgi_agents.manager import registry_of
from asgi_agents.routing.cache import MAX_KNOWN
from asgi_agents.routing.finder import RouteFinder
from asgi_agents.routing.resolver import Resolver
from asgi_agents.routing.routes import Router
from tests.support.asgi import connection
from tests.support.examples import some_are_short

from .fuzz import route_tables
from .fuzz.choices import Choices
from .support.finding import Listening, finder_of, ids_of

FILES = Route("/files/{rest:path}", [])
SECTION = Route("/{section}/{name}", ["auth"])


class World:
    """Handlers and agents that note the spelling of each handler that runs, and the id of each agent that is asked."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.asked: list[str] = []

    def http(self, spelling: str) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            self.ran.append(spelling)
            return Response()

        return handle

    def websocket(self, spelling: str) -> Callable[[WebSocket], Any]:
        async def handle(websocket: WebSocket) -> None:
            self.ran.append(spelling)
            await websocket.close()

        return handle

    def leaf(self, spelling: str) -> ASGIApp:
        """An app without routes."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            self.ran.append(spelling)
            await Response()(scope, receive, send)

        return app

    def route(self, pattern: str, prefix: str = "", **options: Any) -> AppRoute:
        return AppRoute(pattern, self.http(prefix + pattern), **options)

    def agents(self, ids: Iterable[str]) -> list[AgentConfig]:
        return [AgentConfig(name, _Noting(name, self.asked)) for name in ids]

    def guard(self, app: ASGIApp, routes: Sequence[Route], default: Sequence[str] = ()) -> AgentMiddleware:
        named = {str(name) for route in routes for name in route.agents} | {*default}
        return AgentMiddleware(app, agents=self.agents(sorted(named)), routes=routes, default_agents=default or None)

    async def call(self, app: ASGIApp, path: str, method: str = "GET", **options: Any) -> tuple[list[str], list[str]]:
        """Which handlers ran, and which agents were asked."""
        self.ran.clear()
        self.asked.clear()
        await route_tables.run(app, connection(path, method, **options))
        return [*self.ran], [*self.asked]


class _Noting(Agent):
    def __init__(self, name: str, asked: list[str]) -> None:
        self._name = name
        self._asked = asked

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self._asked.append(self._name)


def resolve(resolver: Resolver, scope: Scope) -> tuple[Route | None, bool]:
    """The route that holds, and whether it lasts."""
    return resolver.resolve(scope, resolver.app_routes(scope))


# What an app's router sends elsewhere


def starlette_files(world: World) -> ASGIApp:
    return Starlette(routes=[world.route("/files/{rest:path}"), world.route("/{section}/{name}")])


def methods_differ(world: World) -> ASGIApp:
    section = world.route("/{section}/{name}", methods=["GET", "POST"])
    return Starlette(routes=[world.route("/files/{rest:path}"), section])


def fastapi_without_head(world: World) -> ASGIApp:
    app = FastAPI()
    app.add_api_route("/files/{rest:path}", world.http("/files/{rest:path}"), response_model=None)
    app.add_api_route("/{section}/{name}", world.http("/{section}/{name}"), methods=["HEAD"], response_model=None)
    return app


def websocket_beside(world: World) -> ASGIApp:
    return Starlette(
        routes=[
            world.route("/files/{rest:path}"),
            WebSocketRoute("/{section}/{name}", world.websocket("/{section}/{name}")),
        ]
    )


def mount_beside(world: World) -> ASGIApp:
    return Starlette(
        routes=[Mount("/files", world.leaf("/files/{path:path}")), world.route("/{section}/{name}", methods=["GET"])]
    )


def upload_before_mount(world: World) -> ASGIApp:
    section = world.route("/{section}/{name}", methods=["POST"])
    return Starlette(routes=[section, Mount("/files", world.leaf("/files/{path:path}"))])


def included(world: World) -> ASGIApp:
    app, files, sections = FastAPI(), APIRouter(), APIRouter()
    files.add_api_route("/{rest:path}", world.http("/files/{rest:path}"), response_model=None)
    sections.add_api_route("/{section}/{name}", world.http("/{section}/{name}"), methods=["POST"], response_model=None)
    outer = APIRouter()
    outer.include_router(files, prefix="/files")
    app.include_router(outer)
    app.include_router(sections)
    return app


def mounted_sub_app(world: World) -> ASGIApp:
    sub = FastAPI()
    sub.add_api_route("/{name}", world.http("/files/{name}"), methods=["POST"], response_model=None)
    section = world.route("/{section}/{name}", methods=["POST"])
    return Starlette(routes=[world.route("/files/{rest:path}"), Mount("/other", sub), section])


@pytest.mark.parametrize(
    ("build", "path", "method", "files"),
    [
        (starlette_files, "/files/a\nb", "GET", "/files/{rest:path}"),
        (methods_differ, "/files/a", "POST", "/files/{rest:path}"),
        (fastapi_without_head, "/files/a", "HEAD", "/files/{rest:path}"),
        (websocket_beside, "/files/a", "WS", "/files/{rest:path}"),
        # Nobody sees the name that a mount gives to the rest of a path.
        (mount_beside, "/files/a\nb", "GET", "/files/{rest:path}"),
        (mount_beside, "/files/a\nb", "GET", "/files/{path:path}"),
        (upload_before_mount, "/files/a", "POST", "/files/{rest:path}"),
        (upload_before_mount, "/files/a", "POST", "/files/{path:path}"),
        (included, "/files/a", "POST", "/files/{rest:path}"),
        (mounted_sub_app, "/files/a", "POST", "/files/{rest:path}"),
    ],
)
async def test_no_request_is_taken_away_from_the_route_whose_handler_runs(
    build: Callable[[World], ASGIApp], path: str, method: str, files: str
) -> None:
    world = World()
    guarded = world.guard(build(world), [Route(files, []), SECTION])
    for _ in range(2):
        assert await world.call(guarded, path, method) == (["/{section}/{name}"], ["auth"])
        ran, asked = await world.call(guarded, "/files/a/b")
        assert (ran, asked) in [(["/files/{rest:path}"], []), (["/files/{path:path}"], [])]


async def test_the_same_route_is_found_whatever_the_order_of_ours() -> None:
    world = World()
    for routes in ([FILES, SECTION], [SECTION, FILES]):
        guarded = world.guard(starlette_files(world), routes)
        assert await world.call(guarded, "/files/a") == (["/files/{rest:path}"], [])
        assert await world.call(guarded, "/other/a") == (["/{section}/{name}"], ["auth"])


async def test_prefixes_of_mounts_are_part_of_a_spelling() -> None:
    world = World()
    inner = Starlette(routes=[world.route("/{name}", "/{tenant}/x")])
    app = Starlette(routes=[Mount("/{tenant}", routes=[Mount("/x", inner)]), world.route("/{name}")])
    guarded = world.guard(app, [Route("/{name}", ["outer"]), Route("/{tenant}/x/{name}", ["inner"])])
    assert await world.call(guarded, "/a/x/b") == (["/{tenant}/x/{name}"], ["inner"])


async def test_a_mount_takes_what_it_matches_whatever_is_in_it() -> None:
    world = World()
    app = Starlette(routes=[Mount("/a", routes=[world.route("/x", "/a")]), world.route("/a/{name}")])
    guarded = world.guard(app, [Route("/a/x", ["x"]), Route("/a/{name}", ["name"])])
    assert await world.call(guarded, "/a/x") == (["/a/x"], ["x"])
    assert await world.call(guarded, "/a/y") == ([], ["name"])


# What the first one keeps


async def test_a_route_that_is_spelt_like_none_of_the_apps_holds_for_all_that_it_matches() -> None:
    world = World()
    guarded = world.guard(starlette_files(world), [Route("/{all:path}", ["waf"]), FILES, SECTION])
    assert await world.call(guarded, "/files/a") == (["/files/{rest:path}"], ["waf"])


@pytest.mark.parametrize(("path", "method"), [("/files/a", "PUT"), ("/files/1", "BREW"), ("/files/a", "WS")])
async def test_where_no_handler_runs_the_first_match_holds(path: str, method: str) -> None:
    world = World()
    for routes, asked in (([FILES, SECTION], []), ([SECTION, FILES], ["auth"])):
        assert await world.call(world.guard(starlette_files(world), routes), path, method) == ([], asked)


async def test_where_matching_fails_the_first_match_holds() -> None:
    class Failing(AppRoute):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            raise ValueError("no")

    world = World()
    app = Starlette(routes=[Failing("/{section}/{name}", world.http("")), world.route("/files/{rest:path}")])
    guarded = world.guard(app, [SECTION, FILES])
    assert await world.call(guarded, "/files/a") == ([], ["auth"])


async def test_a_handler_without_a_route_of_its_own_keeps_the_first_match_among_those_of_others() -> None:
    # Both are for other handlers: to go on to the later one would take an agent away for no reason.
    world = World()
    app = Starlette(
        routes=[
            world.route("/users/{id:int}"),
            world.route("/users/{id}", methods=["DELETE"]),
            world.route("/{page:path}"),
        ]
    )
    guarded = world.guard(app, [Route("/users/{id:int}", ["auth"]), Route("/{page:path}", [])])
    assert await world.call(guarded, "/users/1", "DELETE") == (["/users/{id}"], ["auth"])


async def test_a_route_with_other_names_of_parameters_is_the_handlers_where_none_is_spelt_like_it() -> None:
    world = World()
    app = Starlette(routes=[world.route("/users/{id}"), world.route("/users/{user_id}", methods=["DELETE"])])
    ours = [Route("/users/{id}", ["auth"]), Route("/{all:path}", [])]
    assert await world.call(world.guard(app, ours), "/users/1", "DELETE") == (["/users/{user_id}"], ["auth"])
    ours.append(Route("/users/{user_id}", ["exactly"]))
    assert await world.call(world.guard(app, [ours[0], ours[2]]), "/users/1", "DELETE") == (
        ["/users/{user_id}"],
        ["exactly"],
    )


async def test_default_agents_are_no_candidate() -> None:
    world = World()
    app = Starlette(routes=[world.route("/a", methods=["GET"]), world.route("/{name}", methods=["POST"])])
    guarded = world.guard(app, [Route("/a", ["a"])], default=["default"])
    assert await world.call(guarded, "/a", "POST") == (["/{name}"], ["a"])
    assert await world.call(guarded, "/b", "POST") == (["/{name}"], ["default"])


# Line breaks


async def test_a_line_break_is_no_way_around_a_catch_all() -> None:
    world = World()
    app = Starlette(routes=[world.route("/api/users/{name}"), world.route("/{a}/{b}")])
    guarded = world.guard(app, [Route("/api/{rest:path}", ["auth"]), Route("/{a}/{b}", [])])
    assert await world.call(guarded, "/api/users/a\nb") == (["/api/users/{name}"], ["auth"])
    assert await world.call(guarded, "/api/a\nb") == (["/{a}/{b}"], ["auth"])


async def test_a_catch_all_that_a_line_break_stops_takes_no_agents_away() -> None:
    world = World()
    app = Starlette(routes=[world.route("/public/{file:path}"), world.route("/{section}/{name}")])
    public = Route("/public/{rest:path}", [])
    assert await world.call(world.guard(app, [public, SECTION]), "/public/a\nb") == (["/{section}/{name}"], ["auth"])
    guarded = world.guard(app, [public], default=["default"])
    assert await world.call(guarded, "/public/a\nb") == (["/{section}/{name}"], ["default"])


@pytest.mark.parametrize("path", ["/mnt//x\n", "/mnt//x"])
async def test_a_mount_that_cuts_a_line_break_off_leads_past_nobody(path: str) -> None:
    # Starlette counts what is left from the end, and forgets the line break: the router inside sees `/x`.
    world = World()
    app = Starlette(routes=[Mount("/mnt", routes=[world.route("/x", "/mnt")])])
    ran, asked = await world.call(world.guard(app, [Route("/mnt/x", ["auth"])]), path)
    assert (ran, asked) == ((["/mnt/x"], ["auth"]) if path.endswith("\n") else ([], []))


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("root_path", ["/other", "/v1/"])
async def test_a_mounted_app_with_another_root_path_leads_past_nobody(root_path: str) -> None:
    world = World()
    sub = FastAPI(root_path=root_path)
    sub.add_api_route("/{section}/{name}", world.http("/v1/{section}/{name}"), response_model=None)
    guarded = world.guard(Starlette(routes=[Mount("/v1", sub)]), [Route("/v1/{section}/{name}", ["auth"])])
    # The app in the mount sees all of the path.
    assert await world.call(guarded, "/v1/a") == (["/v1/{section}/{name}"], ["auth"])


async def test_a_root_path_that_the_path_lacks_leads_past_nobody() -> None:
    world = World()
    app = Starlette(routes=[Mount("/a", routes=[world.route("/{section}/{name}", "/a")])])
    guarded = world.guard(app, [Route("/a/{section}/{name}", ["auth"])])
    assert await world.call(guarded, "/a/b", root_path="/root") == (["/a/{section}/{name}"], ["auth"])


# Finding the app's router


def opaque(app: ASGIApp) -> ASGIApp:
    """A middleware that doesn't show what it wraps."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return middleware


async def _pass(request: Request, call_next: Any) -> Any:
    return await call_next(request)


@pytest.mark.parametrize("fastapi", [True, False])
@pytest.mark.parametrize("where", ["outside", "around middlewares", "inside", "inside, around what shows nothing"])
async def test_the_apps_router_is_found_wherever_the_agents_stand(where: str, fastapi: bool) -> None:
    world = World()
    routes: list[BaseRoute] = [world.route("/files/{rest:path}"), world.route("/{section}/{name}", methods=["POST"])]
    app: Any = FastAPI(routes=routes) if fastapi else Starlette(routes=routes)
    guarded: ASGIApp = app
    if where == "outside":
        guarded = world.guard(app, [FILES, SECTION])
    elif where == "around middlewares":
        app.add_middleware(BaseHTTPMiddleware, dispatch=_pass)
        guarded = world.guard(GZipMiddleware(BaseHTTPMiddleware(app, _pass)), [FILES, SECTION])
    else:
        app.add_middleware(opaque if where.endswith("nothing") else GZipMiddleware)
        app.add_middleware(AgentMiddleware, agents=world.agents(["auth"]), routes=[FILES, SECTION])
    assert await world.call(guarded, "/files/a", "POST") == (["/{section}/{name}"], ["auth"])


async def test_a_router_with_agents_in_its_middlewares_is_asked() -> None:
    world = World()
    guard = Middleware(AgentMiddleware, agents=world.agents(["auth"]), routes=[FILES, SECTION])
    routes = [world.route("/files/{rest:path}"), world.route("/{section}/{name}", methods=["POST"])]
    assert await world.call(AppRouter(routes, middleware=[guard]), "/files/a", "POST") == (
        ["/{section}/{name}"],
        ["auth"],
    )


async def test_an_app_that_has_sent_a_request_here_is_not_asked_where_it_sends_it() -> None:
    world = World()
    inner = Starlette(routes=[world.route("/files/{rest:path}", methods=["POST"])])
    guarded = world.guard(opaque(inner), [Route("/files/{rest:path}", ["auth"]), Route("/{section}/{name}", [])])
    app = Starlette(
        routes=[Mount("/m", guarded), world.route("/files/{rest:path}"), world.route("/{a}/{b}", methods=["POST"])]
    )
    assert await world.call(app, "/m/files/a", "POST") == (["/files/{rest:path}"], ["auth"])


@pytest.mark.parametrize("how", ["a function", "an endless chain", "a property that fails", "a chain in a circle"])
async def test_an_app_without_a_router_leaves_the_first_match(how: str) -> None:
    world = World()

    class Odd:
        def __getattr__(self, name: str) -> Any:
            if how == "a property that fails":
                raise RuntimeError(name)
            if name != "app":
                raise AttributeError(name)
            return self if how == "a chain in a circle" else Odd()

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await Response()(scope, receive, send)

    routes = [FILES, SECTION]
    app: ASGIApp = world.leaf("") if how == "a function" else Odd()
    resolver = Resolver(Router(routes, None), app)
    for _ in range(2):
        assert resolve(resolver, connection("/files/a")) == (FILES, False)
        assert resolve(resolver, connection("/other/a")) == (SECTION, True)


async def test_an_app_within_itself_has_its_routes() -> None:
    world = World()
    app = Starlette(routes=[world.route("/files/{rest:path}"), world.route("/{section}/{name}", methods=["POST"])])
    app.mount("/again", app)
    assert await world.call(world.guard(app, [FILES, SECTION]), "/files/a", "POST") == (["/{section}/{name}"], ["auth"])


# What is remembered


class Counting(AppRoute):
    """Has the paths that it was asked for, and counts as one of Starlette's own."""

    def __init__(self, pattern: str, endpoint: Callable[[Request], Any], asked: list[str]) -> None:
        super().__init__(pattern, endpoint)
        self._asked = asked

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        self._asked.append(scope["path"])
        return super().matches(scope)

    matches.__module__ = "starlette.routing"


def counting_app(asked: list[str]) -> ASGIApp:
    world = World()
    return Starlette(
        routes=[
            Counting(pattern, world.http(pattern), asked) for pattern in ("/files/{rest:path}", "/{section}/{name}")
        ]
    )


def test_the_router_is_asked_only_where_it_can_change_something() -> None:
    asked: list[str] = []
    same = Route("/same/{rest:path}", ["auth"])
    own = Route("/own/{rest:path}", [])
    resolver = Resolver(Router([FILES, same, own, SECTION], None), counting_app(asked))

    assert resolve(resolver, connection("/nothing")) == (None, True)
    assert resolve(resolver, connection("/other/a")) == (SECTION, True)
    assert resolve(resolver, connection("/same/a")) == (same, True)
    assert resolve(resolver, connection("/own/a")) == (own, False)
    assert asked == []
    assert resolve(resolver, connection("/files/a")) == (FILES, False)
    assert asked == ["/files/a"]


def test_the_router_is_asked_once_about_a_path() -> None:
    asked: list[str] = []
    finder = finder_of(counting_app(asked), [FILES, SECTION])
    for _ in range(3):
        assert ids_of(finder.look_up(connection("/files/a"))) == []
        assert ids_of(finder.look_up(connection("/other/a"))) == ["auth"]
    assert asked == ["/files/a"]
    # What it has said is remembered with all else, and within the same bound.
    assert len(finder.known) == 2
    for number in range(MAX_KNOWN + 10):
        finder.look_up(connection(f"/files/{number}"))
    assert 0 < len(finder.known) <= MAX_KNOWN


async def test_what_was_found_is_forgotten_when_the_app_changes() -> None:
    asked: list[str] = []
    app: Any = counting_app(asked)
    finder = finder_of(app, [FILES, SECTION])
    for path in ("/files/a", "/other/a"):
        finder.look_up(connection(path))
    before = finder.known
    app.router.routes.append(AppRoute("/more", World().http("/more")))
    finder.look_up(connection("/files/a"))
    assert finder.known is not before
    assert asked == ["/files/a"] * 2
    # Another thread that still had the old one has changed nothing.
    assert len(before) == 2
    assert len(finder.known) == 1


async def test_what_was_found_is_looked_up_anew_when_agents_change() -> None:
    manager = AgentManager([AgentConfig("auth", Listening())])
    finder = RouteFinder(counting_app([]), registry_of(manager), [FILES, SECTION], None, owns_agents=False)
    for path in ("/files/a", "/other/a"):
        assert not finder.look_up(connection(path)).retired
    await manager.remove_agent("auth")
    for path in ("/files/a", "/other/a"):
        found = finder.look_up(connection(path))
        assert ids_of(found) == []
        assert not found.retired
        assert finder.look_up(connection(path)) is found


def test_nothing_is_asked_where_everybody_has_the_same_agents() -> None:
    asked: list[str] = []
    first = Route("/files/{rest:path}", ["auth"])
    resolver = Resolver(Router([first, SECTION], ["auth"]), counting_app(asked))
    assert resolve(resolver, connection("/files/a\nb")) == (SECTION, True)
    assert resolve(resolver, connection("/files/a")) == (first, True)
    assert asked == []


async def test_what_is_remembered_for_one_method_or_type_is_not_taken_for_another() -> None:
    world = World()
    app = Starlette(
        routes=[
            world.route("/a"),
            WebSocketRoute("/{name}", world.websocket("/{name}")),
            world.route("/{name:path}", methods=["POST"]),
        ]
    )
    ours = [Route("/a", ["http"]), Route("/{name}", ["websocket"]), Route("/{name:path}", ["post"])]
    guarded = world.guard(app, ours)
    for _ in range(3):
        assert await world.call(guarded, "/a") == (["/a"], ["http"])
        assert await world.call(guarded, "/a", "WS") == (["/{name}"], ["websocket"])
        assert await world.call(guarded, "/a", "POST") == (["/{name:path}"], ["post"])


def hosts_differ(world: World) -> ASGIApp:
    section = world.route("/{section}/{name}")
    return Starlette(routes=[Host("b.example", AppRouter([section])), world.route("/files/{rest:path}")])


def below_files(world: World) -> ASGIApp:
    anything = world.route("/{any:path}", methods=["GET", "POST"])
    return Starlette(routes=[world.route("/files/{rest:path}"), world.route("/a/{rest:path}"), anything])


_CONNECTIONS: Final = tuple(
    itertools.product(["/files/a", "/files/a/b"], ["GET", "POST", "WS"], ["", "/files"], ["a.example", "b.example"])
)


@pytest.mark.parametrize(
    ("build", "ours"),
    [
        (methods_differ, [FILES, SECTION]),
        (methods_differ, [Route("/files/{rest:path}", ["files"], methods=["POST"]), SECTION]),
        (websocket_beside, [FILES, SECTION]),
        (included, [FILES, SECTION]),
        (hosts_differ, [FILES, SECTION]),
        (below_files, [FILES, Route("/a/{rest:path}", ["a"]), Route("/{any:path}", ["any"])]),
    ],
)
def test_who_has_asked_for_a_path_before_makes_no_difference(
    build: Callable[[World], ASGIApp], ours: list[Route]
) -> None:
    world = World()
    app = build(world)

    async def asked(guarded: ASGIApp, connection: tuple[str, str, str, str]) -> list[str]:
        path, method, root_path, host = connection
        return (await world.call(guarded, path, method, root_path=root_path, host=host))[1]

    async def ask() -> None:
        alone = [await asked(world.guard(app, ours), connection) for connection in _CONNECTIONS]
        assert len({*map(tuple, alone)}) > 1, "this app shows nothing"
        for first in _CONNECTIONS:
            guarded = world.guard(app, ours)
            await asked(guarded, first)
            assert [await asked(guarded, connection) for connection in _CONNECTIONS] == alone, first

    anyio.run(ask)


async def test_what_a_host_decides_is_not_remembered() -> None:
    world = World()
    inner = AppRouter([world.route("/{name}")])
    app = Starlette(routes=[Host("b.example", inner), world.route("/a")])
    guarded = world.guard(app, [Route("/a", ["a"]), Route("/{name}", ["name"])])
    for _ in range(2):
        assert await world.call(guarded, "/a") == (["/a"], ["a"])
        assert await world.call(guarded, "/a", host="b.example") == (["/{name}"], ["name"])


@pytest.mark.parametrize("how", ["class", "instance", "included"])
async def test_what_a_route_of_the_apps_own_making_decides_is_not_remembered(how: str) -> None:
    def for_b(self: Any, scope: Scope) -> tuple[Match, Scope]:
        b = (b"host", b"b.example") in scope["headers"]
        return AppRoute.matches(self, scope) if b else (Match.NONE, {})

    world = World()
    if how == "instance":
        picky: Any = world.route("/{name}")
        picky.matches = for_b.__get__(picky)
    else:
        picky = type("Picky", (AppRoute,), {"matches": for_b})("/{name}", world.http("/{name}"))
    app: Any = Starlette(routes=[picky, world.route("/a")])
    if how == "included":
        app = FastAPI()

        class Picky(APIRouter):
            def matches(self, scope: Scope) -> tuple[Match, Scope]:
                return super().matches(scope) if (b"host", b"b.example") in scope["headers"] else (Match.NONE, {})

        router = Picky()
        router.add_api_route("/{name}", world.http("/{name}"), response_model=None)
        app.include_router(router)
        app.add_api_route("/a", world.http("/a"), response_model=None)
    guarded = world.guard(app, [Route("/a", ["a"]), Route("/{name}", ["name"])])
    for _ in range(2):
        assert await world.call(guarded, "/a") == (["/a"], ["a"])
        assert await world.call(guarded, "/a", host="b.example") == (["/{name}"], ["name"])


@pytest.mark.parametrize(
    "change", ["append", "replace", "rebind", "within a mount", "within an included router", "app"]
)
async def test_routes_that_change_while_serving_are_seen(change: str) -> None:
    world = World()
    sub, included = AppRouter([world.route("/b", "/a")]), APIRouter()
    included.add_api_route("/x", world.http("/x"), response_model=None)
    app = FastAPI()
    app.router.routes.append(world.route("/{rest:path}", methods=["PUT"]))
    app.mount("/a", sub)
    app.include_router(included)
    ours = [Route("/{rest:path}", ["rest"]), Route("/a/{name}", ["name"]), Route("/z", ["z"])]
    guarded = world.guard(app, ours)
    path, handler, method = "/a/x", world.route("/{name}", "/a", methods=["POST"]), "POST"
    if change != "within a mount":
        path, handler = "/z", world.route("/z", methods=["POST"])
    for _ in range(2):
        assert await world.call(guarded, path, method) == ([], ["rest"])
    routes = app.router.routes
    match change:
        case "append":
            routes.append(handler)
        case "replace":
            routes[-2] = handler
        case "rebind":
            app.router.routes = [handler, *routes]
        case "within a mount":
            sub.routes.append(handler)
        case "within an included router":
            included.add_api_route("/z", world.http("/z"), methods=["POST"], response_model=None)
        case "app":
            app.router = APIRouter(routes=[handler, *routes])
            app.middleware_stack = None
    for _ in range(2):
        expected = (["/a/{name}"], ["name"]) if change == "within a mount" else (["/z"], ["z"])
        assert await world.call(guarded, path, method) == expected


def test_the_scope_of_a_connection_is_left_as_it_is() -> None:
    app = included(World())
    resolver = Resolver(Router([FILES, SECTION], None), app)
    scope = connection("/files/a", "POST")
    scope["fastapi"] = {}
    before = {**scope, "headers": [*scope["headers"]], "fastapi": {}}
    assert resolve(resolver, scope) == (SECTION, False)
    assert scope == before


# Any app


@pytest.mark.parametrize("seed", some_are_short(range(40), one_in=4))
async def test_whatever_handler_runs_the_agents_of_its_route_have_been_asked(seed: int) -> None:
    chance = Random(seed)  # noqa: S311 - nobody is to be kept from guessing it
    ran = 0
    for _ in range(25):
        choices = Choices(chance.randbytes(300))
        try:
            made = route_tables.table(choices)
        except (AssertionError, ValueError):
            continue
        asked: list[str] = []
        names = {str(name) for route in made.routes for name in route.agents} | {*(made.default or ())}
        guarded = AgentMiddleware(
            made.app,
            agents=[AgentConfig(name, _Noting(name, asked)) for name in sorted(names)],
            routes=made.routes,
            default_agents=made.default,
        )
        for _ in range(6):
            scope = route_tables.connection(choices if choices.left else Choices(chance.randbytes(60)), made)
            made.ran.clear()
            asked.clear()
            await route_tables.run(guarded, scope)
            ran += len(made.ran)
            held = made.holder(scope)
            assert asked == made.agents_of(held), (made.handlers, made.ran, made.routes, scope)
            method = scope.get("method", "GET").upper()
            own = [route for route in made.routes if [route.path] == made.ran and route.takes(method)]
            if own and (held is None or made.has(held)):
                assert asked == [*own[0].agents]
    assert ran
