"""A file that was refused because an agent was out of reach is taken when that is back, though the file is the same."""

import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asgi_agents import AgentError, protect
from asgi_agents.files.hangup import SIGHUP
from asgi_agents.files.retry import FIRST, MOST, Retry
from asgi_agents.files.watch import INTERVAL
from asgi_agents.manager import registry_of
from asgi_agents.status.snapshot import take_snapshot

from .marking import MODULE, File, Waking, marked_app, marker, marks

OLD = marks(marker("a", "a1"))
NEW = marks(marker("a", "a2"), {**marker("b", "b2"), "transport": f"{MODULE}:Waking", "require_at_startup": True})
# Seconds, in which there are so many tries: after 63 seconds at intervals of a minute, or of half of that.
SPAN = 300
TRIES = range(6, 16)


@pytest.fixture(autouse=True)
def down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waking, "down", "nobody listens")
    monkeypatch.setattr(Waking, "tries", 0)


class Waiting:
    """An app whose file changes, and what is known of that."""

    def __init__(self, file: File, middleware: Any, client: httpx.AsyncClient, log: pytest.LogCaptureFixture) -> None:
        self.file = file
        self.middleware = middleware
        self._client = client
        self._log = log

    async def seen(self) -> str:
        return (await self._client.get("/")).text

    @property
    def lines(self) -> list[str]:
        """What the log says of reloads: the word that tells their outcome, and why."""
        return [
            line.partition("all stays as it was: ")[2] or line.partition(": ")[2]
            for line in (record.getMessage() for record in self._log.records if record.name == "asgi_agents")
        ]

    @property
    def counts(self) -> dict[str, int]:
        source = registry_of(self.middleware.manager).source
        assert source is not None
        return {name: number for name, number in source.reloads.items() if number}

    @property
    def refusal(self) -> str | None:
        source = take_snapshot(registry_of(self.middleware.manager)).source
        assert source is not None
        return source.refusal


@asynccontextmanager
async def waiting(directory: Path, log: pytest.LogCaptureFixture, reload: Any) -> AsyncIterator[Waiting]:
    log.set_level(logging.INFO, "asgi_agents")
    file = File(directory, OLD)
    app = marked_app()
    middleware = protect(app, config=file.path, imports=[MODULE], reload=reload)
    async with (
        middleware.manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
    ):
        await anyio.sleep(3 * INTERVAL)
        yield Waiting(file, middleware, client, log)


def changed(reload: str) -> None:
    if reload == "on-sighup":
        os.kill(os.getpid(), signal.SIGHUP)


RELOADS = [
    "on-change",
    pytest.param("on-sighup", marks=pytest.mark.skipif(SIGHUP is None, reason="there is no SIGHUP")),
]


@pytest.mark.parametrize("reload", RELOADS)
async def test_it_is_tried_until_the_agent_is_back_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, reload: str
) -> None:
    async with waiting(tmp_path, caplog, reload) as it:
        it.file.write(NEW)
        changed(reload)
        await anyio.sleep(SPAN)
        assert await it.seen() == "a1"
        assert it.refusal is not None
        assert "nobody listens" in it.refusal
        assert Waking.tries in TRIES
        assert len(it.lines) == 1
        assert it.counts == {"refused": 1}
        # Another reason is another line.
        monkeypatch.setattr(Waking, "down", "it is too slow")
        await anyio.sleep(SPAN)
        assert len(it.lines) == 2
        assert it.counts == {"refused": 2}
        assert "it is too slow" in it.refusal
        monkeypatch.setattr(Waking, "down", None)
        await anyio.sleep(MOST + 2 * INTERVAL)
        assert await it.seen() == "a2 b2"
        assert it.refusal is None
        assert it.lines[2:] == ["taken: added 'b'; replaced 'a'"]
        assert it.counts == {"refused": 2, "taken": 1}
        tries = Waking.tries
        await anyio.sleep(SPAN)
        assert Waking.tries == tries
        assert len(it.lines) == 3


@pytest.mark.slow
@pytest.mark.parametrize("reload", RELOADS)
async def test_a_file_that_has_changed_meanwhile_is_the_one_that_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reload: str
) -> None:
    async with waiting(tmp_path, caplog, reload) as it:
        it.file.write(NEW)
        changed(reload)
        await anyio.sleep(SPAN)
        tries = Waking.tries
        it.file.write(marks(marker("a", "a3")))
        await anyio.sleep(SPAN)
        # Where a signal has to come, it has not, and what was refused is not there any more.
        assert await it.seen() == ("a1" if reload == "on-sighup" else "a3")
        assert Waking.tries <= tries + 1
        changed(reload)
        await anyio.sleep(SPAN)
        assert await it.seen() == "a3"


@pytest.mark.parametrize("reload", RELOADS)
async def test_a_mistake_in_a_file_is_not_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, reload: str
) -> None:
    loads = 0
    real = __import__("asgi_agents.files.reload", fromlist=["load_with"]).load_with

    def load_with(*given: Any) -> Any:
        nonlocal loads
        loads += 1
        return real(*given)

    async with waiting(tmp_path, caplog, reload) as it:
        monkeypatch.setattr("asgi_agents.files.reload.load_with", load_with)
        it.file.write("[[agents]]\nid = 1\n")
        changed(reload)
        await anyio.sleep(SPAN)
        assert loads == 1
        assert len(it.lines) == 1


CHANGED: dict[str, str | None] = {
    "no configuration": "[[agents]]\nid = 1\n",
    "no TOML": "[[agents",
    "a module that is not named in the code": '[[agents]]\nid = "a"\ntransport = "os:getcwd"\n',
    "gone": None,
}


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("reload", RELOADS)
async def test_a_file_that_is_refused_before_the_next_try_is_refused_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reload: str, name: str
) -> None:
    async with waiting(tmp_path, caplog, reload) as it:
        it.file.write(NEW)
        changed(reload)
        await anyio.sleep(2.5 * INTERVAL)
        assert len(it.lines) == 1
        text = CHANGED[name]
        if text is None:
            it.file.path.unlink()
        else:
            it.file.write(text)
        # The next try comes before anybody knows of the change: it is noticed at the second look, or by a signal.
        await anyio.sleep(SPAN)
        if reload == "on-sighup":
            assert len(it.lines) == 1
        changed(reload)
        await anyio.sleep(SPAN)
        assert len(it.lines) == 2
        assert it.counts == {"refused": 2}
        assert it.refusal is not None
        assert "nobody listens" not in it.refusal


async def test_whoever_reloads_by_hand_is_told_and_tries_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with waiting(tmp_path, caplog, None) as it:
        it.file.write(NEW)
        for number in range(1, 4):
            with pytest.raises(AgentError, match="nobody listens"):
                await it.middleware.reload()
            assert len(it.lines) == number
        await anyio.sleep(SPAN)
        assert Waking.tries == 3


async def test_tries_are_twice_as_far_apart_each_time_up_to_a_minute() -> None:
    retry = Retry()
    assert retry.left == float("inf")
    for longest in [FIRST, 2.0, 4.0, 8.0, 16.0, 32.0, MOST, MOST]:
        retry.note(True, first=longest == FIRST)
        assert longest / 2 <= retry.left <= longest
    retry.note(True, first=True)
    assert retry.left <= FIRST
    retry.note(False, first=False)
    assert retry.left == float("inf")
