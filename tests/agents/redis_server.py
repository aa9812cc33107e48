"""A real Redis, for tests that end it."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

# Seconds for it to start.
_PATIENCE = 30


class RedisServer:
    """One on a Unix socket, which keeps nothing on disk. Skips the test where none is installed."""

    def __init__(self, directory: Path) -> None:
        command = shutil.which("redis-server")
        if command is None:
            assert "REQUIRE_REDIS" not in os.environ, "redis-server is missing"
            pytest.skip("there is no redis-server here: apt-get install redis-server")
        self._path = str(directory / "redis")
        self._command = [command, "--port", "0", "--unixsocket", self._path, "--save", "", "--dir", str(directory)]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._path}"

    def start(self) -> None:
        """Run it, and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                assert self.command("PING") == b"+PONG\r\n"
            except OSError:
                assert time.monotonic() < until, "redis-server did not start"
                time.sleep(0.002)
            else:
                return

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            Path(self._path).unlink(missing_ok=True)

    def halt(self) -> None:
        """Let it answer nothing, until :meth:`go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer, also what it was asked meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """What it answers to a command, as on the wire."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_PATIENCE)
            client.connect(self._path)
            client.sendall(b" ".join(word.encode() for word in words) + b"\r\n")
            return client.recv(1_000_000)
