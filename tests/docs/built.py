"""The built site: ``python -m tests.docs.built DIRECTORY`` says which of its links lead nowhere."""

import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [value for name in ("href", "src") if (value := given.get(name)) is not None]
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name)) is not None}


def broken_links(site: Path) -> Iterator[str]:
    """A line for each link to a page, file or anchor that is not there. Links to elsewhere are not followed."""
    pages = {path.resolve(): _Page(path.read_text()) for path in site.rglob("*.html")}
    for path, page in sorted(pages.items()):
        # Its links are those of the page that could not be found.
        if path.name != "404.html":
            yield from _broken(site, pages, path, page)


def _broken(site: Path, pages: Mapping[Path, _Page], path: Path, page: _Page) -> Iterator[str]:
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        target = target / "index.html" if target.is_dir() else target
        where = f"{path.relative_to(site.resolve())}: {link}"
        if not target.exists():
            yield f"{where}: there is no such page or file"
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
            yield f"{where}: there is no such anchor"


if __name__ == "__main__":
    faults = list(broken_links(Path(sys.argv[1])))
    print("\n".join(faults) or "every link within the site leads somewhere")
    sys.exit(bool(faults))
