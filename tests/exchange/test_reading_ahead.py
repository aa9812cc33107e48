"""What is read while agents are asked reaches the app whole, whatever becomes of a ``receive`` that is cancelled."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import anyio
import anyio.lowlevel
import httpx
import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import Agent, AgentConfig, AgentMiddleware, BodyMode
from asgi_agents.guardrails import Decision, Guardrail, TextGuardrail, Window
from tests.support.asgi import Client

pytestmark = pytest.mark.anyio

PIECES: Final = [b'{"model": "m", ', b'"messages": [{"role": "user", ', b'"content": "hello"}]}']
# More than any `receive` here takes to hand over what it has.
TURNS: Final = range(6)


class SlowHead(Agent):
    """Answers so many turns of the event loop after it was told to."""

    def __init__(self, turns: int = 0) -> None:
        self.turns = turns
        self.told = anyio.Event()

    async def wait(self) -> None:
        await self.told.wait()
        for _ in range(self.turns):
            await anyio.lowlevel.checkpoint()

    async def on_request_headers(self, event: Any) -> None:
        await self.wait()


class SlowBody(SlowHead):
    async def on_request_headers(self, event: Any) -> None: ...

    async def on_request_body_chunk(self, event: Any) -> None:
        await self.wait()


class SlowText(SlowHead, TextGuardrail):
    async def on_request_headers(self, event: Any) -> None: ...

    async def check(self, window: Window) -> Sequence[Decision]:
        await self.wait()
        return []


class Quick(Agent):
    async def on_request_headers(self, event: Any) -> None: ...

    async def on_response_headers(self, event: Any) -> None: ...


class App:
    def __init__(self) -> None:
        self.received: list[Message] = []

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not self.received or self.received[-1].get("more_body", False):
            self.received.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})


WAYS: Final[dict[str, tuple[Callable[[int], SlowHead], dict[str, Any]]]] = {
    "head": (SlowHead, {}),
    "head, audited": (SlowHead, {"on_audit": lambda record: None}),
    "head, beside another": (SlowHead, {"others": [Quick()]}),
    "body": (SlowBody, {}),
    "body, in a spool": (SlowBody, {"settings": {"request_body_mode": BodyMode.STREAM, "body_access": "write"}}),
    "text": (SlowText, {}),
}
ways = pytest.mark.parametrize("way", WAYS)


def guarded(way: str, app: ASGIApp, turns: int = 0) -> tuple[AgentMiddleware, SlowHead]:
    make, options = WAYS[way]
    slow = make(turns)
    agents = [AgentConfig(f"other-{index}", other) for index, other in enumerate(options.get("others", ()))]
    agents.append(AgentConfig("slow", slow, timeout=60.0, chunk_timeout=60.0, **options.get("settings", {})))
    guardrails = [Guardrail("slow", on={"input"})] if isinstance(slow, SlowText) else []
    return AgentMiddleware(app, agents=agents, guardrails=guardrails, on_audit=options.get("on_audit")), slow


async def passed_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


def handing_over(app: ASGIApp, turns: int) -> ASGIApp:
    """Its ``receive`` has a message for some turns before it returns it, as one that waits for a task of its own."""

    async def around(scope: Scope, receive: Receive, send: Send) -> None:
        async def late() -> Message:
            message = await receive()
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            return message

        await app(scope, late, send)

    return around


AROUND: Final[dict[str, Callable[[ASGIApp], ASGIApp]]] = {
    "nothing": lambda app: app,
    "BaseHTTPMiddleware": lambda app: BaseHTTPMiddleware(app, passed_on),
    "two of them": lambda app: BaseHTTPMiddleware(BaseHTTPMiddleware(app, passed_on), passed_on),
    "3 turns": lambda app: handing_over(app, 3),
}


@ways
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("turns", TURNS)
async def test_agents_that_answer_while_a_message_comes_lose_nothing(way: str, around: str, turns: int) -> None:
    app = App()
    middleware, slow = guarded(way, app, turns)
    headers = [(b"content-type", b"application/json")]
    client = Client("POST", "/v1/chat/completions", headers=headers, body=[], unfinished=True)
    if not way.startswith("head"):
        client.give(PIECES[0], more=True)
    if way == "text":
        client.give(b"".join(PIECES[1:]))

    async def come() -> None:
        await anyio.sleep(1)
        slow.told.set()
        if way.startswith("head"):
            client.give(PIECES[0], more=True)
        if way != "text":
            client.give(PIECES[1], more=True)
            client.give(PIECES[2])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(come)
        await client.call(AROUND[around](middleware))
    assert app.body == b"".join(PIECES)
    assert client.body == b"fine"


@ways
async def test_a_body_that_a_generator_makes_is_not_cut_off(way: str) -> None:
    """It ends for good where its ``__anext__`` is cancelled: to httpx's transport that is the end of the body."""
    app = App()
    middleware, slow = guarded(way, app)

    async def upload() -> AsyncIterator[bytes]:
        for index, piece in enumerate(PIECES):
            if index == 1 or way.startswith("head"):
                await anyio.sleep(1)
            yield piece

    async def tell() -> None:
        await anyio.sleep(0.5)
        slow.told.set()

    transport = httpx.ASGITransport(middleware)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://app.example") as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(tell)
        answer = await client.post(
            "/v1/chat/completions", content=upload(), headers={"content-type": "application/json"}
        )
    assert answer.text == "fine"
    assert app.body == b"".join(PIECES)


class Waiting:
    """A server whose message comes when it is told to, and that counts how often its ``receive`` is cancelled."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.news = anyio.Event()
        self.cancelled = 0
        self.readers = 0
        self._stubborn = stubborn

    async def receive(self) -> Message:
        self.readers += 1
        assert self.readers == 1, "two readers of receive"
        try:
            with anyio.CancelScope(shield=self._stubborn):
                await self.news.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.readers -= 1
        return {"type": "http.request", "body": b"all", "more_body": False}

    async def send(self, message: Message) -> None: ...


async def told_later(slow: SlowHead) -> None:
    await anyio.sleep(1)
    slow.told.set()


async def test_what_reads_ahead_for_nobody_ends_with_the_request() -> None:
    server = Waiting()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (server.readers, server.cancelled) == (1, 0)

    middleware, slow = guarded("head", app)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(told_later, slow)
        await middleware(Client("POST", body=[], unfinished=True).scope, server.receive, server.send)
    await anyio.sleep(0.01)
    assert (server.readers, server.cancelled) == (0, 1)


async def test_an_app_that_reads_in_vain_reads_again() -> None:
    """The reader that is there already is not cancelled, and no other begins beside it."""
    server = Waiting()
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(3):
            with anyio.move_on_after(1):
                await receive()
        server.news.set()
        received.append(await receive())

    middleware, slow = guarded("head", app)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(told_later, slow)
        await middleware(Client("POST", body=[], unfinished=True).scope, server.receive, server.send)
    assert [message["body"] for message in received] == [b"all"]
    assert (server.readers, server.cancelled) == (0, 0)


async def test_a_verdict_does_not_wait_for_a_receive_that_can_not_be_cancelled() -> None:
    server = Waiting(stubborn=True)
    called: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(anyio.current_time())

    middleware, slow = guarded("head", app)
    began = anyio.current_time()

    async def come() -> None:
        await anyio.sleep(5)
        server.news.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(told_later, slow)
        tasks.start_soon(come)
        await middleware(Client("POST", body=[], unfinished=True).scope, server.receive, server.send)
    assert called[0] - began < 1.5
    await anyio.sleep(0.01)
    assert server.readers == 0
