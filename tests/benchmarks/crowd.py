"""Many open websockets, on each of which little happens: ``python -m tests.benchmarks.crowd PORT``.

Reads lines: how many are to be open, and for how many seconds to send one message after the other, each on the next of
them, waiting for its echo. Answers each with a line: the messages per second, which is 0 for no seconds, or what went
wrong.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import uvloop

from .client import LoadError, WebSocketClient
from .descriptors import raise_limit

MESSAGE: Final = 64
# How many handshakes are under way at a time.
_AT_ONCE: Final = 32


class _Member(WebSocketClient):
    """Says nothing by itself."""

    def __init__(self, failed: asyncio.Future[None]) -> None:
        super().__init__([], failed, MESSAGE)
        self.opened: asyncio.Future[None] = failed.get_loop().create_future()
        self.on_answer: Callable[[], None]

    def _opened(self) -> None:
        self.opened.set_result(None)

    def _answered(self) -> None:
        self.on_answer()


class Crowd:
    def __init__(self, port: int) -> None:
        self._port = port
        self._members: list[_Member] = []
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def grow(self, count: int) -> None:
        while len(self._members) < count:
            await asyncio.gather(*(self._join() for _ in range(min(_AT_ONCE, count - len(self._members)))))

    async def rate(self, seconds: float) -> float:
        """Messages per second, with one under way at a time."""
        answered = 0
        turns: Iterator[_Member] = itertools.cycle(self._members)
        ended: asyncio.Future[None] = self._failed.get_loop().create_future()
        until = time.perf_counter() + seconds

        def following() -> None:
            nonlocal answered
            answered += 1
            if time.perf_counter() < until:
                next(turns).ask()
            elif not ended.done():
                ended.set_result(None)

        for member in self._members:
            member.on_answer = following
        started = time.perf_counter()
        next(turns).ask()
        await asyncio.wait([ended, self._failed], return_when=asyncio.FIRST_COMPLETED, timeout=seconds + 5)
        elapsed = time.perf_counter() - started
        if self._failed.done():
            self._failed.result()
        if not ended.done():
            raise LoadError("no echo")
        return answered / elapsed

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        _, member = await loop.create_connection(lambda: _Member(self._failed), "127.0.0.1", self._port)
        await asyncio.wait([member.opened, self._failed], return_when=asyncio.FIRST_COMPLETED, timeout=30)
        if not member.opened.done():
            raise LoadError(f"a websocket does not open: {self._failed!r}")
        self._members.append(member)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    crowd = Crowd(port)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        count, seconds = line.split()
        try:
            await crowd.grow(int(count))
            print(await crowd.rate(float(seconds)) if float(seconds) else 0, flush=True)
        except (LoadError, OSError) as exc:
            print(exc, flush=True)


if __name__ == "__main__":
    raise_limit()
    uvloop.run(_serve(int(sys.argv[1])))
