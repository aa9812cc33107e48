"""Telling cancellation that somebody has asked for from what merely looks like it."""

import asyncio
import math

import anyio


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
