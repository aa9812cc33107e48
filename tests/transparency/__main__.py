"""Fetch the suite, run it as it is and wrapped, and compare test by test."""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from . import EXPECTED_FAILURES, LEFT_OUT

FAILURES = frozenset({"failed", "error"})
NOT_RUN, EXPECTED, OMITTED = "not run", "failed as expected", "left out"

NOT_AS_ROOT = "tests/test_staticfiles.py::test_staticfiles_with_invalid_dir_permissions_returns_401"
"""It takes the owner's permission to read a directory away, which root doesn't need."""

HANG = 60
"""After this many seconds in one test all stacks are printed: what a faulty middleware does most is hang."""


@dataclass(frozen=True)
class Run:
    """One run of the suite: what became of each test, by its id, and how often the agent heard each event."""

    outcomes: dict[str, str]
    heard: dict[str, int]

    def __str__(self) -> str:
        heard = f"; the agent heard {_counted(self.heard)}" if self.heard else ""
        return _counted(Counter(self.outcomes.values())) + heard if self.outcomes else "did not finish"

    def excused(self, mode: str, place: str, baseline: "Run") -> "Run":
        """Tell what is bound to fail, or was left out, from what is not."""

        def excused(test: str, outcome: str) -> str:
            if outcome in FAILURES and any(fnmatchcase(test, pattern) for pattern in EXPECTED_FAILURES[mode, place]):
                return EXPECTED
            return OMITTED if outcome == NOT_RUN and test.startswith(LEFT_OUT[place]) else outcome

        every = dict.fromkeys(baseline.outcomes, NOT_RUN) | self.outcomes
        return Run({test: excused(test, outcome) for test, outcome in every.items()}, self.heard)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in Counter(counts).most_common())


def differences(baseline: Run, wrapped: Run) -> Iterable[str]:
    """Say what wrapping changed."""
    if not wrapped.heard.get("request_headers"):
        yield "the agent heard of no request, so nothing was wrapped"
    for test, after in wrapped.outcomes.items():
        before = baseline.outcomes.get(test, NOT_RUN)
        if after not in (before, EXPECTED, OMITTED):
            yield f"{test}: {after}, unwrapped {before}"


def fetch(cache: Path) -> Path:
    """Give the source distribution of the installed Starlette, from the cache or by pip.

    pip builds the metadata even of what it only downloads. So nothing but Starlette is refused as a wheel, or the build
    backend would have to be built first.
    """
    release = version("starlette")
    archive = cache / f"starlette-{release}.tar.gz"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "starlette"]
            if subprocess.run([*pip, "--dest", partial, f"starlette=={release}"], check=False).returncode:
                sys.exit(f"pip can't download the source distribution of starlette {release}")
            Path(partial, archive.name).replace(archive)
    return archive


def unpack(archive: Path, destination: Path) -> Path:
    """Unpack the tests and their configuration, and no more: the Starlette that they import is the installed one."""
    with tarfile.open(archive) as tar:
        wanted = [member for member in tar if member.name.split("/")[1:2] in (["tests"], ["pyproject.toml"])]
        tar.extractall(destination, wanted, filter="data")
    return destination / archive.name.removesuffix(".tar.gz")


def run(suite: Path, options: Sequence[str], timeout: float) -> Run:
    """Run the suite in a process of its own. A run that doesn't get to its end has no outcomes."""
    package = find_spec("asgi_agents")
    if package is None or package.origin is None:
        sys.exit("asgi_agents can't be imported")
    # The plugin's directory, then that of the very package that would be imported here.
    path = [str(Path(__file__).parent), str(Path(package.origin).parents[1]), os.environ.get("PYTHONPATH", "")]
    report = suite.parent / "report.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={HANG}"]
    command += ["-p", "transparency_plugin", f"--transparency-report={report}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append(f"--deselect={NOT_AS_ROOT}")
    # The suite leaves temporary directories behind; there they go when the suite does.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "TMPDIR": str(suite.parent)}
    try:
        done = subprocess.run([*command, *options], cwd=suite, env=environment, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Run({}, {})
    if done.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not report.exists():
        return Run({}, {})
    return Run(**json.loads(report.read_text()))


def cache_directory(given: Path | None) -> Path:
    """What is kept there is executed, so below a directory that everybody can write to it has to be our own."""
    user = os.geteuid() if hasattr(os, "geteuid") else None
    cache = given or Path(tempfile.gettempdir(), f"asgi-agents-transparency-{user}")
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if given is None and user is not None and cache.lstat().st_uid != user:
        sys.exit(f"{cache} belongs to somebody else; name another directory with --cache")
    return cache


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Sequence[str]]:
    modes, places = (tuple(dict.fromkeys(keys)) for keys in zip(*EXPECTED_FAILURES, strict=True))
    parser = argparse.ArgumentParser(
        "python -m tests.transparency",
        description="Run Starlette's tests with every app behind an agent that allows everything.",
        epilog="Arguments after -- are given to pytest.",
    )
    parser.add_argument("--mode", nargs="+", choices=modes, default=["stream"], help="the agent's body modes")
    parser.add_argument(
        "--place",
        nargs="+",
        choices=places,
        default=["outermost"],
        help="around the app of each TestClient, or as the first user middleware of each Starlette app",
    )
    parser.add_argument("--backend", choices=("asyncio", "trio"), help="default: both")
    parser.add_argument("--baseline", action="store_true", help="only run the tests as they are")
    parser.add_argument("--cache", type=Path, help="where to keep the download; default: a temporary directory")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one run of the suite")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return parser.parse_args(arguments[:end]), arguments[end + 1 :]


def main(arguments: Sequence[str]) -> int:
    args, options = parse(arguments)
    if args.backend:
        options = [f"--transparency-backend={args.backend}", *options]
    archive = fetch(cache_directory(args.cache))
    with tempfile.TemporaryDirectory() as directory:
        suite = unpack(archive, Path(directory))
        print("== baseline", flush=True)
        baseline = run(suite, options, args.timeout)
        summary = [f"baseline: {baseline}"]
        problems = [f"baseline: {test}: {what}" for test, what in baseline.outcomes.items() if what in FAILURES]
        for mode, place in itertools.product(args.mode, args.place) if baseline.outcomes and not args.baseline else ():
            title = f"wrapped ({mode}, {place})"
            print(f"== {title}", flush=True)
            wrapping = [f"--transparency-mode={mode}", f"--transparency-place={place}"]
            wrapping += [f"--deselect={test}" for test in LEFT_OUT[place]]
            if (wrapped := run(suite, [*wrapping, *options], args.timeout)).outcomes:
                wrapped = wrapped.excused(mode, place, baseline)
                problems += [f"{title}: {difference}" for difference in differences(baseline, wrapped)]
            else:
                problems.append(f"{title}: did not finish")
            summary.append(f"{title}: {wrapped}")
    print("== summary", *problems, *summary, sep="\n")
    return 0 if baseline.outcomes and not problems else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
