"""Where an HTTP/1.1 answer ends, and whether anything came after it. No I/O.

RFC 9112, section 6.3: what comes after an answer must not be taken for another.
"""

import re
from typing import Final

# Of an answer's head, and of the line before a chunk.
_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_LINE_BYTES: Final = 32
# Only what every parser reads in the same way.
_FRAMING: Final = re.compile(rb"\r\n(content-length|transfer-encoding)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_DIGITS: Final = re.compile(rb"[0-9]{1,18}\Z")
_HEX_DIGITS: Final = re.compile(rb"[0-9a-fA-F]{1,15}\Z")


class AnswerEnd:
    """Follows the bytes of one answer on a connection.

    It understands answers with one plain ``content-length``, and answers in plain chunks without trailers. Of all
    others, informational answers among them, it never says that they have ended. A connection is used again only where
    it has said so: to close one more often than necessary is slow, and not wrong.
    """

    __slots__ = ("_chunked", "_in_head", "_left", "_part", "_unclear", "ended")

    def __init__(self) -> None:
        #: Whether one answer has come, whole, and nothing else.
        self.ended = False
        self._in_head = True
        self._chunked = False
        # Bytes that are still to come of a body, or of a chunk and the end of its line.
        self._left = 0
        # A head, or the line before a chunk, that has not ended.
        self._part = b""
        self._unclear = False

    def feed(self, data: bytes) -> None:
        """The next bytes that have come."""
        if self._unclear or not data:
            return
        if self.ended:
            self._give_up()
            return
        data = self._part + data
        self._part = b""
        while data:
            if self._left:
                passed = min(self._left, len(data))
                self._left -= passed
                data = data[passed:]
            else:
                end = data.find(b"\r\n\r\n" if self._in_head else b"\r\n")
                if end < 0:
                    self._wait_for_more(data)
                    return
                line, data = data[: end + 2], data[end + (4 if self._in_head else 2) :]
                if not (self._read_head(line) if self._in_head else self._read_chunk_size(line[:-2])):
                    self._give_up()
                    return
            if not self._left and not self._chunked:
                self.ended = True
                if data:
                    self._give_up()
                return

    def _give_up(self) -> None:
        self.ended, self._unclear = False, True

    def _wait_for_more(self, part: bytes) -> None:
        if len(part) > (_MAX_HEAD_BYTES if self._in_head else _MAX_LINE_BYTES):
            self._give_up()
        else:
            self._part = part

    def _read_head(self, head: bytes) -> bool:
        self._in_head = False
        fields = _FRAMING.findall(head)
        if len(fields) != 1:
            return False
        name, value = fields[0][0].lower(), fields[0][1].rstrip(b" \t")
        if name == b"transfer-encoding":
            self._chunked = value.lower() == b"chunked"
            return self._chunked
        if not _DIGITS.match(value):
            return False
        self._left = int(value)
        return True

    def _read_chunk_size(self, line: bytes) -> bool:
        if not _HEX_DIGITS.match(line):
            return False
        size = int(line, 16)
        # The end of the line belongs to the chunk; after the last, which is empty, there is only that.
        self._chunked = size > 0
        self._left = size + 2
        return True
