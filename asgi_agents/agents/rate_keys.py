"""What requests are counted by."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from posixpath import normpath
from typing import Final
from urllib.parse import unquote_to_bytes

from ..errors import ConfigurationError
from ..messages.naming import named
from ..protocol import RequestHeadersEvent
from .addresses import ClientAddress, address_of
from .networks import Address
from .settings import require_header, require_strings

# The part of an IPv6 address that a provider gives to one customer (RFC 6177): the rest is for the customer to choose.
_IPV6_PREFIX: Final = 64
_HEADER: Final = "header:"
_EXPECTED: Final = "'ip', 'user', 'path', 'route', 'header:NAME', or a list of them"

_Part = Callable[[RequestHeadersEvent], str]


class RateKeys:
    """Makes a short key of each request. What it was made of is found only by who tries it out."""

    def __init__(self, by: str | Sequence[str], user_header: str, client: ClientAddress) -> None:
        self._client = client
        self._user_header = require_header("RateLimit", "user_header", user_header)
        names = (by,) if isinstance(by, str) else require_strings("RateLimit", "by", by)
        if not names:
            raise ConfigurationError(f"RateLimit: by={named(by)}, expected {_EXPECTED}")
        #: The headers that are read, and those of them that clients must not choose.
        self.headers: dict[str, None] = {}
        self.trusted = frozenset({self._user_header} if "user" in names else ())
        self._parts = [self._part(name) for name in names]

    def key(self, event: RequestHeadersEvent) -> str:
        """Equal for the requests that are counted together."""
        return _short(repr([part(event) for part in self._parts]))

    def of_peer(self, address: str) -> str:
        """What a connection of which nothing else is known is counted by: together with all others from there."""
        read = address_of(address)
        return _short(f"peer {address if read is None else _customer(read)}")

    def _part(self, name: str) -> _Part:
        match name:
            case "ip":
                return self._ip
            case "user":
                return self._header(self._user_header)
            case "path":
                return _path
            case "route":
                return lambda event: f"route {event.metadata.route_id}"
            case str() if name.startswith(_HEADER):
                return self._header(require_header("RateLimit", "by", name.removeprefix(_HEADER)))
        raise ConfigurationError(f"RateLimit: by={named(name)}, expected {_EXPECTED}")

    def _ip(self, event: RequestHeadersEvent) -> str:
        address = self._client.of(event)
        if address is None:
            # All of them together: whoever hides where it comes from has no counter of its own.
            return "ip unknown"
        return f"ip {_customer(address)}"

    def _header(self, name: str) -> _Part:
        self.headers[name] = None

        def of(event: RequestHeadersEvent) -> str:
            value = event.header(name)
            # Who sends none is counted by address.
            return f"{name}: {value}" if value else self._ip(event)

        return of


def _customer(address: Address) -> str:
    if address.version == 6:
        return f"{int(address) >> (128 - _IPV6_PREFIX):x}/{_IPV6_PREFIX}"
    return str(address)


def _short(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _path(event: RequestHeadersEvent) -> str:
    """One spelling of it: a path can be written in many ways, and each would have a counter of its own.

    Decoded, as the app reads it, and without slashes and dot segments that frameworks or file systems pass over. Where
    an app takes two of these for different paths, they are counted together.
    """
    # Python's `$`, with which Starlette ends its patterns, comes before a last line feed as well.
    path = unquote_to_bytes(event.uri.partition("?")[0]).removesuffix(b"\n")
    return f"path {normpath(b'/' + path.strip(b'/'))!r}"
