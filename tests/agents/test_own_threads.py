"""Agents have threads of their own: handlers of the app that take all of AnyIO's don't make them late."""

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Event
from typing import Any

import anyio
import pytest
from anyio import to_thread
from fastapi import FastAPI

import asgi_agents
from asgi_agents import AgentConfig, AgentManager, AgentMiddleware, ConfigureEvent
from asgi_agents.agents import BasicAuth, OpenApiValidation
from asgi_agents.agents.password_checks import PasswordChecks
from asgi_agents.agents.passwords import PasswordHash
from asgi_agents.concurrency.own_threads import OwnThreads
from asgi_agents.testing import request_headers_event
from tests.support.asgi import App, Client

from .test_basic_auth import USERS, basic

HASH = PasswordHash(1, 1, 1, b"salt", b"derived")


async def of_basic_auth() -> None:
    event = request_headers_event(headers={"authorization": basic("alice", "open sesame")})
    assert (await BasicAuth(USERS).on_request_headers(event)).is_allow


async def of_openapi() -> None:
    app = FastAPI()
    app.add_api_route("/", lambda: None, methods=["GET"])
    await OpenApiValidation(app).on_configure(ConfigureEvent(agent_id="openapi"))


@pytest.mark.parametrize("needs", [of_basic_auth, of_openapi])
async def test_handlers_of_the_app_hold_nothing_up(needs: Callable[[], Awaitable[None]]) -> None:
    let_go = Event()
    limiter = to_thread.current_default_thread_limiter()
    limiter.total_tokens, before = 1, limiter.total_tokens
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, let_go.wait, 60)
            await anyio.wait_all_tasks_blocked()
            assert limiter.available_tokens == 0
            try:
                with anyio.fail_after(30):
                    await needs()
            finally:
                let_go.set()
    finally:
        limiter.total_tokens = before


async def test_none_takes_the_threads_of_another() -> None:
    first, second, let_go = OwnThreads(1), OwnThreads(1), Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.run, let_go.wait, 60)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(30):
            await second.run(let_go.set)


def test_no_agent_takes_threads_of_the_app() -> None:
    agents = Path(asgi_agents.__file__).parent / "agents"
    shared = [
        path.name
        for path in sorted(agents.rglob("*.py"))
        if re.search(r"to_thread\.run_sync\((?![^)]*limiter=)", path.read_text("utf-8"))
    ]
    assert shared == []


async def test_a_check_that_is_late_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a deadline that no machine misses.
    monkeypatch.setattr("asgi_agents.agents.password_checks._IN_TIME", 0.0005)
    let_go = Event()
    monkeypatch.setattr(PasswordHash, "verify", lambda *args: let_go.wait(60))
    agent = BasicAuth(USERS, max_checks=2)
    async with AgentManager([AgentConfig("basic", agent, timeout=60)]) as manager:
        middleware = AgentMiddleware(App(), manager=manager)
        statuses: Counter[int | None] = Counter()

        async def ask() -> None:
            client = Client(headers=[(b"authorization", b"Basic " + b64encode(b"alice:x"))])
            await client.call(middleware)
            statuses[client.status] += 1

        try:
            for _ in range(40):
                await ask()
            assert statuses == {503: 40}
            assert manager.metrics["basic"].outcomes.keys() == {"block"}
        finally:
            let_go.set()
        monkeypatch.setattr("asgi_agents.agents.password_checks._IN_TIME", 1.0)
        # The threads end, and their places are free again.
        with anyio.fail_after(30):
            while not statuses[200]:
                await ask()
                await anyio.sleep(0.001)


@pytest.mark.parametrize("cancelled", ["before", "while"])
async def test_a_place_is_free_again_after_each_check_however_it_ends(
    cancelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = PasswordChecks(1)
    let_go, begun = Event(), Event()

    def slow(*args: Any) -> bool:
        begun.set()
        return let_go.wait(60)

    monkeypatch.setattr(PasswordHash, "verify", slow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(checks.is_right, HASH, "x")
        while cancelled == "while" and not begun.is_set():  # noqa: ASYNC110 - set by a thread
            await anyio.sleep(0.001)
        if cancelled == "while":
            assert await checks.is_right(HASH, "x") is None
        tasks.cancel_scope.cancel()
    if cancelled == "while":
        # The thread of the call that was given up still has it.
        assert await checks.is_right(HASH, "x") is None
    let_go.set()
    with anyio.fail_after(30):
        while await checks.is_right(HASH, "x") is None:  # noqa: ASYNC110 - freed by a thread
            await anyio.sleep(0.001)
    # One place, and not two.
    let_go.clear()
    begun.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(checks.is_right, HASH, "x")
        while not begun.is_set():  # noqa: ASYNC110 - set by a thread
            await anyio.sleep(0.001)
        assert await checks.is_right(HASH, "x") is None
        let_go.set()
