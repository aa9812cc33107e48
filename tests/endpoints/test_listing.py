"""Every endpoint of an app with the agents that guard it, as they are really asked."""

from random import Random
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Host, Mount, Router, WebSocketRoute
from starlette.routing import Route as AppRoute

from asgi_agents import AgentMiddleware, AgentRoute, guard_router, guarded_by, unguarded
from asgi_agents.middleware import finder_of
from asgi_agents.routing.listing import GuardedEndpoint
from tests.fuzz import route_tables
from tests.fuzz.choices import Choices

from .asking import World, fastapi
from .random_apps import RandomApp

LIFESPAN: dict[str, Any] = {"type": "lifespan"}


def rows(guarded: AgentMiddleware) -> list[tuple[Any, ...]]:
    found = finder_of(guarded).listed_endpoints(LIFESPAN)
    return [(_methods(row), row.path, row.name, row.decided_by, row.route, row.agents, _parts(row)) for row in found]


def _methods(row: GuardedEndpoint) -> str:
    return row.kind.upper() if row.kind != "http" else "*" if row.methods is None else ",".join(sorted(row.methods))


def _parts(row: GuardedEndpoint) -> list[str]:
    return [part.path for part in row.sometimes]


def test_every_endpoint_is_listed_with_what_decides_about_it() -> None:
    class Endpoint(HTTPEndpoint):
        @guarded_by("waf")
        async def get(self, request: Request) -> Response:
            raise NotImplementedError

        async def post(self, request: Request) -> Response:
            raise NotImplementedError

    world = World()
    app, router = fastapi(), APIRouter(prefix="/v1")
    router.get("/own", response_model=None)(guarded_by("waf", ("pii", "open"))(world.http("own")))
    router.get("/users/{user_id:int}", response_model=None)(world.http("user"))
    app.include_router(guard_router(router, "auth"))
    app.get("/free", response_model=None)(unguarded(world.http("free")))
    app.get("/items/{item_id}", response_model=None)(world.http("item"))
    app.router.routes += [
        AppRoute("/both", world.http("both"), methods=["GET", "POST"]),
        AppRoute("/class", Endpoint),
        WebSocketRoute("/ws", world.websocket("ws")),
        Mount("/files", world.app("files")),
        Host("b.example", Router([AppRoute("/x", world.http("x"))])),
    ]
    guarded = world.guard(
        app,
        routes=[
            AgentRoute("/items/new", ["pii"]),
            AgentRoute("/both", ["waf"], methods=["POST"]),
            AgentRoute("/files/{rest:path}", []),
        ],
    )
    assert rows(guarded) == [
        ("GET", "/v1/own", "own", "endpoint", None, ("waf", ("pii", "open")), []),
        ("GET", "/v1/users/{user_id:int}", "user", "endpoint", None, ("auth",), []),
        ("GET", "/free", "free", "endpoint", None, (), []),
        ("GET", "/items/{item_id}", "item", "default", None, ("rest",), ["/items/new"]),
        ("GET,HEAD", "/both", "both", "default", None, ("rest",), []),
        ("POST", "/both", "both", "route", "/both", ("waf",), []),
        ("GET,HEAD", "/class", "Endpoint", "endpoint", None, ("waf",), []),
        ("POST", "/class", "Endpoint", "default", None, ("rest",), []),
        ("WEBSOCKET", "/ws", "ws", "default", None, ("rest",), []),
        ("APP", "/files/{path:path}", "leaf", "route", "/files/{rest:path}", (), []),
        ("GET,HEAD", "/x", "x", "default", None, ("rest",), []),
    ]
    listed = finder_of(guarded).listed_endpoints(LIFESPAN)
    assert [row.name for row in listed if not row.guarded] == ["free", "leaf"]
    assert [row.host for row in listed if row.host is not None] == ["b.example"]


def test_an_endpoint_is_not_guarded_where_some_of_its_paths_are_not() -> None:
    world = World()
    app = Starlette(routes=[AppRoute("/items/{name}", world.http("item"))])
    [row] = finder_of(world.guard(app, routes=[AgentRoute("/items/new", [])])).listed_endpoints(LIFESPAN)
    assert (row.agents, row.guarded) == (("rest",), False)


def test_to_list_asks_and_changes_nothing() -> None:
    world, app = World(), FastAPI()
    app.get("/a")(guarded_by("waf")(lambda: "a"))
    guarded = world.guard(app)
    before = [*app.routes]
    assert finder_of(guarded).listed_endpoints(LIFESPAN) == finder_of(guarded).listed_endpoints(LIFESPAN)
    assert (world.asked, app.routes, len(finder_of(guarded).known)) == ([], before, 0)


def test_an_app_that_cant_be_read_has_an_empty_list() -> None:
    world = World()
    assert finder_of(world.guard(world.app("leaf"))).listed_endpoints(LIFESPAN) == ()


def matching(listed: tuple[GuardedEndpoint, ...], method: str, path: str) -> list[GuardedEndpoint]:
    return [
        row
        for row in listed
        if row.path == path
        and row.kind in ("app", "websocket" if method == "WS" else "http")
        and (not row.methods or method in row.methods)
    ]


def ids(agents: Any) -> list[str]:
    return [agent if isinstance(agent, str) else agent[0] for agent in agents]


@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 100))])
async def test_the_list_says_who_is_asked(seed: int) -> None:
    world = World()
    app = RandomApp(Random(2000 + seed), world)  # noqa: S311 - nobody is to be kept from guessing it
    guarded = world.guard(app.app, routes=app.routes)
    listed = tuple(finder_of(guarded).listed_endpoints(LIFESPAN))
    compared = 0
    for line, host in app.calls:
        _, ran, asked = await world.call(guarded, line, host=host)
        for name in ran:
            method, spelling, _ = name.split(" ")
            first = matching(listed, method, spelling)[0]
            if len(matching(listed, method, spelling)) == 1:
                assert ids(first.agents) == asked, (line, name)
                compared += 1
    assert compared > len(app.calls) / 3


@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 60))])
async def test_whatever_the_routes_are_the_list_has_all_that_are_asked(seed: int) -> None:
    chance = Random(seed)  # noqa: S311 - nobody is to be kept from guessing it
    compared = 0
    for _ in range(15):
        choices = Choices(chance.randbytes(300))
        try:
            made = route_tables.table(choices)
        except (AssertionError, ValueError):
            continue
        world = World()
        names = {str(name) for route in made.routes for name in route.agents} | {*(made.default or ())}
        guarded = world.guard(made.app, sorted(names), routes=made.routes, default_agents=made.default)
        listed = tuple(finder_of(guarded).listed_endpoints(LIFESPAN))
        for _ in range(6):
            scope = route_tables.connection(Choices(chance.randbytes(60)), made)
            made.ran.clear()
            world.asked.clear()
            await route_tables.run(guarded, scope)
            # With a line break, catch-alls count that match nothing.
            if not made.ran or not made.ran[0] or "\n" in scope["path"]:
                continue
            method = "WS" if scope["type"] == "websocket" else scope["method"].upper()
            there = matching(listed, method, made.ran[0])
            allowed = [agents for row in there for agents in (row.agents, *(part.agents for part in row.sometimes))]
            assert world.asked in [ids(agents) for agents in allowed], (scope, made.ran, made.routes, there)
            compared += 1
    assert compared
