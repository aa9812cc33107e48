"""What the fuzzers' event loops take for a task that is left behind."""

from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents.concurrency.background import BackgroundTask

from .loops import BACKENDS, Stuck, run


async def _cancel_at_the_end(turns: int) -> None:
    task = BackgroundTask(anyio.sleep_forever)
    for _ in range(turns):
        await checkpoint()
    task.cancel()


async def _leave() -> None:
    BackgroundTask(partial(anyio.sleep, 3600))


# Trio takes what is ready in an order that depends on how many turns have passed.
@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_that_is_cancelled_at_the_very_end_is_not_left(backend: str, turns: int) -> None:
    run(backend, partial(_cancel_at_the_end, turns))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_that_sleeps_is_left(backend: str) -> None:
    with pytest.raises(Stuck, match="tasks are left"):
        run(backend, _leave)
