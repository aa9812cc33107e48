"""Text behind the escapes of JSON in what is no JSON as a whole, or in a string of JSON.

Websockets carry JSON in many ways: a document a line, records that a control character ends, a body behind headers, an
array of strings that hold JSON. A reader of one of them reads escapes (``\\u0034``, ``\\/``) that are plain letters to
whoever takes the message for text. So a message is judged in both ways, whatever its framing is.

For that nothing of the framing has to be known. Strings of JSON are between quotes, and neither quotes nor control
characters are in them but escaped. So whatever is between two of those, a *run*, is read as if it were in a string.
Which quotes begin a string and which end one is not asked, for a stray quote would lead astray. What is read so may
hold runs in its turn.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Final

from msgspec import Struct

from .framing import TooComplexError
from .json_text import encode
from .slots import Slot

#: How often a text may be escaped.
MAX_LEVELS: Final = 8
#: How many runs a text may have: each takes memory, and a call of its judges.
MAX_RUNS: Final = 20_000

_RUN: Final = re.compile(r'(?:[^"\\\x00-\x1f]++|\\[^\x00-\x1f]?)++')
_ESCAPE: Final = re.compile(r'(?:\\u[0-9a-fA-F]{4})++|\\["\\/bfnrt]')

#: Has a text judged; its last argument is called with what the text leaves as.
Judge = Callable[[Slot, str, Callable[[str], None]], None]


class Run(Struct, frozen=True):
    """A part of a text that reads otherwise with its escapes read.

    :ivar start: where it begins in the text around it; it ends at ``end``.
    :ivar text: as it reads.
    :ivar inner: the runs in that.
    """

    start: int
    end: int
    text: str
    inner: tuple["Run", ...]


def runs_in(text: str, *, known: bool = False) -> tuple[Run, ...]:
    """The runs of a text that read otherwise with their escapes read.

    :param known: whether what they read is judged anyway, for the text is JSON. Only those are returned then in which
        there are others.
    :raises TooComplexError: for text that is escaped more than :data:`MAX_LEVELS` times, and for more than
        :data:`MAX_RUNS` runs.
    """
    return _Finding(known).runs(text, 1)


def count(runs: tuple[Run, ...]) -> int:
    """How many these are, with those in them."""
    return len(runs) + sum(count(run.inner) for run in runs if run.inner)


class _Finding:
    """Finds the runs of one text."""

    __slots__ = ("_found", "_known")

    def __init__(self, known: bool) -> None:
        self._known = known
        self._found = 0

    def runs(self, text: str, level: int) -> tuple[Run, ...]:
        if "\\" not in text:
            return ()
        runs: list[Run] = []
        for match in _RUN.finditer(text):
            given = match[0]
            if "\\" not in given or (read := _ESCAPE.sub(_read, given)) == given:
                continue
            if level > MAX_LEVELS:
                raise TooComplexError(f"text is escaped more than {MAX_LEVELS} times")
            inner = self.runs(read, level + 1)
            if not inner and self._known and level == 1:
                continue
            self._found += 1
            if self._found > MAX_RUNS:
                raise TooComplexError(f"more than {MAX_RUNS} texts")
            runs.append(Run(*match.span(), read, inner))
        return tuple(runs)


def judge_runs(
    text: str, runs: tuple[Run, ...], slot: Slot, judge: Judge, released: Callable[[str], None], *, known: bool = False
) -> None:
    """Have the runs of ``text`` judged, the innermost first.

    :param released: called with what the text becomes. The text itself is not judged.
    :param known: as in :func:`runs_in`.
    """
    if not runs:
        released(text)
        return
    changes: dict[int, str] = {}
    waiting = len(runs)

    def judged(index: int, after: str) -> None:
        nonlocal waiting
        if after != runs[index].text:
            changes[index] = after
        waiting -= 1
        if waiting == 0:
            released(_changed(text, runs, changes))

    for index, run in enumerate(runs):
        behind = partial(judged, index)
        judge_runs(run.text, run.inner, slot, judge, behind if known else partial(_whole, slot, judge, behind))


def _whole(slot: Slot, judge: Judge, released: Callable[[str], None], text: str) -> None:
    judge(slot, text, released)


def _changed(text: str, runs: tuple[Run, ...], changes: dict[int, str]) -> str:
    pieces: list[str] = []
    at = 0
    for index in sorted(changes):
        run = runs[index]
        given = text[run.start : run.end]
        pieces += [text[at : run.start], encode(changes[index], f'"{given}"')[1:-1]]
        at = run.end
    return "".join(pieces) + text[at:]


def _read(match: re.Match[str]) -> str:
    read: str = json.loads(f'"{match[0]}"')
    return read
