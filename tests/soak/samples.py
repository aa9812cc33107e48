"""What is looked at, and what of it would be a leak."""

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The app's process while no client wants anything of it. ``rss`` is bytes."""

    requests: int = 0
    descriptors: int
    tasks: int
    permits: int
    correlation_ids: int
    rss: int


class Measure(NamedTuple):
    """One of the things: how much of it for each 100,000 requests is worth talking about."""

    name: str
    unit: str
    relevant: float
    of: Callable[[Sample], float]


_MIB: Final = 1024 * 1024

#: A single object that is kept for every request takes 4.6 MiB for 100,000 of them, and one of anything else for every
#: thousand is 100.
MEASURES: Final = (
    Measure("file descriptors", "", 1.0, lambda sample: sample.descriptors),
    Measure("asyncio tasks", "", 1.0, lambda sample: sample.tasks),
    Measure("permits and queue", "", 1.0, lambda sample: sample.permits),
    Measure("correlation ids", "", 1.0, lambda sample: sample.correlation_ids),
    Measure("resident memory", "MiB", 1.0, lambda sample: sample.rss / _MIB),
)
#: One whose free memory goes back to the system when it is told to: what is resident is then what is in use.
ALLOCATOR: Final = {"PYTHONMALLOC": "malloc"}


def resident() -> int:
    """Bytes of this process that are in memory, and not free."""
    gc.collect()
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """How many are open in this process; what lists them is one of them."""
    return len(os.listdir("/proc/self/fd")) - 1
