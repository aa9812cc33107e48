"""The load: keep-alive connections that each send their next request when they have the last one's response.

It runs in a process of its own, ``python -m tests.benchmarks.load``, and does as little as it can for each response, so
that the server is what is measured.
"""

import argparse
import asyncio
import os
import re
import sys
import time
from pathlib import Path
from statistics import quantiles
from typing import Final, cast

import msgspec
import uvloop

REQUEST: Final = (
    b"GET /items/42?verbose=1 HTTP/1.1\r\n"
    b"host: 127.0.0.1\r\n"
    b"user-agent: benchmark/1\r\n"
    b"accept: application/json, text/plain, */*\r\n"
    b"accept-encoding: gzip, deflate\r\n"
    b"authorization: Bearer 0123456789abcdef0123456789abcdef\r\n"
    b"\r\n"
)

_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Measurement(msgspec.Struct, frozen=True):
    """One variant under load for a while. Latencies are seconds.

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


class LoadError(Exception):
    """A response that is not what was expected."""


def response_length(data: bytes) -> int | None:
    """How long the response is that ``data`` begins with; None as long as its head is not complete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    found = _CONTENT_LENGTH.search(data, 0, end + 2)
    if found is None:
        raise LoadError(f"no content-length in {data[:end]!r}")
    return end + 4 + int(found[1])


def percentiles(latencies: list[float]) -> tuple[float, float]:
    """The 50th and the 99th."""
    cuts = quantiles(latencies, n=100, method="inclusive")
    return cuts[49], cuts[98]


class _Connection(asyncio.Protocol):
    _transport: asyncio.WriteTransport
    _sent: float

    def __init__(self, latencies: list[float], failed: asyncio.Future[None]) -> None:
        self._latencies = latencies
        self._failed = failed
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._sent = time.perf_counter()
        self._transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        try:
            length = response_length(data)
        except LoadError as exc:
            self._fail(exc)
            return
        if length is None or len(data) < length:
            self._received = data
            return
        if len(data) > length or not data.startswith(b"HTTP/1.1 200 "):
            self._fail(LoadError(f"expected one response with status 200, not {data!r}"))
            return
        self._received = b""
        now = time.perf_counter()
        self._latencies.append(now - self._sent)
        self._sent = now
        self._transport.write(REQUEST)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(LoadError(f"the server closed a connection: {exc!r}"))

    def _fail(self, exc: LoadError) -> None:
        self._transport.abort()
        if not self._failed.done():
            self._failed.set_exception(exc)


async def load(port: int, connections: int, warmup: float, seconds: float, pids: list[int]) -> Measurement:
    """Load the server for ``warmup`` seconds, then for ``seconds`` more that count.

    :param pids: processes whose CPU time is wanted.
    :raises LoadError: for anything but a response with status 200 to each request.
    """
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    failed: asyncio.Future[None] = loop.create_future()
    for _ in range(connections):
        await loop.create_connection(lambda: _Connection(latencies, failed), "127.0.0.1", port)
    await asyncio.wait([failed], timeout=warmup)
    latencies.clear()
    before = _cpu_times(pids)
    start = time.perf_counter()
    await asyncio.wait([failed], timeout=seconds)
    elapsed = time.perf_counter() - start
    measured = latencies.copy()
    after = _cpu_times(pids)
    if failed.done():
        failed.result()
    # What happens to the connections from here on is of no interest.
    failed.cancel()
    if len(measured) < 2:
        raise LoadError(f"{len(measured)} responses in {elapsed:.1f} s")
    cpu = (None if x is None or y is None else (y - x) / elapsed for x, y in zip(before, after, strict=True))
    return Measurement(len(measured), elapsed, *percentiles(measured), tuple(cpu))


def _cpu_times(pids: list[int]) -> list[float | None]:
    return [*map(_cpu_seconds, pids), time.process_time()]


def _cpu_seconds(pid: int) -> float | None:
    try:
        # proc(5): the fields after the command's name, which stands in parentheses, begin with the third.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("connections", type=int)
    parser.add_argument("warmup", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument("pids", type=int, nargs="*")
    try:
        measurement = uvloop.run(load(**vars(parser.parse_args())))
    except (LoadError, OSError) as exc:
        sys.exit(str(exc))
    print(msgspec.json.encode(measurement).decode())
