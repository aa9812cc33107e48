"""Shows the processes of an app together: each tells the others how it is, through a directory."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio
import msgspec
from anyio import CapacityLimiter, to_thread
from msgspec.structs import replace

from ..messages.throttle import Throttle
from ..registry import AgentRegistry
from .cleaning import IncidentCleaner
from .directory import MAX_BYTES, Heard, SharedDirectory, UnusableDirectoryError
from .merging import merge
from .model import Status, WorkerShare
from .snapshot import hostname, take_share, take_snapshot

logger: Final = logging.getLogger("asgi_agents")

T = TypeVar("T")

# Seconds for which the processes tell one another how they are after somebody has looked, or as many intervals.
_WATCHED_FOR: Final = 10.0
# Seconds for which a process may say nothing while somebody looks, and as many of its intervals.
_PATIENCE: Final = 5.0
_PATIENT_INTERVALS: Final = 3
# How many incidents of a kind are told of each agent, where all of them would be too much for a file.
_FEW: Final = 5


class SharedStatus:
    """The status of this process with that of the others that share the directory at ``path``.

    :param cleaner: of the snapshots of this process.
    """

    def __init__(self, path: Path, registry: AgentRegistry, interval: float, cleaner: IncidentCleaner) -> None:
        self._directory = SharedDirectory(path, hostname(), max(_WATCHED_FOR, _PATIENT_INTERVALS * interval))
        self._registry = registry
        self._interval = interval
        self._cleaner = cleaner
        self._others: Sequence[Heard] = ()
        self._watched_since: float | None = None
        self._fault: str | None = None
        self._busy = False
        self._exchanged_at = float("-inf")
        self._throttle = Throttle()

    async def run(self) -> None:
        """Tell the others how this process is while somebody looks at any of the pages, until cancelled."""
        try:
            while True:
                await anyio.sleep(self._interval)
                await self._exchange(watching=False)
        finally:
            # A moment, on a local disk.
            self._attempt(self._directory.leave)

    async def watch(self) -> None:
        """Somebody looks at the page of this process: have the others tell how they are, and hear them."""
        await self._exchange(watching=True)

    def take(self) -> Status:
        """The status of all processes together, as far as it is known now."""
        own = self._snapshot()
        if self._fault is not None:
            return replace(own, unshared=self._fault)
        if not self._others:
            return own
        now = time.time()
        since = now if self._watched_since is None else self._watched_since
        shares, silent = [take_share(self._registry, own)], []
        for heard in self._others:
            status = heard.share.status
            patience = max(_PATIENCE, _PATIENT_INTERVALS * status.interval)
            if now - max(heard.at, since) > patience:
                silent.append(replace(status.worker, silent=True))
            else:
                shares.append(heard.share)
        return merge(shares, silent)

    def _snapshot(self) -> Status:
        return take_snapshot(self._registry, self._interval, self._cleaner)

    async def _exchange(self, *, watching: bool) -> None:
        # Viewers, and the task of the process, come each in their own time.
        if self._busy or time.monotonic() - self._exchanged_at < self._interval * 0.9:
            return
        self._busy = True
        try:
            self._watched_since = await self._in_thread(partial(self._directory.look, watching=watching))
            if self._watched_since is None:
                self._others = ()
            else:
                # What is read by then must not be older than the time of its file.
                share = _encoded(take_share(self._registry, self._snapshot()))
                self._others = await self._in_thread(partial(self._directory.exchange, share)) or ()
                self._exchanged_at = time.monotonic()
        finally:
            self._busy = False

    async def _in_thread(self, function: Callable[[], T]) -> T | None:
        # Not one of those threads that the app's own handlers may have taken up.
        return await to_thread.run_sync(self._attempt, function, limiter=CapacityLimiter(1))

    def _attempt(self, function: Callable[[], T]) -> T | None:
        try:
            result = function()
        except (OSError, UnusableDirectoryError) as exc:
            self._fault = f"{type(exc).__name__}: {exc}" if isinstance(exc, OSError) else str(exc)
            if self._throttle.due(self._fault):
                logger.warning("status_app: other workers are not shown: %s (logged once a minute)", self._fault)
            return None
        self._fault = None
        return result


def _encoded(share: WorkerShare) -> bytes:
    data = msgspec.json.encode(share)
    if len(data) <= MAX_BYTES:
        return data
    agents = [
        replace(agent, failures=agent.failures[:_FEW], denials=agent.denials[:_FEW]) for agent in share.status.agents
    ]
    return msgspec.json.encode(replace(share, status=replace(share.status, agents=agents)))
