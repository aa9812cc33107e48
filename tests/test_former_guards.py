"""Guards that were replaced or removed, and their agents: what is in force is what the agent has been given last.

An agent that is one object, or at one address, has one configuration, whichever guard hands it over. Guards that have
left their places may ask it all the same: they may be about to ask it again, or connect anew for calls that are left.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import anyio
import httpx
import pytest
from anyio.abc import TaskGroup

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentManager,
    AgentResponse,
    ConfigurationError,
    ConfigureEvent,
    EventType,
    FailureMode,
    HttpTransport,
    RequestHeadersEvent,
    StreamTransport,
    UnknownAgentError,
)
from asgi_agents.guard import Guard
from asgi_agents.manager import registry_of
from asgi_agents.serve import agent_app, serve_stream
from asgi_agents.transports.stream.client import StreamClient
from tests.support.changes import take_a_file
from tests.support.examples import some_are_short

from .test_manager import REQUEST

# Seconds after which nobody has anything to do any more: all back-offs and deadlines have passed.
QUIET: Final = 60.0


class Judge(Agent):
    """Has a mark of its configuration, early or late, be it refused or not."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.asking = 0
        self.mark = ""
        #: Marks that it does not take any more.
        self.refused: set[str] = set()

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        config = event.config
        assert config is not None
        self.asked.append(config["mark"])
        self.asking += 1
        try:
            if config.get("early"):
                self.mark = config["mark"]
            await anyio.sleep(config.get("seconds", 0))
            if not config.get("early"):
                self.mark = config["mark"]
        finally:
            self.asking -= 1
        refuses = config.get("refuses") or config["mark"] in self.refused
        return AgentResponse.block(400, "no such mark") if refuses else None

    async def on_request_headers(self, event: RequestHeadersEvent) -> None: ...


# Ways to the agent


Make = Callable[..., AgentConfig]


def config_of(transport: Callable[[], Any], agent_id: str, mark: str, **config: Any) -> AgentConfig:
    events = {EventType.REQUEST_HEADERS}
    return AgentConfig(agent_id, transport(), events=events, timeout=20.0, config={"mark": mark, **config})


@asynccontextmanager
async def as_object(judge: Judge, directory: Path) -> AsyncIterator[Make]:
    yield partial(config_of, lambda: judge)


@asynccontextmanager
async def over_http(judge: Judge, directory: Path) -> AsyncIterator[Make]:
    served = httpx.ASGITransport(agent_app(judge))
    yield partial(config_of, lambda: HttpTransport("http://agent", transport=served))


@asynccontextmanager
async def over_stream(judge: Judge, directory: Path) -> AsyncIterator[Make]:
    address = f"unix://{directory}/a"
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(serve_stream, judge, address))
        yield partial(config_of, lambda: StreamTransport(address, connections=1))
        tasks.cancel_scope.cancel()


Way = Callable[[Judge, Path], AbstractAsyncContextManager[Make]]
WAYS: Final[dict[str, Way]] = {"object": as_object, "http": over_http, "stream": over_stream}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


class Case:
    """A manager with one agent, and guards that connections may still have after they have left their places."""

    def __init__(self, judge: Judge, make: Make, manager: AgentManager, tasks: TaskGroup) -> None:
        self.judge = judge
        self.make = make
        self.manager = manager
        self.registry = registry_of(manager)
        self._tasks = tasks

    def hold(self) -> Guard:
        """As a connection of the app does that is open."""
        self._held = self.registry.resolved_route(None)
        self._held.held += 1
        return self.registry.guard("a")

    def let_go(self) -> None:
        self._held.held -= 1

    async def replace(self, mark: str, **config: Any) -> None:
        before = self.registry.guard("a")
        # It returns once the other one is closed.
        self._tasks.start_soon(self.manager.replace_agent, self.make("a", mark, **config))
        await until(lambda: self.registry.find("a") is not before)

    async def remove(self, drain_timeout: float = 30.0) -> None:
        self._tasks.start_soon(partial(self.manager.remove_agent, "a", drain_timeout=drain_timeout))
        await until(lambda: self.registry.find("a") is None)

    async def add(self, mark: str, **config: Any) -> None:
        await self.manager.add_agent(self.make("a", mark, **config))

    async def change(self, *configs: AgentConfig) -> None:
        """As a file does that is taken anew."""
        await take_a_file(self.manager, *configs)

    async def check(self, mark: str) -> None:
        await anyio.sleep(QUIET)
        assert self.judge.mark == mark
        guard = self.registry.guard("a")
        assert guard.configured
        assert guard.config.config["mark"] == mark


async def until(there: Callable[[], bool]) -> None:
    while not there():  # noqa: ASYNC110 - nothing else tells
        await anyio.sleep(0.1)


@asynccontextmanager
async def guarded(way: Way, directory: Path, mark: str, **config: Any) -> AsyncIterator[Case]:
    judge = Judge()
    async with way(judge, directory) as make, anyio.create_task_group() as tasks:
        manager = AgentManager([make("a", mark, **config)])
        async with manager:
            yield Case(judge, make, manager, tasks)
        tasks.cancel_scope.cancel()


async def ask(guard: Guard) -> bool:
    """Whether a call by this guard is let go on."""
    verdict = await guard.call(REQUEST, FailureMode.CLOSED)
    return verdict.failure is None


# One that was refused is asked again, and has left its place meanwhile


async def replaced(case: Case) -> None:
    await case.replace("v2")


async def replaced_twice(case: Case) -> None:
    await case.replace("v2")
    await case.replace("v3")


async def added_again(case: Case) -> None:
    await case.remove()
    await case.add("v3")


async def added_again_and_replaced(case: Case) -> None:
    await case.remove()
    await case.add("v2")
    await case.replace("v3")


async def added_again_and_pushed(case: Case) -> None:
    await case.remove()
    await case.add("v2")
    await case.manager.push_config("a", {"mark": "v3"})


async def changed_twice(case: Case) -> None:
    await case.change(case.make("a", "v2"))
    await case.change(case.make("a", "v3"))


async def changed_away_and_back(case: Case) -> None:
    await case.change()
    await case.change(case.make("a", "v3"))


async def removed(case: Case) -> None:
    await case.remove()


Change = Callable[[Case], Awaitable[None]]
CHANGES: Final[list[Change]] = [
    replaced,
    replaced_twice,
    added_again,
    added_again_and_replaced,
    added_again_and_pushed,
    changed_twice,
    changed_away_and_back,
    removed,
]
each_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@pytest.mark.parametrize("held", [False, True], ids=["left alone", "held"])
@pytest.mark.parametrize("asking", [False, True], ids=["sleeping", "asking"])
@each_change
@each_way
async def test_one_that_was_refused_asks_its_agent_no_more_once_it_has_left(
    tmp_path: Path, way: Way, change: Change, asking: bool, held: bool
) -> None:
    async with guarded(way, tmp_path, "v1", refuses=True, seconds=5) as case:
        old = case.hold() if held else case.registry.guard("a")
        judge = case.judge
        await until(lambda: len(judge.asked) >= 4 and bool(judge.asking) is asking)

        await change(case)

        there = case.registry.find("a")
        asked = len(judge.asked)
        if held:
            if way is over_stream:
                # It connects again when its back-off is over, and not for a call.
                await anyio.sleep(20)
            # Its calls wait for whoever leads to the agent now.
            assert await ask(old) is (there is not None)
            case.let_go()
        if there is not None:
            await case.check(there.config.config["mark"])
            assert "v1" not in judge.asked[asked:]
        else:
            await anyio.sleep(QUIET)
            # Also the last that it was asked for, while connections had it.
            assert len(judge.asked) <= asked + (8 if held else 0)
            asked = len(judge.asked)
            assert not await ask(old)
            assert len(judge.asked) == asked


# One that connects anew for the calls that are left


@each_change
async def test_one_that_connects_anew_hands_over_what_is_in_force(tmp_path: Path, change: Change) -> None:
    """However often the agent was given another configuration, and whoever has given it."""
    async with guarded(over_stream, tmp_path, "v1") as case:
        old = case.hold()
        assert await ask(old)
        await change(case)
        there = case.registry.find("a")

        asked = len(case.judge.asked)
        pool = cast(StreamClient, old.client)._pools.peek()
        assert pool is not None
        for connection in pool.connections:
            connection.fail("lost")
        await until(lambda: len(case.judge.asked) > asked)

        mark = "v1" if there is None else there.config.config["mark"]
        assert case.judge.asked[asked:] == [mark]
        assert await ask(old)
        case.let_go()


@each_way
async def test_one_that_is_closed_hands_over_nothing(tmp_path: Path, way: Way) -> None:
    """Connections may have it for longer than it drains."""
    async with guarded(way, tmp_path, "v1", refuses=True) as case:
        old = case.hold()
        await case.remove(drain_timeout=1)
        await anyio.sleep(QUIET)
        asked = len(case.judge.asked)
        assert not await ask(old)
        assert len(case.judge.asked) == asked

        await case.add("v2")
        assert not await ask(old)
        await case.check("v2")


# Configurations that are pushed


@pytest.mark.parametrize("way", [as_object, over_http])
async def test_what_is_pushed_comes_after_what_the_agent_is_being_asked_to_take(tmp_path: Path, way: Way) -> None:
    async with guarded(way, tmp_path, "v1", refuses=True, seconds=5) as case:
        await until(lambda: case.judge.asking > 0)
        await case.manager.push_config("a", {"mark": "v2"})
        await case.check("v2")


async def test_what_is_pushed_comes_after_what_a_new_connection_hands_over(tmp_path: Path) -> None:
    async with guarded(over_stream, tmp_path, "v1", seconds=3) as case:
        client = cast(StreamClient, case.registry.guard("a").client)
        pool = client._pools.peek()
        assert pool is not None
        (endpoint,) = pool.endpoints.current
        async with anyio.create_task_group() as tasks:
            connector = pool.endpoints.connector(endpoint)
            tasks.start_soon(connector.make_another)
            await until(lambda: case.judge.asking > 0)
            await case.manager.push_config("a", {"mark": "v2"})
        await case.check("v2")


@each_way
async def test_nothing_is_pushed_by_one_that_has_left_meanwhile(tmp_path: Path, way: Way) -> None:
    async with guarded(way, tmp_path, "v1") as case:

        async def push() -> None:
            with pytest.raises(AgentError, match="'a' was replaced or removed meanwhile"):
                await case.manager.push_config("a", {"mark": "pushed"})

        # As if the agent was being asked.
        async with anyio.create_task_group() as tasks, case.registry.guard("a").configuring.turn():
            tasks.start_soon(push)
            await anyio.sleep(1)
            await case.remove()
        await case.add("v2")
        await case.check("v2")
        assert "pushed" not in case.judge.asked


# Others are put in place while one is asked


each_speed = pytest.mark.parametrize("early", [False, True], ids=["late", "early"])
each_answer = pytest.mark.parametrize("refuses", [False, True], ids=["taken", "refused"])


@each_speed
@each_answer
@each_way
async def test_one_that_is_added_comes_after_one_that_was_to_replace_what_is_removed(
    tmp_path: Path, way: Way, refuses: bool, early: bool
) -> None:
    async with guarded(way, tmp_path, "v1") as case, anyio.create_task_group() as tasks:

        async def replace() -> None:
            with pytest.raises((AgentError, UnknownAgentError)):
                await case.manager.replace_agent(case.make("a", "v2", seconds=3, refuses=refuses, early=early))

        tasks.start_soon(replace)
        await until(lambda: case.judge.asking > 0)
        await case.remove()
        await case.add("v3")
        await case.check("v3")


@each_speed
@each_answer
@each_way
async def test_of_two_that_are_asked_at_once_the_agent_has_the_one_that_is_in_force(
    tmp_path: Path, way: Way, refuses: bool, early: bool
) -> None:
    async with guarded(way, tmp_path, "v1") as case:
        await case.remove()
        await anyio.sleep(QUIET)

        async def change(mark: str, seconds: int, **config: Any) -> None:
            with suppress(AgentError):
                await case.change(case.make("a", mark, seconds=seconds, early=early, **config))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(change, "v2", 1))
            tasks.start_soon(partial(change, "v3", 3, refuses=refuses))
        await case.check(case.registry.guard("a").config.config["mark"])


# In any order


class Walk:
    """Changes that come in any order, and at the same time."""

    def __init__(self, case: Case, seed: int) -> None:
        self._case = case
        self._random = random.Random(seed)  # noqa: S311 - the same for the same seed
        self._marks = 0
        self._left: list[Guard] = []
        # One file is taken at a time.
        self._file = anyio.Lock()

    def _config(self) -> tuple[str, dict[str, Any]]:
        there = self._case.registry.find("a")
        if there is not None and self._random.random() < 0.25:
            # The same, as where only other fields have changed.
            same: dict[str, Any] = {**there.config.config}
            return same.pop("mark"), same
        return self._another()

    def _another(self) -> tuple[str, dict[str, Any]]:
        choose = self._random.random
        self._marks += 1
        config: dict[str, Any] = {"early": choose() < 0.5}
        if choose() < 0.3:
            config["refuses"] = True
        if choose() < 0.6:
            config["seconds"] = self._random.choice([0.05, 0.5, 3])
        return f"m{self._marks}", config

    async def _replace(self) -> None:
        mark, config = self._config()
        await self._case.manager.replace_agent(self._case.make("a", mark, **config), drain_timeout=5)

    async def _push(self) -> None:
        mark, config = self._another()
        # Of what is pushed in vain, an agent keeps what it likes: nothing is handed back.
        config.pop("refuses", None)
        with anyio.CancelScope(shield=True):
            await self._case.manager.push_config("a", {"mark": mark, **config})

    async def _add(self) -> None:
        mark, config = self._config()
        await self._case.manager.add_agent(self._case.make("a", mark, **config))

    async def _remove(self) -> None:
        await self._case.manager.remove_agent("a", drain_timeout=5)

    async def _change(self) -> None:
        mark, config = self._config()
        async with self._file:
            await self._case.change(self._case.make("a", mark, **config))

    async def _ask(self) -> None:
        for guard in (*self._left[-3:], *self._case.registry.guards()):
            await ask(guard)

    async def _reconnect(self) -> None:
        for guard in (*self._left[-3:], *self._case.registry.guards()):
            pools = getattr(guard.client, "_pools", None)
            pool = None if pools is None else pools.peek()
            for connection in () if pool is None else pool.connections:
                connection.fail("lost")

    def _change_the_mind_of_the_judge(self) -> None:
        """For a while it takes no more what it has taken."""
        chosen = self._random.random()
        if chosen < 0.15:
            self._case.judge.refused |= {guard.config.config["mark"] for guard in self._case.registry.guards()}
        elif chosen < 0.4:
            self._case.judge.refused.clear()

    async def step(self) -> None:
        self._left += self._case.registry.guards()
        self._change_the_mind_of_the_judge()
        doing = self._random.choice(
            [self._replace, self._add, self._remove, self._change, self._push, self._ask, self._reconnect]
        )
        with suppress(AgentError, UnknownAgentError, ConfigurationError):
            with anyio.move_on_after(self._random.choice([0.01, 0.2, 2, 60, 60])):
                await doing()

    async def run(self, steps: int) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(steps):
                tasks.start_soon(self.step)
                await anyio.sleep(self._random.choice([0, 0.001, 0.05, 0.3, 4]))
        self._case.judge.refused.clear()


@pytest.mark.parametrize("seed", some_are_short(range(12), one_in=4))
@each_way
async def test_in_any_order_the_agent_has_what_is_in_force(tmp_path: Path, way: Way, seed: int) -> None:
    async with guarded(way, tmp_path, "m0") as case:
        walk = Walk(case, seed)
        for _ in range(8):
            await walk.run(3)
            await anyio.sleep(QUIET)
            for guard in case.registry.guards():
                if guard.configured and (guard.client.connected or not guard.client.reserves):
                    assert case.judge.mark == guard.config.config["mark"], case.judge.asked[-5:]
