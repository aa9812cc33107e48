"""What can be imported where a reader has installed no more than a page says."""

import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .pages import DOCS

#: What every reader of the guide has installed on its first pages.
_FIRST: Final = ("asgi-agents", "fastapi", "uvicorn")
#: The page that says what tests need. The pages that have tests too do not repeat it.
_ABOUT_TESTS: Final = DOCS / "guide" / "testing.md"
_INSTALL: Final = re.compile(r"\bpip install ((?:'[^']+'|[\w.-]+)(?: (?:'[^']+'|[\w.-]+))*)")

#: A ``conftest.py`` in which the modules of its first line are missing.
CONFTEST: Final = """\
MISSING = frozenset({missing!r})

import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Missing())
"""


def named_in(text: str) -> Iterator[Requirement]:
    """What a page says is to be installed."""
    for match in _INSTALL.finditer(text):
        for word in re.findall(r"'[^']+'|[\w.-]+", match[1]):
            if not word.strip("'").startswith((".", "-")):
                yield Requirement(word.strip("'"))


def missing_for(page: Path) -> list[str]:
    """The modules that are installed here, and not where a reader has done what this page and the ones before say."""
    wanted = [*map(Requirement, _FIRST), *named_in(page.read_text()), *named_in(_ABOUT_TESTS.read_text())]
    there = _with_what_they_need(wanted)
    return sorted(
        module
        for module, owners in packages_distributions().items()
        if module not in sys.stdlib_module_names and there.isdisjoint(map(canonicalize_name, owners))
    )


def _with_what_they_need(wanted: Iterable[Requirement]) -> set[str]:
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    left = [(requirement.name, extra) for requirement in wanted for extra in ("", *requirement.extras)]
    while left:
        name, extra = left.pop()
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add(canonicalize_name(name))
        for each in map(Requirement, needed):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                left += [(each.name, of) for of in ("", *each.extras)]
    return found
