"""Event loops on which hours pass in no time, as soon as everybody waits: no outcome depends on the machine's speed."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import anyio
from trio._core import _run as trio_run
from trio.testing import MockClock

BACKENDS: Final = ("asyncio", "trio")
# Virtual seconds after which whoever still waits will wait for ever.
_ENOUGH: Final = 1_000_000.0


class Stuck(Exception):  # noqa: N818 - says what is the matter
    """Something waits for what never comes."""


class _Selector(selectors.DefaultSelector):
    """Doesn't wait for time to pass: it passes it."""

    loop: "_Loop"

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Stuck("nobody has anything to wait for")
            self.loop.now += max(0.0, timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(backend: str, function: Callable[[], Awaitable[None]]) -> None:
    """Run ``function`` on ``backend``. Raises :class:`Stuck` if it never ends, or leaves tasks behind."""
    options: dict[str, Any] = {"loop_factory": _Loop} if backend == "asyncio" else {"clock": MockClock(0, 0)}

    async def bounded() -> None:
        with anyio.move_on_after(_ENOUGH) as scope:
            await function()
        if scope.cancelled_caught:
            raise Stuck("it never ends")
        # Who was cancelled ends in the next steps, before any time passes.
        await anyio.sleep(1e-6)
        left = {task.name for task in anyio.get_running_tasks()} - {anyio.get_current_task().name}
        if left - _OF_THE_LOOP:
            raise Stuck(f"tasks are left: {left}")

    with _in_order():
        anyio.run(bounded, backend=backend, backend_options=options)


@contextmanager
def _in_order() -> Iterator[None]:
    """Trio takes tasks that are ready in any order, unless it is told not to, as by Hypothesis (trio#890)."""
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    state = trio_run._r.getstate()
    trio_run._r.seed(0)
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
        trio_run._r.setstate(state)


# Trio's own.
_OF_THE_LOOP: Final = frozenset({"<init>", "<TrioToken.run_sync_soon task>"})
