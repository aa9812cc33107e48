"""External processors that do as a test says, and apps that they guard."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.types import ASGIApp

from asgi_agents import Agent, AgentConfig, AgentMiddleware, EventType
from asgi_agents.serve.grpc.ext_proc import ExtProcService
from asgi_agents.serve.grpc.server import serve_grpc
from asgi_agents.serve.grpc.service import GrpcService, ServedRpc
from asgi_agents.transports import GrpcTransport
from asgi_agents.transports.grpc.ext_proc_answers import CARRIES
from asgi_agents.transports.grpc.ext_proc_messages import messages

Script = Callable[["Stream"], Awaitable[None]]


class Stream:
    """The processor's end of a stream."""

    def __init__(self, rpc: ServedRpc) -> None:
        self.metadata = rpc.metadata
        self._stream = rpc.stream()

    async def next(self) -> Any | None:
        message = await self._stream.receive()
        return None if message is None else messages.ProcessingRequest.FromString(message)

    async def expect(self, kind: str) -> Any:
        """The next message, which is of that kind."""
        message = await self.next()
        assert message is not None
        assert message.WhichOneof("request") == kind
        return getattr(message, kind)

    async def past_heads(self) -> Any:
        """The next message that is no head; heads are answered."""
        while (message := await self.next()) is not None:
            kind = message.WhichOneof("request")
            if not kind.endswith("_headers"):
                break
            await self.say(**{kind: {}})
        return message

    async def say(self, **parts: Any) -> None:
        await self.send(messages.ProcessingResponse(**parts))

    async def send(self, message: Any) -> None:
        await self._stream.send(message if isinstance(message, bytes) else message.SerializeToString())

    async def stream(self, kind: str, data: bytes, last: bool) -> None:
        """Release a part of a body, in FULL_DUPLEX_STREAMED mode."""
        streamed = {"body": data, "end_of_stream": last}
        await self.say(**{kind: {"response": {"body_mutation": {"streamed_response": streamed}}}})


class Processor(GrpcService):
    name = ExtProcService.name

    def __init__(self, script: Script) -> None:
        self.calls = 0
        self.ended = 0
        self._script = script
        self.streams = {"Process": self._process}

    async def _process(self, rpc: ServedRpc) -> None:
        self.calls += 1
        try:
            await self._script(Stream(rpc))
        finally:
            self.ended += 1


@asynccontextmanager
async def serving(service: GrpcService | Agent) -> AsyncIterator[str]:
    """The URL of ``service``."""
    async with anyio.create_task_group() as tasks:
        served = ExtProcService(service) if isinstance(service, Agent) else service
        yield await tasks.start(serve_grpc, served, "127.0.0.1:0")
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def guarded(
    app: ASGIApp,
    address: str,
    events: Iterable[EventType] = CARRIES,
    *,
    body_mode: Any = "streamed",
    **config: Any,
) -> AsyncIterator[AgentMiddleware]:
    """``app``, guarded by the processor at ``address``."""
    transport = GrpcTransport(address, protocol="ext_proc", body_mode=body_mode)
    settings = {"timeout": 10.0, "chunk_timeout": 10.0, **config}
    middleware = AgentMiddleware(app, agents=[AgentConfig("processor", transport, events=events, **settings)])
    try:
        yield middleware
    finally:
        with anyio.CancelScope(shield=True):
            await middleware.manager.shutdown()
