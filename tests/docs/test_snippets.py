"""Every code block of README and documentation runs, or is at least what it says it is."""

import configparser
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
import yaml

from .markdown import Block, blocks_of
from .pages import PAGES, ROOT, name_of
from .running import BASH, PageRun
from .typing_of import write_packages

# Pages whose blocks start many processes.
_SLOW: Final = {"docs/pages/guide/command-line.md"}
#: How many blocks may be left out, with a reason in the page.
_MOST_NOT_RUN: Final = 2
_INSTRUCTIONS: Final = {"FROM", "RUN", "COPY", "WORKDIR", "USER", "CMD", "ENV", "EXPOSE", "ENTRYPOINT", "HEALTHCHECK"}


def blocks() -> Iterator[tuple[Path, Block]]:
    for page in PAGES:
        for block in blocks_of(page.read_text()):
            yield page, block


def where(page: Path, block: Block) -> str:
    return f"{name_of(page)}:{block.line}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if name_of(page) in _SLOW else [])
        for page in PAGES
        if any(True for _ in blocks_of(page.read_text()))
    ],
    ids=name_of,
)
def test_the_python_and_console_blocks_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    if shutil.which("curl") is None and any(block.language == "console" for block in blocks_of(page.read_text())):
        pytest.skip("there is no curl here")
    PageRun(page, tmp_path).run()


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left_out = [(where(page, block), block.marks["not run"]) for page, block in blocks() if "not run" in block.marks]
    assert all(reason for _, reason in left_out)
    assert len(left_out) <= _MOST_NOT_RUN, left_out


def test_a_block_that_begins_with_imports_runs_as_it_is_printed(tmp_path: Path) -> None:
    """It has all names from itself or from blocks before it on the page, also where it is quoted from a file."""
    for page in PAGES:
        before = ""
        for block in blocks_of(page.read_text()):
            if block.language != "python":
                continue
            begins = re.match(r"(?:from|import) ", block.code) is not None
            if begins:
                code = block.code if block.title is not None else before + block.code
                (tmp_path / f"{len([*tmp_path.iterdir()])}.py").write_text(f"# {where(page, block)}\n{code}")
            if block.title is None and (begins or "from" not in block.marks):
                before += block.code
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--no-cache",
        "--quiet",
        "--select",
        "F821",
        str(tmp_path),
    ]
    found = subprocess.run(command, capture_output=True, text=True)
    names = {path.name: path.read_text().partition("\n")[0] for path in tmp_path.iterdir()}
    assert found.returncode == 0, re.sub(r"\d+\.py", lambda name: names.get(name[0], name[0]), found.stdout)


def test_what_others_have_to_run_is_run_by_them() -> None:
    """It needs packages that are not installed for the tests of the pages; those tests skip what is missing."""
    runners = {(page.parent.name, block.marks["run by"]) for page, block in blocks() if "run by" in block.marks}
    assert runners == {
        ("recipes", "tests/compat/test_recipes.py"),
        ("guide", "tests/compat/test_ray.py"),
        ("agents", "tests/agents/test_presidio.py"),
    }
    for page, block in blocks():
        if "run by" in block.marks:
            assert block.title is not None or block.language == "console", where(page, block)
            runner = (ROOT / block.marks["run by"]).read_text()
            assert f'"{page.stem}": [' in runner or f'"{page.name}"' in runner


def check_shell(code: str) -> None:
    checked = subprocess.run([BASH, "-n"], input=code, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    for module in re.findall(r"python -m ([\w.]+)", code):
        assert importlib.util.find_spec(module) is not None, f"there is no module {module}"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"(?:asgi-agents|\.)\[([\w,]+)\]", code):
        assert set(named.split(",")) <= set(extras), f"there is no such extra: {named}"


def check_dockerfile(code: str) -> None:
    joined = code.replace("\\\n", " ")
    instructions = [line.split()[0] for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    assert instructions[0] == "FROM"
    assert set(instructions) <= _INSTRUCTIONS


CHECKS: Final[Mapping[str, Callable[[str], object]]] = {
    "sh": check_shell,
    "json": json.loads,
    "yaml": lambda code: list(yaml.safe_load_all(code)),
    "toml": tomllib.loads,
    "ini": lambda code: configparser.ConfigParser(strict=False, interpolation=None).read_file(io.StringIO(code)),
    "dockerfile": check_dockerfile,
}
#: What the run of the page takes care of, and what is no code.
ELSEWHERE: Final = {"python", "console", "text"}


@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(page, block, id=where(page, block)) for page, block in blocks() if block.language not in ELSEWHERE],
)
def test_other_blocks_are_of_the_language_that_they_name(page: Path, block: Block) -> None:
    CHECKS[block.language](block.code)


# A cold run over FastAPI's and our own types. tests/typing has a type checker in the short run.
@pytest.mark.slow
def test_a_type_checker_has_nothing_against_the_python_of_the_pages(tmp_path: Path) -> None:
    snippets = write_packages(PAGES, tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path / 'cache'}", "--no-error-summary"]
    # The snippets alone: where an extra is not installed, what imports it in the package is no mistake of a page.
    command.append("--follow-imports=silent")
    found = subprocess.run(
        [*command, "-p", snippets.name],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "MYPYPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
