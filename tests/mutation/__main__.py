"""The command line: ``python -m tests.mutation --help``."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .defect import Defect
from .defects import DEFECTS
from .runner import ALL_TESTS, Result, RunnerError, area_of, check, check_sound, prepare


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 where a defect was not found, 2 where it could not be tried."""
    options = _options(arguments)
    defects = [defect for defect in DEFECTS if not options.names or defect.name in options.names]
    if options.list:
        for defect in defects:
            print(f"{defect.name}\n    {defect.path}: {defect.notice}")
        return 0
    try:
        results = run(defects, jobs=options.jobs, all_tests=options.all_tests)
    except RunnerError as exc:
        print(exc, file=sys.stderr)
        return 2
    survived = [result for result in results if result.found_by is None]
    unexpected = [result for result in results if result.found_by is not None and not result.expected]
    print(f"\n{len(results) - len(survived)} of {len(results)} defects found")
    if unexpected:
        print(f"{len(unexpected)} of them by other tests than expected")
    return 1 if survived else 0


def run(defects: Sequence[Defect], *, jobs: int = 1, all_tests: bool = False) -> list[Result]:
    """Try each of the defects, and print what has come of it."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made).resolve()
        base = directory / "base"
        prepare(base)
        check_sound(base, defects)

        def of(defect: Defect) -> Result:
            result = check(defect, base, directory, ALL_TESTS if all_tests else area_of(defect))
            print(line(result), flush=True)
            return result

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(of, defects))


def line(result: Result) -> str:
    """One line of the table."""
    if result.found_by is None:
        told = "SURVIVED"
    else:
        told = f"found by {result.found_by}" + ("" if result.expected else ", not by the tests that are named")
    return f"{result.defect.name:44} {result.seconds:6.1f} s  {told}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation",
        description="Plants defects in copies of the package, one at a time, and runs tests until one fails. "
        "The exit code is 1 where all tests pass with one of them.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a defect; all by default")
    parser.add_argument("--list", action="store_true", help="the defects, and what a user would notice of each")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many to try at a time, 1 by default")
    parser.add_argument(
        "--all-tests",
        action="store_true",
        help="where the tests that are named all pass, run all tests that are not slow, "
        "instead of those that are about the same part of the package",
    )
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {defect.name for defect in DEFECTS}
    if unknown:
        parser.error(f"no such defects: {', '.join(sorted(unknown))}; --list has them all")
    return options


if __name__ == "__main__":
    sys.exit(main())
