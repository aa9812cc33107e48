"""Where two texts differ, in words. No I/O.

Services answer with the whole text and what they have masked in it. Which words they have masked is found by those that
they have left: a word that is there as often before as after is taken for the same, each time, as far as all of these
are in the same order; so are the words beside them that are alike. What lies between has been replaced.

That takes time in proportion to the words, times the logarithm of their number, whatever is in the texts.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

# A word is what has no white space in it, so that no find begins or ends within a name or a number. Scripts that are
# written without spaces are cut at each character: kana, ideographs and full-width forms, Thai, Lao, Khmer and Burmese.
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
)
_WORD: Final = re.compile(rf"\s+|[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def replaced_spans(before: str, after: str) -> list[tuple[int, int, str]]:
    """The parts of ``before`` that were replaced, in order: start, end, and what stands there in ``after``.

    To replace all of them gives ``after``, exactly.
    """
    if before == after:
        return []
    old, new = _WORD.findall(before), _WORD.findall(after)
    spans: list[tuple[int, int, str]] = []
    at = word = 0
    for start, end, first, last in _differing(old, new):
        at += sum(map(len, old[word:start]))
        length = sum(map(len, old[start:end]))
        spans.append((at, at + length, "".join(new[first:last])))
        at += length
        word = end
    return spans


def _differing(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Runs of words that differ: from where to where in ``old`` and in ``new``."""
    i = j = 0
    for k, m in (*_anchors(old, new), (len(old), len(new))):
        start, first = i, j
        while start < k and first < m and old[start] == new[first]:
            start += 1
            first += 1
        end, last = k, m
        while end > start and last > first and old[end - 1] == new[last - 1]:
            end -= 1
            last -= 1
        if start < end or first < last:
            yield start, end, first, last
        i, j = k, m


def _anchors(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Words that are in both as often: the most of them that are in the same order in both."""
    pairs = _pairs(old, new)
    # The longest run of pairs that rises in `new`, too: for each length, the pair with which the lowest such run ends.
    ends: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for index, (_, j) in enumerate(pairs):
        length = bisect_left(ends, j)
        before.append(last[length - 1] if length else -1)
        if length == len(ends):
            ends.append(j)
            last.append(index)
        else:
            ends[length], last[length] = j, index
    run: list[tuple[int, int]] = []
    index = last[-1] if last else -1
    while index >= 0:
        run.append(pairs[index])
        index = before[index]
    return run[::-1]


def _pairs(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """The first time that a word is in ``old`` and in ``new``, the second time, and so on, in the order of ``old``."""
    times = Counter(old)
    places: dict[str, list[int]] = {}
    for j, word in enumerate(new):
        if word in times:
            places.setdefault(word, []).append(j)
    those = {word: iter(found) for word, found in places.items() if len(found) == times[word]}
    return [(i, next(those[word])) for i, word in enumerate(old) if word in those]
