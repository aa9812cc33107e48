"""Cancelling a call at a certain place."""

import sys
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint


@types.coroutine
def cancelling(
    call: Coroutine[Any, Any, object], cancel: Callable[[], object], suspension: int
) -> Generator[Any, Any, bool]:
    """Drive ``call`` and cancel it when it has suspended that many times; returns False if it ends before."""
    step: Callable[[], Any] = partial(call.send, None)
    for count in range(1, sys.maxsize):
        try:
            awaited = step()
        except StopIteration:
            return count > suspension
        if count == suspension:
            cancel()
        try:
            step = partial(call.send, (yield awaited))
        except BaseException as exc:
            step = partial(call.throw, exc)
    raise AssertionError


async def kept_cancellation() -> BaseException:
    """A cancellation that had its time and place elsewhere, as the result of a task may be."""
    kept: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except BaseException as exc:
            kept.append(exc)
            raise
    return kept[0]
