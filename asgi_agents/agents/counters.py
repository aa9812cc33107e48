"""Counting by the strategies of the package `limits`. Needs the ``ratelimit`` extra."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, cast

from limits import RateLimitItem, parse_many
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter
from msgspec import Struct

from ..errors import ConfigurationError
from ..messages.naming import named
from .memory_storage import MemoryStorage
from .redis_connections import RedisConnections

_STRATEGIES: Final[Mapping[str, Callable[[Storage], RateLimiter]]] = {
    "fixed-window": FixedWindowRateLimiter,
    "sliding-window-counter": SlidingWindowCounterRateLimiter,
}


class Taken(Struct, frozen=True):
    """What is left of a limit, or that nothing was: of several the one that is nearest to its end.

    :ivar reset: seconds until there is more.
    """

    allowed: bool
    limit: RateLimitItem
    remaining: int
    reset: float


class Counters(Protocol):
    """Where it is counted."""

    async def ping(self) -> None:
        """Raise :class:`AgentError` where nothing can be counted."""
        ...

    async def take(self, limits: Sequence[RateLimitItem], *identifiers: str) -> Taken:
        """Count one request, unless one of the limits is reached. Raises :class:`AgentError` as :meth:`ping` does."""
        ...


def parse(name: str, given: object) -> Sequence[RateLimitItem]:
    """Limits as they are written, the shortest first. Raises :class:`ConfigurationError`."""
    try:
        limits = parse_many(given) if isinstance(given, str) else []
    except ValueError:
        limits = []
    if not limits or not all(limit.amount > 0 and limit.get_expiry() > 0 for limit in limits):
        raise ConfigurationError(
            f"RateLimit: {name}={named(given)}, expected such as '100/minute' or '5/second; 1000/day'"
        )
    return sorted(limits, key=lambda limit: limit.get_expiry())


def counters_in(storage: object, strategy: object, max_keys: int) -> Counters:
    """The counters in that storage. Raises :class:`ConfigurationError`."""
    if not isinstance(strategy, str) or strategy not in _STRATEGIES:
        raise ConfigurationError(f"RateLimit: strategy={named(strategy)}, expected one of {', '.join(_STRATEGIES)}")
    if storage == "memory":
        return _InMemory(_STRATEGIES[strategy](MemoryStorage(max_keys)))
    return _InRedis(RedisConnections(storage, _STRATEGIES[strategy]))


class _InMemory:
    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter

    async def ping(self) -> None:
        """There is nothing to ask."""

    async def take(self, limits: Sequence[RateLimitItem], *identifiers: str) -> Taken:
        return await _take(self._limiter, limits, identifiers)


class _InRedis:
    def __init__(self, connections: RedisConnections) -> None:
        self._connections = connections

    async def ping(self) -> None:
        async with self._connections.current() as connected:
            # Of the type of the client that is not asynchronous as well.
            await cast(Awaitable[bool], connected.client.ping())

    async def take(self, limits: Sequence[RateLimitItem], *identifiers: str) -> Taken:
        async with self._connections.current() as connected:
            return await _take(connected.limiter, limits, identifiers)


async def _take(limiter: RateLimiter, limits: Sequence[RateLimitItem], identifiers: Sequence[str]) -> Taken:
    nearest: Taken | None = None
    for limit in limits:
        allowed = await limiter.hit(limit, *identifiers)
        stats = await limiter.get_window_stats(limit, *identifiers)
        reset = stats.reset_time - time.time()
        if reset <= 0 and isinstance(limiter, SlidingWindowCounterRateLimiter):
            # It takes the rest of a division by the length of the window, of which all is left as it begins.
            reset += limit.get_expiry()
        taken = Taken(allowed, limit, max(0, stats.remaining) if allowed else 0, reset)
        if not allowed:
            return taken
        if nearest is None or taken.remaining < nearest.remaining:
            nearest = taken
    assert nearest is not None
    return nearest
