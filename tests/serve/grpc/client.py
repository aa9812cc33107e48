"""A client of the agent protocol over gRPC by the published numbers, of grpcio's other API."""

import queue
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import grpc

from asgi_agents import Agent
from asgi_agents.serve.grpc.server import serve_grpc
from asgi_agents.serve.grpc.service import GrpcService
from tests.support.wire_fields import Fields, message, read

PROCESS = "/zentinel.agent.v2.AgentServiceV2/ProcessStream"
HANDSHAKE = message((1, message((1, b"\x02\x01"), (2, "zentinel-proxy"), (3, "0.6"), (4, "{}"))))


class RawStream:
    """Sends messages, and gives those that come, one at a time."""

    def __init__(self, channel: Any) -> None:
        self._unsent: queue.Queue[bytes | None] = queue.Queue()
        self._came: queue.Queue[bytes | grpc.RpcError | None] = queue.Queue()
        self._call = channel.stream_stream(PROCESS)(iter(self._unsent.get, None))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for data in self._call:
                self._came.put(data)
            self._came.put(None)
        except grpc.RpcError as exc:
            self._came.put(exc)

    def send(self, *messages: bytes) -> None:
        for data in messages:
            self._unsent.put(data)

    def end(self) -> None:
        self._unsent.put(None)

    def cancel(self) -> None:
        self._call.cancel()

    async def next(self) -> tuple[int, Fields] | grpc.StatusCode | None:
        """The field of the next ``AgentToProxy`` that is set, and its fields; the status where it isn't OK."""
        came = await anyio.to_thread.run_sync(partial(self._came.get, timeout=60))
        if isinstance(came, grpc.RpcError):
            code: grpc.StatusCode = came.code()
            return code
        if came is None:
            return None
        [(kind, [value])] = read(came).items()
        return kind, read(value)

    async def message(self) -> tuple[int, Fields]:
        found = await self.next()
        assert isinstance(found, tuple), found
        return found

    async def answer(self) -> Fields:
        kind, fields = await self.message()
        assert kind == 2
        return fields

    async def introduce(self) -> Fields:
        """Shake hands; the answer. The health that follows is read as well."""
        self.send(HANDSHAKE)
        kind, fields = await self.message()
        assert kind == 1
        if fields.get(3) == [1]:
            kind, health = await self.message()
            assert (kind, health[2]) == (3, [1])
        return fields


class Served:
    """An agent that is served."""

    def __init__(self, address: str, shutdown: anyio.Event) -> None:
        self.address = address
        self.shutdown = shutdown
        self._channels: list[Any] = []

    def channel(self) -> Any:
        channel = grpc.insecure_channel(self.address.replace("unix://", "unix:").removeprefix("grpc://"))
        self._channels.append(channel)
        return channel

    def stream(self) -> RawStream:
        return RawStream(self.channel())

    async def greeted(self) -> RawStream:
        stream = self.stream()
        await stream.introduce()
        return stream

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


@asynccontextmanager
async def serving(
    services: Agent | GrpcService | Sequence[Agent | GrpcService], bind: str = "127.0.0.1:0", **settings: Any
) -> AsyncIterator[Served]:
    shutdown = anyio.Event()
    async with anyio.create_task_group() as tasks:
        start = partial(serve_grpc, services, bind, shutdown=shutdown, **settings)
        served = Served(await tasks.start(start), shutdown)
        try:
            yield served
        finally:
            served.close()
            tasks.cancel_scope.cancel()


def head(correlation_id: str = "c", **headers: str) -> bytes:
    """A ``ProxyToAgent`` with the head of a request."""
    metadata = message((1, correlation_id), (2, "r"), (3, "192.0.2.1"), (4, 7), (6, "HTTP/1.1"), (10, 1767323045678))
    fields = [(5, message((1, name), (2, value))) for name, value in headers.items()]
    return message((2, message((1, metadata), (2, "GET"), (3, "/a?b"), (4, "HTTP/1.1"), *fields)))


def chunk(correlation_id: str = "c", data: bytes = b"x", kind: int = 3) -> bytes:
    return message((kind, message((1, correlation_id), (3, data), (4, 1), (6, len(data)))))


def names(requests: Iterator[Fields]) -> list[str]:
    return [str(fields[1][0], "utf-8") for fields in requests]
