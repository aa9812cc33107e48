"""An agent with state, and two workers that ask it, which ``python -m tests.threats.keeper`` runs."""

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

import anyio
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    EventType,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    Route,
)

#: The header that says whose a request is. Its body says so as well.
OWNER = "x-owner"
#: With this header, the head of a request waits until a request with ``x-go`` has come.
WAIT = "x-wait"
_EVENTS = {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK, EventType.REQUEST_COMPLETE}


class Keeper(Agent):
    """Keeps whose each request is, by correlation id. Lets a body pass where it is of the same owner as its head."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}
        self._noted: dict[str, list[str]] = {"waiting": [], "cancelled": [], "complete": []}
        self._go = anyio.Event()

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        if event.header("x-tell"):
            return AgentResponse.block(418, json.dumps(self._noted))
        if event.header("x-go"):
            # Those that wait now; others that come later wait anew.
            self._go.set()
            self._go = anyio.Event()
        owner = self._owners[event.correlation_id] = event.header(OWNER) or ""
        if event.header(WAIT):
            self._noted["waiting"].append(owner)
            try:
                await self._go.wait()
            except anyio.get_cancelled_exc_class():
                self._noted["cancelled"].append(owner)
                raise
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        if event.data and event.data.decode() != self._owners.get(event.correlation_id):
            return AgentResponse.block(409, "that is another's body")
        return None

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        self._noted["complete"].append(self._owners.pop(event.correlation_id, "?"))


async def begin_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers as soon as the head has passed, and once more when the body has."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun.", "more_body": True})
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.body", "body": b"ended."})


def app_of(agents: Mapping[str, str]) -> ASGIApp:
    """The app behind one agent for each first segment of its paths."""
    options: dict[str, Any] = {"request_body_mode": BodyMode.STREAM, "timeout": 300.0, "chunk_timeout": 300.0}
    configs = [AgentConfig(name, url, events=_EVENTS, **options) for name, url in agents.items()]
    routes = [Route(f"/{name}", [name]) for name in agents]
    return Cancelling(AgentMiddleware(begin_at_once, agents=configs, routes=routes))


class Cancelling:
    """Cancels the request of the owner that a later request names in ``x-cancel``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._scopes: dict[str, anyio.CancelScope] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if b"x-cancel" in headers:
            self._scopes[headers[b"x-cancel"].decode()].cancel()
            await PlainTextResponse("cancelled")(scope, receive, send)
            return
        with anyio.CancelScope() as cancelling:
            self._scopes[headers.get(OWNER.encode(), b"").decode()] = cancelling
            await self._app(scope, receive, send)


def _serve(app: ASGIApp, listener: socket.socket) -> None:
    print(f"serving on {listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1)).run(sockets=[listener])


def main() -> None:
    """Two workers: this process, and one that is forked from it once the app is made, as servers that preload do."""
    app = app_of(json.loads(sys.argv[1]))
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        # Its parent may be killed.
        threading.Thread(target=lambda: os.read(reader, 1) or os._exit(1), daemon=True).start()
        _serve(app, listeners[1])
        os._exit(0)
    try:
        _serve(app, listeners[0])
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
