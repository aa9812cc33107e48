"""What the app receives: each message once, judged once, whatever the app gives up in between."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentResponse, BodyMode, RequestHeadersEvent
from asgi_agents.exchange.inbound import Inbound
from tests.support.asgi import DISCONNECT, Answer, Client, Held, Probe, SlowProbe, assert_nothing_left, guarded, settle

STREAM = BodyMode.STREAM


async def _move_on(receive: Receive) -> Message | None:
    with anyio.move_on_after(0.01):
        return await receive()
    return None


async def _cancelled_scope(receive: Receive) -> Message | None:
    """As ``Request.is_disconnected()`` does."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        return await receive()
    return None


async def _wait_for(receive: Receive) -> Message | None:
    with suppress(asyncio.TimeoutError):
        return await asyncio.wait_for(receive(), 0.01)
    return None


async def _other_task(receive: Receive) -> Message | None:
    got: list[Message] = []

    async def run() -> None:
        got.append(await receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await settle()
        tasks.cancel_scope.cancel()
    return got[0] if got else None


GIVING_UP = {"move_on_after": _move_on, "cancelled scope": _cancelled_scope, "other task": _other_task}
each_way_of_giving_up = pytest.mark.parametrize("give_up", GIVING_UP.values(), ids=GIVING_UP)
GiveUp = Callable[[Receive], Awaitable[Message | None]]


async def _read_all(receive: Receive, give_up: GiveUp) -> list[Message]:
    """Read to the end, giving up each message once if it takes a while."""
    got: list[Message] = []
    while True:
        message = await give_up(receive)
        if message is None:
            message = await receive()
        got.append(message)
        if message["type"] != "http.request" or not message["more_body"]:
            return got


@each_way_of_giving_up
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
@pytest.mark.parametrize("write", [True, False], ids=["writer", "reader"])
async def test_a_message_that_the_app_gives_up_while_it_is_judged_is_judged_once_and_comes_with_the_next_receive(
    give_up: GiveUp, declared: bool, write: bool
) -> None:
    got: list[Message] = []

    async def react(event: Any) -> Answer:
        await anyio.sleep(0.02)
        return None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.extend(await _read_all(receive, give_up))

    agent = SlowProbe(request_body=react)
    client = Client("POST", body=[b"one", b"two"])
    if declared:
        client.scope["headers"] = [(b"content-length", b"6")]
    middleware = guarded(
        app, AgentConfig("a", agent, request_body_mode=STREAM, body_access="write" if write else "read")
    )
    await client.call(middleware)
    assert [message["body"] for message in got] == [b"one", b"two"]
    assert agent.chunks == [(0, b"one", False), (1, b"two", True)]
    assert_nothing_left(middleware.manager)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_message_that_asyncio_wait_for_gives_up_is_not_lost(anyio_backend: str) -> None:
    got: list[Message] = []

    async def react(event: Any) -> Answer:
        await anyio.sleep(0.02)
        return None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.extend(await _read_all(receive, _wait_for))

    agent = SlowProbe(request_body=react)
    await Client("POST", body=[b"one", b"two"]).call(guarded(app, AgentConfig("a", agent, request_body_mode=STREAM)))
    assert [message["body"] for message in got] == [b"one", b"two"]
    assert agent.chunks == [(0, b"one", False), (1, b"two", True)]


@each_way_of_giving_up
async def test_a_body_without_end_that_nobody_declared_is_not_lost_either(give_up: GiveUp) -> None:
    got: list[Message] = []

    async def react(event: Any) -> Answer:
        await anyio.sleep(0.02)
        return None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.extend(await _read_all(receive, give_up))

    client = Client("POST", http_version="2", body=[b"one", b"two"])
    client.scope["headers"] = []
    agent = SlowProbe(request_body=react)
    await client.call(guarded(app, AgentConfig("a", agent, request_body_mode=STREAM)))
    assert [message["body"] for message in got] == [b"one", b"two"]


class SlowAtTheHead(Probe):
    """Its body hook never suspends, but may have to wait for a permit that somebody else's head holds."""

    def __init__(self, head: Held) -> None:
        super().__init__(request_headers=None, request_body=None)
        self._head = head

    async def on_request_headers(self, event: RequestHeadersEvent) -> Answer:
        return await self._head(event) if event.uri == "/other" else None


@each_way_of_giving_up
async def test_a_message_that_waits_for_a_permit_is_not_lost(give_up: GiveUp) -> None:
    got: list[Message] = []
    head, running = Held(), anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/other":
            return
        running.set()
        await head.reached.wait()
        message = await give_up(receive)
        head.gate.set()
        await settle()
        if message is not None:
            got.append(message)
        while len(got) < 2:
            got.append(await receive())

    agent = SlowAtTheHead(head)
    middleware = guarded(app, AgentConfig("a", agent, request_body_mode=STREAM, max_concurrent_calls=1, timeout=5))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Client("POST", body=[b"one", b"two"]).call, middleware)
            await running.wait()
            tasks.start_soon(Client(path="/other").call, middleware)
    assert [message["body"] for message in got] == [b"one", b"two"]
    assert agent.chunks == [(0, b"one", False), (1, b"two", True)]
    assert_nothing_left(middleware.manager)


async def test_a_receive_given_up_while_nothing_is_there_loses_nothing(probe: type[Probe]) -> None:
    got: list[Message] = []
    client = Client("POST", unfinished=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for give_up in GIVING_UP.values():
            assert await give_up(receive) is None
        client.give(b"one", more=True)
        got.append(await receive())
        assert await _move_on(receive) is None
        client.give(b"two")
        got.append(await receive())

    await client.call(guarded(app, AgentConfig("a", probe(request_body=None), request_body_mode=STREAM)))
    assert [message["body"] for message in got] == [b"one", b"two"]


async def test_a_message_that_is_there_is_handed_on_in_a_cancelled_scope() -> None:
    """What a hook that does not suspend has to say, it says in one step."""
    got: list[Message | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await _cancelled_scope(receive))
        got.append(await _cancelled_scope(receive))

    client = Client("POST", body=[b"one", b"two"])
    await client.call(guarded(app, AgentConfig("a", Probe(request_body=None), request_body_mode=STREAM)))
    assert [message and message["body"] for message in got] == [b"one", b"two"]


async def test_a_message_that_was_judged_in_the_meantime_is_there_at_once() -> None:
    got: list[Message | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await _cancelled_scope(receive))
        await settle()
        got.append(await _cancelled_scope(receive))

    client = Client("POST", body=[b"one", b"two"])
    await client.call(guarded(app, AgentConfig("a", SlowProbe(request_body=None), request_body_mode=STREAM)))
    assert got[0] is None
    assert got[1] is not None
    assert got[1]["body"] == b"one"


async def test_nothing_is_read_ahead_of_the_app(probe: type[Probe]) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(client.received)
        await receive()
        await settle()
        seen.append(client.received)

    client = Client("POST", body=[b"one", b"two", b"three"])
    await client.call(guarded(app, AgentConfig("a", probe(request_body=None), request_body_mode=STREAM)))
    assert seen == [0, 1]


async def test_while_a_message_is_judged_the_next_is_not_read() -> None:
    held, client = Held(), Client("POST", body=[b"one", b"two"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read_twice, receive)
            await held.reached.wait()
            await settle()
            assert client.received == 1
            held.gate.set()

    async def _read_twice(receive: Receive) -> None:
        await receive()
        await receive()

    agent = SlowProbe(request_body=held)
    await client.call(guarded(app, AgentConfig("a", agent, request_body_mode=STREAM)))
    assert [data for _, data, _ in agent.chunks] == [b"one", b"two"]


async def test_two_tasks_of_the_app_that_wait_for_one_judgement_get_one_message_each() -> None:
    held, client = Held(), Client("POST", body=[b"one", b"two"])
    got: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def read() -> None:
            got.append((await receive())["body"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await held.reached.wait()
            tasks.start_soon(read)
            await settle()
            held.gate.set()

    await client.call(guarded(app, AgentConfig("a", SlowProbe(request_body=held), request_body_mode=STREAM)))
    assert got == [b"one", b"two"]


async def test_tasks_that_receive_at_the_same_time_get_the_messages_in_the_order_in_which_they_asked(
    probe: type[Probe],
) -> None:
    got: list[tuple[str, bytes]] = []
    client = Client("POST", unfinished=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def read(name: str) -> None:
            got.append((name, (await receive())["body"]))

        async with anyio.create_task_group() as tasks, anyio.create_task_group() as impatient:
            for name in ("first", "second"):
                tasks.start_soon(read, name)
                await settle()
            impatient.start_soon(read, "gives up")
            await settle()
            tasks.start_soon(read, "third")
            await settle()
            impatient.cancel_scope.cancel()
            for piece in (b"one", b"two", b"three"):
                client.give(piece, more=True)

    with anyio.fail_after(5):
        await client.call(guarded(app, AgentConfig("a", probe(request_body=None), request_body_mode=STREAM)))
    assert got == [("first", b"one"), ("second", b"two"), ("third", b"three")]


async def test_all_who_wait_for_a_message_are_told_of_the_end(probe: type[Probe]) -> None:
    got: list[Message] = []
    client = Client("POST", unfinished=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def read() -> None:
            got.append(await receive())

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read)
            await settle()
            client.give(b"evil", more=True)

    agent = AgentConfig("a", probe(request_body=AgentResponse.block()), request_body_mode=STREAM)
    with anyio.fail_after(5):
        await client.call(guarded(app, agent))
    assert got == [DISCONNECT] * 3
    assert client.status == 403


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    readers=st.integers(1, 4),
    patience=st.lists(st.booleans(), max_size=12),
    pieces=st.integers(1, 12),
    kind=st.sampled_from([Probe, SlowProbe]),
)
async def test_however_many_read_and_give_up_no_message_is_lost_or_out_of_order(
    readers: int, patience: list[bool], pieces: int, kind: type[Probe]
) -> None:
    got: list[bytes] = []
    whole = [b"%d" % index for index in range(pieces)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def read() -> None:
            while len(got) < pieces:
                with anyio.CancelScope() as given_up:
                    if not (patience.pop() if patience else True):
                        given_up.cancel()
                    message = await receive()
                    if message["type"] == "http.request":
                        got.append(message["body"])
                await checkpoint()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for _ in range(readers):
                tasks.start_soon(read)

    with anyio.fail_after(5):
        agent = AgentConfig("a", kind(request_body=None), request_body_mode=STREAM)
        await Client("POST", body=whole, unfinished=True).call(guarded(app, agent))
    assert got == whole


async def test_a_judgement_that_the_app_does_not_wait_for_ends_with_the_app() -> None:
    held, client = Held(), Client("POST", body=[b"one"])

    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        await _cancelled_scope(receive)
        await held.reached.wait()
        return "returned by the app"

    middleware = guarded(app, AgentConfig("a", SlowProbe(request_body=held), request_body_mode=STREAM))
    assert await client.call(middleware) == "returned by the app"
    assert held.cancelled == 1
    assert_nothing_left(middleware.manager)


async def test_a_block_that_the_app_gave_up_waiting_for_is_answered_all_the_same() -> None:
    held, client = Held(AgentResponse.block(403, "denied")), Client("POST", body=[b"one"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await _cancelled_scope(receive)
        await held.reached.wait()
        held.gate.set()
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        await client.call(guarded(app, AgentConfig("a", SlowProbe(request_body=held), request_body_mode=STREAM)))
    assert (client.status, client.body) == (403, b"denied")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    pieces=st.lists(st.binary(max_size=4), min_size=1, max_size=6),
    manners=st.lists(st.booleans(), max_size=12),
    mode=st.sampled_from([BodyMode.BUFFER, STREAM, BodyMode.hybrid(3)]),
    agents=st.lists(st.tuples(st.sampled_from([Probe, SlowProbe]), st.booleans()), min_size=1, max_size=2),
)
async def test_whatever_the_app_gives_up_it_gets_every_byte_once_and_in_order(
    pieces: list[bytes], manners: list[bool], mode: BodyMode, agents: list[tuple[type[Probe], bool]]
) -> None:
    got: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        patience = iter(manners)
        while True:
            message = await receive() if next(patience, True) else await _cancelled_scope(receive)
            if message is None:
                await checkpoint()
                continue
            got.append(message["body"])
            if not message["more_body"]:
                break

    probes = [kind(request_body=None) for kind, _ in agents]
    middleware = guarded(
        app,
        *(
            AgentConfig(f"a{index}", probe, request_body_mode=mode, body_access="write" if write else "read")
            for index, (probe, (_, write)) in enumerate(zip(probes, agents, strict=True))
        ),
    )
    with anyio.fail_after(5):
        await Client("POST", body=pieces).call(middleware)
    whole = b"".join(pieces)
    assert b"".join(got) == whole
    for probe in probes:
        assert b"".join(data for _, data, _ in probe.chunks) == whole
        assert [index for index, _, _ in probe.chunks] == list(range(len(probe.chunks)))
    assert_nothing_left(middleware.manager)


async def test_unknown_messages_are_handed_on(probe: type[Probe]) -> None:
    got: list[Message] = []
    message: Message = {"type": "http.tomorrow"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await receive())

    client = Client("POST", unfinished=True)
    client._inbox.append(message)
    await client.call(guarded(app, AgentConfig("a", probe(request_body=None), request_body_mode=STREAM)))
    assert got == [message]


async def test_what_receive_raises_comes_out(probe: type[Probe]) -> None:
    async def receive() -> Message:
        raise OSError("broken")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    for mode in (BodyMode.BUFFER, STREAM):
        client = Client("POST", unfinished=True)
        middleware = guarded(app, AgentConfig("a", probe(request_body=None), request_body_mode=mode))
        with pytest.raises(OSError, match="broken"):
            await middleware(client.scope, receive, client.send)


# The part itself


class _Wire:
    """A source of messages, and a judge who takes a moment."""

    def __init__(self, messages: Sequence[Message], *, slow: bool, wakeable: bool = False) -> None:
        self._messages = list(messages)
        self._slow = slow
        self.judged: list[Message] = []
        self.inbound = Inbound(
            self.source,
            screen=lambda message: message["type"] == "plain",
            judge=self.judge,
            may_suspend=lambda: slow,
            wakeable=wakeable,
        )

    async def source(self) -> Message:
        if not self._messages:
            await anyio.sleep_forever()
        return self._messages.pop(0)

    async def judge(self, message: Message) -> None:
        if self._slow:
            await checkpoint()
        self.judged.append(message)
        if message["type"] == "bad":
            raise KeyError("bad")
        if message["type"] == "broken":
            self.inbound.deliver(message)
            raise KeyError("broken")
        if message["type"] in ("end", "late"):
            self.inbound.end({"type": "ended"})
        if message["type"] == "end":
            return
        if message["type"] != "swallowed":
            self.inbound.deliver(message)


def _of(*kinds: str) -> list[Message]:
    return [{"type": kind} for kind in kinds]


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "prompt"])
async def test_messages_come_in_order_however_they_are_judged(slow: bool) -> None:
    wire = _Wire(_of("judged", "plain", "swallowed", "judged"), slow=slow)
    got = []

    async def app() -> str:
        got.extend([await wire.inbound.receive() for _ in range(3)])
        return "returned"

    assert await wire.inbound.run_app(app, beside=slow) == "returned"
    assert [message["type"] for message in got] == ["judged", "plain", "judged"]
    assert [message["type"] for message in wire.judged] == ["judged", "swallowed", "judged"]


async def test_messages_pulled_before_the_app_runs_come_first() -> None:
    wire = _Wire(_of("judged", "swallowed", "plain", "judged"), slow=False)
    assert [(await wire.inbound.pull())["type"] for _ in range(3)] == ["judged", "swallowed", "plain"]
    assert [(await wire.inbound.receive())["type"] for _ in range(3)] == ["judged", "plain", "judged"]


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "prompt"])
async def test_after_the_end_there_is_nothing_else(slow: bool) -> None:
    wire = _Wire(_of("judged", "end", "judged"), slow=slow)
    await wire.inbound.pull()
    got = []

    async def app() -> None:
        got.extend([await wire.inbound.receive() for _ in range(4)])

    await wire.inbound.run_app(app, beside=slow)
    assert [message["type"] for message in got] == ["judged", "ended", "ended", "ended"]


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "prompt"])
async def test_a_message_that_is_judged_after_the_end_is_discarded(slow: bool) -> None:
    wire = _Wire(_of("late", "judged"), slow=slow)
    got = []

    async def app() -> None:
        got.extend([await wire.inbound.receive() for _ in range(3)])

    await wire.inbound.run_app(app, beside=slow)
    assert [message["type"] for message in got] == ["ended"] * 3


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "prompt"])
async def test_a_message_whose_judgement_fails_in_the_end_is_discarded(slow: bool) -> None:
    wire = _Wire(_of("broken", "judged"), slow=slow)

    async def app() -> None:
        with pytest.raises(KeyError, match="broken"):
            await wire.inbound.receive()

    await wire.inbound.run_app(app, beside=slow)


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "prompt"])
async def test_an_error_in_judging_is_raised_by_receive(slow: bool) -> None:
    wire = _Wire(_of("bad", "judged"), slow=slow)

    async def app() -> None:
        with pytest.raises(KeyError, match="bad"):
            await wire.inbound.receive()

    await wire.inbound.run_app(app, beside=slow)


async def test_the_end_wakes_a_reader_if_the_server_would_not() -> None:
    wire = _Wire([], slow=False, wakeable=True)
    got = []

    async def app() -> None:
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                got.append(await wire.inbound.receive())

            tasks.start_soon(read)
            await settle()
            wire.inbound.end(DISCONNECT)

    with anyio.fail_after(5):
        await wire.inbound.run_app(app, beside=False)
    assert got == [DISCONNECT]


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "alone"])
async def test_an_apps_error_comes_out_of_run_app_as_it_is(beside: bool) -> None:
    wire = _Wire([], slow=beside)
    error = KeyError("the app's own")

    async def app() -> None:
        raise error

    with pytest.raises(KeyError) as raised:
        await wire.inbound.run_app(app, beside=beside)
    assert raised.value is error


async def test_an_apps_error_is_not_lost_to_a_cancellation_while_its_tasks_end() -> None:
    wire = _Wire([], slow=True)
    error = KeyError("the app's own")

    async def linger() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await settle()

    async def app() -> None:
        assert wire.inbound.tasks is not None
        wire.inbound.tasks.start_soon(linger)
        await settle()
        raise error

    with anyio.CancelScope() as scope, pytest.raises(KeyError) as raised:
        await wire.inbound.run_app(app, beside=True)
    assert raised.value is error
    assert wire.inbound.tasks is None
