"""Every link within README, documentation and repository leads somewhere."""

import re
from pathlib import Path
from typing import Final

import pytest

from .markdown import anchor_of, headings_of, links_of
from .pages import DOCS, PAGES, README, ROOT, name_of, site

#: Where the repository is: the one place that says so is ``repo_url`` in docs/mkdocs.yml.
REPOSITORY: Final = str(site()["repo_url"]).rstrip("/")
_IN_REPOSITORY: Final = re.compile(
    rf"{re.escape(REPOSITORY)}/(?:blob|tree|raw)/main/(?P<path>[^#]*)(?:#(?P<anchor>.*))?\Z"
)
# What mkdocstrings makes an anchor of.
_NAME: Final = re.compile(r"\[asgi_agents[\w.]*\]\Z")


def anchors_of(page: Path) -> list[str]:
    text = page.read_text()
    return [anchor_of(heading) for heading in headings_of(text)] + re.findall(r'<a (?:id|name)="([^"]+)"', text)


def fault_of(page: Path, link: str) -> str | None:
    """What is wrong with a link of ``page``."""
    if link.startswith("["):
        return None if _NAME.match(link) and page.is_relative_to(DOCS) else "the reference is not defined"
    target, anchor = page, ""
    if in_repository := _IN_REPOSITORY.match(link):
        target, anchor = ROOT / in_repository["path"], in_repository["anchor"] or ""
    elif link.startswith(REPOSITORY):
        return None
    elif re.match(r"[a-z]+:", link):
        return None if link.startswith("https://") else "expected https://"
    elif page == README and not link.startswith("#"):
        return "expected an absolute link: the package's page on PyPI shows the README elsewhere"
    else:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.resolve().is_relative_to(DOCS) and page != README:
            return f"expected {REPOSITORY}/blob/main/..., because the site has only what is in docs/pages"
    if not target.exists():
        return "there is no such file"
    if anchor and anchor not in anchors_of(target):
        return f"{name_of(target)} has no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    faults = {link: fault for link in links_of(page.read_text()) if (fault := fault_of(page, link)) is not None}
    assert not faults


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_two_headings_of_a_page_have_one_anchor(page: Path) -> None:
    anchors = [anchor_of(heading) for heading in headings_of(page.read_text())]
    assert sorted(anchors) == sorted(set(anchors))


def _listed(entry: object) -> list[str]:
    match entry:
        case str():
            return [entry]
        case dict():
            return [page for below in entry.values() for page in _listed(below)]
        case list():
            return [page for below in entry for page in _listed(below)]
    raise TypeError(f"nav has a {type(entry).__name__}")


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [page.relative_to(DOCS).as_posix() for page in PAGES if page != README]
    assert sorted(_listed(site()["nav"])) == sorted(pages)


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) < 250


def test_every_image_of_the_documentation_is_shown() -> None:
    linked = {(page.parent / link).resolve() for page in PAGES for link in links_of(page.read_text())}
    assert {path for path in DOCS.rglob("*.svg") if path.resolve() not in linked} == set()


def test_every_public_name_is_in_the_reference_once() -> None:
    import asgi_agents

    named = [
        match
        for page in (DOCS / "reference").glob("*.md")
        for match in re.findall(r"^::: asgi_agents\.(\w+)$", page.read_text(), re.MULTILINE)
    ]
    public = {name for name in asgi_agents.__all__ if not name.startswith("__")}
    assert sorted(named) == sorted(public)


def test_every_public_name_of_guardrails_is_in_the_reference_once() -> None:
    from asgi_agents import guardrails

    page = (DOCS / "reference" / "guardrails.md").read_text()
    named = re.findall(r"^::: asgi_agents\.guardrails\.(\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(guardrails.__all__)


def test_every_public_name_of_recording_is_in_the_reference_once() -> None:
    from asgi_agents import recording

    page = (DOCS / "reference" / "recording.md").read_text()
    named = re.findall(r"^::: asgi_agents\.recording\.(\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(recording.__all__)
