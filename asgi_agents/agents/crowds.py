"""What is known of addresses, of so many at most: who comes with a crowd of addresses shares what there is room for."""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, get_args

from .networks import Address

# Of IPv6 a /64 is one customer of a provider, a /48 is a site and a /32 is a provider (RFC 6177).
_LENGTHS: Final = (64, 48, 32)
#: Once half of the room is taken: how many entries a network of this length has before the rest of it is one. A /48
#: counts for its /32 with its own share at most, however many entries it has got before.
SHARES: Final[Mapping[int, int]] = {48: 64, 32: 1024}
# So many entries that are over are removed at a time: more than can begin meanwhile, and none for which others wait.
_SWEPT: Final = 100

#: Who has a client ask: the site itself or nobody, pages elsewhere, or a link elsewhere that leads here.
Asker = Literal["own", "elsewhere", "link"]
ASKERS: Final[tuple[Asker, ...]] = get_args(Asker)


class NetworkKey(NamedTuple):
    """A network, and which of its requests are meant.

    :ivar length: of its prefix, ``number``.
    """

    version: int
    length: int
    number: int
    asker: Asker

    @property
    def wider(self) -> Iterator["NetworkKey"]:
        """The networks around it that may be taken together, the narrowest first."""
        if self.version == 6:
            for length in _LENGTHS:
                if length < self.length:
                    yield self._replace(length=length, number=self.number >> (self.length - length))

    @property
    def crowds(self) -> Iterator["NetworkKey"]:
        """The networks that have a share, and that it takes of, the narrowest first: a /48 takes of its own."""
        if self.version == 6 and self.length in SHARES:
            yield self
        yield from self.wider


def key_of(address: Address, asker: Asker = "own") -> NetworkKey:
    """The narrowest that there is."""
    length = _LENGTHS[0] if address.version == 6 else 32
    return NetworkKey(address.version, length, int(address) >> (address.max_prefixlen - length), asker)


V = TypeVar("V", bound=tuple[float, Any])


class Crowds(Generic[V]):
    """Values by networks, each with when it ends.

    A client of IPv6 may come from as many networks as it likes. So once half of the room is taken, what has many
    entries already gets no more of its own: the rest of a /48 is one, and then the rest of a /32. Only who comes from
    very many of these, or of addresses of IPv4, has the entries forgotten that end first.

    :param most: entries at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # All have the same length of time from when they were put here, so that the first ends first.
        self._entries: OrderedDict[NetworkKey, V] = OrderedDict()
        # How much each network that may be taken together has of its share.
        self._within: Counter[NetworkKey] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: NetworkKey) -> V | None:
        """What there is of exactly this network."""
        return self._entries.get(key)

    def around(self, key: NetworkKey) -> Iterator[V]:
        """What there is of this network and of those around it."""
        for each in (key, *key.wider):
            if each in self._entries:
                yield self._entries[each]

    def place(self, key: NetworkKey, now: float) -> NetworkKey:
        """Where something of this network is to be put at ``now``: there, or in one around it."""
        # How much room is taken is not known before all that is over has gone.
        if self._sweep(now) or len(self._entries) < self._most / 2:
            return key
        places = (key, *key.wider)
        for place in places[:-1]:
            if place in self._entries or all(self._within[each] < SHARES[each.length] for each in place.wider):
                return place
        return places[-1]

    def put(self, key: NetworkKey, value: V, now: float) -> bool:
        """Put it there. Returns whether something had to be forgotten that has not ended at ``now``.

        :param value: begins with when it ends.
        """
        self.drop(key)
        forgotten = False
        while len(self._entries) >= self._most:
            first, (until, *_) = next(iter(self._entries.items()))
            self.drop(first)
            forgotten = forgotten or until > now
        self._entries[key] = value
        for each in key.crowds:
            self._within[each] += 1
            if self._within[each] > SHARES[each.length]:
                break
        return forgotten

    def drop(self, key: NetworkKey) -> None:
        """Forget what there is of exactly this network."""
        if self._entries.pop(key, None) is not None:
            for each in key.crowds:
                left = self._within[each] = self._within[each] - 1
                if not left:
                    del self._within[each]
                if left >= SHARES[each.length]:
                    break

    def drop_around(self, key: NetworkKey) -> None:
        """Forget what there is of this network and of those around it."""
        for each in (key, *key.wider):
            self.drop(each)

    def _sweep(self, now: float) -> bool:
        """Remove some of what is over at ``now``. Returns whether there may be more of it."""
        for _ in range(_SWEPT):
            if not self._entries:
                return False
            first, (until, *_) = next(iter(self._entries.items()))
            if until > now:
                return False
            self.drop(first)
        return True
