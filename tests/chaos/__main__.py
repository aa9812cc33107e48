"""The command line: ``python -m tests.chaos --help``."""

import argparse
import asyncio
import random
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple, NoReturn

import uvloop

from . import report
from .checks import Checker, Violation
from .clients import Client, Results
from .corruption import Wire
from .fleet import INSTANCES, Fleet, fleet
from .monkey import Monkey
from .recovery import at_rest, inspected, logged, reached, recovered
from .schedule import Kind, schedule
from .stamps import Seal
from .targets import AGENTS, TARGETS

SECONDS: Final = 200.0
SHORT: Final = 15.0
#: The longest run: with what comes before and after it stays within five minutes.
LONGEST: Final = 230.0
_CLIENTS: Final = 32
# Seconds before anything goes wrong.
_WARM_UP: Final = 1.0


class Outcome(NamedTuple):
    """All that is to be told of a run."""

    results: Results
    violations: list[Violation]
    done: Mapping[Kind, int]
    met: Mapping[Wire, int]
    recovery: float


def main() -> int:
    """Run it; the exit code."""
    options = _options()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    began = time.monotonic()
    outcome = uvloop.run(_run(options.seed, options.seconds, options.clients))
    print(f"seed {options.seed}, {options.seconds:g} s of chaos, {options.clients} clients\n")
    print(report.requests(outcome.results), end="\n\n")
    print(report.injections(outcome.done, outcome.met), end="\n\n")
    print(report.violations(outcome.violations), end="\n\n")
    print(f"All was well again {outcome.recovery:.1f} s after the last injection. ", end="")
    print(f"{time.monotonic() - began:.0f} s in all.")
    return 1 if outcome.violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Agents die, freeze and talk nonsense, while clients are served."
    )
    parser.add_argument("--seconds", type=_duration, default=SECONDS, help=f"of chaos; default {SECONDS:g}")
    parser.add_argument("--short", dest="seconds", action="store_const", const=SHORT, help=f"{SHORT:g} seconds of it")
    parser.add_argument("--seed", type=int, default=1, help="of what happens; default 1")
    parser.add_argument("--clients", type=int, default=_CLIENTS, help=f"default {_CLIENTS}")
    return parser.parse_args()


def _duration(given: str) -> float:
    if not 0 < (value := float(given)) <= LONGEST:
        raise argparse.ArgumentTypeError(f"{given}, expected seconds above 0, at most {LONGEST:g}")
    return value


async def _run(seed: int, seconds: float, clients: int) -> Outcome:
    secret = secrets.token_bytes(16)
    seals = {agent: Seal(agent, secret) for agent in AGENTS}
    checker, results = Checker(seals), Results()
    chance = random.Random(seed)  # noqa: S311 - no secret
    async with fleet(secret, seed) as running:

        def client(name: str) -> Client:
            return Client(name, running.port, checker, results, random.Random(chance.random()))  # noqa: S311

        _progress("everything is up")
        monkey = Monkey(running.instances)
        stop = asyncio.Event()
        results.began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(client(f"c{number}").run(stop))
            await asyncio.sleep(_WARM_UP)
            await monkey.run(schedule(seed, seconds, {name: speech for name, (_, speech) in INSTANCES.items()}))
            _progress(f"the last injection is over, {time.monotonic() - results.began:.0f} s")
            stop.set()
        last = client("last")
        recovery, amiss = await _after(running, checker, seals, last)
        last.close()
        # What was seen on the way comes first.
        return Outcome(results, [*results.violations, *amiss], monkey.done, _met(running), recovery)


async def _after(
    running: Fleet, checker: Checker, seals: Mapping[str, Seal], client: Client
) -> tuple[float, list[Violation]]:
    seconds, amiss = await recovered(client)
    for target in TARGETS:
        amiss += await inspected(target, running.port, seals)
    amiss += await at_rest(running)
    amiss += reached(await running.statistics(), checker)
    amiss += logged(running.app.said)
    return seconds, amiss


def _met(running: Fleet) -> Mapping[Wire, int]:
    proxies = [instance.proxy for instance in running.instances.values() if instance.proxy is not None]
    return sum((proxy.met for proxy in proxies), Counter())


def _progress(line: str) -> None:
    print(line, file=sys.stderr)


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
