"""Managers whose last user leaves while agents are changed: what that opens afterwards is closed again."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from asgi_agents import AgentConfig, AgentError, AgentManager, ConfigureEvent
from asgi_agents.manager import registry_of
from asgi_agents.protocol import Answer, Event
from asgi_agents.transports.stream.client import StreamClient
from tests.support.changes import take_a_file

from .test_former_guards import QUIET, Judge, Make, as_object, config_of, over_stream, until
from .test_manager import REQUEST, Fake


class Lasting(Fake):
    """Has a connection from its first call on."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge
        self.open = False

    async def call(self, event: Event) -> Answer | None:
        self.open = True
        if not isinstance(event, ConfigureEvent):
            return None
        try:
            return await self.judge.on_configure(event)
        finally:
            # As one that was made anew.
            self.open = True

    async def aclose(self) -> None:
        self.open = False


def way_of(name: str, judge: Judge, directory: Path) -> Any:
    if name == "stream":
        return over_stream(judge, directory)
    return as_object(judge, directory)


class Case:
    def __init__(self, name: str, judge: Judge, make: Make) -> None:
        self._make = make if name == "stream" else lambda *given, **config: config_of(self._lasting, *given, **config)
        self._transports: list[Lasting] = []
        self.judge = judge
        self.manager = AgentManager([self.config("a", "v1")])
        self.registry = registry_of(self.manager)
        self.clients = [self.registry.guard("a").client]
        self.registry.on_guard.append(lambda guard: self.clients.append(guard.client))

    def _lasting(self) -> Lasting:
        self._transports.append(Lasting(self.judge))
        return self._transports[-1]

    def config(self, agent_id: str, mark: str, **config: Any) -> AgentConfig:
        return self._make(agent_id, mark, **config)

    @property
    def connected(self) -> int:
        """How many agents are connected, of all that there have ever been."""
        streams = [client for client in self.clients if isinstance(client, StreamClient)]
        return sum(bool(client._pools._loops) for client in streams) + sum(each.open for each in self._transports)


async def replaced(case: Case) -> None:
    await case.manager.replace_agent(case.config("a", "v2", seconds=3))


async def replaced_in_vain(case: Case) -> None:
    await case.manager.replace_agent(case.config("a", "v2", seconds=3, refuses=True))


async def added(case: Case) -> None:
    await case.manager.add_agent(case.config("b", "v2", seconds=3))


async def pushed(case: Case) -> None:
    await case.manager.push_config("a", {"mark": "v2", "seconds": 3})


async def taken_from_a_file(case: Case) -> None:
    await take_a_file(case.manager, case.config("a", "v2"), case.config("b", "v2", seconds=3))


async def taken_from_a_file_in_vain(case: Case) -> None:
    await take_a_file(case.manager, case.config("a", "v2", seconds=3, refuses=True), case.config("b", "v2"))


Change = Callable[[Case], Awaitable[None]]
CHANGES: Final[list[Change]] = [
    replaced,
    replaced_in_vain,
    added,
    pushed,
    taken_from_a_file,
    taken_from_a_file_in_vain,
]
each_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
each_way = pytest.mark.parametrize("way", ["stream", "plain"])


async def begun(case: Case, change: Change, tasks: Any) -> None:
    async def go_on() -> None:
        with suppress(AgentError):
            await change(case)

    tasks.start_soon(go_on)
    await until(lambda: case.judge.asking > 0)


@each_change
@each_way
async def test_nothing_is_connected_once_the_last_user_has_left(tmp_path: Path, way: str, change: Change) -> None:
    judge = Judge()
    async with way_of(way, judge, tmp_path) as make, anyio.create_task_group() as tasks:
        case = Case(way, judge, make)
        async with case.manager:
            await begun(case, change, tasks)
        await anyio.sleep(QUIET)
        assert case.connected == 0
        # It is used again all the same.
        async with case.manager:
            assert (await case.manager.process_request_headers(REQUEST)).is_allow
            assert case.connected == len(case.manager.agent_ids)
        assert case.connected == 0


@pytest.mark.parametrize("again", [False, True], ids=["another stays", "another comes"])
@each_change
@each_way
async def test_agents_stay_connected_while_there_is_a_user(
    tmp_path: Path, way: str, change: Change, again: bool
) -> None:
    judge = Judge()
    async with way_of(way, judge, tmp_path) as make, anyio.create_task_group() as tasks:
        case = Case(way, judge, make)
        async with case.manager:
            if not again:
                await case.manager.__aenter__()
            await begun(case, change, tasks)
        if again:
            await case.manager.__aenter__()
        await anyio.sleep(QUIET)
        assert (await case.manager.process_request_headers(REQUEST)).is_allow
        assert case.connected == len(case.manager.agent_ids)
        await case.manager.__aexit__(None, None, None)
        assert case.connected == 0


@each_change
async def test_a_manager_that_was_never_entered_connects_as_before(tmp_path: Path, change: Change) -> None:
    judge = Judge()
    async with way_of("plain", judge, tmp_path) as make, anyio.create_task_group() as tasks:
        case = Case("plain", judge, make)
        await begun(case, change, tasks)
        await anyio.sleep(QUIET)
        assert (await case.manager.process_request_headers(REQUEST)).is_allow
        assert case.connected == len(case.manager.agent_ids)
