"""python-socketio, over long polling and over websockets."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from asgi_agents import Agent, AgentMiddleware, EventType, RequestHeadersEvent

from .cases import CASES, CHANGED, FRAMES, WORDS, Act, Case, config
from .promises import complaints
from .stage import PATIENCE, Handlers, Stage

pytest.importorskip("socketio", reason="python-socketio is not installed: pip install '.[compat]'")

import aiohttp
import socketio

# Frames have no modes, and can't be changed.
MATRIX = [("polling", case) for case in CASES] + [("websocket", case) for case in FRAMES if case.act is not Act.CHANGE]


class TestSocketIO:
    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        server = socketio.AsyncServer(async_mode="asgi")

        @server.event
        async def word(sid: str, number: int) -> str:
            with handlers.one():
                return WORDS[number]

        app: ASGIApp = socketio.ASGIApp(server, other_asgi_app=PlainTextResponse("the other app"))
        return app

    @pytest.fixture(autouse=True)
    def everything_ends(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        yield
        assert stage.handlers.all_ended(), f"{stage.handlers.begun} handlers have begun, {stage.handlers.ended} ended"
        assert not complaints(caplog, ("socketio", "engineio"))

    @pytest.mark.parametrize(("transport", "case"), MATRIX, ids=str)
    def test_messages_reach_the_client_as_agents_decide(self, stage: Stage, transport: str, case: Case) -> None:
        # Polls are answered without a length, and a client whose answer is broken off doesn't say that it has ended.
        stage.guard(case.agent(EventType.WEBSOCKET_FRAME, EventType.RESPONSE_BODY_CHUNK, hold_head=True))
        words, connected = asyncio.run(talk(stage.url, transport))
        match case.act:
            case Act.ALLOW:
                assert words == WORDS
            case Act.CHANGE:
                assert words == CHANGED
            case Act.BEFORE:
                assert not connected
            case Act.END:
                assert words == WORDS[:3]
            case _:
                assert words == WORDS[:2]
        assert connected == (case.act is not Act.BEFORE)

    def test_agents_around_socket_io_hear_it_and_the_other_app(self, stage: Stage, client: httpx.Client) -> None:
        listener = Listener()
        stage.guard(config(listener))
        assert asyncio.run(talk(stage.url, "polling"))[0] == WORDS
        assert client.get("/other").text == "the other app"
        assert {path.partition("?")[0] for path in listener.heard} == {"/socket.io/", "/other"}

    def test_agents_around_the_other_app_only_hear_nothing_of_socket_io(self) -> None:
        """Why the first is what the documentation says."""
        listener = Listener()
        inside = AgentMiddleware(PlainTextResponse("the other app"), agents=[config(listener)])
        app = socketio.ASGIApp(socketio.AsyncServer(async_mode="asgi"), other_asgi_app=inside)

        async def visit() -> None:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                assert (await client.get("/socket.io/?EIO=4&transport=polling")).status_code == 200
                assert (await client.get("/other")).text == "the other app"

        asyncio.run(visit())
        assert listener.heard == ["/other"]


class Listener(Agent):
    def __init__(self) -> None:
        self.heard: list[str] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self.heard.append(event.uri)


async def talk(url: str, transport: str) -> tuple[tuple[str, ...], bool]:
    """The words that a client gets before it is disconnected, and whether it ever was connected."""
    async with aiohttp.ClientSession() as session:
        client = socketio.AsyncClient(reconnection=False, http_session=session)
        gone = asyncio.Event()
        words: list[str] = []

        @client.event
        async def disconnect(reason: Any) -> None:
            gone.set()

        try:
            await client.connect(url, transports=[transport], wait_timeout=PATIENCE)
        except socketio.exceptions.ConnectionError:
            return (), False
        ending = asyncio.ensure_future(gone.wait())
        try:
            for number in range(len(WORDS)):
                call = asyncio.ensure_future(client.call("word", number, timeout=PATIENCE))
                await asyncio.wait({call, ending}, return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    call.cancel()
                    await asyncio.wait({call})
                    break
                words.append(call.result())
        finally:
            ending.cancel()
            # Without a goodbye: it would wait for the end of a poll, up to half a minute.
            await client.eio.disconnect(abort=True)
        return tuple(words), True
