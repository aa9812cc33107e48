"""Lines that come in pieces."""

from .errors import UnreadableError

# Bytes. A line or an event that is longer can't be held back until it has ended.
LIMIT = 8 * 1024 * 1024


class Lines:
    """Cuts bytes into lines that end with CR, LF or CRLF; takes time linear in their length, however they come."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes, last: bool) -> list[str]:
        """The lines that are complete now, with their ends, as Latin-1; with ``last``, whatever is left is one, too.

        :raises UnreadableError: a line is longer than ``LIMIT``.
        """
        # A CR is the end of a line, or the first half of one.
        half = bool(self._pieces) and self._pieces[-1].endswith(b"\r")
        if data:
            self._pieces.append(data)
            self._size += len(data)
        if not (last or half or b"\n" in data or b"\r" in data):
            if self._size > LIMIT:
                raise UnreadableError("a line is too long to be held")
            return []
        lines = b"".join(self._pieces).splitlines(keepends=True)
        rest = lines.pop() if lines and not last and not lines[-1].endswith(b"\n") else b""
        self._pieces, self._size = [rest] if rest else [], len(rest)
        return [line.decode("latin-1") for line in lines]
