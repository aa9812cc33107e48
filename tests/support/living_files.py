"""Files of processes that live, as the workers of an app leave them: locked."""

import fcntl
import os
from pathlib import Path
from typing import Final

# By the path: the file that is open, and locked as long as it is.
_locked: Final[dict[Path, int]] = {}


def lock(path: Path) -> None:
    """Have the file as one of a process that lives, until :func:`release`."""
    release(path)
    file = os.open(path, os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _locked[path] = file


def release(path: Path) -> None:
    """The process has ended, in whatever way."""
    file = _locked.pop(path, None)
    if file is not None:
        os.close(file)


def leave(path: Path, data: bytes) -> Path:
    """Write a file as a process does that lives: the one before is locked until this one is in its place."""
    passing = path.with_name("passing")
    passing.write_bytes(data)
    passing.chmod(0o600)
    file = os.open(passing, os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    passing.replace(path)
    release(path)
    _locked[path] = file
    return path
