"""gRPC channels, and the calls on them, whatever event loop runs. Messages are bytes: this knows no protocol.

A channel belongs to one event loop. On asyncio it is one of grpc.aio's. On others it is in :class:`AsyncioThread`, and
each message takes a detour through that.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import grpc
import grpc.aio
from anyio import CancelScope

from ...concurrency.background import Signal, asyncio_loop, on_trio
from ...concurrency.cancellation import cancel_requests, raise_swallowed, was_asked_for
from ...concurrency.per_event_loop import PerEventLoop
from ...errors import AgentConnectionError, AgentError, AgentTimeoutError
from ..tls import PemFiles
from ..wire import Receiver, Wire
from .pump import LINGER, MessagePump
from .settings import GrpcSettings, target_of
from .status import error_of, error_of_status, is_provisional
from .thread import AsyncioThread, ThreadedWire

T = TypeVar("T")

Metadata = Sequence[tuple[str, str | bytes]]

# What a stream holds for a reader that is slow, before no more is read: messages, and bytes.
_MANY_MESSAGES: Final = 16
_MANY_BYTES: Final = 1024 * 1024
# How often at least and at most, and for how many seconds, is waited until gRPC's library has let go of calls.
_FEWEST_TURNS: Final = 2
_TURNS: Final = 50
_TURN: Final = 0.02
# What a task of grpc.aio is called that waits for the end of a call.
_WATCHER: Final = "_handle_status_once_received"
# The streams of an event loop that have not ended. They refer to it.
_streams: Final = WeakKeyDictionary[asyncio.AbstractEventLoop, WeakSet[Any]]()
# Seconds for another attempt to connect.
_AGAIN: Final = 0.5
_LOOK: Final = 0.005
# How often a status is asked for that may not be the server's, and the seconds between.
_ATTEMPTS: Final = 5
_PAUSE: Final = 0.02


class StreamWire(Wire, Protocol):
    """A Wire whose pieces are messages, on a call in both directions."""

    async def catch_up(self) -> None:
        """Wait until the receiver has what has come."""
        ...

    def end(self) -> None:
        """Send no more than what was written. The peer may still send."""
        ...


class Channel(Protocol):
    """The calls to one address, on one event loop. It connects when it is first used, and again when it has to."""

    @property
    def closed(self) -> bool:
        """Whether it is closed, or about to be. That a call ends in order then says nothing of the server."""
        ...

    async def unary(self, method: str, request: bytes, *, deadline: float = math.inf, metadata: Metadata = ()) -> bytes:
        """Send one message and return the answer.

        :param method: ``/package.Service/Method``.
        :param deadline: a moment on :func:`time.monotonic`; the server is told as well.
        :raises AgentError: for every status but OK; which, says :mod:`.status`.
        """
        ...

    def wire(self, method: str, receiver: Receiver, *, metadata: Metadata = ()) -> StreamWire:
        """Begin a call with messages in both directions, which are handed to ``receiver`` as they come.

        ``connection_lost`` gets an :class:`AgentError`, or None where the server has ended the call in order.
        """
        ...

    def stream(self, method: str, *, metadata: Metadata = ()) -> "BidiStream":
        """Begin a call with messages in both directions, to be sent and received by tasks."""
        return BidiStream(partial(self.wire, method, metadata=metadata))

    async def ready(self, deadline: float = math.inf) -> None:
        """Wait until it is connected.

        :raises AgentConnectionError: it is not by ``deadline``, or an attempt has failed.
        """
        ...

    async def aclose(self) -> None:
        """End all calls, and close."""
        ...


class BidiStream:
    """A call with messages in both directions. Any task may send and one may receive; each can be cancelled.

    Cancelling :meth:`receive` loses no message and ends no call. What comes while nobody receives is kept, and when
    there is much of it the peer has to wait.

    :param open_wire: begins the call, or takes part in one that has begun, at the serving end.
    """

    def __init__(self, open_wire: Callable[[Receiver], StreamWire]) -> None:
        self._messages: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._arrived: Signal | None = None
        self._over = False
        self._fault: Exception | None = None
        self._wire = open_wire(self)

    async def send(self, message: bytes) -> None:
        """Send ``message``. Suspends only where the peer is slow to read.

        :raises AgentError: the call is over.
        """
        if self._fault is not None:
            raise self._fault
        # A client that sends no more may still be sent something.
        if self._wire.closed:
            raise AgentConnectionError("the call is over")
        self._wire.write(message)
        if self._wire.congested:
            await self._wire.drain()

    async def receive(self) -> bytes | None:
        """The next message; None once the peer sends no more: a server has ended the call with OK.

        :raises AgentError: the call has ended otherwise.
        """
        while not self._messages:
            if self._over:
                if self._fault is not None:
                    raise self._fault
                return None
            self._arrived = Signal(asyncio_loop())
            await self._arrived
        message = self._messages.popleft()
        self._held -= len(message)
        if self._paused and len(self._messages) < _MANY_MESSAGES and self._held < _MANY_BYTES:
            self._paused = False
            self._wire.resume_reading()
        return message

    async def end(self) -> None:
        """Send no more. The server may still."""
        self._wire.end()

    def cancel(self) -> None:
        """End the call at once, if it isn't over. May be called at any time."""
        self._wire.abort()

    async def wait_closed(self) -> None:
        """Wait until nothing of the call is left."""
        await self._wire.wait_closed()

    # What the wire calls

    def data_received(self, data: bytes) -> None:
        self._messages.append(data)
        self._held += len(data)
        if len(self._messages) >= _MANY_MESSAGES or self._held >= _MANY_BYTES:
            self._paused = True
            self._wire.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._fault = exc
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None


class Channels:
    """The channels to one address: one for each event loop, closed with that."""

    def __init__(self, settings: GrpcSettings, index: int = 0) -> None:
        address = settings.addresses[index]
        self._channels: PerEventLoop[Channel] = PerEventLoop(partial(open_channel, settings, target_of(address)))

    async def get(self) -> Channel:
        """The channel of the running event loop."""
        return self._channels.peek() or await self._channels.get()

    async def aclose(self) -> None:
        """Close the channel of the running event loop. A later :meth:`get` opens another."""
        await self._channels.aclose()

    async def aclose_everywhere(self) -> None:
        """Close the channels of all event loops, and wait for that of the running one."""
        await self._channels.aclose_everywhere()


def open_channel(settings: GrpcSettings, target: str, authority: str = "") -> Channel:
    """A channel of the running event loop.

    :param authority: host and port that the server is told, and whose certificate it has to have; empty: the target's.
    """
    return (ThreadedChannel if on_trio() else AsyncioChannel)(settings, target, authority)


class _ClientCall:
    """A :class:`MessageCall`.

    :param on_cut_short: called where it is ended while gRPC's library is about something of it.
    """

    ends_with_us = False
    linger = LINGER

    def __init__(self, call: Any, on_cut_short: Callable[[], object]) -> None:
        self._call = call
        self._on_cut_short = on_cut_short
        self._status: tuple[grpc.StatusCode, str] | None = None
        call.add_done_callback(self._note_status)

    async def read(self) -> bytes | None:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as exc:
            fault = await self._error(exc)
            if fault is None:
                return None
            raise fault from None
        except asyncio.CancelledError:
            self._on_cut_short()
            if was_asked_for():
                raise
            # This is how grpc.aio tells of a call that was cancelled in this process.
            raise AgentConnectionError("the call was cancelled") from None
        return None if message is grpc.aio.EOF else message

    def _note_status(self, call: Any) -> None:
        """The call has a status. That of the server is kept, whether it comes first or last.

        Where a message can't be sent because the call has ended, grpc.aio makes a status of that, too.
        """
        code, details = _now(call.code()), _now(call.details()) or ""
        if code is not None and not is_provisional(code, details):
            self._status = code, details

    async def _error(self, exc: grpc.aio.AioRpcError) -> AgentError | None:
        """How the server has ended the call; None: in order."""
        for _ in range(_ATTEMPTS):
            if self._status is not None:
                if self._status[0] is grpc.StatusCode.OK:
                    return None
                return error_of_status(*self._status)
            if not is_provisional(exc.code(), exc.details()):
                break
            await asyncio.sleep(_PAUSE)
            self._note_status(self._call)
        return error_of(exc)

    async def begin(self) -> None:
        pass

    async def write(self, message: bytes) -> bool:
        return await self._unless_over(self._call.write(message))

    async def end(self) -> None:
        await self._unless_over(self._call.done_writing())

    async def _unless_over(self, step: Any) -> bool:
        try:
            await step
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        except asyncio.CancelledError:
            self._on_cut_short()
            if was_asked_for():
                raise
            return False
        return True

    def cancel(self) -> None:
        if self._call.cancel():
            self._on_cut_short()


def _now(coroutine: Coroutine[Any, Any, T]) -> T | None:
    """The result of a coroutine that need not wait for it; None where it has to."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    return None


async def _settled() -> None:
    """Wait until gRPC's library has let go of calls that were ended while they were under way.

    It tells the event loop of that by and by. Where the event loop has ended by then, it is an error that is logged on
    another event loop.
    """
    loop = asyncio.get_running_loop()
    for turn in range(_TURNS):
        await asyncio.sleep(_TURN)
        # What a task is made of may be anything that can be awaited.
        watchers = sum(_WATCHER in getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())
        # Streams of other channels go on.
        if turn + 1 >= _FEWEST_TURNS and watchers <= sum(not call.done() for call in _streams.get(loop, ())):
            return


class AsyncioChannel(Channel):
    """A :class:`Channel` of asyncio's event loop."""

    def __init__(self, settings: GrpcSettings, target: str, authority: str = "") -> None:
        options = [*settings.options, *settings.in_the_name_of(authority)]
        if settings.tls is None:
            self._channel = grpc.aio.insecure_channel(target, options)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials(settings.tls), options)
        self._unary: dict[str, Any] = {}
        self._streams: dict[str, Any] = {}
        self._pumps: set[MessagePump] = set()
        self._closing = False
        # Whether anything was ended that was under way.
        self._cut_short = False
        self._unary_calls = 0

    async def unary(self, method: str, request: bytes, *, deadline: float = math.inf, metadata: Metadata = ()) -> bytes:
        timeout = None if deadline == math.inf else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            raise AgentTimeoutError("no answer")
        call = self._unary.get(method)
        if call is None:
            call = self._unary[method] = self._channel.unary_unary(method)
        requests = cancel_requests()
        self._unary_calls += 1
        try:
            answer: bytes = await call(request, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as exc:
            raise error_of(exc) from None
        except grpc.aio.UsageError:
            raise AgentConnectionError("the channel was closed") from None
        except asyncio.CancelledError:
            self._note_cut_short()
            # It is one of grpc.aio's own, in which a cancel scope does not know the one that it has asked for.
            await raise_swallowed(requests)
            raise AgentConnectionError("the call was cancelled") from None
        finally:
            self._unary_calls -= 1
        return answer

    def wire(self, method: str, receiver: Receiver, *, metadata: Metadata = ()) -> MessagePump:
        return self.pump(method, receiver, metadata)

    def pump(self, method: str, receiver: Receiver, metadata: Metadata) -> MessagePump:
        """As :meth:`wire`."""
        call = self._streams.get(method)
        if call is None:
            call = self._streams[method] = self._channel.stream_stream(method)
        try:
            stream = call(metadata=metadata)
        except grpc.aio.UsageError:
            raise AgentConnectionError("the channel was closed") from None
        _streams.setdefault(asyncio.get_running_loop(), WeakSet()).add(stream)
        pump = MessagePump(_ClientCall(stream, self._note_cut_short), receiver, pass_through=self._pass_through)
        self._pumps = {each for each in self._pumps if not each.closed}
        self._pumps.add(pump)
        return pump

    async def _pass_through(self) -> None:
        # That its state is not this one comes by the queue by which messages come, and behind them.
        with suppress(grpc.aio.UsageError):
            await self._channel.wait_for_state_change(grpc.ChannelConnectivity.SHUTDOWN)

    def _note_cut_short(self) -> None:
        self._cut_short = True

    async def ready(self, deadline: float = math.inf) -> None:
        try:
            await self._ready(deadline)
        except grpc.aio.UsageError:
            raise AgentConnectionError("the channel was closed") from None

    async def _ready(self, deadline: float) -> None:
        # By looking again and again: what waits for a change in gRPC's library can't be cancelled.
        patience = time.monotonic() + _AGAIN
        while (state := self._channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            failed = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                raise AgentConnectionError("the channel was closed")
            now = time.monotonic()
            # One that has failed may be trying again in this moment.
            if now >= deadline or (failed and now >= patience):
                raise AgentConnectionError("it can't be reached" if failed else "it can't be reached in time")
            if not failed:
                patience = now + _AGAIN
            await asyncio.sleep(_LOOK)

    @property
    def closed(self) -> bool:
        return self._closing

    async def aclose(self) -> None:
        self._closing = True
        pumps, self._pumps = self._pumps, set()
        # It takes a moment, whatever the peer does, and what is cut short is never let go of.
        with CancelScope(shield=True):
            for pump in pumps:
                pump.abort()
            for pump in pumps:
                await pump.wait_closed()
            if self._unary_calls:
                # They are cancelled, and learn of it later.
                self._note_cut_short()
            await self._channel.close()
            if self._cut_short:
                await _settled()


class ThreadedChannel(Channel):
    """A :class:`Channel` of any other event loop."""

    def __init__(self, settings: GrpcSettings, target: str, authority: str = "") -> None:
        self._thread = AsyncioThread.acquire()
        self._open: Callable[[], AsyncioChannel] | None = partial(AsyncioChannel, settings, target, authority)
        self._made: AsyncioChannel | None = None
        self._wires: set[ThreadedWire] = set()

    async def unary(self, method: str, request: bytes, *, deadline: float = math.inf, metadata: Metadata = ()) -> bytes:
        self._check()
        return await self._thread.run(
            lambda: self._channel().unary(method, request, deadline=deadline, metadata=metadata)
        )

    def wire(self, method: str, receiver: Receiver, *, metadata: Metadata = ()) -> ThreadedWire:
        self._check()
        wire = ThreadedWire(self._thread, lambda receiver: self._channel().pump(method, receiver, metadata), receiver)
        self._wires = {each for each in self._wires if not each.closed}
        self._wires.add(wire)
        return wire

    async def ready(self, deadline: float = math.inf) -> None:
        self._check()
        await self._thread.run(lambda: self._channel().ready(deadline))

    @property
    def closed(self) -> bool:
        return self._open is None

    async def aclose(self) -> None:
        if self.closed:
            return
        self._open = None
        thread = self._thread
        try:
            # Also where an event loop ends, and cancels all that it closes.
            with CancelScope(shield=True):
                await thread.run(self._close)
                for wire in self._wires:
                    await wire.wait_closed()
        finally:
            thread.release()

    async def _close(self) -> None:
        """In the thread."""
        if self._made is not None:
            await self._made.aclose()

    def _check(self) -> None:
        if self.closed:
            raise AgentConnectionError("the channel was closed")

    def _channel(self) -> AsyncioChannel:
        """In the thread: the channel, made when it is first needed."""
        if self._made is None:
            if self._open is None:
                raise AgentConnectionError("the channel was closed")
            self._made = self._open()
        return self._made


def credentials(tls: PemFiles) -> grpc.ChannelCredentials:
    """What gRPC's library makes of files in PEM."""
    return grpc.ssl_channel_credentials(tls.authorities, tls.key, tls.certificate)
