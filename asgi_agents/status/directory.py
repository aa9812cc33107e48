"""The directory in which the processes of an app leave their figures for one another.

Each writes one file, puts it in place whole, and takes it away when it ends. It writes only while somebody looks at the
page of any of them, which a file called ``watched`` says. Only the user as whom the app runs may write to the
directory; whatever else is in it, of whatever kind and size, is passed over.

All functions here block: they are for threads.
"""

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ..errors import AgentsError
from ..observability.histograms import SIZE
from ..observability.history import SLOTS
from .model import WorkerShare

#: The size of a file, in bytes. Of a process that has more to say, the latest incidents are read.
MAX_BYTES: Final = 4 * 1024 * 1024
#: How many processes are shown at most, and how many entries of the directory are looked at for them.
MAX_WORKERS: Final = 64
MAX_ENTRIES: Final = 1024
# Seconds after which a file is removed whose process may be in another container.
_FORGOTTEN_AFTER: Final = 600.0

_MARKER: Final = "watched"
_NAME: Final = re.compile(r"\.?([1-9]\d{0,9})-[0-9a-f]{16}\.(json|tmp)")
# Windows has none of them.
_FLAGS: Final = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))
_decoder: Final = msgspec.json.Decoder(WorkerShare)
_Version = tuple[int, int, int]


class UnusableDirectoryError(AgentsError):
    """The directory can't be used; the message says why."""


class Heard(Struct, frozen=True):
    """What another process has written, and when, in seconds since the epoch."""

    share: WorkerShare
    at: float


class SharedDirectory:
    """What one process writes into the directory at ``path`` and reads there. The directory is made if need be.

    All but :attr:`path` raises :class:`UnusableDirectoryError` and :class:`OSError`.

    :param host: what tells the machines and containers apart that have it.
    :param watched_for: for how many seconds the processes write after somebody has looked.
    """

    def __init__(self, path: Path, host: str, watched_for: float) -> None:
        self.path = path
        self._host = host
        self._watched_for = watched_for
        self._pid = 0
        self._stem = ""
        # By the names of the files: what was read, and of which version.
        self._read: dict[str, tuple[_Version, WorkerShare | None]] = {}

    def look(self, *, watching: bool) -> float | None:
        """Since when somebody looks at any of the pages, in seconds since the epoch; None: nobody does.

        :param watching: somebody looks at this process's page.
        """
        with self._opened() as directory:
            now = time.time()
            since = self._watched_since(directory, now)
            if watching:
                if since is None:
                    since = now
                    self._put(directory, _MARKER, repr(now).encode())
                else:
                    os.utime(_MARKER, dir_fd=directory, follow_symlinks=False)
            return since

    def exchange(self, data: bytes) -> Sequence[Heard]:
        """Leave ``data``, the encoded share of this process, and return what the others have left."""
        with self._opened() as directory:
            if len(data) <= MAX_BYTES:
                self._put(directory, f"{self._stem}.json", data)
            return self._others(directory)

    def leave(self) -> None:
        """Take away what this process has written."""
        if self._pid == os.getpid():
            with self._opened() as directory, suppress(FileNotFoundError):
                os.unlink(f"{self._stem}.json", dir_fd=directory)

    def _watched_since(self, directory: int, now: float) -> float | None:
        try:
            status = os.stat(_MARKER, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or abs(now - status.st_mtime) > self._watched_for:
                return None
            since = float(_read(directory, _MARKER, 100))
        except (OSError, ValueError):
            return None
        return since if 0.0 < since <= now else now

    @contextmanager
    def _opened(self) -> Iterator[int]:
        if self._pid != os.getpid():
            # The first time, and in a process that was forked since.
            self._pid = os.getpid()
            self._stem = f"{self._pid}-{secrets.token_hex(8)}"
        with suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fault = _not_ours(os.fstat(directory))
            if fault:
                raise UnusableDirectoryError(
                    f"{self.path} {fault}, expected a directory that only the user of this process may write to"
                )
            yield directory
        finally:
            os.close(directory)

    def _put(self, directory: int, name: str, data: bytes) -> None:
        """Write a file so that others see it whole, or as it was before."""
        passing = f".{self._stem}.tmp"
        with suppress(FileNotFoundError):
            os.unlink(passing, dir_fd=directory)
        file = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=directory)
        try:
            with open(file, "wb") as stream:
                stream.write(data)
            os.replace(passing, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(passing, dir_fd=directory)
            raise

    def _others(self, directory: int) -> Sequence[Heard]:
        now = time.time()
        since = self._watched_since(directory, now)
        # Nobody writes while nobody looks.
        looked = 0.0 if since is None else now - since
        seen = {}
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number >= MAX_ENTRIES:
                    break
                match = _NAME.fullmatch(entry.name)
                if match is None or entry.name.lstrip(".").startswith(f"{self._stem}."):
                    continue
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(status.st_mode) or _not_ours(status):
                        continue
                    if now - status.st_mtime > _FORGOTTEN_AFTER and looked > _FORGOTTEN_AFTER:
                        os.unlink(entry.name, dir_fd=directory)
                    elif match[2] == "json":
                        seen[entry.name] = status
        newest = sorted(seen, key=lambda name: -seen[name].st_mtime)[:MAX_WORKERS]
        self._read = {name: self._read_one(directory, name, seen[name]) for name in newest}
        heard = []
        for name, (_, share) in self._read.items():
            if share is None:
                continue
            worker = share.status.worker
            if worker.host == self._host and (worker.pid == self._pid or not _lives(worker.pid)):
                with suppress(OSError):
                    os.unlink(name, dir_fd=directory)
            else:
                heard.append(Heard(share, seen[name].st_mtime))
        return heard

    def _read_one(self, directory: int, name: str, status: os.stat_result) -> tuple[_Version, WorkerShare | None]:
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._read.get(name)
        if known is not None and known[0] == version:
            return known
        try:
            return version, _decoded(_read(directory, name, MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            # Somebody else's, or of another version of the package.
            return version, None


def _not_ours(status: os.stat_result) -> str:
    """Why others may have written to a file or directory; empty if they may not."""
    if status.st_uid != os.geteuid():
        return f"belongs to the user {status.st_uid}"
    return "may be written to by others" if status.st_mode & 0o022 else ""


def _read(directory: int, name: str, most: int) -> bytes:
    """A regular file of ours of at most so many bytes. Raises OSError."""
    file = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=directory)
    with open(file, "rb") as stream:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or _not_ours(status) or status.st_size > most:
            raise OSError(errno.EPERM, "expected a short file of this user's", name)
        data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, "grows while it is read", name)
    return data


def _decoded(data: bytes) -> WorkerShare:
    """A share that makes sense. Raises ValueError."""
    share = _decoder.decode(data)
    worker = share.status.worker
    counts = [slots for durations in share.durations.values() for slots in (*durations.slots, durations.held)]
    if (
        not 0 < worker.pid < 2**31
        or not 0 <= share.slot < 2**63
        or len(share.status.slots) != SLOTS
        or any(len(agent.slots) != SLOTS for agent in share.status.agents)
        or any(len(durations.slots) != SLOTS for durations in share.durations.values())
        or any(len(each) % 2 for each in counts)
        or any(not 0 <= index < SIZE for each in counts for index in each[::2])
        or any(count < 0 for each in counts for count in each[1::2])
    ):
        raise ValueError("expected the figures of a process")
    return share


def _lives(pid: int) -> bool:
    """Whether there is such a process on this machine, or in this container."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True
