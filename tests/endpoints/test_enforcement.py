"""An endpoint with a policy never runs without the agents of that policy having been asked."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Router, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentRoute,
    ConfigurationError,
    RequestHeadersEvent,
    guard_router,
    guarded_by,
    unguarded,
)
from asgi_agents.guardrails import Decision, Guardrail, Redact, TextGuardrail, Window

from .asking import World, everything, fastapi
from .test_policies import included, marked

HIDDEN = "/hidden"


def rewriting(app: ASGIApp) -> ASGIApp:
    """A middleware that takes what follows ``/to`` for the path."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["path"].startswith("/to"):
            scope = {**scope, "path": scope["path"].removeprefix("/to")}
        await app(scope, receive, send)

    return middleware


def functions(world: World) -> Starlette:
    return marked(world)


def routers(world: World) -> Starlette:
    return included(world)


def others(world: World) -> Starlette:
    @guarded_by("waf")
    class Endpoint(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            world.ran.append("get")
            return PlainTextResponse("")

    @guarded_by("waf")
    class Socket(WebSocketEndpoint):
        async def on_connect(self, websocket: Any) -> None:
            world.ran.append("ws")
            await websocket.accept()

    sub = Starlette(
        routes=[AppRoute("/x", world.http("x")), AppRoute("/free", unguarded(world.http("free")))],
    )
    return Starlette(
        routes=[
            AppRoute("/class", Endpoint),
            WebSocketRoute("/class", Socket),
            guard_router(Mount("/leaf", world.app("leaf")), "waf"),
            guard_router(Mount("/routes", routes=[AppRoute("/x", world.http("x"))]), "waf"),
            Mount("/sub", guard_router(sub, "waf")),
            Mount("/router", guard_router(Router([AppRoute("/x", world.http("x"))]), "waf")),
        ]
    )


Build = Callable[[World], Starlette]
REWRITTEN: list[tuple[Build, str, int]] = [
    (functions, "GET /to/a", 503),
    (functions, "GET /to/sync", 503),
    (functions, "WS /to/a", 1011),
    (functions, "POST /to/a", 200),
    (functions, "GET /to/free", 200),
    (functions, "GET /to/none", 404),
    (routers, "GET /to/v1/outer/inner/a", 503),
    (routers, "PUT /to/v1/outer/plain", 503),
    (routers, "GET /to/v1/else", 503),
    (routers, "GET /to/v1/own", 503),
    (routers, "WS /to/v1/outer/inner/ws", 1011),
    (routers, "GET /to/v1/free", 200),
    (routers, "POST /to/v1/own", 405),
    (routers, "GET /to/v1/none", 404),
    (others, "GET /to/class", 503),
    (others, "WS /to/class", 1011),
    (others, "GET /to/leaf/x", 503),
    (others, "WS /to/leaf/x", 1011),
    (others, "GET /to/routes/x", 503),
    (others, "GET /to/routes/none", 404),
    (others, "GET /to/sub/x", 503),
    (others, "GET /to/sub/free", 200),
    (others, "GET /to/sub/none", 404),
    (others, "GET /to/router/x", 503),
]


@pytest.mark.parametrize(("build", "line", "status"), REWRITTEN, ids=lambda value: getattr(value, "__name__", None))
async def test_a_middleware_that_rewrites_the_path_leads_past_no_policy(
    build: Build, line: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    app = build(world)
    app.add_middleware(rewriting)
    world.protect(app)
    found = await world.call(app, line)
    assert (found[0], found[2]) == (status, ["rest"])
    assert bool(found[1]) == (status == 200)
    # Without the detour it runs.
    assert (await world.call(app, line.replace("/to", "")))[0] == {503: 200, 1011: 101}.get(status, status)


async def test_a_path_that_is_rewritten_gets_through_with_the_same_agents() -> None:
    world = World()
    app = functions(world)
    app.add_middleware(rewriting)
    world.protect(app, routes=[everything("pii", "auth", "waf")])
    assert (await world.call(app, "GET /to/a"))[:2] == (200, ["get"])
    # `("pii", "open")` asks for less than that; the other way round it would not do.
    strict = World()
    app = fastapi()
    app.get("/a", response_model=None)(guarded_by("pii")(strict.http("a")))
    app.add_middleware(rewriting)
    strict.protect(app, routes=[AgentRoute("/{rest:path}", [("pii", "open")])])
    assert (await strict.call(app, "GET /to/a"))[:2] == (503, [])


@pytest.mark.parametrize("build", [functions, routers, others])
async def test_an_app_whose_router_cant_be_found_answers_503_and_the_log_says_so(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    def opaque(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)

        return middleware

    world = World()
    guarded = world.guard(opaque(build(world)))
    lines = [line.replace("/to", "") for made, line, status in REWRITTEN if made is build and status in (503, 1011)]
    for line in lines:
        assert (await world.call(guarded, line))[:2] == (1011 if line.startswith("WS") else 503, [])
    assert "the router of the app can't be found" in caplog.text


@pytest.mark.parametrize("build", [functions, routers, others])
async def test_an_app_without_agents_runs_no_endpoint_with_a_policy(build: Build) -> None:
    world = World()
    app = build(world)
    lines = [line.replace("/to", "") for made, line, status in REWRITTEN if made is build and status in (503, 1011)]
    for line in lines:
        assert (await world.call(app, line))[:2] == (1011 if line.startswith("WS") else 503, [])


async def test_a_decorator_that_hides_what_it_wraps_leads_past_no_policy(caplog: pytest.LogCaptureFixture) -> None:
    def hiding(function: Any) -> Any:
        async def wrapper(request: Request) -> Any:
            return await function(request)

        return wrapper

    world = World()
    app = Starlette(routes=[AppRoute("/a", hiding(guarded_by("waf")(world.http("hidden"))))])
    world.protect(app)
    assert await world.call(app, "GET /a") == (503, [], ["rest"])
    assert "@guarded_by('waf') on hidden: other agents were asked" in caplog.text


# What can't be carried out


def above(world: World) -> Starlette:
    app = fastapi()
    guarded_by("waf")(app.get("/a", response_model=None)(world.http("a")))
    return app


def unknown(world: World) -> Starlette:
    app = fastapi()
    app.get("/a", response_model=None)(guarded_by("waf", "wfa")(world.http("a")))
    return app


def unknown_router(world: World) -> Starlette:
    app, router = fastapi(), APIRouter()
    router.get("/a", response_model=None)(world.http("a"))
    app.include_router(guard_router(router, "wfa"))
    return app


def unknown_guardrail(world: World) -> Starlette:
    app = fastapi()
    app.get("/a", response_model=None)(guarded_by("waf", guardrails=[Guardrail("wfa", on={"output"})])(world.http("a")))
    return app


def deaf_guardrail(world: World) -> Starlette:
    app = fastapi()
    app.get("/a", response_model=None)(guarded_by("waf", guardrails=[Guardrail("pii", on={"output"})])(world.http("a")))
    return app


FAULTS: list[tuple[Build, str]] = [
    (above, "@guarded_by('waf') on a at '/a': it stands above the decorator that registers the endpoint"),
    (unknown, "@guarded_by('waf', 'wfa') on a at '/a': no agent has the id 'wfa'; there are: waf, pii, auth, rest"),
    (unknown_router, "guard_router(..., 'wfa') on a at '/a': no agent has the id 'wfa'"),
    (unknown_guardrail, "@guarded_by('waf') on a at '/a': Guardrail('wfa'): no agent has the id 'wfa'"),
    (deaf_guardrail, "@guarded_by('waf') on a at '/a': Guardrail('pii'): "),
]


@pytest.mark.parametrize(("build", "says"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_what_a_policy_cant_have_is_refused_when_the_app_starts(build: Build, says: str) -> None:
    world = World()
    app = build(world)
    world.protect(app)
    with pytest.raises(ConfigurationError) as caught, TestClient(app):
        pass
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_server_is_told_in_one_line_why_the_app_does_not_start() -> None:
    world = World()
    app = unknown(world)
    world.protect(app)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(ConfigurationError):
        await app({"type": "lifespan", "state": {}}, receive, send)
    [message] = sent
    assert message["type"] == "lifespan.startup.failed"
    assert message["message"].startswith("@guarded_by('waf', 'wfa') on a at '/a': no agent has the id 'wfa'")


@pytest.mark.parametrize(("build", "says"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
async def test_what_a_policy_cant_have_is_503_where_nothing_starts(
    build: Build, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    app = build(world)
    app.router.routes.append(AppRoute("/b", world.http("b")))
    world.protect(app)
    for _ in range(2):
        status, ran, asked = await world.call(app, "GET /a")
        assert (status, ran) == (503, [])
        # Those that there are get to see it, as they would in front of the endpoint.
        assert asked == ([] if build is unknown_router else ["waf"])
    assert says in caplog.text
    assert await world.call(app, "GET /b") == (200, ["b"], ["rest"])


@pytest.mark.parametrize("kind", ["GET", "WS"])
async def test_an_agent_that_was_removed_is_503_until_it_is_back(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    app = fastapi()
    app.get("/a", response_model=None)(guarded_by("waf", "auth")(world.http("a")))
    app.websocket("/a")(guarded_by("waf", "auth")(world.websocket("a")))
    manager = AgentManager(world.agents())
    guarded = AgentMiddleware(app, manager=manager, routes=[], default_agents=["rest"])
    well, ill = (101, 1011) if kind == "WS" else (200, 503)
    assert await world.call(guarded, f"{kind} /a") == (well, ["a"], ["waf", "auth"])
    await manager.remove_agent("auth")
    caplog.clear()
    assert await world.call(guarded, f"{kind} /a") == (ill, [], ["waf"])
    await manager.add_agent(world.agents(["auth"])[0])
    assert await world.call(guarded, f"{kind} /a") == (well, ["a"], ["waf", "auth"])
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["@guarded_by('waf', 'auth') on /a: no agent has the id 'auth'; there are: waf, pii, rest, route"]


# What a policy says


class Failing(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        raise RuntimeError("no")


@pytest.mark.parametrize(("policy", "status"), [(("waf",), 503), ((("waf", "open"),), 200)])
async def test_the_failure_mode_of_a_policy_holds(policy: Any, status: int) -> None:
    world = World()
    app = fastapi()
    app.get("/a", response_model=None)(guarded_by(*policy)(world.http("a")))
    guarded = AgentMiddleware(app, agents=[AgentConfig("waf", Failing())])
    assert (await world.call(guarded, "GET /a"))[:2] == (status, ["a"] if status == 200 else [])


class Keys(TextGuardrail):
    hold = 10

    async def check(self, window: Window) -> list[Decision]:
        at = window.text.find("secret", window.fresh)
        return [Redact(at, at + 6, "[key]")] if at >= 0 else []


@pytest.mark.parametrize(
    ("of_all", "own", "body"),
    [
        ([], None, "a secret"),
        ([], [Guardrail("keys", on={"output"})], "a [key]"),
        ([Guardrail("keys", on={"output"})], None, "a [key]"),
        ([Guardrail("keys", on={"output"})], [], "a secret"),
    ],
)
def test_guardrails_of_a_policy_replace_those_of_the_middleware(
    of_all: list[Guardrail], own: list[Guardrail] | None, body: str
) -> None:
    world = World()

    async def handler(request: Request) -> Response:
        return PlainTextResponse("a secret")

    app = Starlette(routes=[AppRoute("/a", guarded_by("waf", guardrails=own)(handler))])
    agents = [*world.agents(["waf"]), AgentConfig("keys", Keys())]
    guarded = AgentMiddleware(app, agents=agents, routes=[], guardrails=of_all)
    assert TestClient(guarded).get("/a").text == body


async def test_unguarded_has_no_guardrails_either() -> None:
    @unguarded
    async def handler(request: Request) -> Response:
        return PlainTextResponse("a secret")

    app = Starlette(routes=[AppRoute("/a", handler)])
    guarded = AgentMiddleware(app, agents=[AgentConfig("keys", Keys())], guardrails=[Guardrail("keys", on={"output"})])
    assert TestClient(guarded).get("/a").text == "a secret"


# Outside of an app


async def test_a_function_with_a_policy_can_be_called_alone_without_its_check() -> None:
    @guarded_by("waf")
    async def handler(number: int) -> int:
        return number

    @guarded_by("waf")
    async def session(websocket: WebSocket) -> None: ...

    with pytest.raises(HTTPException) as caught:
        await handler(1)
    assert caught.value.status_code == 503
    bare: Any = handler
    assert await bare.__wrapped__(1) == 1
    socket: Any = object.__new__(WebSocket)
    with pytest.raises(WebSocketException) as closed:
        await session(socket)
    assert closed.value.code == 1011


def test_unguarded_gives_back_what_it_was_given() -> None:
    def handler() -> None: ...

    assert unguarded(handler) is handler


async def test_a_route_of_a_policy_takes_the_short_way_and_is_remembered() -> None:
    world = World()
    guarded = world.guard(marked(world))
    await world.call(guarded, "GET /a")
    finder = guarded._finder
    [key] = finder.known
    found = finder.known[key]
    assert (found.planned, found.route, [agent.guard.config.id for agent in found.agents]) == (
        True,
        "/a",
        ["waf", "pii"],
    )
    await world.call(guarded, "GET /a")
    assert dict(finder.known) == {key: found}
