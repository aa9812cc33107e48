"""What a client can do with the body of a request while agents inspect it."""

import gzip
import tracemalloc
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as AppRoute

from asgi_agents import Agent, AgentConfig, AgentMiddleware, AgentResponse, BodyMode, FailureMode, RequestBodyChunkEvent
from tests.support.asgi import App, Client, assert_nothing_left, guarded, settle
from tests.support.servers import serve

from .raw import answer_of, connected, get, say, status_of

MIB = 1024 * 1024
LIMIT = 1000
MODES = [BodyMode.BUFFER, BodyMode.STREAM, BodyMode.hybrid(threshold=100)]


class Bodies(Agent):
    """Remembers what it was shown, and blocks what has `evil` in it."""

    def __init__(self) -> None:
        self.shown: list[bytes] = []
        self.finished = 0

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        self.shown.append(event.data)
        self.finished += event.is_last
        return AgentResponse.block(422, "evil") if b"evil" in b"".join(self.shown) else None


class Seen:
    """An app that remembers the bodies that it has got to the end of."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.app = Starlette(routes=[AppRoute("/", self.take, methods=["GET", "POST"])])

    async def take(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        return PlainTextResponse("taken")


def behind(app: Any, agent: Agent, **options: Any) -> AgentMiddleware:
    return AgentMiddleware(app, agents=[AgentConfig("agent", agent, **options)])


def post(url: str, framing: bytes, body: bytes) -> bytes:
    return get(url, b"/", framing, method=b"POST", body=body)


CHUNKED = b"transfer-encoding: chunked"
# How a client can lie about its body: the header lines, and what follows them.
LIES = {
    "no end of the chunks": (CHUNKED, b"4\r\nevil\r\n"),
    "no end of a chunk": (CHUNKED, b"ff\r\nevil"),
    "a chunk size that is none": (CHUNKED, b"zz\r\nevil\r\n0\r\n\r\n"),
    "a chunk size without bounds": (CHUNKED, b"f" * 40 + b"\r\nevil"),
    "a negative chunk size": (CHUNKED, b"-4\r\nevil\r\n0\r\n\r\n"),
    "less than declared": (b"content-length: 100", b"evil"),
    "a negative length": (b"content-length: -1", b"evil"),
    "a length in other digits": (b"content-length: \xd9\xa4", b"evil"),
    "a length with a sign": (b"content-length: +4", b"evil"),
    "a length without bounds": (b"content-length: " + b"9" * 30, b"evil"),
    "two lengths": (b"content-length: 0\r\ncontent-length: 4", b"evil"),
    "a list of lengths": (b"content-length: 0, 4", b"evil"),
    "a length beside chunks": (b"content-length: 0\r\n" + CHUNKED, b"4\r\nevil\r\n0\r\n\r\n"),
    "chunks beside a length": (CHUNKED + b"\r\ncontent-length: 0", b"4\r\nevil\r\n0\r\n\r\n"),
    "chunked twice": (b"transfer-encoding: chunked, chunked", b"4\r\nevil\r\n0\r\n\r\n"),
    "chunked by another name": (b"transfer-encoding: xchunked", b"4\r\nevil\r\n0\r\n\r\n"),
    "chunked with an odd blank": (b"transfer-encoding:\x0bchunked", b"4\r\nevil\r\n0\r\n\r\n"),
    "chunked, folded": (b"transfer-encoding:\r\n chunked", b"4\r\nevil\r\n0\r\n\r\n"),
    "a blank before the colon": (b"content-length : 4", b"evil"),
}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_a_bodys_length_brings_nothing_unjudged_to_the_app(
    server: dict[str, Any], lie: str, mode: BodyMode
) -> None:
    seen, agent = Seen(), Bodies()
    framing, body = LIES[lie]
    with serve(behind(seen.app, agent, request_body_mode=mode), **server) as url, connected(url) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nhost: app\r\nconnection: close\r\n" + framing + b"\r\n\r\n" + body)
        sock.shutdown(1)
        answered = answer_of(sock)

    # The server refuses it, or the agent does, or nobody ever gets an answer; or it was no body to anyone.
    assert status_of(answered) in (0, 400, 422, 501) or seen.bodies == [b""]
    assert not [body for body in seen.bodies if b"evil" in body]


def test_more_than_was_declared_is_another_request(server: dict[str, Any]) -> None:
    """And that one is judged like any other."""
    seen, agent = Seen(), Bodies()
    smuggled = b"POST / HTTP/1.1\r\nhost: app\r\nconnection: close\r\ncontent-length: 4\r\n\r\nevil"
    with serve(behind(seen.app, agent), **server) as url:
        answered = say(url, b"POST / HTTP/1.1\r\nhost: app\r\ncontent-length: 4\r\n\r\ngood" + smuggled)

    assert [answered.count(status) for status in (b" 200 OK", b" 422 ")] == [1, 1]
    assert agent.shown == [b"good", b"evil"]
    assert seen.bodies == [b"good"]


@pytest.mark.parametrize("failure_mode", FailureMode)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_over_the_limit_is_413_or_goes_on_without_the_agent(
    server: dict[str, Any], mode: BodyMode, failure_mode: FailureMode, declared: bool
) -> None:
    seen, agent = Seen(), Bodies()
    body = b"a" * (LIMIT + 1)
    options = {"request_body_mode": mode, "failure_mode": failure_mode, "max_request_body_bytes": LIMIT}
    with serve(behind(seen.app, agent, **options), **server) as url:
        if declared:
            answered = post(url, b"content-length: %d" % len(body), body)
        else:
            answered = post(url, CHUNKED, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    if failure_mode is FailureMode.CLOSED:
        assert status_of(answered) == 413
        assert answered.endswith(b"Payload too large for security inspection")
        assert seen.bodies == []
    else:
        assert status_of(answered) == 200
        assert seen.bodies == [body]
    assert sum(map(len, agent.shown)) <= LIMIT
    assert not agent.finished


async def test_what_slow_clients_send_is_held_up_to_the_limit_and_no_more() -> None:
    """Memory is bounded by the limit times the connections; how many and how slow they are is for the server to say."""
    app, clients = App(), [Client("POST", body=[], unfinished=True) for _ in range(10)]
    middleware = guarded(app, AgentConfig("agent", Bodies(), max_request_body_bytes=MIB // 4))
    piece = MIB // 16

    tracemalloc.start()
    try:
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(client.call, middleware)
            for _ in range(20):
                for client in clients:
                    if client.status is None:
                        client.give(bytes(piece), more=True)
                await settle()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert {client.status for client in clients} == {413}
    # The limit, and the piece that was too much, of each.
    assert peak < len(clients) * (MIB // 4 + 2 * piece) + MIB
    assert app.calls == 0
    assert_nothing_left(middleware.manager)


async def test_a_client_that_never_ends_its_body_is_for_the_server_to_time_out() -> None:
    """What is not defended: nothing here ends the wait for a client. No agent is asked meanwhile."""
    agent, app = Bodies(), App()
    client = Client("POST", body=[b"half of it"], unfinished=True)
    middleware = guarded(app, AgentConfig("agent", agent, timeout=0.01, chunk_timeout=0.01))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await anyio.sleep(0.05)
        assert (client.status, agent.shown, app.calls) == (None, [], 0)
        client.leave()

    assert (client.status, app.calls) == (None, 0)


def test_a_compressed_body_is_shown_compressed() -> None:
    """What is not defended: who lets an app unpack bodies has to let an agent do it, too, or refuse them."""
    seen, agent = Seen(), Bodies()
    packed = gzip.compress(b"evil")
    with serve(behind(seen.app, agent)) as url:
        answered = get(
            url, b"/", b"content-length: %d" % len(packed), b"content-encoding: gzip", method=b"POST", body=packed
        )

    assert (status_of(answered), agent.shown, seen.bodies) == (200, [packed], [packed])
