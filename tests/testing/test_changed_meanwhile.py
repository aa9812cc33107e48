"""Overrides of agents that the app itself replaces or removes while they last."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asgi_agents import AgentConfig, AgentError, AgentManager, AgentMiddleware, AgentResponse, protect
from asgi_agents.manager import registry_of
from asgi_agents.testing import FakeAgent, agent_down, breaker_open, override_agents
from tests.support.changes import take_a_file

from ..files.marking import MODULE, File, marked_app, marker, marks
from ..test_former_guards import Case, Judge, Way, as_object, ask, config_of, each_way, guarded
from .test_connections import Counting

TEAPOT = FakeAgent(AgentResponse.block(418))
OTHER = FakeAgent(AgentResponse.block(451))
OVERRIDES: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "a fake": lambda app: override_agents(app, a=TEAPOT),
    "an agent that is down": lambda app: agent_down(app, "a"),
    "an open breaker": lambda app: breaker_open(app, "a"),
}


class Changing:
    """An app whose agents, ``a`` and ``b``, come from a file that is taken anew."""

    def __init__(self, directory: Path) -> None:
        self._file = File(directory, marks(marker("a", "a1"), marker("b", "b1")))
        self._app = marked_app()
        self.middleware: AgentMiddleware = protect(self._app, config=self._file.path, imports=[MODULE])

    async def take(self, *agents: dict[str, Any]) -> None:
        self._file.write(marks(*agents))
        await self.middleware.reload()

    async def seen(self) -> str:
        """The marks of those that have judged a request, or the status of who has stopped it."""
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            response = await client.get("/")
        return response.text if response.status_code == 200 else str(response.status_code)


@pytest.fixture
def it(tmp_path: Path) -> Changing:
    return Changing(tmp_path)


@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES)
async def test_an_agent_that_a_file_replaces_is_in_its_place_at_once_and_afterwards(
    it: Changing, override: Callable[[Any], AbstractContextManager[Any]]
) -> None:
    async with it.middleware.manager:
        with override(it.middleware):
            assert await it.seen() in ("418", "503")
            await it.take(marker("a", "a2"), marker("b", "b1"))
            assert await it.seen() == "a2 b1"
        assert await it.seen() == "a2 b1"
        await it.middleware.reload()
        assert await it.seen() == "a2 b1"
        # It can be overridden as any other.
        with override(it.middleware):
            assert await it.seen() in ("418", "503")
        assert await it.seen() == "a2 b1"


@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES)
async def test_an_agent_that_a_file_removes_is_gone_at_once_and_afterwards(
    it: Changing, override: Callable[[Any], AbstractContextManager[Any]]
) -> None:
    async with it.middleware.manager:
        with override(it.middleware):
            await it.take(marker("b", "b1"))
            assert await it.seen() == "b1"
        assert await it.seen() == "b1"
        assert it.middleware.manager.agent_ids == ("b",)
        await it.take(marker("a", "a3"), marker("b", "b1"))
        assert await it.seen() == "a3 b1"


async def test_an_agent_of_which_a_file_says_the_same_keeps_its_override(it: Changing) -> None:
    async with it.middleware.manager:
        with override_agents(it.middleware, a=TEAPOT):
            await it.take(marker("a", "a1"), marker("b", "b2"))
            assert await it.seen() == "418"
        assert await it.seen() == "a1 b2"


async def test_the_others_of_nested_overrides_are_out_too(it: Changing) -> None:
    async with it.middleware.manager:
        with override_agents(it.middleware, a=TEAPOT):
            with override_agents(it.middleware, a=OTHER):
                await it.take(marker("a", "a2"), marker("b", "b1"))
                with override_agents(it.middleware, a=TEAPOT, b=OTHER):
                    assert await it.seen() == "418"
                assert await it.seen() == "a2 b1"
            assert await it.seen() == "a2 b1"
        assert await it.seen() == "a2 b1"


async def test_what_code_replaces_removes_or_adds_again_stays_too(it: Changing) -> None:
    manager = it.middleware.manager
    async with manager:
        with override_agents(it.middleware, a=TEAPOT, b=FakeAgent()):
            await manager.replace_agent(AgentConfig("a", OTHER))
            assert await it.seen() == "451"
            await manager.remove_agent("b")
        assert await it.seen() == "451"
        with override_agents(it.middleware, a=FakeAgent()):
            await manager.remove_agent("a")
            await manager.add_agent(AgentConfig("a", TEAPOT))
        assert await it.seen() == "418"
        assert manager.agent_ids == ("a",)


# What becomes of the agent itself


async def replace(manager: AgentManager) -> None:
    await manager.replace_agent(AgentConfig("a", Counting()))


async def remove(manager: AgentManager) -> None:
    await manager.remove_agent("a")


CHANGES: dict[str, Callable[[AgentManager], Awaitable[None]]] = {
    "replaced": replace,
    "removed": remove,
    "replaced by a file": lambda manager: take_a_file(manager, AgentConfig("a", Counting())),
    "removed by a file": take_a_file,
}


@pytest.mark.parametrize("held", [False, True], ids=["left alone", "held"])
@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_the_agent_itself_is_closed_once_no_connection_has_it(
    change: Callable[[AgentManager], Awaitable[None]],
    override: Callable[[Any], AbstractContextManager[Any]],
    held: bool,
) -> None:
    transport = Counting()
    manager = AgentManager([AgentConfig("a", transport)])
    middleware = AgentMiddleware(marked_app(), manager=manager)
    registry = registry_of(manager)
    async with manager:
        own = registry.guard("a")
        transport.open = 1
        route = registry.resolved_route(None)
        route.held += held
        # Overrides may be within one another.
        with override(middleware), override(middleware):
            await change(manager)
            assert own not in registry._aside
            if held:
                await anyio.sleep(0.05)
                assert transport.open == 1
                assert not own.configuring.closed
                route.held -= 1
            with anyio.fail_after(30):
                while registry._retirements._under_way:  # noqa: ASYNC110 - nothing else tells
                    await anyio.sleep(0.01)
            assert transport.open == 0
            assert own.configuring.closed
        assert registry._aside == []


async def test_the_agent_itself_is_asked_nothing_any_more() -> None:
    judge = Judge()
    make = partial(config_of, lambda: judge)
    manager = AgentManager([make("a", "v1")])
    async with manager:
        with override_agents(AgentMiddleware(marked_app(), manager=manager), a=FakeAgent()):
            await manager.replace_agent(make("a", "v2"))
        for _ in range(3):
            judge.asked.clear()
            with suppress(AgentError):
                await manager.replace_agent(make("a", "v3", refuses=True))
            assert judge.asked == ["v3", "v2"]


# Configurations that are pushed


async def in_force(case: Case, mark: str) -> None:
    guard = case.registry.guard("a")
    assert await ask(guard)
    assert (case.judge.mark, guard.config.config["mark"]) == (mark, mark)


@pytest.mark.parametrize("called", [False, True], ids=["not called", "called"])
@each_way
async def test_what_is_pushed_is_given_to_both(tmp_path: Path, way: Way, called: bool) -> None:
    async with guarded(way, tmp_path, "v1") as case:
        middleware = AgentMiddleware(marked_app(), manager=case.manager)
        own = case.registry.guard("a")
        if called:
            await in_force(case, "v1")
        fakes = FakeAgent(), FakeAgent()
        with override_agents(middleware, a=fakes[0]):
            with override_agents(middleware, a=fakes[1]):
                await case.manager.push_config("a", {"mark": "v2"})
                assert fakes[1].configurations[-1] == {"mark": "v2"}
            assert case.judge.asked == ["v1"]
            # Connections that have begun before have it still.
            assert await ask(own)
            assert case.judge.asked == ["v1", "v2"]
        await in_force(case, "v2")
        # Others stand in for what it is now.
        with override_agents(middleware, a=fakes[0]):
            assert case.registry.guard("a").config.config == {"mark": "v2"}


@each_way
async def test_what_is_pushed_before_the_app_starts_is_what_the_agent_is_given_first(tmp_path: Path, way: Way) -> None:
    judge = Judge()
    async with way(judge, tmp_path) as make:
        manager = AgentManager([make("a", "v1")])
        with override_agents(AgentMiddleware(marked_app(), manager=manager), a=FakeAgent()):
            await manager.push_config("a", {"mark": "v2"})
        async with manager:
            assert await ask(registry_of(manager).guard("a"))
            assert set(judge.asked) == {"v2"}


REFUSING: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "a fake": lambda app: override_agents(app, a=FakeAgent(configure=AgentResponse.block(400))),
    "an agent that is down": lambda app: agent_down(app, "a"),
}


@pytest.mark.parametrize("override", REFUSING.values(), ids=REFUSING)
async def test_what_is_pushed_in_vain_is_given_to_nobody(
    tmp_path: Path, override: Callable[[Any], AbstractContextManager[Any]]
) -> None:
    async with guarded(as_object, tmp_path, "v1") as case:
        with override(AgentMiddleware(marked_app(), manager=case.manager)), pytest.raises(AgentError):
            await case.manager.push_config("a", {"mark": "v2"})
        await in_force(case, "v1")
        assert case.judge.asked == ["v1"]
