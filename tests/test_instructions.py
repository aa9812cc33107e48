"""How instructions are counted: the arithmetic, what is read of callgrind's file, and that what is counted runs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.benchmarks import instructions
from tests.benchmarks.counted import COUNTED
from tests.benchmarks.fleet import ROOT, started
from tests.benchmarks.instructions import FEW, MANY, ROUNDS, CountError, Version, counting, each, measure, table, totals
from tests.benchmarks.report import markdown
from tests.benchmarks.variants import STREAM_AGENT

# It counts instructions of processes.
pytestmark = pytest.mark.slow

HERE = Version("this tree", ROOT)
THERE = Version("v1", ROOT / "elsewhere")


def test_what_is_the_same_in_both_processes_does_not_count() -> None:
    assert each([1_000_000 + 300 * 7], [1_000_000 + 1300 * 7]) == 7


def test_the_least_of_all_rounds_counts() -> None:
    assert each([400, 300, 500], [1300, 1500, 1400]) == 1


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("events: Ir\nfn=(1) main\n1 5\nsummary: 1234\n\ntotals: 1234\n", 1234),
        ("summary: 10\ntotals: 12\n", 12),
        ("summary: 1608249432\n", 1608249432),
    ],
)
def test_the_totals_of_callgrind_are_read(written: str, expected: int) -> None:
    assert totals(written) == expected


@pytest.mark.parametrize("written", ["", "events: Ir\n", "desc: totals: 3\n", "totals: many\n"])
def test_a_file_without_totals_is_an_error(written: str) -> None:
    with pytest.raises(CountError, match="no totals"):
        totals(written)


@pytest.mark.parametrize("jobs", [1, 3])
def test_everything_is_counted_in_every_round_for_every_version(jobs: int) -> None:
    counted: list[tuple[str, str, int]] = []

    def count(version: Version, name: str, times: int) -> int:
        counted.append((version.title, name, times))
        # Every round takes more than the one before it.
        return 1000 * counted.count((version.title, name, times)) + times * (20 if version is HERE else 10)

    lines: list[str] = []
    found = measure([HERE, THERE], ["request", "call"], count, lines.append, jobs=jobs)
    assert found == {"request": [20, 10], "call": [20, 10]}
    assert lines[0] == "request, this tree, 300 times: 7,000"
    assert sorted(counted) == sorted(
        (version.title, name, times)
        for version in (HERE, THERE)
        for name in ("request", "call")
        for times in (FEW, MANY)
        for _ in range(ROUNDS)
    )


def test_a_count_that_fails_ends_it() -> None:
    def count(version: Version, name: str, times: int) -> int:
        raise CountError("no")

    with pytest.raises(CountError, match="no"):
        measure([HERE], ["request"], count, print)


@pytest.mark.parametrize(
    ("versions", "counts", "row"),
    [
        ([HERE], [123456.4], "| 123,456 |"),
        ([HERE, THERE], [202000, 200000], "| 202,000 | 200,000 | 1.0100 |"),
    ],
)
def test_a_ratio_is_of_this_tree_to_the_other(versions: Sequence[Version], counts: list[float], row: str) -> None:
    text = markdown(table(versions, {"request": counts}))
    assert text.splitlines()[-1] == f"| {COUNTED['request'].title} {row}"


def test_both_versions_are_run_with_the_tests_of_this_tree(tmp_path: Path) -> None:
    (tmp_path / "asgi_agents").mkdir()
    (tmp_path / "asgi_agents" / "__init__.py").write_text("version = 1")
    with instructions.versions(str(tmp_path)) as (this, other):
        assert other.title == str(tmp_path)
        ours = (ROOT / "asgi_agents" / "__init__.py").read_text()
        assert (this.directory / "asgi_agents" / "__init__.py").read_text() == ours
        assert (other.directory / "asgi_agents" / "__init__.py").read_text() == "version = 1"
        driver = (ROOT / "tests" / "benchmarks" / "count.py").read_text()
        for version in (this, other):
            assert (version.directory / "tests" / "benchmarks" / "count.py").read_text() == driver
        environment = this.environment()
        assert environment["PYTHONHASHSEED"] == other.environment()["PYTHONHASHSEED"] == "0"
        assert environment["PYTHONPYCACHEPREFIX"].startswith(environment["PYTHONPATH"])


def test_a_version_that_is_neither_a_directory_nor_a_revision_is_an_error() -> None:
    with pytest.raises(CountError, match="'no-such-version', expected"), instructions.versions("no-such-version"):
        pass


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_counted_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.count", name, "3", "--socket", STREAM_AGENT.socket(tmp_path)]
    with started(STREAM_AGENT, tmp_path, ROOT, os.environ):
        subprocess.run(command, cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["request", "call"])
def test_what_valgrind_runs_is_the_driver_with_its_agent(name: str, tmp_path: Path) -> None:
    """Beside a stand-in for valgrind, which runs what it is given and claims to have counted."""
    valgrind = tmp_path / "valgrind"
    valgrind.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, subprocess, sys\n"
        "tool, out, *command = sys.argv[1:]\n"
        "assert tool == '--tool=callgrind'\n"
        "pathlib.Path(out.removeprefix('--callgrind-out-file=')).write_text('totals: ' + command[4])\n"
        "sys.exit(subprocess.run(command).returncode)\n"
    )
    valgrind.chmod(0o755)
    count = counting(str(valgrind))
    with instructions.versions(None) as (version,):
        assert count(version, name, 5) == 5
        with pytest.raises(CountError, match=f"(?s){name}, this tree: ended with status 2: .*invalid int"):
            count(version, name, "none")  # type: ignore[arg-type]


def test_a_package_from_elsewhere_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    command = [sys.executable, "-m", "tests.benchmarks.count", "request", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode
    assert f"expected that of {tmp_path}" in done.stderr


def test_without_valgrind_a_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["instructions"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    instructions.main()
    assert capsys.readouterr().out == "Left out: instructions: valgrind is not installed.\n"


def test_a_name_that_is_not_counted_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["instructions", "requests"])
    with pytest.raises(SystemExit):
        instructions.main()
    assert "requests: expected request, upload, message, call, guardrail, exchange, served" in capsys.readouterr().err
