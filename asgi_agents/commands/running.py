"""The event loop of a subcommand."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

_Result = TypeVar("_Result")


def run(function: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run a coroutine function on asyncio's own event loop.

    Not on uvloop's: to close that has, now and then, not come to an end after a call over a Unix socket.
    """
    return anyio.run(function)
