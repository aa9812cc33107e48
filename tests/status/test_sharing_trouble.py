"""What the page says where workers can't tell one another how they are, and what it takes up where many look at it."""

import gc
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from msgspec.structs import replace

from asgi_agents import AgentManager, AgentMiddleware, Route, status_app
from asgi_agents.manager import registry_of
from asgi_agents.observability import worker_directory
from asgi_agents.observability.worker_directory import Heard, Others, WorkerDirectory
from asgi_agents.status import directory, sharing
from asgi_agents.status.cleaning import IncidentCleaner
from asgi_agents.status.directory import encoded
from asgi_agents.status.sharing import SharedStatus
from asgi_agents.status.snapshot import take_share, take_snapshot
from tests.support import living_files
from tests.support.worker_directory import Disk, watch_reading

from .world import head_event, scripted

PATIENCE = 60.0  # seconds after which a test that hangs has failed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shared"


async def shown_by(page: Any) -> Any:
    with anyio.fail_after(PATIENCE):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(page), base_url="http://app") as client:
            return (await client.get("/status.json")).json()


class Worker:
    def __init__(self, path: Path, interval: float = 0.05) -> None:
        self.manager = AgentManager([scripted("waf")])
        self.page = status_app(self.manager, directory=path, interval=interval)

    async def shown(self) -> Any:
        # A new one: what was shown within half the interval is shown again.
        await anyio.sleep(0.03)
        return await shown_by(self.page)

    async def until(self, condition: Callable[[Any], bool]) -> Any:
        with anyio.fail_after(PATIENCE):
            while not condition(found := await self.shown()):
                pass
        return found


async def wait_for_files(path: Path, number: int) -> None:
    with anyio.fail_after(PATIENCE):
        while len(list(path.glob("*.json"))) < number:  # noqa: ASYNC110, ASYNC240 - nobody says when
            await anyio.sleep(0.01)


def leave(path: Path, data: bytes | None = None, number: int = 0) -> Path:
    """Have another process that lives leave its figures."""
    if data is None:
        registry = registry_of(AgentManager([scripted("waf")]))
        data, _ = encoded(take_share(registry, take_snapshot(registry)))
    return living_files.leave(path / f"4711-{number:016x}.json", data)


async def test_what_can_not_be_written_is_said_until_it_can(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    one, other = Worker(path), Worker(path)
    async with one.manager, other.manager:
        await wait_for_files(path, 2)
        assert len((await one.shown())["workers"]) == 2
        disk.full = True
        await one.until(lambda found: found["unshared"] is not None)
        for _ in range(20):
            assert (await one.shown())["unshared"] == "OSError: [Errno 28] No space left on device"
        disk.full = False
        found = await one.until(lambda found: found["unshared"] is None)
        assert len(found["workers"]) == 2


async def test_a_fault_is_over_when_it_is_written_and_not_when_there_is_nothing_to_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    shared = SharedStatus(path, registry_of(AgentManager([scripted("waf")])), 20.0, IncidentCleaner())
    shared._directory.join()
    await shared._tell()
    await shared.encoded(-1.0)
    disk.full = True
    # The first is because somebody looks; there is nothing new in the next 20 s.
    for _ in range(3):
        await shared._tell()
        assert b"No space left on device" in await shared.encoded(-1.0)
    disk.full = False
    await shared._tell()
    assert b"No space left on device" not in await shared.encoded(-1.0)


async def test_the_page_of_an_app_without_lifespan_says_that_the_others_do_not_hear_of_it(path: Path) -> None:
    """Such as one that is mounted into another, which does not run it."""
    one, other = Worker(path), Worker(path)
    async with one.manager:
        await wait_for_files(path, 1)
        assert (await one.shown())["unshared"] is None
        for _ in range(3):
            found = await other.shown()
            assert found["unshared"].startswith("this worker tells the others nothing, expected status_app(...) before")
            assert len(found["workers"]) == 1
    assert list(path.glob("*.json")) == []  # noqa: ASYNC240 - quick


async def test_workers_whose_files_can_not_be_read_are_said_and_the_others_are_shown(path: Path) -> None:
    """Such as those of another version, while a server is restarted worker by worker."""
    one, other = Worker(path), Worker(path)
    async with one.manager, other.manager:
        await wait_for_files(path, 2)
        assert (await one.shown())["unshared"] is None
        gone = [leave(path, b'{"status": {"version": "99"}}', number) for number in range(2)]
        large = leave(path, b" " * (worker_directory.MAX_BYTES + 1), number=2)
        os.utime(large, (1.0, 1.0))
        found = await one.shown()
        assert found["unshared"] == (
            "2 have a file of another version of the package, or a damaged one, 1 has a file over 4194304 bytes"
        )
        assert [worker["silent"] for worker in found["workers"]] == [False, False]
        for file in gone:
            living_files.release(file)
        assert (await one.shown())["unshared"] == "1 has a file over 4194304 bytes"
        living_files.release(large)
        assert (await one.shown())["unshared"] is None


async def test_a_worker_with_too_much_for_a_file_is_silent_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (directory, sharing, worker_directory):
        monkeypatch.setattr(module, "MAX_BYTES", 6_000)
    one, other = Worker(path), Worker(path)
    async with one.manager, other.manager:
        await wait_for_files(path, 2)
        found = await one.shown()
        await other.manager.process_request_headers(head_event("c-1", x_waf="block"))
        found = await one.shown()
    assert [worker["silent"] for worker in found["workers"]] == [False, True]
    assert found["agents"][0]["calls"] == 0
    assert found["unshared"] == "1 has more figures than fit into a file"
    (record,) = {record.getMessage(): record for record in caplog.records}.values()
    assert record.levelno == logging.WARNING
    assert "the figures of this worker take more than 6000 bytes, so it is silent" in record.getMessage()


async def test_routes_are_not_told_to_the_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page has those of its own worker; hundreds of routes with many agents would be megabytes."""
    monkeypatch.setattr(sharing, "_FIRST_LOOK", 0.2)
    worker = Worker(path)

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    AgentMiddleware(app, manager=worker.manager, routes=[Route(f"/{number}", agents=["waf"]) for number in range(50)])
    async with worker.manager:
        await wait_for_files(path, 1)
        leave(path)
        (told,) = [json.loads(file.read_bytes()) for file in path.glob("*.json") if "4711" not in file.name]  # noqa: ASYNC240
        assert told["status"]["routes"] == []
        found = await worker.shown()
        assert len(found["workers"]) == 2
        assert len(found["routes"]) >= 50


async def test_many_that_look_first_wait_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a worker that does not answer, say: each of them took a thread every 20 ms."""
    monkeypatch.setattr(sharing, "_FIRST_LOOK", 0.3)
    lock = threading.Lock()
    now, most = 0, 0
    actual = anyio.to_thread.run_sync

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            return await actual(*args, **options)
        finally:
            now -= 1

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    worker = Worker(path, interval=20.0)
    async with worker.manager:
        await wait_for_files(path, 1)
        old = time.time() - 3600
        os.utime(leave(path), (old, old))
        found: list[Any] = []

        async def look() -> None:
            found.append(await shown_by(worker.page))

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(look)
    assert [[each["silent"] for each in status["workers"]] for status in found] == [[False, True]] * 100
    # One that looks, and the task of the worker.
    assert most <= 2


async def test_only_the_worker_that_is_looked_at_reads_and_it_adds_up_in_a_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading: set[int] = set()
    adding: set[threading.Thread] = set()
    read, together = WorkerDirectory.read, sharing.together

    def reads(self: Any, before: Any = None, **options: Any) -> Any:
        reading.add(id(self))
        return read(self, before, **options)

    def adds(*args: Any) -> Any:
        adding.add(threading.current_thread())
        return together(*args)

    monkeypatch.setattr(WorkerDirectory, "read", reads)
    monkeypatch.setattr(sharing, "together", adds)
    workers = [Worker(path) for _ in range(3)]
    async with workers[0].manager, workers[1].manager, workers[2].manager:
        await wait_for_files(path, 3)
        written = {file.name: file.stat().st_mtime_ns for file in path.glob("*.json")}  # noqa: ASYNC240 - quick
        with anyio.fail_after(PATIENCE):
            # Until each has written twice.
            for _ in range(2):
                while any(
                    file.stat().st_mtime_ns == written[file.name]
                    for file in path.glob("*.json")  # noqa: ASYNC240
                ):
                    assert len((await workers[0].shown())["workers"]) == 3
                written = {file.name: file.stat().st_mtime_ns for file in path.glob("*.json")}  # noqa: ASYNC240
    assert len(reading) == 1
    assert adding
    assert threading.main_thread() not in adding


async def test_what_the_others_have_is_kept_no_longer_than_somebody_looks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_WATCHED_FOR", 0.2)
    seen = watch_reading(monkeypatch)
    one, other = Worker(path), Worker(path)
    async with one.manager, other.manager:
        await wait_for_files(path, 2)
        for _ in range(3):
            assert len((await one.shown())["workers"]) == 2
        assert seen
        with anyio.fail_after(PATIENCE):
            while any(each() is not None for each in seen):
                await anyio.sleep(0.02)
                gc.collect()


async def test_files_that_somebody_removes_are_made_anew_though_nobody_looks(path: Path) -> None:
    """So that who looks next knows of whom to hear."""
    workers = [Worker(path) for _ in range(2)]
    async with workers[0].manager, workers[1].manager:
        await wait_for_files(path, 2)
        for file in path.iterdir():  # noqa: ASYNC240 - quick
            file.unlink()
        await wait_for_files(path, 2)
        assert len((await workers[1].shown())["workers"]) == 2


def test_what_is_nothing_but_a_worker_makes_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = registry_of(AgentManager([scripted(f"agent-{number}") for number in range(20)]))
    monkeypatch.setattr(directory, "MAX_BYTES", 20_000)
    data, whole = encoded(take_share(registry, take_snapshot(registry)))
    assert not whole
    assert len(data) < 20_000
    share = directory._decoded(data)
    assert share.status.worker.silent
    assert share.status.agents == []
    assert msgspec.json.decode(data)["durations"] == {}
    # None of its figures is added up.
    share = replace(share, status=replace(share.status, connections=5))
    own = take_share(registry, take_snapshot(registry))
    others = Others([Heard("it", share, time.time(), 0)], {}, {}, {})
    status = sharing.together(own, sharing._Look(others, time.time()))
    assert [worker.silent for worker in status.workers] == [False, True]
    assert status.connections == 0
