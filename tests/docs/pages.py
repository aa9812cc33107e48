"""Which pages there are."""

from pathlib import Path
from typing import Final

import yaml

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
CONFIG: Final = ROOT / "docs" / "mkdocs.yml"
DOCS: Final = ROOT / "docs" / "pages"
PAGES: Final = (README, *sorted(DOCS.rglob("*.md")))


class _Loader(yaml.SafeLoader):
    """Knows the tags of MkDocs, of which nothing is asked here."""


_LOADER: Final = _Loader
_LOADER.add_multi_constructor("!", lambda loader, suffix, node: None)
_LOADER.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def site() -> dict[str, object]:
    """What ``docs/mkdocs.yml`` says."""
    found = yaml.load(CONFIG.read_text(), _LOADER)  # noqa: S506 - a SafeLoader, and our own file
    assert isinstance(found, dict)
    return found


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()
