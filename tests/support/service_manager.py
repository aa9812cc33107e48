"""A service manager: it listens, hands its sockets to a process, and hears what that says. As systemd, by its rules."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# Puts the sockets where the manager has to put them, and says for whom they are: only the process itself knows its id.
_LAUNCHER: Final = """
import fcntl, os, sys
fds, command = [int(fd) for fd in sys.argv[1].split(",") if fd], sys.argv[2:]
# First out of the way: one may be where another has to go.
moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, 500) for fd in fds]
for number, fd in enumerate(moved):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
if "WATCHDOG_USEC" in os.environ:
    os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(command[0], command)
"""
# Seconds for what takes one.
_PATIENCE: Final = 60.0


class Service:
    """One run of the process."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log

    def stop(self) -> int:
        """SIGTERM, as the manager stops a service; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.ended()

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        try:
            return self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(self.log.read_text()) from None


class ServiceManager:
    """Holds the sockets of a service, while the service comes and goes.

    :param sockets: they listen; each with its ``FileDescriptorName=``.
    :param watchdog: ``WatchdogSec=``, in seconds.
    """

    def __init__(
        self,
        directory: Path,
        command: Sequence[str],
        sockets: Sequence[tuple[str, socket.socket]],
        *,
        watchdog: float | None = None,
    ) -> None:
        self._directory = directory
        self._command = command
        self._sockets = sockets
        self._watchdog = watchdog
        self._runs = 0
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(directory / "notify"))
        self._notify.settimeout(_PATIENCE)

    def start(self, *, ready: bool = True) -> Service:
        """Start the process; ``ready``: wait until it says that it is."""
        self._runs += 1
        log = self._directory / f"log-{self._runs}"
        environ = {**os.environ, "NOTIFY_SOCKET": str(self._directory / "notify"), **self._told()}
        fds = [sock.fileno() for _, sock in self._sockets]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCHER, ",".join(map(str, fds)), *self._command],
                cwd=self._directory,
                env=environ,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )
        service = Service(process, log)
        if ready:
            self.hear("READY=1", service)
        return service

    def _told(self) -> Mapping[str, str]:
        told = {"LISTEN_FDS": str(len(self._sockets)), "LISTEN_FDNAMES": ":".join(name for name, _ in self._sockets)}
        return told if self._watchdog is None else told | {"WATCHDOG_USEC": str(int(self._watchdog * 1_000_000))}

    def hear(self, message: str, service: Service) -> None:
        """Wait for a message of the process; others before it are left out."""
        self._notify.settimeout(0.1)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                if self._notify.recv(4096).decode() == message:
                    return
            except TimeoutError:
                assert service.process.poll() is None, service.log.read_text()
        raise AssertionError(f"it has not said {message}: {service.log.read_text()}")

    def heard(self) -> list[str]:
        """All that the process has said and nobody has waited for."""
        self._notify.setblocking(False)
        found: list[str] = []
        while True:
            try:
                found.append(self._notify.recv(4096).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        """Give up the sockets."""
        self._notify.close()
        for _, sock in self._sockets:
            sock.close()


@contextmanager
def service_manager(
    directory: Path, command: Sequence[str], sockets: Sequence[tuple[str, socket.socket]], **options: float | None
) -> Iterator[ServiceManager]:
    """A manager, and in the end nothing of it."""
    manager = ServiceManager(directory, command, sockets, **options)
    try:
        yield manager
    finally:
        manager.close()
