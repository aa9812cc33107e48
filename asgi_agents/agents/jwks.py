"""The keys of an issuer of tokens, kept, and fetched anew as they rotate. Needs the ``jwt`` extra."""

import logging
import math
import ssl
import time
from collections.abc import Mapping
from threading import RLock
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx

from ..concurrency.background import BackgroundTask
from ..concurrency.event_loop import SharedEvent
from ..errors import AgentUnavailableError, ConfigurationError
from ..messages.naming import named
from ..policy import require_seconds
from .addresses import address_of
from .key_sets import TIMEOUT, NoKeysError, PublicKey, fetch

logger: Final = logging.getLogger("asgi_agents")

# Seconds after which a server that has failed is asked again, if something needs it.
_RETRY: Final = 5.0
# Seconds that a call waits for a fetch. They are fewer than the deadline of a call is by default: a call that is late
# counts for the breaker, and with key ids that nobody knows any client could make calls wait.
_PATIENCE: Final = 0.5


class Jwks:
    """The keys, by their ids.

    What a token says decides only which of these keys is taken: nothing in it leads to another URL. Fetches run beside
    the calls that need them, one at a time.

    :param url: of the JWKS.
    :param max_age: seconds after which the keys are fetched anew. Calls go on with the old ones meanwhile.
    :param max_stale: seconds after which keys that could not be fetched anew are not used any more.
    :param cooldown: seconds between two fetches for the sake of ids that nobody knows. Within them an unknown id is
        wrong: so a flood of made-up ids does not reach the server.
    """

    def __init__(self, url: str, *, max_age: float, max_stale: float, cooldown: float, allow_http: bool) -> None:
        _check_times(cooldown, max_age, max_stale)
        self._url = _checked(url, allow_http)
        self._max_age = max_age
        self._max_stale = max_stale
        self._cooldown = cooldown
        # Made once: it takes longer than the rest of a fetch.
        self._tls = httpx.create_ssl_context() if urlsplit(self._url).scheme == "https" else _trusts_nobody()
        self._keys: Mapping[str | None, PublicKey] = {}
        self._loaded = -math.inf
        self._not_before = -math.inf
        self._failure: str | None = None
        # Calls may come on several event loops, each in a thread of its own.
        self._lock = RLock()
        # The fetch under way: since when, and what is set at its end.
        self._fetch: tuple[float, SharedEvent] | None = None

    async def load(self) -> None:
        """Fetch the keys, unless they are there. Raises :class:`AgentUnavailableError` where they can't be fetched."""
        if self._age >= self._max_age:
            await self._fetched(math.inf)
        self._require_fresh()

    async def key(self, kid: str | None) -> PublicKey | None:
        """The key with this id, or None where there is none. None for an id: the only key, where there is one.

        :raises AgentUnavailableError: where that can't be known, because the server does not answer.
        """
        key = self._find(kid)
        age = self._age
        if key is not None and age < self._max_stale:
            if age >= self._max_age:
                self._start()
            return key
        in_time = await self._fetched(_PATIENCE)
        key = self._find(kid)
        if key is None and not in_time:
            raise AgentUnavailableError(f"the JWKS is not there after {_PATIENCE:g} s; it is still being fetched")
        if key is None or self._age >= self._max_stale:
            # Neither an unknown id nor a known one says anything now.
            self._require_fresh()
        return key

    @property
    def _age(self) -> float:
        return time.monotonic() - self._loaded

    def _find(self, kid: str | None) -> PublicKey | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _require_fresh(self) -> None:
        """Raise where the server's latest answer was none, or is too old."""
        if self._failure is not None or self._age >= self._max_stale:
            raise AgentUnavailableError(f"the JWKS can't be fetched: {self._failure or 'there was no answer'}")

    async def _fetched(self, patience: float) -> bool:
        """Wait for the fetch under way. Start one before, unless the server was asked a moment ago.

        Returns False where it has not ended within so many seconds.
        """
        under_way = self._start()
        if under_way is None:
            return True
        with anyio.move_on_after(patience) as scope:
            await under_way.wait()
        return not scope.cancelled_caught

    def _start(self) -> SharedEvent | None:
        now = time.monotonic()
        with self._lock:
            # One that lasts longer has been given up with its event loop.
            if self._fetch is not None and now - self._fetch[0] < 2 * TIMEOUT:
                return self._fetch[1]
            if now < self._not_before:
                return None
            done = SharedEvent()
            self._fetch = now, done
            BackgroundTask(lambda: self._run(done))
            return done

    async def _run(self, done: SharedEvent) -> None:
        try:
            keys = await fetch(self._url, self._tls)
        except NoKeysError as exc:
            # Without keys, calls fail, which is logged already.
            if self._failure is None and self._keys:
                logger.warning("JwtAuth: the JWKS can't be fetched: %s", exc)
            self._failure = str(exc)
            self._not_before = time.monotonic() + min(_RETRY, self._cooldown)
        else:
            if self._failure is not None and self._keys:
                logger.info("JwtAuth: the JWKS can be fetched again")
            self._failure = None
            self._keys, self._loaded = keys, time.monotonic()
            self._not_before = self._loaded + self._cooldown
        finally:
            # Also where the event loop ends: another one may fetch.
            with self._lock:
                if self._fetch is not None and self._fetch[1] is done:
                    self._fetch = None
            done.set()


def _trusts_nobody() -> ssl.SSLContext:
    """For a URL without TLS: made in no time, and of no use to anybody who would come to TLS by another way."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _checked(url: object, allow_http: bool) -> str:
    """The URL, which no message quotes: it may have credentials in it."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        host = parts.hostname if parts is not None else None
    except ValueError:
        parts = host = None
    if not isinstance(url, str) or parts is None or not host or parts.scheme not in ("https", "http"):
        raise ConfigurationError("JwtAuth: jwks_url is no URL, expected https://.../jwks.json")
    address = address_of(host)
    here = host == "localhost" or (address is not None and address.is_loopback)
    if parts.scheme == "http" and not here and not allow_http:
        raise ConfigurationError(
            f"JwtAuth: jwks_url gets keys over plain HTTP from {named(host)}, expected https://, or allow_http=True"
        )
    return url


def _check_times(cooldown: float, max_age: float, max_stale: float) -> None:
    for name, value in (("cooldown", cooldown), ("max_age", max_age), ("max_stale", max_stale)):
        require_seconds("JwtAuth", name, value)
    if not cooldown <= max_age <= max_stale:
        raise ConfigurationError(
            f"JwtAuth: cooldown={cooldown}, max_age={max_age}, max_stale={max_stale}, expected each at least as long as"
            " the one before"
        )
