"""What workers tell one another where threads are few, and many ask at a time."""

import gc
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest

from asgi_agents import status_app
from asgi_agents.observability import attempts, worker_directory, worker_metrics, worker_scrapes
from asgi_agents.observability.worker_directory import WorkerDirectory
from asgi_agents.prometheus import metrics_app
from tests.observability.test_worker_scrapes import Worker, decisions, files, get, leave, path, running, until, values
from tests.support.worker_directory import watch_reading
from tests.test_prometheus import managed

__all__ = ["path"]


def versions(path: Path) -> list[tuple[str, int]]:
    """Of each worker's file. The number of a file may be that of another before."""
    return [(file.name, file.stat().st_mtime_ns) for file in files(path)]


class NoThreads:
    """Threads that can't be started, as long as :attr:`lacking`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lacking = False
        self.failed = 0
        self._actual: Callable[..., Awaitable[Any]] = anyio.to_thread.run_sync
        monkeypatch.setattr(attempts, "to_thread", SimpleNamespace(run_sync=self._run_sync))

    async def _run_sync(self, *args: Any, **options: Any) -> Any:
        if self.lacking:
            self.failed += 1
            raise RuntimeError("can't start new thread")
        return await self._actual(*args, **options)


async def test_a_worker_answers_again_once_there_are_threads(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    threads = NoThreads(monkeypatch)
    async with running(path, 2) as workers:
        threads.lacking = True
        await until(lambda: threads.failed >= 4)
        threads.lacking = False
        for worker in workers:
            worker.deny()
        assert await decisions(workers[0].app) == {"0": 1, "1": 1}
    logged = [record for record in caplog.records if record.exc_info]
    assert 1 <= len(logged) <= 2, "once a minute of each worker"
    assert all("the metrics of the workers can't be had together" in record.getMessage() for record in logged)


async def test_a_worker_is_on_the_status_page_once_there_are_threads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = NoThreads(monkeypatch)
    workers = [Worker(path) for _ in range(2)]
    pages = [status_app(worker.manager, directory=path, interval=0.05) for worker in workers]
    threads.lacking = True
    async with workers[0].manager, workers[1].manager:
        await until(lambda: threads.failed >= 8)
        threads.lacking = False
        async with httpx.AsyncClient(transport=httpx.ASGITransport(pages[0]), base_url="http://app") as client:
            with anyio.fail_after(60.0):
                while len((await client.get("/status.json")).json()["workers"]) < 2:  # noqa: ASYNC110 - nobody says when
                    await anyio.sleep(0.05)


async def test_however_many_scrapes_there_are_at_a_time_one_thread_reads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock()
    now, most = 0, 0
    actual = WorkerDirectory.read

    def read(self: Any, before: Any = None, **options: Any) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        try:
            return actual(self, before, **options)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(WorkerDirectory, "read", read)
    async with running(path, 2) as workers, anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(get, workers[0].app)
    assert most == 1


async def test_a_scrape_has_what_was_counted_while_another_was_under_way(path: Path) -> None:
    """It does not take the answer of the other, which was asked for before that."""
    async with running(path, 2) as workers:
        before = set(versions(path))
        # The first waits for one that does not answer.
        os.utime(leave(path), (1.0, 1.0))
        found: list[dict[str, float]] = []

        async def scrape() -> None:
            found.append(await decisions(workers[0].app))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scrape)
            # Both have answered the first.
            await until(lambda: before.isdisjoint(versions(path)))
            workers[1].deny()
            tasks.start_soon(scrape)
        assert found == [{}, {"1": 1}]


async def test_a_worker_whose_metrics_are_too_much_for_a_file_is_silent_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (worker_directory, worker_metrics, worker_scrapes):
        monkeypatch.setattr(module, "MAX_BYTES", 1000)
    monkeypatch.setattr(worker_scrapes, "_PATIENCE", 0.1)
    async with running(path, 2) as workers:
        for worker in workers:
            worker.deny()
        text = (await get(workers[0].app)).text
        assert values(text, "asgi_agents_decisions_total") == {"0": 1}
        assert values(text, "asgi_agents_workers", "state") == {"up": 1, "silent": 1}
    assert "take more than 1000 bytes; all of it is left out of the answers of the others" in caplog.text


async def test_a_worker_that_has_too_much_for_a_file_is_waited_for_no_longer_than_for_its_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it writes that it can't tell, which is no reason to wait again."""
    for module in (worker_directory, worker_metrics, worker_scrapes):
        monkeypatch.setattr(module, "MAX_BYTES", 1000)
    looked: list[int] = []
    actual = WorkerDirectory.read

    def read(self: Any, before: Any = None, **options: Any) -> Any:
        looked.append(1)
        return actual(self, before, **options)

    async with running(path, 2) as workers:
        monkeypatch.setattr(WorkerDirectory, "read", read)
        for _ in range(4):
            looked.clear()
            assert values((await get(workers[0].app)).text, "asgi_agents_workers", "state") == {"up": 1, "silent": 1}
            assert len(looked) == 1
            before = versions(path)
            await until(lambda: versions(path) != before)  # noqa: B023 - at once


async def test_workers_without_a_place_are_silent_for_the_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_directory, "MAX_PLACES", 2)
    async with running(path, 5) as workers:
        found = [await get(worker.app) for worker in workers]
    assert sorted(response.status_code for response in found) == [200, 200, 503, 503, 503]
    for response in found:
        if response.status_code == 200:
            assert values(response.text, "asgi_agents_workers", "state") == {"up": 2, "silent": 3}
        else:
            assert "has no place left, expected at most 2 processes" in response.text


async def test_each_of_many_that_get_no_metrics_gets_the_reason(path: Path) -> None:
    app = metrics_app(managed(), directory=path)
    reasons: list[str] = []

    async def ask() -> None:
        reasons.append((await get(app)).text)

    for _ in range(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
    assert len(reasons) == 100
    assert all("this worker tells the others nothing" in reason for reason in reasons)


@pytest.mark.parametrize("shared", [True, False])
async def test_a_scrape_does_not_wait_for_threads_of_the_app(path: Path, shared: bool) -> None:
    """FastAPI's handlers that are no coroutine functions have them, for as long as their database takes."""
    manager = managed()
    app = metrics_app(manager, directory=path if shared else None)
    threads = anyio.to_thread.current_default_thread_limiter()
    borrowers = [object() for _ in range(int(threads.total_tokens))]
    async with manager:
        for borrower in borrowers:
            threads.acquire_on_behalf_of_nowait(borrower)
        try:
            assert (await get(app)).status_code == 200
        finally:
            for borrower in borrowers:
                threads.release_on_behalf_of(borrower)


async def test_what_the_others_have_is_kept_no_longer_than_the_scrape(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each worker had the metrics of all others for ever."""
    seen = watch_reading(monkeypatch)
    async with running(path, 2) as workers:
        assert len(values((await get(workers[0].app)).text, "asgi_agents_call_active")) == 2
        gc.collect()
        assert seen
        assert [each for each in seen if each() is not None] == []


@pytest.mark.parametrize("name", [b"caf\xe9", b"line\nbreak"])
async def test_a_path_that_is_no_text_can_be_said(
    tmp_path: Path, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    directory = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    os.mkdir(directory)
    os.chmod(directory, 0o777)  # noqa: S103 - so that it is not used
    manager = managed()
    metrics, page = metrics_app(manager, directory=directory), status_app(manager, directory=directory)
    async with manager:
        refused = await get(metrics)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(page), base_url="http://app") as client:
            shown = (await client.get("/status.json")).json()
    expected = f"{tmp_path}/" + {b"caf\xe9": r"caf\udce9", b"line\nbreak": r"line\nbreak"}[name]
    assert refused.status_code == 503
    assert f"{expected} may be written to by others" in refused.text
    assert shown["unshared"].startswith(f"{expected} may be written to by others")
    assert caplog.records
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("late", [True, False])
async def test_a_worker_that_the_others_do_not_hear_of_does_not_answer_for_them(path: Path, late: bool) -> None:
    """One that is made when the manager has begun, or whose app has no lifespan."""
    manager = managed()
    if late:
        async with running(path, 1) as (worker,), manager:
            response = await get(metrics_app(manager, directory=path))
            assert await decisions(worker.app) == {}
    else:
        response = await get(metrics_app(manager, directory=path))
    assert response.status_code == 503
    assert "this worker tells the others nothing, expected metrics_app(...) before the app starts" in response.text
    assert "asgi_agents_decisions" not in response.text
