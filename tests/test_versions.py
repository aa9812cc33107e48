"""The lowest versions that the package says it runs on are the ones that are tested."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
_MINIMUM = re.compile(r"(?P<name>[\w-]+)(?:\[[\w,-]+\])?>=(?P<version>[\w.]+)")
# What no test is run with.
TOOLS = {"basedpyright", "coverage", "mypy", "playwright", "ruff"}
EXTRAS = (
    "example",
    "fast",
    "geo",
    "grpc",
    "jwt",
    "modsecurity",
    "openapi",
    "prometheus",
    "ratelimit",
    "secrets",
    "serve",
    "test",
    "yaml",
)


def _numbers(version: str) -> tuple[int, ...]:
    """1.0 and 1.0.0 are the same."""
    numbers = [int(part) for part in re.findall(r"\d+", version)]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _allowed() -> dict[str, tuple[int, ...]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [
        *project["dependencies"],
        *(each for name in EXTRAS for each in project["optional-dependencies"][name]),
    ]
    found = {match["name"]: _numbers(match["version"]) for each in requirements if (match := _MINIMUM.match(each))}
    return {name: version for name, version in found.items() if name not in TOOLS}


def _tested() -> dict[str, tuple[int, ...]]:
    lines = [line.strip() for line in (ROOT / "tests/lowest.txt").read_text().splitlines()]
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: _numbers(version) for name, version in pinned}


def test_the_lowest_versions_allowed_are_the_lowest_tested() -> None:
    assert _allowed() == _tested()
