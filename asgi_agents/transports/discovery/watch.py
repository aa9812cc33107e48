"""Follows one name."""

import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

import anyio

from ...concurrency.background import BackgroundTask
from ...errors import AgentConnectionError, printable, text_of
from ...messages.throttle import Throttle
from ..backoff import backoff
from .members import Member, Membership
from .resolver import Resolver, look_up

logger = logging.getLogger("asgi_agents")

#: Seconds between two lookups of a name, at most.
RESOLVE_INTERVAL: Final = 5.0
# And at least, however many connections fail.
_LEAST_INTERVAL: Final = 1.0
# How much of an interval is left to chance, so that the processes of an app don't ask at the same time.
_JITTER: Final = 0.1


class Watch:
    """The members of a name on the running event loop, from now until :meth:`cancel`.

    A name is looked up at once, every ``interval`` seconds, and when a member has failed. While it can't be looked up,
    or leads to nothing, what it has led to last holds: a resolver that is down must not take the agent down as well.

    :param where: what the log calls it.
    :param changed: called on the event loop after a lookup that has changed :attr:`members`; and after each one that
        has failed while there are none. It must not raise.
    :param interval: seconds; the actual ones are up to a tenth fewer.
    :param resolver: in place of the system's.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        where: str,
        changed: Callable[[], object],
        interval: float = RESOLVE_INTERVAL,
        resolver: Resolver | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._where = where
        self._on_change = changed
        self._interval = interval
        self._resolver = look_up if resolver is None else resolver
        self._membership = Membership(host, port)
        #: Why the latest lookup has come to nothing; empty where it has not.
        self.fault = ""
        self._logged = ""
        self._throttle = Throttle()
        self._wanted = anyio.Event()
        self._looked_up = anyio.Event()
        self._task = BackgroundTask(self._follow)

    @property
    def members(self) -> Sequence[Member]:
        """What the name leads to; empty as long as it never has led to anything."""
        return self._membership.members

    async def ready(self) -> None:
        """Wait until there are members.

        :raises AgentConnectionError: the latest lookup has failed.
        """
        while not self.members:
            if self.fault:
                self._wanted.set()
                raise AgentConnectionError(self.fault)
            await self._looked_up.wait()

    def failed(self, member: Member | None = None) -> None:
        """A connection was lost or, with ``member``, could not be made: look the name up as soon as that may be."""
        if member is not None:
            self._membership.failed(member)
        self._wanted.set()

    def reached(self, member: Member) -> None:
        """A connection to ``member`` was made."""
        self._membership.reached(member)

    def cancel(self) -> None:
        """Stop following the name; the members stay as they are."""
        self._task.cancel()
        self.fault = self.fault or "its connections are being closed"
        self._looked_up.set()

    async def wait(self) -> None:
        """Wait until it has stopped."""
        await self._task.wait()

    async def _follow(self) -> None:
        failures = 0
        while True:
            self._wanted = anyio.Event()
            await self._look_up()
            if self.members:
                failures = 0
                longest = self._interval * (1 - _JITTER * random.random())  # noqa: S311 - no secret
            else:
                longest = backoff(failures)
                failures += 1
            await anyio.sleep(min(longest, _LEAST_INTERVAL))
            with anyio.move_on_after(longest - _LEAST_INTERVAL):
                await self._wanted.wait()

    async def _look_up(self) -> None:
        before = self.members
        try:
            found = await self._resolver(self._host, self._port)
        except (OSError, ValueError) as exc:
            self.fault = printable(f"{type(exc).__name__}: {text_of(exc)}")
        except Exception as exc:
            # Go on whatever it was: nothing else follows this name.
            if not self._logged:
                logger.exception("%s can't be looked up", self._where)
            self.fault = type(exc).__name__
        else:
            self.fault = "" if found else "it has no address"
            if found:
                self._membership.update(found)
        self._log(before)
        if self.members != before or not before:
            self._on_change()
        self._looked_up.set()
        self._looked_up = anyio.Event()

    def _log(self, before: Sequence[Member]) -> None:
        now = self.members
        if self.fault:
            if self.fault != self._logged and self._throttle.due("fault"):
                self._logged = self.fault
                stays = f"what it has led to last holds ({len(now)})" if now else "looking it up again"
                logger.warning("%s: %s; %s", self._where, self.fault, stays)
            return
        if self._logged:
            self._logged = ""
            logger.info("%s: it can be looked up again", self._where)
        if before and set(before) != set(now) and self._throttle.due("members"):
            logger.info(
                "%s leads to %d addresses now: %d are new, %d are gone",
                self._where,
                len(now),
                len(set(now) - set(before)),
                len(set(before) - set(now)),
            )
        if self._membership.left_out and self._throttle.due("left out"):
            logger.warning("%s leads to too many addresses: %d are left out", self._where, self._membership.left_out)
