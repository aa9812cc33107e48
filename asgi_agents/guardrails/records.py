"""What has become of a slot's text, so that a repetition of it can be made to agree."""

import hashlib
from typing import Final

#: How many changed parts are remembered of one slot; of a slot with more, repetitions are judged.
_MAX_EDITS: Final = 4096


class Record:
    """The text of one slot as it came, by its digest, and the parts of it that left changed."""

    __slots__ = ("_begin", "_digest", "_edits", "_end", "_ended", "_latest", "_pending", "_released")

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._end = 0
        # Of what has come since it seemed to have ended, if it did: its digest, and where it begins.
        self._latest: hashlib.blake2b | None = None
        self._begin = 0
        self._ended = False
        self._released = 0
        # How many parts have come and not left.
        self._pending = 0
        self._edits: list[tuple[int, int, str]] = []

    def came(self, text: str) -> None:
        """The next part has come."""
        data = text.encode("utf-8", "surrogatepass")
        if self._ended:
            self._latest, self._begin, self._ended = hashlib.blake2b(digest_size=16), self._end, False
        if self._latest is not None:
            self._latest.update(data)
        self._digest.update(data)
        self._end += len(text)
        self._pending += 1

    def ended(self) -> None:
        """The slot seems to have ended."""
        self._ended = True

    def left(self, before: str, after: str) -> None:
        """The next part leaves."""
        start = self._released
        self._released += len(before)
        self._pending -= 1
        if before != after and len(self._edits) <= _MAX_EDITS:
            self._edits.append((start, self._released, after))

    def find(self, text: str) -> int | None:
        """Where ``text`` begins, if it is what has come: all of it, or all since it seemed to have ended.

        None: it is something else, or too much has changed in it, or may yet.
        """
        if len(self._edits) + self._pending > _MAX_EDITS:
            return None
        for begin, digest in ((0, self._digest), (self._begin, self._latest)):
            if digest is not None and len(text) == self._end - begin:
                given = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
                if given.digest() == digest.digest():
                    return begin
        return None

    def after(self, text: str, begin: int) -> str:
        """What ``text``, which was found to begin at ``begin``, has left as."""
        pieces: list[str] = []
        at = 0
        for start, end, new in self._edits:
            if begin <= start and end - begin <= len(text):
                pieces += [text[at : start - begin], new]
                at = end - begin
        return "".join(pieces) + text[at:]
