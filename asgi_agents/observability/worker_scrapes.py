"""Scrapes of all workers of an app at once: any of them asks the others, and waits for what they say."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import msgspec
from prometheus_client.registry import Collector

from ..concurrency.rounds import Rounds
from ..messages.throttle import Throttle
from .attempts import Attempts, Fault, UnusableDirectoryError, unheard
from .worker_directory import MAX_BYTES, Heard, Others, WorkerDirectory
from .worker_metrics import METRICS_FILES, NOTHING, MetricsShare, encoded, merge, take

logger: Final = logging.getLogger("asgi_agents")

# Seconds after which a worker sees that somebody asks, and for which who asks waits for it.
_NOTICED_AFTER: Final = 0.25
_PATIENCE: Final = 2.0
# Seconds between two looks at what the others have written meanwhile.
_LOOK_EVERY: Final = 0.03
# Seconds by which the time of a file may be too early: file systems have clocks of their own.
_COARSE: Final = 2.0
# Seconds between two scrapes that are one after the other, and not long apart.
_SCRAPED_FOR: Final = 600.0

_UNHEARD: Final = unheard("metrics_app")


class _Asked(NamedTuple):
    """When somebody has asked: in seconds since the epoch, and in nanoseconds of the machine's monotonic clock."""

    time: float
    at: int

    @property
    def since(self) -> float:
        """What was written before is no answer: seconds since the epoch. The machine may have been started since."""
        return self.time - _COARSE

    def is_answered_by(self, heard: Heard[MetricsShare]) -> bool:
        return heard.share.at >= self.at


class WorkerScrapes:
    """The metrics of this process, which ``collector`` has, with those of the others that share the directory.

    What the others say was written after they were asked. So no counter goes back from one answer to the next,
    whichever workers they come from.
    """

    def __init__(self, path: Path, collector: Collector) -> None:
        self._directory = WorkerDirectory(path, _SCRAPED_FOR, METRICS_FILES)
        self._collector = collector
        self._attempts = Attempts("metrics_app: the metrics of the workers can't be had together")
        self._throttle = Throttle()
        # What is under way may have been asked before the latest that was counted.
        self._rounds: Rounds[Collector | Fault] = Rounds(anew=True)
        # The files that were waited for in vain, and which version of each.
        self._given_up: dict[str, int] = {}

    async def run(self) -> None:
        """Tell the others what this process has whenever any of them asks, until cancelled."""
        answered: int | None = None
        self._directory.join()
        try:
            while True:
                answer = partial(self._attempts.in_thread, partial(self._answer, answered))
                asked = await self._attempts.in_background(answer)
                answered = asked if isinstance(asked, int) else None
                await anyio.sleep(_NOTICED_AFTER)
        finally:
            # A moment, on a local disk.
            self._attempts.make(self._directory.leave)

    def _answer(self, answered: int | None) -> int:
        """Answer what was asked last, unless that is ``answered``. Returns what was asked."""
        asked = self._directory.asked()
        # Also when it begins, and when somebody has removed the files: so that who asks knows of whom to hear.
        if asked != answered or not self._directory.is_written():
            try:
                share = self._take()
            except UnusableDirectoryError:
                # There are more processes than places. The others count it as silent.
                self._directory.write(msgspec.msgpack.encode(NOTHING))
                raise
            data, left_out = encoded(share)
            if left_out and self._throttle.due(left_out):
                logger.warning(
                    "metrics_app: the metrics of this worker take more than %d bytes; %s is left out of the answers "
                    "of the others (logged once a minute)",
                    MAX_BYTES,
                    left_out,
                )
            self._directory.write(data)
        return asked

    def _take(self) -> MetricsShare:
        at = time.monotonic_ns()
        return take(self._collector, at=at, place=self._directory.place())

    async def scrape(self) -> Collector | Fault:
        """The metrics of all workers, or why they can't be had. However many ask at a time, it is done once for all."""
        return await self._rounds.take(self._scrape)

    async def _scrape(self) -> Collector | Fault:
        asked = _Asked(time.time(), time.monotonic_ns())
        failed = await self._attempts.in_thread(self._directory.ask)
        if failed is not None:
            return failed
        # Not sooner: the task of an app that has just started has begun by now.
        if not self._directory.joined:
            return _UNHEARD
        until = time.monotonic() + _PATIENCE
        others: Others[MetricsShare] | None = None
        while True:
            # Kept until the answer is made, and no longer: it is as much as all workers have.
            # What nobody has asked for now is not read: it is as much again.
            found = await self._attempts.in_thread(partial(self._directory.read, others, since=asked.since))
            if isinstance(found, Fault):
                return found
            others = found
            missing = [each for each in others.heard if not asked.is_answered_by(each)]
            # One whose metrics can't be told has said so.
            may_answer = {**others.old, **{each.name: each.stamp for each in missing if each.share.at != NOTHING.at}}
            # One that has not answered before is not worth waiting for, until it says something.
            if time.monotonic() >= until or all(self._given_up.get(each) == may_answer[each] for each in may_answer):
                break
            await anyio.sleep(_LOOK_EVERY)
        self._given_up = may_answer
        return await self._attempts.in_thread(partial(self._together, others, asked))

    def _together(self, others: Others[MetricsShare], asked: _Asked) -> Collector:
        if others.reason:
            self._attempts.complain(f"{others.reason}; these workers count as silent")
        answers = sorted(filter(asked.is_answered_by, others.heard), key=lambda each: -each.share.at)
        silent = len(others.heard) - len(answers) + len(others.old) + sum(others.unread.values())
        return merge([self._take(), *(each.share for each in answers)], silent)
