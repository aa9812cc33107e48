"""What the log says of routes that can't have been meant so, once, and what it leaves unsaid."""

import logging
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Match, Mount, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.routing import Router as AppRouter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import Agent, AgentConfig, AgentManager, AgentMiddleware, EventType, Route, protect
from asgi_agents.manager import registry_of
from asgi_agents.protocol import GuardrailInspectEvent, RequestHeadersEvent
from asgi_agents.routing.advice import agents_asked_twice

pytestmark = pytest.mark.anyio


class Watching(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        return None


class Other(Watching):
    pass


class Inspecting(Watching):
    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None:
        return None


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("")(scope, receive, send)


async def endpoint(request: Any) -> PlainTextResponse:
    return PlainTextResponse("")


def named(routes: Sequence[Route], default: Sequence[str] | None) -> list[AgentConfig]:
    ids = {str(agent) for route in routes for agent in route.agents} | {*(default or ())}
    return [AgentConfig(agent_id, Watching()) for agent_id in sorted(ids)]


async def get(app: ASGIApp, path: str = "/", root_path: str = "", state: dict[str, Any] | None = None) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": path, "root_path": root_path, "headers": [], "query_string": b""}
    await app({**scope, "state": {} if state is None else state}, receive, send)


async def start(app: ASGIApp) -> None:
    """A whole lifespan."""
    messages: list[Message] = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        assert "failed" not in message["type"]

    await app({"type": "lifespan", "state": {}}, receive, send)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "asgi_agents" and record.levelno >= logging.WARNING
    ]


def shop() -> FastAPI:
    """An app with what apps have: an included router with a root, a mounted app, a websocket, files."""
    app = FastAPI()
    admin = APIRouter(prefix="/admin")
    admin.add_api_route("", endpoint)
    admin.add_api_route("/users/{user_id}", endpoint, methods=["GET", "DELETE"])
    app.include_router(admin)
    api = FastAPI()
    api.add_api_route("/items/{item_id:int}", endpoint)
    app.mount("/api", api)
    app.mount("/static", answer)
    app.router.routes.append(WebSocketRoute("/chat", answer))
    return app


WRONG: list[tuple[list[Route], list[str] | None, str]] = [
    (
        [Route("/{rest:path}", ["a"]), Route("/admin", ["b"])],
        None,
        "AgentRoute('/admin') is never used, because AgentRoute('/{rest:path}') before it matches all of its paths; put"
        " it before that",
    ),
    (
        [Route("/admin", ["a"]), Route("/admin", ["b"], methods=["GET"])],
        None,
        "AgentRoute('/admin', methods=['GET', 'HEAD']) is never used, because AgentRoute('/admin') before it matches"
        " all of its paths; put it before that",
    ),
    (
        [Route("/api/items/{one}", ["a"]), Route("/api/items/{other}", ["b"])],
        None,
        "AgentRoute('/api/items/{other}') is never used, because AgentRoute('/api/items/{one}') before it matches the"
        " same paths; leave one of them out",
    ),
    (
        [Route("/items/{item_id}", ["a"])],
        None,
        "AgentRoute('/items/{item_id}') matches no route of the app, which has '/api/items/{item_id:int}': paths are"
        " matched whole, mounts included; write '/api/items/{item_id}'",
    ),
    (
        [Route("/api/items", ["a"]), Route("/admin", ["a"])],
        None,
        "AgentRoute('/api/items') matches no route of the app, and not what is below it, such as"
        " '/api/items/{item_id:int}'; for that write '/api/items/{rest:path}'",
    ),
    ([Route("/Admin", ["a"])], None, "AgentRoute('/Admin') matches no route of the app; did you mean '/admin'?"),
    ([Route("/admin/", ["a"])], None, "AgentRoute('/admin/') matches no route of the app; did you mean '/admin'?"),
    (
        [Route("/admin", ["a"], methods=["PUT"])],
        None,
        "AgentRoute('/admin', methods=['PUT']) matches routes of the app, but none that takes 'PUT'; they take 'GET'",
    ),
    (
        [Route("/chat", ["a"], methods=["POST"])],
        None,
        "AgentRoute('/chat', methods=['POST']) matches routes of the app, but none that takes 'POST'; they take 'GET'",
    ),
    (
        [Route("/admin", ["a"], methods=["GTE"])],
        None,
        "AgentRoute('/admin', methods=['GTE']) is for the method 'GTE', which HTTP does not have; did you mean 'GET'?",
    ),
    (
        [Route("/admin/users/:id", ["a"])],
        None,
        "AgentRoute('/admin/users/:id') has a ':' that stands for itself, and matches nothing else; parameters are"
        " written {name}: '/admin/users/{id}'",
    ),
    (
        [Route("/admin/{rest:path}", ["a", "b"])],
        ["b"],
        "AgentRoute('/admin/{rest:path}') does not match '/admin', a route of the app that 'a' is not asked about;"
        " add an AgentRoute('/admin', agents=[...]) with those that are to be asked there",
    ),
    (
        [Route("/admin/{rest:path}", ["a"]), Route("/{rest:path}", ["b"])],
        None,
        "AgentRoute('/admin/{rest:path}') does not match '/admin', a route of the app that 'a' is not asked about;"
        " add an AgentRoute('/admin', agents=[...]) with those that are to be asked there",
    ),
]


@pytest.mark.parametrize(("routes", "default", "message"), WRONG)
@pytest.mark.parametrize("way", ["started", "asked", "protected"])
async def test_a_mistake_gets_one_line(
    routes: list[Route], default: list[str] | None, message: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = shop()
    guarded: ASGIApp = app
    if way == "protected":
        protect(app, agents=named(routes, default), routes=routes, default_agents=default)
    else:
        guarded = AgentMiddleware(app, agents=named(routes, default), routes=routes, default_agents=default)
    if way != "asked":
        await start(guarded)
        assert told(caplog) == [message]

    for path in ("/", "/admin", "/admin", "/nowhere"):
        await get(guarded, path)

    assert told(caplog) == [message]


RIGHT: list[tuple[list[Route], list[str] | None]] = [
    ([Route("/healthz", []), Route("/{rest:path}", ["a"])], None),
    ([Route("/docs", []), Route("/openapi.json", ["a"])], ["b"]),
    ([Route("/admin", ["a"]), Route("/admin/{rest:path}", ["a", "b"])], None),
    ([Route("/admin/{rest:path}", ["a"])], ["a", "b"]),
    ([Route("/admin/{rest:path}", [])], ["a"]),
    ([Route("/api/{rest:path}", ["a"])], None),
    ([Route("/api/items/{anything}", ["a"]), Route("/static/logo.png", ["b"])], None),
    ([Route("/admin", ["a"], methods=["POST"]), Route("/admin", ["b"])], None),
    ([Route("/admin", ["a"], methods=["OPTIONS", "GET"]), Route("/{rest:path}", ["b"])], ["a"]),
    ([Route("/admin/users/{user_id}", ["a"]), Route("/admin/users/{x}/y", [])], None),
    ([Route("/chat", ["a"], methods=["GET"])], None),
    ([Route("/static/{rest:path}", ["a"], methods=["PURGE", "PROPFIND"])], None),
    ([Route("/api", ["a"]), Route("/api/{rest:path}", ["a", "b"])], None),
    ([Route("/api/items", ["a"]), Route("/api/items/{item_id:int}", ["a"])], None),
    ([Route("/api/items", ["a"])], ["a"]),
    # An agent may answer where the app has nothing.
    ([Route("/old-orders", ["a"]), Route("/.git/{rest:path}", ["b"])], None),
    # It yields where the app's router runs another handler.
    ([Route("/admin/users/{user_id}", ["a"]), Route("/admin/users/me", ["b"])], None),
]


@pytest.mark.parametrize(("routes", "default"), RIGHT)
async def test_what_may_be_meant_so_gets_none(
    routes: list[Route], default: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    if any(route.methods and "POST" in route.methods for route in routes):
        app = shop()
        app.add_api_route("/admin", endpoint, methods=["POST"])
    else:
        app = shop()
    await start(AgentMiddleware(app, agents=named(routes, default), routes=routes, default_agents=default))

    assert told(caplog) == []


class Anywhere(BaseRoute):
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return Match.NONE, {}


class ByHeader(AppRouter):
    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(scope, receive, send)


def with_root(path: str) -> FastAPI:
    app = FastAPI()
    app.root_path = path
    return app


@pytest.mark.parametrize(
    "app",
    [
        answer,
        Starlette(),
        Starlette(routes=[AppRoute("/users", endpoint), Host("x.example", answer)]),
        Starlette(routes=[AppRoute("/users", endpoint), Anywhere()]),
        Starlette(routes=[Mount("/m", Starlette(routes=[AppRoute("/users", endpoint), BaseRoute()]))]),
        Starlette(routes=[AppRoute("/users", endpoint), Mount("/m", ByHeader([AppRoute("/b", endpoint)]))]),
        Starlette(routes=[AppRoute("/users", endpoint), Mount("/m", with_root("/x"))]),
        AppRouter([AppRoute("/users", endpoint)], default=answer),
    ],
    ids=[
        "no router",
        "no routes yet",
        "host",
        "a class of its own",
        "no path",
        "a router of its own",
        "a root path",
        "fallback",
    ],
)
async def test_of_an_app_whose_routes_are_not_all_known_nothing_is_said(
    app: ASGIApp, caplog: pytest.LogCaptureFixture
) -> None:
    guarded = AgentMiddleware(app, agents=[AgentConfig("a", Watching())], routes=[Route("/users/", ["a"])])

    await get(guarded, "/users")

    assert told(caplog) == []


@pytest.mark.parametrize("late", [False, True])
async def test_routes_that_come_after_the_middleware_count(late: bool, caplog: pytest.LogCaptureFixture) -> None:
    app = Starlette(routes=[AppRoute("/late/", endpoint)])
    guarded = AgentMiddleware(app, agents=[AgentConfig("a", Watching())], routes=[Route("/late", ["a"])])
    if late:
        app.router.routes.append(AppRoute("/late", endpoint))
    await start(guarded)

    assert len(told(caplog)) == (0 if late else 1)


async def test_the_full_path_in_a_mounted_app_is_told_with_the_one_that_it_sees(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = FastAPI()
    api.add_api_route("/users/{user_id}", endpoint)
    routes = [Route("/api/{rest:path}", ["a"])]
    app = Starlette(routes=[Mount("/api", AgentMiddleware(api, agents=named(routes, None), routes=routes))])

    await get(app, "/api/users/1")

    assert told(caplog) == [
        "AgentRoute('/api/{rest:path}') matches no route of the app: paths are matched below the root path '/api',"
        " where the app is mounted; write '/{rest:path}'"
    ]


async def test_a_path_below_another_is_no_misspelling_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """Such as that of a plugin, which adds its route when it is loaded."""
    app = Starlette(routes=[AppRoute("/plugins", endpoint), AppRoute("/users/{id}", endpoint)])
    routes = [Route("/plugins/foo", ["a"]), Route("/users/{id}/pin", ["a"])]

    await get(AgentMiddleware(app, agents=named(routes, None), routes=routes), "/plugins")

    assert told(caplog) == []


async def test_of_many_routes_that_match_nothing_only_the_first_are_compared_with_all_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The event loop waits for it: with 500 routes and an app of 1,000 it was 45 seconds."""
    compared = 0

    def counting(word: str, possibilities: list[str], *args: Any) -> list[str]:
        nonlocal compared
        compared += len(possibilities)
        return get_close_matches(word, possibilities, *args)

    monkeypatch.setattr("asgi_agents.routing.advice.get_close_matches", counting)
    app = Starlette(routes=[AppRoute(f"/a{number}/{{id}}", endpoint) for number in range(400)])
    routes = [Route("/a0/{idd}", ["a"]), Route("/a00/{id}", ["a"])]
    routes += [Route(f"/nothing/like-it-{number}", ["a"]) for number in range(200)]

    await get(AgentMiddleware(app, agents=named(routes, None), routes=routes))

    assert [line.partition(" ")[0] for line in told(caplog)] == ["AgentRoute('/a00/{id}')"]
    assert compared <= 6_000


async def test_an_agent_that_nobody_names_is_told(caplog: pytest.LogCaptureFixture) -> None:
    agents = [AgentConfig("a", Watching()), AgentConfig("auth", Watching()), AgentConfig("pii", Inspecting())]
    for middleware in (
        AgentMiddleware(answer, agents=agents),
        AgentMiddleware(answer, agents=agents, default_agents=["a", "auth"]),
        AgentMiddleware(answer, agents=agents, routes=[Route("/", ["a"])], default_agents=["auth"]),
        AgentMiddleware(answer, manager=AgentManager(agents), routes=[Route("/", ["a"])]),
    ):
        await get(middleware)
    assert told(caplog) == []

    middleware = AgentMiddleware(answer, agents=agents, routes=[Route("/", ["a"])])
    await get(middleware)
    await get(middleware, "/b")

    assert told(caplog) == [
        "agents are never asked, because no route and no default_agents names them: 'auth'; name them in an AgentRoute,"
        " or write default_agents=['auth']"
    ]


def twice_by_hand(app: Starlette, manager: AgentManager) -> ASGIApp:
    return AgentMiddleware(AgentMiddleware(app, manager=manager), manager=manager)


def twice_added(app: Starlette, manager: AgentManager) -> ASGIApp:
    app.add_middleware(AgentMiddleware, manager=manager)
    app.add_middleware(AgentMiddleware, manager=manager)
    return app


def added_to_a_protected_app(app: Starlette, manager: AgentManager) -> ASGIApp:
    protect(app, manager=manager)
    app.add_middleware(AgentMiddleware, manager=manager)
    return app


def made_twice_by_the_same_lines(app: Starlette, manager: AgentManager) -> ASGIApp:
    for _ in range(2):
        app.add_middleware(AgentMiddleware, agents=[AgentConfig("a", Watching())])
    return app


@pytest.mark.parametrize("wrap", [twice_by_hand, twice_added, added_to_a_protected_app, made_twice_by_the_same_lines])
async def test_agents_that_are_asked_twice_are_told_once(wrap: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = wrap(Starlette(routes=[AppRoute("/", endpoint)]), AgentManager([AgentConfig("a", Watching())]))

    for path in ("/", "/", "/b"):
        await get(app, path)

    assert len(told(caplog)) == 1
    assert re.search("asked twice about the same connection, .*: 'a'; guard an app once", told(caplog)[0])


async def test_middlewares_with_agents_of_their_own_may_stand_in_one_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = AgentMiddleware(answer, agents=[AgentConfig("a", Watching()), AgentConfig("b", Watching())])
    outer = AgentMiddleware(inner, agents=[AgentConfig("a", Other()), AgentConfig("c", Watching())])

    await get(outer)

    assert told(caplog) == []


class Limit(Watching):
    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.counts: dict[str, int] = {}


def limited(app: ASGIApp, rate: int) -> AgentMiddleware:
    return AgentMiddleware(app, agents=[AgentConfig("limit", Limit(rate))])


@pytest.mark.parametrize(("outer", "expected"), [(10, 1), (5, 0)])
async def test_a_mounted_app_may_have_an_agent_of_the_same_name_that_was_made_otherwise(
    outer: int, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = limited(Starlette(routes=[Mount("/inner", limited(answer, 10))]), outer)

    await get(app, "/inner/")

    assert len(told(caplog)) == expected


@pytest.mark.parametrize(("other", "expected"), [("http://waf.a/", 1), ("http://waf.b/", 0)])
async def test_agents_at_two_addresses_are_two(other: str, expected: int, caplog: pytest.LogCaptureFixture) -> None:
    outer, inner = (
        registry_of(AgentManager([AgentConfig("waf", address, events={EventType.REQUEST_HEADERS})])).resolved_route(
            None
        )
        for address in ("http://waf.a/", other)
    )

    assert agents_asked_twice(outer, inner) == bool(expected)
    assert len(told(caplog)) == expected


class Slow(Watching):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        await checkpoint()


@pytest.mark.parametrize("at_once", [False, True])
async def test_connections_that_a_server_gives_one_state_are_not_one_connection(
    at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As some do for the requests of one keep-alive connection."""
    app = AgentMiddleware(answer, agents=[AgentConfig("a", Slow())])
    state: dict[str, Any] = {}

    if at_once:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(get, app, "/", "", state)
    else:
        for _ in range(3):
            await get(app, state=state)

    assert told(caplog) == []
