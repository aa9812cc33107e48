"""Servers, each in a process of its own, that want the same Unix socket."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgi_agents import ConfigurationError
from asgi_agents.serve.lock import Lock

# `python -m asgi_agents.serve` on a system where connections that are refused do not show that nobody listens: macOS,
# while a server has as many waiting as it takes.
SERVE = """
import os
import sys
from pathlib import Path

from asgi_agents import Agent
from asgi_agents.serve import __main__, sockets

Path(f"pid-{os.getpid()}").touch()

class Waf(Agent):
    async def on_request_headers(self, event):
        return None

waf = Waf()
sockets._listens = lambda path: False
if __name__ == "__main__":
    sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a server in it, short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="agents-") as path:
        (Path(path) / "house.py").write_text(SERVE)
        yield Path(path)


class Server:
    def __init__(self, place: Path, name: str = "1", *arguments: str) -> None:
        self.log = place / f"log-{name}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "house.py", "house:waf", "--bind", f"unix://{place}/a.sock", *arguments],
                cwd=place,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    @property
    def listens(self) -> bool:
        return "listening on" in self.log.read_text()

    def settle(self) -> bool:
        """Wait until it either listens (True) or has ended."""
        deadline = time.monotonic() + 60
        while not self.listens and self.process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return self.listens

    def refused(self) -> bool:
        """Whether it has said that the address is in use, and ended."""
        return self.process.wait(60) == 2 and "in use: somebody listens there" in self.log.read_text()

    def end(self, signum: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        self.process.wait(60)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        server.end(signal.SIGKILL)


def accepts(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(f"{place}/a.sock")
        except OSError:
            return False
        return True


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_server_that_refuses_connections_keeps_its_socket(workers: str, place: Path, servers: list[Server]) -> None:
    servers.append(Server(place, "first", "--workers", workers))
    assert servers[0].settle()
    inode = (place / "a.sock").stat().st_ino

    servers.append(Server(place, "second", "--workers", workers))

    assert servers[1].refused()
    assert (place / "a.sock").stat().st_ino == inode
    assert accepts(place)
    servers[0].end()
    assert not list(place.glob("a.sock*"))


@pytest.mark.slow
def test_of_servers_that_start_together_one_serves(place: Path, servers: list[Server]) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(f"{place}/a.sock")
    servers += [Server(place, str(number)) for number in range(4)]

    serving = [server for server in servers if server.settle()]

    assert len(serving) == 1
    assert all(server.refused() for server in servers if server not in serving)
    assert accepts(place)


@pytest.mark.slow
def test_what_a_killed_server_leaves_behind_is_replaced(place: Path, servers: list[Server]) -> None:
    servers.append(Server(place, "first"))
    assert servers[0].settle()
    servers[0].end(signal.SIGKILL)
    assert {path.name for path in place.glob("a.sock*")} == {"a.sock", "a.sock.lock"}

    servers.append(Server(place, "second"))

    assert servers[1].settle()
    assert accepts(place)
    servers[1].end()
    assert not list(place.glob("a.sock*"))


@pytest.mark.slow
def test_workers_that_outlive_their_parent_keep_the_socket(place: Path, servers: list[Server]) -> None:
    """They notice it and end, but not while they are busy, and connections still reach them."""
    servers.append(Server(place, "first", "--workers", "2"))
    parent = servers[0].process.pid
    deadline = time.monotonic() + 60
    while len(workers := [pid for pid in importers(place) if pid != parent]) < 2:
        assert time.monotonic() < deadline, servers[0].log.read_text()
        time.sleep(0.02)
    try:
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        servers[0].end(signal.SIGKILL)
        servers.append(Server(place, "second"))
        assert servers[1].refused()
        assert accepts(place)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


def importers(place: Path) -> list[int]:
    """The processes that have imported the agent."""
    return [int(path.name.removeprefix("pid-")) for path in place.glob("pid-*")]


# --- The lock itself ----------------------------------------------------------------------------------------------


def test_a_lock_that_is_held_cannot_be_had_and_leaves_nothing_once_it_is_released(place: Path) -> None:
    path = f"{place}/a.sock"
    lock = Lock(path)
    with pytest.raises(OSError, match="in use"):
        Lock(path)
    lock.release()
    lock.release()
    assert not os.path.exists(f"{path}.lock")
    Lock(path).release()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_no_lock(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server that held it removes it between the other's two steps."""
    path = f"{place}/a.sock"
    before = Lock(path)
    locked: list[int] = []
    open_file = Lock._open

    def late(lock: Lock) -> int:
        if locked:
            return open_file(lock)
        # Opened while the file was there, locked when it was no longer.
        fd = os.open(f"{path}.lock", os.O_RDWR)
        before.release()
        locked.append(fd)
        return fd

    monkeypatch.setattr(Lock, "_open", late)
    lock = Lock(path)
    assert os.path.samestat(os.fstat(lock.fileno()), os.stat(f"{path}.lock"))
    lock.release()


@pytest.mark.parametrize("kind", ["full", "directory", "symlink", "fifo"])
def test_what_is_no_lock_file_is_neither_taken_for_one_nor_removed(kind: str, place: Path) -> None:
    path = place / "a.sock.lock"
    match kind:
        case "full":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "symlink":
            (place / "victim").touch()
            path.symlink_to(place / "victim")
        case _:
            os.mkfifo(path)
    before = path.lstat()
    with pytest.raises((ConfigurationError, OSError), match=r"a\.sock\.lock"):
        Lock(f"{place}/a.sock")
    assert path.lstat().st_ino == before.st_ino


def test_a_lock_file_that_somebody_has_replaced_stays(place: Path) -> None:
    path = place / "a.sock.lock"
    lock = Lock(f"{place}/a.sock")
    (place / "theirs").touch()
    os.replace(place / "theirs", path)
    lock.release()
    assert path.exists()
