"""Bans of clients for a time, and the strikes that lead to them, in the memory of one process."""

import logging
import time
from array import array
from collections.abc import Sequence
from threading import Lock
from typing import Final, NamedTuple, Protocol

from ..messages.throttle import Throttle
from .crowds import ASKERS, Asker, Crowds, NetworkKey, key_of
from .networks import Address

logger: Final = logging.getLogger("asgi_agents")


class Requester(NamedTuple):
    """Who is banned.

    :ivar address: of IPv6 its /64 counts.
    :ivar asker: who has its browser ask.
    """

    address: Address
    asker: Asker = "own"

    @property
    def key(self) -> NetworkKey:
        """What its strikes count for: the address, or what pages elsewhere have it ask for."""
        return key_of(self.address, self.asker)

    @property
    def keys(self) -> Sequence[NetworkKey]:
        """What its requests are refused for."""
        return (self.key,) if self.asker == "own" else (key_of(self.address), self.key)


class Ban(NamedTuple):
    """One that holds.

    :ivar rule: why.
    :ivar left: seconds until it ends.
    :ivar begins: whether it is for this very request.
    """

    rule: str
    left: float
    begins: bool = False


class Terms(NamedTuple):
    """When somebody is banned, and for how long.

    :ivar after: so many strikes within ``within`` seconds.
    :ivar duration: of a ban, in seconds.
    """

    after: int
    within: float
    duration: float


class Bans(Protocol):
    """Where bans are. Each method raises :class:`AgentError` where that can't be asked."""

    async def start(self, agent_id: str) -> None:
        """Before the first request. Raise where it can't be asked.

        :param agent_id: whose bans these are, unless another namespace was given.
        """
        ...

    async def judge(self, client: Requester, rule: str | None) -> Ban | None:
        """The ban that its request is refused for. Where there is none, ``rule`` begins one."""
        ...

    async def strike(self, client: Requester, rule: str | None) -> Ban | None:
        """The ban that holds, or that begins with this strike; without a rule it is none.

        While a ban holds, nothing counts.
        """
        ...

    async def lift(self, address: Address) -> None:
        """End the bans of an address, and forget its strikes. Raises :class:`ConfigurationError` where nobody knows yet
        whose bans these are.
        """
        ...


class MemoryBans:
    """Bans in memory. No method of it awaits anything, so that no call is made as if it might; see ``may_suspend``.

    :param most: so many bans are kept, and strikes of so many.
    """

    def __init__(self, terms: Terms, most: int) -> None:
        self._terms = terms
        self._bans: Crowds[tuple[float, str]] = Crowds(most)
        self._strikes: Crowds[tuple[float, Sequence[float]]] = Crowds(most)
        self._throttle = Throttle()
        # Event loops run in threads of their own.
        self._lock = Lock()

    async def start(self, agent_id: str) -> None:
        """There is nothing to ask."""

    async def judge(self, client: Requester, rule: str | None) -> Ban | None:
        now = time.monotonic()
        with self._lock:
            ban = self._find(client, now)
            if ban is not None or rule is None:
                return ban
            return self._ban(self._bans.place(client.key, now), rule, now)

    async def strike(self, client: Requester, rule: str | None) -> Ban | None:
        now = time.monotonic()
        with self._lock:
            ban = self._find(client, now)
            if ban is not None or rule is None:
                return ban
            place = self._strikes.place(client.key, now)
            _, times = self._strikes.get(place) or (0.0, ())
            times = array("d", [*(then for then in times if then > now - self._terms.within), now])
            if len(times) < self._terms.after:
                self._strikes.put(place, (now + self._terms.within, times), now)
                return None
            self._strikes.drop(place)
            place = min(place, self._bans.place(client.key, now), key=lambda each: each.length)
            return self._ban(place, rule, now)

    async def lift(self, address: Address) -> None:
        with self._lock:
            for asker in ASKERS:
                for crowds in (self._bans, self._strikes):
                    crowds.drop_around(key_of(address, asker))

    def _find(self, client: Requester, now: float) -> Ban | None:
        for key in client.keys:
            for until, why in self._bans.around(key):
                if until > now:
                    return Ban(why, until - now)
        return None

    def _ban(self, place: NetworkKey, rule: str, now: float) -> Ban:
        if self._bans.put(place, (now + self._terms.duration, rule), now) and self._throttle.due("full"):
            logger.warning("IpBan: there are more bans than max_addresses; the oldest end before their time")
        return Ban(rule, self._terms.duration, begins=True)
