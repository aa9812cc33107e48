"""The command line: ``python -m tests.soak --help``."""

import argparse
import asyncio
import random
import signal
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NoReturn

import uvloop

from . import report
from .load import Load
from .samples import Sample
from .world import World, world

REQUESTS: Final = 200_000
WEBSOCKETS: Final = 2_000
PLOT: Final = Path(__file__).parents[2] / "docs" / "pages" / "soak.svg"
#: As many samples as there are batches.
BATCHES: Final = 100
_CLIENTS: Final = 24
# After so many batches the agents are killed in the middle of one.
_KILLED_EVERY: Final = 10


def main() -> int:
    """Run it; the exit code."""
    options = _options()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    began = time.monotonic()
    with world() as running:
        samples, outcomes = uvloop.run(soak(running, options.requests, options.websockets))
    seconds = time.monotonic() - began
    found = report.trends(samples)
    print(f"{options.requests} requests and {options.websockets} websockets in {seconds:.0f} s. Outcomes: ", end="")
    print(", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items())), end=".\n\n")
    print(report.table(samples, found))
    if options.plot is not None:
        if find_spec("matplotlib") is None:
            print("no plot: matplotlib is not there (pip install '.[benchmark]')", file=sys.stderr)
        else:
            report.plot(samples, found, options.plot)
    return 1 if report.leaks(found) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Whether anything is left of many requests."
    )
    parser.add_argument("--requests", type=_count, default=REQUESTS, help=f"default {REQUESTS}")
    parser.add_argument("--websockets", type=_count, default=WEBSOCKETS, help=f"default {WEBSOCKETS}")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"draw an SVG there; the one here is {PLOT.name}")
    return parser.parse_args()


def _count(given: str) -> int:
    if (value := int(given)) < BATCHES:
        raise argparse.ArgumentTypeError(f"{given}, expected at least {BATCHES}")
    return value


async def soak(
    running: World, requests: int, websockets: int, batches: int = BATCHES
) -> tuple[list[Sample], Counter[str]]:
    """Make the requests in batches, with a sample after each; returns the samples, and what came of the requests."""
    load = Load(running.port, _CLIENTS, random.Random(1))  # noqa: S311 - no secret
    samples: list[Sample] = []
    made = talked = 0
    for number in range(1, batches + 1):
        until, until_talked = requests * number // batches, websockets * number // batches
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.batch(until - made, until_talked - talked))
            if number % _KILLED_EVERY == 0:
                tasks.create_task(running.restart_agents())
        made, talked = until, until_talked
        samples.append(await running.sample(made))
    return samples, load.outcomes


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
