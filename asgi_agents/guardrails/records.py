"""What has become of a slot's text, so that a repetition of it can be made to agree."""

import hashlib
from typing import Final

#: How many changed parts are remembered of one slot; of a slot with more, repetitions are judged.
_MAX_EDITS: Final = 4096


class Record:
    """The text of one slot as it came, by its digest, and the parts of it that left changed."""

    __slots__ = ("_digest", "_edits", "_end", "_released", "changed")

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._end = 0
        self._released = 0
        self._edits: list[tuple[int, int, str]] = []
        #: Whether any part has left changed.
        self.changed = False

    def came(self, text: str) -> None:
        """The next part has come."""
        self._digest.update(text.encode("utf-8", "surrogatepass"))
        self._end += len(text)

    def left(self, before: str, after: str) -> None:
        """The next part leaves."""
        start = self._released
        self._released += len(before)
        if before != after:
            self.changed = True
            if len(self._edits) <= _MAX_EDITS:
                self._edits.append((start, self._released, after))

    def same(self, text: str) -> bool:
        """Whether ``text`` is what has come, and it is known what that leaves as."""
        if len(text) != self._end or len(self._edits) > _MAX_EDITS:
            return False
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
        return digest.digest() == self._digest.digest()

    def after(self, text: str) -> str:
        """What ``text``, which is the same, has left as."""
        pieces: list[str] = []
        at = 0
        for start, end, new in self._edits:
            pieces += [text[at:start], new]
            at = end
        return "".join(pieces) + text[at:]
