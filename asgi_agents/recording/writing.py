"""Writes the lines of a recording in a thread of its own. Nobody who hands a line over waits or fails."""

import contextlib
import errno
import logging
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Generic, TypeVar

from ..errors import ConfigurationError
from ..messages.throttle import Throttle

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

logger: Final = logging.getLogger("asgi_agents")

T = TypeVar("T")

#: So many exchanges, and so many bytes of contents in them, wait to be written at most. Further ones are dropped.
MAX_WAITING_EXCHANGES: Final = 10_000
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024

# Seconds in which lines are collected, so that they are written together.
_INTERVAL: Final = 0.05
# How many are encoded before they are written.
_BATCH: Final = 1000
# Nobody else may read what a recording holds.
_MODE: Final = 0o600
#: Room for the last line, whatever it says.
END_BYTES: Final = 512


class Writer(Generic[T]):
    """One file. What was there before is replaced.

    :param encode: makes the lines of what was handed over; called in the thread of this writer. What it raises is
        logged, and the exchange is dropped.
    :param end: makes the last line, of why the recording ends.
    :param max_bytes: the file's size at most.
    :ivar written: exchanges that are in the file; ``dropped`` those that are not.
    :ivar size: bytes of the file.
    :ivar stopped: why nothing is written any more, in words; empty while it is.
    :raises OSError: the file can't be opened.
    :raises ConfigurationError: another process records to it.
    """

    def __init__(
        self,
        path: Path,
        first: bytes,
        encode: Callable[[T], bytes],
        end: Callable[["Writer[T]"], bytes],
        *,
        max_bytes: int,
    ) -> None:
        self.path = path
        self.written = 0
        self.dropped = 0
        self.size = 0
        self.stopped = ""
        self._encode = encode
        self._end = end
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[T, int]] = deque()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._something = threading.Event()
        self._now = threading.Event()
        self._closing = False
        self._complaints = Throttle()
        self._process = os.getpid()
        self._file = _open(path)
        try:
            self._write(first)
        except BaseException:
            self._close_file()
            raise
        self._thread = threading.Thread(target=self._run, name=f"recording to {path.name}", daemon=True)
        self._thread.start()

    def put(self, item: T, size: int) -> None:
        """Have an exchange written soon; ``size`` is about how many bytes it holds."""
        if os.getpid() != self._process:
            # A fork has no thread that writes, the file is its parent's, and the lock may be held for ever.
            return
        with self._lock:
            if (
                self.stopped
                or self._closing
                or len(self._waiting) >= MAX_WAITING_EXCHANGES
                or self._waiting_bytes + size > MAX_WAITING_BYTES
            ):
                self.dropped += 1
                return
            self._waiting.append((item, size))
            self._waiting_bytes += size
            if len(self._waiting) == 1:
                self._something.set()
            elif len(self._waiting) == MAX_WAITING_EXCHANGES // 2 or self._waiting_bytes > MAX_WAITING_BYTES // 2:
                self._now.set()

    def close(self) -> None:
        """Write what waits and the last line, and close the file. A second call does nothing."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closing = True
        self._now.set()
        self._something.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._something.wait()
                self._now.wait(_INTERVAL)
                self._now.clear()
                self._something.clear()
                self._write_waiting()
            self._write_waiting()
            with contextlib.suppress(OSError):
                self._write(self._end(self))
        except Exception as exc:
            # Nobody waits for this thread, and nobody else would say that it is gone.
            self._stop(f"{type(exc).__name__}: {exc}")
        finally:
            self._close_file()

    def _write_waiting(self) -> None:
        while True:
            with self._lock:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                self._waiting_bytes -= sum(size for _, size in batch)
            if not batch:
                return
            if self.stopped:
                self._drop(len(batch))
                continue
            self._write_batch([item for item, _ in batch])

    def _write_batch(self, items: list[T]) -> None:
        lines = list(self._encoded(items))
        room = self._max_bytes - END_BYTES - self.size
        fitting: list[bytes] = []
        for line in lines:
            room -= len(line)
            if room < 0:
                break
            fitting.append(line)
        try:
            self._write(b"".join(fitting))
        except OSError as exc:
            self._drop(len(lines))
            self._stop(exc.strerror or str(exc))
            return
        self.written += len(fitting)
        if len(fitting) < len(lines):
            self._drop(len(lines) - len(fitting))
            self._stop(f"it has reached max_bytes={self._max_bytes}")

    def _encoded(self, items: list[T]) -> Iterator[bytes]:
        for item in items:
            try:
                yield self._encode(item)
            except Exception:
                self._drop(1)
                if self._complaints.due("encode"):
                    logger.exception("an exchange with an agent can't be recorded (logged once a minute)")

    def _drop(self, count: int) -> None:
        with self._lock:
            self.dropped += count

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        logger.warning(
            "the recording to %s has stopped: %s; it has %d exchanges, and the app goes on without it",
            self.path,
            reason,
            self.written,
        )

    def _write(self, data: bytes) -> None:
        """All of it, or nothing: a line that is not whole is taken back."""
        self._check_file()
        view = memoryview(data)
        try:
            while view:
                count = os.write(self._file, view)
                if not count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                view = view[count:]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.size)
                os.lseek(self._file, self.size, os.SEEK_SET)
            raise
        self.size += len(data)

    def _check_file(self) -> None:
        """Raise OSError where what is written now would be lost, or make what is there unreadable."""
        status = os.fstat(self._file)
        if not status.st_nlink:
            raise OSError("the file was removed")
        if status.st_size != self.size:
            raise OSError("somebody else has changed the file")

    def _close_file(self) -> None:
        if fcntl is not None:
            # A fork may have the file open, and with it the lock.
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)
        os.close(self._file)


# Nothing is waited for, such as a reader of a named pipe. No link is followed: in a directory to which others may
# write, it could lead anywhere.
_FLAGS: Final = (
    os.O_WRONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
)
# Another process may replace the file as well, and be in between.
_TRIES: Final = 10


def _open(path: Path) -> int:
    """A new file, for this process and this user alone.

    What was there is removed. To empty it would not do: who has it open can read what is written then, whatever its
    mode has become.
    """
    for _ in range(_TRIES):
        old = _open_old(path)
        if old is None:
            file = _new(path)
        else:
            try:
                file = _replace(path, old)
            except BaseException:
                os.close(old)
                raise
            if file != old:
                os.close(old)
        if file is not None:
            return file
    raise ConfigurationError(f"record: path={str(path)!r}, which others replace all the time, expected a file")


def _open_old(path: Path) -> int | None:
    """The file that is there, which nobody else records to; None for none."""
    try:
        file = os.open(path, _FLAGS)
    except FileNotFoundError:
        if path.is_symlink():
            raise _no_link(path) from None
        return None
    except OSError as exc:
        if path.is_symlink():
            raise _no_link(path) from None
        if exc.errno == errno.ENXIO:
            # A named pipe that nobody reads from, or a socket.
            raise _no_file(path) from None
        raise
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise _no_file(path)
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            raise ConfigurationError(f"record: path={str(path)!r}, which belongs to another user, expected a new file")
    except BaseException:
        os.close(file)
        raise
    return _locked(path, file)


def _replace(path: Path, old: int) -> int | None:
    """A new file in the place of one that is open and locked; None where that is no longer the one at ``path``.

    Where it can't be removed, it is emptied and used, unless others may have it open.
    """
    status = os.fstat(old)
    if fcntl is not None:
        try:
            if not os.path.samestat(os.stat(path, follow_symlinks=False), status):
                return None
            path.unlink()
        except FileNotFoundError:
            return None
        except OSError as exc:
            if stat.S_IMODE(status.st_mode) != _MODE:
                raise ConfigurationError(
                    f"record: path={str(path)!r}, which can't be removed ({exc.strerror}) and which others may have"
                    " open, expected a new file"
                ) from exc
        else:
            return _new(path)
    os.ftruncate(old, 0)
    return old


def _new(path: Path) -> int | None:
    """A file that was not there; None where it is."""
    try:
        file = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, _MODE)
    except FileExistsError:
        return None
    if hasattr(os, "fchmod"):
        # Whatever the umask is.
        os.fchmod(file, _MODE)
    return _locked(path, file)


def _locked(path: Path, file: int) -> int:
    """The file, which no other process records to from now on."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise ConfigurationError(
                f"record: path={str(path)!r}, which is being recorded to already, expected a file of its own for"
                " each process: f'traffic-{os.getpid()}.jsonl'"
            ) from None
    return file


def _no_link(path: Path) -> ConfigurationError:
    return ConfigurationError(f"record: path={str(path)!r}, a symbolic link, expected a file")


def _no_file(path: Path) -> ConfigurationError:
    return ConfigurationError(f"record: path={str(path)!r}, expected a file")
