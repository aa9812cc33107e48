"""Changes to a text."""

from collections.abc import Iterable
from typing import NamedTuple


class Edit(NamedTuple):
    """``text`` takes the place of what is from ``start``, inclusive, to ``end``, exclusive."""

    start: int
    end: int
    text: str


def edited(text: str, edits: Iterable[Edit]) -> str:
    """``text`` with all edits made. Edits that overlap become one, with the longer of their texts."""
    merged: list[Edit] = []
    for edit in sorted(edits):
        if merged and edit.start < merged[-1].end:
            start, end, replacement = merged.pop()
            edit = Edit(start, max(end, edit.end), max(replacement, edit.text, key=len))
        merged.append(edit)
    parts, position = [], 0
    for start, end, replacement in merged:
        parts += [text[position:start], replacement]
        position = end
    return "".join((*parts, text[position:]))
