"""Tokens whose beginning may be anywhere in a long word. They are found from what stands further behind in them.

detect-secrets has patterns for them that begin with a prefix, go on with any characters of the word, and then need
more. The prefix may be in the word a thousand times, and a pattern reads on to the end of the word from each.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

#: Where a token begins, and up to where it is recognised. What follows of its word belongs to it.
Finder = Callable[[str, int], Iterator[tuple[int, int]]]

# Code points from the beginning to what the token is recognised by. A window of a stream must have all of them.
_LONGEST: Final = 3900
# Each takes a word in one look: there is nothing to try again.
_PART: Final = re.compile(r"[\w=-]++(\.(?=[\w=-]))?", re.ASCII)
_WORD: Final = re.compile(r"[\w-]++", re.ASCII)
_OPENAI: Final = re.compile(r"(?<=[A-Za-z0-9]{20})T3BlbkFJ(?=[A-Za-z0-9]{20})")


def _json_web_tokens(text: str, start: int) -> Iterator[tuple[int, int]]:
    """By the first dot."""
    # Most texts have none. What stands before it in its word is not needed.
    if (first := text.find("eyJ", start)) < 0:
        return
    for part in _PART.finditer(text, first):
        if (dot := part.start(1)) < 0:
            continue
        # At least one character stands before the dot.
        begin = text.find("eyJ", max(part.start(), dot - _LONGEST), dot - 1)
        if begin >= 0:
            yield begin, dot + 1


def _openai_tokens(text: str, start: int) -> Iterator[tuple[int, int]]:
    """By what stands in the middle of all of them."""
    if "T3BlbkFJ" not in text or (first := text.find("sk-", start)) < 0:
        return
    for word in _WORD.finditer(text, first):
        for middle in _OPENAI.finditer(text, word.start(), word.end()):
            before = middle.start() - 20
            begin = text.find("sk-", max(word.start(), before - _LONGEST), before)
            if begin >= 0:
                # The rest of the word belongs to it.
                yield begin, middle.end() + 20
                break


#: The patterns of detect-secrets, and what finds what they match.
FINDERS: Final[Mapping[str, tuple[str, Finder]]] = {
    r"eyJ[A-Za-z0-9-_=]+\.[A-Za-z0-9-_=]+\.?[A-Za-z0-9-_.+/=]*?": ("json_web_token", _json_web_tokens),
    r"sk-[A-Za-z0-9-_]*[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}": ("openai_token", _openai_tokens),
}
