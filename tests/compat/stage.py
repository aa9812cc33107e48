"""A served app whose guard changes from test to test, and what runs in it."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from anyio.lowlevel import checkpoint
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentMiddleware
from tests.support.servers import serve

from .cases import WORDS, pieces

# Seconds after which what has not come is missing.
PATIENCE = 20.0
EVENT = "data: {}\n\n"


class Handlers:
    """Counts the handlers and generators of an app that have begun, and those that have ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.begun = 0
        self.ended = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around what a handler or a generator does."""
        with self._changed:
            self.begun += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.ended += 1
                self._changed.notify_all()

    def all_ended(self, patience: float = 10.0) -> bool:
        """Whether all that have begun have ended, within ``patience`` seconds.

        Frameworks that stop in the middle of a generator leave it to the garbage collector, as for clients that leave.
        """
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with self._changed:
                if self._changed.wait_for(lambda: self.begun == self.ended, 0.1):
                    return True
            gc.collect()
        return False

    async def words(self, event: str = EVENT) -> AsyncIterator[str]:
        """An event for each word."""
        with self.one():
            for word in WORDS:
                yield event.format(word)
                await checkpoint()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The words as a body of pieces."""
        with self.one():
            for piece in pieces():
                yield piece
                await checkpoint()

    async def endless(self, event: str = EVENT) -> AsyncIterator[str]:
        """Events for as long as anybody takes them."""
        with self.one():
            number = 0
            while True:
                yield event.format(WORDS[min(number, 3)])
                number += 1
                await asyncio.sleep(0.02)

    def blocking_words(self) -> Iterator[str]:
        """:meth:`words` for handlers that run in a thread."""
        with self.one():
            for word in WORDS:
                yield EVENT.format(word)

    def blocking_pieces(self) -> Iterator[bytes]:
        """:meth:`pieces` likewise."""
        with self.one():
            yield from pieces()

    def blocking_many(self) -> Iterator[str]:
        """Events for a while. Nobody can end a generator that runs in a thread but itself."""
        with self.one():
            for number in range(20):
                yield EVENT.format(WORDS[min(number, 3)])
                time.sleep(0.01)


class Stage:
    """An app behind a server, for a module's tests. :meth:`guard` puts agents in front of the next requests."""

    def __init__(self, app: ASGIApp, handlers: Handlers) -> None:
        self.app = app
        self.handlers = handlers
        self.url = ""
        self._guarded: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.app if scope["type"] == "lifespan" else self._guarded)(scope, receive, send)

    def guard(self, *agents: AgentConfig, **options: Any) -> None:
        """From now on ``agents`` stand in front of the app; ``options`` are those of :class:`AgentMiddleware`."""
        self._guarded = AgentMiddleware(self.app, agents=agents, **options)


@contextmanager
def staged(make_app: Callable[[Handlers], ASGIApp], **options: Any) -> Iterator[Stage]:
    """Serve what ``make_app`` returns, with uvicorn's ``options``."""
    handlers = Handlers()
    stage = Stage(make_app(handlers), handlers)
    with serve(stage, **options) as url:
        stage.url = url.rstrip("/")
        yield stage
