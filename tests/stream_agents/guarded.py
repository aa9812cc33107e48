"""An app behind an agent, under a real server, that can be asked how its agent is and what it leaves behind."""

import asyncio
import gc
import http.client
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentManager, AgentMiddleware, CircuitBreakerConfig, FailureMode, Route
from asgi_agents.manager import registry_of
from asgi_agents.transports.stream.connection import AgentConnection
from asgi_agents.transports.stream.pending_calls import PendingCall
from asgi_agents.transports.stream.stream_pool import StreamPool
from tests.support.servers import serve

from .processes import PATIENCE, until

CLOSED, OPEN, UNGUARDED = "/closed", "/open", "/unguarded"
#: A breaker that nobody told would stay open for longer than any test waits.
TOLD = CircuitBreakerConfig(reset_timeout=10 * PATIENCE)


class _CountsTasks:
    """Around an app with a lifespan: which tasks there are that were not there before it started, once it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.left: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        before = asyncio.all_tasks()
        last: list[Message] = []

        async def hold_last(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                last.append(message)
            else:
                await send(message)

        await self._app(scope, receive, hold_last)
        self.left = [repr(task) for task in asyncio.all_tasks() - before]
        for message in last:
            await send(message)


class Guarded:
    """The app: the same agent on two routes, fail-closed and fail-open, and not at all on a third."""

    def __init__(self, config: AgentConfig) -> None:
        self.manager = AgentManager([config])
        self._id = config.id
        routes = [Route(CLOSED, agents=[config.id]), Route(OPEN, agents=[(config.id, FailureMode.OPEN)])]
        self.app = _CountsTasks(
            Starlette(
                routes=[
                    AppRoute(CLOSED, lambda request: PlainTextResponse("served")),
                    AppRoute(OPEN, lambda request: PlainTextResponse("served")),
                    AppRoute(UNGUARDED, self._tell),
                ],
                middleware=[Middleware(AgentMiddleware, manager=self.manager, routes=routes)],
            )
        )
        self._url = ""

    @contextmanager
    def served(self, **options: Any) -> Iterator[str]:
        """Run it until the end of the block, and see then that nothing is left of what was done inside."""
        with serve(PlainTextResponse("what is imported, and opened once and for all"), **options) as url:
            _get(url)
        with _nothing_left():
            with serve(self.app, **options) as self._url:
                yield self._url
                until(self._is_quiet, told=self.statistics)
            assert self.app.left == []
            assert anyio.run(self._at_rest)

    def statistics(self) -> Any:
        """The agent's, as its own event loop sees them."""
        return json.loads(_get(self._url, UNGUARDED))

    @property
    def connections(self) -> list[int]:
        """How many there are now to each endpoint."""
        return [endpoint["connections"] for endpoint in self.statistics()["endpoints"]]

    async def _tell(self, request: Request) -> Response:
        return JSONResponse(msgspec.to_builtins(self.manager.statistics()[self._id]))

    def _is_quiet(self) -> bool:
        statistics = self.statistics()
        return (statistics["in_flight"], statistics["waiting"]) == (0, 0) and not any(
            endpoint["in_flight"] for endpoint in statistics["endpoints"]
        )

    async def _at_rest(self) -> bool:
        statistics = self.manager.statistics()[self._id]
        breaker = registry_of(self.manager).guard(self._id).breaker
        assert breaker is not None
        return (statistics.in_flight, statistics.waiting, statistics.endpoints, breaker.trials) == (0, 0, (), 0)


def _get(url: str, path: str = "/") -> bytes:
    # Anything more comfortable takes tens of milliseconds to set up.
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


@contextmanager
def _nothing_left() -> Iterator[None]:
    objects, descriptors = _objects(), _descriptors()
    yield
    # What others have left before may go at any time.
    assert _objects() - objects == Counter()
    assert dict(_descriptors().items() - descriptors.items()) == {}


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/dev/fd"):
        # What lists them is one of them.
        with suppress(OSError):
            found[number] = os.readlink(f"/dev/fd/{number}")
    return found


def _objects() -> Counter[str]:
    gc.collect()
    kinds = (PendingCall, AgentConnection, StreamPool)
    return Counter(type(each).__qualname__ for each in gc.get_objects() if isinstance(each, kinds))
