"""The command line: ``python -m tests.benchmarks --help``."""

import argparse
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from . import report
from .client import LoadError
from .environment import environment
from .fleet import StartError
from .parts import PARTS
from .plan import FULL, QUICK


def main() -> None:
    options = _options()
    plan = QUICK if options.quick else FULL
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    print(", ".join(f"{name} {value}" for name, value in environment().items()), end=".\n\n")
    parts = []
    try:
        for name in options.parts or PARTS:
            part = PARTS[name](plan, _progress)
            parts.append(part)
            print(report.text(part), end="\n\n", flush=True)
    except (StartError, LoadError) as exc:
        sys.exit(str(exc))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if options.json is not None:
        options.json.write_bytes(report.json(parts, {"environment": environment(), "plan": asdict(plan)}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="What agents cost, as ratios.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works; the numbers are rough")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every round there")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    return options


def _progress(line: str) -> None:
    print(line, file=sys.stderr)


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
