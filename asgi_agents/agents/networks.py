"""Networks: those that are configured, and those that mean something by themselves."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_network
from typing import Final

from ..errors import ConfigurationError
from ..messages.naming import named
from .settings import require_strings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Those that are nobody's on the internet, where proxies have theirs. The standard library counts more of them from
# version to version, and the examples of documentation among them.
_LOCAL: Final = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10"),
    )
)
# What translators write in front of an IPv4 address: NAT64 (RFC 6052, section 2.1), and SIIT (RFC 2765, section 2.1).
_TRANSLATED: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("::ffff:0:0:0/96"))
_PREFIXES: Final = frozenset(int(network.network_address) >> 32 for network in _TRANSLATED)


def is_local(address: Address) -> bool:
    """Whether it belongs to a machine or a site, and to nobody on the internet."""
    return any(address in network for network in _LOCAL)


def untranslated(address: Address) -> Address:
    """The IPv4 address that a translator has written as one of IPv6, or ``address``.

    A local one it must not write so (RFC 6052, section 3.1). Who does so all the same is no such client: else whoever
    could send from such an address would be taken for a proxy on this machine.
    """
    if address.version == 6 and int(address) >> 32 in _PREFIXES:
        found = IPv4Address(int(address) & 0xFFFF_FFFF)
        if not is_local(found):
            return found
    return address


class Networks:
    """A set of addresses, given as networks. Thousands of them are looked through as fast as a few."""

    def __init__(self, where: str, name: str, given: Iterable[str]) -> None:
        # Of each version and length of prefix that there is, the prefixes as numbers.
        self._prefixes: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        networks = [_network_of(where, name, text) for text in require_strings(where, name, given)]
        # Two halves are the whole: what makes up a wider network is that.
        for of_v4 in collapse_addresses(each for each in networks if isinstance(each, IPv4Network)):
            self._add(of_v4)
        for of_v6 in collapse_addresses(each for each in networks if isinstance(each, IPv6Network)):
            self._add(of_v6)

    def _add(self, network: Network) -> None:
        prefix = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
        self._prefixes[network.version].setdefault(network.prefixlen, set()).add(prefix)

    def __contains__(self, address: Address) -> bool:
        number, bits = int(address), address.max_prefixlen
        return any(
            number >> (bits - length) in prefixes for length, prefixes in self._prefixes[address.version].items()
        )

    def __bool__(self) -> bool:
        return any(self._prefixes.values())

    @property
    def holds_all(self) -> bool:
        """Whether all addresses of a version are in it."""
        return any(0 in lengths for lengths in self._prefixes.values())


def _network_of(where: str, name: str, text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError:
        try:
            right = str(ip_network(text, strict=False))
        except ValueError:
            right = "an address or a network such as 192.0.2.0/24 or 2001:db8::/32"
        raise ConfigurationError(f"{where}: {name} contains {named(text)}, expected {right}") from None
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    read = _as_untranslated(network)
    if read is not None:
        raise ConfigurationError(
            f"{where}: {name} contains {named(text)}, whose addresses are read as the IPv4 addresses in them; expected"
            f" {str(read)!r}"
        )
    return network


def _as_untranslated(network: Network) -> IPv4Network | None:
    """The IPv4 network whose addresses are read in place of those of ``network``; None where they are read as such."""
    if isinstance(network, IPv6Network) and any(network.subnet_of(prefix) for prefix in _TRANSLATED):
        number = int(network.network_address) & 0xFFFF_FFFF
        found = IPv4Network((number, network.prefixlen - 96))
        if not any(isinstance(each, IPv4Network) and found.subnet_of(each) for each in _LOCAL):
            return found
    return None
