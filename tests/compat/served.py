"""The app that ``tests.compat.servers`` starts under every server. What ends in it is written to a file."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    WebSocketFrameEvent,
)

from .cases import EVENT_STREAM, STOPPED

LOG_VARIABLE = "ASGI_AGENTS_COMPAT_LOG"
MODE_VARIABLE = "ASGI_AGENTS_COMPAT_MODE"
LIMIT = 1000
# Seconds between two pieces of a stream, and how many a stream that ends by itself has.
PAUSE = 0.1
PIECES = 10


def log(line: str) -> None:
    path = os.environ.get(LOG_VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")


@contextmanager
def logged(name: str) -> Iterator[None]:
    log(f"{name} begun")
    try:
        yield
    finally:
        log(f"{name} ended")


class Judge(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return AgentResponse.block(403, STOPPED) if event.uri.endswith("/blocked") else None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(422, STOPPED) if b"evil" in event.data else None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(403, STOPPED) if b"evil" in event.data else None

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        match event.data:
            case b"drop":
                return AgentResponse.websocket_drop()
            case b"close":
                return AgentResponse.websocket_close(4003, STOPPED)
            case b"fail":
                raise RuntimeError("the agent is broken")
        return None


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def echo(request: Request) -> Response:
    with logged("echo"):
        return PlainTextResponse(await request.body())


async def pieces(name: str, *texts: str) -> AsyncIterator[str]:
    with logged(name):
        for text in texts:
            yield text
            await anyio.sleep(PAUSE)


def events(*words: str) -> list[str]:
    return [f"data: {word}\n\n" for word in words]


async def stream(request: Request) -> Response:
    return StreamingResponse(pieces("stream", *events(*["good"] * PIECES)), media_type=EVENT_STREAM)


async def endless(request: Request) -> Response:
    return StreamingResponse(pieces("endless", *events(*["good"] * 1000)), media_type=EVENT_STREAM)


async def late_events(request: Request) -> Response:
    texts = events("good", "good", "evil", *["good"] * 1000)
    return StreamingResponse(pieces("late-events", *texts), media_type=EVENT_STREAM)


async def late_pieces(request: Request) -> Response:
    texts = ["good", "good", "evil", *["good"] * 1000]
    return StreamingResponse(pieces("late-pieces", *texts), media_type="text/plain")


async def late_length(request: Request) -> Response:
    texts = ["good", "good", "evil"]
    headers = {"content-length": "12"}
    return StreamingResponse(pieces("late-length", *texts), media_type="text/plain", headers=headers)


async def websocket(websocket: WebSocket) -> None:
    with logged("websocket"):
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    log("lifespan begun")
    yield
    log("lifespan ended")


app: ASGIApp = AgentMiddleware(
    Starlette(
        routes=[
            Route("/", hello),
            Route("/blocked", hello),
            Route("/echo", echo, methods=["POST"]),
            Route("/stream", stream),
            Route("/endless", endless),
            Route("/late-events", late_events),
            Route("/late-pieces", late_pieces),
            Route("/late-length", late_length),
            WebSocketRoute("/websocket", websocket),
            WebSocketRoute("/websocket/blocked", websocket),
        ],
        lifespan=lifespan,
    ),
    agents=[
        AgentConfig(
            "judge",
            Judge(),
            timeout=30.0,
            chunk_timeout=30.0,
            circuit_breaker=None,
            max_request_body_bytes=LIMIT,
            request_body_mode=BodyMode.STREAM if os.environ.get(MODE_VARIABLE) == "stream" else BodyMode.BUFFER,
            response_body_mode=BodyMode.STREAM,
        )
    ],
)
