"""The metrics of a manager's agents for Prometheus, and an app that serves them. Needs the ``prometheus`` extra."""

import re
from functools import partial
from typing import Final

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .manager import AgentManager, registry_of, require_manager
from .observability.authorization import Authorize, refusal, require_authorize
from .observability.prometheus import AgentCollector, encode

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class PrometheusCollector(AgentCollector):
    """The metrics of a manager's agents, for a ``prometheus_client`` registry of your own.

    ::

        REGISTRY.register(PrometheusCollector(manager))
    """

    def __init__(self, manager: AgentManager) -> None:
        require_manager("PrometheusCollector: manager=", manager)
        super().__init__(registry_of(manager))


def metrics_app(manager: AgentManager, *, authorize: Authorize | None = None) -> ASGIApp:
    """An ASGI app that serves the metrics, to be mounted, or to be the endpoint of a route.

    ::

        app.routes.append(starlette.routing.Route("/-/metrics", metrics_app(manager)))

    It speaks the Prometheus text format and, if asked for it, OpenMetrics; there each series of failures and denials
    has the correlation id of its latest as an exemplar.

    :param authorize: asked about each request, as by :func:`~asgi_agents.status_app`.
    """
    require_manager("metrics_app: manager=", manager)
    return _MetricsApp(manager, authorize)


class _MetricsApp:
    def __init__(self, manager: AgentManager, authorize: Authorize | None) -> None:
        require_authorize("metrics_app", authorize)
        self._collector = PrometheusCollector(manager)
        self._authorize = authorize

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        response = await self._respond(Request(scope, receive))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        refused = await refusal(self._authorize, request)
        if refused is not None:
            return refused
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("Method Not Allowed", 405, {"allow": "GET, HEAD"})
        # Not the library's choice, which takes whatever version and escaping it is asked for.
        openmetrics = any(map(_asks_for_openmetrics, ",".join(request.headers.getlist("accept")).split(",")))
        # In a thread: agents may have much to report.
        body = await to_thread.run_sync(partial(encode, self._collector, openmetrics=openmetrics))
        headers = {"content-type": _OPENMETRICS if openmetrics else _TEXT, "cache-control": "no-store"}
        return Response(body, headers=headers)


def _asks_for_openmetrics(accepted: str) -> bool:
    media_type, *parameters = (part.strip().lower() for part in accepted.split(";"))
    versions = [parameter.partition("=")[2] for parameter in parameters if parameter.startswith("version=")]
    wanted = not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return wanted and media_type == "application/openmetrics-text" and versions in ([], ["1.0.0"])
