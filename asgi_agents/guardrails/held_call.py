"""A tool call, or other text that leaves in one go after its verdict: its pieces, and what they leave as."""

from collections.abc import Callable
from typing import Final

from . import json_text
from .dialects.cut_json import rest_of
from .framing import UnreadableError
from .json_text import Path
from .operations import Form
from .slots import Slot

#: How many characters of a tool call are held.
MAX_CHARACTERS: Final = 1024 * 1024


class HeldCall:
    """The pieces of one slot that is held whole.

    Each piece is released with what it leaves as, by the function that it came with. Those that only hold their events
    are released with the empty text.

    :param judge: has a text judged; its second argument is called with what the text leaves as.
    :param strict: whether what can't be judged stops the stream. Otherwise it passes.
    """

    __slots__ = ("_changes", "_judge", "_pieces", "_size", "_strict", "_waiting", "ended", "form", "passes", "slot")

    def __init__(
        self,
        slot: Slot,
        form: Form,
        judge: Callable[[Slot, str, Callable[[str], None]], None],
        *,
        strict: bool = True,
    ) -> None:
        self.slot = slot
        self.form = form
        self._judge = judge
        self._strict = strict
        self._pieces: list[tuple[str, Callable[[str | None], None]]] = []
        self._size = 0
        self._waiting = 0
        # By where they are in the joined text: what its literals become.
        self._changes: dict[tuple[int, int], str] = {}
        self.ended = False
        #: Whether it can't be judged, and passes as it comes.
        self.passes = False

    def add(self, text: str, released: Callable[[str | None], None]) -> None:
        """The next piece. It is released with None if its event is to be left out.

        :raises UnreadableError: for a call over :data:`MAX_CHARACTERS`, where that is not to pass.
        """
        self._size += len(text)
        self._pieces.append((text, released))
        if self._size > MAX_CHARACTERS:
            self._give_up(f"a tool call of {self._size} characters, expected at most {MAX_CHARACTERS}")

    def finish(self) -> None:
        """The slot has ended: have it judged.

        :raises UnreadableError: for arguments that are no JSON, where those are not to pass.
        """
        self.ended = True
        if self.passes:
            return
        joined = "".join(text for text, _ in self._pieces)
        strings: list[tuple[Path, int, int]] = []
        if self.form == "json" and joined.strip():
            try:
                # All of them, before any is judged.
                strings = list(json_text.strings(joined))
            except UnreadableError as exc:
                rest = None if self._strict else rest_of(joined)
                if rest is None:
                    self._give_up(f"the arguments of a tool call: {exc}")
                    return
                # They are judged as far as they go.
                self._pieces.append((rest, lambda after: None))
                joined += rest
                strings = list(json_text.strings(joined))
        # Until all of it was handed over, nothing is complete.
        self._waiting = 1
        if self.form == "json":
            self._judge_strings(joined, strings)
        elif joined:
            self._waiting += 1
            self._judge(self.slot, joined, lambda after: self._judged((0, len(joined)), joined, after))
        self._arrived()

    def _give_up(self, fault: str) -> None:
        if self._strict:
            raise UnreadableError(fault)
        self.passes = True
        pieces, self._pieces = self._pieces, []
        for text, released in pieces:
            released(text)

    def _judge_strings(self, joined: str, strings: list[tuple[Path, int, int]]) -> None:
        for path, start, end in strings:
            literal = joined[start:end]
            text = json_text.decode(literal)
            if not text:
                continue
            slot = Slot((*self.slot.key, json_text.pointer(path)), self.slot.kind, self.slot.role, self.slot.tool)
            self._waiting += 1

            def judged(
                after: str, span: tuple[int, int] = (start, end), text: str = text, literal: str = literal
            ) -> None:
                self._judged(span, text, after, literal)

            self._judge(slot, text, judged)

    def _judged(self, span: tuple[int, int], before: str, after: str, literal: str | None = None) -> None:
        if after != before:
            self._changes[span] = after if literal is None else json_text.encode(after, literal)
        self._arrived()

    def _arrived(self) -> None:
        self._waiting -= 1
        if self._waiting:
            return
        if self.form == "signed" and self._changes:
            for _, released in self._pieces:
                released(None)
            return
        at = index = 0
        changes = sorted(self._changes.items())
        for text, released in self._pieces:
            start, end = at, at + len(text)
            while index < len(changes) and changes[index][0][1] <= start:
                index += 1
            released(_part(text, start, end, changes[index:]) if index < len(changes) else text)
            at = end


def _part(text: str, start: int, end: int, changes: list[tuple[tuple[int, int], str]]) -> str:
    """What the piece from ``start`` to ``end`` becomes: a change is made where it begins."""
    pieces: list[str] = []
    at = start
    for (first, behind), new in changes:
        if first >= end:
            break
        if first >= start:
            pieces += [text[at - start : first - start], new]
        at = min(behind, end)
    return "".join(pieces) + text[at - start :]
