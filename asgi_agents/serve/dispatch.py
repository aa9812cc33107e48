"""Whose hook runs when: first come, first served, as many at a time as may be."""

import math
import sys
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Protocol

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup
from msgspec import UNSET

from ..concurrency.background import on_trio
from ..protocol import Event, EventType
from ..protocol.stream import CallIds


class Caller(Protocol):
    """A connection, as far as its calls are concerned."""

    #: Calls whose hooks have not been started.
    waiting: "deque[ServedCall]"
    #: Whether none may be started for now.
    stalled: bool
    #: Turns that came while it was stalled.
    owed: int

    async def perform(self, call: "ServedCall") -> bytes:
        """Run the hook and encode its answer. Raises no Exception."""
        ...

    def refusal(self, call: "ServedCall", reason: str, error: str) -> bytes:
        """The answer of an agent that has failed."""
        ...

    def cancellation(self, call: "ServedCall") -> bytes:
        """The answer to a call that was given up."""
        ...

    def settle(self, call: "ServedCall", answer: bytes) -> None:
        """The call has its answer. Called once for each."""
        ...


class ServedCall:
    """One event from a connection, on its way to its answer.

    ``refusal`` is its answer where no hook is to run.
    """

    __slots__ = (
        "answer",
        "at_work",
        "caller",
        "event",
        "event_type",
        "given_up",
        "ids",
        "ordered",
        "refusal",
        "scope",
        "size",
        "suspends",
    )

    def __init__(
        self,
        caller: Caller,
        ids: CallIds,
        event_type: EventType | None,
        event: Event | None,
        suspends: bool,
    ) -> None:
        self.caller = caller
        self.ids = ids
        # Without a call id only the order of the answers tells them apart.
        self.ordered = ids.call_id is UNSET
        self.event_type = event_type
        self.event = event
        self.suspends = suspends
        self.refusal: bytes | None = None
        self.answer: bytes | None = None
        #: How many bytes are held for it, once it waits.
        self.size = 0
        self.at_work = False
        self.given_up = False
        self.scope: CancelScope | None = None

    def cancel(self) -> None:
        """Nobody wants the answer of a call that is at work; it still gets one."""
        self.given_up = True
        if self.scope is not None:
            self.scope.cancel()


class Dispatcher:
    """Runs the hooks of all connections, each in a copy of the context that this was made in."""

    def __init__(self, tasks: TaskGroup, limit: int) -> None:
        self._tasks = tasks
        self._limit = limit
        self._at_work = 0
        # A connection stands here once for each of its calls that waits.
        self._turns: deque[Caller] = deque()
        self._context = _context_of_hooks()

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Start a task, from wherever this is called: a callback of the event loop, or a task."""
        self._context.copy().run(self._tasks.start_soon, function, *args)

    def at_once(self, call: ServedCall) -> bytes:
        """Run a hook that can't suspend, here and now, if there is one to run."""
        if call.refusal is not None:
            return call.refusal
        step = call.caller.perform(call)
        try:
            self._context.copy().run(step.send, None)
        except StopIteration as done:
            answer: bytes = done.value
            return answer
        except CancelledError:
            # The result of a task or future of the agent's that was cancelled: a failure like any other.
            return call.caller.refusal(call, "agent raised CancelledError", "CancelledError")
        step.close()
        raise RuntimeError(f"the hook of {call.event_type} has suspended, which it can't")

    def queue(self, call: ServedCall) -> None:
        """Run it when it's its turn."""
        caller = call.caller
        caller.waiting.append(call)
        if caller.stalled:
            caller.owed += 1
        else:
            self._turns.append(caller)
            self._start_waiting()

    def start(self, call: ServedCall) -> None:
        """Run it now, however many are at work. It is none of those."""
        call.at_work = True
        self.spawn(self._work, call, 0)

    def resume(self, caller: Caller) -> None:
        """The connection isn't stalled any more: those of its calls that wait are last in the queue."""
        self._turns.extend([caller] * caller.owed)
        caller.owed = 0
        self._start_waiting()

    def _start_waiting(self) -> None:
        turns = self._turns
        while turns:
            caller = turns[0]
            if caller.stalled:
                caller.owed += 1
            elif caller.waiting:
                call = caller.waiting[0]
                if call.suspends and self._at_work >= self._limit:
                    return
                caller.waiting.popleft()
                turns.popleft()
                self._start(call)
                continue
            # Else it has given up a call meanwhile, or is lost.
            turns.popleft()

    def _start(self, call: ServedCall) -> None:
        if call.suspends:
            call.at_work = True
            self._at_work += 1
            self.spawn(self._work, call)
        else:
            call.caller.settle(call, self.at_once(call))

    async def _work(self, call: ServedCall, permits: int = 1) -> None:
        caller = call.caller
        answer: bytes | None = None
        error = "CancelledError"
        try:
            with CancelScope() as call.scope:
                try:
                    if not call.given_up:
                        answer = await caller.perform(call)
                except anyio.get_cancelled_exc_class():
                    if anyio.current_effective_deadline() == -math.inf:
                        raise
                    # As above.
        except BaseExceptionGroup as group:
            # Cancelled, and failed over it in a task group.
            rest = group.split(anyio.get_cancelled_exc_class())[1]
            if not isinstance(rest, Exception | None):
                raise
            error = type(group).__name__
        finally:
            self._at_work -= permits
        if answer is None:
            given_up = call.given_up
            answer = caller.cancellation(call) if given_up else caller.refusal(call, f"agent raised {error}", error)
        caller.settle(call, answer)
        self._start_waiting()


def _context_of_hooks() -> Context:
    context = copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None and not on_trio():
        # Where it is installed anyio asks it, and in callbacks of the event loop it has to be told.
        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context
