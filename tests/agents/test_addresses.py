"""Which address a request comes from."""

from ipaddress import ip_address

import pytest

from asgi_agents import ConfigurationError, RequestHeadersEvent
from asgi_agents.agents import IpBan, IpFilter, RateLimit
from asgi_agents.agents.addresses import ClientAddress, address_of
from asgi_agents.agents.networks import Address, Networks, is_local
from asgi_agents.testing import request_headers_event, request_metadata

PROXIES = ["10.0.0.0/8", "2001:db8:ffff::/48"]


def asked(peer: str, *forwarded: str) -> RequestHeadersEvent:
    """A request from ``peer``, with so many fields of x-forwarded-for."""
    headers = {"x-forwarded-for": list(forwarded)} if forwarded else {}
    return request_headers_event(headers=headers, metadata=request_metadata(client_ip=peer))


def client(peer: str, *forwarded: str, trusted: list[str] = PROXIES, header: str = "x-forwarded-for") -> Address | None:
    return ClientAddress("Test", trusted, header).of(asked(peer, *forwarded))


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        (" 192.0.2.7\t", "192.0.2.7"),
        ("192.0.2.7:50000", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ('"[2001:db8::7]:443"', "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:C000:207", "192.0.2.7"),
        ("[::ffff:192.0.2.7]:80", "192.0.2.7"),
        ("::ffff:192.0.2.7%eth0", "192.0.2.7"),
        # As translators write it: NAT64, and SIIT.
        ("64:ff9b::192.0.2.7", "192.0.2.7"),
        ("[64:FF9B::C000:207]:443", "192.0.2.7"),
        ("::ffff:0:192.0.2.7", "192.0.2.7"),
        # Other prefixes are the operator's own, and nobody else knows them.
        ("64:ff9b:1::192.0.2.7", "64:ff9b:1::c000:207"),
        ("64:ff9b::1:192.0.2.7", "64:ff9b::1:c000:207"),
        ("::192.0.2.7", "::c000:207"),
    ],
)
def test_an_address_is_read_however_servers_and_proxies_write_it(written: str, address: str) -> None:
    assert address_of(written) == ip_address(address)


@pytest.mark.parametrize(
    "written",
    [
        *("", " ", "unknown", "_hidden", "localhost", "testclient", "example.com", "-"),
        *("192.0.2", "192.0.2.256", "192.0.2.07", "0xc0000207", "3221226055", "192.0.2.7.1", "192.0.2.7/32"),
        *("192.0.2.7:", "192.0.2.7:http", "192.0.2.7:123456", "192.0.2.7:-1", "192.0.2.7:١", "192.0.2.7%eth0"),
        *("[192.0.2.7]", "[2001:db8::7", "2001:db8::7]", "[2001:db8::7]443", "[2001:db8::7]:", "[]", "[", '"'),
        *("2001:db8::7::1", "2001:db8:::7", "fe80::1%", "192.0.2.7, 192.0.2.8", "١٩٢.0.2.7", "192.0.2.7\x00"),
        *("1" * 10_000, "2001:db8::7%" + "e" * 200),
    ],
)
def test_what_is_no_address_is_none(written: str) -> None:
    assert address_of(written) is None


def test_the_address_of_the_peer_counts_where_no_proxy_is_trusted() -> None:
    assert client("192.0.2.7", "203.0.113.1", trusted=[]) == ip_address("192.0.2.7")


def test_a_peer_that_is_no_proxy_is_the_client_whatever_it_forwards() -> None:
    assert client("192.0.2.7", "203.0.113.1") == ip_address("192.0.2.7")


@pytest.mark.parametrize(
    "forwarded",
    [
        ("192.0.2.7",),
        ("203.0.113.1, 192.0.2.7",),
        ("203.0.113.1,192.0.2.7,10.1.1.1",),
        # Several fields are one list: neither is the first the client's, nor the last the proxy's alone.
        ("203.0.113.1", "192.0.2.7"),
        ("203.0.113.1", "192.0.2.7", "10.1.1.1"),
        ("10.9.9.9, 192.0.2.7", "10.1.1.1, 10.2.2.2"),
        # What the client has written itself is not read at all.
        ("garbage, 10.0.0.1, 192.0.2.7",),
        ("192.0.2.7:4711, 10.1.1.1:80",),
        ("192.0.2.7, [2001:db8:ffff::1]:80, ::ffff:10.1.1.1",),
        ("192.0.2.7, , ",),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_proxys(forwarded: tuple[str, ...]) -> None:
    assert client("10.0.0.1", *forwarded) == ip_address("192.0.2.7")
    assert client("::ffff:10.0.0.1", *forwarded) == ip_address("192.0.2.7")


@pytest.mark.parametrize(
    "forwarded", [("unknown",), ("192.0.2.7, unknown",), ("192.0.2.7", "_hidden"), ("192.0.2.7, 10.1.1.1%eth0",)]
)
def test_an_address_that_a_proxy_tells_and_nobody_can_read_is_none(forwarded: tuple[str, ...]) -> None:
    assert client("10.0.0.1", *forwarded) is None


def test_a_proxy_that_tells_nothing_asks_for_itself() -> None:
    assert client("10.0.0.1") == ip_address("10.0.0.1")
    assert client("10.0.0.1", "") == ip_address("10.0.0.1")


def test_where_all_are_proxies_it_is_the_first_of_them() -> None:
    assert client("10.0.0.1", "10.0.0.3, 10.0.0.2") == ip_address("10.0.0.3")


def test_a_peer_without_an_address_has_none() -> None:
    assert client("") is None
    assert client("", "192.0.2.7") is None


def test_a_proxy_on_a_unix_socket_is_believed_where_it_is_trusted() -> None:
    assert client("", "203.0.113.1, 192.0.2.7", trusted=["unix"]) == ip_address("192.0.2.7")
    assert client("", trusted=["unix"]) is None
    assert client("testclient", "192.0.2.7", trusted=["unix"]) is None


LOCAL = [
    *("0.0.0.0", "10.0.0.1", "100.64.0.9", "127.0.0.1", "169.254.1.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("::1", "fc00::1", "fd12:3456::1", "fe80::1"),
]
PUBLIC = [
    *("8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.0"),
    *("192.0.2.7", "203.0.113.1", "2001:db8::1", "2a00::1", "fec0::1"),
]


def test_what_is_local_is_said_alike_by_every_version_of_python() -> None:
    assert [text for text in LOCAL if not is_local(ip_address(text))] == []
    assert [text for text in PUBLIC if is_local(ip_address(text))] == []


@pytest.mark.parametrize("local", [text for text in LOCAL if "." in text])
@pytest.mark.parametrize("prefix", ["64:ff9b::", "::ffff:0:"])
def test_nobody_is_a_proxy_of_this_site_by_an_address_that_no_translator_writes(prefix: str, local: str) -> None:
    """RFC 6052, section 3.1. Whoever could send from it would be 127.0.0.1, which no peer elsewhere can be."""
    written = f"{prefix}{local}"
    assert client(written, "192.0.2.7", trusted=[local]) == ip_address(written)
    assert Networks("Test", "allow", [local]).__contains__(ip_address(written)) is False


@pytest.mark.parametrize("prefix", ["64:ff9b::", "::ffff:0:", "::ffff:"])
async def test_clients_of_a_translator_are_as_many_as_they_are(prefix: str) -> None:
    """Of one prefix all of them would be one client: one who is banned, or at its limit, would be everybody."""

    def of(ip: str) -> RequestHeadersEvent:
        return request_headers_event(uri="/.env", metadata=request_metadata(client_ip=f"{prefix}{ip}"))

    ban, rate, allowed = IpBan(decoys=["/.env"]), RateLimit("1/hour"), IpFilter(allow=["192.0.2.0/24"])
    for agent in (ban, rate):
        await agent.on_request_headers(of("192.0.2.66"))
    home = request_headers_event(metadata=request_metadata(client_ip=f"{prefix}192.0.2.7"))
    assert await ban.on_request_headers(home) is None
    assert (await rate.on_request_headers(home)).is_allow
    assert await allowed.on_request_headers(home) is None
    assert await allowed.on_request_headers(of("203.0.113.1")) is not None
    # And one is the same client by all ways.
    plain = request_headers_event(metadata=request_metadata(client_ip="192.0.2.66"))
    assert await ban.on_request_headers(plain) is not None


@pytest.mark.parametrize(
    ("network", "right"),
    [
        ("64:ff9b::/96", "0.0.0.0/0"),
        ("::ffff:0:0:0/96", "0.0.0.0/0"),
        ("64:ff9b::192.0.2.0/120", "192.0.2.0/24"),
        ("64:ff9b::192.0.2.7", "192.0.2.7/32"),
    ],
)
def test_a_network_whose_addresses_are_read_as_others_is_a_configuration_error(network: str, right: str) -> None:
    """It would hold nobody: what was denied by it would pass."""
    with pytest.raises(ConfigurationError, match=f"whose addresses are read as the IPv4 addresses .* '{right}'"):
        Networks("Test", "deny", [network])


def test_another_header_may_tell_the_address() -> None:
    event = request_headers_event(
        headers={"X-Real-IP": "192.0.2.7", "x-forwarded-for": "203.0.113.1"},
        metadata=request_metadata(client_ip="10.0.0.1"),
    )
    assert ClientAddress("Test", PROXIES, "X-Real-IP").of(event) == ip_address("192.0.2.7")


def test_networks_of_both_families_and_all_lengths_are_found() -> None:
    networks = Networks(
        "Test", "allow", ["192.0.2.0/24", "198.51.100.7", "2001:db8::/32", "::ffff:203.0.113.0/120", "fe80::1"]
    )
    inside = [
        "192.0.2.0",
        "192.0.2.255",
        "198.51.100.7",
        "2001:db8:1::",
        "203.0.113.9",
        "::ffff:192.0.2.1",
        "fe80::1%1",
    ]
    outside = ["192.0.3.0", "198.51.100.8", "2001:db9::", "203.0.114.1", "::192.0.2.1", "fe80::2%1", "::1"]
    assert [text for text in inside if (address := address_of(text)) is None or address not in networks] == []
    assert [text for text in outside if (address := address_of(text)) is None or address in networks] == []


def test_all_addresses_are_in_the_networks_of_length_0() -> None:
    networks = Networks("Test", "allow", ["0.0.0.0/0"])
    assert ip_address("192.0.2.7") in networks
    assert ip_address("2001:db8::") not in networks


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["192.0.2.1/24"], "allow contains '192.0.2.1/24', expected 192.0.2.0/24"),
        (["office"], "allow contains 'office', expected an address or a network"),
        ("192.0.2.0/24", "allow='192.0.2.0/24', expected a list of strings"),
        ([167772160], "allow contains an int, expected strings"),
    ],
)
def test_what_is_no_network_is_a_configuration_error(given: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Networks("Test", "allow", given)


@pytest.mark.parametrize(
    "networks",
    [
        ["0.0.0.0/0"],
        ["::/0"],
        ["::ffff:0:0/96"],
        # However many parts it is given in.
        ["0.0.0.0/1", "128.0.0.0/1"],
        ["::/1", "8000::/1"],
        ["::ffff:0:0/97", "128.0.0.0/1"],
        [f"{number}.0.0.0/8" for number in range(256)],
        ["128.0.0.0/1", "64.0.0.0/2", "0.0.0.0/3", "32.0.0.0/3"],
    ],
)
def test_to_trust_all_is_a_configuration_error(networks: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="anybody could choose the one to come from"):
        ClientAddress("Test", ["10.0.0.1", *networks], "x-forwarded-for")


def test_to_trust_much_is_no_error() -> None:
    ClientAddress("Test", ["0.0.0.0/1", *(f"{number}.0.0.0/8" for number in range(128, 255))], "x-forwarded-for")


@pytest.mark.parametrize("header", ["forwarded", "Forwarded", "host", "x forwarded", ""])
def test_a_header_that_is_no_list_of_addresses_is_a_configuration_error(header: str) -> None:
    with pytest.raises(ConfigurationError, match="forwarded_header="):
        ClientAddress("Test", [], header)
