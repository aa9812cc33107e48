"""The guarded app: ``python -m tests.chaos.app LISTENER ADDRESSES``.

LISTENER is the inherited file descriptor of a listening socket, ADDRESSES says in JSON where each agent is.
"""

import asyncio
import json
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
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
    Framing,
    GrpcTransport,
    HttpTransport,
    Route,
    StreamTransport,
)
from asgi_agents.guardrails import Guardrail
from asgi_agents.observability.correlation import live_ids

from .stamps import POISON
from .targets import AGENTS, READERS, TARGETS
from .texts import HOLD, TEXT_TARGETS, spoken

#: Where it tells how it is, past all agents.
STATISTICS = "/-/statistics"
# What an agent has to be told that it hears where it can't say so.
_EVENTS = frozenset(EventType) - {EventType.CONFIGURE, EventType.GUARDRAIL_INSPECT, EventType.REQUEST_COMPLETE}
#: Seconds that one question to an agent may take, and one about a piece of a streamed body.
TIMEOUT, CHUNK_TIMEOUT = 0.5, 0.7


def _configured(addresses: Mapping[str, Sequence[str]]) -> list[AgentConfig]:
    def config(
        agent: str, transport: GrpcTransport | StreamTransport | HttpTransport, mode: BodyMode, *, says_events: bool
    ) -> AgentConfig:
        return AgentConfig(
            agent,
            transport,
            events=None if says_events else _EVENTS,
            timeout=TIMEOUT,
            chunk_timeout=CHUNK_TIMEOUT,
            max_concurrent_calls=50,
            circuit_breaker=CircuitBreakerConfig(reset_timeout=0.5),
            body_access="read" if agent in READERS else "write",
            request_body_mode=mode,
            response_body_mode=mode,
        )

    quick: Any = {"connect_timeout": 0.7, "ping_interval": 0.2, "stall_timeout": 1.0, "drain_timeout": 1.0}
    pool = StreamTransport(addresses["pool"], connections=2, load_balancing="least_connections", **quick)
    lone = StreamTransport(addresses["lone"], connections=2, encoding="msgpack", **quick)
    line = StreamTransport(addresses["line"], connections=4, framing=Framing.ENVELOPE, **quick)
    [url] = addresses["post"]

    def judge(agent_id: str, agent: str, *, fails_closed: bool) -> AgentConfig:
        given = addresses[agent]
        return AgentConfig(
            agent_id,
            HttpTransport(given[0]) if agent == "post" else StreamTransport(given, **quick),
            events=[EventType.GUARDRAIL_INSPECT],
            timeout=TIMEOUT,
            chunk_timeout=CHUNK_TIMEOUT,
            circuit_breaker=CircuitBreakerConfig(reset_timeout=0.5),
            failure_mode=FailureMode.CLOSED if fails_closed else FailureMode.OPEN,
        )

    return [
        *(judge(target.id, target.agent, fails_closed=target.fails_closed) for target in TEXT_TARGETS),
        config("pool", pool, BodyMode.STREAM, says_events=True),
        config("lone", lone, BodyMode.BUFFER, says_events=True),
        config("line", line, BodyMode.hybrid(threshold=2048), says_events=False),
        config("post", HttpTransport(url), BodyMode.BUFFER, says_events=False),
        config("rpc", GrpcTransport(addresses["rpc"], connections=3, **quick), BodyMode.STREAM, says_events=True),
    ]


def _headers(request: Request) -> dict[str, str]:
    """Of every response: whose it is, and what of its request was stamped."""
    seen = {f"x-seen-{agent}": request.headers.get(f"x-inspected-{agent}") for agent in AGENTS}
    return {"x-token": request.headers["x-request-id"], **{name: value for name, value in seen.items() if value}}


def content(token: str, chunks: int, *, leak: bool) -> list[bytes]:
    """What the app has to say to a request, from its begin to its end mark; poisoned in the middle for a leak."""
    pieces = [b"data: %d of %d for %b\n\n" % (number, chunks, token.encode()) for number in range(chunks)]
    if leak:
        pieces[chunks // 2] = b"data: " + POISON + b"\n\n"
    return [*pieces, b"data: END " + token.encode() + b"\n\n"]


class ChaosApp:
    """Echoes, downloads, events and websockets; remembers what poison has come so far."""

    def __init__(self, addresses: Mapping[str, Sequence[str]]) -> None:
        self._manager = AgentManager(_configured(addresses))
        # Which requests have brought poison to the app.
        self._poisoned: deque[tuple[str, str]] = deque(maxlen=10_000)
        routes = [
            Route(
                target.path + "/{rest:path}",
                agents=[
                    (agent, FailureMode.CLOSED if agent in target.closed else FailureMode.OPEN)
                    for agent in target.agents
                ],
            )
            for target in TARGETS
        ] + [
            Route(
                target.path + "/{rest:path}",
                agents=[],
                guardrails=[Guardrail(target.id, on={"output", "reasoning", "tool_call"}, hold=HOLD, max_hold=0.1)],
            )
            for target in TEXT_TARGETS
        ]
        here = "/{mode}/{lineup}"
        self.asgi = Starlette(
            routes=[
                AppRoute(STATISTICS, self._tell),
                AppRoute(here + "/echo", self._echo, methods=["GET", "POST"]),
                AppRoute(here + "/download", self._download),
                AppRoute(here + "/sized", self._sized),
                AppRoute(here + "/events", self._events),
                WebSocketRoute(here + "/socket", self._socket),
                AppRoute(here + "/{dialect:path}", self._speak, methods=["POST"]),
            ],
            middleware=[
                Middleware(AgentMiddleware, manager=self._manager, routes=routes, expose_correlation_id=True),
            ],
        )

    async def _tell(self, request: Request) -> Response:
        return JSONResponse(
            {
                "agents": msgspec.to_builtins(self._manager.statistics()),
                "open": len(live_ids.keys() - {request.headers["x-request-id"]}),
                "tasks": len(asyncio.all_tasks()),
                "poisoned": list(self._poisoned),
            }
        )

    async def _echo(self, request: Request) -> Response:
        self._look(request)
        body = b""
        try:
            async for chunk in request.stream():
                body += chunk
                if POISON in body:
                    self._poisoned.append((request.url.path, request.headers["x-request-id"]))
        except ClientDisconnect:
            # Nobody will have it.
            return Response(status_code=400)
        return Response(body, headers=_headers(request))

    async def _download(self, request: Request) -> Response:
        self._look(request)
        return StreamingResponse(_slowly(_asked(request)), headers=_headers(request), media_type="text/plain")

    async def _sized(self, request: Request) -> Response:
        self._look(request)
        pieces = _asked(request)
        length = {"content-length": str(sum(map(len, pieces)))}
        return StreamingResponse(_slowly(pieces), headers=_headers(request) | length, media_type="text/plain")

    async def _events(self, request: Request) -> Response:
        self._look(request)
        return StreamingResponse(_slowly(_asked(request)), headers=_headers(request), media_type="text/event-stream")

    async def _speak(self, request: Request) -> Response:
        _, events = spoken(request.headers["x-request-id"], request.path_params["dialect"])
        pieces = [b"".join(events[at : at + 4]) for at in range(0, len(events), 4)]
        return StreamingResponse(_slowly(pieces), media_type="text/event-stream")

    async def _socket(self, websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                message = await websocket.receive_text()
                if POISON.decode() in message:
                    self._poisoned.append((websocket.url.path, websocket.headers["x-request-id"]))
                if message.startswith("leak "):
                    await websocket.send_text(POISON.decode())
                await websocket.send_text("echo " + message)
        except WebSocketDisconnect:
            pass

    def _look(self, request: Request) -> None:
        if "x-poison" in request.headers:
            self._poisoned.append((request.url.path, request.headers["x-request-id"]))


def _asked(request: Request) -> list[bytes]:
    query = request.query_params
    return content(request.headers["x-request-id"], int(query["chunks"]), leak="leak" in query)


async def _slowly(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0.002)


def _serve(listener: str, addresses: str) -> None:
    config = uvicorn.Config(
        ChaosApp(json.loads(addresses)).asgi,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        log_level="info",
        access_log=False,
        # Longer than any client lets a connection idle.
        timeout_keep_alive=600,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(listener))])


if __name__ == "__main__":
    _serve(*sys.argv[1:])
