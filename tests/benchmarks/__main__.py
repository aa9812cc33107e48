"""The command line: ``python -m tests.benchmarks --help``."""

import argparse
import os
import platform
import signal
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

from . import report
from .apps import VARIANTS
from .fleet import StartError, serve
from .load import LoadError
from .rounds import Plan, measure
from .variant import Variant

REFERENCE: Final = "bare"
QUICK: Final = Plan(rounds=3, seconds=0.35, warmup=0.1)


def main() -> None:
    options = _options()
    variants = _chosen(options.rows, options.skip)
    plan = QUICK if options.quick else Plan()
    given = {name: getattr(options, name) for name in asdict(plan) if getattr(options, name) is not None}
    plan = replace(plan, **given)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with serve(variants) as servers:
            measurements = measure(servers, plan, _progress)
    except (StartError, LoadError) as exc:
        sys.exit(str(exc))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)

    rows = report.rows(variants, measurements, REFERENCE)
    if options.json is not None:
        options.json.write_bytes(report.json(rows, {"environment": _environment(), "plan": asdict(plan)}))
    print(", ".join(f"{name} {value}" for name, value in _environment().items()), end=".\n\n")
    print(f"Requests per second over {plan.connections} connections; medians of {plan.rounds} rounds.\n")
    print(report.markdown(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="What an agent costs, as a share of the same app without one."
    )
    names = [variant.name for variant in VARIANTS if variant.name != REFERENCE]
    parser.add_argument("--rows", nargs="+", choices=names, metavar="ROW", help=f"only these: {', '.join(names)}")
    parser.add_argument("--skip", nargs="+", choices=names, metavar="ROW", default=[], help="all but these")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works; the numbers are rough")
    usual = Plan()
    parser.add_argument("--rounds", type=_count, help=f"default {usual.rounds}")
    parser.add_argument("--seconds", type=_duration, help=f"of each measurement; default {usual.seconds}")
    parser.add_argument("--warmup", type=_duration, help=f"seconds before it; default {usual.warmup}")
    parser.add_argument("--connections", type=_count, help=f"default {usual.connections}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every round there")
    return parser.parse_args()


def _count(given: str) -> int:
    if (value := int(given)) < 1:
        raise argparse.ArgumentTypeError(f"{given}, expected at least 1")
    return value


def _duration(given: str) -> float:
    if not 0 < (value := float(given)) <= 60:
        raise argparse.ArgumentTypeError(f"{given}, expected seconds above 0, at most 60")
    return value


def _chosen(only: list[str] | None, skip: list[str]) -> list[Variant]:
    chosen = []
    for variant in VARIANTS:
        named = only is None or variant.name in only
        if variant.name == REFERENCE or (named and variant.name not in skip):
            if variant.available:
                chosen.append(variant)
            else:
                _progress(f"left out: {variant.name} needs {variant.needs}")
    return chosen


def _environment() -> dict[str, str]:
    packages = ("uvicorn", "uvloop", "httptools", "msgspec", "starlette", "aiohttp", "httpx")
    return {
        platform.python_implementation(): platform.python_version(),
        "cores": str(os.cpu_count()),
        **{name: version(name) for name in packages},
    }


def _progress(line: str) -> None:
    print(line, file=sys.stderr)


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
