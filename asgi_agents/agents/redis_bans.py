"""Bans of clients in Redis, for all processes together. Needs the ``ratelimit`` extra."""

from collections.abc import Awaitable
from hashlib import blake2b
from typing import Final, cast

from limits import RateLimitItemPerSecond
from limits.aio.strategies import MovingWindowRateLimiter

from ..errors import ConfigurationError
from .bans import Ban, Requester, Terms
from .crowds import ASKERS, NetworkKey, key_of
from .networks import Address
from .redis_connections import Connected, RedisConnections

_PREFIX: Final = "asgi-agents:ban"


class RedisBans:
    """Bans in one Redis. Its keys have hashes of addresses, which hide them from a glance and from no search: there are
    few enough addresses of IPv4 to try them all.
    """

    def __init__(self, url: object, terms: Terms, namespace: str | None) -> None:
        self._connections = RedisConnections(url, MovingWindowRateLimiter, "IpBan")
        self._given_namespace = self._namespace = namespace
        self._duration = max(1, round(terms.duration * 1000))
        # The strike that is one too many is the one that bans.
        self._strikes = None
        if terms.within % 1:
            raise ConfigurationError(f"IpBan: within={terms.within:g}, expected whole seconds where Redis counts")
        if terms.after > 1:
            self._strikes = RateLimitItemPerSecond(terms.after - 1, int(terms.within), namespace="IpBan")

    async def start(self, agent_id: str) -> None:
        if self._given_namespace is None:
            self._namespace = agent_id
        async with self._connections.current() as connected:
            # Of the type of the client that is not asynchronous as well.
            await cast(Awaitable[bool], connected.client.ping())

    async def judge(self, client: Requester, rule: str | None) -> Ban | None:
        async with self._connections.current() as connected:
            return await self._find(connected, client) or await self._begin(connected, client, rule)

    async def strike(self, client: Requester, rule: str | None) -> Ban | None:
        async with self._connections.current() as connected:
            over = rule is not None and not await self._count(connected, client)
            # Counted first, so that of those that come at a time each sees the ban that one of them has begun.
            ban = await self._find(connected, client)
            if ban is not None and rule is not None:
                await self._forget(connected, client.key)
            return ban or await self._begin(connected, client, rule if over else None)

    async def lift(self, address: Address) -> None:
        if self._namespace is None:
            raise ConfigurationError(
                "IpBan: lift before the agent was configured, when nobody has told it the namespace in Redis; expected"
                " IpBan(namespace=...)"
            )
        async with self._connections.current() as connected:
            for asker in ASKERS:
                key = key_of(address, asker)
                await cast(Awaitable[int], connected.client.delete(self._name(key)))
                await self._forget(connected, key)

    async def _find(self, connected: Connected, client: Requester) -> Ban | None:
        names = [self._name(key) for key in client.keys]
        found = await cast(Awaitable[list[bytes | None]], connected.client.mget(names))
        for name, why in zip(names, found, strict=True):
            if why is not None:
                left = await cast(Awaitable[int], connected.client.pttl(name))
                return Ban(why.decode("utf-8", "replace"), max(0, left) / 1000)
        return None

    async def _begin(self, connected: Connected, client: Requester, rule: str | None) -> Ban | None:
        """A ban for that, if it is for anything. Another process may have been quicker: then it is not ours."""
        if rule is None:
            return None
        name = self._name(client.key)
        set_it = connected.client.set(name, rule.encode(), px=self._duration, nx=True)
        begins = bool(await cast(Awaitable[object], set_it))
        await self._forget(connected, client.key)
        return Ban(rule, self._duration / 1000, begins=begins)

    async def _count(self, connected: Connected, client: Requester) -> bool:
        """Whether a strike is one that is still free."""
        strikes = self._strikes
        return strikes is not None and await connected.limiter.hit(strikes, self._namespace or "", _short(client.key))

    async def _forget(self, connected: Connected, key: NetworkKey) -> None:
        if self._strikes is not None:
            await connected.limiter.clear(self._strikes, self._namespace or "", _short(key))

    def _name(self, key: NetworkKey) -> str:
        if self._namespace is None:
            # Whom nobody has told it by the first request, as a served agent, has none.
            self._namespace = ""
        return f"{_PREFIX}:{self._namespace}:{_short(key)}"


def _short(key: NetworkKey) -> str:
    return blake2b(repr(tuple(key)).encode(), digest_size=16).hexdigest()
