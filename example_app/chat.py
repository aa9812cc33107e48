"""A text generator without a model: the same prompt always gets the same answer, in pieces as small as a model's."""

import re
import zlib
from collections.abc import Iterator

_ANSWERS = {
    "contact": "You can write to alice.smith@example.com, or call her at +1 202 555 0143 on weekdays.",
    "pay": "The card on file is 4111 1111 1111 1111, and the receipt went to bob@example.org. Anything else?",
}
_OPENINGS = ("Good question.", "Let me see.", "With pleasure.")
_REMARKS = ("Lamps ship within two days.", "Desks take a week.", "Chairs are on sale until Friday.")

# Cuts words, addresses and numbers in the middle.
_TOKEN = re.compile(r"\s*\S{1,4}")


def answer(prompt: str) -> str:
    """The answer to ``prompt``, in one line."""
    for topic, text in _ANSWERS.items():
        if topic in prompt.casefold():
            return text
    number = zlib.crc32(prompt.encode("utf-8", "replace"))
    return f"{_OPENINGS[number % 3]} {_REMARKS[number // 3 % 3]}"


def tokens(text: str) -> Iterator[str]:
    """``text`` in pieces of up to four letters."""
    return (match[0] for match in _TOKEN.finditer(text))
