"""Whose answer is whose, and what an agent that is not asked has said: nothing."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.abc
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as AppRoute
from starlette.routing import Router

from asgi_agents import AgentConfig, AgentMiddleware, AgentResponse, EventType, HeaderOp, HttpTransport, StreamTransport
from asgi_agents.protocol import ALLOW
from asgi_agents.protocol.stream import CallIds
from tests.support.asgi import App, Client, guarded
from tests.transports.stream.calls import settle, until
from tests.transports.stream.peer import Peer, Received, handshake
from tests.transports.test_http import raw_agent, raw_answer, read_request

from .asking import PATIENCE, ask_again, config

HEAD, BODY = EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK
RESPONSE, INSPECT = EventType.RESPONSE_HEADERS, EventType.GUARDRAIL_INSPECT
ADMIN = AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "admin")])
ADMIN_JSON = b'{"decision":"allow","request_headers":[{"set":{"name":"x-user","value":"admin"}}]}'


@asynccontextmanager
async def connected(middleware: AgentMiddleware) -> AsyncIterator[anyio.abc.TaskGroup]:
    with anyio.fail_after(PATIENCE):
        async with middleware.manager, anyio.create_task_group() as tasks:
            yield tasks
            tasks.cancel_scope.cancel()


class TestWhatAnAgentIsSaidToHear:
    """It is asked, or its failure mode applies."""

    @pytest.mark.parametrize("fate", ["nothing", "the first drains", "the second drains", "the second leaves"])
    async def test_of_two_instances_the_one_that_hears_an_event_is_asked(self, fate: str) -> None:
        async def heads(event: Received) -> None:
            if fate == "the first drains":
                await event.link.say(3)
            elif fate != "nothing":
                (link,) = second.links
                await (link.say(3) if fate == "the second drains" else link.aclose())
            await settle()
            await event.answer()

        async def responses(event: Received) -> None:
            await event.answer(AgentResponse.block(451))

        first = Peer(handshake(events=frozenset({HEAD})), behaviour=heads)
        second = Peer(handshake(events=frozenset({RESPONSE})), behaviour=responses)
        async with first.listening(), second.listening():
            transport = StreamTransport([first.url, second.url], connections=1)
            middleware = guarded(App(), config(transport, timeout=5.0))
            async with connected(middleware):
                await until(lambda: first.links and second.links)
                client = await ask_again(middleware)
        assert client.status in ([451] if fate in ("nothing", "the first drains") else [451, 503, 504])

    async def test_events_that_were_configured_are_asked_whatever_the_handshake_says(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def judge(event: Received) -> None:
            await event.answer(AgentResponse.block(422) if event.event_type is BODY else ALLOW)

        caplog.set_level(logging.INFO, "asgi_agents")
        async with Peer(handshake(events=frozenset({HEAD})), behaviour=judge).listening() as peer:
            middleware = guarded(App(), config(StreamTransport(peer.url, connections=3), events={HEAD, BODY}))
            async with connected(middleware):
                await until(lambda: len(peer.links) == 3)
                for _ in range(4):
                    client = await ask_again(middleware, Client("POST", body=b"evil"))
                    assert client.status == 422
        lines = [record.getMessage() for record in caplog.records if record.name == "asgi_agents"]
        assert sum("request_body_chunk" in line for line in lines) == 1


class TestTheOlderFraming:
    """Its agents may answer a connection's events in any order, so that there is one at a time."""

    @staticmethod
    def guard(peer: Peer, **options: Any) -> AgentMiddleware:
        return guarded(App(), config(StreamTransport(peer.url, framing="envelope"), events={HEAD}, **options))

    @pytest.mark.parametrize(("requests", "limit", "expected"), [(14, 100, 14), (40, 100, 32), (6, 3, 3)])
    async def test_answers_in_any_order_are_given_to_their_own_requests(
        self, requests: int, limit: int, expected: int
    ) -> None:
        clients = [Client(path="/good" if number % 2 else "/evil") for number in range(requests)]
        async with Peer(framing="envelope").listening() as peer:
            middleware = self.guard(peer, max_concurrent_calls=limit)
            async with connected(middleware) as tasks:
                for client in clients:
                    tasks.start_soon(ask_again, middleware, client)
                waiting = [await peer.next() for _ in range(expected)]
                assert len({event.link.number for event in waiting}) == expected == len(peer.links)
                while waiting:
                    assert peer.unread == 0
                    event = waiting.pop()
                    await event.answer(AgentResponse.block(403) if event.payload["uri"] == "/evil" else ALLOW)
                    requests -= 1
                    if requests > len(waiting):
                        waiting.append(await peer.next())
                await until(lambda: all(client.complete for client in clients))
        assert [client.status for client in clients] == [
            200 if client.scope["path"] == "/good" else 403 for client in clients
        ]

    async def test_the_answer_to_a_call_that_was_given_up_is_given_to_nobody(self) -> None:
        async with Peer(framing="envelope").listening() as peer:
            middleware = self.guard(peer)
            async with connected(middleware):
                async with anyio.create_task_group() as gone:
                    gone.start_soon(ask_again, middleware)
                    abandoned = await peer.next()
                    gone.cancel_scope.cancel()
                async with anyio.create_task_group() as tasks:
                    client = Client(path="/evil")
                    tasks.start_soon(ask_again, middleware, client)
                    event = await peer.next()
                    assert event.link.number != abandoned.link.number
                    # Closed would be as good.
                    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                        await abandoned.answer()
                    await settle()
                    await event.answer(AgentResponse.block(403))
        assert client.status == 403


@pytest.mark.parametrize("ends", ["given up", "at its deadline"])
async def test_an_inspection_that_is_never_answered_takes_no_other_answer(ends: str) -> None:
    peer, names = Peer(), dict[EventType | None, str]()

    async def judge(event: Received) -> None:
        names[event.event_type] = event.correlation_id
        # The published Rust server knows a request's id, and no other name of a call.
        if event.event_type is not INSPECT:
            answer = AgentResponse.block(451) if event.event_type is RESPONSE else ALLOW
            await event.answer(answer, ids=CallIds(event.correlation_id))

    async def handler(request: Request) -> PlainTextResponse:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(inspect, request)
                await until(lambda: INSPECT in names)
                if ends == "given up":
                    scope.cancel()
        return PlainTextResponse("hello")

    async def inspect(request: Request) -> None:
        try:
            await request.state.agents.inspect_guardrail("agent", "text", inspection_type="pii_detection")
        except Exception as exc:
            assert ends == "at its deadline", exc  # noqa: PT017

    peer.behaviour = judge
    async with peer.listening():
        timeout = 30.0 if ends == "given up" else 2.0
        middleware = guarded(Router([AppRoute("/", handler)]), AgentConfig("agent", peer.url, timeout=timeout))
        async with connected(middleware):
            client = await ask_again(middleware)
    assert client.status == 451
    assert names[INSPECT] != names[HEAD] == names[RESPONSE]


EXTRAS = {
    "an answer": raw_answer(ADMIN_JSON),
    "half of one": raw_answer(ADMIN_JSON)[:-20],
    "an interim response": b"HTTP/1.1 100 Continue\r\n\r\n" + raw_answer(ADMIN_JSON),
    "a line": b"\r\n" + raw_answer(ADMIN_JSON),
    "a byte": b"\n",
}


class TestWhatComesAfterTheEndOfAnAnswer:
    """The connection is never used again."""

    @pytest.mark.parametrize("when", ["with it", "later"])
    @pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
    async def test_over_http(self, extra: bytes, when: str, http_client: str) -> None:
        later, said = anyio.Event(), anyio.Event()

        async def behave(stream: anyio.abc.ByteStream) -> None:
            await read_request(stream)
            if agent.accepted == 1:
                await stream.send(raw_answer() + (extra if when == "with it" else b""))
                await later.wait()
                if when == "later":
                    await stream.send(extra)
                said.set()
            else:
                await stream.send(raw_answer())
            while True:
                await read_request(stream)
                assert agent.accepted > 1, "the connection was used again"
                await stream.send(raw_answer())

        app = App()
        async with raw_agent(behave) as agent:
            middleware = guarded(app, config(HttpTransport(agent.url), events={HEAD}))
            async with connected(middleware):
                for _ in range(3):
                    client = await ask_again(middleware)
                    assert app.header(b"x-user") is None
                    later.set()
                    await said.wait()
                    await settle()
            assert (client.status, agent.accepted) == (200, 2)

    @pytest.mark.parametrize("framing", ["v2", "envelope"])
    async def test_over_a_stream(self, framing: str) -> None:
        links: list[int] = []

        async def judge(event: Received) -> None:
            links.append(event.link.number)
            own = event.frame(ids=CallIds())
            await event.link.send(own + event.frame(ADMIN, ids=CallIds()) if len(links) == 1 else own)

        app = App()
        async with Peer(framing=framing, behaviour=judge).listening() as peer:
            transport = StreamTransport(peer.url, connections=1, framing="envelope" if framing == "envelope" else "v2")
            # Its breaker would count the calls that fail while it connects again.
            middleware = guarded(app, config(transport, events={HEAD}, circuit_breaker=None))
            async with connected(middleware):
                while len(links) < 3:
                    # Those that come while it connects again may fail.
                    await ask_again(middleware)
                    assert app.header(b"x-user") is None
                    await anyio.sleep(0.001)
        assert links[0] not in links[1:]
