"""Detectors that the tests of guardrails use, and what they give for a whole text."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from asgi_agents.guardrails.slots import Decision, Redact, Window

EMAIL: Final = re.compile(r"[\w.+-]{1,24}@[\w-]{1,20}(?:\.[\w-]{1,10}){1,3}")
CARD: Final = re.compile(r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)")
KEY: Final = re.compile(r"sk-[a-z0-9]{8,16}")
TAIL: Final = re.compile(r"[\w.+@ -]*\Z")
#: Code points: the longest that each of them looks at, lookaround included.
HOLD: Final = 90

Detector = Callable[[Window], Sequence[Decision]]


def detector(*patterns: re.Pattern[str]) -> Detector:
    """Finds every pattern by itself, so that finds of different patterns may overlap."""

    def check(window: Window) -> list[Decision]:
        return [
            Redact(match.start(), match.end(), f"[{index}]")
            for index, pattern in enumerate(patterns)
            for match in pattern.finditer(window.text, window.fresh)
        ]

    return check


def redacted(text: str, check: Detector) -> str:
    """``text`` with what is found in all of it at once replaced, overlaps made one with the text of the first."""
    out: list[str] = []
    at = 0
    finds = sorted((find for find in check(Window(text)) if isinstance(find, Redact)), key=lambda find: find.start)
    for find in finds:
        if find.start >= at:
            out += [text[at : find.start], find.text]
        at = max(at, find.end)
    return "".join(out) + text[at:]


def settled(text: str) -> int:
    """How much of ``text`` can't be part of what the patterns find."""
    match = TAIL.search(text)
    assert match is not None
    return match.start()
