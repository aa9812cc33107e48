"""Guardrails around the messages of a websocket, in both directions. Time is virtual."""

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import anyio
import pytest
from fastapi import FastAPI, WebSocket
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentResponse,
    AgentRoute,
    BodyMutation,
    ClosedByAgent,
    FailureMode,
    WebSocketFrameEvent,
    protect,
)
from asgi_agents.guardrails import Block, Decision, Guardrail, ToolPolicy, Window
from asgi_agents.guardrails.message_stream import MessageStream
from asgi_agents.guardrails.slots import KINDS
from tests.exchange.test_websocket import App, Server, accept, run, send_close, send_frame, websocket_scope
from tests.guardrails.detectors import EMAIL, detector, redacted
from tests.guardrails.test_message_stream import SHAPES, TEXT, cut, delta, event, said
from tests.guardrails.wired.exchanging import (
    Detecting,
    Finder,
    Guarded,
    Rewriting,
    SettlingFinder,
    SlowFinder,
    blocking,
    failing,
    one,
    seeded,
)

pytestmark = pytest.mark.anyio

_INPUT: Final = {"input"}
_OUTPUT: Final = {"output"}
_EMAILS: Final = detector(EMAIL)
_REALTIME: Final = "/v1/realtime"
_REASON: Final = "the policy says no"


def finding(kind: str, find: Any = _EMAILS) -> Any:
    match kind:
        case "at once":
            return Finder(find)
        case "settling":
            return SettlingFinder(find)
        case _:
            return SlowFinder(find, lambda: 0.01)


finders = pytest.mark.parametrize("finder", ["at once", "settling", "slow"])


class Timed(Server):
    """Notes when the client was sent what."""

    def __init__(self, *frames: str | bytes, then_leaves: bool = False) -> None:
        super().__init__(*frames, then_leaves=then_leaves)
        self.times: list[tuple[float, Message]] = []

    async def send(self, message: Message) -> None:
        await super().send(message)
        self.times.append((anyio.current_time(), message))


class Says:
    """Accepts, says what it is given, with numbers as seconds that it waits, and closes."""

    def __init__(self, *says: str | bytes | float, closes: bool = True) -> None:
        self.says = says
        self.closes = closes
        self.said = 0
        self.finished = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for piece in self.says:
            if isinstance(piece, float):
                await anyio.sleep(piece)
            else:
                await send_frame(send, piece)
                self.said += 1
        if self.closes:
            await send_close(send)
        self.finished = True


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await accept(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


# What passes


@finders
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_client_gets_what_redacting_all_of_it_at_once_gives(shape: str, finder: str) -> None:
    make, joined = SHAPES[shape]
    for seed in range(4):
        server = Server()
        await run(one(Says(*make(cut(TEXT, seeded(shape, seed)))), finding(finder)).middleware, server, _REALTIME)
        assert joined(server.frames) == redacted(TEXT, _EMAILS) != TEXT
        assert server.types[-1] == "close"


@finders
@pytest.mark.parametrize("shape", ["text", "bytes", "json"])
async def test_the_app_gets_what_redacting_all_of_it_at_once_gives(shape: str, finder: str) -> None:
    make, joined = SHAPES[shape]
    for seed in range(4):
        app, server = App(), Server(*make(cut(TEXT, seeded(shape, seed))), then_leaves=True)
        await run(one(app, finding(finder)).middleware, server)
        assert joined(app.got) == redacted(TEXT, _EMAILS) != TEXT
        assert app.disconnect["code"] == 1001


@finders
async def test_messages_without_a_find_are_the_same(finder: str) -> None:
    messages: list[str | bytes] = ['{"a": [1, "x"]}', b"\x01\x02", "text ", "", '{"b":  "\\u00e9"}', b"{}"]
    app, server = App(*messages), Server(*messages, then_leaves=True)
    app.frames = tuple(messages)
    server = Server(*messages)
    guarded = one(echo, finding(finder)).middleware

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, guarded, server)
        await anyio.sleep(5)
        server.client_leaves()

    assert server.frames == messages


async def test_what_a_person_says_is_answered_although_nothing_follows() -> None:
    for finder in ("at once", "slow"):
        server = Timed("hello, I am alice@example.com")
        guarded = one(echo, finding(finder), max_hold=0.5).middleware
        async with anyio.create_task_group() as tasks:
            began = anyio.current_time()
            tasks.start_soon(run, guarded, server)
            await anyio.sleep(3)
            assert server.frames == ["hello, I am [0]"]
            (at,) = [at for at, message in server.times if message["type"] == "websocket.send"]
            # Once on its way in, and once on its way out.
            assert 0.9 < at - began < 1.2
            server.client_leaves()


async def test_an_agent_with_settled_lets_text_pass_at_once() -> None:
    server = Timed("hello!\n")
    guarded = one(echo, SettlingFinder()).middleware
    async with anyio.create_task_group() as tasks:
        began = anyio.current_time()
        tasks.start_soon(run, guarded, server)
        await anyio.sleep(1)
        server.client_leaves()
    assert server.frames == ["hello!\n"]
    assert server.times[-1][0] - began < 0.1


async def test_a_text_of_a_dialect_waits_for_its_end_and_no_longer() -> None:
    server = Timed()
    done = event("response.output_text.done", response_id="resp_1", item_id="item_1", text="mail alice@example.com")
    app = Says(delta("mail alice@exam", 0), 2.0, delta("ple.com", 1), 2.0, done, 2.0)
    began = anyio.current_time()
    await run(one(app, Finder()).middleware, server, _REALTIME)

    assert said(server.frames) == "mail [0]"
    assert json.loads(server.frames[-1])["text"] == "mail [0]"
    times = [at - began for at, message in server.times if message["type"] == "websocket.send"]
    assert all(3.9 < at < 4.5 for at in times)


async def test_what_is_said_while_an_earlier_text_still_waits_is_not_late() -> None:
    server = Timed()
    held = event("response.function_call_arguments.delta", response_id="r", item_id="i", delta="{")
    done = event("response.function_call_arguments.done", response_id="r", item_id="i", arguments="{}")
    rest = event("response.function_call_arguments.delta", response_id="r", item_id="i", delta="}")
    app = Says(held, 3.0, rest, done, "and then", 3.0)
    began = anyio.current_time()
    await run(one(app, Finder(), max_hold=0.5).middleware, server, _REALTIME)
    assert server.frames == [held, rest, done, "and then"]
    assert all(at - began < 4 for at, message in server.times if message["type"] == "websocket.send")


async def test_directions_are_judged_by_those_who_judge_them() -> None:
    for on, got, frames in ((_INPUT, ["[0]"], ["bob@example.com"]), (_OUTPUT, ["alice@example.com"], ["[0]"])):
        app, server = App("bob@example.com"), Server("alice@example.com", then_leaves=False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, one(app, Finder(), on).middleware, server)
            await anyio.sleep(2)
            server.client_leaves()
        assert (app.got, server.frames) == (got, frames)


async def test_agents_see_what_leaves_and_guardrails_what_agents_have_changed() -> None:
    class Adds(Agent):
        def __init__(self) -> None:
            self.saw: list[bytes] = []

        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse:
            self.saw.append(event.data)
            mutation = BodyMutation(event.data + b" bob@example.com", event.frame_index)
            if event.client_to_server:
                return AgentResponse.allow(request_body_mutation=mutation)
            return AgentResponse.allow(response_body_mutation=mutation)

    adds, app, server = Adds(), App(), Server("in", then_leaves=True)
    guarded = Guarded(
        app,
        [AgentConfig("adds", adds, body_access="write"), AgentConfig("g", Finder())],
        [Guardrail("g", on=KINDS)],
    )
    await run(guarded.middleware, server)
    assert (app.got, adds.saw) == (["in [0]"], [b"in"])

    adds, server = Adds(), Server()
    guarded = Guarded(
        Says("out alice@example.com"),
        [AgentConfig("adds", adds, body_access="write"), AgentConfig("g", Finder())],
        [Guardrail("g", on=KINDS)],
    )
    await run(guarded.middleware, server)
    assert (server.frames, adds.saw) == (["out [0] bob@example.com"], [b"out [0]"])


async def test_an_agent_that_knows_no_windows_judges_messages_too() -> None:
    server = Server()
    await run(one(Says("mail alice@exam", "ple.com now"), Detecting()).middleware, server)
    assert "".join(map(str, server.frames)) == "mail [0] now"


async def test_a_shadow_guardrail_changes_nothing_and_is_recorded() -> None:
    server = Server()
    guarded = one(Says("mail alice@example.com"), Finder(), enforce=False)
    await run(guarded.middleware, server)
    assert server.frames == ["mail alice@example.com"]
    assert "would redact" in repr(guarded.record.guardrails)
    assert "alice" not in repr(guarded.record)


# Ends


@finders
async def test_a_close_of_the_app_waits_for_what_is_held(finder: str) -> None:
    server = Server()
    await run(one(Says("mail alice@example.com"), finding(finder)).middleware, server)
    assert server.types == ["accept", "send", "close"]
    assert server.frames == ["mail [0]"]


@finders
async def test_so_does_the_end_of_an_app_that_does_not_close(finder: str) -> None:
    server = Server()
    await run(one(Says("mail alice@example.com", closes=False), finding(finder)).middleware, server)
    assert server.frames == ["mail [0]"]


@finders
async def test_what_a_client_has_said_before_it_left_reaches_the_app(finder: str) -> None:
    app, server = App(), Server("mail alice@example.com", then_leaves=True)
    await run(one(app, finding(finder)).middleware, server)
    assert app.got == ["mail [0]"]
    assert app.disconnect == {"type": "websocket.disconnect", "code": 1001, "reason": "going away"}


@finders
async def test_a_block_of_what_the_app_says_closes_the_session(finder: str) -> None:
    guarded = one(Says("hello ", "the secret", 9.0, "more"), finding(finder, blocking("secret")))
    server = Server()
    await run(guarded.middleware, server)
    assert (server.frames, server.close) in (([], (1008, _REASON)), (["hello "], (1008, _REASON)))
    assert guarded.record.guardrails[0].found == {"output": 1}


@finders
async def test_a_block_of_what_the_client_says_closes_the_session(finder: str) -> None:
    app, server = App(), Server("hello ", "the secret ", "more")
    await run(one(app, finding(finder, blocking("secret")), max_hold=0.1).middleware, server)
    assert server.close == (1008, _REASON)
    assert app.disconnect == {"type": "websocket.disconnect", "code": 1008, "reason": _REASON}
    assert app.got in ([], ["hello "])


@finders
async def test_a_block_of_the_last_words_closes_the_session_in_place_of_the_app(finder: str) -> None:
    app, server = Says("the secret"), Server()
    await run(one(app, finding(finder, blocking("secret"))).middleware, server)
    assert (server.frames, server.close) == ([], (1008, _REASON))
    assert app.finished


@finders
async def test_the_last_words_of_a_client_that_are_blocked_do_not_reach_the_app(finder: str) -> None:
    app, server = App(), Server("the secret", then_leaves=True)
    await run(one(app, finding(finder, blocking("secret"))).middleware, server)
    assert app.got == []
    assert app.disconnect["code"] == 1008


@pytest.mark.parametrize("on", [_INPUT, _OUTPUT], ids=str)
@finders
async def test_a_failure_in_fail_closed_mode_closes_the_session_with_1011(finder: str, on: set[Any]) -> None:
    server = Server("hello")
    await run(one(echo, finding(finder, failing), on, max_hold=0.1).middleware, server)
    assert (server.frames, server.close) == ([], (1011, "Agent error"))


@pytest.mark.parametrize("on", [_INPUT, _OUTPUT], ids=str)
@finders
async def test_a_failure_in_fail_open_mode_passes(finder: str, on: set[Any]) -> None:
    server = Server("hello")
    guarded = one(echo, finding(finder, failing), on, max_hold=0.1, failure_mode=FailureMode.OPEN)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, guarded.middleware, server)
        await anyio.sleep(3)
        server.client_leaves()
    assert server.frames == ["hello"]


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("on", [_INPUT, _OUTPUT], ids=str)
async def test_bytes_that_nobody_can_read_pass_by_the_failure_mode(mode: FailureMode, on: set[Any]) -> None:
    server = Server(b"\xff\xd8")
    guarded = one(echo, Finder(), on, failure_mode=mode, max_hold=0.1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, guarded.middleware, server)
        await anyio.sleep(3)
        server.client_leaves()
    if mode is FailureMode.OPEN:
        assert server.frames == [b"\xff\xd8"]
    else:
        what = "Payload" if on == _INPUT else "Response"
        assert (server.frames, server.close) == ([], (1011, f"{what} unreadable for security inspection"))
    assert guarded.record.guardrails[0].counts["unreadable"] == 1


async def test_an_app_that_goes_on_after_a_block_finds_its_client_gone() -> None:
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        try:
            while True:
                await send_frame(send, "the secret")
                await anyio.sleep(0.1)
        except OSError as exc:
            raised.append(exc)
            raise

    server = Server()
    await run(one(app, Finder(blocking("secret")), max_hold=0.1).middleware, server)
    assert isinstance(raised[0], ClosedByAgent)
    assert server.close == (1008, _REASON)


async def test_an_app_that_notices_nothing_is_cancelled() -> None:
    cancelled = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal cancelled
        await accept(receive, send)
        await send_frame(send, "the secret")
        try:
            await anyio.sleep(1000)
        except anyio.get_cancelled_exc_class():
            cancelled = True
            raise

    server = Server()
    began = anyio.current_time()
    await run(one(app, SlowFinder(blocking("secret")), max_hold=0.1, stop_grace=2.0).middleware, server)
    assert cancelled
    assert 2.0 <= anyio.current_time() - began < 3.0


async def test_what_the_app_raises_comes_out() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send_frame(send, "held")
        raise LookupError("the app's own")

    server = Server()
    with pytest.raises(LookupError, match="the app's own"):
        await run(one(app, SlowFinder()).middleware, server)
    assert server.frames == []


async def test_a_client_that_leaves_is_no_reason_to_wait() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send_frame(send, "held")
        while (await receive())["type"] != "websocket.disconnect":
            pass
        with pytest.raises(OSError, match="closed"):
            await send_frame(send, "more")

    server = Server(then_leaves=True)
    began = anyio.current_time()
    await run(one(app, SlowFinder()).middleware, server)
    assert anyio.current_time() - began < 0.4
    assert server.frames == []


# The app's receive


async def test_an_app_may_give_up_waiting_and_loses_no_message() -> None:
    server = Server()
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        while not got or got[-1]["type"] != "websocket.disconnect":
            with anyio.move_on_after(0.07):
                got.append(await receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, one(app, SlowFinder(seconds=lambda: 0.2), max_hold=0.1).middleware, server)
        for number in range(20):
            await anyio.sleep(0.05 * (number % 4))
            server.client_sends(f"{number};")
        server.client_leaves()

    frames = "".join(message["text"] for message in got if message["type"] == "websocket.receive")
    assert frames == "".join(f"{number};" for number in range(20))


async def test_two_tasks_of_the_app_read_and_write_at_a_time() -> None:
    server = Server()
    got: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)

        async def write() -> None:
            for number in range(50):
                await send_frame(send, f"{number} alice@example.com\n")
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            while (message := await receive())["type"] == "websocket.receive":
                got.append(message["text"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, one(app, SlowFinder()).middleware, server)
        for number in range(50):
            server.client_sends(f"{number} bob@example.com\n")
            await anyio.sleep(0.02)
        await anyio.sleep(1)
        server.client_leaves()

    assert "".join(got) == "".join(f"{number} [0]\n" for number in range(50))
    assert "".join(map(str, server.frames)) == "".join(f"{number} [0]\n" for number in range(50))


async def test_the_server_is_never_asked_twice_at_a_time() -> None:
    class Strict(Server):
        reading = False

        async def receive(self) -> Message:
            assert not self.reading
            self.reading = True
            try:
                return await super().receive()
            finally:
                self.reading = False

    server = Strict()
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)

        async def read() -> None:
            while not got or got[-1]["type"] == "websocket.receive":
                got.append(await receive())
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            tasks.start_soon(read)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, one(app, SlowFinder(), max_hold=0.1).middleware, server)
        for number in range(10):
            server.client_sends(f"{number}")
            await anyio.sleep(0.03 * number)
        server.client_leaves()
    assert "".join(m["text"] for m in got if m["type"] == "websocket.receive") == "0123456789"


async def test_a_message_that_needs_no_waiting_reaches_the_app_without_a_suspension() -> None:
    messages = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello.\n"}]
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        coroutine = receive()
        try:
            # Nothing but its end may come of the first step.
            coroutine.__await__().__next__()
        except StopIteration as stop:
            got.append(stop.value)

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    class AllSettled(Finder):
        def settled(self, text: str) -> int:
            return len(text)

    await one(app, AllSettled()).middleware(websocket_scope(), receive, send)
    assert got == [{"type": "websocket.receive", "text": "hello.\n"}]


# Handshakes that the app refuses


class Denies:
    def __init__(self, *pieces: bytes, media_type: bytes = b"application/json") -> None:
        self.pieces = pieces
        length = b"%d" % len(b"".join(pieces))
        self.given = [(b"content-type", media_type), (b"content-length", length), (b"x-other", b"1")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401, "headers": self.given})
        for piece in self.pieces:
            await send({"type": "websocket.http.response.body", "body": piece, "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b""})


@finders
async def test_the_body_of_a_refusal_is_judged_before_it_leaves(finder: str) -> None:
    server = Server()
    app = Denies(b'{"ask": "alice@exam', b'ple.com"}')
    await run(one(app, finding(finder)).middleware, server, extensions={"websocket.http.response": {}})
    start, body = server.sent
    assert (start["status"], dict(start["headers"])[b"content-length"]) == (401, b"14")
    assert dict(start["headers"])[b"x-other"] == b"1"
    assert body["body"] == b'{"ask": "[0]"}'


@pytest.mark.parametrize("pieces", [[], [b"fine"], [b'{"a": ', b"1}"]])
async def test_a_refusal_that_nobody_changes_is_the_same(pieces: list[bytes]) -> None:
    server = Server()
    app = Denies(*pieces)
    await run(one(app, Finder()).middleware, server, extensions={"websocket.http.response": {}})
    start, body = server.sent
    assert (start["headers"], body["body"]) == (app.given, b"".join(pieces))


async def test_a_refusal_that_must_not_pass_is_a_close() -> None:
    for body in (b"the secret", b"\xff"):
        server = Server()
        guarded = one(Denies(body), Finder(blocking("secret"))).middleware
        await run(guarded, server, extensions={"websocket.http.response": {}})
        assert server.types == ["close"]


# Who is judged


async def test_a_route_without_guardrails_is_not_touched() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((receive, send))

    server = Server()
    finder = Finder()
    guarded = Guarded(
        app,
        [AgentConfig("g", finder)],
        [],
        routes=[AgentRoute("/judged", agents=[], guardrails=[Guardrail("g", on=KINDS)]), AgentRoute("/ws", agents=[])],
    )
    receive, send = server.receive, server.send
    await guarded.middleware(websocket_scope("/ws"), receive, send)
    assert seen == [receive, send]

    await guarded.middleware(websocket_scope("/judged"), receive, send)
    assert seen[2:] != [receive, send]


async def test_a_guardrail_that_does_not_judge_a_call_is_not_asked() -> None:
    finder, server = Finder(), Server()
    calls: list[str] = []

    def when(call: Any) -> bool:
        calls.append(call.dialect)
        return False

    await run(one(Says("alice@example.com"), finder, when=when).middleware, server)
    assert (server.frames, finder.windows, calls) == (["alice@example.com"], [], ["websocket"])


_CALL: Final = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "shell", "arguments": {"a": "b"}}}
_DENIED: Final[dict[str, tuple[str | bytes, str]]] = {
    "a call": (json.dumps(_CALL), "the tool policy denies this call of the tool 'shell'"),
    "of bytes": (json.dumps(_CALL).encode(), "the tool policy denies this call of the tool 'shell'"),
    "in a batch": (json.dumps([{}, _CALL]), "the tool policy denies this call of the tool 'shell'"),
    "with escapes": (
        json.dumps(_CALL).replace("tools", "\\u0074ools"),
        "the tool policy denies this call of the tool 'shell'",
    ),
    "behind another": (
        json.dumps(_CALL).replace('"shell"', '"shell", "name": "fine"'),
        "an object in the request has a key twice, expected each once",
    ),
    "in another encoding": (json.dumps(_CALL).encode("utf-16-le"), "expected UTF-8, got utf-16-le"),
}


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("name", _DENIED)
async def test_a_call_that_a_policy_denies_closes_the_session(name: str, guarded: bool) -> None:
    message, reason = _DENIED[name]
    agents = [AgentConfig("g", Finder(), failure_mode=FailureMode.OPEN)] if guarded else []
    guardrails: list[Any] = [Guardrail("g", on=KINDS, max_hold=0.1)] if guarded else []
    fine = json.dumps({**_CALL, "params": {"name": "fine", "arguments": {}}})
    app, server = App(), Server(fine)
    judged = Guarded(app, agents, [*guardrails, ToolPolicy(deny=["shell"])])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, judged.middleware, server)
        await anyio.sleep(1)
        server.client_sends(b"\xff\x00")
        server.client_sends("\x00 no JSON")
        await anyio.sleep(1)
        server.client_sends(message)
        await anyio.sleep(1)
    assert app.got == [fine, b"\xff\x00", "\x00 no JSON"]
    assert server.close == (1008, reason)
    assert app.disconnect == {"type": "websocket.disconnect", "code": 1008, "reason": reason}


# Realtime events


async def test_arguments_of_a_tool_are_judged_whole_and_decoded() -> None:
    at = {"response_id": "r", "item_id": "i", "output_index": 0}
    arguments = '{"to": "alice\\u0040example.com", "n": 1}'
    item = {"id": "i", "type": "function_call", "name": "mail", "call_id": "c", "arguments": ""}
    full = {**item, "arguments": arguments}
    app = Says(
        event("response.output_item.added", response_id="r", output_index=0, item=item),
        event("response.function_call_arguments.delta", **at, delta=arguments[:18]),
        event("response.function_call_arguments.delta", **at, delta=arguments[18:]),
        event("response.function_call_arguments.done", **at, name="mail", arguments=arguments),
        event("response.output_item.done", response_id="r", output_index=0, item=full),
        event("response.done", response={"id": "r", "object": "realtime.response", "output": [full]}),
    )
    server = Server()
    await run(one(app, Finder()).middleware, server, _REALTIME)

    events = [json.loads(frame) for frame in server.frames]
    assert len(events) == 6
    changed = {"to": "[0]", "n": 1}
    deltas = "".join(e["delta"] for e in events if e["type"].endswith("arguments.delta"))
    assert json.loads(deltas) == json.loads(events[3]["arguments"]) == changed
    assert json.loads(events[4]["item"]["arguments"]) == changed
    assert json.loads(events[5]["response"]["output"][0]["arguments"]) == changed
    assert "alice" not in "".join(map(str, server.frames))


CLIENT_EVENTS: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "an item": (
        "conversation.item.create",
        {"item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "alice@example.com"}]}},
        "input",
    ),
    "instructions": ("session.update", {"session": {"type": "realtime", "instructions": "alice@example.com"}}, "input"),
    "instructions of a response": ("response.create", {"response": {"instructions": "alice@example.com"}}, "input"),
    "the result of a tool": (
        "conversation.item.create",
        {"item": {"type": "function_call_output", "call_id": "c", "output": "alice@example.com"}},
        "tool_result",
    ),
    "arguments": (
        "conversation.item.create",
        {"item": {"type": "function_call", "name": "mail", "arguments": '{"to": "alice@example.com"}'}},
        "tool_call",
    ),
    "what has no place": ("session.update", {"session": {"other": ["alice@example.com"]}}, "input"),
    "an event of an app's own": ("conversation.mine", {"say": "alice@example.com"}, "input"),
    "an event that is not as it should be": ("conversation.item.create", {"item": ["alice@example.com"]}, "input"),
}


@pytest.mark.parametrize("name", CLIENT_EVENTS)
async def test_events_of_a_client_are_judged_at_once(name: str) -> None:
    kind, fields, found = CLIENT_EVENTS[name]
    app, server = App(), Server(event(kind, **fields), then_leaves=True)
    guarded = one(app, Finder())
    await run(guarded.middleware, server, _REALTIME)

    (got,) = app.got
    assert json.loads(got) == json.loads(event(kind, **fields).replace("alice@example.com", "[0]"))
    assert guarded.record.guardrails[0].found == {found: 1}


@pytest.mark.parametrize("on", [_INPUT, KINDS], ids=["input", "all"])
async def test_a_client_speaks_the_dialect_only_where_the_app_does(on: Any) -> None:
    parts = [event("session.update", say="alice@exam"), event("session.update", say="ple.com")]
    for speaks, expected in ((False, ["[0]", ""]), (True, ["alice@exam", "ple.com"])):
        got: list[str] = []

        async def app(scope: Scope, receive: Receive, send: Send, speaks: bool = speaks, got: list[str] = got) -> None:
            await accept(receive, send)
            await send_frame(send, event("session.created" if speaks else "hello", session={"id": "sess_1"}))
            while (message := await receive())["type"] == "websocket.receive":
                got.append(json.loads(message["text"])["say"])

        server = Server()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, one(app, Finder(), on).middleware, server)
            await anyio.sleep(1)
            for part in parts:
                server.client_sends(part)
            server.client_leaves()
        assert got == expected


@pytest.mark.parametrize("first", ["session.created", "transcription_session.created", "session.update"])
@pytest.mark.parametrize("kind", ["session.update", "response.output_text.done", "conversation.mine"])
async def test_a_client_can_not_choose_the_dialect_of_an_app_that_echoes(kind: str, first: str) -> None:
    parts = [event(first), *(event(kind, say=part, voice="bob-9") for part in ("alice@exam", "ple.com"))]
    got: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        while (message := await receive())["type"] == "websocket.receive":
            got.append(message["text"])
            await send({**message, "type": "websocket.send"})

    server, finder = Server(), Finder(detector(re.compile(r"alice@example\.com|bob-\d")))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, one(app, finder, max_hold=1).middleware, server)
        for number, part in enumerate(parts):
            server.client_sends(part)
            await anyio.sleep(0 if number else 3)
        await anyio.sleep(6)
        server.client_leaves()
    for messages in (got, server.frames):
        events = [json.loads(message) for message in messages[1:]]
        assert [(each["say"], each["voice"]) for each in events] == [("[0]", "[0]"), ("", "[0]")]


@pytest.mark.parametrize("client_is_first", [True, False])
async def test_deltas_of_an_app_whose_client_speaks_first_are_no_events_on_another_path(client_is_first: bool) -> None:
    """A limit: its first event may be the client's, as an echo. Texts of two items are not told apart then."""
    items = [delta(part, number, item_id=item) for number, (item, part) in enumerate(_INTERLEAVED)]
    says = Says(event("session.created", session={}), *items, 1.0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_accept() -> Message:
            return {"type": "websocket.connect"}

        await accept(receive, send)
        if client_is_first:
            assert (await receive())["type"] == "websocket.receive"
        await says(scope, receive_accept, partial(_but_accept, send))

    for path, found in (("/ws", not client_is_first), (_REALTIME, True)):
        server = Server(*([event("session.update", session={})] if client_is_first else []))
        await run(one(app, Finder(), on=_OUTPUT).middleware, server, path)
        left = [json.loads(frame) for frame in server.frames[1:]]
        assert ("".join(each["delta"] for each in left if each["item_id"] == "a") == "mail [0]") is found


async def _but_accept(send: Send, message: Message) -> None:
    if message["type"] != "websocket.accept":
        await send(message)


_INTERLEAVED: Final = (("a", "mail alice@exam"), ("b", " and then "), ("a", "ple.com"))


@pytest.mark.parametrize("path", ["/ws", "/ws/realtime", "/chat/v1/realtime"])
async def test_neither_can_it_with_a_part_of_the_path(path: str) -> None:
    parts = [event("session.update", say=part) for part in ("alice@exam", "ple.com")]
    app, server = App(), Server(*parts, then_leaves=True)
    await run(one(app, Finder()).middleware, server, path)
    assert [json.loads(message)["say"] for message in app.got] == ["[0]", ""]


@pytest.mark.parametrize("path", ["/ws", _REALTIME])
@pytest.mark.parametrize("kind", ["mine.chunk", "response.chunk", "session.text", "conversation.message"])
async def test_events_that_are_only_called_like_those_of_the_dialect_go_on_with_one_text(kind: str, path: str) -> None:
    server = Server()
    app = Says(event(kind, text="alice@exam"), event(kind, text="ple.com"))
    await run(one(app, Finder()).middleware, server, path)
    assert said(server.frames, kind, "text") == "[0]"


async def test_names_and_audio_are_not_judged() -> None:
    audio = "UklGRiQAAABXQVZFZm10IBAAAAABAAEA" * 20
    events = [
        event(
            "session.created", session={"type": "realtime", "id": "sess_1", "voice": "marin", "model": "gpt-realtime"}
        ),
        event(
            "response.output_audio.delta", response_id="r", item_id="i", output_index=0, content_index=0, delta=audio
        ),
        event("input_audio_buffer.speech_started", item_id="i", audio_start_ms=1),
    ]
    finder, server = Finder(), Server()
    await run(one(Says(*events), finder).middleware, server)
    assert server.frames == events
    assert finder.windows == []


async def test_what_a_client_is_told_that_it_has_said_is_judged() -> None:
    base = "conversation.item.input_audio_transcription"
    app = Says(
        event(f"{base}.delta", item_id="i", content_index=0, delta="I am alice@exam"),
        event(f"{base}.delta", item_id="i", content_index=0, delta="ple.com"),
        event(f"{base}.completed", item_id="i", content_index=0, transcript="I am alice@example.com"),
        event("error", error={"type": "invalid_request_error", "message": "no such user: alice@example.com"}),
    )
    server = Server()
    await run(one(app, Finder()).middleware, server, _REALTIME)
    assert "alice" not in "".join(map(str, server.frames))
    assert json.loads(server.frames[2])["transcript"] == said(server.frames, f"{base}.delta") == "I am [0]"


async def test_a_long_session_remembers_few_items() -> None:
    messages = [
        message
        for number in range(300)
        for message in (
            delta("mail alice@example.com", 0, item_id=f"item_{number}"),
            event(
                "response.output_text.done",
                response_id="resp_1",
                item_id=f"item_{number}",
                text="mail alice@example.com",
            ),
        )
    ]
    server = Server()
    await run(one(Says(*messages), Finder()).middleware, server, _REALTIME)
    assert "alice" not in "".join(map(str, server.frames))
    assert [json.loads(frame)["text"] for frame in server.frames[1::2]] == ["mail [0]"] * 300


# A client


def test_a_client_and_an_app_of_fastapi() -> None:
    app = FastAPI()

    @app.websocket("/chat")
    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"you said {text}")

    class Policy(Finder):
        async def check(self, window: Window) -> Sequence[Decision]:
            return [Block("no secrets")] if "secret" in window.text else await super().check(window)

    protect(app, agents=[AgentConfig("g", Policy())], guardrails=[Guardrail("g", on=KINDS, max_hold=0.01)])
    with TestClient(app).websocket_connect("/chat") as session:
        session.send_text("mail alice@example.com")
        assert session.receive_text() == "you said mail [0]"
        session.send_text("a secret")
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_text()
    assert (closed.value.code, closed.value.reason) == (1008, "no secrets")


# More of the Realtime API


async def test_the_parts_and_items_of_a_response_agree_with_its_deltas() -> None:
    at = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
    full = {
        "type": "message",
        "id": "i",
        "role": "assistant",
        "content": [{"type": "output_audio", "transcript": TEXT}],
    }
    transcript = "response.output_audio_transcript"
    app = Says(
        event("response.created", response={"id": "r", "object": "realtime.response", "output": []}),
        event("response.output_item.added", response_id="r", output_index=0, item={**full, "content": []}),
        event("conversation.item.added", previous_item_id=None, item={**full, "content": []}),
        event("response.content_part.added", **at, part={"type": "audio", "transcript": ""}),
        *(event(f"{transcript}.delta", **at, delta=piece) for piece in cut(TEXT, seeded("parts"))),
        event(f"{transcript}.done", **at, transcript=TEXT),
        event("response.content_part.done", **at, part={"type": "audio", "transcript": TEXT}),
        event("conversation.item.done", previous_item_id=None, item=full),
        event("response.output_item.done", response_id="r", output_index=0, item=full),
        event("response.done", response={"id": "r", "object": "realtime.response", "output": [full]}),
        event("conversation.item.retrieved", item=full),
    )
    server = Server()
    finder = Finder()
    await run(one(app, finder).middleware, server, _REALTIME)

    expected = redacted(TEXT, _EMAILS)
    events = [json.loads(frame) for frame in server.frames]
    assert len(events) == len(app.says)
    assert said(server.frames, f"{transcript}.delta") == expected
    last = {each["type"]: each for each in events}
    assert last[f"{transcript}.done"]["transcript"] == expected
    assert last["response.content_part.done"]["part"]["transcript"] == expected
    for kind in ("conversation.item.done", "response.output_item.done", "conversation.item.retrieved"):
        assert last[kind]["item"]["content"][0]["transcript"] == expected
    assert last["response.done"]["response"]["output"][0]["content"][0]["transcript"] == expected
    # What repeats a text is not judged again.
    assert len({window.start for window in finder.windows}) > 1
    assert not [window for window in finder.windows if window.text == TEXT and window.start == 0 and window.fresh == 0]


async def test_tokens_beside_a_changed_text_are_left_out() -> None:
    base = "conversation.item.input_audio_transcription"
    tokens = [{"token": "alice@example.com", "logprob": -0.1, "bytes": [97]}]
    app = Says(
        event(f"{base}.delta", item_id="i", content_index=0, delta="alice@example.com", logprobs=tokens),
        event(f"{base}.completed", item_id="i", content_index=0, transcript="alice@example.com", logprobs=tokens),
        event(f"{base}.delta", item_id="j", content_index=0, delta="nobody", logprobs=[{"token": "nobody"}]),
        event(f"{base}.completed", item_id="j", content_index=0, transcript="nobody", logprobs=[{"token": "nobody"}]),
        event(f"{base}.failed", item_id="k", content_index=0, error={"message": "of bob@example.com"}),
    )
    server = Server()
    await run(one(app, Finder()).middleware, server, _REALTIME)
    events = [json.loads(frame) for frame in server.frames]
    assert [each.get("logprobs") for each in events] == [[], [], [{"token": "nobody"}], [{"token": "nobody"}], None]
    assert [events[0]["delta"], events[1]["transcript"], events[4]["error"]["message"]] == ["[0]", "[0]", "of [0]"]


async def test_results_of_tools_are_judged() -> None:
    app = Says(
        event(
            "conversation.item.added", item={"type": "function_call_output", "id": "i", "output": "alice@example.com"}
        ),
        event(
            "conversation.item.done",
            item={
                "type": "mcp_call",
                "id": "j",
                "name": "mail",
                "arguments": '{"to": "bob@example.com"}',
                "output": "carol@example.com",
                "error": None,
            },
        ),
    )
    server = Server()
    guarded = one(app, Finder())
    await run(guarded.middleware, server, _REALTIME)
    assert "@" not in "".join(map(str, server.frames))
    assert guarded.record.guardrails[0].found == {"tool_result": 2, "tool_call": 1}


async def test_deltas_that_nothing_ends_leave_when_nothing_has_come_for_a_while() -> None:
    server = Timed()
    kind = "session.output_transcript.delta"
    app = Says(event(kind, delta="to alice@exam"), event(kind, delta="ple.com"), 2.0, event("session.closed"))
    began = anyio.current_time()
    await run(one(app, Finder(), max_hold=0.5).middleware, server, _REALTIME)
    assert said(server.frames, kind) == "to [0]"
    assert [at - began < 1 for at, message in server.times if message["type"] == "websocket.send"] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("ends", [True, False])
async def test_arguments_that_are_no_json_close_the_session(ends: bool) -> None:
    at = {"response_id": "r", "item_id": "i", "output_index": 0}
    says = [event("response.function_call_arguments.delta", **at, delta='{"to": "alice@example.com')]
    if ends:
        says.append(event("response.function_call_arguments.done", **at, arguments=""))
    server = Server()
    await run(one(Says(*says), Finder()).middleware, server, _REALTIME)
    assert (server.frames, server.close) == ([], (1011, "Response unreadable for security inspection"))


# Servers and agents of all kinds


async def test_an_agent_that_rewrites_a_text_is_shown_all_of_it() -> None:
    for closes in (True, False):
        server = Server()
        await run(one(Says("mail alice@exam", "ple.com now", closes=closes), Rewriting()).middleware, server)
        assert "".join(map(str, server.frames)) == "mail [0] now"


async def test_what_the_server_raises_while_more_is_read_comes_out_of_receive() -> None:
    class Breaking(Server):
        async def receive(self) -> Message:
            message = await super().receive()
            if message.get("text") == "break":
                raise LookupError("the server's own")
            return message

    server = Breaking("held", "break")
    with pytest.raises(LookupError, match="the server's own"):
        await run(one(App(), SlowFinder()).middleware, server)


async def test_what_the_server_raises_beside_the_app_comes_out_of_its_next_send() -> None:
    class Gone(Server):
        async def send(self, message: Message) -> None:
            if message["type"] == "websocket.send":
                raise OSError("the client is gone")
            await super().send(message)

    raised: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send_frame(send, "one")
        await anyio.sleep(2)
        for _ in range(2):
            try:
                await send_frame(send, "two")
            except OSError as exc:
                raised.append(str(exc))

    await run(one(app, SlowFinder()).middleware, Gone())
    assert raised == ["the client is gone", "the client is gone"]


@pytest.mark.parametrize("then_waits", [True, False])
@pytest.mark.parametrize("ends", ["sends", "closes", "waits"])
async def test_a_send_that_is_given_up_loses_no_message_of_others(ends: str, then_waits: bool) -> None:
    class Slow(Server):
        slow = True
        sending = False

        async def send(self, message: Message) -> None:
            assert not self.sending
            self.sending = True
            try:
                if then_waits:
                    await super().send(message)
                if message["type"] == "websocket.send" and self.slow:
                    self.slow = False
                    await anyio.sleep(0.3)
                if not then_waits:
                    await super().send(message)
            finally:
                self.sending = False

    held = [json.dumps({"n": f"m{number}"}) for number in range(3)]
    last = json.dumps({"n": "x" * 900})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for message in held:
            await send_frame(send, message)
        with anyio.move_on_after(0.1) as gives_up:
            if ends == "closes":
                await send_close(send)
            else:
                await send_frame(send, last)
        assert gives_up.cancelled_caught
        if ends == "waits":
            await anyio.sleep(1)
            assert server.frames[:3] == held
        if ends == "sends":
            await send_frame(send, "after")
        await send_close(send)

    server = Slow()
    finder = Finder()
    finder.hold = 50
    await run(one(app, finder, max_hold=5).middleware, server)
    assert server.frames == [*held, *([] if ends == "closes" else [last]), *(["after"] if ends == "sends" else [])]
    assert server.types[-1] == "close"


async def test_a_send_that_is_given_up_while_the_server_has_its_message_is_the_app_s_own_loss() -> None:
    class Slow(Server):
        async def send(self, message: Message) -> None:
            if message.get("text") == "two":
                await anyio.sleep(0.3)
            await super().send(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for text in ("one", "two", "three"):
            with anyio.move_on_after(0.1):
                await send_frame(send, text)
        await send_close(send)

    class Passing(Finder):
        def settled(self, text: str) -> int:
            return len(text)

    for wrapped in (app, one(app, Passing()).middleware):
        server = Slow()
        await run(wrapped, server)
        assert server.frames == ["one", "three"]


async def test_nothing_passes_once_judging_has_broken_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a defect")

    monkeypatch.setattr(MessageStream, "verdict", broken)
    raised: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for _ in range(2):
            with pytest.raises(LookupError):
                raise AssertionError(await receive())
        await send_frame(send, "out")
        await anyio.sleep(2)
        with pytest.raises(LookupError):
            await send_frame(send, "out")
        raised.append("all")

    server = Server("one", "two")
    await run(one(app, SlowFinder(), max_hold=0.1).middleware, server)
    assert (raised, server.frames) == (["all"], [])


async def test_what_an_app_sends_behind_its_close_is_refused() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send_close(send)
        with pytest.raises(RuntimeError, match="the websocket is closed"):
            await send_frame(send, "alice@example.com")

    server = Server()
    await run(one(app, Finder()).middleware, server)
    assert server.types == ["accept", "close"]


async def test_older_servers_take_what_is_sent_to_a_client_that_has_left() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        while (await receive())["type"] != "websocket.disconnect":
            pass
        await send_frame(send, "alice@example.com")

    server = Server(then_leaves=True)
    await run(one(app, Finder()).middleware, server, asgi={"version": "3.0", "spec_version": "2.3"})
    assert server.frames == []


async def test_an_app_without_grace_is_cancelled_at_once() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send_frame(send, "the secret")
        await anyio.sleep(1000)

    server = Server()
    began = anyio.current_time()
    await run(one(app, Finder(blocking("secret")), max_hold=0.1, stop_grace=0).middleware, server)
    assert anyio.current_time() - began < 0.5
    assert server.close == (1008, _REASON)
