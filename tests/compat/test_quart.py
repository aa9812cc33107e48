"""Quart, which runs handlers in tasks of their own, beside one that waits for the client to leave."""

import pytest
from starlette.types import ASGIApp

from .cases import EVENT_STREAM
from .promises import Promises
from .stage import Handlers

pytest.importorskip("quart", reason="Quart is not installed: pip install '.[compat]'")

from quart import Quart, Response, request


class TestQuart(Promises):
    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        app = Quart(__name__)
        app.config["RESPONSE_TIMEOUT"] = None

        @app.post("/echo")
        async def echo() -> Response:
            with handlers.one():
                return Response(await request.get_data(), mimetype="text/plain")

        @app.post("/form")
        async def form() -> Response:
            with handlers.one():
                note, file = (await request.form)["note"], (await request.files)["file"].read().decode()
                return Response(f"{note} {file}", mimetype="text/plain")

        @app.get("/events")
        async def events() -> Response:
            return Response(handlers.words(), mimetype=EVENT_STREAM)

        @app.get("/pieces")
        async def pieces() -> Response:
            return Response(handlers.pieces(), mimetype="text/plain")

        @app.get("/endless")
        async def endless() -> Response:
            return Response(handlers.endless(), mimetype=EVENT_STREAM)

        return app
