"""What is known of addresses stays within its room, whoever comes with however many."""

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.agents.crowds import ASKERS, SHARES, Asker, Crowds, NetworkKey, key_of

#: So many sites have the share of their provider.
SITES: Final = SHARES[32] // SHARES[48]


def key(text: str) -> NetworkKey:
    return key_of(ip_address(text))


def fill(crowds: Crowds[tuple[float, str]], addresses: Iterator[str], count: int) -> set[NetworkKey]:
    """Put so many there, in the places that they are to have. Returns these."""
    places = set()
    for _ in range(count):
        place = crowds.place(key(next(addresses)), 0.0)
        assert crowds.get(place) is not None or not crowds.put(place, (1.0, "x"), 0.0)
        places.add(place)
    return places


def of_a_site() -> Iterator[str]:
    return (f"2001:db8:7:{number:x}::1" for number in range(2**16))


def of_a_provider() -> Iterator[str]:
    return (f"2001:db8:{site:x}:{number:x}::1" for site in range(2**16) for number in range(SHARES[48] + 1))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8::1", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        # The same number, and no address of the same kind.
        ("0.0.0.1", "0:0:0:1::", False),
    ],
)
def test_an_address_of_ipv6_counts_by_its_64(one: str, other: str, same: bool) -> None:
    assert (key(one) == key(other)) is same


def test_a_site_that_comes_with_all_its_networks_has_half_of_the_room_and_no_more() -> None:
    crowds: Crowds[tuple[float, str]] = Crowds(1000)
    places = fill(crowds, of_a_site(), 5000)
    assert len(crowds) == 501
    wide = {place for place in places if place.length == 48}
    assert wide == {NetworkKey(6, 48, 0x20010DB80007, "own")}
    # Who has its own already keeps that.
    assert crowds.place(key("2001:db8:7::1"), 0.0) == key("2001:db8:7::1")
    # Others have their own still.
    for other in ("192.0.2.7", "2001:db8:8::1", "2001:db9::1"):
        assert crowds.place(key(other), 0.0) == key(other)
    assert [*crowds.around(key("2001:db8:7:ffff::1"))] == [(1.0, "x")]


def test_a_provider_that_comes_with_all_its_sites_leaves_room_for_others() -> None:
    crowds: Crowds[tuple[float, str]] = Crowds(8000)
    places = fill(crowds, of_a_provider(), 60_000)
    # 4,000 before anything is shared.
    assert len(crowds) == 4001
    assert NetworkKey(6, 32, 0x20010DB8, "own") in places
    assert crowds.place(key("2001:db9::1"), 0.0) == key("2001:db9::1")


def test_who_comes_later_with_many_gets_a_share() -> None:
    crowds: Crowds[tuple[float, str]] = Crowds(4000)
    fill(crowds, (f"10.0.{n >> 8}.{n & 255}" for n in range(2000)), 2000)
    fill(crowds, of_a_site(), 1000)
    assert len(crowds) == 2000 + SHARES[48] + 1
    fill(crowds, of_a_provider(), 10_000)
    # The rest of each site, which is one, is beyond its share, and of the last one it is that of the provider.
    assert len(crowds) == 2000 + SHARES[32] + SITES


def test_addresses_of_ipv4_never_share() -> None:
    crowds: Crowds[tuple[float, str]] = Crowds(10)
    for number in range(100):
        place = crowds.place(key(f"192.0.2.{number}"), 0.0)
        assert place == key(f"192.0.2.{number}")
        assert crowds.put(place, (1.0, "x"), 0.0) is (number >= 10)
    # The first are forgotten.
    assert len(crowds) == 10
    assert crowds.get(key("192.0.2.89")) is None
    assert crowds.get(key("192.0.2.90")) == (1.0, "x")


def test_what_is_over_makes_room_first_and_is_nothing_that_was_forgotten() -> None:
    crowds: Crowds[tuple[float, str]] = Crowds(10)
    fill(crowds, (f"192.0.2.{n}" for n in range(10)), 10)
    assert not crowds.put(key("192.0.2.99"), (9.0, "x"), 1.0)
    assert crowds.place(key("192.0.2.98"), 1.0) == key("192.0.2.98")
    assert len(crowds) == 1


@pytest.mark.parametrize("most", [1000, 65_536])
def test_what_is_over_takes_no_room_however_much_of_it_there_is(most: int) -> None:
    """A flood of yesterday has nobody put together with others today."""
    crowds: Crowds[tuple[float, str]] = Crowds(most)
    from_everywhere = (
        address
        for n in range(most)
        for address in (f"2001:db8:{n % 512:x}:{n // 512:x}::1", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    )
    fill(crowds, from_everywhere, most)
    assert len(crowds) > most / 2
    for number in range(2000):
        own = key(f"2001:db8:{number + 0x1000:x}::1")
        # Few at a time go, so that nobody waits: those that are left count for nothing.
        assert crowds.place(own, 1.0) == own
        crowds.put(own, (2.0, "x"), 1.0)
        if len(crowds) == number + 1:
            break
    else:
        pytest.fail("what is over stays")


def test_a_site_has_no_more_of_its_provider_than_its_share() -> None:
    """However much room it takes before anything is shared: its neighbours have their own."""
    crowds: Crowds[tuple[float, str]] = Crowds(4000)
    fill(crowds, of_a_site(), 3000)
    assert len(crowds) == 2001
    for site in range(1, SITES):
        fill(crowds, (f"2001:db8:{site + 7:x}:{number:x}::1" for number in range(100)), 100)
        assert crowds.place(key(f"2001:db8:{site + 7:x}:ffff::1"), 0.0).length == (48 if site < SITES - 1 else 32)
    assert crowds.place(key("2001:db8:ffff::1"), 0.0) == NetworkKey(6, 32, 0x20010DB8, "own")
    # And with what is over its share goes as well, whatever order that goes in.
    while len(crowds):
        crowds.place(key("192.0.2.7"), 2.0)
    assert not crowds._within


def taken(entries: Iterable[NetworkKey]) -> Counter[NetworkKey]:
    """What each network has of its share, counted anew."""
    sites = Counter(site for each in entries for site in each.crowds if site.length == 48)
    wide = Counter(each for each in entries if each.version == 6 and each.length == 32)
    for site, count in sites.items():
        (provider,) = site.wider
        wide[provider] += min(count, SHARES[48])
    return sites + wide


addresses = st.builds(IPv4Address, st.integers(0, 40)) | st.builds(
    lambda top, middle, low: IPv6Address(top << 96 | middle << 80 | low << 64),
    st.integers(0x20010DB8, 0x20010DB9),
    st.integers(0, 1),
    st.integers(0, 200),
)


@given(st.lists(st.tuples(addresses, st.sampled_from(ASKERS), st.integers(0, 3)), max_size=300), st.integers(1, 400))
def test_whatever_comes_it_keeps_its_counts_and_its_bound(
    steps: list[tuple[IPv4Address | IPv6Address, Asker, int]], most: int
) -> None:
    crowds: Crowds[tuple[float, str]] = Crowds(most)
    now = 0.0
    for address, asker, what in steps:
        now += 0.01
        given_key = key_of(address, asker)
        if what == 3:
            crowds.drop_around(given_key)
            assert not [*crowds.around(given_key)]
            continue
        place = crowds.place(given_key, now)
        crowds.put(place, (now + 1.0, "x"), now)
        assert [*crowds.around(given_key)]
        assert 0 < len(crowds) <= most
        assert crowds._within == taken(crowds._entries)
