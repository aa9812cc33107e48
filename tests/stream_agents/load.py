"""Clients that send one request after the other, to a real server."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from .processes import PATIENCE, AgentProcess, until

# Seconds that a client takes to think.
_PAUSE = 0.01


class Reply(NamedTuple):
    """How one request went. ``agent`` is the process that has signed the response, ``fault`` why there is none."""

    path: str
    status: int
    agent: int | None
    began: float
    ended: float
    fault: str = ""


def signed(reply: Reply) -> bool:
    """Whether the agent was asked."""
    return reply.agent is not None


def signed_by(agent: AgentProcess) -> Callable[[Reply], bool]:
    """Whether this process of the agent was asked."""
    pid = agent.pid
    return lambda reply: reply.agent == pid


def unsigned(reply: Reply) -> bool:
    """Whether the app was reached without the agent."""
    return reply.status == 200 and reply.agent is None


class Load:
    """So many clients for each path, from the first line inside to the last."""

    def __init__(self, url: str, paths: Sequence[str], *, clients: int) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._host, self._port = parts.hostname, parts.port
        self._paths = paths
        self._clients = clients
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="clients")
        self.replies: list[Reply] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()

    def since(self, moment: float, path: str = "") -> list[Reply]:
        """The replies to requests that began at ``moment`` or later, to ``path`` only if there is one."""
        found = []
        # The latest are few, the others may be many.
        for reply in reversed(self.replies):
            if reply.ended < moment:
                break
            if reply.began >= moment and path in ("", reply.path):
                found.append(reply)
        return found

    def wait_for(self, wanted: Callable[[Reply], bool], *, of: str, count: int = 1, patience: float = PATIENCE) -> None:
        """Wait until ``count`` requests to ``of``, all begun from now on, have got such a reply."""
        now = time.monotonic()
        until(
            lambda: sum(map(wanted, self.since(now, of))) >= count,
            patience=patience,
            told=lambda: f"{of}: {Counter((reply.status, reply.agent) for reply in self.since(now, of))}",
        )

    def wait_for_one(self, wanted: Callable[[Reply], bool], *, of: str) -> None:
        """Wait until a request to ``of`` gets such a reply, which may have begun before."""
        now = time.monotonic()
        until(lambda: any(reply.ended >= now and reply.path == of and wanted(reply) for reply in self.replies))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._clients):
                tasks.create_task(self._client(self._paths[number % len(self._paths)]))

    async def _client(self, path: str) -> None:
        while not self._stopping:
            began = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE):
                    reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    while not self._stopping:
                        began = time.monotonic()
                        async with asyncio.timeout(PATIENCE):
                            status, agent = await _ask(reader, writer, path)
                        self.replies.append(Reply(path, status, agent, began, time.monotonic()))
                        await asyncio.sleep(_PAUSE)
                finally:
                    writer.close()
            except (OSError, EOFError, TimeoutError) as exc:
                self.replies.append(Reply(path, 0, None, began, time.monotonic(), repr(exc)))
                await asyncio.sleep(_PAUSE)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> tuple[int, int | None]:
    writer.write(f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    first, *lines = head.splitlines()
    headers = dict(line.split(": ", 1) for line in lines if line)
    await reader.readexactly(int(headers["content-length"]))
    return int(first.split()[1]), int(headers["x-agent"]) if "x-agent" in headers else None
