"""Files of the format MMDB, looked at now and then. Needs the ``geo`` extra."""

import logging
import time
from collections.abc import Sequence, Set
from contextvars import Context
from functools import lru_cache
from ipaddress import IPv6Network
from pathlib import Path
from threading import Lock, Thread
from typing import Final

from .geo_file import GeoFile
from .networks import Address

logger: Final = logging.getLogger("asgi_agents")

#: Seconds between two looks at the files.
INTERVAL: Final = 10.0
#: So many addresses are remembered with what the files say of them.
MAX_ADDRESSES: Final = 10_000
# Teredo: what files say of such an address is of the server in it (RFC 4380, section 4), which the client chooses.
_TEREDO: Final = IPv6Network("2001::/32")


class GeoDatabases:
    """Several files, of which each may tell countries, autonomous systems, or both.

    They are looked at beside a request every :data:`INTERVAL` seconds. A file that can't be read any more, or not yet,
    or that tells less than it did, leaves in place what was read before, which is logged.

    :param wanted: the kinds of places that are asked for.
    :ivar kinds: which of them the files tell.
    :raises ConfigurationError: for a file that can't be read.
    """

    def __init__(self, where: str, paths: Sequence[Path], wanted: Set[str]) -> None:
        self._where = where
        self._files = [GeoFile(where, path, wanted) for path in paths]
        self.kinds: Final = frozenset[str]().union(*(file.kinds for file in self._files))
        self._due = time.monotonic() + INTERVAL
        # Held while a look is under way.
        self._looking = Lock()
        self._hangs = False
        self._forget()

    def places(self, address: Address) -> Set[str]:
        """What the files say of an address. Raises :class:`AgentError` for a file that is broken where that stands."""
        return self._remembered(address)

    def look(self) -> None:
        """Look at the files again, beside the running code, where it is time to and no look is under way.

        A look has a thread of its own. On a file system that is away it never ends, and would keep one of the threads
        in which the app's own functions run.
        """
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + INTERVAL
        if not self._looking.acquire(blocking=False):
            if not self._hangs:
                self._hangs = True
                logger.warning("%s: its files can't be looked at; what was read before holds", self._where)
            return
        try:
            Thread(target=Context().run, args=(self._look,), name="asgi_agents files", daemon=True).start()
        except RuntimeError as exc:
            self._looking.release()
            logger.warning("%s: its files were not looked at: %s", self._where, exc)

    def reload(self) -> None:
        """Read the files anew that have changed. This blocks."""
        for file in self._files:
            if file.reload():
                self._forget()

    def _look(self) -> None:
        try:
            self.reload()
        finally:
            self._hangs = False
            self._looking.release()

    def _forget(self) -> None:
        # A new one: an address that is looked up meanwhile, in the files of before, is put into the old one.
        self._remembered = lru_cache(MAX_ADDRESSES)(self._look_up)

    def _look_up(self, address: Address) -> Set[str]:
        if address in _TEREDO:
            return frozenset()
        return frozenset[str]().union(*(file.places(address) for file in self._files))
