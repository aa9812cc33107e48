"""The command line: ``python -m tests.benchmarks --help``."""

import argparse
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final, NoReturn

from . import page, plots, report, targets
from .client import LoadError
from .environment import environment
from .fleet import ROOT, StartError
from .parts import PARTS
from .plan import FULL, QUICK

_PAGE: Final = ROOT / "docs" / "pages" / "performance.md"
# Beside the targets; the rest is for those who run it.
_SHOWN: Final = ("server", "envoy", "ray", "guardrails")


def main() -> None:
    options = _options()
    plan = QUICK if options.quick else FULL
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    measured_in = ", ".join(f"{name} {value}" for name, value in environment().items()) + "."
    print(measured_in, end="\n\n")
    parts: list[report.Part] = []
    try:
        for name in options.parts or PARTS:
            part = PARTS[name](plan, _progress)
            parts.append(part)
            print(report.text(part), end="\n\n", flush=True)
    except (StartError, LoadError) as exc:
        sys.exit(str(exc))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    figures = {name: rounds for part in parts for name, rounds in part.figures.items()}
    table = report.markdown(targets.judge(figures))
    print(table)
    if options.json is not None:
        options.json.write_bytes(report.json(parts, {"environment": environment(), "plan": asdict(plan)}))
    if options.plots is not None:
        for path in plots.write((curve for part in parts for curve in part.curves), options.plots):
            _progress(f"wrote {path}")
    if options.page:
        shown = [table, *(report.text(part) for part in parts if part.name in _SHOWN)]
        quick = " A `--quick` run: the numbers are rough." if options.quick else ""
        _PAGE.write_text(page.rewritten(_PAGE.read_text(), "\n\n".join((measured_in + quick, *shown))))
    if options.check and (missed := targets.missed(figures)):
        sys.exit(f"not met: {'; '.join(missed)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="What agents cost, as ratios.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works; the numbers are rough")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every round there")
    parser.add_argument("--plots", type=Path, metavar="DIRECTORY", help="draw how it grows, as SVG files there")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target that was measured is not met")
    parser.add_argument(
        "--page", action="store_true", help="put the results into the page of the documentation; needs all parts"
    )
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    if options.page and set(options.parts or PARTS) != set(PARTS):
        parser.error("--page needs all parts")
    if options.plots is not None and not plots.available():
        parser.error("--plots needs matplotlib: pip install '.[benchmark]'")
    return options


def _progress(line: str) -> None:
    print(line, file=sys.stderr)


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
