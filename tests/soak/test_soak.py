"""A short run, whose slopes say nothing, and what would be made of those of a long one."""

import asyncio
import random
import sys
import xml.etree.ElementTree
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from tests.soak import report
from tests.soak.__main__ import soak
from tests.soak.load import Connection
from tests.soak.samples import MEASURES, Sample
from tests.soak.world import world

FIELDS = {
    "file descriptors": "descriptors",
    "asyncio tasks": "tasks",
    "permits and queue": "permits",
    "correlation ids": "correlation_ids",
    "resident memory": "rss",
}


def samples(*, leaking: str = "", per_sample: float = 0.0) -> list[Sample]:
    """A hundred, of a run that leaves nothing but what it is told to."""
    chance = random.Random(1)  # noqa: S311 - no secret
    found = []
    for number in range(100):
        sample = Sample(
            requests=2000 * (number + 1),
            descriptors=20 + chance.randrange(3),
            tasks=6,
            permits=0,
            correlation_ids=0,
            rss=50_000_000 + chance.randrange(200_000),
        )
        if leaking:
            leak = int(per_sample * number)
            sample = msgspec.structs.replace(sample, **{leaking: getattr(sample, leaking) + leak})
        found.append(sample)
    return found


def test_what_leaves_nothing_is_no_leak() -> None:
    assert report.leaks(report.trends(samples())) == []


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_leak_of_anything_is_found(measure: object) -> None:
    """One of them for every five thousand requests, or twenty bytes for each."""
    assert measure in MEASURES
    name = FIELDS[measure.name]
    leaking = samples(leaking=name, per_sample=20 * 2000 if name == "rss" else 0.4)
    found = report.trends(leaking)
    assert report.leaks(found) == [measure]
    assert report.table(leaking, found).count("**grows**") == 1


def test_what_is_made_during_the_warm_up_is_no_leak() -> None:
    warming = [
        msgspec.structs.replace(sample, rss=sample.rss - 10_000_000) if number < 20 else sample
        for number, sample in enumerate(samples())
    ]
    assert report.leaks(report.trends(warming)) == []


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
@pytest.mark.filterwarnings("default")
def test_the_plot_is_the_same_for_the_same_samples(tmp_path: Path) -> None:
    drawn = []
    for name in ("one.svg", "other.svg"):
        report.plot(samples(), report.trends(samples()), tmp_path / name)
        drawn.append((tmp_path / name).read_text())
    assert drawn[0] == drawn[1]
    assert xml.etree.ElementTree.fromstring(drawn[0]).tag.endswith("svg")  # noqa: S314 - made here
    assert all(measure.name in drawn[0] for measure in MEASURES)


async def _ask(*answers: bytes) -> int:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        for answer in answers:
            writer.write(answer)
            await asyncio.sleep(0.005)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        status = await connection.ask(b"GET / HTTP/1.1\r\n\r\n")
        connection.close()
        await asyncio.sleep(0.02)
    return status


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ([b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno"], 403),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 2", b"\r\n\r\nok"], 200),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", b"0\r\n\r\n"], 200),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok"], 0),
        ([], 0),
    ],
)
def test_a_client_tells_a_whole_response_from_a_part(answers: list[bytes], status: int) -> None:
    assert asyncio.run(_ask(*answers)) == status


# The soak itself, with processes of its own.
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_short_run_serves_its_clients_and_is_at_rest_afterwards() -> None:
    with world() as running:
        taken, outcomes = asyncio.run(soak(running, 600, 24, batches=4))
    assert [sample.requests for sample in taken] == [150, 300, 450, 600]
    assert sum(count for outcome, count in outcomes.items() if not outcome.startswith("ws ")) == 600
    assert sum(count for outcome, count in outcomes.items() if outcome.startswith("ws ")) == 24
    assert {"200", "403", "503", "gone away", "ws 1000"} <= set(outcomes)
    assert set(outcomes) <= {"200", "403", "503", "504", "gone away", "ws 1000", "ws 1008", "ws 1011", "ws gone away"}
    for sample in taken:
        assert (sample.permits, sample.correlation_ids) == (0, 0)
        assert sample.descriptors > 0
        assert sample.rss > 1024 * 1024
