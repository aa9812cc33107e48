"""What a file of the format MMDB says (https://maxmind.github.io/MaxMind-DB). Needs the ``geo`` extra."""

from collections.abc import Iterator, Set
from io import BytesIO
from typing import Final

from maxminddb import MODE_FD, Reader
from maxminddb.decoder import Decoder

from .networks import Address
from .places import FIELDS, kind_of_place, places_in

# The major version of the format, the zero bytes between the tree and the records, and what stands before the metadata.
_FORMAT: Final = 2
_SEPARATOR: Final = 16
_METADATA: Final = b"\xab\xcd\xefMaxMind.com"


class BrokenDatabaseError(Exception):
    """Why a file can't be read."""


class Mmdb:
    """A database in memory.

    It is read by the part of maxminddb that is written in Python. The part in C ends the process where one byte of a
    key is wrong. The part in Python raises errors of many types then, so that each of them means a broken file here.

    :ivar version: of the addresses in it: 6, which has those of IPv4 as well, or 4.
    :ivar kinds: which of the kinds of places in ``wanted`` it tells, of one address at least.
    :raises BrokenDatabaseError: for what is no database, or not all of one.
    """

    def __init__(self, content: bytes, wanted: Set[str]) -> None:
        try:
            self._content = content
            self._reader = Reader(BytesIO(content), MODE_FD)
            begin = content.rindex(_METADATA) + len(_METADATA)
            # A number that is cut off is another number to it.
            if Decoder(content, begin).decode(begin)[1] > len(content):
                raise ValueError("cut off")
            metadata = self._reader.metadata()
            if metadata.binary_format_major_version != _FORMAT or metadata.ip_version not in (4, 6):
                raise ValueError("of another format")
            self.version: Final = metadata.ip_version
            self.kinds: Final = self._kinds(wanted)
        except Exception as exc:
            raise BrokenDatabaseError("no such database, or not all of one") from exc

    def places(self, address: Address) -> Set[str]:
        """What it says of an address. Raises :class:`BrokenDatabaseError`."""
        # One for IPv4 alone knows nothing of others.
        if address.version > self.version:
            return frozenset()
        try:
            return frozenset(places_in(self._reader.get(address)))
        except Exception as exc:
            raise BrokenDatabaseError("is broken") from exc

    def _kinds(self, wanted: Set[str]) -> Set[str]:
        # To look through all records of a large file takes seconds: a name that is nowhere is looked for in none.
        possible = {kind for kind in wanted if any(_as_key(field) in self._content for field in FIELDS[kind])}
        found: set[str] = set()
        if possible:
            for record in self._records():
                found.update(kind_of_place(place) for place in places_in(record))
                if found >= possible:
                    break
        return found & possible

    def _records(self) -> Iterator[object]:
        """Each record to which a node leads, once.

        The nodes are read one after the other: those of a broken file may lead back, or to one another in so many ways
        that nobody gets to the end of them.
        """
        metadata = self._reader.metadata()
        count, size, width = metadata.node_count, metadata.record_size, metadata.node_byte_size
        tree = count * width
        decoder = Decoder(self._content, tree + _SEPARATOR)
        seen: set[int] = set()
        for begin in range(0, tree, width):
            node = int.from_bytes(self._content[begin : begin + width])
            # Of two times 28 bits, the byte in the middle has the highest four of both.
            left = node >> 32 | (node >> 28 & 0xF) << 24 if size == 28 else node >> size
            for pointer in (left, node & ((1 << size) - 1)):
                if pointer > count and pointer not in seen:
                    seen.add(pointer)
                    yield decoder.decode(tree + pointer - count)[0]


def _as_key(name: str) -> bytes:
    """How the format writes a text of fewer than 29 bytes, which is the only way in which it can."""
    return bytes((2 << 5 | len(name),)) + name.encode()
