"""What the tasks of an app raise together when it is stopped and cancelled at once is the end of it, and no error."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentResponse, BodyMode, ResponseAborted
from asgi_agents.guardrails import Block
from tests.exchange.test_websocket import CLOSE, AtOnce, Server, accept, run, send_frame
from tests.exchange.test_websocket import guarded as guarded_session
from tests.guardrails.wired.exchanging import Finder, SlowFinder, one
from tests.support.asgi import Client, Probe, body, guarded, start

pytestmark = pytest.mark.anyio

DENIED: Final = AgentResponse.block(403, "denied")
Work = Callable[[Receive, Send], Coroutine[Any, Any, object]]


class Together:
    """An app whose tasks do their work at the same time."""

    def __init__(self, first: Work, *works: Work) -> None:
        self.first = first
        self.works = works
        self.ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.first(receive, send)
            async with anyio.create_task_group() as tasks:
                for work in self.works:
                    tasks.start_soon(work, receive, send)
        finally:
            self.ended = True


async def waits(receive: Receive, send: Send) -> None:
    await anyio.sleep(9)


async def pulls(receive: Receive, send: Send) -> None:
    while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
        pass
    raise LookupError("disconnected") from None


class Begins:
    def __init__(self, media_type: bytes) -> None:
        self.media_type = media_type

    async def __call__(self, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", self.media_type)))


async def streams(receive: Receive, send: Send) -> None:
    await send(body(b"evil\n\n", more=True))
    while True:
        await send(body(b"more\n\n", more=True))
        await anyio.sleep(0.05)


async def talks(receive: Receive, send: Send) -> None:
    await send_frame(send, "the evil secret")
    while True:
        await send_frame(send, "more")
        await anyio.sleep(0.05)


class Waiting:
    """Cleans up when it is cancelled, and raises what it finds then."""

    def __init__(self, work: Work) -> None:
        self.work = work

    async def __call__(self, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep(9)
        finally:
            with anyio.move_on_after(0.2, shield=True):
                await self.work(receive, send)


def sets(work: Work) -> dict[str, tuple[Work, ...]]:
    return {
        "one ends": (work,),
        "one ends, one waits": (work, waits),
        "one waits, one ends": (waits, work),
        "two end": (work, work, waits),
        "one ends as it is cancelled": (work, Waiting(work)),
    }


def deny_evil(event: Any) -> AgentResponse | None:
    return DENIED if b"evil" in event.data else None


@pytest.mark.parametrize("grace", [0, 0.1])
@pytest.mark.parametrize("works", sets(streams))
@pytest.mark.parametrize("media_type", [b"text/event-stream", b"text/plain"])
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_the_tasks_of_a_stopped_response(spec_version: str, media_type: bytes, works: str, grace: float) -> None:
    app = Together(Begins(media_type), *sets(streams)[works])
    client = Client(spec_version=spec_version)
    agent = AgentConfig("a", Probe(response_body=deny_evil), response_body_mode=BodyMode.STREAM)
    raised: list[BaseException] = []
    try:
        await client.call(guarded(app, agent, stop_grace=grace))
    except BaseException as exc:
        raised.append(exc)
    # By this the server breaks the connection off.
    assert [type(exc) for exc in raised] == ([ResponseAborted] if media_type == b"text/plain" else [])
    assert app.ended
    assert b"more" not in client.body


async def closes_at_once(app: ASGIApp, grace: float) -> Server:
    server = Server()
    await run(guarded_session(app, AtOnce({b"the evil secret": CLOSE}), stop_grace=grace), server)
    return server


async def blocks_at_once(app: ASGIApp, grace: float) -> Server:
    server = Server()
    await run(one(app, Finder(_blocks), max_hold=0.01, stop_grace=grace).middleware, server)
    return server


async def blocks_later(app: ASGIApp, grace: float) -> Server:
    server = Server()
    await run(one(app, SlowFinder(_blocks), max_hold=0.01, stop_grace=grace).middleware, server)
    return server


def _blocks(window: Any) -> list[Any]:
    return [Block("no")] if "evil" in window.text else []


@pytest.mark.parametrize("grace", [0, 0.1])
@pytest.mark.parametrize("works", sets(talks))
@pytest.mark.parametrize("stop", [closes_at_once, blocks_at_once, blocks_later])
async def test_the_tasks_of_a_session_that_is_closed(stop: Any, works: str, grace: float) -> None:
    app = Together(accept, *sets(talks)[works])
    server = await stop(app, grace)
    assert app.ended
    assert server.types == ["accept", "close"]


@pytest.mark.parametrize("grace", [0, 0.1])
@pytest.mark.parametrize("stop", [closes_at_once, blocks_at_once, blocks_later])
async def test_an_error_of_its_own_among_them_is_one(stop: Any, grace: float) -> None:
    app = Together(accept, talks, pulls)
    raised: list[BaseException] = []
    try:
        await stop(app, grace)
    except BaseException as exc:
        raised.append(exc)
    for error in raised:
        # So that no cancellation is in it.
        assert isinstance(error, ExceptionGroup)
        assert error.subgroup(LookupError) is not None
