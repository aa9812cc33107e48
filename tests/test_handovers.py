"""Agents that are replaced while they are given another configuration: who is asked, who waits, and what is in force.

An agent that is one object, or at one address, has one configuration, whichever guard hands it over.
"""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentManager,
    AgentResponse,
    Block,
    ConfigureEvent,
    EventType,
    FailureMode,
    HttpTransport,
    UnknownAgentError,
    lifecycle,
)
from asgi_agents.calls.sharing import is_same_config
from asgi_agents.guard import Guard
from asgi_agents.lifecycle import try_to_configure
from asgi_agents.manager import registry_of
from asgi_agents.serve import agent_app, serve_stream

from .test_former_guards import QUIET, Case, Judge, Way, as_object, each_way, guarded, over_http, over_stream, until
from .transports.stream.peer import Peer, Received, handshake
from .transports.stream.pools import agent, client_in, head, managing, nowhere, pool_of
from .transports.stream.test_configuring import Configured, peer_with

# What puts an agent in place that is configured first


async def replace(case: Case, config: AgentConfig) -> None:
    await case.manager.replace_agent(config, drain_timeout=1)


async def reload(case: Case, config: AgentConfig) -> None:
    await case.change(config)


Put = Callable[[Case, AgentConfig], Awaitable[None]]
each_put = pytest.mark.parametrize("put", [replace, reload], ids=lambda put: put.__name__)


# What is under way meanwhile, and takes five seconds


async def a_push(case: Case, mark: str) -> None:
    await case.manager.push_config("a", {"mark": mark, "seconds": 5})


async def a_replacement(case: Case, mark: str) -> None:
    await replace(case, case.make("a", mark, seconds=5))


async def a_reload(case: Case, mark: str) -> None:
    await reload(case, case.make("a", mark, seconds=5))


UnderWay = Callable[[Case, str], Coroutine[Any, Any, None]]
each_under_way = pytest.mark.parametrize(
    "under_way", [a_push, a_replacement, a_reload], ids=lambda under_way: under_way.__name__
)


# Nobody is put in place who was not asked


class Refusing(Agent):
    """An agent that takes no configuration."""

    async def on_configure(self, event: object) -> AgentResponse:
        return AgentResponse.block(400, "no such rules")

    async def on_request_headers(self, event: object) -> None: ...


def _unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


# An agent that can't be configured, for an id whose agent is reached like that.
FAILING: Final[list[tuple[Way, Callable[[], Any]]]] = [
    (over_http, lambda: HttpTransport("http://typo", transport=httpx.MockTransport(_unreachable))),
    (over_http, lambda: "unix:///nowhere/typo.sock"),
    (over_stream, lambda: "unix:///nowhere/typo.sock"),
    (over_stream, lambda: HttpTransport("http://typo", transport=httpx.MockTransport(_unreachable))),
    (as_object, Refusing),
    (as_object, lambda: "unix:///nowhere/typo.sock"),
]


@pytest.mark.parametrize(("way", "transport"), FAILING)
@each_under_way
@each_put
async def test_one_that_fails_is_not_put_in_place_while_the_other_is_given_the_same(
    tmp_path: Path, way: Way, transport: Callable[[], Any], under_way: UnderWay, put: Put
) -> None:
    async with guarded(way, tmp_path, "v1") as case, anyio.create_task_group() as tasks:
        tasks.start_soon(under_way, case, "v2")
        await until(lambda: case.judge.asking > 0)
        failing = AgentConfig(
            "a",
            transport(),
            events={EventType.REQUEST_HEADERS},
            failure_mode=FailureMode.OPEN,
            config={"mark": "v2", "seconds": 5},
        )
        with pytest.raises(AgentError):
            await put(case, failing)
        await case.check("v2")


@each_under_way
@each_put
@each_way
async def test_one_that_gives_the_same_as_the_other_was_given_meanwhile_is_configured(
    tmp_path: Path, way: Way, under_way: UnderWay, put: Put
) -> None:
    async with guarded(way, tmp_path, "v1") as case, anyio.create_task_group() as tasks:
        tasks.start_soon(under_way, case, "v2")
        await until(lambda: case.judge.asking > 0)
        await put(case, case.make("a", "v2", seconds=5))
        # Before anybody calls it, or looks after it.
        assert case.registry.guard("a").configured
        await case.check("v2")


# Who gives the same waits for its turn all the same


async def again(case: Case, put: Put, mark: str, **config: Any) -> None:
    """Another agent, with the configuration of the one that is there: only another field is another."""
    await put(case, dataclasses.replace(case.make("a", mark, **config), failure_mode="open"))


async def remove_and_add(case: Case, config: AgentConfig) -> None:
    await case.remove()
    await case.manager.add_agent(config)


@pytest.mark.parametrize("put", [replace, reload, remove_and_add], ids=lambda put: put.__name__)
@each_way
async def test_the_same_comes_after_what_is_being_pushed(tmp_path: Path, way: Way, put: Put) -> None:
    async with guarded(way, tmp_path, "v1") as case, anyio.create_task_group() as tasks:

        async def push() -> None:
            with suppress(AgentError):
                await a_push(case, "v2")

        tasks.start_soon(push)
        await until(lambda: case.judge.asking > 0)
        await again(case, put, "v1")
        await case.check("v1")
        assert case.judge.asked == ["v1", "v2", "v1"]


@each_way
async def test_what_is_pushed_to_one_that_leaves_meanwhile_is_said_not_to_be_in_force(tmp_path: Path, way: Way) -> None:
    async with guarded(way, tmp_path, "v1") as case, anyio.create_task_group() as tasks:

        async def push() -> None:
            with pytest.raises(AgentError, match="'a' was replaced or removed meanwhile"):
                await a_push(case, "v2")

        tasks.start_soon(push)
        await until(lambda: case.judge.asking > 0)
        await case.remove()


@pytest.mark.parametrize("early", [False, True], ids=["late", "early"])
@pytest.mark.parametrize("how", ["refused", "cancelled"])
@pytest.mark.parametrize("under_way", [a_push, a_replacement, a_reload], ids=lambda under_way: under_way.__name__)
@each_put
@each_way
async def test_the_same_that_comes_to_nothing_leaves_what_was_under_way_in_force(
    tmp_path: Path, way: Way, put: Put, under_way: UnderWay, how: str, early: bool
) -> None:
    same = {"early": early, "seconds": 2}
    async with guarded(way, tmp_path, "v1", **same) as case, anyio.create_task_group() as tasks:
        tasks.start_soon(under_way, case, "v2")
        await until(lambda: case.judge.asking > 0)
        if how == "refused":
            case.judge.refused.add("v1")
            with pytest.raises(AgentError):
                await again(case, put, "v1", **same)
        else:
            # Before its turn has come, or while it is asked.
            for seconds in (1.5, 4.5):
                with anyio.move_on_after(seconds):
                    await again(case, put, "v1", **same)
        await case.check("v2")


# Of several that lead to one agent, the later waits for the earlier


@pytest.mark.parametrize("early", [False, True], ids=["late", "early"])
@pytest.mark.parametrize("how", ["refused", "cancelled"])
@each_way
async def test_one_that_comes_to_nothing_leaves_the_one_before_in_force_where_there_was_none(
    tmp_path: Path, way: Way, how: str, early: bool
) -> None:
    async with guarded(way, tmp_path, "v1") as case, anyio.create_task_group() as tasks:
        await case.remove()
        await anyio.sleep(QUIET)
        tasks.start_soon(case.change, case.make("a", "v2", early=early, seconds=5))
        await until(lambda: case.judge.asking > 0)
        with suppress(AgentError), anyio.move_on_after(2 if how == "cancelled" else QUIET):
            await case.change(case.make("a", "v3", early=early, seconds=1, refuses=how == "refused"))
        await case.check("v2")


@each_way
async def test_what_is_being_handed_over_when_it_is_lost_is_handed_over_again(tmp_path: Path, way: Way) -> None:
    """By a connection that is being made, say: it may come to be long after the agent has heard of it."""
    async with guarded(way, tmp_path, "v1") as case, anyio.create_task_group() as tasks:
        await case.remove()
        await anyio.sleep(QUIET)

        async def change() -> None:
            with anyio.move_on_after(2):
                await case.change(case.make("a", "v2", seconds=0.5))

        tasks.start_soon(change)
        await until(lambda: case.judge.asking > 0)
        # It has the mark at once, and the other one takes its own after that.
        await case.add("v3", early=True, seconds=3)
        await case.check("v3")


# Who has the configuration in the handshake is given it back by connecting anew


async def judge(event: Received) -> None:
    await event.answer(AgentResponse.block(403, "judged"))


REFUSED: Final = handshake(success=False, error="no such rules")


class Served:
    """An agent that has its configuration in the handshake, and takes no configure event."""

    def __init__(self, peer: Peer, manager: AgentManager) -> None:
        self.peer = peer
        self.manager = manager
        self.guard = registry_of(manager).guard("waf")
        self.asked = 0

    async def ask(self) -> str:
        self.asked += 1
        decision = await self.manager.process_request_headers(head(str(self.asked)))
        return str(decision.decision.body) if isinstance(decision.decision, Block) else "let go on"

    async def replace(self, new: AgentConfig) -> None:
        await self.manager.replace_agent(new)

    async def reload(self, new: AgentConfig) -> None:
        await registry_of(self.manager).change(
            [new],
            owned=["waf"],
            kept=(),
            fatal=lambda agent_id, error: True,
            routes=lambda find: lambda: None,
            drain_timeout=1.0,
        )

    async def restart(self) -> None:
        for link in tuple(self.peer.links):
            await link.aclose()


async def refused(served: Served, put: Callable[[AgentConfig], Awaitable[None]], **fields: Any) -> None:
    served.peer.greeting = REFUSED
    with pytest.raises(AgentError, match="no such rules"):
        await put(agent(served.peer, config={"rules": 2}, **fields))


async def cancelled(served: Served, put: Callable[[AgentConfig], Awaitable[None]], **fields: Any) -> None:
    served.peer.greeting = None
    with anyio.move_on_after(0.5):
        await put(agent(served.peer, config={"rules": 2}, **fields))


async def mistaken(served: Served, put: Callable[[AgentConfig], Awaitable[None]], **fields: Any) -> None:
    with pytest.raises(AgentError, match="No such file"):
        await put(agent(nowhere(), config={"rules": 2}, **fields))


@pytest.mark.parametrize("mode", ["open", "closed"])
@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("put", [Served.replace, Served.reload], ids=lambda put: put.__name__)
@pytest.mark.parametrize("how", [refused, cancelled, mistaken], ids=lambda how: how.__name__)
async def test_who_has_it_in_the_handshake_goes_on_after_another_has_failed(
    how: Callable[..., Awaitable[None]],
    put: Callable[[Served, AgentConfig], Awaitable[None]],
    connections: int,
    mode: str,
) -> None:
    peer = Peer(behaviour=judge)
    good = peer.greeting
    stream = {"connections": connections}
    async with managing(
        peer, stream=stream, connections=connections, config={"rules": 1}, failure_mode=mode
    ) as manager:
        served = Served(peer, manager)
        before = len(peer.handshakes)
        for _ in range(3):
            await how(served, partial(put, served), failure_mode=mode)
            peer.greeting = good
            await anyio.sleep(QUIET)
            assert registry_of(manager).guard("waf") is served.guard
            assert served.guard.configured
            assert await served.ask() == "judged"
            assert len(pool_of(client_in(manager)).rotation.connections) == connections
        # Nobody has lost anything to an agent that could not be connected to.
        assert (len(peer.handshakes) == before) is (how is mistaken)


async def test_a_connection_that_was_made_since_has_given_it() -> None:
    """An agent may take one connection at a time, so that none can be made beside."""
    peer = Peer(behaviour=judge)
    good = peer.greeting
    async with managing(peer, connections=1, config={"rules": 1}) as manager:
        served = Served(peer, manager)
        await refused(served, served.replace)
        await anyio.sleep(QUIET)
        assert not served.guard.configured

        peer.greeting = good
        accepted = peer.accepted
        await served.restart()
        await until(lambda: peer.accepted > accepted)
        await anyio.sleep(0.01)
        peer.greeting = REFUSED
        await anyio.sleep(QUIET)
        assert peer.accepted == accepted + 1
        assert await served.ask() == "judged"


@pytest.mark.parametrize("put", [Served.replace, Served.reload], ids=lambda put: put.__name__)
async def test_an_agent_that_could_not_be_connected_to_is_not_handed_anything_back(put: Any) -> None:
    """The configuration of the one that stays is handed to nobody anew."""
    configured = Configured()
    peer = peer_with(configured)
    async with managing(peer, connections=1, config="x") as manager:
        served = Served(peer, manager)
        for transport in (nowhere(), HttpTransport("http://typo", transport=httpx.MockTransport(_unreachable))):
            with pytest.raises(AgentError):
                await put(served, AgentConfig("waf", transport, events={EventType.REQUEST_HEADERS}, config="y"))
        assert configured.configs == ["x"]


# Who can be configured by no client has lost nothing


class Waf(Agent):
    """An agent that has its configuration from where it is served."""

    async def on_configure(self, event: object) -> None: ...

    async def on_request_headers(self, event: object) -> AgentResponse:
        return AgentResponse.block(403, "judged")


@asynccontextmanager
async def not_configurable_over_http(directory: Path) -> AsyncIterator[Any]:
    yield HttpTransport("http://agent", transport=httpx.ASGITransport(agent_app(Waf(), configurable=False)))


@asynccontextmanager
async def not_configurable_over_stream(directory: Path) -> AsyncIterator[Any]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(serve_stream, Waf(), f"unix://{directory}/a", configurable=False))
        yield f"unix://{directory}/a"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("mode", ["open", "closed"])
@pytest.mark.parametrize("put", [Served.replace, Served.reload], ids=lambda put: put.__name__)
@pytest.mark.parametrize("way", [not_configurable_over_http, not_configurable_over_stream])
async def test_an_agent_that_no_client_configures_goes_on_after_one_has_tried(
    tmp_path: Path, way: Any, put: Any, mode: str
) -> None:
    async with way(tmp_path) as transport:
        config = AgentConfig("waf", transport, events={EventType.REQUEST_HEADERS}, failure_mode=FailureMode(mode))
        async with AgentManager([config]) as manager:
            served = Served(Peer(), manager)
            for _ in range(2):
                assert await served.ask() == "judged"
                with pytest.raises(AgentError, match="it is configured where it is served, and by no client"):
                    await put(served, dataclasses.replace(config, config={"rules": 2}))
                assert served.guard.configured
                assert registry_of(manager).guard("waf") is served.guard
            assert await served.ask() == "judged"
            # Who gives it one is told so as before.
            with pytest.raises(AgentError, match="it is configured where it is served, and by no client"):
                await manager.push_config("waf", {"rules": 2})
            assert await served.ask() == "judged"


# What replaces an agent that is removed meanwhile replaces nothing that comes after it


Make = Callable[[str], AgentConfig]


async def removed(case: Case, make: Make) -> None:
    await case.remove()


async def removed_and_added(case: Case, make: Make) -> None:
    await case.remove()
    await case.manager.add_agent(make("v3"))


async def added_again_and_replaced(case: Case, make: Make) -> None:
    await removed_and_added(case, make)
    await replace(case, make("v4"))


async def reloaded_without_and_with_it(case: Case, make: Make) -> None:
    await case.change()
    await reload(case, make("v3"))


@pytest.mark.parametrize("waiting", [False, True], ids=["asking", "waiting"])
@pytest.mark.parametrize("one", [False, True], ids=["of their own", "one object"])
@pytest.mark.parametrize(
    "after",
    [removed, removed_and_added, added_again_and_replaced, reloaded_without_and_with_it],
    ids=lambda after: after.__name__,
)
async def test_a_replacement_of_what_was_removed_comes_to_nothing(
    tmp_path: Path, after: Callable[[Case, Make], Awaitable[None]], one: bool, waiting: bool
) -> None:
    async with guarded(as_object, tmp_path, "v1") as case, anyio.create_task_group() as tasks:

        def make(mark: str, **config: Any) -> AgentConfig:
            made = case.make("a", mark, **config)
            return made if one else dataclasses.replace(made, transport=Judge())

        async def replace_in_vain(mark: str) -> None:
            with pytest.raises(UnknownAgentError, match="'a'"):
                await replace(case, make(mark, seconds=5))

        tasks.start_soon(replace_in_vain, "v2")
        await anyio.sleep(1)
        if waiting:
            tasks.start_soon(replace_in_vain, "in line")
            await anyio.sleep(1)
        await after(case, make)
        there = case.registry.find("a")
        await anyio.sleep(QUIET)
        assert case.registry.find("a") is there
        if there is not None:
            assert there.config.config["mark"] == ("v4" if after is added_again_and_replaced else "v3")
            assert there.configured
            if one:
                assert case.judge.mark == there.config.config["mark"]


async def test_a_replacement_does_not_wait_for_those_of_what_was_removed(tmp_path: Path) -> None:
    async with guarded(as_object, tmp_path, "v1") as case, anyio.create_task_group() as tasks:

        async def replace_in_vain() -> None:
            with pytest.raises(UnknownAgentError, match="'a' was removed meanwhile"):
                await replace(case, dataclasses.replace(case.make("a", "v2", seconds=5), transport=Judge()))

        tasks.start_soon(replace_in_vain)
        await anyio.sleep(1)
        began = anyio.current_time()
        await removed_and_added(case, partial(case.make, "a"))
        await replace(case, dataclasses.replace(case.make("a", "v4"), transport=Judge()))
        assert anyio.current_time() < began + 1


# Who does not take its own again is asked by one task


@each_put
@each_way
async def test_one_that_can_not_be_given_its_own_again_is_looked_after_once(
    tmp_path: Path, way: Way, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    async def look(guard: Guard) -> None:
        nonlocal looks
        looks += 1
        await try_to_configure(guard)

    async with guarded(way, tmp_path, "v1") as case:
        monkeypatch.setattr(lifecycle, "try_to_configure", look)
        case.judge.refused |= {"v1", "v2"}
        for _ in range(10):
            with pytest.raises(AgentError):
                await put(case, case.make("a", "v2"))
        await anyio.sleep(QUIET)
        looks = 0
        # It is asked every 30 seconds by now.
        await anyio.sleep(300)
        assert 5 <= looks <= 11

        case.judge.refused.clear()
        await case.check("v1")
        # And it is looked after again when it is lost again.
        case.judge.refused |= {"v1", "v2"}
        with pytest.raises(AgentError):
            await put(case, case.make("a", "v2"))
        case.judge.refused.clear()
        await case.check("v1")


# What agents can tell apart


@dataclasses.dataclass
class Rules:
    mark: str = "x"
    _denies: bool = True


@dataclasses.dataclass
class OtherRules:
    mark: str = "x"


class AlwaysAlike(str):
    """Says of any text that it is the same, as classes of users may."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True


class Keeping(Agent):
    """Has a configuration also where it refuses it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.refuses = False

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        self.asked.append(event.config)
        refuses, self.refuses = self.refuses, False
        return AgentResponse.block(400) if refuses else None

    async def on_request_headers(self, event: object) -> None: ...


SHARED: Final = Rules()
#: Two configurations, whether an agent in the process can tell them apart, and whether one elsewhere can.
PAIRS: Final[list[tuple[Any, Any, bool, bool]]] = [
    ({"a": [1, 0.5, "x", None, True]}, {"a": [1, 0.5, "x", None, True]}, False, False),
    (("x", b"y"), ("x", b"y"), False, False),
    ({"a": SHARED}, {"a": SHARED}, False, False),
    ({"a": 1}, {"a": 2}, True, True),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True, True),
    ({"a": 1}, {"a": True}, True, True),
    ({"a": 0.0}, {"a": -0.0}, True, True),
    ({"a": 1}, {"a": 1.0}, True, True),
    ([1], [1, 2], True, True),
    (None, {}, True, True),
    (b"ab", "YWI=", True, True),
    ({1: "x"}, {"1": "x"}, True, True),
    (("x",), ["x"], True, False),
    (Rules(), Rules(_denies=False), True, True),
    (Rules(), Rules(), True, False),
    (OtherRules(), {"mark": "x"}, True, False),
    ({"a": AlwaysAlike("x")}, {"a": AlwaysAlike("y")}, True, True),
    (object(), object(), True, True),
]


@pytest.mark.parametrize(("one", "other", "in_process", "elsewhere"), PAIRS)
def test_what_agents_can_tell_apart_is_another_configuration(
    one: Any, other: Any, in_process: bool, elsewhere: bool
) -> None:
    for first, second in ((one, other), (other, one)):
        assert is_same_config(first, second, sent=False) is not in_process
        assert is_same_config(first, second, sent=True) is not elsewhere
        assert is_same_config(first, first, sent=False)


def test_configurations_that_contain_themselves_are_not_compared() -> None:
    one: list[Any] = []
    one.append(one)
    other: list[Any] = []
    other.append(other)
    assert not is_same_config(one, other, sent=False)


@pytest.mark.parametrize(("before", "after"), [pair[:2] for pair in PAIRS if pair[2] and pair[0] is not None])
async def test_an_agent_in_the_process_has_its_own_again_after_one_that_is_sent_alike(before: Any, after: Any) -> None:
    agent = Keeping()
    async with AgentManager([AgentConfig("a", agent, config=before)]) as manager:
        agent.refuses = True
        with pytest.raises(AgentError):
            await manager.replace_agent(AgentConfig("a", agent, config=after))
        # What it is given of a dict is a copy.
        assert len(agent.asked) == 3
        assert agent.asked[2] is before or (type(before) is dict and repr(agent.asked[2]) == repr(before))
