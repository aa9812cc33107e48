"""A policy of a router holds as well where a middleware within that router, or further in, rewrites the path."""

from collections.abc import Callable, Generator, Sequence
from contextvars import copy_context
from typing import Any

import anyio
import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Host, Match, Mount, Router, WebSocketRoute, request_response
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentRoute, guard_router, guarded_by, protect, unguarded
from asgi_agents.guardrails import Decision, Guardrail, TextGuardrail, Window

from .asking import World, call, fastapi


class Rewriting:
    """A middleware that leaves ``/to`` out of the path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and "/to" in scope["path"]:
            scope = {**scope, "path": scope["path"].replace("/to", "")}
        await self.app(scope, receive, send)


def hidden(app: ASGIApp) -> ASGIApp:
    """The same, and nobody can look through it."""
    rewriting = Rewriting(app)

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        await rewriting(scope, receive, send)

    return middleware


WITHIN = [Middleware(Rewriting)]


def routes(world: World) -> list[BaseRoute]:
    return [
        AppRoute("/x", world.http("x")),
        WebSocketRoute("/x", world.websocket("x")),
        AppRoute("/free", unguarded(world.http("free"))),
    ]


def fastapi_app(world: World, root_path: str = "") -> FastAPI:
    app = fastapi()
    app.root_path = root_path
    router = APIRouter()
    router.get("/x")(world.http("x"))
    router.websocket("/x")(world.websocket("x"))
    router.get("/free")(unguarded(world.http("free")))
    app.include_router(router)
    app.add_middleware(Rewriting)
    return app


def included(world: World) -> FastAPI:
    app = fastapi()
    router = guard_router(APIRouter(), "waf")
    router.mount("/r", fastapi_app(world))
    app.include_router(router)
    return app


Build = Callable[[World], Starlette]
#: Apps with a guarded ``/r/x``, and a middleware within the guarded part.
APPS: dict[str, Build] = {
    "a router": lambda world: Starlette(
        routes=[Mount("/r", guard_router(Router(routes(world), middleware=WITHIN), "waf"))]
    ),
    "a router with two": lambda world: Starlette(
        routes=[Mount("/r", guard_router(Router(routes(world), middleware=[*WITHIN, *WITHIN]), "waf"))]
    ),
    "a mount": lambda world: Starlette(
        routes=[guard_router(Mount("/r", routes=routes(world), middleware=WITHIN), "waf")]
    ),
    "a host": lambda world: Starlette(
        routes=[
            guard_router(
                Host("a.example", Starlette(routes=[Mount("/r", routes=routes(world))], middleware=WITHIN)), "waf"
            )
        ]
    ),
    "a mounted app": lambda world: Starlette(
        routes=[guard_router(Mount("/r", Starlette(routes=routes(world), middleware=WITHIN)), "waf")]
    ),
    "a mounted FastAPI": lambda world: Starlette(routes=[guard_router(Mount("/r", fastapi_app(world)), "waf")]),
    "a mount in a guarded app": lambda world: guard_router(
        Starlette(routes=[Mount("/r", routes=routes(world), middleware=WITHIN)]), "waf"
    ),
    "mounts in a mount": lambda world: Starlette(
        routes=[
            guard_router(
                Mount("/r", routes=[Mount("/", routes=[Mount("/", fastapi_app(world))], middleware=WITHIN)]), "waf"
            )
        ]
    ),
    "a mounted app with a root path": lambda world: Starlette(
        routes=[guard_router(Mount("/r", fastapi_app(world, root_path="/r")), "waf")]
    ),
    "an included router": included,
}


@pytest.mark.parametrize("case", APPS)
async def test_a_path_that_is_rewritten_within_leads_to_no_endpoint_without_its_agents(case: str) -> None:
    world = World()
    app = APPS[case](world)
    guarded = world.guard(app)
    # Each twice: the check is put in place with the first.
    for _ in range(2):
        assert await world.call(guarded, "GET /r/x") == (200, ["x"], ["waf"])
        assert await world.call(guarded, "WS /r/x") == (101, ["x"], ["waf"])
        assert await world.call(guarded, "GET /r/free") == (200, ["free"], [])
        assert await world.call(guarded, "GET /r/to/x") == (503, [], ["rest"])
        assert await world.call(guarded, "WS /r/to/x") == (1011, [], ["rest"])
        assert await world.call(guarded, "GET /r/to/free") == (200, ["free"], ["rest"])
        assert await world.call(guarded, "GET /r/to/none") == (404, [], ["rest"])
        # Without agents at all.
        assert await world.call(app, "GET /r/to/x") == (503, [], [])
        assert await world.call(app, "GET /r/x") == (503, [], [])
        assert await world.call(app, "GET /r/free") == (200, ["free"], [])
    everything = world.guard(app, routes=[AgentRoute("/{rest:path}", ["waf"])])
    assert await world.call(everything, "GET /r/to/x") == (200, ["x"], ["waf"])


async def test_a_router_is_guarded_in_the_mount_alone_that_has_the_policy() -> None:
    world = World()
    shared = Router(routes(world), middleware=WITHIN)
    app = Starlette(routes=[guard_router(Mount("/r", shared), "waf"), Mount("/open", shared)])
    for _ in range(2):
        assert await world.call(app, "GET /r/to/x") == (503, [], [])
        assert await world.call(app, "GET /open/to/x") == (200, ["x"], [])


async def test_what_middlewares_that_hide_the_router_lead_to_does_not_run_without_its_agents() -> None:
    world = World()
    router = guard_router(Router(routes(world), middleware=[Middleware(hidden)]), "waf")
    app = world.guard(Starlette(routes=[Mount("/r", router)]))
    assert await world.call(app, "GET /r/to/x") == (503, [], ["rest"])
    assert await world.call(app, "GET /r/x") in [(200, ["x"], ["waf"]), (503, [], ["rest"])]


async def test_guardrails_alone_are_a_policy_that_a_class_checks() -> None:
    world = World()
    guardrails = [Guardrail("pii", on={"input"})]

    @guarded_by(guardrails=guardrails)
    class Page(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            world.ran.append("get")
            return PlainTextResponse("")

    @guarded_by(guardrails=guardrails)
    class Socket(WebSocketEndpoint):
        async def on_connect(self, websocket: Any) -> None:
            world.ran.append("ws")
            await websocket.accept()

    app = Starlette(routes=[AppRoute("/x", Page), WebSocketRoute("/x", Socket)])
    assert await world.call(app, "GET /x") == (503, [], [])
    assert await world.call(app, "WS /x") == (1011, [], [])


class Bare(BaseRoute):
    """A route of an app's own, which has an endpoint and no pattern."""

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL if scope["path"].endswith("/x") else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await request_response(self.endpoint)(scope, receive, send)


class Reluctant(AppRoute):
    """A route that all others go before: it never matches in full, and runs all the same."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        matched, child_scope = super().matches(scope)
        return (Match.PARTIAL if matched is Match.FULL else matched), child_scope


@pytest.mark.parametrize("kind", ["bare", "reluctant"])
async def test_routes_of_an_apps_own_have_the_policy_of_their_endpoint_or_router(kind: str) -> None:
    world = World()
    endpoints = [guarded_by("auth")(world.http("own")), world.http("x")]
    own, other = (Bare(one) if kind == "bare" else Reluctant("/x", one) for one in endpoints)
    app = Starlette(
        routes=[
            Mount("/own", routes=[own]),
            Mount("/router", guard_router(Router([other]), "waf")),
            AppRoute("/x", world.http("free")),
        ]
    )
    guarded = world.guard(app)
    assert await world.call(guarded, "GET /own/x") == (200, ["own"], ["auth"])
    assert await world.call(guarded, "GET /router/x") == (200, ["x"], ["waf"])
    assert await world.call(guarded, "GET /x") == (200, ["free"], ["rest"])
    assert await world.call(app, "GET /own/x") == (503, [], [])
    assert await world.call(app, "GET /router/x") == (503, [], [])


def within(world: World) -> Starlette:
    @guarded_by("waf")
    class Endpoint(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            world.ran.append("class")
            return PlainTextResponse("")

    class Page:
        """An app by itself."""

        @guarded_by("waf")
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await world.app("page")(scope, receive, send)

    return Starlette(
        routes=[
            AppRoute("/function", guarded_by("waf")(world.http("function"))),
            AppRoute("/sync", guarded_by("waf")(world.sync("sync"))),
            WebSocketRoute("/function", guarded_by("waf")(world.websocket("function"))),
            AppRoute("/class", Endpoint),
            AppRoute("/page", Page()),
            WebSocketRoute("/page", Page()),
            guard_router(Mount("/mount", world.app("mount")), "waf"),
            Mount("/router", guard_router(Router(routes(world)), "waf")),
        ]
    )


INNER = (
    "GET /function",
    "GET /sync",
    "WS /function",
    "GET /class",
    "GET /page",
    "WS /page",
    "GET /mount/",
    "GET /router/x",
)


@pytest.mark.parametrize("line", INNER)
@pytest.mark.parametrize("when", ["called by the handler", "left running"])
async def test_agents_of_a_request_are_not_those_of_another_that_its_handler_makes(line: str, when: str) -> None:
    world = World()
    inner = within(world)
    refusal = 1011 if line.startswith("WS") else 503
    found: list[int] = []
    asked: list[Any] = []

    @guarded_by("waf")
    async def batch(request: Request) -> Response:
        if when == "left running":
            asked.append(copy_context())
        else:
            found.append(await call(inner, *line.split(" ")))
        return PlainTextResponse("")

    assert await world.call(world.guard(Starlette(routes=[AppRoute("/", batch)])), "GET /") == (200, [], ["waf"])
    for context in asked:
        async with anyio.create_task_group() as tasks:

            async def later() -> None:
                found.append(await call(inner, *line.split(" ")))

            context.run(tasks.start_soon, later)
    assert (found, world.ran) == ([refusal], [])


async def test_a_body_that_looks_like_a_scope_is_none() -> None:
    app = fastapi()

    @app.post("/")
    @guarded_by("waf")
    async def post(body: dict[str, Any]) -> dict[str, Any]:
        return body

    World().protect(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a.example") as client:
        for kind in ("http", "websocket"):
            sent: dict[str, Any] = {"type": kind, "path": "/", "state": {}}
            assert (await client.post("/", json=sent)).json() == sent


@pytest.mark.parametrize(("given", "status"), [([], 503), (None, 200)])
@pytest.mark.parametrize("by", ["route", "endpoint"])
async def test_a_policy_with_the_guardrails_of_the_middleware_needs_them(by: str, given: Any, status: int) -> None:
    world = World()
    judged: list[str] = []

    class Pii(TextGuardrail):
        async def check(self, window: Window) -> Sequence[Decision] | None:
            judged.append(window.text)
            return None

    around = guarded_by("waf", guardrails=given)(world.http("around")) if by == "endpoint" else world.http("around")
    app = Starlette(
        routes=[AppRoute("/to/x", around), AppRoute("/x", guarded_by("waf")(world.http("x")))], middleware=WITHIN
    )
    protect(
        app,
        agents=[*world.agents(["waf"]), AgentConfig("pii", Pii())],
        routes=[AgentRoute("/to/x", ["waf"], guardrails=given)] if by == "route" else [],
        default_agents=[],
        guardrails=[Guardrail("pii", on={"output"})],
    )
    # The middleware within rewrites the path, so that another handler runs than the one that was found.
    assert await world.call(app, "GET /to/x") == (status, ["x"] if status == 200 else [], ["waf"])
    assert await world.call(app, "GET /x") == (200, ["x"], ["waf"])
    assert judged == ["x"] * (2 if status == 200 else 1)


async def test_a_subclass_that_is_made_and_awaited_in_a_way_of_its_own_is_checked() -> None:
    world = World()

    @guarded_by("waf")
    class Base(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            world.ran.append("get")
            return PlainTextResponse("")

    class Own(Base):
        def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
            self.scope, self.receive, self.send = scope, receive, send
            self._allowed_methods = ["GET"]

        def __await__(self) -> Generator[Any, None, None]:
            return self.dispatch().__await__()

    @guarded_by("waf")
    class Below(Own):
        """The policy once more, and nothing of its own."""

    guarded = world.guard(Starlette(routes=[AppRoute("/x", Below)]))
    assert await world.call(guarded, "GET /x") == (200, ["get"], ["waf"])
    app = Starlette(routes=[AppRoute("/x", Own), AppRoute("/free", unguarded(type("Free", (Own,), {})))])
    assert await world.call(app, "GET /x") == (503, [], [])
    assert await world.call(app, "GET /free") == (200, ["get"], [])
    assert await world.call(world.guard(app), "GET /x") == (200, ["get"], ["waf"])
