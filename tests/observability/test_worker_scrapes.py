"""One scrape has the metrics of all workers, whichever of them it comes to."""

import gc
import logging
import os
import signal
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.requests import Request

from asgi_agents import ConfigurationError, status_app
from asgi_agents.manager import registry_of
from asgi_agents.observability import worker_scrapes as under_test
from asgi_agents.observability.prometheus import AgentCollector
from asgi_agents.observability.worker_directory import WorkerDirectory
from asgi_agents.observability.worker_metrics import encoded, take
from asgi_agents.prometheus import metrics_app
from asgi_agents.protocol import AgentResponse
from tests.support import living_files
from tests.support.two_workers import two_workers
from tests.test_prometheus import judged, managed

PATIENCE: Final = 60.0  # seconds after which a test that hangs has failed
# Of no process: Linux gives them out from 300 on, and no more than 2 ** 22.
NOBODY: Final = 2**22 + 1
BLOCK: Final = AgentResponse.block()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shared"


async def get(app: Any, **headers: str) -> httpx.Response:
    with anyio.fail_after(PATIENCE):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            return await client.get("/", headers=headers)


def values(text: str, name: str, label: str = "worker") -> dict[str, float]:
    return {
        sample.labels[label]: sample.value
        for family in parse_text(text)
        for sample in family.samples
        if sample.name == name
    }


async def decisions(app: Any) -> dict[str, float]:
    response = await get(app)
    assert response.status_code == 200
    return values(response.text, "asgi_agents_decisions_total")


class Worker:
    def __init__(self, path: Path, **options: Any) -> None:
        self.manager = managed()
        self.app = metrics_app(self.manager, directory=path, **options)

    def deny(self) -> None:
        judged(self.manager, BLOCK)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nobody says when
            await anyio.sleep(0.01)


def files(path: Path) -> list[Path]:
    return sorted(path.glob("*.metrics"))


@asynccontextmanager
async def running(path: Path, number: int) -> AsyncIterator[list[Worker]]:
    """Workers that have begun, in this process: to one another they are as those of others."""
    async with AsyncExitStack() as stack:
        workers = [Worker(path) for _ in range(number)]
        for worker in workers:
            await stack.enter_async_context(worker.manager)
            await until(lambda: len(files(path)) == workers.index(worker) + 1)  # noqa: B023 - it is called at once
        yield workers


def leave(path: Path, *, place: int = 9, denials: int = 1, data: bytes | None = None) -> Path:
    """Have another process that lives leave its metrics."""
    manager = managed()
    for _ in range(denials):
        judged(manager, BLOCK)
    share = take(AgentCollector(registry_of(manager)), at=time.monotonic_ns(), place=place)
    file = path / f"{NOBODY}-{place:016x}.metrics"
    return living_files.leave(file, encoded(share)[0] if data is None else data)


async def test_each_answer_has_the_series_of_all(path: Path) -> None:
    async with running(path, 3) as workers:
        for number, worker in enumerate(workers):
            for _ in range(number + 1):
                worker.deny()
        for worker in workers:
            response = await get(worker.app)
            assert values(response.text, "asgi_agents_decisions_total") == {"0": 1, "1": 2, "2": 3}
            assert values(response.text, "asgi_agents_workers", "state") == {"up": 3, "silent": 0}
            assert response.text.count("# TYPE asgi_agents_decisions_total counter\n") == 1
            openly = await get(worker.app, accept="application/openmetrics-text")
            assert openly.headers["content-type"].startswith("application/openmetrics-text")
            assert openly.text.endswith("# EOF\n")
            assert openly.text.count('correlation_id="c-1"') == 3


async def test_what_was_counted_before_a_scrape_is_in_it_whoever_has_counted_and_whoever_answers(path: Path) -> None:
    async with running(path, 2) as workers:
        for round_ in range(6):
            workers[round_ % 2].deny()
            found = await decisions(workers[round_ // 2 % 2].app)
            assert sum(found.values()) == round_ + 1


async def test_many_scrapes_at_a_time_are_complete(path: Path) -> None:
    async with running(path, 2) as workers:
        found: list[dict[str, float]] = []

        async def scrape(worker: Worker) -> None:
            found.append(await decisions(worker.app))

        for worker in workers:
            worker.deny()
        async with anyio.create_task_group() as tasks:
            for worker in workers * 5:
                tasks.start_soon(scrape, worker)
        assert found == [{"0": 1, "1": 1}] * 10


async def test_a_worker_writes_when_it_begins_and_when_somebody_asks_and_takes_its_file_away(path: Path) -> None:
    async with running(path, 1) as (worker,):
        (file,) = files(path)
        first = file.stat().st_mtime_ns
        await anyio.sleep(0.6)
        assert file.stat().st_mtime_ns == first
        await decisions(worker.app)
        await until(lambda: file.stat().st_mtime_ns != first)
    assert files(path) == []


async def test_a_worker_stays_until_the_last_that_uses_it_has_left(path: Path) -> None:
    worker = Worker(path)
    async with worker.manager:
        async with worker.manager:
            await until(lambda: len(files(path)) == 1)
        assert len(files(path)) == 1
    assert files(path) == []


async def test_one_that_takes_the_place_of_another_goes_on_with_its_series(path: Path) -> None:
    async with running(path, 1) as (worker,):
        first, second = Worker(path), Worker(path)
        async with first.manager:
            await until(lambda: len(files(path)) == 2)
            for _ in range(5):
                first.deny()
            assert await decisions(worker.app) == {"1": 5}
        assert await decisions(worker.app) == {}
        async with second.manager:
            await until(lambda: len(files(path)) == 2)
            second.deny()
            assert await decisions(worker.app) == {"1": 1}


async def test_one_that_does_not_answer_is_waited_for_once_and_left_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "_PATIENCE", 0.3)
    looked: list[int] = []
    actual = WorkerDirectory.read

    def read(self: Any, before: Any = None, **options: Any) -> Any:
        looked.append(1)
        return actual(self, before, **options)

    monkeypatch.setattr(WorkerDirectory, "read", read)
    async with running(path, 1) as (worker,):
        worker.deny()
        file = leave(path)
        os.utime(file, (1.0, time.time() - 30))
        began = time.monotonic()
        response = await get(worker.app)
        assert time.monotonic() - began >= 0.3
        assert values(response.text, "asgi_agents_decisions_total") == {"0": 1}
        assert values(response.text, "asgi_agents_workers", "state") == {"up": 1, "silent": 1}
        for _ in range(2):
            looked.clear()
            response = await get(worker.app)
            assert len(looked) == 1
            assert values(response.text, "asgi_agents_workers", "state") == {"up": 1, "silent": 1}
        # It says something again.
        leave(path, denials=4)
        looked.clear()

        async def answer() -> None:
            await until(lambda: len(looked) > 1)
            leave(path, denials=5)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            assert await decisions(worker.app) == {"0": 1, "9": 5}


async def test_a_dead_one_is_left_out_with_its_file_and_is_not_silent(path: Path) -> None:
    async with running(path, 1) as (worker,):
        worker.deny()
        file = leave(path)
        living_files.release(file)
        response = await get(worker.app)
        assert values(response.text, "asgi_agents_decisions_total") == {"0": 1}
        assert values(response.text, "asgi_agents_workers", "state") == {"up": 1, "silent": 0}
        assert not file.exists()


async def test_a_file_that_makes_no_sense_is_passed_over_and_its_worker_is_silent(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As is one of another version of the package, while a server is restarted worker by worker."""
    async with running(path, 1) as (worker,):
        worker.deny()
        leave(path, data=msgspec.msgpack.encode({"format": 2}))
        for _ in range(2):
            response = await get(worker.app)
            assert values(response.text, "asgi_agents_decisions_total") == {"0": 1}
            assert values(response.text, "asgi_agents_workers", "state") == {"up": 1, "silent": 1}
    (record,) = [record for record in caplog.records if "can't be had together" in record.getMessage()]
    assert "1 has a file of another version of the package, or a damaged one; these workers count as silent" in (
        record.getMessage()
    )


# The bound, and what it is in the test; that of the bytes leaves room for two.
BOUNDS: dict[str, int] = {"MAX_WORKERS": 2, "MAX_ENTRIES": 2, "MAX_TOTAL_BYTES": -1, "MAX_PLACES": 6}


@pytest.mark.parametrize("bound", BOUNDS)
async def test_however_many_there_are_each_is_either_up_or_silent(
    path: Path, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(path, 5) as workers:
        for worker in workers:
            worker.deny()
        for number in range(20):
            (path / f"of-somebody-else-{number}").touch()
        assert len(await decisions(workers[0].app)) == 5
        most = BOUNDS[bound]
        if bound == "MAX_TOTAL_BYTES":
            most = 2 * max(file.stat().st_size for file in files(path)) + 100
        monkeypatch.setattr(f"asgi_agents.observability.worker_directory.{bound}", most)
        response = await get(workers[0].app)
        up = 5 if bound == "MAX_PLACES" else 3
        assert len(values(response.text, "asgi_agents_decisions_total")) == up
        assert values(response.text, "asgi_agents_workers", "state") == {"up": up, "silent": 5 - up}


@pytest.mark.parametrize("what", ["the files", "the directory"])
async def test_files_that_somebody_removes_are_made_anew_and_no_two_workers_have_one_number(
    path: Path, what: str
) -> None:
    """As scripts do that tidy up before they start the next workers, while those from before still run."""
    async with running(path, 1) as (first,):
        for _ in range(100):
            first.deny()
        assert await decisions(first.app) == {"0": 100}
        for file in path.iterdir():  # noqa: ASYNC240 - quick
            file.unlink()
        if what == "the directory":
            path.rmdir()  # noqa: ASYNC240
        second = Worker(path)
        async with second.manager:
            second.deny()
            await until(lambda: len(files(path)) == 2)
            for worker in (second, first, second):
                response = await get(worker.app)
                found = values(response.text, "asgi_agents_decisions_total")
                assert sorted(found.values()) == [1, 100]
                assert values(response.text, "asgi_agents_workers", "state") == {"up": 2, "silent": 0}


async def test_a_directory_that_can_not_be_used_is_no_answer_and_no_half_of_one(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()  # noqa: ASYNC240 - quick
    path.chmod(0o777)  # noqa: ASYNC240
    worker = Worker(path)
    async with worker.manager:
        for _ in range(3):
            response = await get(worker.app)
            assert response.status_code == 503
            assert "may be written to by others" in response.text
            assert "asgi_agents_decisions" not in response.text
        (record,) = [record for record in caplog.records if "of the workers can't be had" in record.getMessage()]
        assert record.levelno == logging.WARNING
        assert list(path.iterdir()) == []  # noqa: ASYNC240
        path.chmod(0o700)  # noqa: ASYNC240
        worker.deny()
        assert await decisions(worker.app) == {"0": 1}


async def test_more_than_there_are_places_for_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_agents.observability.worker_directory.MAX_PLACES", 1)
    async with running(path, 1):
        worker = Worker(path)
        async with worker.manager:
            response = await get(worker.app)
    assert response.status_code == 503
    assert "has no place left, expected at most 1 processes" in response.text


async def test_who_is_not_let_in_asks_nobody(path: Path) -> None:
    def nobody(request: Request) -> bool:
        return False

    worker = Worker(path, authorize=nobody)
    assert (await get(worker.app)).status_code == 403
    assert not path.exists()  # noqa: ASYNC240 - quick


async def test_several_apps_of_a_manager_are_one_worker(path: Path) -> None:
    worker = Worker(path)
    another = metrics_app(worker.manager, directory=path)
    async with worker.manager:
        worker.deny()
        assert await decisions(another) == await decisions(worker.app) == {"0": 1}


async def test_the_directory_may_be_that_of_the_status_page(path: Path) -> None:
    workers = [Worker(path) for _ in range(2)]
    pages = [status_app(worker.manager, directory=path) for worker in workers]
    async with workers[0].manager, workers[1].manager:
        await until(lambda: len(files(path)) == len(list(path.glob("*.json"))) == 2)
        for worker in workers:
            worker.deny()
        assert await decisions(workers[0].app) == {"0": 1, "1": 1}
        for file in path.glob("*.json"):  # noqa: ASYNC240 - quick
            # In virtual time they were written right now, as if in answer to who looks.
            os.utime(file, (time.time() - 60, time.time() - 60))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(pages[1]), base_url="http://app") as client:
            status = (await client.get("/status.json")).json()
    assert [worker["silent"] for worker in status["workers"]] == [False, False]
    assert status["agents"][0]["calls"] == 2


async def test_without_one_the_answer_is_as_it_was() -> None:
    manager = managed()
    response = await get(metrics_app(manager))
    assert response.text == manager.export_prometheus()
    assert "worker" not in response.text


@pytest.mark.parametrize("given", ["", 5, b"/run/x", "a\0b", "\ud800", ["/run/x"]])
def test_what_is_no_path_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"metrics_app: directory=.*, expected the path of a directory"):
        metrics_app(managed(), directory=given)


def test_nothing_holds_a_manager_that_nobody_uses(path: Path) -> None:
    worker = Worker(path)
    status_app(worker.manager, directory=path)
    kept = weakref.ref(worker.manager)
    del worker
    gc.collect()
    assert kept() is None


APP: Final = """
import os

from starlette.applications import Starlette
from starlette.routing import Route

from asgi_agents import AgentManager, AgentRoute, protect
from asgi_agents.prometheus import metrics_app
from tests.status.world import scripted

manager = AgentManager([scripted("waf")])
app = Starlette(routes=[Route("/-/metrics", metrics_app(manager, directory=os.environ["SHARED"]))])
protect(app, manager=manager, routes=[AgentRoute("/-/{rest:path}", agents=[])], default_agents=["waf"])
"""


@pytest.mark.slow
def test_a_server_of_several_workers_is_one_target_and_stays_one_when_a_worker_is_killed(
    path: Path, tmp_path: Path
) -> None:
    """uvicorn with two workers: no counter is missing or goes back, whichever worker a scrape comes to."""
    deadline = time.monotonic() + PATIENCE

    def scrape() -> str:
        while (found := ask("/-/metrics")) is None:
            pass
        return found.text

    def wait_for(workers: set[str]) -> str:
        while True:
            found = scrape()
            if set(values(found, "asgi_agents_call_active")) == workers:
                return found

    with two_workers(APP, path, tmp_path) as ask:
        while len(files(path)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        wait_for({"0", "1"})
        denied = 0
        for _ in range(6):
            for _ in range(5):
                denied += ask("/", **{"x-waf": "block"}) is not None
            found = scrape()
            assert sum(values(found, "asgi_agents_decisions_total").values()) == denied
            assert values(found, "asgi_agents_workers", "state") == {"up": 2, "silent": 0}
        before = values(found, "asgi_agents_decisions_total")
        killed = files(path)[0]
        os.kill(int(killed.name.partition("-")[0]), signal.SIGKILL)
        while killed.exists() or len(files(path)) < 2:
            scrape()
        after = values(wait_for({"0", "1"}), "asgi_agents_decisions_total")
        # One goes on where it was; the other has nothing yet, or what it was asked since.
        assert any(after.get(worker) == count for worker, count in before.items())
        assert set(after) <= {"0", "1"}
    assert files(path) == []
