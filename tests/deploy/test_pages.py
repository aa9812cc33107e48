"""The files are on the pages, whole."""

from pathlib import Path

import pytest

from tests.docs.markdown import blocks_of
from tests.docs.pages import DOCS, PAGES, ROOT
from tests.docs.test_tables import codes, table

from .files import DEPLOY

FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_a_file_is_shown_on_a_page_whole(path: Path) -> None:
    shown = [
        block
        for page in PAGES
        for block in blocks_of(page.read_text())
        if block.marks.get("from") == path.relative_to(ROOT).as_posix()
    ]
    assert [(block.title, block.code) for block in shown] == [(path.name, path.read_text())]


def test_what_the_page_on_systemd_says_that_the_log_says_is_said() -> None:
    said = (ROOT / "asgi_agents" / "serve" / "activation.py").read_text()
    said += (ROOT / "asgi_agents" / "serve" / "options.py").read_text()
    said += (ROOT / "asgi_agents" / "serve" / "workers.py").read_text()
    rows = table(DOCS / "guide" / "systemd.md", "| it says | do |")
    assert len(rows) > 5
    for told, _ in rows:
        [message] = codes(told)
        assert all(part in said for part in message.split("…")), message
