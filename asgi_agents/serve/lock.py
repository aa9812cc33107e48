"""The lock on the path of a Unix socket, so that no two servers think that the path is theirs."""

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Final

from ..errors import ConfigurationError

# Nobody else may open the file: whoever can open it can hold the lock.
_MODE: Final = 0o600


class Lock:
    """An exclusive lock (flock) on the file ``path`` + ``.lock``, held from now on.

    The operating system lets go of it when the last process that has inherited it ends, however it ends. A file that is
    left behind locks nothing.

    :raises OSError: ``EADDRINUSE`` where another process holds it; where the file can't be opened or locked, what the
        operating system says, with the file's name.
    :raises ConfigurationError: there is something else at the place of the lock file.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}.lock"
        while True:
            self._fd = self._open()
            try:
                if self._is_at_its_path():
                    return
            except BaseException:
                os.close(self._fd)
                raise
            # Another server has removed the file between the two steps.
            os.close(self._fd)

    def _open(self) -> int:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _MODE)
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode) or found.st_size:
                    raise ConfigurationError(f"{self._path}: expected nothing, or an empty file that a server has left")
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(fd)
                raise
        except BlockingIOError:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
        except FileNotFoundError:
            # There is no such directory, which has nothing to do with the lock file.
            raise
        except OSError as exc:
            raise OSError(exc.errno, f"{self._path}: {exc.strerror}") from exc
        return fd

    def _is_at_its_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def fileno(self) -> int:
        """The file's descriptor. A process that inherits it keeps the lock held for as long as it runs."""
        return self._fd

    def release(self) -> None:
        """Let go of the lock, also on behalf of the processes that have inherited it, and remove the file."""
        if self._fd < 0:
            return
        # Removed first: whoever opened it before finds, once it is unlocked, that it is no longer there. A file that
        # can't be removed, which the socket's file beside it has told of, locks nothing either.
        with suppress(OSError):
            if self._is_at_its_path():
                os.unlink(self._path)
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        self._fd = -1
