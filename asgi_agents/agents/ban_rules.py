"""What leads to a ban, and for whom: the settings of IpBan, and what it reads in a request."""

import logging
from collections.abc import Iterable
from typing import Final

from ..errors import ConfigurationError
from ..imports.extras import from_extra
from ..messages.naming import named
from ..messages.throttle import Throttle
from ..policy import require_int, require_seconds
from ..protocol import RequestHeadersEvent
from .addresses import address_of
from .bans import Bans, MemoryBans, Terms
from .networks import Address, is_local

logger: Final = logging.getLogger("asgi_agents")

#: Each strike is kept until it is too old to count.
MAX_STRIKES: Final = 1000


def terms_of(after: object, within: object, duration: object) -> Terms:
    """When somebody is banned, and for how long. Raises :class:`ConfigurationError`."""
    require_int("IpBan", "after", after, at_least=1)
    require_seconds("IpBan", "within", within)
    require_seconds("IpBan", "duration", duration)
    assert isinstance(after, int)
    assert isinstance(within, int | float)
    assert isinstance(duration, int | float)
    if after > MAX_STRIKES:
        raise ConfigurationError(f"IpBan: after={after}, expected at most {MAX_STRIKES}")
    return Terms(after, within, duration)


def statuses_of(given: object) -> frozenset[int]:
    """The statuses that count. Raises :class:`ConfigurationError`."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ConfigurationError(f"IpBan: statuses={named(given)}, expected a list such as [401, 404]")
    statuses = tuple(given)
    for status in statuses:
        if isinstance(status, bool) or not isinstance(status, int) or not 400 <= status <= 599:
            # An accepted websocket is 101, and what went well is no reason.
            raise ConfigurationError(f"IpBan: statuses contains {named(status)}, expected 400 to 599")
    return frozenset(statuses)


def bans_in(storage: object, terms: Terms, max_addresses: object, namespace: object) -> Bans:
    """Where bans are. Raises :class:`ConfigurationError`."""
    if not isinstance(namespace, str | None):
        raise ConfigurationError(f"IpBan: namespace={named(namespace)}, expected text or None")
    require_int("IpBan", "max_addresses", max_addresses, at_least=1)
    assert isinstance(max_addresses, int)
    if storage == "memory":
        return MemoryBans(terms, max_addresses)
    with from_extra("IpBan", "ratelimit", ConfigurationError):
        from .redis_bans import RedisBans
    return RedisBans(storage, terms, namespace)


class ProxyAdvice:
    """Warns of a proxy that is not trusted: a ban of its address would hit everybody behind it."""

    def __init__(self, header: str) -> None:
        self._header = header.lower()
        self._throttle = Throttle()

    def look(self, event: RequestHeadersEvent, client: Address) -> None:
        """Warn, once a minute at most, where the client seems to be such a proxy."""
        if self._header not in event.headers or not is_local(client):
            return
        if client == address_of(event.metadata.client_ip) and self._throttle.due(client):
            logger.warning(
                "IpBan: %s sends %s and is not in trusted_proxies; if it is a proxy, name it there, or a ban hits"
                " everybody behind it",
                client,
                self._header,
            )
