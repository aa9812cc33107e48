"""sse-starlette, which sends beside a task that waits for the client to leave, and pings."""

import pytest
from fastapi import FastAPI, Form, Request, UploadFile
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from .promises import Promises
from .stage import Handlers

pytest.importorskip("sse_starlette", reason="sse-starlette is not installed: pip install '.[compat]'")

from sse_starlette import EventSourceResponse


class TestSseStarlette(Promises):
    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        app = FastAPI()

        @app.post("/echo")
        async def echo(request: Request) -> Response:
            with handlers.one():
                return PlainTextResponse(await request.body())

        @app.post("/form")
        async def form(file: UploadFile, note: str = Form()) -> Response:
            with handlers.one():
                return PlainTextResponse(f"{note} {(await file.read()).decode()}")

        @app.get("/events")
        async def events() -> Response:
            return EventSourceResponse(handlers.words("{}"))

        @app.get("/pieces")
        async def pieces() -> Response:
            return StreamingResponse(handlers.pieces(), media_type="text/plain")

        @app.get("/endless")
        async def endless() -> Response:
            return EventSourceResponse(handlers.endless("{}"))

        return app
