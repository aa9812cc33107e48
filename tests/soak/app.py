"""The guarded app: ``python -m tests.soak.app LISTENER STREAM_SOCKET HTTP_SOCKET``.

LISTENER is the inherited file descriptor of a listening socket, the other two are where the agents are.
"""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as AppRoute
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_agents import (
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    BodyMode,
    CircuitBreakerConfig,
    EventType,
    FailureMode,
    HttpTransport,
    Route,
    StreamTransport,
)
from asgi_agents.manager import registry_of
from asgi_agents.observability.correlation import live_ids
from asgi_agents.observability.history import SLOT_SECONDS, SLOTS, History

from .agents import Watches
from .samples import Sample, descriptors, resident

#: Where it tells what it has left, past all agents.
SAMPLE = "/-/sample"
#: The agents, each of which has a route of its own; and one of all of them, where no failure stops anything.
AGENTS = ("local", "stream", "post", "flaky")
OPEN = "/open"

_EVENTS = frozenset(
    {
        EventType.REQUEST_HEADERS,
        EventType.REQUEST_BODY_CHUNK,
        EventType.RESPONSE_BODY_CHUNK,
        EventType.WEBSOCKET_FRAME,
    }
)


class SoakApp:
    """Says hello, takes what it is sent, streams and echoes."""

    def __init__(self, stream: str, http: str) -> None:
        self._manager = AgentManager(
            [
                _configured("local", Watches()),
                _configured("stream", StreamTransport(f"unix://{stream}", ping_interval=0.5, stall_timeout=20.0)),
                _configured("post", HttpTransport("http://agent/", uds=http)),
                _configured("flaky", Watches()),
            ]
        )
        for agent in AGENTS:
            _fill(registry_of(self._manager).guard(agent).tally.history)
        routes = [Route(f"/{agent}/{{rest:path}}", agents=[agent]) for agent in AGENTS]
        everybody = [(agent, FailureMode.OPEN) for agent in AGENTS]
        self.asgi = Starlette(
            routes=[
                AppRoute(SAMPLE, self._sample),
                AppRoute("/{agent}/hello", _hello),
                AppRoute("/{agent}/take", _take, methods=["POST"]),
                AppRoute("/{agent}/stream", _stream),
                WebSocketRoute("/{agent}/echo", _echo),
            ],
            middleware=[
                Middleware(
                    AgentMiddleware,
                    manager=self._manager,
                    routes=[*routes, Route(OPEN + "/{rest:path}", agents=everybody)],
                )
            ],
        )

    async def _sample(self, request: Request) -> Response:
        statistics = self._manager.statistics()
        sample = Sample(
            descriptors=descriptors(),
            tasks=len(asyncio.all_tasks()),
            permits=sum(
                each.in_flight + each.waiting + sum(endpoint.in_flight for endpoint in each.endpoints)
                for each in statistics.values()
            ),
            correlation_ids=len(live_ids),
            rss=resident(),
        )
        told = {"sample": sample, "connections": statistics["stream"].connections}
        return Response(msgspec.json.encode(told), media_type="application/json")


def _fill(history: History) -> None:
    """Let ten minutes pass in which nothing happened.

    What is remembered of the last ten minutes would otherwise fill up all the while, and look like a leak.
    """
    now = time.monotonic()
    for slots_ago in range(SLOTS, -1, -1):
        history.turn(now - slots_ago * SLOT_SECONDS)


def _configured(agent_id: str, transport: Watches | StreamTransport | HttpTransport) -> AgentConfig:
    return AgentConfig(
        agent_id,
        transport,
        events=_EVENTS,
        # A slow machine is no failure: only what hangs takes so long.
        timeout=20.0,
        circuit_breaker=CircuitBreakerConfig(reset_timeout=0.2),
        request_body_mode=BodyMode.STREAM,
        response_body_mode=BodyMode.STREAM,
    )


async def _hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def _take(request: Request) -> Response:
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
    except ClientDisconnect:
        return Response(status_code=400)
    return PlainTextResponse(str(size))


async def _stream(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(4):
            yield b"piece %d\n" % number
            await asyncio.sleep(0.001)

    return StreamingResponse(pieces(), media_type="text/plain")


async def _echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


def _serve(listener: str, stream: str, http: str) -> None:
    config = uvicorn.Config(
        SoakApp(stream, http).asgi,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        log_level="critical",
        access_log=False,
        timeout_keep_alive=600,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(listener))])


if __name__ == "__main__":
    _serve(*sys.argv[1:])
