"""Flask behind a2wsgi: WSGI in threads, which reads bodies by their declared length."""

import pytest
from starlette.types import ASGIApp

from .cases import EVENT_STREAM
from .promises import Promises
from .stage import Handlers

pytest.importorskip("flask", reason="Flask is not installed: pip install '.[compat]'")
pytest.importorskip("a2wsgi", reason="a2wsgi is not installed: pip install '.[compat]'")

from a2wsgi import WSGIMiddleware
from flask import Flask, Response, request


class TestFlask(Promises):
    # The WSGI environment has no way to say that the body has an end all the same.
    reads_chunked = False

    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        app = Flask(__name__)

        @app.post("/echo")
        def echo() -> Response:
            with handlers.one():
                return Response(request.get_data(), mimetype="text/plain")

        @app.post("/form")
        def form() -> Response:
            with handlers.one():
                file = request.files["file"].read().decode()
                return Response(f"{request.form['note']} {file}", mimetype="text/plain")

        @app.get("/events")
        def events() -> Response:
            return Response(handlers.blocking_words(), mimetype=EVENT_STREAM)

        @app.get("/pieces")
        def pieces() -> Response:
            return Response(handlers.blocking_pieces(), mimetype="text/plain")

        @app.get("/endless")
        def endless() -> Response:
            return Response(handlers.blocking_many(), mimetype=EVENT_STREAM)

        guarded: ASGIApp = WSGIMiddleware(app, workers=30)
        return guarded
