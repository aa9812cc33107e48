"""What a name leads to: from addresses to members. No I/O."""

import random
from collections.abc import Collection, Sequence
from typing import Final

from msgspec import Struct

#: Members of a name. Each costs a process connections, and those of a larger service are better shared out.
MAX_MEMBERS: Final = 100


class Member(Struct, frozen=True):
    """One instance of an agent, as far as can be told from addresses.

    :ivar host: what to connect to: an address, or a name where it has one address of each family.
    :ivar port: the port of the name.
    :ivar addresses: what it is known by. A member whose addresses have changed is another one.
    """

    host: str
    port: int
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Membership:
    """The members of one name, from one answer of the resolver to the next.

    A host with one IPv4 address and one IPv6 address is one member: these are two ways to one machine, which whoever
    connects tries as always (RFC 8305). Where there are several of a family, no answer tells which addresses belong
    together, and to count each machine twice would give it twice the connections and halve what is known of its
    health. So the addresses of one family are the members: of the one that has more, and else of the one that the
    system prefers. The other family takes their place when none of them can be reached.

    :param name: the host, as configured.
    """

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self._family = 0
        # Of which no address could be reached, when it was the turn of that family.
        self._unreachable_family = 0
        self._unreachable: set[str] = set()
        #: Those of the latest answer that had any.
        self.members: Sequence[Member] = ()
        #: How many addresses were left out of it, because there are more than :data:`MAX_MEMBERS`.
        self.left_out = 0

    def failed(self, member: Member) -> None:
        """It can't be reached."""
        self._unreachable.update(member.addresses)

    def reached(self, member: Member) -> None:
        """It was reached."""
        self._unreachable.difference_update(member.addresses)

    def update(self, addresses: Sequence[str]) -> None:
        """The name has these addresses now, of which there is at least one."""
        found = list(dict.fromkeys(addresses))
        self._unreachable.intersection_update(found)
        families: dict[int, list[str]] = {}
        for address in found:
            families.setdefault(6 if ":" in address else 4, []).append(address)
        if len(found) == len(families) == 2:
            self.members = [Member(self._name, self._port, tuple(sorted(found)))]
            return
        family = self._choose(families)
        if family != self._family:
            # What was known of it is old.
            self._unreachable.difference_update(families[family])
            self._family = family
        chosen = dict.fromkeys(self._limit(families[family]))
        # Those that are known keep their order: resolvers give each answer in another.
        known = {member.host: member for member in self.members if member.host in chosen}
        new = [Member(each, self._port, (each,)) for each in chosen if each not in known]
        self.members = [*known.values(), *new]

    def _choose(self, families: dict[int, list[str]]) -> int:
        if len(families) > 1 and self._unreachable.issuperset(families.get(self._family, ("",))):
            self._unreachable_family = self._family
        return min(
            families,
            key=lambda family: (
                family == self._unreachable_family,
                -len(families[family]),
                family != self._family,
            ),
        )

    def _limit(self, addresses: Sequence[str]) -> Collection[str]:
        self.left_out = max(0, len(addresses) - MAX_MEMBERS)
        if not self.left_out:
            return addresses
        # Those that are known stay. By chance, so that the processes of an app don't all take the same.
        known = {member.host for member in self.members}
        kept = [each for each in addresses if each in known]
        others = [each for each in addresses if each not in known]
        return [*kept, *random.sample(others, MAX_MEMBERS - len(kept))]
