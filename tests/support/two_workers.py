"""An app that uvicorn serves with two workers."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

# Seconds after which a test that hangs has failed.
_PATIENCE: Final = 60.0


@contextmanager
def two_workers(source: str, shared: Path, directory: Path) -> Iterator[Callable[..., httpx.Response | None]]:
    """While the ``app`` of this source is served, which finds the path ``shared`` in the environment as ``SHARED``.

    Gives a function that gets a path with headers, from any of the workers; None: the one that took it has ended.
    """
    (directory / "guarded.py").write_text(source)
    place = str(directory / "app.sock")
    arguments = ["uvicorn", "guarded:app", "--workers", "2", "--uds", place, "--log-level", "warning"]
    places = os.pathsep.join([str(directory), str(Path(__file__).parents[2])])
    environment = {**os.environ, "SHARED": str(shared), "PYTHONPATH": places}
    server = subprocess.Popen([sys.executable, "-m", *arguments], env=environment)
    deadline = time.monotonic() + _PATIENCE

    def get(path: str, **headers: str) -> httpx.Response | None:
        assert time.monotonic() < deadline
        try:
            # Each time on a new connection, which any of the workers may take.
            with httpx.Client(transport=httpx.HTTPTransport(uds=place), base_url="http://app") as client:
                return client.get(path, headers=headers, timeout=_PATIENCE)
        except httpx.TransportError:
            time.sleep(0.1)
            return None

    try:
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(place):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield get
    finally:
        server.terminate()
        server.wait(_PATIENCE)
