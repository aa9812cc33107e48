"""OpenApiValidation is given another app than the one that its agents guard."""

import logging
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.testclient import TestClient
from pydantic import Field
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import AgentError, AgentMiddleware, AuditRecord, ConfigurationError
from asgi_agents.agents import OpenApiValidation
from tests.unjudged.asking import config, protect

PROBLEM = "application/problem+json"


def described() -> Any:
    app = FastAPI()

    @app.get("/n/{n}")
    async def number(n: Annotated[int, Field(ge=1)]) -> int:
        return n

    return app


def out_of_sight(app: ASGIApp) -> ASGIApp:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return wrapped


def _other(app: Any) -> Any:
    app.add_route("/other", lambda request: PlainTextResponse("other"))
    return app


def _mounted(api: FastAPI) -> Any:
    app = _other(FastAPI())
    app.mount("/api", api)
    return app


def _in_starlette(api: FastAPI) -> Any:
    return Starlette(routes=[Route("/other", lambda request: PlainTextResponse("other")), Mount("/api", app=api)])


def _deeper(api: FastAPI) -> Any:
    app, router = _other(FastAPI()), APIRouter()
    router.mount("/api", CORSMiddleware(api, allow_origins=["*"]))
    app.include_router(router)
    return app


def _in_two(api: FastAPI) -> Any:
    return _other(Starlette(routes=[Mount("/api", app=Starlette(routes=[Mount("/", app=api)]))]))


def _with_root_path(api: FastAPI) -> Any:
    app = _other(FastAPI())
    app.root_path = "/behind"
    app.mount("/api", api)
    return app


def _by_host(api: FastAPI) -> Any:
    within = Starlette(routes=[Mount("/api", app=api)])
    return Starlette(routes=[Route("/other", lambda _: PlainTextResponse("other")), Host("testserver", app=within)])


SHAPES: dict[str, Callable[[FastAPI], Any]] = {
    "mounted": _mounted,
    "in starlette": _in_starlette,
    "in a router, wrapped": _deeper,
    "in two": _in_two,
    "with a root path": _with_root_path,
    "by host": _by_host,
}


def _protected(app: Any, agent: OpenApiValidation, records: list[AuditRecord]) -> Any:
    protect(app, agents=[config(agent, "openapi")], on_audit=records.append)
    return app


def _wrapped(app: Any, agent: OpenApiValidation, records: list[AuditRecord]) -> ASGIApp:
    return AgentMiddleware(app, agents=[config(agent, "openapi")], on_audit=records.append)


def _added(app: Any, agent: OpenApiValidation, records: list[AuditRecord]) -> Any:
    app.add_middleware(AgentMiddleware, agents=[config(agent, "openapi")], on_audit=records.append)
    return app


PLACES = [_protected, _wrapped, _added]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_app_that_is_mounted_in_the_guarded_one_is_judged(
    shape: str, place: Callable[..., ASGIApp], caplog: pytest.LogCaptureFixture
) -> None:
    api, records = described(), list[AuditRecord]()
    before = "/behind" if shape == "with a root path" else ""
    with TestClient(place(SHAPES[shape](api), OpenApiValidation(api), records)) as client:
        assert client.get(f"{before}/api/n/1").text == "1"
        refused = client.get(f"{before}/api/n/0")
        assert (refused.status_code, refused.headers["content-type"]) == (422, PROBLEM)
        assert client.get(f"{before}/n/0").status_code == 404, "no such path of the guarded app"
        assert client.get(f"{before}/other").text == "other"
        assert records[-1].answers[0].tags == ["openapi", "undocumented"]
    assert not caplog.records


@pytest.mark.parametrize("place", PLACES)
def test_what_the_mounted_app_does_not_describe_can_be_blocked(place: Callable[..., ASGIApp]) -> None:
    api = described()
    with TestClient(place(_mounted(api), OpenApiValidation(api, undocumented="block"), [])) as client:
        assert client.get("/api/n/1").text == "1"
        assert client.get("/other").headers["content-type"] == PROBLEM
        for url in ("/api/docs", "/docs", "/openapi.json"):
            assert client.get(url).status_code == 200
        assert client.post("/api/n/1").status_code == 405, "the app's own answer"


def test_an_app_that_is_mounted_later_is_found() -> None:
    api, outer = described(), FastAPI()
    with TestClient(_protected(outer, OpenApiValidation(api), [])) as client:
        assert client.get("/api/n/0").status_code == 404
        outer.mount("/api", api)
        assert client.get("/api/n/0").headers["content-type"] == PROBLEM


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("undocumented", ["pass", "block"])
def test_another_app_is_never_judged_in_silence(
    place: Callable[..., ASGIApp], undocumented: Any, caplog: pytest.LogCaptureFixture
) -> None:
    records: list[AuditRecord] = []
    agent = OpenApiValidation(described(), undocumented=undocumented)
    with TestClient(place(_other(FastAPI()), agent, records)) as client:
        for _ in range(2):
            response = client.get("/other")
            assert response.status_code == (200 if undocumented == "pass" else 404)
            assert records[-1].answers[0].tags[0] == "openapi"
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "expected OpenApiValidation(app) with the app that is guarded, or root_path='/api'" in record.getMessage()


@pytest.mark.parametrize("place", PLACES)
def test_an_app_that_is_mounted_out_of_sight_needs_a_root_path(
    place: Callable[..., ASGIApp], caplog: pytest.LogCaptureFixture
) -> None:
    for root_path, status in ((None, 404), ("/api", 422)):
        caplog.clear()
        api = described()
        outer = _other(FastAPI())
        outer.mount("/api", out_of_sight(api))
        # What the guarded app has under the same name is not held to the description of the other.
        outer.add_route("/n/{n}", lambda request: PlainTextResponse("the outer one's"))
        agent = OpenApiValidation(api, undocumented="block", root_path=root_path)
        with TestClient(place(outer, agent, [])) as client:
            refused = client.get("/api/n/0")
            assert (refused.status_code, refused.headers["content-type"]) == (status, PROBLEM)
            assert client.get("/other").status_code == 404
            if root_path is not None:
                assert client.get("/api/n/1").text == "1"
                assert client.get("/api/docs").status_code == 200
                assert client.get("/n/0").json()["errors"][0]["problem"] == "undocumented"
        assert bool(caplog.records) == (root_path is None)


def test_an_app_behind_a_middleware_that_hides_it_is_judged(caplog: pytest.LogCaptureFixture) -> None:
    app = described()
    agent = OpenApiValidation(app, undocumented="block")
    with TestClient(AgentMiddleware(out_of_sight(app), agents=[config(agent, "openapi")])) as client:
        assert client.get("/n/1").text == "1"
        assert client.get("/n/0").status_code == 422
        assert client.get("/docs").status_code == 200
        assert client.get("/nothing").headers["content-type"] == PROBLEM, "who knows what runs there"
    app = described()
    app.add_middleware(lambda app: out_of_sight(app))
    app.add_middleware(AgentMiddleware, agents=[config(OpenApiValidation(app, undocumented="block"), "openapi")])
    with TestClient(app) as client:
        assert client.get("/n/0").status_code == 422
        assert client.get("/nothing").headers["content-type"] == "application/json", "the app's own 404"
    assert not caplog.records


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (None, "the description has no operation"),
        ({}, "the description has no operation"),
        ({"/orders": {}}, "the description has no operation"),
        ({"x-more": {"get": {}}}, "the description has no operation"),
        ({"orders": {"get": {}}}, "the path 'orders' in paths, expected '/orders'"),
        ({"/a": {"get": {}}, "": {"get": {}}}, "the path '' in paths, expected '/'"),
    ],
)
def test_a_description_by_which_nothing_can_be_judged_is_an_error(paths: Any, message: str) -> None:
    description = {"openapi": "3.1.0", "info": {"title": "Shop", "version": "1"}}
    with pytest.raises(ConfigurationError, match=message):
        OpenApiValidation(description if paths is None else {**description, "paths": paths})


def test_what_extends_the_paths_is_no_path() -> None:
    OpenApiValidation({"openapi": "3.1.0", "paths": {"x-more": "anything", "/a": {"get": {}}}})


def test_an_app_without_operations_is_an_error_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    app = _other(FastAPI())
    protect(app, agents=[config(OpenApiValidation(app), require_at_startup=True)])
    with pytest.raises(AgentError, match="the description has no operation"), TestClient(app):
        pytest.fail("it has started")
    caplog.clear()
