"""The one reader of a connection's ``receive``."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.types import Message

from ..concurrency.limiter import Limiter
from .interruption import Interruption


class Inbound:
    """Judges each message once before the app gets it, whoever gives up waiting for it in between.

    The app may cancel its ``receive`` at any time and call it again: a message that was read is never lost, and its
    judgement, once begun, goes on. That takes a task of its own where judging can suspend; where it can't, everything
    happens inside the app's call, and a message that needs no judgement is handed on without yielding.

    More than one task of the app may wait for a message at a time. The first to wait gets the first message.

    :param source: the server's ``receive``, or one that returns None where a message was delivered meanwhile.
    :param screen: looks at a message without suspending; True hands it on as it is.
    :param judge: judges a message, and calls :meth:`deliver` for what the app is to get, if anything.
    :param may_suspend: whether ``judge`` could suspend now.
    :param wakeable: whether :meth:`end` has to interrupt a read, because the server would not.
    :param on_noticed: called whenever the app gets the message of :meth:`end`.

    The app has to be run with :meth:`run_app`, or in :meth:`room`.
    """

    __slots__ = (
        "_ahead",
        "_end",
        "_interruption",
        "_judge",
        "_judging",
        "_looking",
        "_may_suspend",
        "_on_noticed",
        "_ready",
        "_screen",
        "_source",
        "_turn",
        "error",
        "tasks",
    )

    def __init__(
        self,
        source: Callable[[], Awaitable[Message | None]],
        *,
        screen: Callable[[Message], bool],
        judge: Callable[[Message], Awaitable[None]],
        may_suspend: Callable[[], bool],
        wakeable: bool = False,
        on_noticed: Callable[[], None] = lambda: None,
    ) -> None:
        self.tasks: TaskGroup | None = None
        self._source = source
        self._may_suspend = may_suspend
        self._screen = screen
        self._judge = judge
        # A list, for an empty deque takes ten times as much memory.
        self._ready: list[Message] = []
        self._judging: anyio.Event | None = None
        self._interruption = Interruption() if wakeable else None
        self._on_noticed = on_noticed
        self._turn = Limiter(1)
        self.error: Exception | None = None
        self._end: Message | None = None
        # What was read before the app has asked for it, and what is set when that is there.
        self._ahead: Message | None = None
        self._looking: anyio.Event | None = None

    def deliver(self, message: Message) -> None:
        """The app gets ``message`` next."""
        self._ready.append(message)

    def pause(self) -> None:
        """Read nothing more. Tasks that wait for a message wait for :meth:`end`."""
        if self._judging is None:
            self._judging = anyio.Event()

    def end(self, message: Message) -> None:
        """From now on the app gets ``message``, again and again, and nothing of what is waiting."""
        self._end = message
        self._ready.clear()
        if self._interruption is not None:
            self._interruption.interrupt()
        if self._judging is not None:
            self._judging.set()

    async def pull(self) -> Message:
        """Read and judge one message in this task, before the app runs. Returns what was read."""
        message = await self._source()
        assert message is not None
        if self._screen(message):
            self._ready.append(message)
        else:
            await self._judge(message)
        return message

    async def look_ahead(self) -> Message | None:
        """Read the next message before the app asks for it, which still gets it. None: :meth:`end` came before it.

        It has to be ``wakeable``.
        """
        assert self._interruption is not None
        await self._turn.acquire()
        # The app may take what is ready meanwhile. For what is being read it waits.
        looking = self._looking = anyio.Event()
        self._turn.release()
        try:
            if self._end is None:
                self._ahead = await self._interruption.wait_for(self._source)
            return self._ahead
        finally:
            self._looking = None
            looking.set()

    async def receive(self) -> Message:
        """The app's ``receive``."""
        if self._end is None and self.error is None:
            if not self._turn.try_acquire():
                await self._turn.acquire()
            try:
                # The next message of the client, unless there is none any more.
                while not self._ready and self._end is None and self.error is None:
                    if self._judging is not None:
                        await self._judging.wait()
                        continue
                    if self._looking is not None:
                        await self._looking.wait()
                        continue
                    message: Message | None
                    if self._ahead is not None:
                        message, self._ahead = self._ahead, None
                    elif self._interruption is None:
                        message = await self._source()
                    else:
                        message = await self._interruption.wait_for(self._source)
                    if message is None:
                        continue
                    passes = self._screen(message)
                    if self._end is not None or self.error is not None:
                        # It came in the moment of the end: nobody judges it any more.
                        continue
                    if passes:
                        return message
                    if self.tasks is None or not self._may_suspend():
                        await self._judge(message)
                    else:
                        self._judging = anyio.Event()
                        self.tasks.start_soon(self._judge_aside, message, self._judging)
                # A judgement may come after the end: its message is discarded.
                if self._end is None and self.error is None:
                    return self._ready.pop(0)
            finally:
                self._turn.release()
        if self.error is not None:
            raise self.error
        assert self._end is not None
        self._on_noticed()
        return self._end

    async def run_app(self, call: Callable[[], Awaitable[Any]], *, beside: bool) -> Any:
        """Run the app in this task, with room for tasks ``beside`` it where judging needs them."""
        if not beside:
            return await call()
        async with self.room():
            return await call()

    def room(self) -> "_Room":
        """Room for tasks beside the app, around its call: a session that stays open has a coroutine less than with
        :meth:`run_app`.
        """
        return _Room(self)

    async def _judge_aside(self, message: Message, done: anyio.Event) -> None:
        try:
            await self._judge(message)
        except Exception as exc:
            # Judging itself doesn't fail; what can is to send a reply. That is for the app's next receive to tell.
            self.error = exc
        finally:
            self._judging = None
            done.set()


class _Room:
    """The task group of an :class:`Inbound`, cancelled when the app has ended.

    What the app raises comes out as it is: a task group would wrap it, or lose it to a cancellation while it closes.
    """

    __slots__ = ("_inbound",)

    def __init__(self, inbound: Inbound) -> None:
        self._inbound = inbound

    async def __aenter__(self) -> None:
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        self._inbound.tasks = tasks

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        tasks = self._inbound.tasks
        assert tasks is not None
        tasks.cancel_scope.cancel()
        try:
            if exc is None or isinstance(exc, (anyio.get_cancelled_exc_class(), GeneratorExit)):
                return await tasks.__aexit__(kind, exc, traceback)
            try:
                await tasks.__aexit__(None, None, None)
            finally:
                raise exc
        finally:
            self._inbound.tasks = None
