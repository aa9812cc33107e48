"""Real servers on the loopback interface, for tests."""

import asyncio
import contextlib
import importlib
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import WS_PROTOCOLS


def websocket_implementations() -> Iterator[str]:
    """Those of uvicorn's that are installed."""
    for name in ("websockets-sansio", "websockets", "wsproto"):
        with warnings.catch_warnings(), contextlib.suppress(ImportError):
            warnings.simplefilter("ignore")
            importlib.import_module(str(WS_PROTOCOLS[name]).partition(":")[0])
            yield name


@contextmanager
def serve(app: ASGIApp, *, at: tuple[str, int] = ("127.0.0.1", 0), **options: Any) -> Iterator[str]:
    """Run ``app`` with uvicorn in a thread; gives the URL of its root.

    ``options`` are uvicorn's. With ``uds`` the URL's host means nothing. The server listens from the first line inside
    to the last.
    """
    options = {"log_config": None, "timeout_graceful_shutdown": 1} | options
    server = _Server(uvicorn.Config(app, **options))
    sockets = None
    url = "http://agent/"
    if "uds" not in options:
        listener = socket.create_server(at)
        sockets = [listener]
        url = f"http{'s' if 'ssl_certfile' in options else ''}://{at[0]}:{listener.getsockname()[1]}/"
    thread = threading.Thread(target=server.run_in_thread, args=(sockets,), name="uvicorn")
    thread.start()
    try:
        server.ready.wait()
        assert server.started, "uvicorn did not start"
        yield url
    finally:
        server.stop()
        thread.join()


class _Server(uvicorn.Server):
    """Says when it is up, and stops when told rather than at its next tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Event

    def run_in_thread(self, sockets: list[socket.socket] | None) -> None:
        try:
            self.run(sockets=sockets)
        finally:
            self.ready.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self.ready.set()
        await self._stopped.wait()

    def stop(self) -> None:
        if self.started:
            self._loop.call_soon_threadsafe(self._stopped.set)
