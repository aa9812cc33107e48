"""Clients that come and go. They do as little as they can for each response, so that the app is what works."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

import websockets
from websockets.asyncio.client import connect

from .app import AGENTS, OPEN

# Seconds after which what has not come never will.
_PATIENCE: Final = 120.0
# What becomes of a hundred requests.
_KINDS: Final = {
    "hello": 79,
    "take": 6,
    "stream": 4,
    "block": 4,
    "fail": 2,
    "leave": 2,
    "leave mid-stream": 2,
    "leave mid-body": 1,
}
_SHARES, _WEIGHTS = list(_KINDS), list(_KINDS.values())
# Of a hundred: most go past the agent that costs least.
_ROUTES: Final = ["/local"] * 62 + ["/stream"] * 24 + ["/post"] * 8 + [OPEN] * 6
# How websockets end: by the client, by the agent, and by nobody.
_ENDS: Final = ("close", "evil", "vanish")


class Connection(asyncio.Protocol):
    """Sends a request when the last one is answered."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._received = b""
        self._answered: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._answered is not None and not self._answered.done() and _is_whole(self._received):
            self._answered.set_result(int(self._received[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            # There is no such status.
            self._answered.set_result(0)

    async def ask(self, request: bytes) -> int:
        """The status of the whole response; 0 where it was cut, or the connection is gone."""
        if self._transport.is_closing():
            return 0
        self._received = b""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(_PATIENCE):
            return await self._answered

    async def leave(self, request: bytes, after: float) -> None:
        """Send a request, and go away after so many seconds."""
        self._received, self._answered = b"", None
        self._transport.write(request)
        await asyncio.sleep(after)
        self._transport.abort()

    @property
    def open(self) -> bool:
        """Whether another request can go out on it."""
        return not self._transport.is_closing()

    def close(self) -> None:
        """Have done with it."""
        self._transport.abort()


def _is_whole(data: bytes) -> bool:
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        return False
    _, found, rest = head.partition(b"\r\ncontent-length: ")
    return len(body) >= int(rest.partition(b"\r\n")[0]) if found else body.endswith(b"0\r\n\r\n")


def _request(path: str, want: str = "", body: bytes | None = None, length: int | None = None) -> bytes:
    method = "GET" if body is None else "POST"
    lines = [f"{method} {path} HTTP/1.1", "host: test"]
    if want:
        lines.append(f"x-want: {want}")
    if body is not None:
        lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class _Draw(NamedTuple):
    """A request: its kind, its route, and the seconds after which its client leaves, if it does so at any moment."""

    kind: str
    route: str
    moment: float


class Load:
    """So many clients at a time, for one batch of requests and websockets after the other."""

    def __init__(self, port: int, clients: int, chance: random.Random) -> None:
        self._port = port
        self._clients = clients
        self._chance = chance
        #: What has come of everything: statuses, closes, and how often clients were gone.
        self.outcomes: Counter[str] = Counter()

    async def batch(self, requests: int, sessions: int) -> None:
        """Make so many, and leave no connection open."""
        # What they are is drawn beforehand: it does not depend on who is faster.
        todo = iter([self._drawn() for _ in range(requests)])
        talks = iter([(self._chance.choice(_ROUTES), self._chance.choice(_ENDS)) for _ in range(sessions)])
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._clients):
                tasks.create_task(self._client(todo))
            tasks.create_task(self._talker(talks))

    def _drawn(self) -> _Draw:
        kind = self._chance.choices(_SHARES, _WEIGHTS)[0]
        route = f"/{AGENTS[-1]}" if kind == "fail" else self._chance.choice(_ROUTES)
        return _Draw(kind, route, self._chance.uniform(0, 0.01))

    async def _client(self, todo: Iterator[_Draw]) -> None:
        connection: Connection | None = None
        try:
            for draw in todo:
                if connection is None or not connection.open:
                    loop = asyncio.get_running_loop()
                    _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
                self.outcomes[await self._one(connection, draw)] += 1
        finally:
            if connection is not None:
                connection.close()

    async def _one(self, connection: Connection, draw: _Draw) -> str:
        kind, route, moment = draw
        match kind:
            case "take":
                return str(await connection.ask(_request(f"{route}/take", body=b"x" * 2000)))
            case "stream":
                return str(await connection.ask(_request(f"{route}/stream")))
            case "block" | "fail":
                return str(await connection.ask(_request(f"{route}/hello", kind)))
            case "leave":
                await connection.leave(_request(f"{route}/hello", "wait"), 0.005)
            case "leave mid-stream":
                await connection.leave(_request(f"{route}/stream"), moment)
            case "leave mid-body":
                await connection.leave(_request(f"{route}/take", body=b"x", length=1000), 0.005)
            case _:
                return str(await connection.ask(_request(f"{route}/hello")))
        return "gone away"

    async def _talker(self, todo: Iterator[tuple[str, str]]) -> None:
        for route, end in todo:
            try:
                async with asyncio.timeout(_PATIENCE):
                    self.outcomes[f"ws {await self._talk(route, end)}"] += 1
            except websockets.InvalidStatus as exc:
                self.outcomes[f"ws {exc.response.status_code}"] += 1

    async def _talk(self, route: str, end: str) -> str:
        address = f"ws://127.0.0.1:{self._port}{route}/echo"
        # All of it together has its time (`_talker`): no step of it has less.
        patient: dict[str, Any] = {"open_timeout": None, "close_timeout": None}
        async with connect(address, ping_interval=None, compression=None, proxy=None, **patient) as socket:
            try:
                for number in range(3):
                    await socket.send(f"message {number}")
                    await socket.recv()
                if end == "evil":
                    await socket.send("evil")
                    await socket.recv()
                if end == "vanish":
                    await socket.send("and an answer that nobody waits for")
                    socket.transport.abort()
                    return "gone away"
            except websockets.ConnectionClosed as exc:
                return str(exc.rcvd.code if exc.rcvd is not None else 1006)
        return "1000"
