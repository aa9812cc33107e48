"""The load: connections that each send their next request, or message, when they have the last one's response.

It runs in a process of its own, ``python -m tests.benchmarks.load``, reads :class:`Job` as lines of JSON, and answers
each with a line: a :class:`Measurement`, or a string that says what went wrong. It does as little as it can for each
response, so that the server is what is measured.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Final

import msgspec
import uvloop

from .client import Client, HttpClient, LoadError, WebSocketClient

_SECONDS_TO_END: Final = 2.0


class Job(msgspec.Struct, frozen=True):
    """Load a server for ``warmup`` seconds, and then for ``seconds`` that count.

    :param pids: processes whose CPU time is wanted.
    :param upload: bytes of the body of each request; None: a GET without one.
    :param message: instead of requests, bytes of each websocket message.
    """

    port: int
    connections: int
    warmup: float
    seconds: float
    pids: tuple[int, ...] = ()
    upload: int | None = None
    message: int | None = None


class Measurement(msgspec.Struct, frozen=True):
    """What came of it. Latencies are seconds.

    ``cpu`` is how many cores the processes asked for used, in their order, and then the load itself; None where the
    system doesn't tell.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    cpu: tuple[float | None, ...]

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def percentiles(latencies: list[float]) -> tuple[float, float]:
    """The 50th and the 99th."""
    cuts = quantiles(latencies, n=100, method="inclusive")
    return cuts[49], cuts[98]


async def load(job: Job) -> Measurement:
    """:raises LoadError: for anything but the expected response to each request."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    failed: asyncio.Future[None] = loop.create_future()

    def client() -> Client:
        if job.message is not None:
            return WebSocketClient(latencies, failed, job.message)
        return HttpClient(latencies, failed, job.upload)

    clients: list[Client] = []
    try:
        for _ in range(job.connections):
            _, one = await loop.create_connection(client, "127.0.0.1", job.port)
            clients.append(one)
        await asyncio.wait([failed], timeout=job.warmup)
        latencies.clear()
        before = _cpu_times(job.pids)
        start = time.perf_counter()
        await asyncio.wait([failed], timeout=job.seconds)
        elapsed = time.perf_counter() - start
        measured = latencies.copy()
        after = _cpu_times(job.pids)
        if failed.done():
            failed.result()
    finally:
        # What happens to the connections from here on is of no interest, but the next server has the machine to itself.
        failed.cancel()
        for one in clients:
            one.end()
        until = time.perf_counter() + _SECONDS_TO_END
        while not all(one.ended for one in clients) and time.perf_counter() < until:  # noqa: ASYNC110 - nothing else runs
            await asyncio.sleep(0.002)
        for one in clients:
            one.abort()
    if len(measured) < 2:
        raise LoadError(f"{len(measured)} responses in {elapsed:.1f} s")
    cpu = (None if x is None or y is None else (y - x) / elapsed for x, y in zip(before, after, strict=True))
    return Measurement(len(measured), elapsed, *percentiles(measured), tuple(cpu))


def _cpu_times(pids: Sequence[int]) -> list[float | None]:
    return [*map(cpu_seconds, pids), time.process_time()]


def cpu_seconds(pid: int) -> float | None:
    """Seconds of CPU that a process has taken so far; None where the system does not tell."""
    try:
        # proc(5): the fields after the command's name, which stands in parentheses, begin with the third.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _answer(line: bytes) -> Measurement | str:
    try:
        return await load(msgspec.json.decode(line, type=Job))
    except (LoadError, OSError) as exc:
        return str(exc)


if __name__ == "__main__":
    for given in sys.stdin.buffer:
        print(msgspec.json.encode(uvloop.run(_answer(given))).decode(), flush=True)
