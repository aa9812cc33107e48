"""The event loop of a subcommand."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

_Result = TypeVar("_Result")
# Seconds for connections that were closed to be gone, before the event loop is closed as well.
_FAREWELL: Final = 0.02


def run(function: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run a coroutine function on asyncio's own event loop.

    Not on uvloop's: to close that comes to no end where a connection is not yet gone.
    """

    async def main() -> _Result:
        try:
            return await function()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(_FAREWELL)

    return anyio.run(main)
