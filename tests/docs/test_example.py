"""The guide shows the code of the example: each part of it on one page, and no two of them on the same."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from .markdown import Block, blocks_of
from .pages import DOCS, PAGES, ROOT, name_of
from .running import is_quoted
from .test_links import REPOSITORY

GUIDE: Final = DOCS / "guide"
EXAMPLE: Final = ROOT / "example_app"

#: Each page of the guide, and the module of the example that it quotes.
QUOTES: Final[Mapping[str, str]] = {
    "first-agent": "api_key",
    "agents": "waf",
    "bodies": "redactor",
    "websockets": "rooms",
    "guardrails": "reviews",
    "text-guardrails": "text_guardrails",
    "dialects": "chat",
    "mcp": "mcp",
    "routes": "routes",
    "middlewares": "app",
    "failures": "failing",
    "remote-agents": "waf_service",
    "testing": "demo/script",
    "observability": "observability",
    "configuration": "configuration",
    "example": "shop",
}
#: Pages that quote nothing of it, and why.
WITHOUT: Final[Mapping[str, str]] = {
    "endpoints": "the example has its routes in one place, to be read there",
    "command-line": "it is about commands, and what they print of an app that is on the page as a whole",
    "guardrail-services": "the example calls no services, and serves none to a gateway",
    "ray": "the example runs in one process, without a cluster",
    "authorisers": "the example asks no services, and answers no proxies",
    "workers": "it is about several processes, of which the example has one",
    "operating": "it is about what is done with a running app",
    "grpc": "the agent of the example that is behind an address is behind a socket or HTTP",
    "files": "the example is configured in code, which its pages quote",
    "recording": "it is about tests, and about two versions of an agent, of which the example has one",
    "envoy": "it is about a proxy, which the example has none of",
    "where": "it is about all places, of which the example has two",
    "deploying": "it is about commands and files of servers",
    "systemd": "it is about files for systemd, with the app of the page on deploying",
    "kubernetes": "it is about files for Kubernetes, with the app of the page on deploying",
    "monitoring": "it is about files for Prometheus and Grafana",
}
#: Packages of the example, and the only module that uses each. No page need quote what is inside.
INSIDE: Final[Mapping[str, str]] = {
    "waf_rules": "waf",
    "redaction": "redactor",
    "chat_page": "app",
    "demo": "__main__",
}


def quotations() -> Iterator[tuple[Path, Block]]:
    for page in PAGES:
        for block in blocks_of(page.read_text()):
            if block.marks.get("from", "").startswith("example_app/"):
                yield page, block


QUOTATIONS: Final = [pytest.param(page, block, id=f"{name_of(page)}:{block.line}") for page, block in quotations()]


def test_each_page_of_the_guide_quotes_its_module_and_no_other() -> None:
    found: dict[str, set[str]] = {}
    for page, block in quotations():
        assert page.parent == GUIDE
        found.setdefault(page.stem, set()).add(block.marks["from"])
    assert found == {page: {f"example_app/{module}.py"} for page, module in QUOTES.items()}


def test_every_page_of_the_guide_quotes_a_module_or_says_why_not() -> None:
    assert {page.stem for page in GUIDE.glob("*.md")} == {*QUOTES, *WITHOUT}
    assert not QUOTES.keys() & WITHOUT.keys()


def test_every_module_of_the_example_is_quoted_by_one_page() -> None:
    assert len(set(QUOTES.values())) == len(QUOTES)
    modules = {path.stem for path in EXAMPLE.glob("*.py")} - {"__init__", "__main__"}
    packages = {path.parent.name for path in EXAMPLE.glob("*/__init__.py")}
    assert packages == set(INSIDE)
    assert modules | {"demo/script"} == set(QUOTES.values())


def imported_by(path: Path) -> Iterator[str]:
    """The modules and packages of the example that a file imports, by the first part of their names."""
    depth = len(path.relative_to(EXAMPLE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            yield from [node.module.partition(".")[0]] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("example_app."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize(("package", "owner"), INSIDE.items())
def test_what_is_inside_of_a_part_is_used_by_that_part_alone(package: str, owner: str) -> None:
    users = {
        path.relative_to(EXAMPLE).as_posix()
        for path in EXAMPLE.rglob("*.py")
        if not path.is_relative_to(EXAMPLE / package) and package in imported_by(path)
    }
    assert users == {f"{owner}.py"}


@pytest.mark.parametrize(("page", "block"), QUOTATIONS)
def test_a_quotation_is_whole_and_its_page_names_the_file(page: Path, block: Block) -> None:
    ast.parse(block.code)
    file = block.marks["from"]
    before = "\n".join(page.read_text().splitlines()[: block.line - 2])
    paragraph = before.rpartition("<!--")[0].rstrip().rpartition("\n\n")[2]
    assert f"[`{file}`]({REPOSITORY}/blob/main/{file})" in paragraph


def test_the_page_of_the_example_has_the_table() -> None:
    rows = re.findall(
        r"^\| \[`([\w/]+)\.py`\]\((\S+)\) \|.*\| \[[^]]+\]\(([\w-]+)\.md\) \|$",
        (GUIDE / "example.md").read_text(),
        re.MULTILINE,
    )
    assert {page: module for module, _, page in rows} == QUOTES
    assert len(rows) == len(QUOTES)
    assert all(link == f"{REPOSITORY}/blob/main/example_app/{module}.py" for module, link, _ in rows)


@pytest.mark.parametrize(
    ("code", "quoted"),
    [
        ("a = 1\nb = 2\n", True),
        ("def f():\n    return 3\n", True),
        ("b = 2\n\ndef f():\n    return 3\n", False),
        ("def f():\nreturn 3\n", False),
        ("a = 1\n", True),
        ("a = 2\n", False),
        ("return 3\n", True),
    ],
)
def test_a_quotation_is_found_as_it_stands(code: str, quoted: bool) -> None:
    assert is_quoted(code, "a = 1\nb = 2\n\nclass C:\n    def f():\n        return 3\n") is quoted
