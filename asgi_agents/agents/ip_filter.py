"""An agent that lets requests pass by the address of the client."""

from collections.abc import Iterable
from typing import Final

from ..agent import Agent
from ..errors import ConfigurationError
from ..protocol import AgentResponse, AuditMetadata, RequestHeadersEvent
from .addresses import ADDRESS_UNKNOWN, FORWARDED_FOR, ClientAddress
from .networks import Networks

_DENIED: Final = AgentResponse.block(403, audit=AuditMetadata(reason_codes=("address_denied",)))


class IpFilter(Agent):
    """Answers 403 to requests and websocket handshakes from addresses that are not allowed, or are denied.

    A client whose address nobody tells is denied: one that comes over a Unix socket, unless a trusted proxy there tells
    the address, and one whose address can't be read.

    ::

        AgentConfig("office", IpFilter(allow=["192.0.2.0/24", "2001:db8::/32"], trusted_proxies=["10.0.0.0/8"]))

    :param allow: addresses and networks. Empty: all that are not denied.
    :param deny: addresses and networks, which are denied also where they are allowed.
    :param trusted_proxies: addresses and networks of proxies whose ``forwarded_header`` is believed, and ``"unix"`` for
        a proxy that asks over a Unix socket. The client is the rightmost address that is none of them.
    :param forwarded_header: a list of addresses, to which each proxy appends the one that it was asked from.
    :raises ConfigurationError: for what is no network, and where nothing is allowed or denied.
    """

    def __init__(
        self,
        *,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
        forwarded_header: str = FORWARDED_FOR,
    ) -> None:
        self._allowed = Networks("IpFilter", "allow", allow)
        self._denied = Networks("IpFilter", "deny", deny)
        self._client = ClientAddress("IpFilter", trusted_proxies, forwarded_header)
        if not self._allowed and not self._denied:
            raise ConfigurationError("IpFilter: nothing to allow or to deny, expected allow=[...] or deny=[...]")

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        address = self._client.of(event)
        if address is None:
            return ADDRESS_UNKNOWN
        if address in self._denied or (self._allowed and address not in self._allowed):
            return _DENIED
        return None
