"""Many targets, guided by coverage, one process after the other."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from .targets import TARGETS, Target

_PROGRESS: Final = re.compile(r"cov: (\d+) ft: (\d+)")
_EXECUTIONS: Final = re.compile(r"^stat::number_of_executed_units: (\d+)", re.MULTILINE)
# Seconds of a target's turn, and for a worker to end in after that.
_LONGEST_TURN: Final = 60
_GRACE: Final = 60


class Progress(Struct):
    """What has come of one target: coverage in edges of the library, and in features, as libFuzzer counts them."""

    executions: int = 0
    seconds: int = 0
    edges: int = 0
    features: int = 0
    corpus: int = 0


class Finding(Struct, frozen=True):
    """An input for which something does not hold."""

    target: str
    data: bytes
    report: str


def campaign(
    names: Iterable[str], minutes: float, corpus: Path, findings: Path, told: Callable[[str, Progress], None]
) -> tuple[Mapping[str, Progress], list[Finding]]:
    """Give each target its turns until the time is over; ``told`` hears how it stands after each."""
    progress = {name: Progress() for name in names}
    # A worker takes some seconds to start, which is not fuzzing.
    left = max(len(progress), int(minutes * 60))
    turn = min(_LONGEST_TURN, left // len(progress))
    while left > 0:
        for name, target in progress.items():
            seconds = min(turn, left)
            if seconds > 0:
                target_run(name, seconds, plant(corpus / name, TARGETS[name]), findings, target)
                told(name, target)
            left -= seconds
    return progress, found(findings)


def plant(place: Path, target: Target) -> Path:
    """The target's corpus, with its seeds in it."""
    place.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        path = place / hashlib.sha1(seed, usedforsecurity=False).hexdigest()
        if not path.exists():
            path.write_bytes(seed)
    return place


def target_run(name: str, seconds: int, corpus: Path, findings: Path, progress: Progress) -> None:
    """One turn of one target; adds to ``progress``."""
    command = [sys.executable, "-m", "tests.fuzz.worker", name, str(seconds), str(corpus), str(findings)]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=seconds + _GRACE, check=False)
        output, status = ended.stderr.decode(errors="replace"), ended.returncode
    except subprocess.TimeoutExpired as exc:
        output, status = (exc.stderr or b"").decode(errors="replace"), -1
    progress.seconds += seconds
    if status != 0 and not any(findings.glob(f"{name}-*")):
        # It left no input behind: its last words are all there is.
        (findings / f"{name}-died").write_bytes(b"")
        (findings / f"{name}-died.txt").write_text(f"exit status {status}\n{output[-4000:]}")
    for edges, features in _PROGRESS.findall(output)[-1:]:
        progress.edges, progress.features = int(edges), int(features)
    progress.executions += sum(map(int, _EXECUTIONS.findall(output)))
    progress.corpus = sum(1 for _ in corpus.iterdir())


def found(findings: Path) -> list[Finding]:
    """All that there is in the directory."""
    reports = []
    for path in sorted(findings.glob("*")):
        if path.suffix != ".txt":
            report = path.with_suffix(".txt")
            text = report.read_text(errors="replace") if report.exists() else "no report: it hung or died"
            reports.append(Finding(path.name.partition("-")[0], path.read_bytes(), text))
    return reports
