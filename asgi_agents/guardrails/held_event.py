"""An event that waits for its texts, and what it leaves as."""

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial

from . import json_text
from .framing import Unit
from .json_text import Path
from .operations import Drop, Follow, Operation, Remove
from .records import Record
from .slots import SlotKey

#: Told of the mark of an event that leaves, or is left out. Returns JSON to be put in place of values in it.
Leaves = Callable[[tuple[str | int, ...], bool], Mapping[Path, str]]


class HeldEvent:
    """An event that has not left yet."""

    __slots__ = (
        "as_text",
        "changes",
        "comment",
        "dropped",
        "instead",
        "is_json",
        "keys",
        "later",
        "lines",
        "mark",
        "since",
        "spans",
        "unit",
        "waiting",
    )

    def __init__(self, unit: Unit, now: float, is_json: bool) -> None:
        self.unit = unit
        self.is_json = is_json
        self.since = now
        # How many of its texts may not leave yet.
        self.waiting = 0
        self.changes: dict[Path, str] = {}
        # JSON that takes the place of values.
        self.instead: dict[Path, str] = {}
        self.spans: dict[tuple[int, int], str] = {}
        # What the keys of members become.
        self.keys: dict[Path, str] = {}
        # Texts beside its data.
        self.lines: dict[tuple[int, int], bytes] = {}
        # What is decided when it leaves, for then everything before it has left.
        self.later: list[Follow | Drop | Remove | tuple[Record, Path, str, int]] = []
        self.comment = False
        # What is done with its data where all of it is text.
        self.as_text: Sequence[Operation] = ()
        self.mark: tuple[str | int, ...] | None = None
        self.dropped = False

    def released(self, path: Path | None, before: str, after: str | None, *, instead: str | None = None) -> None:
        """A text in it leaves.

        :param instead: JSON that takes the place of the value at ``path`` if it is changed.
        """
        self.waiting -= 1
        if after is None:
            self.dropped = True
        elif path is not None and after != before:
            if instead is None:
                self.changes[path] = after
            else:
                self.instead[path] = instead

    def key_released(self, path: Path, before: str, after: str) -> None:
        """The key of a member leaves."""
        self.waiting -= 1
        if after != before:
            self.keys[path] = after

    def span_released(self, span: tuple[int, int], before: str, after: str) -> None:
        """A text in it that no path leads to leaves. What is to leave in place of an empty span does not."""
        self.waiting -= 1
        if after != before and span[0] < span[1]:
            self.spans[span] = after

    def line_released(self, span: tuple[int, int], before: str, after: str) -> None:
        """A text beside its data leaves."""
        self.waiting -= 1
        if after != before:
            self.lines[span] = " ".join(after.splitlines()).encode("utf-8", "surrogatepass")

    @property
    def is_plain(self) -> bool:
        """Whether it leaves as it came, and nobody has to be told."""
        changes = self.changes or self.instead or self.spans or self.keys or self.lines
        return not (changes or self.later or self.mark or self.dropped)

    def leave(self, changed: Container[SlotKey], leaves: Leaves) -> bytes:
        """The bytes that it leaves as, now that everything before it has left.

        :param changed: the slots of which text has left changed.
        """
        unit = self.unit
        changes: dict[Path, str | Callable[[str], str]] = {
            path: partial(json_text.encode, after) for path, after in self.changes.items()
        }
        changes.update(self.instead)
        removed: set[Path] = set()
        for later in self.later:
            match later:
                case Follow(path, json) if _follows(later, changes, changed):
                    changes[path] = json
                case Remove(path, text) if text in changes:
                    removed.add(path)
                case Drop(key) if key in changed:
                    self.dropped = True
                case (record, path, text, begin) if (after := record.after(text, begin)) != text:
                    changes[path] = partial(json_text.encode, after)
        if self.mark is not None:
            changes.update(leaves(self.mark, self.dropped))
        if self.dropped:
            return b""
        if self.lines:
            unit = unit.with_texts(self.lines)
        if not (changes or self.spans or self.keys):
            return unit.raw
        if not self.is_json:
            return unit.put_back(self.changes[()].encode("utf-8", "surrogatepass"))
        data = (unit.data or b"").decode()
        if self.keys:
            self.spans.update({(start, end): self.keys[path] for path, start, end in json_text.keys(data, self.keys)})
        data = json_text.replace(data, changes, self.spans)
        if removed:
            data = json_text.without(data, removed, {path[:-1] for path in removed})
        return unit.put_back(data.encode())


def _follows(follow: Follow, changes: Mapping[Path, object], changed: Container[SlotKey]) -> bool:
    """Whether the text has changed that a value has to follow."""
    if follow.key is not None:
        return follow.key in changed
    return follow.text in changes if follow.text is not None else bool(changes)
