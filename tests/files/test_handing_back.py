"""A change that comes to nothing leaves agents in the configuration of before, also those that were asked already.

An agent that is one object, or at one address, has one configuration, and while it is replaced two guards lead to it.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any, ClassVar, cast

import anyio
import httpx
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentResponse,
    ConfigurationError,
    ConfigureEvent,
    HeaderOp,
    HttpTransport,
    RequestHeadersEvent,
)
from asgi_agents.serve import agent_app, serve_grpc, serve_stream
from asgi_agents.transports.stream.client import StreamClient
from tests.support.servers import serve

from .marking import MODULE, marker, marks
from .test_reload import Guarded, guarded


class Judge(Agent):
    """Adds its mark to a request, and has it from its configuration before it knows whether it takes that."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.mark: str | None = None
        #: Called with each configuration.
        self.when_asked: Callable[[Any], Awaitable[object]] = self.takes

    async def takes(self, config: Any) -> None: ...

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        config = event.config or {}
        self.taken.append(event.config)
        self.mark = config.get("mark")
        await self.when_asked(event.config)
        return AgentResponse.block(400, "no such mark") if config.get("refuses") else None

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.allow(request_headers=[HeaderOp.add("x-mark", str(self.mark))])


class Anew(Judge):
    """Each file that names the class has an agent of its own."""

    last: ClassVar[Judge]

    def __init__(self) -> None:
        super().__init__()
        Anew.last = self


# What the files of these tests name.
SHARED = Judge()
SECOND = Judge()
TRANSPORT: Any = None


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHARED", "SECOND"):
        monkeypatch.setitem(globals(), name, Judge())


def entry(agent_id: str, transport: Any, mark: str | None, **config: Any) -> dict[str, Any]:
    given = {} if mark is None else {"config": {"mark": mark, **config}}
    return {"id": agent_id, "transport": transport, "events": ["request_headers"], "timeout": 20, **given}


# Ways to the agent


Way = Callable[[Judge, Path], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def as_object(judge: Judge, directory: Path) -> AsyncIterator[Any]:
    yield f"{__name__}:SHARED"


@asynccontextmanager
async def as_class(judge: Judge, directory: Path) -> AsyncIterator[Any]:
    yield f"{__name__}:Anew"


@asynccontextmanager
async def _served(start: Callable[..., Any], transport: Any) -> AsyncIterator[Any]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(start)
        yield transport
        tasks.cancel_scope.cancel()


def over_stream(judge: Judge, directory: Path, framing: Any = "v2") -> Any:
    address = f"unix://{directory}/a"
    start = partial(serve_stream, judge, address, framing=framing)
    return _served(start, address if framing == "v2" else {"endpoints": address, "framing": framing})


def over_grpc(judge: Judge, directory: Path) -> Any:
    return _served(partial(serve_grpc, judge, f"unix://{directory}/a"), f"grpc+unix://{directory}/a")


@asynccontextmanager
async def over_http(judge: Judge, directory: Path) -> AsyncIterator[Any]:
    with serve(agent_app(judge)) as url:
        yield url


@asynccontextmanager
async def over_one_transport(judge: Judge, directory: Path) -> AsyncIterator[Any]:
    """The file names an object that is a transport, which both guards have."""
    with serve(agent_app(judge)) as url:
        globals()["TRANSPORT"] = HttpTransport(url)
        yield f"{__name__}:TRANSPORT"


without_grpc = pytest.mark.skipif(find_spec("grpc") is None, reason="grpcio is not installed: pip install '.[grpc]'")
WAYS = {
    "object": as_object,
    "class": as_class,
    "http": over_http,
    "one transport": over_one_transport,
    "stream": over_stream,
    "older framing": partial(over_stream, framing="envelope"),
    "grpc": over_grpc,
}
each_way = pytest.mark.parametrize(
    "way", [pytest.param(way, id=name, marks=without_grpc if name == "grpc" else ()) for name, way in WAYS.items()]
)


# Who keeps a file from being taken


@dataclass
class Case:
    """A file that is refused, for one reason."""

    it: Guarded
    transport: Any
    order: int
    judge: Judge

    def waf(self, mark: str, **config: Any) -> dict[str, Any]:
        return entry("waf", self.transport, mark, **config)

    def file(self, *agents: dict[str, Any]) -> dict[str, Any]:
        return marks(*agents[:: self.order], default_agents=["waf"])

    async def refused(self, kind: type[Exception], text: str, *agents: dict[str, Any]) -> None:
        with pytest.raises(kind, match=text):
            await self.it.take(self.file(*agents))

    @property
    def times_new(self) -> int:
        """How often the agent was asked to take what the file says."""
        return sum(config is not None and config["mark"] == "new" for config in self.judge.taken)

    async def by_another(self) -> None:
        await self.refused(AgentError, "'other'", self.waf("new"), marker("other", "new", refuses=True))
        assert self.times_new == 0

    async def by_one_out_of_reach(self) -> None:
        other = entry("other", f"unix://{self.it.file.path.parent}/nobody", "new")
        await self.refused(AgentError, "'other'", self.waf("new"), {**other, "require_at_startup": True})
        assert self.times_new == 0

    async def by_itself(self) -> None:
        await self.refused(AgentError, "'waf'", self.waf("new", refuses=True), second("old"))

    async def by_another_in_place(self) -> None:
        before = self.times_new

        async def be_the_last(config: Any) -> None:
            while self.judge is SHARED and config["mark"] == "new" and self.times_new == before:  # noqa: ASYNC110
                await anyio.sleep(0.001)

        SECOND.when_asked = be_the_last
        await self.refused(AgentError, "'other'", self.waf("new"), second("new", refuses=True))
        assert self.judge is not SHARED or self.times_new > before

    async def by_code_that_adds_an_agent(self) -> None:
        manager = self.it.middleware.manager

        async def add(config: Any) -> None:
            if config["mark"] == "new":
                await manager.add_agent(AgentConfig("added", Judge(), config={"mark": "code"}))

        SECOND.when_asked = add
        kind, text = ConfigurationError, "code has added an agent with the id 'added', expected another id"
        await self.refused(kind, text, self.waf("new"), second("new"), marker("added", "new"))
        await manager.remove_agent("added")

    async def by_whoever_cancels_it(self) -> None:
        asked = anyio.Event()

        async def wait(config: Any) -> None:
            if config["mark"] == "new":
                asked.set()
                await anyio.sleep_forever()

        SECOND.when_asked = wait
        self.it.file.write(self.file(self.waf("new"), second("new")))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.it.middleware.reload)
            await asked.wait()
            tasks.cancel_scope.cancel()


def second(mark: str, **config: Any) -> dict[str, Any]:
    return entry("other", f"{__name__}:SECOND", mark, **config)


CAUSES = [
    Case.by_another,
    Case.by_one_out_of_reach,
    Case.by_itself,
    Case.by_another_in_place,
    Case.by_code_that_adds_an_agent,
    Case.by_whoever_cancels_it,
]
each_cause = pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.__name__)


@pytest.mark.real_time
@pytest.mark.parametrize("order", [1, -1], ids=["first", "last"])
@each_cause
@each_way
async def test_a_file_that_is_refused_leaves_agents_in_their_configuration(
    tmp_path: Path, way: Way, cause: Callable[[Case], Awaitable[None]], order: int
) -> None:
    async with way(SHARED, tmp_path) as transport:
        agents = [entry("waf", transport, "old"), second("old")]
        data = marks(*agents[::order], default_agents=["waf"])
        async with guarded(tmp_path, data, imports=[__name__, MODULE]) as it:
            case = Case(it, transport, order, Anew.last if way is as_class else SHARED)
            assert await it.seen() == "old"
            for _ in range(3):
                await cause(case)
                assert await it.seen() == "old"
                assert SECOND.mark == "old"
            SECOND.when_asked = SECOND.takes
            await it.take(case.file(case.waf("good"), second("old")))
            assert await it.seen() == "good"


@pytest.mark.real_time
@pytest.mark.parametrize("cancelled", [False, True], ids=["refused", "cancelled"])
@each_way
async def test_an_agent_that_is_not_replaced_keeps_its_configuration(tmp_path: Path, way: Way, cancelled: bool) -> None:
    """The same holds for code that replaces an agent."""
    asked, over = Event(), Event()

    async def wait(config: Any) -> None:
        asked.set()
        while not over.is_set() and config["mark"] == "new":  # noqa: ASYNC110 - it may be set in another thread
            await anyio.sleep(0.001)

    async with way(SHARED, tmp_path) as transport:
        data = marks(entry("waf", transport, "old"))
        async with guarded(tmp_path, data, imports=[__name__]) as it, anyio.create_task_group() as others:
            guard = it.registry.guard("waf")
            given = Anew() if way is as_class else guard.config.transport
            config = replace(guard.config, transport=given, config={"mark": "new", "refuses": not cancelled})
            if cancelled:
                for judge in (SHARED, given):
                    if isinstance(judge, Judge):
                        judge.when_asked = wait
                asked.clear()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(it.middleware.manager.replace_agent, config)
                    while not asked.is_set():  # noqa: ASYNC110 - likewise
                        await anyio.sleep(0.001)
                    tasks.cancel_scope.cancel()
                    # An agent may go on with what it was asked by who has left.
                    others.start_soon(later, over.set)
            else:
                with pytest.raises(AgentError, match="the old one stays"):
                    await it.middleware.manager.replace_agent(config)
            assert it.registry.guard("waf") is guard
            assert await it.seen() == "old"


async def later(function: Callable[[], object]) -> None:
    await anyio.sleep(0.1)
    function()


# Who has its configuration handed back, and what it was


def shared(agent_id: str, mark: str | None, **config: Any) -> dict[str, Any]:
    return entry(agent_id, f"{__name__}:SHARED", mark, **config)


async def test_an_agent_under_another_id_is_given_back_what_it_had(tmp_path: Path) -> None:
    async with guarded(tmp_path, marks(shared("waf", "old")), imports=[__name__]) as it:
        with pytest.raises(AgentError, match="'wall'"):
            await it.take(marks({**shared("wall", "new", refuses=True), "require_at_startup": True}))
        assert SHARED.mark == "old"
        assert await it.seen() == "old"


async def test_an_agent_of_the_code_is_given_back_what_it_had(tmp_path: Path) -> None:
    async with guarded(tmp_path, marks(second("old")), imports=[__name__]) as it:
        await it.middleware.manager.add_agent(AgentConfig("hand", SHARED, config={"mark": "hand"}))
        with pytest.raises(AgentError, match="'other'"):
            await it.take(marks(shared("waf", "new"), second("new", refuses=True)))
        assert await it.seen() == "old hand"


async def test_two_agents_that_are_one_object_are_both_given_back_what_they_had(tmp_path: Path) -> None:
    async with guarded(tmp_path, marks(shared("a", "old a"), shared("b", "old b")), imports=[__name__]) as it:
        del SHARED.taken[:]
        with pytest.raises(AgentError, match="'b'"):
            await it.take(marks(shared("a", "new"), shared("b", "new", refuses=True)))
        assert {config["mark"] for config in SHARED.taken[-2:]} == {"old a", "old b"}


async def test_an_agent_of_which_only_other_fields_change_is_not_asked_in_vain(tmp_path: Path) -> None:
    data = marks(shared("waf", "old"), second("old"), default_agents=["waf"])
    async with guarded(tmp_path, data, imports=[__name__]) as it:
        del SHARED.taken[:]
        with pytest.raises(AgentError, match="'other'"):
            await it.take(marks({**shared("waf", "old"), "timeout": 9}, second("new", refuses=True)))
        assert {config["mark"] for config in SHARED.taken} <= {"old"}
        assert await it.seen() == "old"


@pytest.mark.parametrize("taken", [True, False])
async def test_an_agent_that_had_no_configuration_is_told_that_it_has_none(tmp_path: Path, taken: bool) -> None:
    async def refuse_none(config: Any) -> None:
        if config is None and not taken:
            raise ValueError("no mark")

    transport = HttpTransport("http://agent", transport=httpx.ASGITransport(agent_app(SHARED)))
    globals()["TRANSPORT"] = transport
    old = entry("waf", f"{__name__}:TRANSPORT", None)
    async with guarded(tmp_path, marks(old), imports=[__name__]) as it:
        SHARED.when_asked = refuse_none
        assert await it.seen() == "None"
        with pytest.raises(AgentError, match="'waf'"):
            await it.take(marks({**old, "config": {"mark": "new", "refuses": True}}))
        assert SHARED.taken == [{"mark": "new", "refuses": True}, None]
        # Nobody knows by what it would judge.
        assert (await it.client.get("/")).status_code == (200 if taken else 503)
        await it.take(marks({**old, "config": {"mark": "good"}}))
        assert await it.seen() == "good"


@pytest.mark.parametrize("mode", ["closed", "open"])
async def test_an_agent_that_does_not_take_its_configuration_back_is_treated_by_its_failure_mode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    broken = True

    async def take(config: Any) -> None:
        if broken and config["mark"] == "old":
            raise ValueError("no memory")

    data = {**shared("waf", "old"), "failure_mode": mode}
    async with guarded(tmp_path, marks(data), imports=[__name__]) as it:
        SHARED.when_asked = take
        with pytest.raises(AgentError, match="'waf'"):
            await it.take(marks({**data, "config": {"mark": "new", "refuses": True}}))
        [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR][:1]
        assert "agent 'waf' was asked to take another configuration, which is not in force" in line
        response = await it.client.get("/")
        assert (response.status_code, response.text) == ((503, response.text) if mode == "closed" else (200, ""))
        # It is asked again by itself.
        broken = False
        await anyio.sleep(60)
        assert SHARED.mark == "old"
        assert await it.seen() == "old"
    assert "agent 'waf' has taken its configuration" not in [r.getMessage() for r in caplog.records if r.levelno > 20]


async def test_calls_wait_while_an_agent_is_given_its_configuration_back(tmp_path: Path) -> None:
    seen: list[str] = []

    async with guarded(tmp_path, marks(shared("waf", "old")), imports=[__name__]) as it, anyio.create_task_group() as g:

        async def ask() -> None:
            seen.append(await it.seen())

        async def take(config: Any) -> None:
            if config["mark"] == "old":
                SHARED.mark = "half"
                g.start_soon(ask)
                await anyio.sleep(3)
                assert seen == []
                SHARED.mark = "old"

        SHARED.when_asked = take
        with pytest.raises(AgentError, match="'waf'"):
            await it.take(marks(shared("waf", "new", refuses=True)))
    assert seen == ["old"]


async def test_a_configuration_that_was_overwritten_twice_is_handed_over_after_the_second_time(tmp_path: Path) -> None:
    """What the agent answers to the first of two does not count: it was overwritten in between."""
    async with guarded(tmp_path, marks(shared("waf", "old")), imports=[__name__]) as it:
        configuring = it.registry.guard("waf").configuring
        asked = 0

        async def hand_over_anew() -> None:
            assert configuring.lose()
            await configuring.configure()

        async def take(config: Any) -> None:
            nonlocal asked
            asked += 1
            await anyio.sleep(1)

        SHARED.when_asked = take
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hand_over_anew)
            await anyio.sleep(0.5)
            tasks.start_soon(hand_over_anew)
        assert asked == 2
        assert configuring.done


# What has been taken stays


@pytest.mark.real_time
async def test_what_is_replaced_does_not_configure_its_agent_back_when_it_connects_anew(tmp_path: Path) -> None:
    async with over_stream(SHARED, tmp_path) as address:
        waf = partial(entry, "waf", {"endpoints": address, "connections": 1})
        async with guarded(tmp_path, marks(waf("old")), imports=[__name__]) as it:
            old = it.registry.guard("waf")
            pool = cast(StreamClient, old.client)._pools.peek()
            assert pool is not None
            # As a connection of the app does that is open.
            held = it.registry.resolved_route(None)
            held.held += 1
            await it.take(marks(waf("new")))
            assert await it.seen() == "new"
            asked = len(SHARED.taken)
            for connection in pool.connections:
                connection.fail("lost")
            while len(SHARED.taken) == asked:  # noqa: ASYNC110 - nothing else tells
                await anyio.sleep(0.001)
            assert await it.seen() == "new"
            held.held -= 1


async def test_what_is_replaced_before_it_was_configured_does_not_configure_its_agent_back(tmp_path: Path) -> None:
    down = True

    def answer(request: httpx.Request) -> Any:
        raise httpx.ConnectError("nobody listens", request=request)

    class Agents(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if down:
                answer(request)
            return await served.handle_async_request(request)

    served = httpx.ASGITransport(agent_app(SHARED))
    globals()["TRANSPORT"] = HttpTransport("http://agent", transport=Agents())
    async with guarded(tmp_path, marks(entry("waf", f"{__name__}:TRANSPORT", "old")), imports=[__name__]) as it:
        old = it.registry.guard("waf")
        assert not old.configured
        down = False
        await it.take(marks(entry("waf", f"{__name__}:TRANSPORT", "new")))
        await anyio.sleep(60)
        await old.configuring.configure()
        assert await it.seen() == "new"
