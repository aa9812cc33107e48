"""How the cost grows with open websockets, through uvicorn: the time of a message, and memory."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ..client import LoadError
from ..descriptors import raise_limit
from ..fleet import ROOT, serve
from ..plan import Plan
from ..ratios import over
from ..report import Curve
from ..variants import WEBSOCKETS

_COUNTS: Final = (1, 10, 100, 1000, 2000, 5000)
# Beside the websockets, of a process.
_SPARE: Final = 100


def grow_websockets(
    plan: Plan, progress: Callable[[str], None]
) -> tuple[tuple[Curve, ...], dict[str, tuple[float, ...]]]:
    """The curves, and KiB that an agent adds to each of the most websockets.

    :raises LoadError: when a server doesn't answer as it should.
    """
    limit = min(plan.websockets, raise_limit() - _SPARE)
    counts = tuple(count for count in _COUNTS if count <= limit)
    bare, heard = (variant.name for variant in WEBSOCKETS)
    times: dict[str, list[tuple[float, ...]]] = {bare: [], heard: []}
    memory: dict[str, list[int]] = {bare: [], heard: []}
    with serve(WEBSOCKETS) as servers, ExitStack() as stack:
        pids = {server.variant.name: server.pid for server in servers}
        crowds = {server.variant.name: stack.enter_context(_crowd(server.port)) for server in servers}
        before = {}
        for name, ask in crowds.items():
            # What the first one brings with it is not what each costs.
            ask(1, plan.growth_seconds)
            before[name] = resident(pids[name])
        for count in counts:
            progress(f"growth: {count} websockets")
            for ask in crowds.values():
                ask(count, 0)
            rates: Mapping[str, list[float]] = {name: [] for name in crowds}
            for number in range(plan.growth_rounds):
                for name, ask in list(crowds.items())[:: 1 if number % 2 else -1]:
                    rates[name].append(ask(count, plan.growth_seconds))
            for name, found in rates.items():
                times[name].append(tuple(1 / rate for rate in found))
                memory[name].append(resident(pids[name]) - before[name])
    first = times[bare][0]
    echo = Curve(
        "websockets",
        "Open websockets, one message at a time on each in turn",
        "open websockets",
        "echo round trip, of that of one without a middleware",
        counts,
        {
            "no middleware": tuple(over(one, first) for one in times[bare]),
            "one agent": tuple(over(one, first) for one in times[heard]),
        },
    )
    # Of a few, the allocator's pages are all that there is to see.
    many = [(at, count) for at, count in enumerate(counts) if count >= 100 and memory[bare][at] > 0]
    kept = Curve(
        "websocket-memory",
        "Memory that each open websocket takes in the server",
        "open websockets",
        "resident memory, of that without a middleware",
        tuple(count for _, count in many),
        {"one agent": tuple((memory[heard][at] / memory[bare][at],) for at, _ in many)},
    )
    kibibytes = (memory[heard][-1] - memory[bare][-1]) / counts[-1] / 1024
    return (echo, kept), {f"growth.websocket-memory.added.{counts[-1]}": (kibibytes,)}


def resident(pid: int) -> int:
    """Bytes of memory that the process has."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no VmRSS")


@contextmanager
def _crowd(port: int) -> Iterator[Callable[[int, float], float]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.crowd", str(port)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    to, answers = process.stdin, process.stdout

    def ask(count: int, seconds: float) -> float:
        to.write(f"{count} {seconds}\n")
        to.flush()
        answer = answers.readline()
        try:
            return float(answer)
        except ValueError:
            raise LoadError(f"websockets: {answer.strip() or 'the process that opens them has ended'}") from None

    with process:
        try:
            yield ask
        finally:
            process.kill()
