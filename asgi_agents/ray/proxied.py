"""Calls that come to a replica through Serve's gRPC proxy: messages are bytes here, as where an agent is served."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Protocol

import grpc
from ray import serve

from ..agent import Agent
from ..errors import AgentConnectionError, ConfigurationError
from ..serve import held
from ..serve.grpc.service import ServedRpc, StatusError, StreamMethod, UnaryMethod, status_of
from ..transports.grpc.channel import Metadata, StreamWire
from ..transports.grpc.pump import MessagePump
from ..transports.wire import Receiver

# Answers of a stream that wait for Serve to take them. Serve takes them at once, whether or not the client reads.
_MANY: Final = 16


class Encoded(bytes):
    """A message as Serve takes it from a replica."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - as protobuf's messages have it
        """The message itself."""
        return bytes(self)


class CallEndedError(Exception):
    """Ends a stream. Its status is in the call's context: Serve takes it from there."""


class InputStream(Protocol):
    """Ray's ``gRPCInputStream``: the messages that the client sends."""

    async def __anext__(self) -> bytes: ...

    def is_cancelled(self) -> bool:
        """Whether the client has given the call up."""
        ...


class ProxiedRpc(ServedRpc):
    """What is known of a call, and, of one with messages in both directions, these."""

    def __init__(self, context: Any, call: "ProxiedCall | None" = None) -> None:
        self.metadata: Metadata = tuple(context.invocation_metadata())
        self.peer = context.peer()
        self._call = call
        self.pump: MessagePump | None = None

    def wire(self, receiver: Receiver, *, half_open: bool = False) -> StreamWire:
        assert self._call is not None
        self.pump = MessagePump(self._call, receiver, half_open=half_open)
        return self.pump


class ProxiedCall:
    """A :class:`~..transports.grpc.pump.MessageCall` whose answers are taken from :meth:`answers`."""

    ends_with_us = True

    def __init__(self, messages: InputStream) -> None:
        self._messages = messages
        self._waiting: deque[bytes] = deque()
        self._over = False
        self._put = asyncio.Event()
        self._taken = asyncio.Event()

    async def read(self) -> bytes | None:
        try:
            return await self._messages.__anext__()
        except StopAsyncIteration:
            if self._messages.is_cancelled():
                raise AgentConnectionError("the client has cancelled the call") from None
            return None
        except Exception as exc:
            raise AgentConnectionError(f"the call broke: {type(exc).__name__}") from None

    @property
    def linger(self) -> float:
        return held.READ_TIMEOUT

    async def begin(self) -> None:
        pass

    async def write(self, message: bytes) -> bool:
        self._waiting.append(message)
        self._put.set()
        while len(self._waiting) >= _MANY:
            self._taken.clear()
            await self._taken.wait()
        return True

    async def end(self) -> None:
        pass

    def cancel(self) -> None:
        # The call ends when its generator returns.
        pass

    async def answers(self) -> AsyncIterator[bytes]:
        while True:
            while self._waiting:
                yield self._waiting.popleft()
                self._taken.set()
            if self._over:
                return
            self._put.clear()
            await self._put.wait()

    def finish(self) -> None:
        """No more answers come."""
        self._over = True
        self._put.set()


class EnvoyMethods:
    """What Envoy asks: as its authorizer, and as its external processor.

    :ivar check: the method ``Check``. Of an agent that can't be an authorizer, it ends with a status that says why.
    :ivar process: the method ``Process``.
    :raises ConfigurationError: it can be asked neither, or the stubs of Envoy's messages are not installed.
    """

    def __init__(self, agent: Agent, max_concurrency: int) -> None:
        # Imported here: the stubs take long, and come with another extra.
        from ..serve.grpc.ext_authz import ExtAuthzService
        from ..serve.grpc.ext_proc import ExtProcService

        self.process: StreamMethod = ExtProcService(agent, max_concurrency=max_concurrency).streams["Process"]
        self.check: UnaryMethod
        try:
            self.check = ExtAuthzService(agent, max_concurrency=max_concurrency).unary["Check"]
        except ConfigurationError as exc:
            self.check = _refusal("FAILED_PRECONDITION", str(exc))


def _refusal(code: str, details: str) -> Callable[..., Awaitable[Any]]:
    async def refuse(*_: object) -> None:
        raise StatusError(code, details)

    return refuse


#: The methods of a deployment that is not for Envoy.
NOT_FOR_ENVOY: Final = _refusal("UNIMPLEMENTED", "it was deployed without envoy=True")


async def answer_unary(method: UnaryMethod, message: object, context: Any) -> Encoded:
    """What ``method`` answers. A status that it ends with is put into the context, and nothing is raised."""
    try:
        _check_application(context)
        return Encoded(await method(_checked(message), ProxiedRpc(context)))
    except Exception as exc:
        _tell(status_of(exc), context)
        return Encoded()


async def answer_stream(method: StreamMethod, messages: InputStream, context: Any) -> AsyncIterator[Encoded]:
    """What ``method`` answers, piece by piece.

    :raises CallEndedError: it has ended with another status than OK, which is in the context.
    """
    call = ProxiedCall(messages)
    rpc = ProxiedRpc(context, call)

    async def body() -> None:
        _check_application(context)
        await method(rpc)

    task = asyncio.create_task(_run(body, rpc))
    task.add_done_callback(lambda _: call.finish())
    try:
        async for message in call.answers():
            yield Encoded(message)
        try:
            await task
        except Exception as exc:
            status = status_of(exc)
            _tell(status, context)
            raise CallEndedError(str(status)) from None
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _run(body: Callable[[], Awaitable[None]], rpc: ProxiedRpc) -> None:
    cancelled = False
    try:
        await body()
    except asyncio.CancelledError:
        cancelled = True
        raise
    finally:
        pump = rpc.pump
        if pump is not None:
            if cancelled:
                pump.abort()
            else:
                # What was written is sent, also before a failure.
                pump.close()
            await asyncio.shield(asyncio.ensure_future(pump.wait_closed()))
    if pump is not None and pump.aborted:
        raise StatusError("ABORTED", "the server has ended the call")


def _check_application(context: Any) -> None:
    """Where Serve has one application only, it passes on to that what is meant for any other."""
    named, own = context.application(), serve.get_replica_context().app_name
    if named is not None and named != own:
        raise StatusError("NOT_FOUND", f"this is another application, {own!r}")


def _checked(message: object) -> bytes:
    if not isinstance(message, bytes):
        raise StatusError("INTERNAL", "Serve was not told of the method by asgi_agents.ray.services")
    return message


def _tell(status: StatusError, context: Any) -> None:
    context.set_code(grpc.StatusCode[status.code])
    context.set_details(status.details)
