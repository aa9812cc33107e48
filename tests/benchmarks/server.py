"""The process that serves one variant: ``python -m tests.benchmarks.server NAME DIRECTORY LISTENER``.

DIRECTORY has the sockets of the peers; LISTENER is the inherited file descriptor of a listening socket.
"""

import socket
import sys
from pathlib import Path

import uvicorn

from .variant import Front
from .variants import VARIANTS


def _serve(name: str, directory: str, listener: str) -> None:
    [variant] = [variant for variant in VARIANTS if variant.name == name]
    if isinstance(variant.serves, Front):
        raise TypeError(f"{name!r} has a server of its own")
    config = uvicorn.Config(
        variant.serves(Path(directory)),
        loop="uvloop",
        http="httptools",
        lifespan="on",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(listener))])


if __name__ == "__main__":
    _serve(*sys.argv[1:])
