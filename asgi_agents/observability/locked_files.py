"""Files that a process has locked until it ends.

The lock is flock's. The operating system releases it with the process, however that ends. So it says whether a process
lives whatever its id is, in whatever container it is, and whoever has had that id before.

Nobody who asks takes a lock away for a moment: a file is locked before it gets the name that others look for, and those
who ask share their lock, which they want of nobody who lives.
"""

import os
import stat
from contextlib import suppress
from typing import Final
from weakref import WeakSet

#: For files that may be of whatever kind. Windows has none of them.
FLAGS: Final = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))


class LockedFile:
    """An open file, to be locked until this process ends or closes it. It is closed with its last reference.

    A process that was forked closes it at once: else the lock would last as long as that.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        _held.add(self)

    def lock(self) -> None:
        """Raises :class:`BlockingIOError`: another has it, and :class:`OSError`: the file can't be locked."""
        # Imported here because Windows does not have it.
        import fcntl

        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def status(self) -> os.stat_result:
        """Of the file, whatever name it has."""
        return os.fstat(self._file)

    def is_at(self, directory: int, name: str) -> bool:
        """Whether the file has this name. It has none once somebody has removed it, or put another in its place."""
        return is_at(self._file, directory, name)

    def close(self) -> None:
        """Release the lock. A second call does nothing."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        self.close()


class WorkerPlace:
    """A number that one process has at a time. It has locked the file with that number."""

    def __init__(self, number: int, file: LockedFile) -> None:
        self.number = number
        self._file = file

    def is_held(self, directory: int) -> bool:
        """Whether it is this process's still. Somebody may have removed the file, and another process made it anew."""
        return self._file.is_at(directory, _name_of(self.number))

    def close(self) -> None:
        """Leave it to others."""
        self._file.close()

    @classmethod
    def taken_in(cls, directory: int, most: int) -> "WorkerPlace | None":
        """The smallest of so many that no other process has; None: there is none. Raises OSError."""
        error: OSError | None = None
        for number in range(most):
            name = _name_of(number)
            try:
                file = LockedFile(os.open(name, os.O_RDWR | os.O_CREAT | FLAGS, 0o600, dir_fd=directory))
                status = file.status()
                if stat.S_ISREG(status.st_mode) and not may_be_changed_by_others(status):
                    file.lock()
                    # It may have been removed before it was locked.
                    if file.is_at(directory, name):
                        return cls(number, file)
            except BlockingIOError:
                pass  # another process has it
            except OSError as exc:
                # Whatever else is there; or the same will come of each.
                error = exc
        if error is not None:
            raise error
        return None


def _name_of(place: int) -> str:
    return f"{place}.place"


def is_locked(file: int) -> bool:
    """Whether another has locked the file. Raises OSError where files can't be locked."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def is_at(file: int, directory: int, name: str) -> bool:
    """Whether an open file has this name."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), found)


def may_be_changed_by_others(status: os.stat_result) -> str:
    """Why others than this user may change a file or directory; empty if they may not."""
    if status.st_uid != os.geteuid():
        return f"belongs to the user {status.st_uid}"
    return "may be written to by others" if status.st_mode & 0o022 else ""


# Those of this process, and of the one that it was forked from.
_held: Final[WeakSet[LockedFile]] = WeakSet()


def _close_all() -> None:
    for each in tuple(_held):
        with suppress(OSError):
            each.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
