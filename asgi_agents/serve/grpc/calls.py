"""Calls of grpc.aio's server, handed to the methods of services: here, or on an event loop that is not asyncio's."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import grpc
from anyio import CancelScope
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled

from ...concurrency.cancellation import is_of_cancellations, was_asked_for
from ...concurrency.event_loop import EventLoop
from ...errors import AgentConnectionError
from ...transports.grpc.channel import Metadata, StreamWire
from ...transports.grpc.pump import MessagePump
from ...transports.grpc.thread import AsyncioThread, ThreadedWire
from ...transports.wire import Receiver
from .. import held
from . import service
from .service import GrpcService, ServedRpc, StatusError, status_of

# What a type checker sees of these depends on the stubs that it has.
_unary_handler: Final[Any] = grpc.stream_unary_rpc_method_handler
_stream_handler: Final[Any] = grpc.stream_stream_rpc_method_handler

T = TypeVar("T")


class MethodLoop(Protocol):
    """Where methods run. :meth:`run` is called in the thread of grpc.aio's server."""

    async def run(self, method: Callable[[], Awaitable[T]]) -> T:
        """Await ``method()`` there. When this is cancelled, so is that."""
        ...

    def wire(self, open_pump: Callable[[Receiver], MessagePump], receiver: Receiver) -> StreamWire:
        """What carries the messages of a call to a receiver there. Called there."""
        ...


class SameLoop:
    """The event loop of grpc.aio's server."""

    async def run(self, method: Callable[[], Awaitable[T]]) -> T:
        return await method()

    def wire(self, open_pump: Callable[[Receiver], MessagePump], receiver: Receiver) -> StreamWire:
        return open_pump(receiver)


class OtherLoop:
    """The event loop on which this is made, while grpc.aio's server is in ``thread``.

    :param tasks: of that event loop.
    """

    def __init__(self, thread: AsyncioThread, tasks: TaskGroup) -> None:
        self._thread = thread
        self._tasks = tasks
        self._home = EventLoop()

    async def run(self, method: Callable[[], Awaitable[T]]) -> T:
        outcome: asyncio.Future[T] = self._thread.loop.create_future()
        scope: list[CancelScope] = []
        cancelled = False

        def settle(result: T | None, exc: BaseException | None) -> None:
            if outcome.done():
                return
            if exc is None:
                outcome.set_result(result)  # type: ignore[arg-type]
            else:
                outcome.set_exception(exc)

        async def body() -> None:
            result: T | None = None
            fault: BaseException | None = StatusError("CANCELLED", "the call was cancelled")
            try:
                with CancelScope() as own:
                    scope.append(own)
                    if cancelled:
                        own.cancel()
                    result, fault = await method(), None
            # Around the scope, which takes its own cancellation out of a group with what has failed over it. What is
            # left must not get to the tasks of the server, all of which it would end.
            except Exception as exc:
                fault = exc
            except BaseException as exc:
                if not is_of_cancellations(exc):
                    raise
                # Where the server itself was cancelled, nothing but that is left of it.
                await checkpoint_if_cancelled()
                fault = status_of(exc)
            finally:
                self._thread.call(partial(settle, result, fault))

        def cancel() -> None:
            # It may come before the method has begun.
            nonlocal cancelled
            cancelled = True
            if scope:
                scope[0].cancel()

        self._home.call_soon(lambda: self._tasks.start_soon(body))
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            self._home.call_soon(cancel)
            # Or else its exception is said to be never retrieved.
            outcome.cancel()
            raise

    def wire(self, open_pump: Callable[[Receiver], MessagePump], receiver: Receiver) -> StreamWire:
        return ThreadedWire(self._thread, open_pump, receiver)


class _ServerCall:
    """A :class:`MessageCall` at the serving end."""

    ends_with_us = True

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        try:
            message = await self._context.read()
        except asyncio.CancelledError:
            if was_asked_for():
                raise
            raise AgentConnectionError("the client has cancelled the call") from None
        except Exception as exc:
            raise AgentConnectionError(f"the call broke: {type(exc).__name__}") from None
        return None if message is grpc.aio.EOF else message

    @property
    def linger(self) -> float:
        return held.READ_TIMEOUT

    async def begin(self) -> None:
        # With a message, gRPC's library only notes that the headers were sent once that is on its way. A status before
        # then has them a second time, which the library refuses without a word, and the client waits for ever.
        try:
            await self._context.send_initial_metadata(())
        except asyncio.CancelledError:
            if was_asked_for():
                raise
        except Exception:
            # The call is over, as the message will find.
            return

    async def write(self, message: bytes) -> bool:
        try:
            await self._context.write(message)
        except asyncio.CancelledError:
            if was_asked_for():
                raise
            return False
        except Exception:
            return False
        return True

    async def end(self) -> None:
        pass

    def cancel(self) -> None:
        # The call ends when its handler returns.
        pass


class _Rpc(ServedRpc):
    def __init__(self, context: Any, loop: MethodLoop) -> None:
        self.metadata: Metadata = tuple(context.invocation_metadata() or ())
        self.peer = context.peer()
        self._context = context
        self._loop = loop
        # In the thread of grpc.aio's server.
        self.pump: MessagePump | None = None
        #: Whether nobody waits for the end of a pump that is made now.
        self.over = False

    def wire(self, receiver: Receiver, *, half_open: bool = False) -> StreamWire:
        def open_pump(receiver: Receiver) -> MessagePump:
            if self.over:
                raise AgentConnectionError("the call is over")
            self.pump = MessagePump(_ServerCall(self._context), receiver, half_open=half_open)
            return self.pump

        return self._loop.wire(open_pump, receiver)


class _CallLimit:
    """How many calls may be under way at a time."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.taken = 0


class Methods(grpc.GenericRpcHandler):
    """The methods of all services of a server.

    :param most_streams: how many calls with messages in both directions there may be at a time, of all services that
        have no bound of their own.
    """

    def __init__(
        self, services: Mapping[str, GrpcService], loop: MethodLoop, *, most_streams: float = math.inf
    ) -> None:
        self._loop = loop
        self._handlers: dict[str, Any] = {}
        shared = _CallLimit(most_streams)
        for each in services.values():
            for name, unary in each.unary.items():
                self._handlers[f"/{each.name}/{name}"] = _unary_handler(partial(self._unary, unary))
            room = shared if each.most_streams is None else _CallLimit(each.most_streams)
            for name, method in each.streams.items():
                self._handlers[f"/{each.name}/{name}"] = _stream_handler(partial(self._bounded, room, method))

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)

    async def _unary(self, method: Callable[[bytes, Any], Awaitable[bytes]], requests: object, context: Any) -> bytes:
        # gRPC's library has a kind of handler that is called with the message, and waits for that as long as it takes.
        request = await _only_message(context)
        rpc = _Rpc(context, self._loop)
        answer: list[bytes] = []

        async def body() -> None:
            answer.append(await method(request, rpc))

        failure = await self._run(body)
        if failure is not None:
            await _abort(context, failure)
        return answer[0]

    async def _bounded(
        self, room: _CallLimit, method: Callable[[Any], Awaitable[None]], requests: object, context: Any
    ) -> None:
        if room.taken >= room.most:
            await _abort(context, StatusError("RESOURCE_EXHAUSTED", f"{room.most} such calls are under way"))
        room.taken += 1
        try:
            await self._stream(method, requests, context)
        finally:
            room.taken -= 1

    async def _stream(self, method: Callable[[Any], Awaitable[None]], requests: object, context: Any) -> None:
        rpc = _Rpc(context, self._loop)
        failure: StatusError | None = None
        cancelled = True
        try:
            failure = await self._run(lambda: method(rpc))
            cancelled = False
        finally:
            # On another event loop its method may not even have begun.
            rpc.over = True
            pump = rpc.pump
            if pump is not None:
                if cancelled:
                    pump.abort()
                else:
                    # What was written is sent.
                    pump.close()
                await _end_of(pump)
        if failure is None and pump is not None and pump.aborted:
            failure = StatusError("ABORTED", "the server has ended the call")
        # Behind what was written before, which arrives, unless the client is too slow to take it.
        if failure is not None:
            await _abort(context, failure)

    async def _run(self, body: Callable[[], Awaitable[None]]) -> StatusError | None:
        """What the call is to end with, if it has failed."""
        try:
            await self._loop.run(body)
        except Exception as exc:
            return status_of(exc)
        except BaseException as exc:
            if not is_of_cancellations(exc):
                raise
            if was_asked_for():
                # As it is, and not in a group with what has failed over it: gRPC's library does not know those.
                raise asyncio.CancelledError from exc
            # Where a handler ends like this, the library tells neither the client nor the log.
            return status_of(exc)
        return None


async def _end_of(pump: MessagePump) -> None:
    try:
        await pump.wait_closed()
    except asyncio.CancelledError:
        # gRPC's library cancels the task itself, whatever a scope of anyio's shields.
        pump.abort()
        raise


async def _only_message(context: Any) -> bytes:
    """The message of a call that has one. Ends the call where that does not come."""
    message: Any = grpc.aio.EOF
    failure = StatusError("INVALID_ARGUMENT", "it has no message")
    try:
        async with asyncio.timeout(service.BEGIN_TIMEOUT):
            message = await context.read()
    except TimeoutError:
        failure = service.too_late()
    if message is grpc.aio.EOF:
        await _abort(context, failure)
    request: bytes = message
    return request


async def _abort(context: Any, failure: StatusError) -> None:
    await context.abort(grpc.StatusCode[failure.code], failure.details)
