"""The directory in which the processes of an app leave their figures for one another.

Each writes one file of a kind, puts it in place whole, has it locked as long as it lives, and takes it away when it
ends. It writes when it begins, and while somebody asks any of them, which a file says that they all touch. A file that
nobody has locked is of a process that has ended, and is removed. Only the user as whom the app runs may write to the
directory; whatever else is in it, of whatever kind and size, is passed over.

All functions here block: they are for threads. :class:`~asgi_agents.observability.attempts.Attempts` has them run
there.
"""

import os
import re
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from heapq import nlargest
from pathlib import Path
from threading import Lock
from typing import Any, Final, Generic, NamedTuple, TypeVar
from weakref import WeakSet

from msgspec import MsgspecError, Struct

from ..errors import ConfigurationError
from .attempts import UnusableDirectoryError
from .locked_files import FLAGS, LockedFile, WorkerPlace, is_at, is_locked, may_be_changed_by_others

T = TypeVar("T")

#: The size of a file, in bytes.
MAX_BYTES: Final = 4 * 1024 * 1024
#: The size of all files that are read, in bytes.
MAX_TOTAL_BYTES: Final = 64 * 1024 * 1024
#: How many processes are read at most, and how many files are looked at for them: the newest.
MAX_WORKERS: Final = 64
MAX_ENTRIES: Final = 1024
#: How many processes can have a :meth:`WorkerDirectory.place`.
MAX_PLACES: Final = 64
# Seconds after which a file is removed that somebody has begun to write.
_ABANDONED_AFTER: Final = 600.0
# How often a file is opened that another takes the place of meanwhile.
_OPENED: Final = 10

_Version = tuple[int, int, int]
# What was read, and of which version; of what can't be read the reason.
_Found = tuple[_Version, T | str]


class FileKind(NamedTuple, Generic[T]):
    """What the processes leave for one another.

    :ivar marker: the name of the file that says when somebody has asked last.
    :ivar suffix: of the files of the processes.
    :ivar decode: raises :class:`ValueError` or :class:`msgspec.MsgspecError` for what makes no sense.
    """

    marker: str
    suffix: str
    decode: Callable[[bytes], T]


class Heard(Struct, Generic[T], frozen=True):
    """What another process has written.

    :ivar name: of its file.
    :ivar at: when, in seconds since the epoch; ``stamp`` is the same in nanoseconds, and tells a version of the file
        from the next.
    """

    name: str
    share: T
    at: float
    stamp: int


class Others(Struct, Generic[T], frozen=True):
    """What there is of the other processes that live.

    :ivar heard: what they have written.
    :ivar old: the files that were not read, because they are of before what was asked for, and the stamp of each.
    :ivar unread: how many have written what can't be read, by the reason.
    :ivar found: for the next to read, which reads no file again that is the same.
    """

    heard: Sequence[Heard[T]]
    old: Mapping[str, int]
    unread: Mapping[str, int]
    found: Mapping[str, tuple[tuple[int, int, int], Any]]

    @property
    def reason(self) -> str:
        """Why some of them are not in :attr:`heard`; empty: all are."""
        return ", ".join(f"{number} {'has' if number == 1 else 'have'} {why}" for why, number in self.unread.items())


class WorkerDirectory(Generic[T]):
    """What one process writes into the directory at ``path`` and reads there. The directory is made if need be.

    All but :attr:`path`, :attr:`joined` and :meth:`join` raise :class:`UnusableDirectoryError` and :class:`OSError`.

    :param watched_for: for how many seconds somebody looks who has looked once.
    """

    def __init__(self, path: Path, watched_for: float, kind: FileKind[T]) -> None:
        self.path = path
        self._watched_for = watched_for
        self._kind = kind
        self._name: Final = re.compile(rf"\.?[1-9]\d{{0,9}}-[0-9a-f]{{16}}\.({kind.suffix}|tmp)")
        self._begin()
        _here.add(self)

    def _begin(self) -> None:
        """Be as one that has not been there. Whatever another has, from which this process was forked, is not its."""
        # A thread that this process does not have may have them locked.
        self._lock = Lock()
        # Of several threads one after the other has the file that passes into place.
        self._writing = Lock()
        self._users = 0
        self._stem = ""
        self._pid = os.getpid()
        self._place: WorkerPlace | None = None
        self._written: LockedFile | None = None

    def look(self, *, watching: bool) -> float | None:
        """Since when somebody asks any of the processes, in seconds since the epoch; None: nobody does.

        :param watching: somebody asks this process.
        """
        with self._opened() as directory:
            return self._touched(directory) if watching else self._watched_since(directory, time.time())

    def ask(self) -> None:
        """Have the others write what they have to say: :meth:`asked` is another one from now on."""
        with self._opened() as directory:
            self._touched(directory)
            # File systems have clocks of their own, which may stand still for some milliseconds.
            stamp = time.time_ns()
            os.utime(self._kind.marker, ns=(stamp, stamp), dir_fd=directory, follow_symlinks=False)

    def asked(self) -> int:
        """Tells one :meth:`ask` of any of the processes from the next; 0 if none has asked."""
        with self._opened() as directory, suppress(FileNotFoundError):
            return os.stat(self._kind.marker, dir_fd=directory, follow_symlinks=False).st_mtime_ns
        return 0

    def write(self, data: bytes) -> None:
        """Leave ``data``, the encoded share of this process, of at most :data:`MAX_BYTES`."""
        if len(data) > MAX_BYTES:
            raise UnusableDirectoryError(f"this worker has {len(data)} bytes to write, expected at most {MAX_BYTES}")
        with self._opened() as directory, self._writing:
            before, self._written = self._written, self._put(directory, self._own, data, kept=True)
            if before is not None:
                # Not sooner: who looks must find this process's file locked at any time.
                before.close()

    @property
    def _own(self) -> str:
        return f"{self._stem}.{self._kind.suffix}"

    def is_written(self) -> bool:
        """Whether there is what this process has written last. Somebody may have removed all files."""
        with self._opened() as directory, self._writing:
            return self._written is not None and self._written.is_at(directory, self._own)

    def read(self, before: Others[T] | None = None, *, since: float = 0.0) -> Others[T]:
        """What the others have left that live.

        :param before: what was read last. Of files that have not changed since it is the same.
        :param since: files that are older are not read, in seconds since the epoch.
        """
        with self._opened() as directory:
            reading = _Reading(directory, self._kind.decode, {} if before is None else before.found, since)
            files = _Files(self._files_of_others(directory))
            newest = nlargest(MAX_ENTRIES, files, key=lambda each: each[1])
            for name, _ in newest:
                reading.take(name)
        if files.number > len(newest):
            reading.unread[f"a file among more than {MAX_ENTRIES}"] = files.number - len(newest)
        return Others(reading.heard, reading.old, dict(reading.unread), reading.found)

    def place(self) -> int:
        """The smallest number from 0 on that no other process had that lives when this one asked first.

        It is this one's until it ends, in whatever way, or has called :meth:`leave`. Where somebody has removed the
        files, it is another one.
        """
        with self._opened() as directory, self._lock:
            if self._place is not None and not self._place.is_held(directory):
                self._place = None
            if self._place is None:
                self._place = WorkerPlace.taken_in(directory, MAX_PLACES)
            if self._place is None:
                raise UnusableDirectoryError(f"{self.path} has no place left, expected at most {MAX_PLACES} processes")
            return self._place.number

    def join(self) -> None:
        """Count a user, such as an event loop."""
        with self._lock:
            self._users += 1

    @property
    def joined(self) -> bool:
        """Whether there are any users."""
        return self._users > 0

    def leave(self) -> None:
        """Take away what this process has written, if this is the last user."""
        with self._lock:
            self._users = max(0, self._users - 1)
            if self._users or not self._stem:
                return
        try:
            with self._opened() as directory, suppress(FileNotFoundError):
                os.unlink(self._own, dir_fd=directory)
        finally:
            with self._lock, self._writing:
                # Who has joined meanwhile goes on with what is there, and writes anew where it was taken away.
                if not self._users:
                    # What could not be taken away is of nobody who lives.
                    for held in (self._written, self._place):
                        if held is not None:
                            held.close()
                    self._written = self._place = None
                    self._stem = ""

    def _touched(self, directory: int) -> float:
        now = time.time()
        since = self._watched_since(directory, now)
        if since is None:
            with self._writing:
                self._put(directory, self._kind.marker, repr(now).encode(), kept=False)
            return now
        os.utime(self._kind.marker, dir_fd=directory, follow_symlinks=False)
        return since

    def _watched_since(self, directory: int, now: float) -> float | None:
        try:
            status = os.stat(self._kind.marker, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or abs(now - status.st_mtime) > self._watched_for:
                return None
            file = os.open(self._kind.marker, os.O_RDONLY | FLAGS, dir_fd=directory)
            with open(file, "rb") as stream:
                if not _is_of_a_process(os.fstat(file)):
                    return None
                since = float(stream.read(100))
        except (OSError, ValueError):
            return None
        return since if 0.0 < since <= now else now

    @contextmanager
    def _opened(self) -> Iterator[int]:
        if self._pid != os.getpid():
            # Forked by what does not tell Python so.
            self._begin()
        with self._lock:
            if not self._stem:
                self._stem = f"{self._pid}-{secrets.token_hex(8)}"
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            raise UnusableDirectoryError(
                f"{self.path} can't be made, because {self.path.parent} is not there; expected that to be made before"
            ) from None
        status = os.lstat(self.path)
        if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
            raise UnusableDirectoryError(
                f"{self.path} is a link of the user {status.st_uid}, expected one of this process's user or of root"
            )
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fault = may_be_changed_by_others(os.fstat(directory))
            if fault:
                raise UnusableDirectoryError(
                    f"{self.path} {fault}, expected a directory that only the user of this process may write to"
                )
            yield directory
        finally:
            os.close(directory)

    def _put(self, directory: int, name: str, data: bytes, *, kept: bool) -> LockedFile | None:
        """Write a file so that others see it whole, or as it was before.

        :param kept: it is locked before others see it, until what is returned is closed.
        """
        passing = f".{self._stem}.tmp"
        with suppress(FileNotFoundError):
            os.unlink(passing, dir_fd=directory)
        descriptor = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, 0o600, dir_fd=directory)
        file = LockedFile(descriptor)
        try:
            if kept:
                file.lock()
            with open(descriptor, "wb", closefd=False) as stream:
                stream.write(data)
            os.replace(passing, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(passing, dir_fd=directory)
            file.close()
            raise
        if kept:
            return file
        file.close()
        return None

    def _files_of_others(self, directory: int) -> Iterator[tuple[str, int]]:
        """Their names, and when they were written."""
        now = time.time()
        with os.scandir(directory) as entries:
            for entry in entries:
                match = self._name.fullmatch(entry.name)
                if match is None or entry.name.lstrip(".").startswith(f"{self._stem}."):
                    continue
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if not _is_of_a_process(status):
                        continue
                    if match[1] != "tmp":
                        yield entry.name, status.st_mtime_ns
                    elif now - status.st_mtime > _ABANDONED_AFTER:
                        os.unlink(entry.name, dir_fd=directory)


class _Files:
    """Counts what it goes through."""

    def __init__(self, files: Iterator[tuple[str, int]]) -> None:
        self._files = files
        self.number = 0

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for each in self._files:
            self.number += 1
            yield each


class _Reading(Generic[T]):
    """Takes one file after the other, the newest first, until there are enough."""

    def __init__(
        self, directory: int, decode: Callable[[bytes], T], before: Mapping[str, _Found[T]], since: float
    ) -> None:
        self._directory = directory
        self._decode = decode
        self._before = before
        self._since = since
        self._bytes = 0
        self.heard: list[Heard[T]] = []
        self.old: dict[str, int] = {}
        self.unread: Counter[str] = Counter()
        self.found: dict[str, _Found[T]] = {}

    def take(self, name: str) -> None:
        """Read the file, if its process lives; remove it, if not."""
        try:
            taken = any(self._takes(name) for _ in range(_OPENED))
        except FileNotFoundError:
            return
        except OSError as exc:
            self.unread[f"a file that can't be opened or locked ({exc.strerror})"] += 1
        else:
            if not taken:
                self.unread["a file that changes all the time"] += 1

    def _takes(self, name: str) -> bool:
        """Whether it is done with; False: another has taken the place of the file."""
        file = os.open(name, os.O_RDONLY | FLAGS, dir_fd=self._directory)
        with open(file, "rb", buffering=0) as stream:
            status = os.fstat(file)
            if not _is_of_a_process(status):
                return True
            if not is_locked(file):
                # A process that lives has released it after another has taken its name, and it never has it again.
                if not is_at(file, self._directory, name):
                    return False
                os.unlink(name, dir_fd=self._directory)
                return True
            self._read(name, stream.read, status)
        return True

    def _read(self, name: str, read: Callable[[int], bytes | None], status: os.stat_result) -> None:
        if status.st_mtime < self._since:
            self.old[name] = status.st_mtime_ns
            return
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._before.get(name)
        share: T | str
        if status.st_size > MAX_BYTES:
            share = f"a file over {MAX_BYTES} bytes"
        elif len(self.heard) >= MAX_WORKERS:
            share = f"a file beyond those of {MAX_WORKERS}"
        elif self._bytes + status.st_size > MAX_TOTAL_BYTES:
            share = f"a file beyond {MAX_TOTAL_BYTES} bytes of others"
        else:
            share = known[1] if known is not None and known[0] == version else self._decoded(read, status.st_size)
            self.found[name] = version, share
        if isinstance(share, str):
            self.unread[share] += 1
            return
        self._bytes += status.st_size
        self.heard.append(Heard(name, share, status.st_mtime, status.st_mtime_ns))

    def _decoded(self, read: Callable[[int], bytes | None], size: int) -> T | str:
        try:
            data = b""
            # One byte more: it was written before others saw it, and does not grow.
            while len(data) <= size and (more := read(size + 1 - len(data))):
                data += more
            return self._decode(data) if len(data) == size else "a file that changes while it is read"
        except OSError as exc:
            return f"a file that can't be read ({exc.strerror})"
        except (ValueError, MsgspecError, RecursionError):
            return "a file of another version of the package, or a damaged one"


def _is_of_a_process(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and not may_be_changed_by_others(status)


# Those of this process, and of the one that it was forked from.
_here: Final[WeakSet[WorkerDirectory[Any]]] = WeakSet()


def _begin_all() -> None:
    for each in tuple(_here):
        each._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_all)


def directory_of(where: str, given: object) -> Path | None:
    """The argument ``directory`` of an app; None: there is none. Raises :class:`ConfigurationError`."""
    if given is None:
        return None
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else given
    if not isinstance(path, str) or not path or "\0" in path or not _can_be_a_path(path):
        raise ConfigurationError(f"{where}: directory={given!r}, expected the path of a directory")
    if not hasattr(os, "O_NOFOLLOW") or os.scandir not in os.supports_fd:
        raise ConfigurationError(f"{where}: directory={given!r}, expected none on this operating system")
    # Where the process goes to another directory later, this one stays the same.
    return Path(path).absolute()


def _can_be_a_path(given: str) -> bool:
    try:
        os.fsencode(given)
    except UnicodeEncodeError:
        return False
    return True
