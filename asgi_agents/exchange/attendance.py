"""Ends what agents do for a client that has left before its app is called.

While the app runs, it reads its messages, and hears of a client that leaves. Before that nobody reads, and agents would
be asked to the end for nobody, and keep their permits so long. So where agents have not answered after
:data:`WATCH_AFTER` seconds, messages are read ahead, and kept for who reads next.

No more is read than it takes: of a body that is not complete one message, for the rest of it has to stay with the
server. What the client does behind that can't be known.

A ``receive`` that is under way when the agents have answered is not cancelled: many lose a message that has come just
then, or all that would follow (Starlette's ``BaseHTTPMiddleware``, an asynchronous generator). Who reads next waits for
it. It is cancelled when the request is over.
"""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context, copy_context
from threading import Lock
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary, ref

import anyio
from starlette.types import Message, Receive, Scope, Send

from ..concurrency.background import on_trio
from .interruption import Interruption
from .scope import header, headers_of
from .state import ExchangeState

T = TypeVar("T")

#: Seconds. Most agents have answered by then, and cost no task.
WATCH_AFTER: Final = 0.1


class Attendance:
    """Sees whether the client of an HTTP request is still there while its agents are asked.

    :param source: the server's ``receive``. Nobody else may read it meanwhile.
    :param state: that of the request: when it is closed, what is still read ahead is cancelled. None: :meth:`end` does
        that.
    :param head: the scope, where only the head has been looked at. A client that has sent ``expect: 100-continue`` is
        told to go on when its body is read: not before the verdict on its head, so that nothing is read.
    :param complete: whether all of the body was read.
    :ivar left: whether the client has left.
    """

    __slots__ = (
        "_cancellations",
        "_complete",
        "_context",
        "_error",
        "_head",
        "_interruption",
        "_kept",
        "_reader",
        "_source",
        "_state",
        "_waiter",
        "_waits",
        "left",
    )

    def __init__(
        self,
        source: Receive,
        state: ExchangeState | None = None,
        *,
        head: Scope | None = None,
        complete: bool = False,
    ) -> None:
        self._source = source
        self._state = state
        self._head = head
        self._complete = complete
        self._kept: list[Message] = []
        self._error: Exception | None = None
        self._interruption: Interruption | None = None
        # On asyncio: who waits, how often others had cancelled it when it began to, and its context.
        self._waiter: asyncio.Task[Any] | None = None
        self._cancellations = 0
        self._context: Context | None = None
        # What reads ahead, and whether somebody waits for agents meanwhile.
        self._reader: asyncio.Task[None] | _TrioReader | None = None
        self._waits = False
        self.left = False

    @types.coroutine
    def wait_for(self, call: Coroutine[Any, Any, T]) -> Generator[Any, Any, T | None]:
        """What ``call`` returns; None where the client has left. A call that does not suspend makes no difference."""
        if on_trio():
            return (yield from self._wait_on_trio(call).__await__())
        try:
            awaited = call.send(None)
        except StopIteration as done:
            # As most do that are in the process.
            result: T = done.value
            return result
        # To ask for it takes longer than most of what follows.
        loop = asyncio.get_running_loop()
        self._waiter = waiter = asyncio.current_task(loop)
        assert waiter is not None
        self._cancellations = waiter.cancelling()
        self._context = copy_context()
        self._waits = True
        watches = _watches(loop)
        watches.add(self, loop)
        try:
            result = yield from _resumed(call, awaited)
        except GeneratorExit:
            self.end()
            raise
        except BaseException as exc:
            if not (yield from self._ends_wait(exc).__await__()):
                raise
        finally:
            watches.discard(self)
            self._waits = False
            self._waiter = self._context = None
            if self._interruption is not None:
                self._interruption.end()
                self._interruption = None
        if self._reader is not None:
            self._leave_reading()
        return None if self.left else result

    async def _ends_wait(self, exc: BaseException) -> bool:
        """Whether the call has raised this because the client has left, and for no other reason."""
        interruption = self._interruption
        ours = False
        try:
            if isinstance(exc, asyncio.CancelledError) and interruption is not None:
                ours = await interruption.is_ours()
            return ours
        finally:
            if not ours:
                await self._end_now()

    def begin(self) -> None:
        """The call takes long: read ahead, on asyncio."""
        # It cancels the task: a scope would be entered within those that the call has entered.
        self._interruption = Interruption()
        self._interruption.begin(self._waiter, self._cancellations)
        if self._reader is None:
            self._reader = asyncio.get_running_loop().create_task(self._read(), context=self._context)

    async def _wait_on_trio(self, call: Coroutine[Any, Any, T]) -> T | None:
        self._interruption = Interruption()
        self._waits = True

        async def waiting() -> T:
            try:
                awaited = call.send(None)
            except StopIteration as done:
                result: T = done.value
                return result
            if self._reader is None:
                self._reader = _TrioReader(self._read)
            return await _resumed(call, awaited)

        try:
            result = await self._interruption.wait_for(waiting)
        except BaseException:
            await self._end_now()
            raise
        finally:
            self._waits = False
        self._leave_reading()
        return None if self.left else result

    def _leave_reading(self) -> None:
        """The agents have answered: what reads ahead goes on until it has its message, or the request is over."""
        if isinstance(self._reader, _TrioReader) and not self._reader.reads:
            self.end()
        elif self._reader is not None and self._state is not None and self.end not in self._state.endings:
            self._state.endings += (self.end,)

    def end(self) -> None:
        """Nobody reads any more: cancel what reads ahead, without waiting for it."""
        reader, self._reader = self._reader, None
        if isinstance(reader, _TrioReader):
            if on_trio():
                reader.cancel()
        elif reader is not None:
            # The garbage collector may close a coroutine in any thread. Then the end of its event loop cancels it.
            with suppress(RuntimeError):
                if asyncio.get_running_loop() is reader.get_loop():
                    reader.cancel()

    async def _end_now(self) -> None:
        """Cancel what reads ahead, and wait until it has ended."""
        reader = self._reader
        self.end()
        if reader is not None:
            with anyio.CancelScope(shield=True):
                await _ended(reader)

    @property
    def remaining(self) -> Receive:
        """The ``receive`` for who reads next: the server's own, where nothing was read ahead."""
        ahead = self._kept or self._error is not None or self._reader is not None
        return self.receive if ahead else self._source

    async def receive(self) -> Message:
        """``receive``, with what was read ahead before what follows it."""
        while not self._kept and self._error is None and self._reader is not None:
            # Where this is cancelled, that is not.
            await _ended(self._reader)
        if self._kept:
            return self._kept.pop(0)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._noted(await self._source())

    def _noted(self, message: Message) -> Message:
        if message["type"] == "http.request":
            self._complete = not message.get("more_body", False)
        return message

    async def _read(self) -> None:
        try:
            if self._head is not None and header(headers_of(self._head), b"expect") is not None:
                return
            while self._waits and self._error is None:
                if self._kept and self._kept[-1]["type"] == "http.disconnect":
                    self.left = True
                    if self._state is not None:
                        self._state.departed = True
                    if self._interruption is not None:
                        # Else this was begun by a wait before, and the present one is not watched yet.
                        self._interruption.interrupt()
                    return
                complete = self._complete
                if self._kept and (not complete or self._kept[-1]["type"] != "http.request"):
                    return
                self._kept.append(self._noted(await self._source()))
                if complete and self._kept[-1]["type"] != "http.disconnect":
                    # Whatever that is, it is for the app.
                    return
        except Exception as exc:
            # The server's: who reads next meets it.
            self._error = exc
        finally:
            self._reader = None


async def answer_departed(send: Send) -> None:
    """Answer for the app that is not called. Nobody gets it, but middlewares around wait for a response."""
    with suppress(OSError):
        await send({"type": "http.response.start", "status": 499, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


async def _ended(reader: "asyncio.Task[None] | _TrioReader") -> None:
    """Wait until it has ended. It does not end where this is cancelled."""
    if isinstance(reader, _TrioReader):
        await reader.ended.wait()
    else:
        await asyncio.wait([reader])


class _Watches:
    """Those of one asyncio event loop whose calls wait. All have one timer: to set one takes longer than many calls.

    It refers to no event loop, or else that would never be collected.
    """

    def __init__(self) -> None:
        # When each is to read ahead, on the event loop's clock: those that have waited longest come first.
        self._due: dict[Attendance, float] = {}
        self._armed = False

    def add(self, attendance: Attendance, loop: asyncio.AbstractEventLoop) -> None:
        """Have it read ahead in :data:`WATCH_AFTER` seconds."""
        self._due[attendance] = loop.time() + WATCH_AFTER
        if not self._armed:
            self._armed = True
            loop.call_later(WATCH_AFTER, self._fire, context=Context())

    def discard(self, attendance: Attendance) -> None:
        """Its call is over."""
        self._due.pop(attendance, None)

    def _fire(self) -> None:
        self._armed = False
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._due:
            attendance, due = next(iter(self._due.items()))
            if due > now:
                self._armed = True
                loop.call_later(due - now, self._fire, context=Context())
                return
            del self._due[attendance]
            attendance.begin()


_known: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Watches]] = WeakKeyDictionary()
_knowing: Final = Lock()
# Those of the event loop that asked last: to look them up takes longer.
_latest: tuple[Callable[[], asyncio.AbstractEventLoop | None], _Watches] = (lambda: None, _Watches())


def _watches(loop: asyncio.AbstractEventLoop) -> _Watches:
    global _latest
    latest, watches = _latest
    if latest() is not loop:
        with _knowing:
            watches = _known.setdefault(loop, _Watches())
        _latest = ref(loop), watches
    return watches


class _TrioReader:
    """A task that begins :data:`WATCH_AFTER` seconds after it was made, in the context of who has made it.

    It is in no nursery: one that is opened once the call has begun would be left before the call's own scopes are.

    :ivar reads: whether those seconds have passed.
    """

    __slots__ = ("_function", "_scope", "ended", "reads")

    def __init__(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        import trio

        self._function = function
        self._scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.reads = False
        trio.lowlevel.spawn_system_task(self._run, context=copy_context())

    def cancel(self) -> None:
        self._scope.cancel()

    async def _run(self) -> None:
        try:
            with self._scope:
                await anyio.sleep(WATCH_AFTER)
                self.reads = True
                await self._function()
        finally:
            self.ended.set()


@types.coroutine
def _resumed(call: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """Await ``call``, which has suspended for ``awaited`` already."""
    try:
        while True:
            try:
                sent = yield awaited
            except GeneratorExit:
                call.close()
                raise
            except BaseException as exc:
                awaited = call.throw(exc)
            else:
                awaited = call.send(sent)
    except StopIteration as done:
        result: T = done.value
        return result
