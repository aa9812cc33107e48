"""The event loop of a subcommand."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

_Result = TypeVar("_Result")


def run(function: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run a coroutine function on asyncio's own event loop, which is what it is without an extra as well."""
    return anyio.run(function)
