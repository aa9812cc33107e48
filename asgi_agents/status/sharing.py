"""Shows the processes of an app together: each tells the others how it is, through a directory.

The task of each process writes, while somebody looks at any of the pages. Only the process that is looked at reads what
the others have written. It adds it up, and encodes it, in a thread.
"""

import time
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import msgspec
from anyio import CapacityLimiter, to_thread
from msgspec.structs import replace

from ..concurrency.rounds import Rounds
from ..observability.attempts import Attempts, Fault, unheard
from ..observability.worker_directory import MAX_BYTES, Heard, Others
from ..registry import AgentRegistry
from .cleaning import IncidentCleaner
from .directory import SharedDirectory, encoded
from .merging import merge
from .model import Status, WorkerShare
from .snapshot import take_share, take_snapshot

# Seconds for which the processes tell one another how they are after somebody has looked, or as many intervals.
_WATCHED_FOR: Final = 10.0
# Seconds for which a process may say nothing while somebody looks, and as many of its intervals.
_PATIENCE: Final = 5.0
_PATIENT_INTERVALS: Final = 3
# Seconds for which a first look waits for what the others say, and after which each process sees that somebody looks.
_FIRST_LOOK: Final = 2.0
_NOTICED_AFTER: Final = 0.5
# Seconds between two looks at what the others have written meanwhile.
_LOOK_EVERY: Final = 0.02
# Seconds by which the time of a file may be too early: file systems have clocks of their own.
_COARSE: Final = 0.02

_UNHEARD: Final = unheard("status_app")


class _Look(NamedTuple):
    """What there is of the others, and since when somebody looks, in seconds since the epoch."""

    others: Others[WorkerShare]
    since: float

    @property
    def waits(self) -> bool:
        """Whether somebody has just begun to look, and there are some that have not said anything since."""
        return time.time() - self.since < _FIRST_LOOK and any(map(self.is_from_before, self.others.heard))

    def is_from_before(self, heard: Heard[WorkerShare]) -> bool:
        return heard.at < self.since - _COARSE


class SharedStatus:
    """The status of this process with that of the others that share the directory at ``path``.

    :param cleaner: of the snapshots of this process.
    """

    def __init__(self, path: Path, registry: AgentRegistry, interval: float, cleaner: IncidentCleaner) -> None:
        self._watched_for = max(_WATCHED_FOR, _PATIENT_INTERVALS * interval)
        self._directory = SharedDirectory(path, self._watched_for)
        self._registry = registry
        self._interval = interval
        self._cleaner = cleaner
        self._attempts = Attempts("status_app: other workers are not shown")
        # A viewer may see what another has begun to look at.
        self._rounds: Rounds[bytes] = Rounds(anew=False)
        # What was shown last and when, and what it was made of. Kept while somebody looks.
        self._shown = b""
        self._shown_at = float("-inf")
        self._others: Others[WorkerShare] | None = None
        # When the others were told last, since when somebody looked then, and why they could not be told.
        self._told_at = float("-inf")
        self._told_since: float | None = None
        self._untold: Fault | None = None

    async def run(self) -> None:
        """Tell the others how this process is while somebody looks at any of the pages, until cancelled."""
        self._directory.join()
        try:
            while True:
                await self._attempts.in_background(self._tell)
                if time.monotonic() - self._shown_at > self._watched_for:
                    self._shown, self._others = b"", None
                await anyio.sleep(min(self._interval, _NOTICED_AFTER))
        finally:
            # A moment, on a local disk.
            self._attempts.make(self._directory.leave)

    async def _tell(self) -> None:
        now = time.monotonic()
        found = await self._attempts.in_thread(self._look_around)
        if isinstance(found, Fault):
            self._untold = found
            return
        since, is_written = found
        due = since is not None and (since != self._told_since or now - self._told_at >= self._interval * 0.9)
        # Also when it begins, and when somebody has removed the files: so that who looks knows of whom to hear.
        if due or not is_written or self._untold is not None:
            # Without routes: nobody adds them up, and those of a large app are megabytes.
            share = take_share(self._registry, self._snapshot(routes=False))
            # Nothing but this clears it: the next that fails would be said anew.
            self._untold = await self._attempts.in_thread(partial(self._write, share))
            self._told_at, self._told_since = now, since

    def _look_around(self) -> tuple[float | None, bool]:
        return self._directory.look(watching=False), self._directory.is_written()

    def _write(self, share: WorkerShare) -> None:
        data, whole = encoded(share)
        if not whole:
            self._attempts.complain(f"the figures of this worker take more than {MAX_BYTES} bytes, so it is silent")
        self._directory.write(data)

    async def encoded(self, max_age: float) -> bytes:
        """The :class:`Status` of all processes together as JSON, as it was at most so many seconds ago.

        The first time this waits until all have said something, or should have. What many viewers see at the same time
        is made once.
        """
        if time.monotonic() - self._shown_at <= max_age:
            return self._shown
        return await self._rounds.take(self._show)

    async def _show(self) -> bytes:
        look = await self._look()
        now = time.monotonic()
        own = take_share(self._registry, self._snapshot())
        shown = await to_thread.run_sync(_together, own, self._untold or look, limiter=CapacityLimiter(1))
        self._shown, self._shown_at = shown, now
        return shown

    async def _look(self) -> _Look | Fault:
        """Have the others tell how they are, and hear them."""
        # It takes less. But clocks may be set back meanwhile.
        until = time.monotonic() + 2 * _FIRST_LOOK
        while True:
            look = await self._attempts.in_thread(self._hear)
            if isinstance(look, Fault):
                return look
            # Not sooner: the task of an app that has just started has begun by now.
            if not self._directory.joined:
                return _UNHEARD
            if not look.waits or time.monotonic() >= until:
                return look
            await anyio.sleep(_LOOK_EVERY)

    def _hear(self) -> _Look:
        since = self._directory.look(watching=True)
        others = self._others = self._directory.read(self._others)
        return _Look(others, time.time() if since is None else since)

    def _snapshot(self, *, routes: bool = True) -> Status:
        return take_snapshot(self._registry, self._interval, self._cleaner, routes=routes)


def _together(own: WorkerShare, look: _Look | Fault) -> bytes:
    return msgspec.json.encode(together(own, look))


def together(own: WorkerShare, look: _Look | Fault) -> Status:
    """The status of all processes; that of this one alone where the others could not be heard, which it then says."""
    if isinstance(look, Fault):
        return replace(own.status, unshared=look.reason)
    others = look.others
    if not others.heard and not others.unread:
        return own.status
    now = time.time()
    shares, silent = [own], []
    for heard in others.heard:
        worker, patience = heard.share.status.worker, max(_PATIENCE, _PATIENT_INTERVALS * heard.share.status.interval)
        unheard = look.is_from_before(heard) and now - look.since >= _FIRST_LOOK
        if worker.silent or unheard or now - max(heard.at, look.since) > patience:
            silent.append(replace(worker, silent=True))
        else:
            shares.append(heard.share)
    full = sum(heard.share.status.worker.silent for heard in others.heard)
    reasons = [
        others.reason,
        f"{full} {'has' if full == 1 else 'have'} more figures than fit into a file" if full else "",
    ]
    return replace(merge(shares, silent), unshared=", ".join(filter(None, reasons)) or None)
