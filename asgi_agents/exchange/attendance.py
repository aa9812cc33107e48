"""Ends what agents do for a client that has left before its app is called.

While the app runs, it reads its messages, and hears of a client that leaves. Before that nobody reads, and agents would
be asked to the end for nobody, and keep their permits so long. So where agents have not answered after
:data:`WATCH_AFTER` seconds, messages are read ahead, and kept for who reads next.

No more is read than it takes: of a body that is not complete one message, for the rest of it has to stay with the
server. What the client does behind that can't be known.
"""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from threading import Lock
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary, ref

import anyio
from starlette.types import Message, Receive, Scope

from ..concurrency.background import on_trio
from .interruption import Interruption
from .scope import header, headers_of

T = TypeVar("T")

#: Seconds. Most agents have answered by then, and cost no task.
WATCH_AFTER: Final = 0.1


class Attendance:
    """Sees whether the client of an HTTP request is still there while its agents are asked.

    :param source: the server's ``receive``. Nobody else may read it meanwhile.
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
        "_source",
        "_task",
        "_waiter",
        "left",
    )

    def __init__(self, source: Receive, *, head: Scope | None = None, complete: bool = False) -> None:
        self._source = source
        self._head = head
        self._complete = complete
        self._kept: list[Message] = []
        self._error: Exception | None = None
        self._interruption: Interruption | None = None
        # On asyncio: who waits, and its context; what reads ahead.
        self._waiter: asyncio.Task[Any] | None = None
        # How often others had cancelled it when it began to wait.
        self._cancellations = 0
        self._context: Context | None = None
        self._task: asyncio.Task[None] | None = None
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
        watches = _watches(loop)
        watches.add(self, loop)
        try:
            while True:
                try:
                    sent = yield awaited
                except GeneratorExit:
                    self._abandon()
                    call.close()
                    raise
                except BaseException as exc:
                    awaited = call.throw(exc)
                else:
                    awaited = call.send(sent)
        except StopIteration as done:
            result = done.value
        except asyncio.CancelledError:
            if self._interruption is None or not (yield from self._interruption.is_ours().__await__()):
                raise
            return None
        finally:
            watches.discard(self)
            self._waiter = self._context = None
            if self._task is not None:
                yield from self._stop_reading(self._task).__await__()
        return None if self.left else result

    def begin(self) -> None:
        """The call takes long: read ahead, on asyncio."""
        # It cancels the task: a scope would be entered within those that the call has entered.
        self._interruption = Interruption()
        self._interruption.begin(self._waiter, self._cancellations)
        self._task = asyncio.get_running_loop().create_task(self._watch(), context=self._context)

    async def _stop_reading(self, task: "asyncio.Task[None]") -> None:
        assert self._interruption is not None
        self._interruption.end()
        task.cancel()
        # Nobody may read beside it.
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task])
        self._task = None

    def _abandon(self) -> None:
        """Nobody waits any more, nor can: the coroutine is closed."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _wait_on_trio(self, call: Coroutine[Any, Any, T]) -> T | None:
        self._interruption = Interruption()
        watch: _TrioWatch | None = None

        async def waiting() -> T:
            nonlocal watch
            try:
                awaited = call.send(None)
            except StopIteration as done:
                result: T = done.value
                return result
            watch = _TrioWatch(self._watch)
            return await _resumed(call, awaited)

        try:
            result = await self._interruption.wait_for(waiting)
        finally:
            if watch is not None:
                await watch.end()
        return None if self.left else result

    @property
    def remaining(self) -> Receive:
        """The ``receive`` for who reads next: the server's own, where nothing was read ahead."""
        return self.receive if self._kept or self._error is not None else self._source

    async def receive(self) -> Message:
        """``receive``, with what was read ahead before what follows it."""
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

    async def _watch(self) -> None:
        if self._head is not None and header(headers_of(self._head), b"expect") is not None:
            return
        try:
            while not self._kept or self._complete:
                complete = self._complete
                message = self._noted(await self._source())
                self._kept.append(message)
                if message["type"] == "http.disconnect":
                    self.left = True
                    assert self._interruption is not None
                    self._interruption.interrupt()
                    return
                if complete:
                    # Whatever that is, it is for the app.
                    return
        except Exception as exc:
            # The server's: who reads next meets it.
            self._error = exc


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
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._due:
            attendance, due = next(iter(self._due.items()))
            if due > now:
                loop.call_later(due - now, self._fire, context=Context())
                return
            del self._due[attendance]
            attendance.begin()
        self._armed = False


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


class _TrioWatch:
    """A task that begins :data:`WATCH_AFTER` seconds after it was made, in the context of who has made it.

    It is in no nursery: one that is opened once the call has begun would be left before the call's own scopes are.
    """

    __slots__ = ("_ended", "_function", "_scope")

    def __init__(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        import trio

        self._function = function
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        trio.lowlevel.spawn_system_task(self._run, context=copy_context())

    async def end(self) -> None:
        """End it, and wait until it has ended: nobody may read beside it."""
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()

    async def _run(self) -> None:
        try:
            with self._scope:
                await anyio.sleep(WATCH_AFTER)
                await self._function()
        finally:
            self._ended.set()


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
