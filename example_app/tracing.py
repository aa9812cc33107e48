"""Spans of the shop's own, beside those of its framework and of its agents."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from opentelemetry import trace

_tracer = trace.get_tracer("example_app")


class TracedRoute(APIRoute):
    """A route whose handler has a span."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def traced(request: Request) -> Response:
            with _tracer.start_as_current_span(f"handler {self.name}"):
                return await handle(request)

        return traced
