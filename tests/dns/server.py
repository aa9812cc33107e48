"""A DNS server that knows one name (RFC 1035)."""

import socket
import struct
import threading
from collections.abc import Sequence
from typing import Final, Self

_A: Final = 1
_NO_ERROR, _NO_SUCH_NAME = 0, 3
_HEADER: Final = struct.Struct("!6H")


class DnsServer:
    """Answers queries over UDP from the first line inside to the last.

    :ivar addresses: the IPv4 addresses of the name. They can be changed at any time.
    :ivar queries: how many have come for them.
    """

    def __init__(self, name: str, addresses: Sequence[str], *, time_to_live: int, at: tuple[str, int]) -> None:
        self.addresses = addresses
        self.queries = 0
        self._name = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
        self._time_to_live = time_to_live
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(at)
        self._thread = threading.Thread(target=self._serve, name="dns", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                query, client = self._socket.recvfrom(512)
                self._socket.sendto(self.answer(query), client)
            except OSError:
                return

    def answer(self, query: bytes) -> bytes:
        """The answer to a query with one question."""
        identity, flags, *_ = _HEADER.unpack_from(query)
        end = query.index(b"\0", _HEADER.size) + 1
        name, (kind, _) = query[_HEADER.size : end].lower(), struct.unpack_from("!2H", query, end)
        question = query[_HEADER.size : end + 4]
        records = b""
        count = 0
        code = _NO_ERROR if name == self._name else _NO_SUCH_NAME
        if code == _NO_ERROR and kind == _A:
            self.queries += 1
            for address in self.addresses:
                # A pointer to the name in the question.
                records += struct.pack("!3HIH", 0xC000 | _HEADER.size, _A, 1, self._time_to_live, 4)
                records += socket.inet_aton(address)
                count += 1
        # An authoritative answer, with recursion as the query has it.
        return _HEADER.pack(identity, 0x8480 | (flags & 0x0100) | code, 1, count, 0, 0) + question + records
