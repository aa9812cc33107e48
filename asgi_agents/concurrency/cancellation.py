"""Telling cancellation that somebody has asked for from what merely looks like it."""

import asyncio
import math

import anyio
from anyio.lowlevel import checkpoint_if_cancelled


def given_up() -> bool:
    """Whether what the running code does is cancelled, so that its outcome is nobody's."""
    return anyio.current_effective_deadline() == -math.inf


def was_asked_for() -> bool:
    """Whether asyncio's CancelledError that is under way comes from outside the call."""
    if given_up():
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False  # on another event loop than asyncio's it can only be somebody's own
    return task is not None and task.cancelling() > 0


def cancel_requests() -> int:
    """How many requests to cancel asyncio's running task are pending; 0 on other event loops.

    Cancel scopes, and :func:`asyncio.timeout`, take their requests back when they end. What was added since an earlier
    call comes from outside of the code that ran in between.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return 0
    return 0 if task is None else task.cancelling()


async def raise_swallowed(requests: int) -> None:
    """Raise the cancellation of the running code again, if the call that has just ended swallowed it.

    Does nothing, and does not suspend, where nobody outside of the call has cancelled it.

    :param requests: what :func:`cancel_requests` returned before the call.
    """
    if given_up():
        await checkpoint_if_cancelled()
    if cancel_requests() > requests:
        raise asyncio.CancelledError
