"""How deep the package is: Python frames of its own between the server's call and an agent's hook.

Each frame is paid for with every event, and shows in every traceback. What is counted are the frames strictly between
that of ``AgentMiddleware.__call__`` and that of the hook whose code is in the package. The frames of the app, of the
test, and of libraries that stand between are left out. A hook that suspends has all of them above it again when it goes
on, because every coroutine on the way down is resumed through the one that awaits it.
"""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from anyio.lowlevel import checkpoint
from starlette.types import Receive, Scope, Send

import asgi_agents
from asgi_agents import Agent, AgentConfig, AgentMiddleware, BodyMode

from .exchange.test_websocket import Server, accept, send_frame
from .exchange.test_websocket import run as run_session
from .support.asgi import App, Client, body, start

PACKAGE = str(Path(asgi_agents.__file__).parent)

# Where frames went up, the time that an event takes has gone up as well: raise a limit only with a measurement.
HEADER = 4
SUSPENDING_HEADER = 7
# On trio the client is watched in a cancel scope.
WATCHING_ON_TRIO = 3
BUFFERED_BODY = 9
WEBSOCKET_MESSAGE = 9
STREAMED_CHUNK = 12


def names_above(frame: FrameType | None) -> list[str]:
    """The package's functions that are under way between the middleware and ``frame``, innermost first."""
    names: list[str] = []
    while frame is not None:
        code = frame.f_code
        if code is AgentMiddleware.__call__.__code__:
            return names
        if code.co_filename.startswith(PACKAGE):
            names.append(f"{code.co_qualname} ({Path(code.co_filename).name})")
        frame = frame.f_back
    raise AssertionError(f"not called by the middleware, but in a task of its own, below {names}")


class Prompt(Agent):
    """Remembers what is above each of its hooks, none of which suspends."""

    def __init__(self) -> None:
        self.above: list[list[str]] = []

    def look(self) -> None:
        self.above.append(names_above(sys._getframe(1)))


class Headers(Prompt):
    async def on_request_headers(self, event: Any) -> None:
        self.look()


class SuspendingHeaders(Prompt):
    async def on_request_headers(self, event: Any) -> None:
        self.look()
        await checkpoint()
        self.look()


class RequestBody(Prompt):
    async def on_request_body_chunk(self, event: Any) -> None:
        self.look()


class ResponseBody(Prompt):
    async def on_response_body_chunk(self, event: Any) -> None:
        self.look()


class Messages(Prompt):
    async def on_websocket_frame(self, event: Any) -> None:
        self.look()


class Echo:
    """A websocket app that sends one message and receives one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await receive()
        await send_frame(send, "out")
        await receive()


async def request(agent: Agent, **modes: Any) -> None:
    app = App(start(200), body(b"one", more=True), body(b"two"))
    await Client("POST", body=[b"one", b"two"]).call(AgentMiddleware(app, agents=[AgentConfig("a", agent, **modes)]))


async def session(agent: Agent) -> None:
    server = Server("in", then_leaves=True)
    await run_session(AgentMiddleware(Echo(), agents=[AgentConfig("a", agent)]), server)


async def streamed_request(agent: Agent) -> None:
    await request(agent, request_body_mode=BodyMode.STREAM)


async def streamed_response(agent: Agent) -> None:
    await request(agent, response_body_mode=BodyMode.STREAM)


CASES: dict[str, tuple[type[Prompt], Callable[[Agent], Awaitable[None]], int, int]] = {
    "header": (Headers, request, 1, HEADER),
    "header, suspending": (SuspendingHeaders, request, 2, SUSPENDING_HEADER),
    "buffered request body": (RequestBody, request, 1, BUFFERED_BODY),
    "streamed request chunk": (RequestBody, streamed_request, 2, STREAMED_CHUNK),
    "streamed response chunk": (ResponseBody, streamed_response, 2, STREAMED_CHUNK),
    "websocket message, both directions": (Messages, session, 2, WEBSOCKET_MESSAGE),
}


@pytest.mark.parametrize(("kind", "run", "calls", "limit"), CASES.values(), ids=CASES)
async def test_few_frames_stand_between_the_server_and_a_hook(
    kind: type[Prompt], run: Callable[[Agent], Awaitable[None]], calls: int, limit: int, anyio_backend_name: str
) -> None:
    if kind is SuspendingHeaders and anyio_backend_name == "trio":
        limit += WATCHING_ON_TRIO
    agent = kind()
    await run(agent)
    assert len(agent.above) == calls
    for names in agent.above:
        assert len(names) <= limit, names
