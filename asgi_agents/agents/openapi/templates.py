"""Templates of paths, and what requests have in the places of their parameters."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

PARAMETER: Final = re.compile(r"\{([^{}]*)\}")


class Template:
    """A path as a description has it, such as ``/reports/{year}-{month}``. A parameter is within one segment.

    It matches in time in proportion to the length of a path. A regular expression takes its square for two parameters
    in one segment, and more for more.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        literals = PARAMETER.split(text)[::2]
        self._names = PARAMETER.findall(text)
        # Of each segment what stands around its parameters: one more than these.
        self._segments = [[""]]
        for index, literal in enumerate(literals):
            if index:
                self._segments[-1].append("")
            first, *others = literal.split("/")
            self._segments[-1][-1] += first
            self._segments += [[other] for other in others]

    def match(self, segments: Sequence[str]) -> Mapping[str, str] | None:
        """The values of the parameters, or None. The first of a segment are as long as can be.

        :param segments: a path, split at its slashes.
        """
        if len(segments) != len(self._segments):
            return None
        values: list[str] = []
        last = len(segments) - 1
        for index, (around, given) in enumerate(zip(self._segments, segments, strict=True)):
            found = _values(around, given)
            # Python's `$`, with which Starlette ends its patterns, comes before a last line feed too: /items%0A is
            # /items.
            if found is None and index == last and given.endswith("\n"):
                found = _values(around, given[:-1])
            if found is None:
                return None
            values += found
        return dict(zip(self._names, values, strict=True))


def _values(around: Sequence[str], given: str) -> list[str] | None:
    """What stands between some texts, each at least one character."""
    first, *others = around
    if not others:
        return [] if given == first else None
    if not given.startswith(first):
        return None
    *between, last = others
    end = len(given) - len(last)
    if not given.endswith(last):
        return None
    values: list[str] = []
    # From the right: so that each text stands as far to the right as it can, and nothing is looked at twice.
    for text in reversed(between):
        if end - 1 < len(first):
            # An end before the first character would be counted from the last one.
            return None
        start = given.rfind(text, len(first), end - 1)
        if start < 0:
            return None
        values.append(given[start + len(text) : end])
        end = start
    if end <= len(first):
        return None
    values.append(given[len(first) : end])
    return values[::-1]
