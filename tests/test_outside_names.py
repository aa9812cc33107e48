"""Agents in other processes know connections by names that no other process gives to any of its own."""

import ast
import math
import os
import string
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

import asgi_agents
from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    Answer,
    AuditRecord,
    ConfigureEvent,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    Opcode,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    WebSocketFrameEvent,
)
from asgi_agents.calls.outside import event_outside
from asgi_agents.exchange.scope import new_id
from asgi_agents.observability import correlation
from asgi_agents.observability.correlation import live_ids, outside_name
from asgi_agents.protocol import TOKEN
from asgi_agents.protocol.stream import correlation_id_of
from asgi_agents.testing import FakeAgent, override_agents
from asgi_agents.transports.base import AgentClient
from tests.support.asgi import App, Client, body, start
from tests.support.sample_events import CHUNK, COMPLETE, HEAD, QUESTION, RESPONSE_HEAD
from tests.test_correlation import HEADER, UUID7, Server

GIVEN = [(HEADER, b"given")]
EVENTS: list[Event] = [
    *(HEAD, CHUNK, RESPONSE_HEAD, COMPLETE, QUESTION),
    ConfigureEvent(agent_id="a", config={}),
    ResponseBodyChunkEvent(correlation_id="c", data=b"x", is_last=True),
    WebSocketFrameEvent(
        correlation_id="c", opcode=Opcode.TEXT, data=b"x", client_to_server=True, frame_index=0, client_ip=""
    ),
]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    yield
    assert not live_ids


# The name


def ids(count: int) -> list[str]:
    """All that a client can give, and more: the shapes on purpose, and others by chance."""
    found = ["~", "a", "a~", "~a", "x" * 128, "x" * 127 + "~", new_id(), "a/b", "caf\xe9", "two words"]
    found += [outside_name(name) for name in found] + [outside_name(outside_name(name)) for name in found]
    chance = Random(7)  # noqa: S311 - nothing secret
    characters = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~~~~"
    while len(found) < count:
        name = "".join(chance.choices(characters, k=chance.randint(1, 128)))
        found += [name, outside_name(name), name + "~", name.partition("~")[0] or "~"]
    return list(dict.fromkeys(found))


def test_ids_that_were_not_made_here_have_names_of_this_process_and_no_two_the_same() -> None:
    given = ids(5000)
    names = [outside_name(name) for name in given]
    assert len(set(names)) == len(given)
    assert len({name[len(one) :] for one, name in zip(given, names, strict=True)}) == 1
    for one, name in zip(given, names, strict=True):
        assert name.startswith(one)
        assert name == outside_name(one)
        assert 1 + 8 <= len(name) - len(one) <= 1 + 12
        assert (TOKEN.match(name) is None) == (TOKEN.match(one) is None)


def test_an_id_that_was_made_here_is_its_own_name_as_long_as_its_connection_is_open() -> None:
    made = new_id()
    live_ids[made] = True
    try:
        assert outside_name(made) is made
    finally:
        del live_ids[made]
    # Who gives it later has seen it, and may give it to any process.
    assert outside_name(made) != made
    assert outside_name("") == ""


def test_no_two_processes_have_a_name_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever each was given, the names of the other included."""
    given = ids(500)
    suffixes = [correlation._suffix]
    for _ in range(4):
        correlation._draw_suffix()
        suffixes.append(correlation._suffix)
    assert len(set(suffixes)) == 5
    # One process after the other is given all names of those before.
    seen: set[str] = set()
    for suffix in suffixes:
        monkeypatch.setattr(correlation, "_suffix", suffix)
        names = {outside_name(name) for name in (*given, *seen)}
        assert names.isdisjoint(seen)
        seen |= names


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't fork here")
def test_a_process_that_was_forked_has_names_of_its_own() -> None:
    program = """if True:
        import os
        from asgi_agents.observability.correlation import live_ids, outside_name
        live_ids["made"] = True
        print(outside_name("a"), flush=True)
        for _ in range(2):
            if not os.fork():
                print(outside_name("a"), outside_name("made"), flush=True)
                if not os.fork():
                    print(outside_name("a"), flush=True)
                    os._exit(0)
                os.wait()
                os._exit(0)
            os.wait()
        print(outside_name("a"), outside_name("made"))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [len(line) for line in lines] == [1, 2, 1, 2, 1, 2]
    assert lines[0][0] == lines[5][0]
    assert len({line[0] for line in lines}) == 5
    # It has none of its parent's connections: what was made there was not made here.
    assert lines[5][1] == "made"
    assert all(lines[number][1].startswith("made~") for number in (1, 3))


# Events


def test_there_is_an_event_of_each_kind() -> None:
    assert {event.event_type for event in EVENTS} == set(EventType)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event_type.value)
def test_an_event_leaves_with_the_name_and_is_the_same_otherwise(event: Any) -> None:
    out: Any = event_outside(event)
    if isinstance(event, ConfigureEvent):
        assert out is event
        return
    assert correlation_id_of(out) == outside_name(correlation_id_of(event)) != correlation_id_of(event)
    back = {"correlation_id": correlation_id_of(event)}
    if isinstance(event, RequestHeadersEvent):
        back = {"metadata": replace(out.metadata, **back)}
    assert replace(out, **back) == event
    live_ids[correlation_id_of(event)] = True
    try:
        assert event_outside(event) is event
    finally:
        live_ids.clear()


# In connections


class Elsewhere(AgentClient):
    """A client that notes what it is handed. It reserves places, as those with lasting connections do, or does not."""

    kind = "fake"
    remote = True
    keeps_requests = True

    def __init__(self, remote: bool, reserves: bool) -> None:
        self.remote = remote
        self.reserves = reserves
        self.hears = frozenset(EventType) - {EventType.CONFIGURE}
        self.handed: defaultdict[str, list[Any]] = defaultdict(list)
        self.fails = False

    def reserve_now(self, event: Event) -> Any:
        self._note("reserve_now", event)

    async def reserve(self, event: Event, *, hold: bool) -> Any:
        self._note("reserve", event)
        return self

    async def call(self, event: Event, deadline: float = math.inf) -> Answer | None:
        self._note("call", event)
        await anyio.lowlevel.checkpoint()
        if self.fails:
            raise asgi_agents.AgentError("it fails")
        return GuardrailResponse(detected=False) if isinstance(event, GuardrailInspectEvent) else None

    def why_waiting(self, event: Event) -> str:
        self._note("why_waiting", event)
        return ""

    def holds(self, event_type: EventType, correlation_id: str) -> bool:
        self.handed["holds"].append(correlation_id)
        return False

    def forget(self, correlation_id: str) -> None:
        self.handed["forget"].append(correlation_id)

    def _note(self, what: str, event: Event) -> None:
        self.handed[what].append(correlation_id_of(event))
        self.handed["types"].append(event.event_type)

    @property
    def names(self) -> set[str]:
        """All names that it was handed."""
        return {name for what, names in self.handed.items() if what != "types" for name in names}


class Somewhere:
    """Its transport."""

    kind = "fake"
    carries = frozenset(EventType)
    events = frozenset(EventType) - {EventType.CONFIGURE}

    def __init__(self, *, remote: bool = True, reserves: bool = False) -> None:
        self.remote = remote
        self.client = Elsewhere(remote, reserves)

    def bind(self, agent_id: str, **_: Any) -> AgentClient:
        return self.client


class Seen(Agent):
    """An agent in the process, which notes all ids."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    async def on_request_headers(self, event: Any) -> None:
        self.ids.add(event.correlation_id)

    on_request_body_chunk = on_response_headers = on_response_body_chunk = on_request_headers
    on_request_complete = on_websocket_frame = on_request_headers


async def asking(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that reads its body, asks an agent, and answers."""
    while (await receive()).get("more_body"):
        pass
    await scope["state"]["agents"].inspect_guardrail("a", "text", inspection_type="pii_detection")
    for message in (start(200), body(b"x", more=True), body(b"y")):
        await send(message)


def configs(where: Somewhere, seen: Agent, **options: Any) -> list[AgentConfig]:
    modes: dict[str, Any] = {"request_body_mode": "stream", "response_body_mode": "stream"}
    return [AgentConfig("a", where, **{**modes, **options}), AgentConfig("seen", seen, **modes)]


HTTP = {kind for kind in EventType if kind not in (EventType.CONFIGURE, EventType.WEBSOCKET_FRAME)}


@pytest.mark.parametrize("reserves", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("headers", [GIVEN, []], ids=["given", "made"])
async def test_all_that_is_handed_to_an_agent_elsewhere_has_the_one_name_of_the_connection(
    headers: Any, depth: int, reserves: bool
) -> None:
    """However many middlewares it passes."""
    where, seen = Somewhere(reserves=reserves), Seen()
    managers = [AgentManager(configs(where, seen)) for _ in range(depth)]
    app: Any = asking
    for manager in managers:
        app = AgentMiddleware(app, manager=manager, expose_correlation_id=True)
    client = Client("POST", headers=headers, body=[b"1", b"2"])
    await client.call(app)
    assert client.status == 200
    (own,) = seen.ids
    (name,) = where.client.names
    assert set(where.client.handed["types"]) == HTTP
    assert len(where.client.handed["forget"]) >= depth
    assert client.header(HEADER) == own.encode()
    if headers:
        assert own == "given"
        assert name.startswith("given~")
    else:
        assert UUID7.match(own)
        assert name == own


@pytest.mark.parametrize("headers", [GIVEN, []], ids=["given", "made"])
async def test_so_have_messages_of_a_websocket(headers: Any) -> None:
    where, seen = Somewhere(), Seen()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})
        await send({"type": "websocket.close"})

    await Server(*headers).call(AgentMiddleware(app, agents=configs(where, seen)))
    (own,) = seen.ids
    assert EventType.WEBSOCKET_FRAME in where.client.handed["types"]
    assert where.client.names == {f"given{correlation._suffix}" if headers else own}


@pytest.mark.parametrize("headers", [GIVEN, []], ids=["given", "made"])
async def test_so_has_a_failure_and_what_was_skipped(headers: Any) -> None:
    where, seen = Somewhere(), Seen()
    where.client.fails = True
    app = AgentMiddleware(App(), agents=configs(where, seen, max_request_body_bytes=1, failure_mode="open"))
    await Client("POST", headers=headers, body=b"123").call(app)
    (own,) = seen.ids
    assert len(where.client.handed["holds"]) > 1
    assert where.client.names == {f"given{correlation._suffix}" if headers else own}


@pytest.mark.parametrize("headers", [GIVEN, []], ids=["given", "made"])
async def test_so_has_a_call_that_outlasts_its_connection(headers: Any) -> None:
    """And those that begin after it."""
    where, seen = Somewhere(), Seen()
    left: Any = None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal left
        left = partial(scope["state"]["agents"].inspect_guardrail, "a", "x", inspection_type="pii_detection")
        await App()(scope, receive, send)

    inner = AgentMiddleware(app, agents=configs(where, seen))
    await Client(headers=headers).call(AgentMiddleware(inner, manager=inner.manager))
    forgotten = len(where.client.handed["forget"])
    await left()
    assert len(where.client.handed["forget"]) > forgotten
    (own,) = seen.ids
    assert where.client.names == {f"given{correlation._suffix}" if headers else own}


async def test_an_inner_middleware_that_ends_last_has_its_agents_forget_the_same_name() -> None:
    """An app around it may leave it behind."""
    where, seen = Somewhere(), Seen()
    for headers in (GIVEN, []):
        where.client.handed.clear()
        seen.ids.clear()
        go, begun = anyio.Event(), anyio.Event()

        async def app(scope: Scope, receive: Receive, send: Send, go: Any = go, begun: Any = begun) -> None:
            begun.set()
            await go.wait()

        inner = AgentMiddleware(app, agents=configs(where, seen))
        async with anyio.create_task_group() as tasks:

            async def leaving(
                scope: Scope, receive: Receive, send: Send, tasks: Any = tasks, inner: Any = inner, begun: Any = begun
            ) -> None:
                tasks.start_soon(inner, scope, receive, send)
                await begun.wait()
                await App()(scope, receive, send)

            await Client(headers=headers).call(AgentMiddleware(leaving, agents=[AgentConfig("other", Seen())]))
            assert not where.client.handed["forget"]
            go.set()
        (own,) = seen.ids
        assert where.client.handed["forget"]
        assert where.client.names == {f"given{correlation._suffix}" if headers else own}


async def test_agents_in_the_process_keep_the_id_of_the_client() -> None:
    where, seen = Somewhere(remote=False), Seen()
    await Client("POST", headers=GIVEN, body=b"x").call(AgentMiddleware(asking, agents=configs(where, seen)))
    assert where.client.names == seen.ids == {"given"}


async def test_so_does_one_that_stands_in_for_a_remote_one() -> None:
    where, seen, stand_in = Somewhere(), Seen(), FakeAgent()
    app = AgentMiddleware(App(), agents=configs(where, seen))
    with override_agents(app, a=stand_in):
        await Client(headers=GIVEN).call(app)
    assert {correlation_id_of(event) for event in stand_in.received} == {"given"}


async def test_verdicts_and_audit_name_the_connection_as_the_client_does() -> None:
    where, seen = Somewhere(), Seen()
    records: list[AuditRecord] = []
    where.client.fails = True
    app = AgentMiddleware(App(), agents=configs(where, seen), on_audit=records.append)
    await Client(headers=GIVEN).call(app)
    assert [record.correlation_id for record in records] == ["given"]
    assert f"given{correlation._suffix}" in where.client.names


async def test_ids_that_the_application_has_chosen_have_names_too() -> None:
    """A manager without a middleware; the id may well be the client's."""
    where = Somewhere()
    manager = AgentManager([AgentConfig("a", where)])
    await manager.process_request_headers(HEAD)
    await manager.process_request_body(CHUNK)
    await manager.process_request_complete(COMPLETE)
    manager.forget_request("a", HEAD.correlation_id)
    assert len(where.client.handed["call"]) == 3
    assert where.client.names == {outside_name("c")}


async def test_a_handler_that_asks_by_the_manager_asks_about_its_connection() -> None:
    where, seen = Somewhere(), Seen()
    for headers in (GIVEN, []):
        where.client.handed.clear()
        manager = AgentManager(configs(where, seen))

        async def app(scope: Scope, receive: Receive, send: Send, manager: AgentManager = manager) -> None:
            own = scope["state"]["agents"].correlation_id
            question = GuardrailInspectEvent(correlation_id=own, inspection_type="pii_detection", content="x")
            await manager.call_guardrail_agent("a", question)
            await App()(scope, receive, send)

        await Client(headers=headers).call(AgentMiddleware(app, manager=manager))
        assert len(where.client.names) == 1
        assert len(where.client.handed["call"]) > 2


# One owner

#: Who hands ids and events to clients: the guard, which names them, and the steps around a call, which have theirs
#: from it. Transports hand them on to parts of their own.
OWNERS = ("guard.py", "calls", "transports")
HANDING = {"reserve_now", "reserve", "holds", "forget", "is_paused", "why_waiting"}


def _clients_handed(tree: ast.AST) -> list[str]:
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in HANDING | {"call"}
        and isinstance(node.value, ast.Attribute | ast.Name)
        and ast.unparse(node.value).rpartition(".")[2].strip("_") == "client"
    ]


def test_nobody_hands_an_id_or_an_event_to_a_client_but_its_guard() -> None:
    root = Path(asgi_agents.__file__).parent
    found: Mapping[str, list[str]] = {
        path.relative_to(root).as_posix(): handed
        for path in root.rglob("*.py")
        if (handed := _clients_handed(ast.parse(path.read_text())))
    }
    assert "guard.py" in found
    assert [where for where in found if where.split("/")[0] not in OWNERS] == []
