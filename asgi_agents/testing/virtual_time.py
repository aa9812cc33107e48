"""Virtual time: it passes only while every task waits. A deadline of a minute then takes no time, and is never missed.

The clock of the event loop stands still while anything can go on, and jumps to the next deadline as soon as nothing
can. :func:`time.monotonic` tells the same time in the thread of the test, and the real time in all others.

What goes on outside of the event loop does not stop the time, except threads that were started with
:func:`anyio.to_thread.run_sync`, as for handlers that are no coroutine functions: these are waited for. So there are no
real sockets in virtual time: servers, agents in other processes and databases would answer too late. ``TestClient``
goes by the real time, because its event loop runs in another thread than the test. Use ``httpx.ASGITransport``.
"""

import asyncio
import inspect
import selectors
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any, Final, Literal, NamedTuple, TypeVar

import anyio
import anyio.to_thread

from ..errors import ConfigurationError
from ..messages.naming import named

_Result = TypeVar("_Result")
# Real seconds for a thread. After that it waits for something itself, which may be as long as time stands still.
_SILENCE_OF_THREADS: Final = 1.0


class VirtualClock:
    """The clock of an event loop of asyncio.

    :param now: seconds; the time at the beginning.
    :param silence: real seconds in which nothing has come through a socket or from a thread, before time passes.
    """

    def __init__(self, now: float, silence: float) -> None:
        self.now = now
        self.silence = silence

    def __call__(self) -> float:
        return self.now


class _Selector(selectors.DefaultSelector):
    """Passes the time that it is asked to wait."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(self._clock.silence)
        if not ready:
            self._clock.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio that goes by such a clock."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self.clock()


class _Time(NamedTuple):
    """What stands in a thread for :func:`time.monotonic` and :func:`anyio.to_thread.run_sync`."""

    monotonic: Callable[[], float]
    run_sync: Callable[..., Any]


class _VirtualTimes:
    """What tells the time in the threads in which it is virtual.

    There is one for the whole process: were each to put its own functions in the places of Python's and anyio's, those
    of another thread would stay there for ever, where that one has begun later and ends earlier.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        # By thread, the innermost last.
        self._times: dict[int, list[_Time]] = {}

    @contextmanager
    def within(self, clock: Callable[[], float], wait_for: Callable[[float], None]) -> Iterator[None]:
        """Let ``clock`` tell the time in this thread; ``wait_for`` is that of :func:`waiting_for_threads`."""
        here = get_ident()
        with self._lock:
            if not self._times:
                self._begin()
            new = _Time(clock, waiting_for_threads(wait_for, 0.0, self._real.run_sync))
            self._times.setdefault(here, []).append(new)
        try:
            yield
        finally:
            with self._lock:
                self._times[here].remove(new)
                if not self._times[here]:
                    del self._times[here]
                if not self._times:
                    time.monotonic, anyio.to_thread.run_sync = self._real  # type: ignore[assignment]

    def _begin(self) -> None:
        self._real = real = _Time(time.monotonic, anyio.to_thread.run_sync)
        times = self._times

        def here() -> _Time:
            # Other event loops in other threads, such as that of TestClient, would wait for ever.
            own = times.get(get_ident())
            return own[-1] if own and not _is_other_loop() else real

        time.monotonic = lambda: here().monotonic()
        anyio.to_thread.run_sync = lambda *args, **options: here().run_sync(*args, **options)


def _is_other_loop() -> bool:
    """Whether an event loop of asyncio runs here that goes by no such clock, as one of a plugin of pytest's may."""
    try:
        return not isinstance(asyncio.get_running_loop(), VirtualLoop)
    except RuntimeError:
        return False


_VIRTUAL: Final = _VirtualTimes()


@contextmanager
def virtual_time(backend: str = "asyncio") -> Iterator[tuple[str, dict[str, Any]]]:
    """Virtual time for an event loop that is started in the ``with`` block.

    ::

        with virtual_time("trio") as (backend, options):
            anyio.run(main, backend=backend, backend_options=options)

    The event loop has to run in this thread. Here :func:`time.monotonic` tells the virtual time, but for event loops of
    asyncio without these options, which would never end. The breakers of agents that :func:`override_agents` or
    :func:`agent_down` has put in place go by it; those of other agents of an app that was made before keep to the real
    time.

    :param backend: ``asyncio`` or ``trio``.
    :return: the backend and its options, as ``anyio.run`` and anyio's fixture ``anyio_backend`` take them.
    """
    now = time.monotonic()
    clock: Callable[[], float]
    options: dict[str, Any]
    if backend == "asyncio":
        own = VirtualClock(now, 0.0)
        clock, options = own, {"loop_factory": lambda: VirtualLoop(own)}

        def wait_for(silence: float) -> None:
            own.silence = silence
    elif backend == "trio":
        try:
            # Only those who use it have it.
            from trio.testing import MockClock
        except ModuleNotFoundError as exc:
            raise ConfigurationError(
                "virtual_time: backend='trio' needs trio, which is not installed; expected pip install trio"
            ) from exc

        mock = MockClock(autojump_threshold=0.0)
        mock.jump(now)
        clock, options = mock.current_time, {"clock": mock}

        def wait_for(silence: float) -> None:
            mock.autojump_threshold = silence
    else:
        raise ConfigurationError(f"virtual_time: backend={backend!r}, expected 'asyncio' or 'trio'")
    with _VIRTUAL.within(clock, wait_for):
        yield backend, options


def run_in_virtual_time(
    function: Callable[..., Awaitable[_Result]], *args: object, backend: Literal["asyncio", "trio"] = "asyncio"
) -> _Result:
    """Call a coroutine function with ``args`` in an event loop of its own, in virtual time; returns what it returns.

    Raises :class:`ConfigurationError` for what is no function, such as the coroutine that a call has returned.
    """
    if not callable(function):
        if inspect.iscoroutine(function):
            # It is never awaited, and Python need not warn of that as well.
            function.close()
        raise ConfigurationError(
            f"run_in_virtual_time: {named(function)}, expected a coroutine function that is not called yet:"
            " run_in_virtual_time(main)"
        )
    with virtual_time(backend) as (name, options):
        return anyio.run(function, *args, backend=name, backend_options=options)


def waiting_for_threads(
    wait_for: Callable[[float], None], silence: float, run_sync: Callable[..., Any] = anyio.to_thread.run_sync
) -> Callable[..., Any]:
    """In place of ``run_sync``: it tells a clock to wait while threads run.

    :param wait_for: takes the real seconds of silence, before time passes.
    :param silence: those without threads.
    """
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
                wait_for(silence)

    return run_and_wait
