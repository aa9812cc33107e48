"""Where recordings stand: in front of the two methods through which all calls to an agent go.

While a guard is recorded, it has functions of its own in the places of :meth:`Guard.call` and :meth:`Guard.inspect`.
While it is not, nothing of this is there: no call takes a step more. Whether an agent is in the process or remote, and
whether its hooks suspend, is decided behind these methods.
"""

import time
from collections.abc import Awaitable, Callable
from threading import RLock
from typing import Any, Final, Protocol

from ..concurrency.cancellation import given_up
from ..decision import Verdict
from ..failures import FailureKind
from ..guard import Guard
from ..policy import FailureMode
from ..protocol import Event, GuardrailInspectEvent, GuardrailResponse

# Why the guard itself ends a call. Any other failure of a call that was cancelled may be because of that.
_OWN_REASONS: Final = frozenset({FailureKind.BREAKER_OPEN, FailureKind.QUEUE_TIMEOUT, FailureKind.TIMEOUT})


class Listener(Protocol):
    """What is told of the calls to an agent. It raises nothing."""

    def begin(self) -> int:
        """A call begins; returns its number."""
        ...

    def end(
        self,
        number: int,
        guard: Guard,
        event: Event,
        verdict: Verdict | None,
        inspection: GuardrailResponse | None,
        *,
        started: float,
        seconds: float,
        chunk: bool,
        window: bool,
        route: str | None,
    ) -> None:
        """It has ended. ``verdict`` is None where it was given up, as when its client has gone."""
        ...


class _Tap:
    """The methods of one guard while it is recorded."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._call: Callable[..., Awaitable[Verdict]] = guard.call
        self._inspect: Callable[..., Awaitable[tuple[Verdict, GuardrailResponse]]] = guard.inspect
        self.listeners: tuple[Listener, ...] = ()
        guard.call = self.call  # type: ignore[method-assign]
        guard.inspect = self.inspect  # type: ignore[method-assign]

    def take_away(self) -> None:
        """The guard has its own methods again."""
        methods = vars(self._guard)
        del methods["call"], methods["inspect"]

    async def call(
        self,
        event: Event,
        failure_mode: FailureMode,
        chunk: bool = False,
        route: str | None = None,
        *more: Any,
        **options: Any,
    ) -> Verdict:
        """As :meth:`Guard.call`."""
        begun = [(listener, listener.begin()) for listener in self.listeners]
        started = time.monotonic()
        verdict: Verdict | None = None
        try:
            verdict = await self._call(event, failure_mode, chunk, route, *more, **options)
            return verdict
        finally:
            self._end(begun, started, event, verdict, None, chunk=chunk, window=False, route=route)

    async def inspect(
        self, event: GuardrailInspectEvent, failure_mode: FailureMode, *, route: str | None = None, window: bool = False
    ) -> tuple[Verdict, GuardrailResponse]:
        """As :meth:`Guard.inspect`."""
        begun = [(listener, listener.begin()) for listener in self.listeners]
        started = time.monotonic()
        verdict: Verdict | None = None
        inspection: GuardrailResponse | None = None
        try:
            verdict, inspection = await self._inspect(event, failure_mode, route=route, window=window)
            return verdict, inspection
        finally:
            self._end(begun, started, event, verdict, inspection, chunk=False, window=window, route=route)

    def _end(
        self,
        begun: list[tuple[Listener, int]],
        started: float,
        event: Event,
        verdict: Verdict | None,
        inspection: GuardrailResponse | None,
        *,
        chunk: bool,
        window: bool,
        route: str | None,
    ) -> None:
        seconds = time.monotonic() - started
        failure = None if verdict is None else verdict.failure
        if failure is not None and failure.kind not in _OWN_REASONS and given_up():
            # It was cancelled, and has failed over that.
            verdict = None
        for listener, number in begun:
            listener.end(
                number,
                self._guard,
                event,
                verdict,
                inspection,
                started=started,
                seconds=seconds,
                chunk=chunk,
                window=window,
                route=route,
            )


# Guards are made and recorded by any thread.
_LOCK: Final = RLock()


def attach(guard: Guard, listener: Listener) -> None:
    """Tell ``listener`` of all calls of ``guard`` from now on."""
    with _LOCK:
        tap = _tap_of(guard) or _Tap(guard)
        if listener not in tap.listeners:
            tap.listeners = (*tap.listeners, listener)


def detach(guard: Guard, listener: Listener) -> None:
    """No more. Calls under way are told of when they end."""
    with _LOCK:
        tap = _tap_of(guard)
        if tap is None:
            return
        tap.listeners = tuple(one for one in tap.listeners if one is not listener)
        if not tap.listeners:
            tap.take_away()


def _tap_of(guard: Guard) -> _Tap | None:
    # Nothing else refers to it, so that a guard that was replaced can be collected while it is recorded.
    tap = getattr(vars(guard).get("call"), "__self__", None)
    return tap if isinstance(tap, _Tap) else None
