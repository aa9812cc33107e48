"""A client that leaves while agents are asked, before its app is called: nobody works for it any more."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

import anyio
import anyio.lowlevel
import pytest
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import Agent, AgentConfig, AgentMiddleware, AgentResponse, BodyMode
from asgi_agents.exchange.attendance import WATCH_AFTER, Attendance
from asgi_agents.guardrails import Decision, Guardrail, TextGuardrail, Window
from tests.support.asgi import Client, assert_nothing_left

pytestmark = pytest.mark.anyio

LONG: Final = 30.0
PROMPT: Final = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()


class Slow:
    """Takes its time, and notes who was let go.

    :ivar seconds: how long it takes.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls = 0
        self.cancelled = 0
        self.completed: list[int] = []

    async def take_time(self) -> None:
        self.calls += 1
        try:
            await anyio.sleep(self.seconds)
        except BaseException:
            self.cancelled += 1
            raise


class SlowHead(Slow, Agent):
    async def on_request_headers(self, event: Any) -> AgentResponse | None:
        await self.take_time()
        return None


class SlowHeadAndEnd(SlowHead):
    async def on_request_complete(self, event: Any) -> None:
        self.completed.append(event.status)


class SlowBody(Slow, Agent):
    async def on_request_body_chunk(self, event: Any) -> AgentResponse | None:
        await self.take_time()
        return None


class SlowText(Slow, TextGuardrail):
    async def check(self, window: Window) -> Sequence[Decision]:
        await self.take_time()
        return []


class Quick(Agent):
    async def on_request_headers(self, event: Any) -> None: ...

    async def on_response_headers(self, event: Any) -> None: ...


class App:
    """Reads its request and what follows it, and answers."""

    def __init__(self) -> None:
        self.calls = 0
        self.received: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        while True:
            self.received.append(await receive())
            if self.received[-1]["type"] != "http.request" or not self.received[-1].get("more_body", False):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})
        self.received.append(await receive())


Make = Callable[[Any, float], tuple[AgentMiddleware, Slow]]


def asked(make: Callable[[float], Any], *others: Agent, settings: dict[str, Any] | None = None, **options: Any) -> Make:
    """A middleware whose agent takes so long, among others."""

    def made(app: Any, seconds: float) -> tuple[AgentMiddleware, Slow]:
        slow = make(seconds)
        agents = [AgentConfig(f"other-{index}", other) for index, other in enumerate(others)]
        agents.append(AgentConfig("slow", slow, timeout=60.0, chunk_timeout=60.0, **(settings or {})))
        guardrails = [Guardrail("slow", on={"input"})] if isinstance(slow, SlowText) else []
        return AgentMiddleware(app, agents=agents, guardrails=guardrails, **options), slow

    return made


def ignore(record: object) -> None: ...


WAYS: Final[dict[str, Make]] = {
    "head": asked(SlowHead),
    "head, audited": asked(SlowHead, on_audit=ignore),
    "head, beside another": asked(SlowHead, Quick()),
    "head, after another": asked(SlowHead, Quick(), settings={"after": ["other-0"]}),
    "head, and told of the end": asked(SlowHeadAndEnd),
    "body": asked(SlowBody),
    "body, up to a threshold": asked(SlowBody, settings={"request_body_mode": BodyMode.hybrid(threshold=1000)}),
    "body, in a spool": asked(SlowBody, settings={"request_body_mode": BodyMode.STREAM, "body_access": "write"}),
    "text": asked(SlowText),
    "text, behind other agents": asked(SlowText, Quick()),
}
ways = pytest.mark.parametrize("way", WAYS)


def request(*pieces: bytes, unfinished: bool = False, get: bool = False) -> Client:
    if get:
        return Client("GET", "/v1/chat/completions")
    body = list(pieces) if len(pieces) > 1 else (pieces[0] if pieces else b"")
    headers = [(b"content-type", b"application/json")]
    return Client("POST", "/v1/chat/completions", headers=headers, body=body, unfinished=unfinished)


@ways
@pytest.mark.parametrize("get", [True, False])
async def test_what_agents_do_for_a_client_that_has_left_is_ended(way: str, get: bool) -> None:
    if get and not way.startswith("head"):
        pytest.skip("there is no body to judge")
    app = App()
    middleware, slow = WAYS[way](app, LONG)
    client = request(PROMPT, get=get)
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await anyio.sleep(1)
        assert (slow.calls, slow.cancelled) == (1, 0)
        client.leave()
    assert anyio.current_time() - began < 1.1
    assert (slow.calls, slow.cancelled) == (1, 1)
    assert app.calls == 0
    assert client.messages == []
    assert_nothing_left(middleware.manager)
    if isinstance(slow, SlowHeadAndEnd):
        assert slow.completed == [499]


@ways
@pytest.mark.parametrize("seconds", [0.0, WATCH_AFTER / 2, 1.0])
@pytest.mark.parametrize("pieces", [[], [PROMPT], [PROMPT[:9], PROMPT[9:]], [PROMPT[:9], PROMPT[9:20], PROMPT[20:]]])
async def test_the_app_gets_what_it_would_get_otherwise(way: str, seconds: float, pieces: list[bytes]) -> None:
    """However long agents take, and whatever was read meanwhile."""
    app = App()
    middleware, slow = WAYS[way](app, seconds)
    client = request(*pieces)
    await client.call(middleware)
    assert client.body == b"fine"
    assert b"".join(message.get("body", b"") for message in app.received) == b"".join(pieces)
    assert [message.get("more_body", False) for message in app.received[:-1]][-1:] == [False]
    assert app.received[-1]["type"] == "http.disconnect"
    if pieces:
        assert slow.calls >= 1
    assert slow.cancelled == 0
    assert_nothing_left(middleware.manager)


@ways
async def test_of_a_body_that_is_not_complete_no_more_is_read_than_a_message(way: str) -> None:
    app = App()
    middleware, _ = WAYS[way](app, LONG)
    client = request(PROMPT[:5], PROMPT[5:9], unfinished=True)
    with anyio.move_on_after(1):
        await client.call(middleware)
    if way.startswith("head"):
        assert client.received == 1
    assert app.calls == 0
    assert_nothing_left(middleware.manager)


@ways
async def test_agents_that_answer_soon_have_nothing_read(way: str) -> None:
    reads: list[int] = []
    client = request(PROMPT)

    class Counting(App):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            reads.append(client.received)
            await super().__call__(scope, receive, send)

    middleware, _ = WAYS[way](Counting(), WATCH_AFTER / 2)
    await client.call(middleware)
    assert reads == [0 if way.startswith("head") else 1]


@ways
async def test_a_client_that_waits_for_the_verdict_on_its_head_is_not_told_to_go_on(way: str) -> None:
    """A server answers ``expect: 100-continue`` when the body is read."""
    app = App()
    middleware, slow = WAYS[way](app, LONG)
    client = request(PROMPT)
    client.scope["headers"].append((b"Expect", b"100-continue"))

    async def call() -> None:
        # What the app sends in the end, its client does not get.
        with suppress(OSError):
            await client.call(middleware)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.sleep(1)
        # It was read for an agent that receives the body: that is the verdict on the head.
        assert client.received == (0 if way.startswith("head") else 1)
        client.leave()
    assert app.calls == (1 if way.startswith("head") else 0)
    assert slow.cancelled == 1 - app.calls


@ways
async def test_a_request_that_is_cancelled_leaves_nothing(way: str) -> None:
    app = App()
    middleware, slow = WAYS[way](app, LONG)
    client = request(PROMPT)
    with anyio.move_on_after(1) as scope:
        await client.call(middleware)
    assert scope.cancelled_caught
    assert (slow.cancelled, app.calls) == (1, 0)
    assert_nothing_left(middleware.manager)
    # The connection is not read any more: another reader would be the second.
    with anyio.move_on_after(1):
        while True:
            await client.receive()


@ways
async def test_what_the_server_raises_is_met_by_who_reads_next(way: str) -> None:
    app = App()
    middleware, _ = WAYS[way](app, 1.0)
    messages = [{"type": "http.request", "body": PROMPT, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        raise OSError("the server's")

    async def send(message: Message) -> None: ...

    scope = request(PROMPT).scope
    with pytest.raises(OSError, match="the server's"):
        await middleware(scope, receive, send)
    assert app.calls == 1
    assert app.received[0]["body"] == PROMPT


async def test_a_hook_that_would_suspend_and_does_not_makes_no_difference() -> None:
    events: list[str] = []

    class Sometimes(Agent):
        async def on_request_headers(self, event: Any) -> None:
            if event.uri == "/slow":
                await anyio.lowlevel.checkpoint()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        events.append("app")
        assert receive == client.receive

    middleware = AgentMiddleware(app, agents=[AgentConfig("a", Sometimes())])
    client = Client("GET", "/")
    coroutine = middleware(client.scope, client.receive, client.send)
    # Nothing is awaited on the way to the app that would let others run.
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert events == ["app"]


async def test_a_server_that_repeats_itself_is_not_read_for_ever() -> None:
    reads = 0

    async def receive() -> Message:
        nonlocal reads
        reads += 1
        return {"type": "http.request", "body": b"", "more_body": False}

    attendance = Attendance(receive)

    async def call() -> str:
        await anyio.sleep(LONG)
        return "done"

    assert await attendance.wait_for(call()) == "done"
    assert reads == 2
    assert [await attendance.remaining() for _ in range(3)] == [await receive()] * 3


async def test_who_was_cancelled_by_others_first_stays_cancelled(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("only asyncio has cancellations that can be undone")
    inbox = anyio.Event()

    async def receive() -> Message:
        await inbox.wait()
        return {"type": "http.disconnect"}

    async def call() -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            # It takes its time to end. Meanwhile the watch begins, and the client leaves.
            asyncio.get_running_loop().call_later(2 * WATCH_AFTER, inbox.set)
            await asyncio.shield(asyncio.sleep(4 * WATCH_AFTER))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(WATCH_AFTER / 2):
            await Attendance(receive, complete=True).wait_for(call())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert inbox.is_set()


async def test_it_is_read_in_the_context_of_the_request() -> None:

    variable: ContextVar[str] = ContextVar("variable", default="")
    seen: list[str] = []

    async def receive() -> Message:
        seen.append(variable.get())
        return {"type": "http.disconnect"}

    variable.set("request")
    attendance = Attendance(receive, complete=True)
    await attendance.wait_for(anyio.sleep(LONG))
    assert attendance.left
    assert seen == ["request"]


async def test_of_many_that_wait_each_is_watched_from_its_own_time_on() -> None:
    """They share a timer."""
    ended: dict[int, float] = {}
    app = App()
    middleware, slow = WAYS["head"](app, LONG)

    async def ask(number: int) -> None:
        client = request(get=True)
        client.leave()
        await anyio.sleep(number * WATCH_AFTER / 4)
        began = anyio.current_time()
        await client.call(middleware)
        ended[number] = anyio.current_time() - began

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(ask, number)
    assert sorted(ended) == list(range(12))
    assert list(ended.values()) == pytest.approx([WATCH_AFTER] * 12, rel=0.01)
    assert (slow.calls, slow.cancelled, app.calls) == (12, 12, 0)


@ways
async def test_a_middleware_around_gets_a_response_for_a_client_that_has_left(way: str) -> None:
    """Or else Starlette's BaseHTTPMiddleware raises "No response returned." for each of these clients."""
    app = App()
    middleware, slow = WAYS[way](app, LONG)

    async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    client = request(PROMPT)

    async def call() -> None:
        # What servers say of a client that is gone.
        with suppress(OSError):
            await client.call(BaseHTTPMiddleware(middleware, dispatch=pass_on))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.sleep(1)
        client.leave()
    assert (slow.calls, slow.cancelled, app.calls, client.messages) == (1, 1, 0, [])
    assert_nothing_left(middleware.manager)


async def _sleep(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "answered"


async def test_a_cancellation_in_a_later_wait_is_what_it_is() -> None:
    attendance = Attendance(anyio.sleep_forever)  # type: ignore[arg-type]
    assert await attendance.wait_for(_sleep(1.0)) == "answered"
    with anyio.move_on_after(WATCH_AFTER / 2) as scope:
        await attendance.wait_for(_sleep(LONG))
    assert scope.cancelled_caught
    attendance.end()


@pytest.mark.parametrize("leaves", [1.0 + WATCH_AFTER / 2, 1.0 + WATCH_AFTER * 2])
async def test_a_client_that_leaves_in_a_later_wait_ends_it(leaves: float) -> None:
    async def receive() -> Message:
        await anyio.sleep(leaves - WATCH_AFTER)
        return {"type": "http.disconnect"}

    attendance = Attendance(receive)
    assert await attendance.wait_for(_sleep(1.0)) == "answered"
    began = anyio.current_time()
    assert await attendance.wait_for(_sleep(LONG)) is None
    assert anyio.current_time() - began < max(WATCH_AFTER, leaves - 1.0) * 1.01
    assert attendance.left
