"""Threads for work that would block the event loop, apart from those in which apps run their synchronous handlers."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class OwnThreads:
    """With those of the app, slow handlers would make agents late, and open their breakers.

    :param number: of an event loop that run at a time; further calls wait.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._limiter: RunVar[CapacityLimiter] = RunVar("asgi_agents.own_threads")

    async def run(self, function: Callable[[*Ts], T], *args: *Ts, abandon: bool = False) -> T:
        """Call it in a thread.

        :param abandon: a call that is cancelled leaves the thread to itself, and another one takes its place. Otherwise
            it is waited for, so that the threads stay few.
        """
        limiter = self._limiter.get(None)
        if limiter is None:
            limiter = CapacityLimiter(self._number)
            self._limiter.set(limiter)
        return await to_thread.run_sync(function, *args, abandon_on_cancel=abandon, limiter=limiter)
