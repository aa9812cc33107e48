"""From the addresses of a name to members: families, and what stays when an answer changes."""

from collections.abc import Sequence

import pytest

from asgi_agents.transports.discovery.members import MAX_MEMBERS, Member, Membership


def membership(*addresses: str) -> Membership:
    made = Membership("waf.test", 9000)
    made.update(addresses)
    return made


def hosts(made: Membership) -> list[str]:
    return [member.host for member in made.members]


def v4(count: int) -> list[str]:
    return [f"10.0.{number // 256}.{number % 256}" for number in range(count)]


def v6(count: int) -> list[str]:
    return [f"fd00::{number + 1:x}" for number in range(count)]


def test_each_address_is_a_member() -> None:
    made = membership("10.0.0.1", "10.0.0.2")
    assert made.members == [Member("10.0.0.1", 9000, ("10.0.0.1",)), Member("10.0.0.2", 9000, ("10.0.0.2",))]


def test_an_address_that_is_there_twice_is_one_member() -> None:
    assert hosts(membership("10.0.0.1", "10.0.0.2", "10.0.0.1")) == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("found", [["fd00::1", "10.0.0.1"], ["10.0.0.1", "fd00::1"]])
def test_one_address_of_each_family_is_one_host_with_two_ways_to_it(found: Sequence[str]) -> None:
    assert membership(*found).members == [Member("waf.test", 9000, ("10.0.0.1", "fd00::1"))]


@pytest.mark.parametrize("found", [[*v6(3), *v4(3)], [*v4(3), *v6(3)]])
def test_of_hosts_with_both_families_none_is_counted_twice(found: Sequence[str]) -> None:
    """A headless service of three pods with two addresses each has three members, of the family that comes first."""
    assert hosts(membership(*found)) == found[:3]


@pytest.mark.parametrize(("found", "expected"), [([*v6(1), *v4(3)], v4(3)), ([*v4(2), *v6(3)], v6(3))])
def test_the_family_that_has_more_addresses_is_taken(found: Sequence[str], expected: list[str]) -> None:
    assert hosts(membership(*found)) == expected


def test_the_family_does_not_change_with_the_order_of_an_answer() -> None:
    made = membership(*v6(2), *v4(2))
    made.update([*v4(2), *v6(2)])
    assert hosts(made) == v6(2)


def test_where_no_address_of_a_family_can_be_reached_the_other_one_is_taken() -> None:
    made = membership(*v6(2), *v4(2))
    for member in made.members:
        made.failed(member)
    made.update([*v6(2), *v4(2)])
    assert hosts(made) == v4(2)
    # And it stays: new addresses of the family that could not be reached are no reason to try that again.
    made.update([*v6(3), *v4(2)])
    assert hosts(made) == v4(2)


def test_as_long_as_one_address_of_a_family_can_be_reached_it_stays() -> None:
    made = membership(*v6(2), *v4(2))
    first, second = made.members
    made.failed(first)
    made.failed(second)
    made.reached(second)
    made.update([*v6(2), *v4(2)])
    assert hosts(made) == v6(2)


def test_where_neither_family_can_be_reached_they_take_turns_and_each_gets_its_chance() -> None:
    made = membership(*v6(2), *v4(2))
    found = []
    for _ in range(3):
        for member in made.members:
            made.failed(member)
        made.update([*v6(2), *v4(2)])
        found.append(hosts(made))
        # Nothing has been tried since.
        made.update([*v6(2), *v4(2)])
        assert hosts(made) == found[-1]
    assert found == [v4(2), v6(2), v4(2)]


def test_a_family_of_which_nothing_is_left_gives_way() -> None:
    made = membership(*v6(2), *v4(2))
    made.update(v4(2))
    assert hosts(made) == v4(2)


def test_a_member_that_stays_is_the_same() -> None:
    made = membership("10.0.0.1", "10.0.0.2")
    before = made.members[1]
    made.update(["10.0.0.2", "10.0.0.3"])
    assert made.members[0] is before


def test_one_that_is_alone_is_the_same_as_among_others() -> None:
    made = membership("10.0.0.1")
    [before] = made.members
    made.update(["10.0.0.1", "10.0.0.2"])
    assert made.members[0] is before


def test_of_very_many_addresses_some_are_left_out_and_those_that_are_known_stay() -> None:
    made = membership(*v4(MAX_MEMBERS))
    before = hosts(made)
    assert made.left_out == 0

    made.update([*reversed(v4(3 * MAX_MEMBERS))])
    assert made.left_out == 2 * MAX_MEMBERS
    assert set(hosts(made)) == set(before)

    made.update(v4(3 * MAX_MEMBERS)[1:])
    assert len(made.members) == MAX_MEMBERS
    assert set(before[1:]) < set(hosts(made))


def test_processes_that_see_too_many_addresses_dont_all_take_the_same() -> None:
    assert len({frozenset(hosts(membership(*v4(3 * MAX_MEMBERS)))) for _ in range(5)}) > 1


@pytest.mark.parametrize(("host", "text"), [("10.0.0.1", "10.0.0.1:9000"), ("fd00::1", "[fd00::1]:9000")])
def test_a_member_reads_as_in_a_url(host: str, text: str) -> None:
    assert str(Member(host, 9000, (host,))) == text
