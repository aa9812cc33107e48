"""An endpoint's own policy is all that holds for it, else the routes decide."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Router, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp

from asgi_agents import (
    AgentMiddleware,
    AgentRoute,
    ConfigurationError,
    FailureMode,
    guard_router,
    guarded_by,
    protect,
    unguarded,
)
from asgi_agents.routing.marks import marks

from .asking import World, everything, fastapi

Build = Callable[[World], ASGIApp]
Row = tuple[Build, str, int, list[str]]


def marked(world: World) -> FastAPI:
    app = fastapi()
    app.get("/a", response_model=None)(guarded_by("waf", ("pii", FailureMode.OPEN))(world.http("get")))
    app.post("/a", response_model=None)(world.http("post"))
    app.get("/sync", response_model=None)(guarded_by("pii", "waf")(world.sync("sync")))
    app.get("/free", response_model=None)(unguarded(world.http("free")))
    app.websocket("/a")(guarded_by("auth")(world.websocket("ws")))
    app.websocket("/open")(unguarded(world.websocket("open")))
    return app


def starlette(world: World) -> Starlette:
    return Starlette(
        routes=[
            AppRoute("/a", guarded_by("waf")(world.http("get"))),
            AppRoute("/a", world.http("post"), methods=["POST"]),
            AppRoute("/sync", guarded_by("pii")(world.sync("sync"))),
            WebSocketRoute("/a", guarded_by("auth")(world.websocket("ws"))),
            AppRoute("/partial", functools.partial(guarded_by("waf")(world.http("partial")))),
            Mount("/app", guarded_by("auth")(world.app("app"))),
        ]
    )


def classes(world: World) -> Starlette:
    class ByMethod(HTTPEndpoint):
        @guarded_by("waf")
        async def get(self, request: Request) -> Response:
            world.ran.append("get")
            return PlainTextResponse("")

        def post(self, request: Request) -> Response:
            world.ran.append("post")
            return PlainTextResponse("")

    @guarded_by("auth")
    class Whole(ByMethod):
        @unguarded
        async def delete(self, request: Request) -> Response:
            world.ran.append("delete")
            return PlainTextResponse("")

    class Below(Whole):
        pass

    @guarded_by("pii")
    class Socket(WebSocketEndpoint):
        async def on_connect(self, websocket: Any) -> None:
            world.ran.append("ws")
            await websocket.accept()

    return Starlette(
        routes=[
            AppRoute("/methods", ByMethod),
            AppRoute("/whole", Whole),
            AppRoute("/below", Below),
            WebSocketRoute("/ws", Socket),
        ]
    )


def included(world: World) -> FastAPI:
    app, inner, outer = fastapi(), APIRouter(prefix="/inner"), APIRouter()
    inner.get("/{name}", response_model=None)(world.http("inner"))
    inner.add_route("/plain", world.http("plain"), methods=["PUT"])
    inner.websocket("/ws")(world.websocket("ws"))
    guard_router(inner, "auth")
    outer.include_router(inner, prefix="/outer")
    outer.get("/own", response_model=None)(guarded_by("pii")(world.http("own")))
    outer.get("/else", response_model=None)(world.http("else"))
    outer.get("/free", response_model=None)(unguarded(world.http("free")))
    app.include_router(outer, prefix="/v1")
    # After that: the router is kept, and not copied.
    guard_router(outer, "waf")
    inner.post("/late", response_model=None)(world.http("late"))
    app.include_router(inner, prefix="/again")
    return app


def mounts(world: World) -> Starlette:
    sub = fastapi()
    sub.get("/x", response_model=None)(world.http("x"))
    sub.get("/own", response_model=None)(guarded_by("pii")(world.http("own")))
    nested = Router([AppRoute("/x", world.http("nested"))])
    return Starlette(
        routes=[
            Mount("/sub", guard_router(sub, "auth")),
            guard_router(Mount("/leaf", world.app("leaf")), "waf"),
            guard_router(Mount("/deep", routes=[Mount("/r", guard_router(nested, "pii"))]), "waf"),
            guard_router(Mount("/list", routes=[AppRoute("/x", world.http("list"))]), "waf"),
            guard_router(Mount("/zip", app=nested, middleware=[Middleware(GZipMiddleware)]), "auth"),
            Mount("/free", unguarded(world.app("free"))),
        ]
    )


def hosts(world: World) -> Starlette:
    return Starlette(
        routes=[
            guard_router(Host("b.example", Router([AppRoute("/x", world.http("b"))])), "auth"),
            AppRoute("/x", guarded_by("waf")(world.http("a"))),
        ]
    )


def whole(world: World) -> FastAPI:
    app = fastapi()
    app.get("/x", response_model=None)(world.http("x"))
    app.get("/free", response_model=None)(unguarded(world.http("free")))
    return guard_router(app, "auth")


def custom(world: World) -> Starlette:
    class Custom(AppRoute):
        def matches(self, scope: Any) -> Any:
            return super().matches({**scope, "path": scope["path"].lower()})

    return Starlette(routes=[Custom("/a", guarded_by("waf")(world.http("a")))])


TABLE: list[Row] = [
    (marked, "GET /a", 200, ["waf", "pii"]),
    (marked, "POST /a", 200, ["rest"]),
    (marked, "HEAD /a", 405, ["rest"]),
    (marked, "PUT /a", 405, ["rest"]),
    (marked, "GET /a/", 307, ["rest"]),
    (marked, "GET /none", 404, ["rest"]),
    (marked, "GET /sync", 200, ["pii", "waf"]),
    (marked, "GET /free", 200, []),
    (marked, "WS /a", 101, ["auth"]),
    (marked, "WS /open", 101, []),
    (marked, "WS /none", 1000, ["rest"]),
    (starlette, "GET /a", 200, ["waf"]),
    (starlette, "HEAD /a", 200, ["waf"]),
    (starlette, "POST /a", 200, ["rest"]),
    (starlette, "PUT /a", 405, ["rest"]),
    (starlette, "GET /sync", 200, ["pii"]),
    (starlette, "WS /a", 101, ["auth"]),
    (starlette, "GET /partial", 200, ["waf"]),
    (starlette, "GET /app/x", 200, ["auth"]),
    (classes, "GET /methods", 200, ["waf"]),
    (classes, "HEAD /methods", 200, ["waf"]),
    (classes, "POST /methods", 200, ["rest"]),
    (classes, "PUT /methods", 405, ["rest"]),
    (classes, "GET /whole", 200, ["waf"]),
    (classes, "POST /whole", 200, ["auth"]),
    (classes, "PUT /whole", 405, ["auth"]),
    (classes, "DELETE /whole", 200, []),
    (classes, "POST /below", 200, ["auth"]),
    (classes, "WS /ws", 101, ["pii"]),
    (included, "GET /v1/outer/inner/a", 200, ["auth"]),
    (included, "POST /v1/outer/inner/late", 200, ["auth"]),
    (included, "PUT /v1/outer/plain", 200, ["auth"]),
    (included, "WS /v1/outer/inner/ws", 101, ["auth"]),
    (included, "GET /again/inner/a", 200, ["auth"]),
    (included, "GET /v1/own", 200, ["pii"]),
    (included, "GET /v1/else", 200, ["waf"]),
    (included, "GET /v1/free", 200, []),
    (included, "POST /v1/own", 405, ["rest"]),
    (included, "GET /v1/none", 404, ["rest"]),
    (mounts, "GET /sub/x", 200, ["auth"]),
    (mounts, "GET /sub/own", 200, ["pii"]),
    (mounts, "GET /sub/none", 404, ["rest"]),
    (mounts, "GET /leaf/any/thing", 200, ["waf"]),
    (mounts, "GET /deep/r/x", 200, ["pii"]),
    (mounts, "GET /list/x", 200, ["waf"]),
    (mounts, "GET /list/none", 404, ["rest"]),
    (mounts, "GET /zip/x", 200, ["pii"]),
    (mounts, "GET /free/x", 200, []),
    (hosts, "GET /x", 200, ["waf"]),
    (whole, "GET /x", 200, ["auth"]),
    (whole, "GET /free", 200, []),
    (whole, "GET /none", 404, ["rest"]),
    (custom, "GET /A", 200, ["waf"]),
]


@pytest.mark.parametrize(
    ("build", "line", "status", "asked"), TABLE, ids=lambda value: getattr(value, "__name__", None)
)
async def test_the_agents_of_the_nearest_policy_are_asked(
    build: Build, line: str, status: int, asked: list[str]
) -> None:
    world = World()
    guarded = world.guard(build(world))
    # The second time from what is remembered.
    for _ in range(2):
        found = await world.call(guarded, line)
        assert (found[0], found[2]) == (status, asked)
        assert len(found[1]) == (status in (200, 101))


async def test_hosts_are_told_apart() -> None:
    world = World()
    guarded = world.guard(hosts(world))
    for _ in range(2):
        assert (await world.call(guarded, "GET /x", host="b.example"))[1:] == (["b"], ["auth"])
        assert (await world.call(guarded, "GET /x"))[1:] == (["a"], ["waf"])


@pytest.mark.parametrize("root_path", ["", "/root"])
async def test_a_root_path_makes_no_difference(root_path: str) -> None:
    world = World()
    guarded = world.guard(included(world))
    line = f"GET {root_path}/v1/outer/inner/a"
    assert (await world.call(guarded, line, root_path=root_path))[1:] == (["inner"], ["auth"])


@pytest.mark.parametrize("where", ["protect", "add_middleware", "around", "on the route"])
async def test_a_policy_is_found_wherever_the_middleware_stands(where: str) -> None:
    world = World()
    handler = guarded_by("waf")(world.http("a"))
    options: Any = {"agents": world.agents(), "routes": [], "default_agents": ["rest"]}
    on_the_route = [Middleware(AgentMiddleware, **options)] if where == "on the route" else []
    app = Starlette(routes=[AppRoute("/a", handler, middleware=on_the_route)])
    guarded: ASGIApp = app
    if where == "protect":
        protect(app, **options)
    elif where == "add_middleware":
        app.add_middleware(AgentMiddleware, **options)
    elif where == "around":
        guarded = GZipMiddleware(AgentMiddleware(GZipMiddleware(app), **options))
    for _ in range(2):
        assert await world.call(guarded, "GET /a") == (200, ["a"], ["waf"])


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"routes": None, "default_agents": None}, ["waf", "pii", "auth", "rest", "route"]),
        ({"routes": [everything("route")], "default_agents": None}, ["route"]),
        ({"routes": [AgentRoute("/a", []), everything("route")]}, ["route"]),
    ],
)
async def test_policies_go_before_routes_of_every_kind(options: Any, asked: list[str]) -> None:
    world = World()
    app = fastapi()
    app.get("/a", response_model=None)(guarded_by("auth")(world.http("a")))
    app.get("/b", response_model=None)(world.http("b"))
    guarded = world.guard(app, **options)
    assert await world.call(guarded, "GET /a") == (200, ["a"], ["auth"])
    assert await world.call(guarded, "GET /b") == (200, ["b"], asked)


async def test_agents_learn_the_pattern_of_the_endpoint() -> None:
    world = World()
    guarded = world.guard(included(world))
    await world.call(guarded, "GET /v1/outer/inner/a")
    assert world.routes == ["/v1/outer/inner/{name}"]


async def test_one_handler_under_two_routes_has_its_policy_on_both_and_one_router_only_its_own() -> None:
    world = World()
    handler, plain = guarded_by("waf")(world.http("a")), world.http("plain")
    app, admin = fastapi(), guard_router(APIRouter(), "auth")
    for path in ("/one", "/two"):
        app.add_api_route(path, handler, response_model=None)
    app.add_api_route("/plain", plain, response_model=None)
    admin.add_api_route("/plain", plain, response_model=None)
    app.include_router(admin, prefix="/admin")
    guarded = world.guard(app)
    for path, asked in (("/one", "waf"), ("/two", "waf"), ("/plain", "rest"), ("/admin/plain", "auth")):
        assert (await world.call(guarded, f"GET {path}"))[2] == [asked]


async def test_routes_that_are_added_while_serving_have_their_policies() -> None:
    world = World()
    app = fastapi()
    guarded = world.guard(app)
    for _ in range(2):
        # Remembered before there was any mark in this process.
        assert await world.call(guarded, "GET /a") == (404, [], ["rest"])
    app.get("/a", response_model=None)(guarded_by("waf")(world.http("a")))
    assert await world.call(guarded, "GET /a") == (200, ["a"], ["waf"])
    router = APIRouter()
    router.get("/b", response_model=None)(world.http("b"))
    app.include_router(router)
    assert await world.call(guarded, "GET /b") == (200, ["b"], ["rest"])
    guard_router(router, "auth")
    assert await world.call(guarded, "GET /b") == (200, ["b"], ["auth"])


@pytest.mark.parametrize("included", ["before", "after"])
async def test_a_router_whose_list_of_routes_is_replaced_has_its_policy_still(included: str) -> None:
    world = World()
    router, other = guard_router(APIRouter(), "auth"), APIRouter()
    other.get("/a", response_model=None)(world.http("a"))
    app = fastapi()
    if included == "before":
        app.include_router(router)
    router.routes = other.routes
    if included == "after":
        app.include_router(router)
    assert await world.call(world.guard(app), "GET /a") == (200, ["a"], ["auth"])


async def test_an_app_within_that_has_agents_of_its_own_keeps_its_policies_to_itself() -> None:
    world, inner = World(), World()
    sub = fastapi()
    sub.get("/x", response_model=None)(guarded_by("inner")(world.http("x")))
    inner.protect(sub, ["inner", "rest"])
    guarded = world.guard(Starlette(routes=[guard_router(Mount("/sub", sub), "auth")]))
    # The mount is outside of the agents within, so its policy is for the agents around.
    assert await world.call(guarded, "GET /sub/x") == (200, ["x"], ["auth"])
    assert inner.asked == ["inner"]


async def test_what_decorators_copy_is_no_policy_and_what_they_wrap_is() -> None:
    def decorated(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(request: Request) -> Any:
            return await function(request)

        return wrapper

    world = World()
    handler = guarded_by("waf")(world.http("a"))
    other = world.http("other")
    other.__dict__.update(handler.__dict__)
    del other.__wrapped__
    app = Starlette(
        routes=[
            AppRoute("/above", decorated(decorated(handler))),
            AppRoute("/below", guarded_by("pii")(decorated(world.http("b")))),
            AppRoute("/copied", other),
        ]
    )
    guarded = world.guard(app)
    assert await world.call(guarded, "GET /above") == (200, ["a"], ["waf"])
    assert await world.call(guarded, "GET /below") == (200, ["b"], ["pii"])
    assert await world.call(guarded, "GET /copied") == (200, ["other"], ["rest"])


async def test_generators_and_dependencies_of_fastapi_work_as_without_a_policy() -> None:
    world = World()
    app = fastapi()

    @app.get("/lines")
    @guarded_by("waf")
    async def lines(count: int = 2) -> Any:
        for number in range(count):
            yield {"n": number}

    guarded = world.guard(app)
    assert (await world.call(guarded, "GET /lines"))[::2] == (200, ["waf"])


def handler() -> None: ...


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: guarded_by(), "guarded_by: no agents, expected ids of agents; no agents at all is @unguarded"),
        (lambda: guarded_by(handler), "expected ids of agents: guarded_by('waf')"),  # type: ignore[arg-type]
        (lambda: guarded_by(["waf"]), "expected ids of agents, without a list"),  # type: ignore[arg-type]
        (lambda: guarded_by("waf", "waf"), "guarded_by contains 'waf' more than once"),
        (lambda: guarded_by(("waf", "shut")), "expected the failure mode 'closed' or 'open'"),  # type: ignore[arg-type]
        (lambda: guarded_by("waf", guardrails=["pii"]), "guarded_by: guardrails contains"),  # type: ignore[list-item]
        (lambda: guarded_by("a")(guarded_by("b")(lambda: None)), "has a policy already: @guarded_by('b')"),
        (lambda: unguarded(guarded_by("b")(lambda: None)), "has a policy already: @guarded_by('b')"),
        (lambda: guarded_by("a")(unguarded(lambda: None)), "has a policy already: @unguarded"),
        (lambda: guarded_by("a")(dict), "expected a function, an HTTPEndpoint or a WebSocketEndpoint"),
        (lambda: guarded_by("a")(len), "can't keep a policy"),
        (lambda: guarded_by("a")(functools.partial(handler)), "expected a function, a method or an endpoint class"),
        (lambda: guarded_by("a")(1), "expected an endpoint"),  # type: ignore[type-var]
        (lambda: unguarded(1), "unguarded: 1, expected an endpoint"),  # type: ignore[type-var]
        (lambda: guard_router(handler, "a"), "expected a router, a Mount, a Host or an app"),  # type: ignore[type-var]
        (lambda: guard_router(Router()), "guard_router: no agents"),
        (lambda: guard_router(guard_router(Router(), "a"), "b"), "has a policy already: guard_router(..., 'a')"),
        (
            lambda: guard_router(guard_router(Mount("/", Router()), ("a", "open")), "b"),
            "has a policy already: guard_router(..., ('a', 'open'))",
        ),
    ],
)
def test_what_cant_work_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_one_policy_may_be_given_again() -> None:
    world = World()
    handler, plain, router = world.http("a"), world.http("b"), APIRouter()
    router.get("/b", response_model=None)(plain)
    for _ in range(2):
        app = fastapi()
        app.get("/a", response_model=None)(guarded_by("waf")(handler))
        app.include_router(guard_router(router, "auth"))
        guarded = world.guard(app)
        assert await world.call(guarded, "GET /a") == (200, ["a"], ["waf"])
        assert await world.call(guarded, "GET /b") == (200, ["b"], ["auth"])


def test_nothing_is_looked_for_where_there_is_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is made for many tests of this process may have put marks.
    monkeypatch.setattr(marks, "used", False)
    world = World()
    guarded = world.guard(fastapi())
    assert not marks.used
    assert guarded._finder._resolver.app_routes({"type": "http"}) is None


@pytest.mark.parametrize("inner", [False, True])
async def test_a_frontend_of_a_router_has_the_policy_of_the_router(inner: bool, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("page")
    world = World()
    app, router, outer = fastapi(), APIRouter(), APIRouter()
    router.frontend("/pages", directory=tmp_path)
    outer.include_router(guard_router(router, "auth") if inner else router, prefix="/in")
    app.include_router(outer if inner else guard_router(outer, "auth"))
    app.frontend("/open", directory=tmp_path)
    guarded = world.guard(app)
    for path, asked in (("/in/pages/index.html", "auth"), ("/open/index.html", "rest"), ("/none", "rest")):
        status, _, found = await world.call(guarded, f"GET {path}")
        assert (status, found) == (404 if path == "/none" else 200, [asked])


async def test_what_answers_in_a_router_where_no_route_matches_has_its_policy() -> None:
    world = World()
    fallback = Router([AppRoute("/x", world.http("x"))], default=world.app("fallback"))
    guarded = world.guard(Starlette(routes=[Mount("/r", guard_router(fallback, "auth"))]))
    assert await world.call(guarded, "GET /r/none") == (200, ["fallback"], ["auth"])
    assert await world.call(guarded, "GET /r/x") == (200, ["x"], ["auth"])


async def test_middlewares_that_run_the_app_in_a_task_of_its_own_are_no_hindrance() -> None:
    async def dispatch(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    world = World()
    app = marked(world)
    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    world.protect(app)
    for line, asked in (("GET /a", ["waf", "pii"]), ("GET /sync", ["pii", "waf"]), ("WS /a", ["auth"])):
        status, ran, found = await world.call(app, line)
        assert (status in (200, 101), len(ran), found) == (True, 1, asked)
