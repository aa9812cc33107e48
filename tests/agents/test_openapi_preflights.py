"""What looks as a preflight of CORS does is no way past ``undocumented="block"``."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route
from starlette.types import Receive, Scope, Send

from asgi_agents import AgentMiddleware
from asgi_agents.agents import OpenApiValidation
from tests.unjudged.asking import config

PREFLIGHT = {"origin": "https://a.example", "access-control-request-method": "POST"}
DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Shop", "version": "1"},
    "paths": {"/described": {"get": {"responses": {}}}},
}


class Ran(Exception):  # noqa: N818 - no error
    """A handler has seen the request."""


async def handler(request: Request) -> PlainTextResponse:
    raise Ran


async def raw(scope: Scope, receive: Receive, send: Send) -> None:
    raise Ran


class Cors(CORSMiddleware):
    """One of the app's own."""


def described(**options: Any) -> FastAPI:
    app = FastAPI(**options)

    @app.get("/described")
    async def get() -> str:
        return "ok"

    return app


def with_route(app: FastAPI) -> FastAPI:
    app.add_api_route("/hidden", handler, methods=["OPTIONS"], include_in_schema=False)
    return app


def with_included(app: FastAPI) -> FastAPI:
    router = APIRouter()
    router.add_api_route("/hidden", handler, methods=["OPTIONS"], include_in_schema=False)
    app.include_router(router)
    return app


def with_plain_route(app: FastAPI) -> FastAPI:
    app.router.routes.append(Route("/hidden", handler, methods=["OPTIONS"]))
    return app


def with_mount(app: FastAPI) -> FastAPI:
    app.mount("/hidden", raw)
    return app


def with_mounted_app(app: FastAPI) -> FastAPI:
    app.mount("/", Starlette(routes=[Route("/hidden", handler, methods=["OPTIONS"])]))
    return app


def with_host(app: FastAPI) -> FastAPI:
    app.router.routes.insert(0, Host("testserver", Starlette(routes=[Mount("/hidden", raw)])))
    return app


def with_default(app: FastAPI) -> FastAPI:
    app.router.default = raw
    return app


APPS: list[Callable[[FastAPI], FastAPI]] = [
    *(with_route, with_included, with_plain_route, with_mount, with_mounted_app, with_host, with_default),
]


@pytest.mark.parametrize("source", ["app", "description"])
@pytest.mark.parametrize("make", APPS)
def test_what_is_not_described_runs_for_no_preflight(make: Callable[[FastAPI], FastAPI], source: str) -> None:
    app = make(described())
    agent = OpenApiValidation(app if source == "app" else DESCRIPTION, undocumented="block")
    with TestClient(AgentMiddleware(app, agents=[config(agent)])) as client:
        for headers in ({}, PREFLIGHT):
            assert client.options("/hidden", headers=headers).status_code == 404
        with pytest.raises(Ran):
            TestClient(app).options("/hidden", headers=PREFLIGHT)


@pytest.mark.parametrize("source", ["app", "description"])
@pytest.mark.parametrize("make", [CORSMiddleware, Cors])
@pytest.mark.parametrize("app", APPS)
def test_what_answers_preflights_of_the_app_is_let(
    app: Callable[[FastAPI], FastAPI], make: type[CORSMiddleware], source: str
) -> None:
    entry = Middleware(make, allow_origins=["*"], allow_methods=["POST"])
    made = app(described(middleware=[entry]))
    wrapped = make(app(described()), allow_origins=["*"], allow_methods=["POST"])
    for guarded, inner in ((made, made), (wrapped, wrapped.app)):
        agent = OpenApiValidation(inner if source == "app" else DESCRIPTION, undocumented="block")
        with TestClient(AgentMiddleware(guarded, agents=[config(agent)])) as client:
            for path in ("/hidden", "/described", "/other"):
                assert client.options(path, headers=PREFLIGHT).status_code == 200
            assert client.options("/hidden").status_code == 404


def test_what_answers_them_may_be_around_a_mount() -> None:
    app = described()
    inner = Starlette(routes=[Route("/x", handler, methods=["OPTIONS"])])
    app.mount("/wrapped", CORSMiddleware(inner, allow_origins=["*"], allow_methods=["POST"]))
    app.mount("/bare", inner)
    with TestClient(AgentMiddleware(app, agents=[config(OpenApiValidation(app, undocumented="block"))])) as client:
        assert client.options("/wrapped/x", headers=PREFLIGHT).status_code == 200
        assert client.options("/bare/x", headers=PREFLIGHT).status_code == 404
        # The app's own 405 and 404.
        assert client.options("/described", headers=PREFLIGHT).status_code == 405


@pytest.mark.parametrize("source", ["app", "description"])
def test_an_app_of_which_nothing_is_seen_may_run_anything(source: str) -> None:
    agent = OpenApiValidation(described() if source == "app" else DESCRIPTION, undocumented="block")
    client = TestClient(AgentMiddleware(raw, agents=[config(agent)]))
    assert client.options("/described", headers=PREFLIGHT).status_code == 404
