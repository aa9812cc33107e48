"""Who has a browser ask: whoever shows a page to somebody could have this visitor banned by its requests."""

import re
from typing import Final

from ..errors import ConfigurationError
from ..messages.naming import named
from ..protocol import RequestHeadersEvent
from .crowds import Asker
from .settings import require_strings

# What browsers say of a request for a page of the same origin, or that nobody's page has them ask.
_OWN: Final = ("none", "same-origin")
# RFC 6454, section 6.2, as browsers write it. Of apps on telephones the scheme is another.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@,\s*]+")
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


class Askers:
    """Tells for whom a client asks, by what browsers say of it.

    Who is no browser may say anything: then it is banned for that first, and for what it has left to say next.

    :param origins: those whose pages belong to the app, besides its own.
    :raises ConfigurationError: for what is no origin.
    """

    def __init__(self, origins: object) -> None:
        given = require_strings("IpBan", "origins", origins)
        for origin in given:
            if not _ORIGIN.fullmatch(origin.lower()):
                raise ConfigurationError(
                    f"IpBan: origins contains {named(origin)}, expected such as 'https://app.shop.example'"
                )
        self._own = frozenset(_normal(origin) for origin in given)

    def of(self, event: RequestHeadersEvent) -> Asker:
        site, origin = event.header("sec-fetch-site"), event.header("origin")
        if site in _OWN or (origin is not None and _normal(origin) in self._own):
            return "own"
        if site is None:
            # Browsers send an origin with each handshake, and with whatever is no GET.
            return "own" if origin is None or _is_of(origin, event.header("host")) else "elsewhere"
        # A frame is no visit: a page has as many as it likes, and nobody sees them.
        visit = event.header("sec-fetch-mode") == "navigate" and event.header("sec-fetch-dest") == "document"
        return "link" if visit else "elsewhere"


def _normal(origin: str) -> str:
    scheme, _, host = origin.lower().partition("://")
    return f"{scheme}://{host.removesuffix(_DEFAULT_PORTS.get(scheme, ' '))}"


def _is_of(origin: str, host: str | None) -> bool:
    """Whether it is that of the host that is asked. The scheme is the proxy's to know."""
    scheme, is_one, _ = origin.partition("://")
    return is_one != "" and host is not None and _normal(origin) == _normal(f"{scheme}://{host}")
