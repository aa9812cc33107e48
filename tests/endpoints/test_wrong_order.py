"""``guarded_by`` above the line that registers the endpoint: the app does not start, or the endpoint does not run."""

import functools
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from asgi_agents import ConfigurationError, guarded_by

from .asking import World, call, fastapi
from .test_rewriting_within import Rewriting

SWAP = "it stands above the decorator that registers the endpoint, which has the function without its check; swap the"


def filled(world: World, app: FastAPI) -> FastAPI:
    router = APIRouter()
    guarded_by("waf")(app.get("/a", response_model=None)(world.http("a")))
    guarded_by("waf")(app.get("/sync", response_model=None)(world.sync("sync")))
    guarded_by("waf")(app.websocket("/ws")(world.websocket("ws")))
    guarded_by("waf")(router.get("/in", response_model=None)(world.http("in")))
    app.get("/right", response_model=None)(guarded_by("auth")(world.http("right")))
    app.get("/other", response_model=None)(world.http("other"))
    app.include_router(router)
    return app


def protected(world: World) -> ASGIApp:
    app = filled(world, fastapi())
    world.protect(app)
    return app


def wrapped(world: World) -> ASGIApp:
    return world.guard(filled(world, fastapi()))


def mounted(world: World) -> ASGIApp:
    app = fastapi()
    app.mount("/sub", filled(world, fastapi()))
    world.protect(app)
    return app


def in_mounts(world: World) -> ASGIApp:
    return world.guard(Starlette(routes=[Mount("/a", routes=[Mount("/b", filled(world, fastapi()))])]))


def with_agents_of_its_own(world: World) -> ASGIApp:
    sub = filled(world, fastapi())
    world.protect(sub)
    # Its lifespan never runs.
    return Starlette(routes=[Mount("/sub", sub)])


PREFIXES: dict[Callable[[World], ASGIApp], str] = {
    protected: "",
    wrapped: "",
    mounted: "/sub",
    in_mounts: "/a/b",
    with_agents_of_its_own: "/sub",
}
REFUSED = {"GET {}/a": 503, "GET {}/sync": 503, "WS {}/ws": 1011, "GET {}/in": 503}


@pytest.mark.parametrize("build", PREFIXES)
async def test_without_a_lifespan_it_does_not_run_and_the_log_says_to_swap_the_lines(
    build: Callable[[World], ASGIApp], caplog: pytest.LogCaptureFixture
) -> None:
    world, prefix = World(), PREFIXES[build]
    app = build(world)
    for _ in range(2):
        for line, status in REFUSED.items():
            assert (await world.call(app, line.format(prefix)))[:2] == (status, []), line
        assert await world.call(app, f"GET {prefix}/right") == (200, ["right"], ["auth"])
        assert await world.call(app, f"GET {prefix}/other") == (200, ["other"], ["rest"])
    lines = [record.getMessage() for record in caplog.records if SWAP in record.getMessage()]
    assert any(" on a at " in line and line.endswith("; it answers 503") for line in lines)
    assert any(" on ws at " in line and line.endswith("; it closes with 1011") for line in lines)


@pytest.mark.parametrize("build", [protected, wrapped, mounted, in_mounts])
def test_the_app_does_not_start(build: Callable[[World], ASGIApp]) -> None:
    app = build(World())
    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught, TestClient(app):
            pass
        assert SWAP in str(caught.value)
        assert str(caught.value).endswith("so that it stands below (and 3 more)")


@pytest.mark.parametrize("prefix", ["", "/sub"])
async def test_no_path_that_is_rewritten_within_leads_to_it(prefix: str) -> None:
    world = World()
    app = filled(world, fastapi())
    app.add_middleware(Rewriting)
    if prefix:
        outer = fastapi()
        outer.mount(prefix, app)
        app = outer
    world.protect(app)
    for line, status in REFUSED.items():
        assert await world.call(app, line.format(f"{prefix}/to")) == (status, [], ["rest"])
    assert await world.call(app, f"GET {prefix}/to/other") == (200, ["other"], ["rest"])


# What a refusal says and does


async def test_a_refused_websocket_is_said_to_be_closed(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    app = fastapi()
    app.get("/a", response_model=None)(guarded_by("waf")(world.http("a")))
    app.websocket("/a")(guarded_by("waf")(world.websocket("ws")))
    assert (await world.call(app, "GET /a"))[0] == 503
    assert (await world.call(app, "WS /a"))[0] == 1011
    http, websocket = [record.getMessage() for record in caplog.records if record.name == "asgi_agents"]
    assert "so it answers 503;" in http
    assert "so it closes with 1011;" in websocket


async def test_a_websocket_that_only_a_dependency_takes_is_closed_with_1011() -> None:
    world = World()

    async def room(websocket: WebSocket) -> str:
        return websocket.path_params["name"]  # type: ignore[no-any-return]

    async def join(name: str = Depends(room)) -> None:
        world.ran.append(name)

    app = fastapi()
    app.websocket("/room/{name}")(guarded_by("waf")(join))
    assert await world.call(app, "WS /room/a") == (1011, [], [])
    await world.call(world.guard(app), "WS /room/a")
    assert (world.ran, world.asked) == (["a"], ["waf"])


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_handler_without_a_request_does_not_run_for_another_connection_than_that_of_its_agents(
    kind: str,
) -> None:
    """FastAPI hands over the connection, which tells a request from the one that it is made within."""
    world, inner, outer = World(), fastapi(), fastapi()

    async def later(number: int) -> int:
        world.ran.append("later")
        return number

    def sync(number: int) -> int:
        world.ran.append("later")
        return number

    inner.get("/{number}")(guarded_by("waf")(later if kind == "async" else sync))
    found: list[int] = []

    async def batch() -> None:
        found.append(await call(inner, "GET", "/5"))

    outer.get("/")(guarded_by("waf")(batch))
    assert await world.call(world.guard(outer), "GET /") == (200, [], ["waf"])
    assert found == [503]
    assert (await world.call(world.guard(inner), "GET /5"))[:2] == (200, ["later"])


async def test_handlers_of_every_signature_run_as_without_a_policy() -> None:
    async def annotated(request: Annotated[Request, "ours"]) -> str:
        return request.url.path

    async def unknown(number: int) -> "Missing":  # type: ignore[name-defined]  # noqa: F821
        return number

    def partial(number: int, more: int) -> int:
        return number + more

    def starlette(request: Request, **more: Any) -> Response:
        return Response(str(len(more)))

    app = fastapi()
    app.get("/annotated")(guarded_by("waf")(annotated))
    app.get("/unknown/{number}", response_model=None)(guarded_by("waf")(unknown))
    app.get("/partial/{number}")(functools.partial(guarded_by("waf")(partial), more=1))
    app.add_route("/starlette", guarded_by("waf")(starlette))
    world = World()
    world.protect(app)
    client = TestClient(app)
    found = {path: client.get(path).text for path in ("/annotated", "/unknown/5", "/partial/5", "/starlette")}
    assert found == {"/annotated": '"/annotated"', "/unknown/5": "5", "/partial/5": "6", "/starlette": "0"}
    assert world.asked == ["waf"] * 4


def test_what_fastapi_hands_over_is_in_no_document() -> None:
    app = FastAPI()

    @app.get("/{number}")
    @guarded_by("waf")
    async def read(number: int) -> int:
        return number

    plain = FastAPI()
    plain.get("/{number}")(read.__wrapped__)  # type: ignore[attr-defined]
    assert app.openapi() == plain.openapi()
