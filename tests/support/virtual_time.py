"""Virtual time: it passes only while every task waits, so that no outcome depends on the speed of the machine.

The clock of the event loop stands still while anything can go on, and jumps to the next deadline as soon as nothing
can. :func:`time.monotonic` tells the same time. A deadline of ten milliseconds is then no matter of speed, and a minute
passes at once.

Threads that are started with :func:`anyio.to_thread.run_sync` are waited for. What else goes on outside of the event
loop, in another thread or process, is not: tests of that need real time.
"""

import asyncio
import selectors
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
from asgi_agents.transports.stream.endpoint import Endpoint

# Of these, the default clock was looked up when they were defined.
_HAVE_A_CLOCK: Final = (AgentManager, Guard, CircuitBreaker, Endpoint)
# Real seconds in which nothing has come through a socket: what this process has sent itself is there by then.
_SILENCE: Final = 0.001
# Real seconds for a thread. After that it waits for something itself, which may be as long as time stands still.
_SILENCE_OF_THREADS: Final = 1.0
# Virtual seconds between two looks at the clock: what happens later is later.
_TICK: Final = 1e-7


class _Clock:
    """Of asyncio's loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.silence = _SILENCE

    def __call__(self) -> float:
        self.now += _TICK
        return self.now


class _Selector(selectors.DefaultSelector):
    """Passes the time that it is asked to wait."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(self._clock.silence)
        if not ready:
            self._clock.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: _Clock) -> None:
        self.clock = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self.clock()


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
        options = {"loop_factory": lambda: _Loop(own)}

        def wait_for(silence: float) -> None:
            own.silence = silence

    monkeypatch.setattr("time.monotonic", clock)
    for each in _HAVE_A_CLOCK:
        defaults = each.__init__.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "clock", clock)
    monkeypatch.setattr(anyio.to_thread, "run_sync", _waited_for(wait_for))
    return backend, options


def wait_for_sockets(silence: float) -> None:
    """For the rest of a test on asyncio: real seconds in which nothing has come through a socket, before time passes.

    On a busy machine the system takes longer to deliver what hundreds of connections have sent one another.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)
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


def _waited_for(wait_for: Callable[[float], None]) -> Callable[..., Any]:
    run_sync: Callable[..., Any] = anyio.to_thread.run_sync
    running = 0

    async def run_and_wait(*args: Any, **options: Any) -> Any:
        nonlocal running
        running += 1
        wait_for(_SILENCE_OF_THREADS)
        try:
            return await run_sync(*args, **options)
        finally:
            running -= 1
            if not running:
                wait_for(_SILENCE)

    return run_and_wait
