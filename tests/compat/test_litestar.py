"""Litestar."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from starlette.types import ASGIApp

from asgi_agents import Agent, AgentManager, AgentMiddleware, ConfigureEvent, RequestHeadersEvent

from .cases import EVENT_STREAM, config
from .promises import Promises
from .stage import Handlers

pytest.importorskip("litestar", reason="Litestar is not installed: pip install '.[compat]'")

from litestar import Litestar, Request, get, post
from litestar.datastructures import UploadFile
from litestar.enums import RequestEncodingType
from litestar.middleware import DefineMiddleware
from litestar.params import Body
from litestar.response import Stream


class TestLitestar(Promises):
    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        @post("/echo", status_code=200, media_type="text/plain")
        async def echo(request: Request[Any, Any, Any]) -> bytes:
            with handlers.one():
                return await request.body()

        @post("/form", status_code=200, media_type="text/plain")
        async def form(data: Annotated[dict[str, Any], Body(media_type=RequestEncodingType.MULTI_PART)]) -> str:
            with handlers.one():
                file: UploadFile = data["file"]
                return f"{data['note']} {(await file.read()).decode()}"

        @get("/events")
        async def events() -> Stream:
            return Stream(handlers.words(), media_type=EVENT_STREAM)

        @get("/pieces")
        async def pieces() -> Stream:
            return Stream(handlers.pieces(), media_type="text/plain")

        @get("/endless")
        async def endless() -> Stream:
            return Stream(handlers.endless(), media_type=EVENT_STREAM)

        return Litestar([echo, form, events, pieces, endless])


class Listener(Agent):
    """Counts how often it is configured, and what it hears."""

    def __init__(self) -> None:
        self.configured = 0
        self.heard: list[str] = []

    async def on_configure(self, event: ConfigureEvent) -> None:
        self.configured += 1

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self.heard.append(event.uri)


@get("/one")
async def one() -> str:
    return "one"


@get("/two")
async def two() -> str:
    return "two"


def visit(app: ASGIApp, *paths: str) -> list[int]:
    """The statuses of one request to each path."""

    async def visit_all() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [(await client.get(path)).status_code for path in paths]

    return asyncio.run(visit_all())


def test_agents_around_an_app_hear_also_what_no_route_matches() -> None:
    listener = Listener()
    app = AgentMiddleware(Litestar([one, two]), agents=[config(listener)])
    assert visit(app, "/one", "/two", "/three") == [200, 200, 404]
    assert listener.heard == ["/one", "/two", "/three"]
    assert listener.configured == 1


def test_agents_in_the_middleware_of_an_app_have_one_manager() -> None:
    listener = Listener()
    manager = AgentManager([config(listener)])

    @asynccontextmanager
    async def agents(app: Litestar) -> AsyncIterator[None]:
        async with manager:
            yield

    app = Litestar([one, two], middleware=[DefineMiddleware(AgentMiddleware, manager=manager)], lifespan=[agents])

    async def visit_all() -> None:
        async with app.lifespan(), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            for path in ("/one", "/two"):
                assert (await client.get(path)).status_code == 200

    asyncio.run(visit_all())
    assert listener.heard == ["/one", "/two"]
    assert listener.configured == 1


def test_agents_that_are_given_to_the_middleware_itself_have_a_manager_for_each_route() -> None:
    """Why the documentation says otherwise: limits and breakers would count for each route apart."""
    listener = Listener()
    app = Litestar([one, two], middleware=[DefineMiddleware(AgentMiddleware, agents=[config(listener)])])
    assert visit(app, "/one", "/two", "/three") == [200, 200, 404]
    assert listener.heard == ["/one", "/two"]
    assert listener.configured == 2
