"""The part of Envoy in its external processing: messages on a stream, one after the other."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from asgi_agents import Agent
from asgi_agents.serve.grpc.ext_proc import ExtProcService
from asgi_agents.serve.grpc.server import serve_grpc
from asgi_agents.transports.grpc.channel import BidiStream, Channel, open_channel
from asgi_agents.transports.grpc.ext_proc_messages import METHOD, ProcessingMode, Side, header_map, messages, struct
from asgi_agents.transports.grpc.settings import GrpcSettings
from asgi_agents.transports.grpc.transport import GrpcTransport

HEAD = {":method": "POST", ":path": "/orders?x=1", ":authority": "shop.example", ":scheme": "https"}
SECONDS = 10.0


class Proxy:
    """One exchange.

    :param mode: of both bodies. None: the server is not told.
    """

    def __init__(
        self, channel: Channel, mode: str | None = "STREAMED", metadata: Sequence[tuple[str, str]] = ()
    ) -> None:
        self._stream = BidiStream(lambda receiver: channel.wire(METHOD, receiver, metadata=metadata))
        self._mode = mode
        self._begun = False

    async def send(self, *, observe: bool = False, attributes: Mapping[str, Any] | None = None, **parts: Any) -> None:
        request = messages.ProcessingRequest(observability_mode=observe, **parts)
        if not self._begun and self._mode is not None:
            mode = ProcessingMode.BodySendMode.Value(self._mode)
            request.protocol_config.request_body_mode = request.protocol_config.response_body_mode = mode
        if attributes is not None:
            request.attributes["envoy.filters.http.ext_proc"].CopyFrom(struct(attributes))
        self._begun = True
        await self._stream.send(request.SerializeToString())

    async def receive(self) -> Any | None:
        """What the server says; None: it has ended the stream in order."""
        with anyio.fail_after(SECONDS):
            message = await self._stream.receive()
        return None if message is None else messages.ProcessingResponse.FromString(message)

    async def ask(self, **parts: Any) -> Any:
        await self.send(**parts)
        answer = await self.receive()
        assert answer is not None
        return answer

    async def end(self) -> None:
        await self._stream.end()

    def cancel(self) -> None:
        self._stream.cancel()

    # Messages

    async def request(self, headers: Mapping[str, str] | None = None, *, ends: bool = False, **more: Any) -> None:
        await self.send(request_headers=head({**HEAD, **(headers or {})}, ends=ends), **more)

    async def response(
        self, headers: Mapping[str, str] | None = None, *, status: int = 200, ends: bool = False
    ) -> None:
        await self.send(response_headers=head({":status": str(status), **(headers or {})}, ends=ends))

    async def body(self, side: Side, data: bytes, last: bool) -> None:
        part: dict[str, Any] = {f"{side.value}_body": {"body": data, "end_of_stream": last}}
        await self.send(**part)

    async def streamed(self, side: Side) -> bytes:
        """All of a body that is released, to its end."""
        found = b""
        while True:
            answer = await self.receive()
            assert answer is not None
            streamed = getattr(answer, f"{side.value}_body").response.body_mutation.streamed_response
            found += bytes(streamed.body)
            if streamed.end_of_stream:
                return found


def head(headers: Mapping[str, str], *, ends: bool = False) -> Any:
    pairs = [(name, value.encode("latin-1")) for name, value in headers.items()]
    return messages.HttpHeaders(headers=header_map(pairs), end_of_stream=ends)


def changes(mutation: Any) -> dict[str, list[str]]:
    """What a header mutation sets and adds; removed names have no values."""
    found: dict[str, list[str]] = {name: [] for name in mutation.remove_headers}
    for option in mutation.set_headers:
        found.setdefault(option.header.key, []).append(option.header.raw_value.decode("latin-1"))
    return found


def settings_of(address: str, **settings: Any) -> GrpcSettings:
    return GrpcTransport(address, protocol="ext_proc", **settings)._settings


@asynccontextmanager
async def serving(agent: Agent, **settings: Any) -> AsyncIterator[Channel]:
    """A channel to ``agent``, served as an external processor."""
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(serve_grpc, ExtProcService(agent, **settings), "127.0.0.1:0")
        channel = open_channel(settings_of(address), address.replace("grpc://", "dns:///"))
        try:
            yield channel
        finally:
            with anyio.CancelScope(shield=True):
                await channel.aclose()
            tasks.cancel_scope.cancel()
