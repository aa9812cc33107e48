"""The address of a client: as the server tells it, or behind trusted proxies as these tell it.

Each proxy appends the address that it was asked from to ``x-forwarded-for``. So only its right end can be trusted: what
stands left of the first address that is no trusted proxy's is whatever the client has written. Several fields of the
name are one list (RFC 9110, section 5.3).
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from ..errors import ConfigurationError
from ..protocol import AgentResponse, AuditMetadata, RequestHeadersEvent
from .networks import Address, Networks, untranslated
from .settings import require_header, require_strings

#: Stands for a peer without an address among trusted proxies: one that comes over a Unix socket.
UNIX: Final = "unix"
#: What proxies tell the client's address in, unless they are configured otherwise.
FORWARDED_FOR: Final = "x-forwarded-for"
#: The answer of agents that go by the address to clients whose address nobody tells.
ADDRESS_UNKNOWN: Final = AgentResponse.block(403, audit=AuditMetadata(reason_codes=("address_unknown",)))
_PORT: Final = re.compile(r":[0-9]{1,5}\Z")
# An IPv6 address with an IPv4 part, a zone id, brackets and a port is shorter.
_MAX_LENGTH: Final = 100


def address_of(given: str) -> Address | None:
    """The address that is written there, or None where none is.

    Proxies write ports behind addresses, brackets around those of IPv6, and quotes around both. A zone id says which
    interface of the server an address was reached by, and is left out. An IPv4 address that is written as one of IPv6
    (``::ffff:192.0.2.7``, RFC 4291, section 2.5.5.2) is the IPv4 address: sockets for both families give those. So is
    one that a translator has written so (``64:ff9b::192.0.2.7``): a server of IPv6 alone has all IPv4 clients by it.
    """
    return _read(given) if len(given) <= _MAX_LENGTH else None


@lru_cache(maxsize=1024)
def _read(given: str) -> Address | None:
    text = given.strip(" \t")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in text or (port and not _PORT.match(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _PORT.match(f":{port}"):
            return None
    text, percent, zone = text.partition("%")
    if percent and (":" not in text or not zone):
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or untranslated(address)


class ClientAddress:
    """Finds the address of a client.

    :param trusted_proxies: addresses and networks of the proxies that are believed, and ``"unix"`` for one that asks
        over a Unix socket. Where the server reads forwarded headers itself, as uvicorn does with
        ``--forwarded-allow-ips``, it is to be empty.
    :param header: where they tell the client's address: a list of addresses, to which each proxy appends one, or a
        single address.
    """

    def __init__(self, where: str, trusted_proxies: Iterable[str], header: str) -> None:
        given = require_strings(where, "trusted_proxies", trusted_proxies)
        self._trusts_unix = UNIX in given
        self._trusted = Networks(where, "trusted_proxies", [text for text in given if text != UNIX])
        if self._trusted.holds_all:
            raise ConfigurationError(
                f"{where}: trusted_proxies contains all addresses, so that anybody could choose the one to come from;"
                " expected the networks of the proxies"
            )
        self._header = require_header(where, "forwarded_header", header)
        if self._header == "forwarded":
            raise ConfigurationError(
                f"{where}: forwarded_header='forwarded' is no list of addresses, expected {FORWARDED_FOR!r} or the like"
            )

    def of(self, event: RequestHeadersEvent) -> Address | None:
        """The client's address; None where nobody tells one that can be read.

        A server tells none where the peer has none, as on Unix sockets, and where it does not know it.
        """
        peer = event.metadata.client_ip
        address = address_of(peer) if peer else None
        if not (self._trusts_unix and not peer if address is None else address in self._trusted):
            return address
        for told in reversed(",".join(event.headers.get(self._header, ())).split(",")):
            # Empty elements of a list mean nothing (RFC 9110, section 5.6.1.2).
            if told.strip(" \t"):
                address = address_of(told)
                if address is None or address not in self._trusted:
                    break
        return address
