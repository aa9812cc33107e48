"""How many instructions a guarded request takes: ``python -m tests.benchmarks.instructions``.

Instructions are counted, not timed, so that a difference of one per cent shows on a machine that does other things as
well. ``--against`` names another version of the package, a revision of the repository or a directory with
``asgi_agents`` in it, and both are counted in the same run::

    python -m tests.benchmarks.instructions --against HEAD~1
    python -m tests.benchmarks.instructions request message --against ../before

Valgrind's callgrind does the counting; where it is not installed, nothing is counted, and a line says so. What is
counted is in :mod:`.counted`: an app and the middleware, without a server. Each runs in a process of its own, with this
repository's benchmarks and the package of the version.

A process takes hundreds of millions of instructions to start. So each is run twice, for 300 requests and for 1,300, and
the difference is that of 1,000 requests. The hashes of texts are the same in all processes (PYTHONHASHSEED), all
modules are compiled before, and the clocks advance with each reading (:mod:`.count`). What still differs from one
process to the next, such as random ids, adds to the count: everything is done three times (``--rounds``), and the least
counts. With ``--against`` all of it takes about a quarter of an hour on two cores that have nothing else to do.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from .counted import COUNTED
from .environment import cores
from .fleet import ROOT, StartError, started
from .report import Table, markdown
from .variants import STREAM_AGENT

FEW: Final = 300
MANY: Final = 1300
ROUNDS: Final = 3

_TOTALS: Final = re.compile(r"^(?:totals|summary): (\d+)$", re.MULTILINE)


class CountError(Exception):
    """A process that was to be counted and came to nothing."""


@dataclass(frozen=True, slots=True)
class Version:
    """The package at some point of its history.

    :param directory: has the version's ``asgi_agents`` in it, and the benchmarks of this repository.
    """

    title: str
    directory: Path

    def environment(self) -> dict[str, str]:
        given = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return given | {
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": str(self.directory),
            "PYTHONPYCACHEPREFIX": str(self.directory / "compiled"),
        }


#: Counts the instructions of a process in which the named thing is done so many times.
Count = Callable[[Version, str, int], int]


def totals(written: str) -> int:
    """What callgrind has counted in all, from the file that it has written."""
    found = _TOTALS.findall(written)
    if not found:
        raise CountError("callgrind has written no totals")
    return int(found[-1])


def each(few: Sequence[int], many: Sequence[int]) -> float:
    """The instructions of one, from those of processes that do it :data:`FEW` and :data:`MANY` times."""
    return (min(many) - min(few)) / (MANY - FEW)


def measure(
    versions: Sequence[Version],
    names: Sequence[str],
    count: Count,
    progress: Callable[[str], None],
    *,
    rounds: int = ROUNDS,
    jobs: int = 1,
) -> dict[str, list[float]]:
    """The instructions of one of each name, for each of the versions; ``jobs`` are counted at the same time."""
    runs = [
        (name, version, times) for _ in range(rounds) for name in names for version in versions for times in (FEW, MANY)
    ]
    found: dict[tuple[str, Version, int], list[int]] = {run: [] for run in runs}
    with ThreadPoolExecutor(jobs) as pool:
        counting = [(run, pool.submit(count, run[1], run[0], run[2])) for run in runs]
        try:
            for run, one in counting:
                found[run].append(one.result())
                progress(f"{run[0]}, {run[1].title}, {run[2]} times: {found[run][-1]:,}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {
        name: [each(found[name, version, FEW], found[name, version, MANY]) for version in versions] for name in names
    }


def table(versions: Sequence[Version], counts: Mapping[str, Sequence[float]]) -> Table:
    """The first of the versions is compared with the second, if there is one."""
    rows = tuple(
        (COUNTED[name].title, *(f"{one:,.0f}" for one in found), *(f"{found[0] / other:.4f}" for other in found[1:]))
        for name, found in counts.items()
    )
    columns = (*(version.title for version in versions), *["ratio"] * (len(versions) - 1))
    return Table("Instructions", columns, rows)


@contextmanager
def versions(against: str | None) -> Iterator[list[Version]]:
    """This version, and the one that is named: a directory, or a revision of the repository.

    :raises CountError: when it is neither.
    """
    with TemporaryDirectory(prefix="asgi-agents-") as directory:
        found = [_version("this tree", ROOT / "asgi_agents", Path(directory, "this"))]
        if against is not None:
            package = Path(against).resolve() / "asgi_agents"
            if not package.is_dir():
                package = _checked_out(against, Path(directory, "revision"))
            found.append(_version(against, package, Path(directory, "other")))
        yield found


def _version(title: str, package: Path, directory: Path) -> Version:
    # Copies: whoever edits the source meanwhile would change what is counted.
    _copy(package, directory / "asgi_agents")
    _copy(ROOT / "tests" / "benchmarks", directory / "tests" / "benchmarks")
    (directory / "tests" / "__init__.py").touch()
    return Version(title, directory)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def _checked_out(revision: str, directory: Path) -> Path:
    archive = subprocess.run(
        ["git", "archive", "--end-of-options", revision, "asgi_agents"],  # noqa: S607 - whichever git is in use
        cwd=ROOT,
        capture_output=True,
    )
    if archive.returncode:
        raise CountError(f"{revision!r}, expected a directory with asgi_agents in it, or a revision: {_said(archive)}")
    directory.mkdir()
    subprocess.run(["tar", "-x"], cwd=directory, input=archive.stdout, check=True)  # noqa: S607 - whichever tar
    return directory / "asgi_agents"


def _said(process: subprocess.CompletedProcess[bytes]) -> str:
    return process.stderr.decode(errors="replace").strip()


def counting(valgrind: str) -> Count:
    """Counts with callgrind. An agent in another process is not counted, and is of the same version."""

    def count(version: Version, name: str, times: int) -> int:
        with TemporaryDirectory(prefix="asgi-agents-") as directory:
            written = Path(directory, "callgrind.out")
            callgrind = (valgrind, "--tool=callgrind", f"--callgrind-out-file={written}")
            if COUNTED[name].peer:
                with started(STREAM_AGENT, Path(directory), version.directory, version.environment()):
                    _run(version, name, times, Path(directory), callgrind)
            else:
                _run(version, name, times, Path(directory), callgrind)
            return totals(written.read_text())

    return count


def _run(version: Version, name: str, times: int, directory: Path, before: Sequence[str] = ()) -> None:
    driver = (sys.executable, "-m", "tests.benchmarks.count", name, str(times))
    done = subprocess.run(
        [*before, *driver, "--socket", STREAM_AGENT.socket(directory)],
        cwd=version.directory,
        env=version.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    if done.returncode:
        raise CountError(f"{name}, {version.title}: ended with status {done.returncode}: {_said(done)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.instructions", description="Instructions of a guarded request, by callgrind."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(COUNTED)}")
    parser.add_argument("--against", metavar="REVISION_OR_DIRECTORY", help="another version, to be compared with")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often everything is done")
    parser.add_argument("--jobs", type=int, default=cores() or 1, help="how many processes run at the same time")
    options = parser.parse_args()
    if unknown := set(options.names) - set(COUNTED):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(COUNTED)}")
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("Left out: instructions: valgrind is not installed.")
        return
    try:
        with versions(options.against) as compared:
            names = options.names or [name for name, counted in COUNTED.items() if counted.available]
            for version in compared:
                # Compiles what is imported, which would be counted in the first process.
                for name in ("served", *(name for name in names if not COUNTED[name].peer)):
                    _run(version, name, 1, version.directory)
            found = measure(compared, names, counting(valgrind), _progress, rounds=options.rounds, jobs=options.jobs)
            print(markdown(table(compared, found)))
    except (CountError, StartError) as exc:
        sys.exit(str(exc))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
