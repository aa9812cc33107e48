"""What comes from a client in the moment in which the exchange ends does not reach the app."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_agents.exchange.inbound import Inbound
from tests.exchange.test_websocket import Server, accept, run, send_frame
from tests.guardrails.wired.exchanging import Finder, SettlingFinder, blocking, one

pytestmark = pytest.mark.anyio

_LATE: Final[Message] = {"type": "websocket.receive", "text": "late"}
_END: Final[Message] = {"type": "websocket.disconnect", "code": 1008}


async def _never(message: Message) -> None:
    raise AssertionError("it is judged although all is over")


def _ends(inbound: Inbound) -> None:
    inbound.end(_END)


def _fails(inbound: Inbound) -> None:
    inbound.error = OSError("gone")


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("wakeable", [True, False])
@pytest.mark.parametrize("happens", [_ends, _fails])
async def test_what_is_read_in_the_moment_of_the_end_is_not_handed_on(
    happens: Callable[[Inbound], None], wakeable: bool, passes: bool
) -> None:
    screened: list[Message] = []

    async def source() -> Message:
        # No cancellation comes between this and the message.
        happens(inbound)
        return _LATE

    def screen(message: Message) -> bool:
        screened.append(message)
        return passes

    inbound = Inbound(source, screen=screen, judge=_never, may_suspend=lambda: False, wakeable=wakeable)

    async def got() -> Message:
        try:
            return await inbound.receive()
        except OSError as exc:
            return {"type": str(exc)}

    expected = _END if happens is _ends else {"type": "gone"}
    assert [await got(), await got()] == [expected, expected]
    # Whoever counts what was read has counted it.
    assert screened in ([_LATE], [])


@pytest.mark.parametrize("frames", [["a secret"], [b"a secret"], ["a secret", "another"]], ids=str)
@pytest.mark.parametrize("finder", [Finder, SettlingFinder])
async def test_a_message_that_comes_with_the_block_of_another_is_not_delivered(
    finder: Callable[[Any], Finder], frames: list[str | bytes]
) -> None:
    server = Server()
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)

        async def reading() -> None:
            while (message := await receive())["type"] == "websocket.receive":
                got.append(message)
            got.append(message)

        async def sending(say: Callable[..., Awaitable[None]]) -> None:
            await anyio.sleep(1)
            # The reader was woken with these, and does not run before the session is closed.
            for frame in frames:
                server.client_sends(frame)
            await say(send, "a merger")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reading)
            tasks.start_soon(sending, send_frame)

    await run(one(app, finder(blocking("merger", "secret"))).middleware, server)
    assert [message["type"] for message in got] == ["websocket.disconnect"]
    assert server.frames == []
    assert (server.sent[-1]["type"], server.sent[-1]["code"]) == ("websocket.close", 1008)
