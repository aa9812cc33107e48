"""SIGHUP: the file is taken anew, and what was there before the signal's handler is there again afterwards."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asgi_agents import ConfigurationError, protect
from asgi_agents.files.hangup import on_hangup

from .marking import MODULE, File, marked_app, marker, marks

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal")


@pytest.fixture(autouse=True)
def before() -> Iterator[list[int]]:
    """A handler of the process that runs the tests: a signal that nobody takes would end it."""
    taken: list[int] = []

    def take(number: int, frame: object) -> None:
        taken.append(number)

    old = signal.signal(signal.SIGHUP, take)
    yield taken
    assert signal.getsignal(signal.SIGHUP) is take
    signal.signal(signal.SIGHUP, old)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - nothing else tells
            await anyio.sleep(0.001)


async def test_each_signal_reaches_everyone_who_waits_and_the_handler_of_before(before: list[int]) -> None:
    calls = {"a": 0, "b": 0}

    async def listen(name: str) -> None:
        async def call() -> None:
            calls[name] += 1

        await on_hangup(call)

    async with anyio.create_task_group() as tasks:
        handler = signal.getsignal(signal.SIGHUP)
        for name in calls:
            tasks.start_soon(listen, name)
        await until(lambda: signal.getsignal(signal.SIGHUP) is not handler)
        await anyio.sleep(0.01)
        for number in range(1, 4):
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda number=number: list(calls.values()) == [number] * 2)  # type: ignore[misc]
        tasks.cancel_scope.cancel()
    assert before == [signal.SIGHUP] * 3


async def test_a_signal_that_comes_while_the_file_is_taken_is_not_missed() -> None:
    calls = 0
    going_on, go_on = anyio.Event(), anyio.Event()

    async def call() -> None:
        nonlocal calls
        calls += 1
        going_on.set()
        await go_on.wait()

    async with anyio.create_task_group() as tasks:
        handler = signal.getsignal(signal.SIGHUP)
        tasks.start_soon(on_hangup, call)
        await until(lambda: signal.getsignal(signal.SIGHUP) is not handler)
        os.kill(os.getpid(), signal.SIGHUP)
        await going_on.wait()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        await anyio.sleep(0.01)
        go_on.set()
        await until(lambda: calls == 2)
        tasks.cancel_scope.cancel()
    assert calls == 2


async def test_the_file_is_taken_anew(tmp_path: Path) -> None:
    file = File(tmp_path, marks(marker("a", "a1")))
    app = marked_app()
    middleware = protect(app, config=file.path, imports=[MODULE], reload="on-sighup")
    async with (
        middleware.manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
    ):
        await anyio.sleep(0.01)
        file.write(marks(marker("a", "a2"), marker("b", "b2")))
        assert (await client.get("/")).text == "a1"
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: len(middleware.manager.agent_ids) == 2)
        assert (await client.get("/")).text == "a2 b2"


def test_in_another_thread_the_log_says_that_no_signal_comes(caplog: pytest.LogCaptureFixture) -> None:
    async def call() -> None: ...

    def run() -> None:
        anyio.run(on_hangup, call)

    async def main() -> None:
        await anyio.to_thread.run_sync(run)

    caplog.set_level(logging.WARNING)
    anyio.run(main)
    assert "the app does not run in the main thread" in caplog.text


def test_where_there_is_no_such_signal_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_agents.files.protecting.SIGHUP", None)
    options: dict[str, Any] = {"config": File(tmp_path, marks(marker("a", "a"))).path, "imports": [MODULE]}
    with pytest.raises(ConfigurationError, match="expected 'on-change' where there is no such signal"):
        protect(marked_app(), reload="on-sighup", **options)
