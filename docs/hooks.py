"""MkDocs hooks: what the pages include from elsewhere in the repository, and what they are without the tests' marks."""

import re
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
_MARK: Final = re.compile(r"^ *<!-- (?:from|not run|output|the failure table)\b.*-->\n", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The changelog's page is the changelog, whose links lead to the pages."""
    if page.file.src_uri == "changelog.md":
        return (ROOT / "CHANGELOG.md").read_text().replace("](docs/pages/", "](")
    return _MARK.sub("", markdown)
