"""Loads servers one at a time, round after round."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import msgspec

from .client import LoadError
from .fleet import ROOT
from .load import Job, Measurement

_SECONDS_TO_STOP: Final = 5.0

K = TypeVar("K")


class Loader:
    """The process that makes the load."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def load(self, job: Job) -> Measurement:
        """:raises LoadError: when the server doesn't answer every request as it should."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(job) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise LoadError("the load's process has ended") from exc
        if not (line := self._process.stdout.readline()):
            raise LoadError("the load's process has ended")
        answer = msgspec.json.decode(line, type=Measurement | str)
        if isinstance(answer, str):
            raise LoadError(answer)
        return answer


@contextmanager
def loader() -> Iterator[Loader]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.load"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    )
    with process:
        try:
            yield Loader(process)
        finally:
            process.terminate()
            try:
                process.wait(_SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()


def in_rounds(
    load: Callable[[Job], Measurement], jobs: Mapping[K, Job], rounds: int, progress: Callable[[str], None]
) -> dict[K, list[Measurement]]:
    """Every job once in each round; every round has an order of its own.

    :raises LoadError: naming the job.
    """
    measurements: dict[K, list[Measurement]] = {name: [] for name in jobs}
    shuffle = random.Random(0).shuffle  # noqa: S311
    order: Sequence[K] = [*jobs]
    for number in range(rounds):
        shuffle(order := [*order])
        for name in order:
            try:
                measurement = load(jobs[name])
            except LoadError as exc:
                raise LoadError(f"{name}: {exc}") from exc
            measurements[name].append(measurement)
            progress(f"round {number + 1} of {rounds}: {name}: {measurement.rate:.0f}/s")
    return measurements
