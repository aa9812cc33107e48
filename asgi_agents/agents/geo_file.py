"""A file of the format MMDB, read anew when it is replaced. Needs the ``geo`` extra."""

import logging
import stat
import time
from collections.abc import Set
from pathlib import Path
from typing import Final

from ..errors import AgentError, ConfigurationError
from .mmdb import BrokenDatabaseError, Mmdb
from .networks import Address

logger: Final = logging.getLogger("asgi_agents")

# What was written less than so many seconds ago may still be being written. It may also be written again without its
# times changing: the clocks of some file systems count seconds.
_FRESH: Final = 3.0

_Signature = tuple[int, int, int, int, int]


class GeoFile:
    """One file. What was read last holds until there is something better.

    :param wanted: the kinds of places that are asked for.
    :ivar kinds: which of them it told in the beginning. A file that replaces it tells these as well.
    :raises ConfigurationError: for a file that can't be read.
    """

    def __init__(self, where: str, path: Path, wanted: Set[str]) -> None:
        self._where = where
        self._path = path
        self._wanted = wanted
        # Of what was read last, and of what the last look has found.
        self._signature: _Signature
        self._seen: _Signature
        self._problem: str | None = None
        self.kinds: Set[str] = frozenset()
        self._least_version = 4
        try:
            signature = _signature_of(path)
            self._take(signature)
        except BrokenDatabaseError as exc:
            raise ConfigurationError(f"{where}: {path}: {exc}, expected a file of the format MMDB") from exc
        # Nobody can wait here: what may still be being written is read again at the next look.
        self._settled = not _is_fresh(signature)
        self.kinds, self._least_version = self._database.kinds, self._database.version

    def places(self, address: Address) -> Set[str]:
        """What it says of an address. Raises :class:`AgentError` where it is broken there."""
        try:
            return self._database.places(address)
        except BrokenDatabaseError as exc:
            raise AgentError(f"{self._where}: {self._path.name} {exc}") from exc

    def reload(self) -> bool:
        """Read it anew if it has changed, unless it may still be being written. Returns whether it was. This blocks."""
        before = self._signature
        try:
            signature = _signature_of(self._path)
            read = signature != before or not self._settled
            if read:
                # What was the same at the look before was written before that. Clocks of other machines may differ.
                if _is_fresh(signature) and signature != self._seen:
                    self._seen = signature
                    return False
                self._take(signature)
                self._settled = True
        except BrokenDatabaseError as exc:
            if self._problem != str(exc):
                self._problem = str(exc)
                logger.warning("%s: %s: %s; what was read before holds", self._where, self._path, exc)
            return False
        if signature != before:
            logger.info("%s: %s was read anew", self._where, self._path)
        elif self._problem is not None:
            logger.info("%s: %s is there again, and is what was read before", self._where, self._path)
        self._problem = None
        return read

    def _take(self, signature: _Signature) -> None:
        try:
            content = self._path.read_bytes()
        except (OSError, MemoryError) as exc:
            raise BrokenDatabaseError(getattr(exc, "strerror", None) or type(exc).__name__) from exc
        if _signature_of(self._path) != signature:
            raise BrokenDatabaseError("is being written")
        database = Mmdb(content, self._wanted)
        for kind in sorted(self.kinds - database.kinds):
            raise BrokenDatabaseError(f"tells the {kind} of no address any more")
        if database.version < self._least_version:
            raise BrokenDatabaseError("tells nothing of IPv6 addresses any more")
        # Calls go on meanwhile, in other threads.
        self._database = database
        self._signature = self._seen = signature


def _signature_of(path: Path) -> _Signature:
    try:
        status = path.stat()
    except (OSError, ValueError) as exc:
        raise BrokenDatabaseError(getattr(exc, "strerror", None) or "no path of a file") from exc
    if not stat.S_ISREG(status.st_mode):
        # A pipe may never end.
        raise BrokenDatabaseError("no regular file")
    # Nobody can set the last: what replaces a file may have the number, the size and the date of what was there.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_fresh(signature: _Signature) -> bool:
    """Whether what has this signature was written a moment ago, or will be by the clock of the machine that has it."""
    return time.time() - signature[-1] / 1e9 < _FRESH
