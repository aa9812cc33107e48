"""Agents in processes of their own, which can be killed, frozen and asked to end."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: Seconds after which what has not happened never will.
PATIENCE = 120.0
ROOT = Path(__file__).resolve().parents[2]


def until(condition: Callable[[], T], *, patience: float = PATIENCE, told: Callable[[], object] = str) -> T:
    """Wait until ``condition`` returns something, and return that; ``told`` is what to say if it never does."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.01)
    return found


class PythonProcess:
    """A module that is run as ``python -m``, with ``environment`` added to our own."""

    def __init__(self, log: Path, module: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        self._command = [sys.executable, "-m", *module]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of the latest process."""
        assert self._process is not None
        return self._process.pid

    @property
    def said(self) -> str:
        """What the latest process has said."""
        return self._log.read_text()

    @property
    def ended(self) -> bool:
        """Whether there is no process now."""
        return self._process is None or self._process.poll() is not None

    def start(self, pass_fds: Sequence[int] = ()) -> None:
        """Start it, whether it is up yet or not."""
        assert self._process is None or self._process.returncode is not None
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                pass_fds=pass_fds,
            )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it, and wait until nothing of it is left but its files."""
        self.send(signal.SIGKILL)
        self.wait_ended()

    def wait_ended(self) -> int:
        """Wait until it has ended of its own accord; returns its exit code."""
        assert self._process is not None
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        """Have done with it, however it is."""
        if self._process is not None and self._process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()


class AgentProcess(PythonProcess):
    """An agent of :mod:`tests.stream_agents.agents`, served from the command line at ``arguments``."""

    def __init__(self, place: Path, agent: str, *arguments: str) -> None:
        super().__init__(place / "log", ["asgi_agents.serve", f"{__package__}.agents:{agent}", *arguments])

    @property
    def addresses(self) -> list[str]:
        """Where it listens."""
        return re.findall(r"listening on (\S+)", self.said)

    def wait_up(self, addresses: int = 1) -> list[str]:
        """Wait until it listens; returns where."""
        until(lambda: len(self.addresses) == addresses, told=lambda: self.said)
        return self.addresses


@contextmanager
def agent_process(agent: str, *arguments: str, addresses: int = 1) -> Iterator[AgentProcess]:
    """A process that serves ``agent``, and is up.

    In ``arguments`` ``{place}`` stands for a directory of its own, with a name that is short enough for sockets.
    """
    with tempfile.TemporaryDirectory(prefix="agents-") as place:
        process = AgentProcess(Path(place), agent, *(argument.replace("{place}", place) for argument in arguments))
        process.start()
        try:
            process.wait_up(addresses)
            yield process
        finally:
            process.end()
