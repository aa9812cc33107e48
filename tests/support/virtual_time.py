"""Virtual time: it passes only while every task waits, so that no outcome depends on the speed of the machine.

That of the test kit (:mod:`asgi_agents.testing.virtual_time`), with sockets within this process besides.

The clock of the event loop stands still while anything can go on, and jumps to the next deadline as soon as nothing
can. :func:`time.monotonic` tells the same time. A deadline of ten milliseconds is then no matter of speed, and a minute
passes at once.

Threads that are started with :func:`anyio.to_thread.run_sync` are waited for. What else goes on outside of the event
loop, in another thread or process, is not: tests of that need real time.
"""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any, Final

import anyio.to_thread
import pytest
import trio
from trio.testing import MockClock

from asgi_agents import AgentManager
from asgi_agents.breaker import CircuitBreaker
from asgi_agents.concurrency.background import on_trio
from asgi_agents.guard import Guard
from asgi_agents.testing.virtual_time import VirtualClock, VirtualLoop, waiting_for_threads
from asgi_agents.transports.stream.endpoint import Endpoint

# Of these, the default clock was looked up when they were defined.
_HAVE_A_CLOCK: Final = (AgentManager, Guard, CircuitBreaker, Endpoint)
# Real seconds in which nothing has come through a socket: what this process has sent itself is there by then.
_SILENCE: Final = 0.001
# Virtual seconds between two looks at the clock: what happens later is later.
_TICK: Final = 1e-7


class _Clock(VirtualClock):
    """Of asyncio's loop."""

    def __init__(self) -> None:
        super().__init__(0.0, _SILENCE)

    def __call__(self) -> float:
        self.now += _TICK
        return self.now


def _mock_clock() -> MockClock:
    clock = MockClock(autojump_threshold=_SILENCE)
    # Of its real time, each look takes a second.
    clock._real_clock = count().__next__
    clock.rate = _TICK
    return clock


def in_virtual_time(backend: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """The backend with its options, as anyio takes it."""
    options: dict[str, Any]
    clock: Callable[[], float]
    if backend == "trio":
        mock = _mock_clock()
        options, clock = {"clock": mock}, mock.current_time

        def wait_for(silence: float) -> None:
            mock.autojump_threshold = silence
    else:
        clock = own = _Clock()
        options = {"loop_factory": lambda: VirtualLoop(own)}

        def wait_for(silence: float) -> None:
            own.silence = silence

    monkeypatch.setattr("time.monotonic", clock)
    for each in _HAVE_A_CLOCK:
        defaults = each.__init__.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "clock", clock)
    monkeypatch.setattr(anyio.to_thread, "run_sync", waiting_for_threads(wait_for, _SILENCE))
    return backend, options


def wait_for_sockets(silence: float) -> None:
    """For the rest of a test on asyncio: real seconds in which nothing has come through a socket, before time passes.

    On a busy machine the system takes longer to deliver what hundreds of connections have sent one another.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.clock.silence = silence


def nothing_comes_from_outside() -> None:
    """For the rest of a test that has neither sockets nor threads: time passes as soon as every task waits.

    Otherwise each wait takes a real millisecond.
    """
    if on_trio():
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        clock.autojump_threshold = 0.0
    else:
        wait_for_sockets(0.0)
