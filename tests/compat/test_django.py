"""Django: views under its ASGI handler, which runs them in tasks of their own."""

from typing import Any

import pytest
from starlette.types import ASGIApp

from .cases import EVENT_STREAM
from .promises import Promises
from .stage import Handlers

pytest.importorskip("django", reason="Django is not installed: pip install '.[compat]'")

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path


class TestDjango(Promises):
    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        def echo(request: Any) -> Any:
            with handlers.one():
                return HttpResponse(request.body, content_type="text/plain")

        async def form(request: Any) -> Any:
            with handlers.one():
                note, file = request.POST["note"], request.FILES["file"].read().decode()
                return HttpResponse(f"{note} {file}", content_type="text/plain")

        async def events(request: Any) -> Any:
            return StreamingHttpResponse(handlers.words(), content_type=EVENT_STREAM)

        async def whole_pieces(request: Any) -> Any:
            return StreamingHttpResponse(handlers.pieces(), content_type="text/plain")

        async def endless(request: Any) -> Any:
            return StreamingHttpResponse(handlers.endless(), content_type=EVENT_STREAM)

        settings.configure(
            ALLOWED_HOSTS=["*"],
            # The length of a form is checked, and with it what agents have made of the body.
            ROOT_URLCONF=(
                path("echo", echo),
                path("form", form),
                path("events", events),
                path("pieces", whole_pieces),
                path("endless", endless),
            ),
            MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.gzip.GZipMiddleware"][:1],
            SECRET_KEY="for tests only",
        )
        django.setup(set_prefix=False)
        app: ASGIApp = get_asgi_application()
        return app
