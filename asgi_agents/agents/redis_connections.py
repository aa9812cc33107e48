"""Connections to a Redis that is for all processes together. Needs the ``ratelimit`` extra."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from limits.aio.storage import RedisStorage, Storage
from limits.aio.strategies import RateLimiter
from redis.asyncio import ConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ..concurrency.background import on_trio
from ..concurrency.per_event_loop import PerEventLoop
from ..errors import AgentConnectionError, AgentError, ConfigurationError
from ..messages.naming import kind_of
from .reasons import place_of, reason_of

_SCHEMES: Final = ("redis://", "rediss://", "unix://")
_PREFIX: Final = "asgi-agents"

MakeLimiter = Callable[[Storage], RateLimiter]


# The start of a URL (RFC 3986, section 3.1). What is longer is no scheme of anything.
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://")


def _fault_of(url: object) -> str:
    """What is wrong with a URL that has none of the schemes. Of its text, the scheme alone is told."""
    if not isinstance(url, str):
        return f"is {kind_of(url)}"
    found = _SCHEME.match(url)
    return f"has the scheme {found[1]}://" if found else "is text that begins with no scheme"


class RedisConnections:
    """Connections to one Redis, of each event loop its own.

    :param where: the agent that they are for, which messages name.
    """

    def __init__(self, url: object, make_limiter: MakeLimiter, where: str = "RateLimit") -> None:
        self._where = where
        # No message has the URL: there may be a password in it.
        if not isinstance(url, str) or not url.startswith(_SCHEMES):
            raise ConfigurationError(
                f"{where}: storage {_fault_of(url)}, expected 'memory' or a URL with {', '.join(_SCHEMES)}"
            )
        try:
            _check(url)
        except (ValueError, TypeError, AttributeError, RedisError, OSError):
            raise ConfigurationError(
                f"{where}: storage is no URL that the client of Redis can read, or has an option that it does not take"
            ) from None
        self._place = place_of(url)
        self._connected = PerEventLoop(lambda: Connected(url, make_limiter))

    @asynccontextmanager
    async def current(self) -> AsyncIterator["Connected"]:
        """Those of the running event loop. What Redis raises within is an :class:`AgentConnectionError`."""
        if on_trio():
            raise AgentError(
                f"{self._where} with Redis needs asyncio, where alone the client of Redis runs; on trio expected"
                " storage='memory'"
            )
        try:
            yield await self._connected.get()
        except (RedisError, OSError) as exc:
            # Not its text, which may have what Redis says of a password.
            raise AgentConnectionError(f"Redis at {self._place} has failed: {reason_of(exc)}") from exc


def _pool_of(url: str) -> ConnectionPool:
    pool = ConnectionPool.from_url(url)
    # What the URL says counts more than what is given beside it, and these are not its to say.
    pool.connection_kwargs |= {
        "decode_responses": False,
        "encoding": "utf-8",
        # A connection that was lost while nobody used it, as when Redis was restarted, is made again once, and at once.
        # How long that may take is for the deadline of the call.
        "retry": Retry(NoBackoff(), 1),
    }
    return pool


def _check(url: str) -> None:
    """Raise what a connection would raise for its options. Connects nowhere."""
    connection = _pool_of(url).make_connection()  # type: ignore[no-untyped-call]
    if isinstance(connection, SSLConnection):
        connection.ssl_context.get()


class Connected:
    """Connections that belong to one event loop."""

    def __init__(self, url: str, make_limiter: MakeLimiter) -> None:
        self._pool = _pool_of(url)
        self.client = Redis(connection_pool=self._pool)
        # A pool is allowed, and no part of the signature.
        options: Any = {"connection_pool": self._pool}
        storage = RedisStorage("async+redis://", implementation="redispy", key_prefix=_PREFIX, **options)
        self.limiter = make_limiter(storage)

    async def aclose(self) -> None:
        await self._pool.disconnect()
