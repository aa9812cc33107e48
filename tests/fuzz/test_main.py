"""The command line."""

import base64
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz import campaign
from tests.fuzz.campaign import Finding, Progress, found, plant
from tests.fuzz.targets import TARGETS, Target


def main(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tests.fuzz", *arguments])
    command.main()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """A target that holds for nothing that begins with an x."""

    def run(data: bytes) -> None:
        assert not data.startswith(b"x"), data

    monkeypatch.setitem(TARGETS, "broken", Target(run, [b"a", b"b"], 1))
    return "broken"


@pytest.mark.parametrize("as_file", [True, False])
def test_an_input_can_be_replayed_from_a_file_or_from_base64(
    as_file: bool, broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def given(data: bytes) -> str:
        if not as_file:
            return base64.b64encode(data).decode()
        path = tmp_path / "input"
        path.write_bytes(data)
        return str(path)

    with pytest.raises(AssertionError, match="xyz"):
        main("--target", broken, "--replay", given(b"xyz"), monkeypatch=monkeypatch)
    main("--target", broken, "--replay", given(b"abc"), monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "broken: nothing to find fault with\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replay", "eA=="], "for which --target"),
        (["--target", "frames", "--replay", "not base64"], "neither a file nor base64"),
    ],
)
def test_what_cannot_be_replayed_is_said(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=message):
        main(*arguments, monkeypatch=monkeypatch)


def test_without_atheris_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[test,fuzz\]'"):
        main("--minutes", "1", monkeypatch=monkeypatch)


def test_a_finding_is_exit_status_1_and_printed_so_that_it_can_be_replayed(
    broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_finding(*args: object) -> object:
        return {broken: Progress(executions=7)}, [Finding(broken, b"xyz", "AssertionError: why")]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(command, "campaign", one_finding)
    with pytest.raises(SystemExit) as ended:
        main("--target", broken, monkeypatch=monkeypatch)
    assert ended.value.code == 1
    told = capsys.readouterr().out
    assert "7 executions, 1 findings" in told
    assert "broken: AssertionError: why" in told
    command_line = f"--target broken --replay {base64.b64encode(b'xyz').decode()}"
    assert command_line in told
    with pytest.raises(AssertionError, match="xyz"):
        main(*command_line.split(), monkeypatch=monkeypatch)


def test_a_corpus_has_every_seed_once(broken: str, tmp_path: Path) -> None:
    for _ in range(2):
        plant(tmp_path / broken, TARGETS[broken])
    assert sorted(path.read_bytes() for path in (tmp_path / broken).iterdir()) == [b"a", b"b"]


def test_inputs_that_a_worker_left_are_findings_with_or_without_a_report(tmp_path: Path) -> None:
    (tmp_path / "frames-1").write_bytes(b"one")
    (tmp_path / "frames-1.txt").write_text("why")
    (tmp_path / "http-timeout-2").write_bytes(b"two")
    assert found(tmp_path) == [
        Finding("frames", b"one", "why"),
        Finding("http", b"two", "no report: it hung or died"),
    ]


def test_every_turn_is_counted_and_the_time_is_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns: list[tuple[str, int]] = []

    def turn(name: str, seconds: int, corpus: Path, findings: Path, progress: Progress) -> None:
        turns.append((name, seconds))
        progress.executions += 1

    monkeypatch.setattr(campaign, "target_run", turn)
    progress, findings = campaign.campaign(
        ["frames", "ids"], 2.5, tmp_path / "corpus", tmp_path / "none", lambda name, progress: None
    )
    assert turns == [("frames", 60), ("ids", 60), ("frames", 30)]
    assert progress["frames"].executions == 2
    assert findings == []


def test_a_run_guided_by_coverage_executes_and_covers(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    arguments = ["--minutes", "0.03", "--target", "frames", "--corpus", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    [row] = [line.split() for line in ended.stdout.splitlines() if line.startswith("frames")]
    executions, edges, corpus = int(row[1]), int(row[3]), int(row[5])
    assert executions > 10
    assert edges > 5
    assert corpus == sum(1 for _ in (tmp_path / "frames").iterdir())
