"""The event loop of a subcommand."""

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TypeVar

import anyio

_Result = TypeVar("_Result")


def run(function: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run a coroutine function, on uvloop where that is installed, as in production."""
    return anyio.run(function, backend_options={"use_uvloop": find_spec("uvloop") is not None})
