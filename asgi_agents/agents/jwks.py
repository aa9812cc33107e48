"""The keys of an issuer of tokens, kept, and fetched anew as they rotate. Needs the ``jwt`` extra."""

import logging
import math
import time
from threading import RLock
from typing import Final
from urllib.parse import urlsplit

import httpx

from ..concurrency.background import BackgroundTask
from ..errors import AgentUnavailableError
from .jwks_settings import check_times, checked_proxy, checked_url, trusts_nobody
from .key_fetches import KeyFetch
from .key_sets import TIMEOUT, Keys, NoKeysError, PublicKey, fetch
from .reasons import place_of

logger: Final = logging.getLogger("asgi_agents")

# Seconds after which a server that has failed is asked again, if something needs it.
_RETRY: Final = 5.0
# Seconds that a call waits for a fetch at most. A call that is late counts for the breaker, and with key ids that
# nobody knows any client could make calls wait.
_PATIENCE: Final = 0.5
# Calls that wait while there are keys: others need the permits that these hold.
_MOST_WAITING: Final = 8


class Jwks:
    """The keys, by their ids.

    What a token says decides only which of these keys is taken: nothing in it leads to another URL. Fetches run beside
    the calls that need them, one at a time.

    :param url: of the JWKS.
    :param max_age: seconds after which the keys are fetched anew. Calls go on with the old ones meanwhile.
    :param max_stale: seconds after which keys that could not be fetched anew are not used any more.
    :param cooldown: seconds between two fetches for the sake of ids that nobody knows. Within them an unknown id is
        wrong: so a flood of made-up ids does not reach the server.
    :param proxy: the URL of one through which they are fetched.
    """

    def __init__(
        self, url: str, max_age: float, max_stale: float, cooldown: float, *, allow_http: bool, proxy: str | None
    ) -> None:
        check_times(cooldown, max_age, max_stale)
        self._url, self._proxy = checked_url(url, allow_http), checked_proxy(proxy)
        self._place = place_of(self._url)
        self._max_age = max_age
        self._max_stale = max_stale
        self._cooldown = cooldown
        # Made once: it takes longer than the rest of a fetch.
        self._tls = httpx.create_ssl_context() if urlsplit(self._url).scheme == "https" else trusts_nobody()
        self._keys: Keys = {}
        self._loaded = -math.inf
        self._not_before = -math.inf
        self._failure: str | None = None
        # Calls may come on several event loops, each in a thread of its own.
        self._lock = RLock()
        # The one under way.
        self._fetch: KeyFetch | None = None

    async def load(self) -> None:
        """Fetch the keys, unless they are there. Raises :class:`AgentUnavailableError` where they can't be fetched."""
        if self._age >= self._max_age and (fetch := self._start()) is not None:
            await fetch.wait()
        self._require_fresh()

    async def key(self, kid: str | None, key_type: str) -> PublicKey | None:
        """The key with this id, or None where there is none. None for an id: the only key, where there is one.

        Of several types the one that is asked for. Where none has that, it is one of another type, which fits nothing.

        :raises AgentUnavailableError: where that can't be known, because the server does not answer.
        """
        key = self._find(kid, key_type)
        age = self._age
        if key is not None and age < self._max_stale:
            if age >= self._max_age:
                self._start()
            return key
        fetch = self._start()
        most = _MOST_WAITING if self._keys and age < self._max_stale else math.inf
        in_time = fetch is None or await fetch.ends_within(_PATIENCE, most)
        key = self._find(kid, key_type)
        if key is None and not in_time:
            raise AgentUnavailableError("the JWKS is still being fetched, and the call can't wait for it any longer")
        if key is None or self._age >= self._max_stale:
            # Neither an unknown id nor a known one says anything now.
            self._require_fresh()
        return key

    @property
    def _age(self) -> float:
        return time.monotonic() - self._loaded

    def _find(self, kid: str | None, key_type: str) -> PublicKey | None:
        keys = self._keys
        found = next(iter(keys.values())) if kid is None and len(keys) == 1 else keys.get(kid, {})
        return found.get(key_type) or next(iter(found.values()), None)

    def _require_fresh(self) -> None:
        """Raise where the server's latest answer was none, or is too old."""
        if self._failure is not None or self._age >= self._max_stale:
            raise AgentUnavailableError(
                f"the JWKS of {self._place} can't be fetched: {self._failure or 'there was no answer'}"
            )

    def _start(self) -> KeyFetch | None:
        """The fetch under way, or one that begins. None: the server was asked a moment ago."""
        now = time.monotonic()
        with self._lock:
            # One that lasts longer has been given up with its event loop.
            if self._fetch is not None and now - self._fetch.since < 2 * TIMEOUT:
                return self._fetch
            if now < self._not_before:
                return None
            self._fetch = fetch = KeyFetch(now)
            BackgroundTask(lambda: self._run(fetch))
            return fetch

    async def _run(self, under_way: KeyFetch) -> None:
        try:
            keys = await fetch(self._url, self._tls, self._proxy)
        except NoKeysError as exc:
            # Without keys, calls fail, which is logged already.
            if self._failure is None and self._keys:
                logger.warning("JwtAuth: the JWKS of %s can't be fetched: %s", self._place, exc)
            self._failure = str(exc)
            self._not_before = time.monotonic() + min(_RETRY, self._cooldown)
        else:
            if self._failure is not None and self._keys:
                logger.info("JwtAuth: the JWKS of %s can be fetched again", self._place)
            self._failure = None
            self._keys, self._loaded = keys, time.monotonic()
            self._not_before = self._loaded + self._cooldown
        finally:
            # Also where the event loop ends: another one may fetch.
            with self._lock:
                if self._fetch is under_way:
                    self._fetch = None
            under_way.end()
