"""What a request's head says of its body, right or wrong, and what arrives: the agents judge what arrives."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from asgi_agents import (
    AgentConfig,
    AgentResponse,
    BodyMode,
    FailureMode,
    HeaderOp,
    RequestBodyChunkEvent,
    ResponseBodyChunkEvent,
)
from tests.support.asgi import App, Client, Headers, Probe, body, guarded, start
from tests.support.servers import serve
from tests.threats.raw import get, head_of, status_of

LIMIT = 40

# What of each is put into the head, for a body of ``size`` bytes.
LENGTHS: dict[str, Any] = {
    "none": lambda size: [],
    "0": lambda size: [b"0"],
    "right": lambda size: [b"%d" % size],
    "too small": lambda size: [b"%d" % max(0, size - 1)],
    "too large": lambda size: [b"%d" % (size + 20)],
    "over the limit": lambda size: [b"9999999"],
    "signed": lambda size: [b"+%d" % size],
    "with a blank": lambda size: [b" %d" % size],
    "huge": lambda size: [b"9" * 5000],
    "several": lambda size: [b"0", b"%d" % size],
    "the same twice": lambda size: [b"%d" % size] * 2,
    "a list": lambda size: [b"0, %d" % size],
}
ENCODINGS: dict[str, Headers] = {
    "none": [],
    "chunked": [(b"transfer-encoding", b"chunked")],
    "identity": [(b"transfer-encoding", b"identity")],
    "list": [(b"transfer-encoding", b"gzip, chunked")],
    "odd case": [(b"Transfer-Encoding", b"cHUNKED")],
}
BODIES: Sequence[Sequence[bytes]] = [[b""], [b"one piece"], [b"some", b"", b"more", b"pieces"], [b"0123456789"] * 5]
MODES = [BodyMode.BUFFER, BodyMode.STREAM, BodyMode.hybrid(threshold=6)]


class Order(App):
    """Remembers what its agent had been shown when it was called."""

    def __init__(self, agent: Probe) -> None:
        super().__init__()
        self._agent = agent
        self.shown_before = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        self.shown_before = shown_to(self._agent)
        return await super().__call__(scope, receive, send)


def shown_to(agent: Probe) -> bytes:
    return b"".join(data for _, data, _ in agent.chunks)


def fields(length: str, encoding: str, size: int) -> Headers:
    return [*((b"content-length", value) for value in LENGTHS[length](size)), *ENCODINGS[encoding]]


def declares_too_much(length: str, encoding: str, size: int) -> bool:
    """Whether the head declares, in a way that can be believed, more than an agent takes."""
    if encoding != "none" or length == "huge":
        return False
    return any(value.isdigit() and int(value) > LIMIT for value in LENGTHS[length](size)) and length != "several"


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("failure_mode", FailureMode)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("http_version", ["1.0", "1.1", "2", "3"])
async def test_whatever_a_head_says_of_a_body_all_of_it_is_judged(
    http_version: str, mode: BodyMode, failure_mode: FailureMode
) -> None:
    for length, encoding, pieces in itertools.product(LENGTHS, ENCODINGS, BODIES):
        whole = b"".join(pieces)
        case = f"{length=}, {encoding=}, {pieces}"
        answer = AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])
        # In the other modes the app may have the head before.
        agent = Probe(request_body=answer if mode == BodyMode.BUFFER else None)
        app, client = Order(agent), Client("POST", body=pieces, http_version=http_version)
        client.scope["headers"] = [(b"x-user", b"root"), *fields(length, encoding, len(whole))]
        config = AgentConfig(
            "a", agent, request_body_mode=mode, failure_mode=failure_mode, max_request_body_bytes=LIMIT
        )

        await client.call(guarded(app, config))

        if client.status == 413:
            # Refused for what was declared, or for what came.
            assert failure_mode is FailureMode.CLOSED, case
            assert len(whole) > LIMIT or declares_too_much(length, encoding, len(whole)), case
            assert app.body == b"" or mode != BodyMode.BUFFER, case
            continue
        assert client.status == 200, case
        assert app.body == whole, case
        if len(whole) > LIMIT:
            assert failure_mode is FailureMode.OPEN, case
            continue
        assert shown_to(agent) == whole, case
        for event in agent.of("request_body"):
            assert isinstance(event, RequestBodyChunkEvent)
            assert event.total_size is None or event.total_size >= event.bytes_received, case
            assert not event.is_last or event.total_size == len(whole), case
        lengths = [value for name, value in app.headers if name == b"content-length"]
        if mode == BodyMode.BUFFER:
            assert app.shown_before == whole, case
            assert app.header(b"x-user") == (b"alice" if whole else b"root"), case
            claimed = LENGTHS[length](len(whole)) and encoding == "none"
            assert set(lengths) == ({b"%d" % len(whole)} if claimed else set()), case


@pytest.mark.parametrize("failure_mode", FailureMode)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
async def test_whatever_a_response_says_of_its_body_all_of_it_is_judged(
    mode: BodyMode, failure_mode: FailureMode
) -> None:
    for length, encoding, pieces in itertools.product(LENGTHS, ENCODINGS, BODIES):
        whole = b"".join(pieces)
        case = f"{length=}, {encoding=}, {pieces}"
        agent = Probe(response_body=None)
        messages = [body(piece, more=True) for piece in pieces]
        head = start(200, *fields(length, encoding, len(whole)))
        app, client = App(head, *messages, body()), Client()
        config = AgentConfig(
            "a", agent, response_body_mode=mode, failure_mode=failure_mode, max_response_body_bytes=LIMIT
        )
        try:
            await client.call(guarded(app, config))
        except Exception:
            assert len(whole) > LIMIT, case

        if failure_mode is FailureMode.CLOSED and declares_too_much(length, encoding, len(whole)):
            assert (client.status, agent.chunks) == (500, []), case
            continue
        if len(whole) <= LIMIT:
            assert shown_to(agent) == whole, case
        if failure_mode is FailureMode.OPEN or len(whole) <= LIMIT:
            assert (client.status, client.body) == (200, whole), case
        for event in agent.of("response_body"):
            assert isinstance(event, ResponseBodyChunkEvent)
            assert event.total_size is None or event.total_size >= event.bytes_sent, case
            assert not event.is_last or event.total_size == len(whole), case


@pytest.mark.parametrize("headers", [[], [(b"host", b"app.example")]], ids=["no header", "a header"])
async def test_a_request_with_nothing_declared_whose_client_has_left_reaches_the_app(headers: Headers) -> None:
    """As it would without agents: there is nothing to be judged."""
    app, client = App(), Client(unfinished=True, spec_version="2.3")
    client.scope["headers"] = headers
    client.leave()
    await client.call(guarded(app, AgentConfig("a", Probe(request_body=None))))
    assert app.calls == 1
    assert app.disconnected


async def test_where_no_body_can_arrive_nothing_is_read_before_the_app_is_called() -> None:
    async def receive() -> Any:
        raise NotImplementedError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    call: Any = guarded(App(read=False), AgentConfig("a", Probe(request_body=None)))
    await call({"type": "http", "path": "/", "headers": []}, receive, send)
    assert len(sent) == 2


@pytest.fixture(params=["httptools", "h11"])
def server(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of uvicorn, once for each of its HTTP parsers."""
    return {"http": request.param, "loop": "asyncio"}


CHUNKS = b"a\r\n0123456789\r\n0\r\n\r\n"


@pytest.mark.parametrize("length", [b"0", b"9999999", b"10"])
@pytest.mark.parametrize("failure_mode", FailureMode)
def test_a_length_beside_chunks_is_nothing_to_a_buffering_agent(
    server: dict[str, Any], length: bytes, failure_mode: FailureMode
) -> None:
    """httptools takes it only where it is lenient, and refuses it else; h11 takes it always."""
    agent = Probe(request_body=AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")]))
    app = Order(agent)
    config = AgentConfig("a", agent, failure_mode=failure_mode, max_request_body_bytes=1000)
    with serve(guarded(app, config), **server, lifespan="off") as url:
        answered = get(
            url,
            b"/",
            b"x-user: root",
            b"content-length: " + length,
            b"transfer-encoding: chunked",
            method=b"POST",
            body=CHUNKS,
        )

    if status_of(answered) == 400:
        assert server["http"] == "httptools"
        assert app.calls == 0
        return
    assert status_of(answered) == 200, head_of(answered)
    assert agent.chunks == [(0, b"0123456789", True)]
    assert app.shown_before == app.body == b"0123456789"
    assert app.header(b"x-user") == b"alice"
    assert app.header(b"content-length") is None
