"""The metrics of a manager's agents for Prometheus, and an app that serves them. Needs the ``prometheus`` extra."""

import os
import re
from functools import partial
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .concurrency.own_threads import OwnThreads
from .manager import AgentManager, registry_of, require_manager
from .observability.attempts import Fault
from .observability.authorization import Authorize, refusal, require_authorize
from .observability.prometheus import AgentCollector, encode
from .observability.worker_directory import directory_of
from .observability.worker_scrapes import WorkerScrapes

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_UNSTORED: Final = {"cache-control": "no-store"}
# How many threads of an event loop answers are encoded in.
_THREADS: Final = 4


class PrometheusCollector(AgentCollector):
    """The metrics of a manager's agents, for a ``prometheus_client`` registry of your own.

    ::

        REGISTRY.register(PrometheusCollector(manager))
    """

    def __init__(self, manager: AgentManager) -> None:
        require_manager("PrometheusCollector: manager=", manager)
        super().__init__(registry_of(manager))


def metrics_app(
    manager: AgentManager,
    *,
    authorize: Authorize | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> ASGIApp:
    """An ASGI app that serves the metrics, to be mounted, or to be the endpoint of a route.

    ::

        app.routes.append(starlette.routing.Route("/-/metrics", metrics_app(manager)))

    It speaks the Prometheus text format and, if asked for it, OpenMetrics; there each series of failures and denials
    has the correlation id of its latest as an exemplar.

    :param authorize: asked about each request, as by :func:`~asgi_agents.status_app`.
    :param directory: in which the workers of an app leave their metrics for one another, so that the answer of any of
        them has those of all, told apart by the label ``worker``: a small number that a worker takes over from one that
        has ended. It is made if need be; nobody but the user as whom the app runs may write to it, and it may be that
        of the status page. Each worker is asked at each scrape and has 2 seconds to answer; who does not is left out,
        and counted as ``silent`` in ``asgi_agents_workers``. Where the directory can't be used, the answer is 503, and
        so it is where the others don't hear of this worker: it takes an app that runs its lifespan, and this call
        before that begins.
    :raises ConfigurationError: for arguments that can't work.
    """
    require_manager("metrics_app: manager=", manager)
    require_authorize("metrics_app", authorize)
    return _MetricsApp(manager, authorize, directory_of("metrics_app", directory))


class _MetricsApp:
    def __init__(self, manager: AgentManager, authorize: Authorize | None, directory: Path | None) -> None:
        self._collector = PrometheusCollector(manager)
        self._authorize = authorize
        self._threads = OwnThreads(_THREADS)
        # However many apps serve the metrics of a manager: each of them would count as another worker.
        self._workers: WorkerScrapes | None = None
        if directory is not None:
            make = partial(WorkerScrapes, directory, self._collector)
            self._workers = registry_of(manager).lifecycle.companion(WorkerScrapes, directory, make)

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
        collector = self._collector if self._workers is None else await self._workers.scrape()
        if isinstance(collector, Fault):
            # Those of one worker alone would make counters seem to go back from scrape to scrape.
            return PlainTextResponse(f"The metrics of the workers can't be had: {collector.reason}\n", 503, _UNSTORED)
        # In a thread: agents may have much to report. And in none of those that the app's own handlers may take up.
        body = await self._threads.run(partial(encode, collector, openmetrics=openmetrics))
        return Response(body, headers={"content-type": _OPENMETRICS if openmetrics else _TEXT, **_UNSTORED})


def _asks_for_openmetrics(accepted: str) -> bool:
    media_type, *parameters = (part.strip().lower() for part in accepted.split(";"))
    versions = [parameter.partition("=")[2] for parameter in parameters if parameter.startswith("version=")]
    wanted = not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return wanted and media_type == "application/openmetrics-text" and versions in ([], ["1.0.0"])
