"""Loads the servers one at a time, round after round."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from .fleet import ROOT, Server
from .load import LoadError, Measurement

# On top of what the measurement is to take.
_GRACE: Final = 15.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. Times are seconds."""

    rounds: int = 7
    seconds: float = 1.5
    warmup: float = 0.3
    connections: int = 16


# By the name of the variant, one measurement for each round.
Measurements = dict[str, list[Measurement]]


def rotated(items: Sequence[Server], by: int) -> list[Server]:
    """Every round begins with another row, so that none always has the same place."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def measure(servers: Sequence[Server], plan: Plan, progress: Callable[[str], None]) -> Measurements:
    """:raises LoadError: when a server doesn't answer every request with 200."""
    measurements: Measurements = {server.variant.name: [] for server in servers}
    for number in range(plan.rounds):
        for server in rotated(servers, number):
            measurement = _load(server, plan)
            name = server.variant.name
            measurements[name].append(measurement)
            progress(f"round {number + 1} of {plan.rounds}: {name}: {measurement.rate:.0f}/s")
    return measurements


def _load(server: Server, plan: Plan) -> Measurement:
    numbers = (server.port, plan.connections, plan.warmup, plan.seconds, server.pid, *server.peer_pids)
    command = [sys.executable, "-m", "tests.benchmarks.load", *map(str, numbers)]
    timeout = plan.warmup + plan.seconds + _GRACE
    try:
        run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=timeout, check=True, process_group=0)
    except subprocess.SubprocessError as exc:
        raise LoadError(f"variant {server.variant.name!r}: {exc}") from exc
    return msgspec.json.decode(run.stdout, type=Measurement)
