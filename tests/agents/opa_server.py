"""A real OPA with a policy."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

# Seconds for it to start.
_PATIENCE = 30


@contextmanager
def opa_server(policy: str, directory: Path, *arguments: str) -> Iterator[str]:
    """The URL of one that runs. Skips the test where none is installed."""
    command = os.environ.get("OPA") or shutil.which("opa")
    if command is None:
        pytest.skip("there is no opa here: go install github.com/open-policy-agent/opa@latest, or OPA=/path/to/opa")
    path = directory / "policy.rego"
    path.write_text(policy)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*free.getsockname())
    options = ["run", "--server", "--addr", address, "--disable-telemetry", "--log-level", "error", *arguments]
    process = subprocess.Popen([command, *options, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://{address}"
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                assert httpx.get(f"{url}/health").status_code == 200
            except httpx.HTTPError:
                assert process.poll() is None, "opa has ended"
                assert time.monotonic() < until, "opa did not start"
                time.sleep(0.02)
            else:
                break
        yield url
    finally:
        process.kill()
        process.wait()
