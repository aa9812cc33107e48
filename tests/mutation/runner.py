"""Plants a defect in a copy of the package, and runs tests until one fails."""

import compileall
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from .defect import PACKAGE, ROOT, Defect
from .first_failure import FILE

# What tests read, as far as the checkout has it.
_COPIED: Final = (PACKAGE, "tests", "docs", "example_app", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml")
# These tests are about the source as it is: every edit fails them.
_OF_THE_SOURCE: Final = "tests/mutation"
# Of whoever runs this: where what is compiled is kept, and further options.
_UNSET: Final = frozenset({"PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE", "PYTEST_ADDOPTS", "PYTHONPATH"})
#: Seconds for the tests that are named, and for all others. What takes longer hangs.
NAMED_TIMEOUT: Final = 180.0
WIDER_TIMEOUT: Final = 1200.0

#: Everything that ``python -m pytest -n auto`` runs.
ALL_TESTS: Final = ("tests",)
_OF_CALLS: Final = (
    "tests/test_guard.py",
    "tests/test_guard_breaker.py",
    "tests/test_blocking.py",
    "tests/test_raised.py",
    "tests/test_failures.py",
    "tests/test_failure_table.py",
    "tests/test_cancellation.py",
    "tests/unjudged",
    "tests/transports",
)
#: The tests that are about a part of the package, by the part; of several the longest name counts.
AREAS: Final[Mapping[str, Sequence[str]]] = {
    "": ("tests/unjudged", "tests/test_manager.py", "tests/test_middleware.py"),
    "agents/": ("tests/agents",),
    "breaker/": ("tests/test_breaker.py", "tests/test_breaker_counting.py", "tests/test_breaker_model.py"),
    "calls/": _OF_CALLS,
    "commands/": ("tests/commands", "tests/recording"),
    "concurrency/": ("tests/test_limiter.py", "tests/test_event_loops.py", "tests/test_guard.py", "tests/exchange"),
    "decision.py": ("tests/test_decision.py", "tests/test_manager.py", "tests/unjudged", "tests/exchange"),
    "evaluation/": ("tests/test_manager.py", "tests/test_stages.py", "tests/unjudged", "tests/exchange"),
    "exchange/": (
        "tests/exchange",
        "tests/unjudged",
        "tests/test_frames.py",
        "tests/test_middleware.py",
        "tests/test_left_behind.py",
        "tests/fuzz",
    ),
    "failures.py": _OF_CALLS,
    "files/": ("tests/files",),
    "guard.py": _OF_CALLS,
    "guardrails/": ("tests/guardrails",),
    "protocol/": ("tests/protocol", "tests/serve", "tests/fuzz"),
    "recording/": ("tests/recording", "tests/fuzz"),
    "routing/": (
        "tests/test_routing.py",
        "tests/test_resolver.py",
        "tests/test_path_cache.py",
        "tests/test_patterns.py",
        "tests/test_route_advice.py",
        "tests/unjudged/test_routes.py",
        "tests/fuzz",
    ),
    "terminal/": ("tests/commands", "tests/recording", "tests/serve"),
    "testing/": ("tests/testing", "tests/test_virtual_time.py"),
    "transports/": ("tests/transports", "tests/unjudged"),
}


@dataclass(frozen=True)
class Result:
    """What has come of a defect.

    :ivar found_by: the test that failed first, or that the tests hung; None: nothing has found the defect.
    :ivar expected: whether it was among the tests that were expected to find it.
    :ivar seconds: how long all of it took.
    """

    defect: Defect
    found_by: str | None
    expected: bool
    seconds: float


class RunnerError(Exception):
    """The tests could not be run as they should be; says nothing of a defect."""


def area_of(defect: Defect) -> Sequence[str]:
    """The tests about the part of the package that the defect is in."""
    return AREAS[max((part for part in AREAS if defect.file.startswith(part)), key=len)]


def prepare(base: Path) -> None:
    """Copy to ``base`` what tests need, without any defect."""
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, base / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        elif source.exists():
            shutil.copy2(source, base / name)
    # Once, so that not each copy of it compiles everything again.
    compileall.compile_dir(base, quiet=2, workers=1)


def check_sound(base: Path, defects: Sequence[Defect]) -> None:
    """Raise :class:`RunnerError` where the tests that are to find the defects fail without them."""
    tests = sorted({test for defect in defects for test in defect.tests})
    found_by = _first_failure(base, tests, WIDER_TIMEOUT)
    if found_by is not None:
        raise RunnerError(f"without any defect the tests fail: {found_by}")


def check(defect: Defect, base: Path, directory: Path, wider: Sequence[str]) -> Result:
    """Plant ``defect`` in a copy of ``base``, and run the tests that are expected to find it, then others.

    :param base: made by :func:`prepare`.
    :param directory: where the copy is made.
    :param wider: the tests that are run if those all pass.
    """
    began = time.monotonic()
    copy = directory / defect.name
    shutil.copytree(base, copy)
    try:
        path = copy / defect.path
        path.write_text(defect.applied(path.read_text()))
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()
        found_by = _first_failure(copy, defect.tests, NAMED_TIMEOUT)
        expected = found_by is not None
        if found_by is None and wider:
            found_by = _first_failure(copy, [*wider, "--ignore", _OF_THE_SOURCE], WIDER_TIMEOUT)
        return Result(defect, found_by, expected, time.monotonic() - began)
    finally:
        shutil.rmtree(copy)


def _first_failure(copy: Path, tests: Sequence[str], timeout: float) -> str | None:
    """Run ``tests`` on the package in ``copy``: the first that fails; None where all pass.

    :raises RunnerError: where they can't be run, or another package than that in ``copy`` was imported.
    """
    note = copy / "first_failure.json"
    note.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key not in _UNSET}
    environment |= {"PYTHONPATH": str(copy), FILE: str(note)}
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "tests.mutation.first_failure"]
    if tuple(tests[:1]) == ALL_TESTS and find_spec("xdist"):
        options += ["-n", "auto"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=copy,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # With what the tests have started, if they hang.
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=timeout)
    except BaseException as exc:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(exc, subprocess.TimeoutExpired):
            return f"a timeout: the tests did not end within {timeout:g} s"
        raise
    if process.returncode not in (0, 1, 2) or not note.exists():
        raise RunnerError(f"pytest ended with status {process.returncode}:\n{said[-4000:]}")
    noted = json.loads(note.read_text())
    if noted["imported"] is not None and not Path(noted["imported"]).is_relative_to(copy):
        raise RunnerError(f"{PACKAGE} was imported from {noted['imported']}, expected from {copy}")
    if process.returncode == 0:
        return None
    if not noted["failed"]:
        raise RunnerError(f"pytest ended with status {process.returncode} and no failed test:\n{said[-4000:]}")
    failed: str = noted["failed"][0]
    return failed
