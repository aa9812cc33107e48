"""A stream of text on its way through guardrails: who is asked when, and what leaves when."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic

import anyio
from anyio.abc import TaskGroup

from ..concurrency.background import asyncio_loop
from ..concurrency.limiter import Limiter
from ..evaluation.text_judges import RouteJudge
from ..failures import FailureKind
from ..guardrails.dialect import Stop
from ..guardrails.judged_stream import Data, JudgedStream
from ..guardrails.judges import Inspection
from ..guardrails.slots import Decision
from .text_asking import Asking, Stopped, blocked_by, failed_with, refused

# Seconds between two looks at a window that waits for another's verdict although it is due.
_SHORT: Final = 0.001
_MIXED: Final = Stop("a stream of events that is not called one has other text in it", 503)


class StreamedText(Generic[Data]):
    """Feeds a stream, has its windows judged, beside the app where that may suspend, and lets text leave.

    :param judges: those who judge the stream.
    :param turn: held by who may send. What is sent from two tasks must not overtake what is being judged.
    :param leave: sends what may leave; its second argument is whether that is the last. It is called with the turn.
    :param end: ends a stream that was stopped, with the last bytes of it, or by breaking it off.
    :param broken: called with what the server has raised while something was sent beside the app.
    :param pure: given all that is fed, and whether it is the last; where it returns False, what is fed from then on
        can't be read.
    :param unreadable: the kind of failure that this is.
    :param may_be_earlier: whether more of the stream may be due before what has come of it.
    """

    def __init__(
        self,
        stream: JudgedStream[Data],
        asking: Asking,
        judges: Sequence[RouteJudge],
        turn: Limiter,
        tasks: TaskGroup | None,
        *,
        leave: Callable[[Data, bool], Awaitable[None]],
        end: Callable[[Stopped, Data, bool], Awaitable[None]],
        broken: Callable[[Exception], None],
        pure: Callable[[Data, bool], bool] | None = None,
        unreadable: FailureKind = FailureKind.RESPONSE_UNREADABLE,
        may_be_earlier: bool = False,
    ) -> None:
        self.stream = stream
        self._asking = asking
        self._judges = judges
        self._turn = turn
        self._tasks = tasks
        self._leave = leave
        self._end = end
        self._broken = broken
        self._pure = pure
        self._unreadable = unreadable
        loop = asyncio_loop()
        self._now: Callable[[], float] = anyio.current_time if loop is None else loop.time
        # Set when the app may have something to go on with.
        self._changed = anyio.Event()
        self._timing = False
        # When the timer wakes, and what wakes it before. Where all judges hold text as long, nothing is due before.
        self._wake = 0.0
        self._earlier = anyio.Event()
        self._may_be_earlier = may_be_earlier or len({judge.limits.max_hold for judge in judges}) > 1
        # The failure that has stopped the stream.
        self._failure: Stopped | None = None
        # Whether it is counted that a part could not be read.
        self._counted = False
        # Code points that wait now, and how many did at most.
        self._held = 0
        self._most_held = 0
        #: Whether nothing more is sent of it.
        self.over = False

    async def take(self, data: Data, last: bool) -> None:
        """What comes next. The turn is the caller's."""
        now = self._now()
        if self._pure is not None and not self._pure(data, last):
            self._pure = None
            self.stream.unreadable += 1
            if any(judge.agent.stops_when_failing for judge in self._judges):
                self.stream.fail(_MIXED)
        if data:
            self.stream.feed(data, now)
        if last:
            self.stream.end(now)
        await self._drive()

    async def refuse(self, stop: Stop) -> None:
        """End it: what follows can't be read. The turn is the caller's."""
        self.stream.unreadable += 1
        self.stream.fail(stop)
        await self._drive()

    async def wait(self, last: bool) -> None:
        """Until the app may go on: there is room, or, after its last bytes, everything has left."""
        while not self.over and (last or self.stream.full):
            if self._changed.is_set():
                self._changed = anyio.Event()
            await self._changed.wait()
        if last:
            # What is being sent beside the app is sent before the app may end.
            await self._turn.acquire()
            self._turn.release()

    async def progress(self) -> None:
        """Until something has happened beside the app."""
        if self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()

    def notify(self) -> None:
        """Something has happened beside the app."""
        self._changed.set()

    def abandon(self) -> None:
        """Send nothing more."""
        self.over = True
        self._changed.set()

    async def _drive(self) -> None:
        """Have judged what can be judged, and send what may leave. The turn is the caller's."""
        stream, asking = self.stream, self._asking
        while inspections := stream.inspections():
            for inspection in inspections:
                if self._tasks is not None and asking.may_suspend(inspection):
                    self._tasks.start_soon(self._judge_aside, inspection)
                else:
                    self._apply(inspection, await self._ask(inspection))
        if stream.findings or stream.failures:
            asking.note(stream.findings, stream.failures)
        held = stream.held
        if held != self._held:
            self._count_held(held)
        await self._flush()
        if self._tasks is not None and not self.over and (not self._timing or self._may_be_earlier):
            self._time(self._tasks)

    def _time(self, tasks: TaskGroup) -> None:
        wake = self.stream.wake_at()
        if wake is None:
            return
        if not self._timing:
            self._timing = True
            tasks.start_soon(self._tick)
        elif wake < self._wake:
            self._earlier.set()

    async def _flush(self) -> None:
        stream = self.stream
        if self.over:
            return
        data = stream.take()
        if stream.ending is not None:
            self.abandon()
            await self._end(self._stopped(), data, stream.ending.cut_off)
            return
        done = stream.done
        if done:
            self.abandon()
        if data or done:
            await self._leave(data, done)

    async def _ask(self, inspection: Inspection) -> "Stopped | Sequence[Decision] | None":
        try:
            return await self._asking.ask(inspection)
        except Stopped as stopped:
            return stopped

    def _apply(self, inspection: Inspection, answer: "Stopped | Sequence[Decision] | None") -> None:
        stream = self.stream
        if isinstance(answer, Stopped):
            if stream.ending is None:
                self._failure = answer
                stream.fail(answer.stop)
        elif answer is None:
            stream.hold_to_end(inspection, self._now())
        else:
            stream.verdict(inspection, answer, self._now())

    async def _judge_aside(self, inspection: Inspection) -> None:
        """Judge a window beside the app, and send what may leave then."""
        answer = await self._ask(inspection)
        await self._in_turn(lambda: self._apply(inspection, answer))

    async def _tick(self) -> None:
        """Have judged what has waited for long enough."""
        try:
            while not self.over and (wake := self.stream.wake_at()) is not None:
                delay = wake - self._now()
                if delay > 0:
                    self._wake, self._earlier = wake, anyio.Event()
                    with anyio.move_on_after(delay):
                        await self._earlier.wait()
                    continue
                await self._in_turn(lambda: self.stream.tick(self._now()))
                if self.stream.wake_at() == wake:
                    # Nothing could be asked.
                    await anyio.sleep(_SHORT)
        finally:
            self._timing = False

    async def _in_turn(self, step: Callable[[], None]) -> None:
        """Do one step beside the app, and send what may leave then."""
        try:
            await self._turn.acquire()
            try:
                if not self.over:
                    step()
                    await self._drive()
            finally:
                self._turn.release()
        except Exception as exc:
            # The server's: that is for the app's next send to raise.
            self.abandon()
            self._broken(exc)
        finally:
            self._changed.set()

    def _stopped(self) -> Stopped:
        """Why it was stopped."""
        ending = self.stream.ending
        assert ending is not None
        if ending.blocked is not None:
            self._asking.note_block(ending.blocked)
            return blocked_by(ending.blocked)
        if self._failure is not None:
            return self._failure
        self._counted = True
        verdict = self._asking.not_shown(self._judges, self._unreadable, ending.stop.message, stopped=True)
        return refused(ending.stop) if verdict is None else failed_with(verdict)

    def _count_held(self, held: int) -> None:
        self._asking.count_held(self._judges, held - self._held)
        self._held = held
        self._most_held = max(self._most_held, held)

    def close(self) -> None:
        """The exchange is over."""
        self.abandon()
        stream = self.stream
        self._count_held(0)
        if stream.findings or stream.failures:
            self._asking.note(stream.findings, stream.failures)
        if stream.unreadable and not self._counted:
            fault = f"{stream.unreadable} parts of a stream are not in its dialect"
            self._asking.not_shown(self._judges, self._unreadable, fault)
        self._asking.note_hold(self._judges, self._most_held, stream.longest_delay)
