"""Every endpoint of an app with the agents that one middleware asks about it, as they are really asked."""

import logging
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.convertors import CONVERTOR_TYPES, StringConvertor
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Host, Match, Mount, Router, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import (
    AgentMiddleware,
    AgentRoute,
    ConfigurationError,
    FailureMode,
    guard_router,
    guarded_by,
    unguarded,
)
from asgi_agents.middleware import finder_of
from asgi_agents.routing.survey import SurveyedEndpoint, survey_of
from tests.fuzz import route_tables
from tests.fuzz.choices import Choices
from tests.support.examples import some_are_short

from .asking import World, fastapi
from .random_apps import RandomApp


def listed(guarded: AgentMiddleware) -> Sequence[SurveyedEndpoint]:
    return survey_of(guarded, finder_of(guarded), guarded.app)


def rows(guarded: AgentMiddleware) -> list[tuple[Any, ...]]:
    return [(_methods(row), row.only or row.path, row.name, *_decision(row)) for row in listed(guarded)]


def _methods(row: SurveyedEndpoint) -> str:
    return row.kind.upper() if row.kind != "http" else "*" if row.methods is None else ",".join(sorted(row.methods))


def _decision(row: SurveyedEndpoint) -> tuple[str, list[str]]:
    [asked] = row.asked
    decided_by = "endpoint" if asked.policy is not None else "default" if asked.route is None else "route"
    modes = {FailureMode.OPEN: " open", FailureMode.CLOSED: ""}
    return decided_by, [agent.guard.config.id + modes[agent.failure_mode] for agent in asked.agents]


def ids(row: SurveyedEndpoint) -> list[str]:
    return [agent.guard.config.id for asked in row.asked for agent in asked.agents]


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
        ("GET", "/v1/own", "own", "endpoint", ["waf", "pii open"]),
        ("GET", "/v1/users/{user_id:int}", "user", "endpoint", ["auth"]),
        ("GET", "/free", "free", "endpoint", []),
        ("GET", "/items/{item_id}", "item", "default", ["rest"]),
        ("GET", "/items/new", "item", "route", ["pii"]),
        ("GET,HEAD", "/both", "both", "default", ["rest"]),
        ("POST", "/both", "both", "route", ["waf"]),
        ("GET,HEAD", "/class", "Endpoint", "endpoint", ["waf"]),
        ("DELETE,OPTIONS,PATCH,POST,PUT", "/class", "Endpoint", "default", ["rest"]),
        ("WEBSOCKET", "/ws", "ws", "default", ["rest"]),
        ("APP", "/files/{path:path}", "leaf", "route", []),
        ("GET,HEAD", "/x", "x", "default", ["rest"]),
    ]
    assert [row.host for row in listed(guarded) if row.host is not None] == ["b.example"]


def test_to_list_asks_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asgi_agents")
    world, app = World(), FastAPI()
    app.get("/a")(guarded_by("waf")(lambda: "a"))
    # A likely mistake, which the log is told of when the app starts.
    guarded = world.protect(app, routes=[AgentRoute("/b/a", ["waf"])])
    before = [*app.routes]
    assert listed(guarded) == listed(guarded)
    assert (world.asked, app.routes, len(finder_of(guarded).known)) == ([], before, 0)
    assert (app.middleware_stack, caplog.text) == (None, "")


def test_what_was_listed_is_examined_when_the_app_starts() -> None:
    world, app = World(), FastAPI()
    app.get("/a")(guarded_by("nobody")(lambda: "a"))
    listed(world.protect(app))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="no agent has the id 'nobody'"), TestClient(app):
            pass


def test_an_app_that_cant_be_read_has_an_empty_list() -> None:
    world = World()
    assert listed(world.guard(world.app("leaf"))) == ()


def test_an_app_behind_a_middleware_that_hides_it_is_found_by_itself() -> None:
    def hiding(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)

        return middleware

    world = World()
    app = Starlette(routes=[AppRoute("/a", guarded_by("waf")(world.http("a")))])
    guarded = world.guard(hiding(app))
    [row] = survey_of(guarded, finder_of(guarded), app)
    assert (row.path, ids(row)) == ("/a", ["waf"])


@pytest.mark.parametrize(
    ("pattern", "ours", "expected"),
    [
        # What holds for paths of two segments is not what holds for all others.
        ("/{path:path}", {"/{one}/{two}": ["waf"]}, {None: [], "/{one}/{two}": ["waf"]}),
        ("/{path:path}", {"/{one}/{two}": ["waf"], "/{all:path}": ["pii"]}, {None: ["pii"], "/{one}/{two}": ["waf"]}),
        ("/a/{path:path}", {"/{one}/{two}": ["waf"]}, {None: [], "/a/{two}": ["waf"]}),
        ("/a/{path:path}", {"/{one}/b/{rest:path}": ["waf"]}, {None: [], "/a/b/{path:path}": ["waf"]}),
        ("/{path:path}/end", {"/a/{one}/{two}": ["waf"]}, {None: [], "/a/{one}/end": ["waf"]}),
        ("/{path:path}/end", {"/a/{rest:path}": ["waf"]}, {None: [], "/a/end": ["waf"], "/a/{path:path}/end": ["waf"]}),
        # What no route of ours may have in its pattern, a route of the app may.
        ("/*/{name}", {"/{one}/a": ["waf"]}, {None: [], "/*/a": ["waf"]}),
        ("/{a:path}/{b:path}", {"/{a:path}/{b}/{c}": ["waf"]}, {None: ["waf"], "/{a}/{b}": []}),
        ("/{id}/{name}", {"/{id}/a": ["waf"], "/b/{id}": ["pii"]}, {None: [], "/{id}/a": ["waf"], "/b/{id}": ["pii"]}),
        ("/{a}/{b:int}", {"/{b}/{id}": ["waf"]}, {None: ["waf"]}),
        ("/{a}/{b}", {"/{x}/{n:int}": ["waf"]}, {None: [], "/{x}/{n:int}": ["waf"]}),
    ],
)
def test_parts_of_an_endpoint_with_other_agents_are_lines(
    pattern: str, ours: dict[str, list[str]], expected: dict[str | None, list[str]]
) -> None:
    world = World()
    app = Starlette(routes=[AppRoute(pattern, world.http("x"))])
    guarded = world.guard(app, routes=[AgentRoute(path, agents) for path, agents in ours.items()], default_agents=[])
    assert {row.only: ids(row) for row in listed(guarded)} == expected


async def test_an_endpoint_or_route_for_one_value_is_not_taken_for_all_of_them() -> None:
    world = World()
    app = Starlette(
        routes=[
            AppRoute("/items/1", world.http("first")),
            AppRoute("/items/{id:int}", world.http("item")),
            AppRoute("/users/{id:int}", world.http("user")),
            AppRoute("/prices/{price:float}", world.http("price")),
        ]
    )
    routes = [AgentRoute(path, ["waf"]) for path in ("/items/1", "/users/1", "/users/7919", "/prices/1.5")]
    guarded = world.guard(app, routes=routes, default_agents=[])
    assert {row.only or row.path: (ids(row), row.taken_by) for row in listed(guarded)} == {
        "/items/1": (["waf"], None),
        "/items/{id:int}": ([], None),
        "/users/{id:int}": ([], None),
        "/users/1": (["waf"], None),
        "/users/7919": (["waf"], None),
        "/prices/{price:float}": ([], None),
        "/prices/1.5": (["waf"], None),
    }
    assert await world.call(guarded, "GET /items/5") == (200, ["item"], [])


@pytest.mark.parametrize(
    ("regex", "example"),
    [
        ("[a-z]{2}", "/items/en"),
        ("[A-Z]{2,3}-[0-9]+", "/items/AB-1234"),
        ("[0-9a-f]{40}", f"/items/{'0' * 40}"),
        ("[xyz]{9}", None),
    ],
)
def test_parameters_of_a_type_of_the_apps_own_are_tried_with_what_is_usual(
    regex: str, example: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sku(StringConvertor):
        pass

    Sku.regex = regex
    monkeypatch.setitem(CONVERTOR_TYPES, "sku", Sku())
    world = World()
    app = Starlette(routes=[AppRoute("/items/{sku:sku}", world.http("x"))])
    [row] = listed(world.guard(app))
    # None: nobody can tell.
    assert (row.example, row.taken_by) == (example, None)


def test_a_route_that_raises_is_listed_as_unreadable_and_no_hindrance() -> None:
    class Odd(BaseRoute):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            raise LookupError("this route is like no other")

    world = World()
    app = Starlette(routes=[AppRoute("/an-example", world.http("x")), Odd()])
    found = listed(world.guard(app))
    assert [(row.kind, row.example) for row in found] == [("http", "/an-example"), ("unreadable", None)]


def test_websockets_of_a_mounted_app_are_a_line_where_others_are_asked_about_them() -> None:
    world = World()
    # Requests with two segments are for the first one, and websockets are not.
    app = Starlette(routes=[AppRoute("/{a}/{b}", world.http("x")), Mount("/m", world.app("leaf"))])
    guarded = world.guard(app, routes=[AgentRoute("/{a}/{b}", ["waf"], methods=["GET"])])
    assert [(row.kind, row.only or row.path, ids(row)) for row in listed(guarded)] == [
        ("http", "/{a}/{b}", ["waf"]),
        ("app", "/m/{path:path}", ["rest"]),
        ("websocket", "/m/{b}", ["waf"]),
    ]


def said(found: Sequence[SurveyedEndpoint], method: str, pattern: str) -> list[SurveyedEndpoint]:
    """The lines that are for an endpoint, or for a part of its paths."""
    return [
        row
        for row in found
        if row.path == pattern
        and row.kind in ("app", "websocket" if method == "WS" else "http")
        # A handshake is a GET request.
        and (not row.methods or ("GET" if method == "WS" else method) in row.methods)
    ]


@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 100))])
async def test_the_list_says_who_is_asked(seed: int) -> None:
    world = World()
    app = RandomApp(Random(2000 + seed), world)  # noqa: S311 - nobody is to be kept from guessing it
    guarded = world.guard(app.app, routes=app.routes)
    found = listed(guarded)
    compared = 0
    for line, host in app.calls:
        _, ran, asked = await world.call(guarded, line, host=host)
        for name in ran:
            method, pattern, _ = name.split(" ")
            lines = said(found, method, pattern)
            if len(lines) == 1 and lines[0].example is not None and lines[0].taken_by is None:
                assert ids(lines[0]) == asked, (line, name)
                compared += 1
    assert compared > len(app.calls) / 3


@pytest.mark.parametrize(
    "seed", [27, 38, *some_are_short(range(12), one_in=3), *some_are_short(range(100, 160), one_in=60)]
)
async def test_whatever_the_routes_are_the_list_has_all_that_are_asked(seed: int) -> None:
    chance = Random(seed)  # noqa: S311 - nobody is to be kept from guessing it
    compared = 0
    for _ in range(25):
        choices = Choices(chance.randbytes(300))
        try:
            made = route_tables.table(choices)
        except (AssertionError, ValueError):
            continue
        world = World()
        names = {str(name) for route in made.routes for name in route.agents} | {*(made.default or ())}
        guarded = world.guard(made.app, sorted(names), routes=made.routes, default_agents=made.default)
        found = listed(guarded)
        for _ in range(6):
            scope = route_tables.connection(Choices(chance.randbytes(60)), made)
            made.ran.clear()
            world.asked.clear()
            await route_tables.run(guarded, scope)
            # With a line break, catch-alls count that match nothing.
            if not made.ran or not made.ran[0] or "\n" in scope["path"]:
                continue
            method = "WS" if scope["type"] == "websocket" else scope["method"].upper()
            lines = said(found, method, made.ran[0])
            if all(line.example is not None and line.taken_by is None for line in lines):
                assert world.asked in [ids(line) for line in lines], (scope, made.ran, made.routes, lines)
                compared += 1
    assert compared
