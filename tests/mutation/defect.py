"""A planted defect: an edit of the package's source that its tests have to notice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: The checkout. What is planted is planted in a copy of it.
ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "asgi_agents"


@dataclass(frozen=True)
class Defect:
    """A mistake that somebody could make.

    :ivar name: what it is called on the command line.
    :ivar file: the file that it is in, below the package's directory.
    :ivar old: text that is in this file exactly once.
    :ivar new: what takes its place.
    :ivar notice: what a user would notice.
    :ivar tests: the tests that are expected to find it: files, or test functions as ``file::function``.
    """

    name: str
    file: str
    old: str
    new: str
    notice: str
    tests: tuple[str, ...]

    @property
    def path(self) -> str:
        """The file, from the root of a checkout."""
        return f"{PACKAGE}/{self.file}"

    def applied(self, source: str) -> str:
        """``source``, which is the text of the file, with the defect in it.

        :raises ValueError: where the old text is not there exactly once, or nothing would change.
        """
        times = source.count(self.old)
        if times != 1:
            raise ValueError(f"{self.name}: its old text is {times} times in {self.path}, expected once")
        changed = source.replace(self.old, self.new)
        if changed == source:
            raise ValueError(f"{self.name}: its new text is the old one")
        return changed
