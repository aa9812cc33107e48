"""The apps that are guarded, as small as apps of Starlette's get."""

from collections.abc import AsyncIterator
from typing import Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


async def _say_hello(request: Request) -> Response:
    return JSONResponse({"message": "Hello, world!"})


async def _take_order(request: Request) -> Response:
    return JSONResponse({"lines": len((await request.json())["lines"])})


async def _take_upload(request: Request) -> Response:
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
    except ClientDisconnect:
        pass
    return JSONResponse({"bytes": size})


async def _send_back(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


#: How many events the app of events sends.
EVENTS: Final = 500


async def _send_events(request: Request) -> Response:
    async def made() -> AsyncIterator[bytes]:
        for number in range(EVENTS):
            yield b'data: {"token": "%d"}\n\n' % number

    return StreamingResponse(made(), media_type="text/event-stream")


_HELLO: Final = Route("/items/{id:int}", _say_hello)

hello: Final = Starlette(routes=[_HELLO])
orders: Final = Starlette(routes=[_HELLO, Route("/orders", _take_order, methods=["POST"])])
uploads: Final = Starlette(routes=[_HELLO, Route("/uploads", _take_upload, methods=["POST"])])
events: Final = Starlette(routes=[_HELLO, Route("/events", _send_events)])
echo: Final = Starlette(routes=[_HELLO, WebSocketRoute("/echo", _send_back)])
