"""Notices that a file has changed, by looking at it again and again."""

import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from ..errors import ConfigurationError
from .retry import Retry
from .source import digest_of, read_bytes

logger: Final = logging.getLogger("asgi_agents")

#: Seconds between two looks.
INTERVAL: Final[float] = 1.0
# A file that was written less than so many nanoseconds ago may be written again without its times changing: the clocks
# of some file systems count seconds.
_FRESH: Final = 3 * 10**9
# What stands for the content of a file that can't be read.
_UNREADABLE: Final = b"unreadable"

_Signature = tuple[int, int, int, int, int]


class FileWatch:
    """What is known of a file.

    A change counts once the content is the same at two looks in a row, so that hardly any file is taken that is still
    being written. Links are followed at each look, also where a directory on the way is one, as for a ConfigMap.

    :param taken: the digest of the content that was taken last. Others may take the file too, between two looks: what
        is changed back after that is a change.
    """

    def __init__(self, path: Path, taken: Callable[[], bytes], clock: Callable[[], int] = time.time_ns) -> None:
        self.path = path
        self._clock = clock
        self._digest_taken = taken
        self._taken = self._known = self._seen = taken()
        self._unchanged: _Signature | None = None

    def look(self) -> bool:
        """Whether there is a change to be taken. It is known from then on. This reads the file."""
        now = self._clock()
        taken = self._digest_taken()
        if taken != self._taken:
            self._taken = self._known = self._seen = taken
            self._unchanged = None
        try:
            status = os.stat(self.path)
        except OSError:
            signature = None
        else:
            # Who keeps the time of writing, or unpacks a file that has a fixed one, can't keep that of the change.
            times = (status.st_mtime_ns, status.st_ctime_ns)
            signature = (status.st_dev, status.st_ino, status.st_size, *times)
            if signature == self._unchanged:
                return False
        try:
            digest = digest_of(read_bytes(self.path))
        except ConfigurationError:
            digest = _UNREADABLE
        same, self._seen = digest == self._seen, digest
        if not same:
            return False
        # Only what was read twice is passed over from then on.
        if signature is not None and now - max(times) > _FRESH:
            self._unchanged = signature
        changed, self._known = digest != self._known, digest
        return changed


async def on_change(
    watch: FileWatch,
    function: Callable[[], Awaitable[object]],
    again: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Call ``function`` whenever the file has changed, until cancelled.

    :param again: what is called while the file stays the same, as long as the last call has returned True.
    """
    retry = Retry()
    failing = False
    while True:
        await anyio.sleep(INTERVAL)
        try:
            changed = await to_thread.run_sync(watch.look)
        except Exception:
            # There may be no thread, for one, as long as the app has taken all that there are.
            if not failing:
                logger.exception("%s: can't be looked at; looking again and again (logged once)", watch.path)
            failing = True
            continue
        failing = False
        if changed:
            retry.note(await function(), first=True)
        elif again is not None and retry.left <= 0:
            retry.note(await again(), first=False)
