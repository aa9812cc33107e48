"""Where to look: the status page, metrics, and spans of the shop's own beside those of its framework and agents."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from opentelemetry import trace
from starlette import routing

from asgi_agents import AgentManager, status_app
from asgi_agents.prometheus import metrics_app

_tracer = trace.get_tracer("example_app")


def observe(app: FastAPI, manager: AgentManager) -> None:
    """Add the status page of the agents, and their metrics for Prometheus."""
    app.mount("/-/agents", status_app(manager, authorize=is_local))
    app.routes.append(routing.Route("/-/metrics", metrics_app(manager, authorize=is_local)))


def is_local(request: Request) -> bool:
    """Whether somebody on this machine asks. Behind a proxy that is everybody: ask for a password there."""
    return request.client is not None and request.client.host in ("127.0.0.1", "::1")


class TracedRoute(APIRoute):
    """A route whose handler has a span."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def traced(request: Request) -> Response:
            with _tracer.start_as_current_span(f"handler {self.name}"):
                return await handle(request)

        return traced
