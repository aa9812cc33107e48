"""What arrives is judged, whatever its head declares."""

from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import AgentResponse, BodyMode, FailureMode, HeaderOp
from tests.support.asgi import App, Client, Probe, guarded, start
from tests.support.asgi import body as chunk
from tests.support.servers import serve
from tests.threats.raw import say

from .asking import ask, ask_again, config, outcomes

PIECES = [b"01234", b"56789"]
BODY = b"".join(PIECES)
ALICE = AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])
CHUNKED = (b"transfer-encoding", b"chunked")

FRAMINGS: dict[str, tuple[str, list[tuple[bytes, bytes]]]] = {
    "both, zero": ("1.1", [(b"content-length", b"0"), CHUNKED]),
    "both, zero, the other order": ("1.1", [CHUNKED, (b"content-length", b"0")]),
    "both, huge": ("1.1", [(b"content-length", b"9999999"), CHUNKED]),
    "both, less": ("1.1", [(b"content-length", b"1"), CHUNKED]),
    "both, nonsense": ("1.1", [(b"content-length", b"-1"), CHUNKED]),
    "both, several lengths": ("1.1", [(b"content-length", b"0"), (b"content-length", b"0"), CHUNKED]),
    "both, in other cases": ("1.1", [(b"Content-Length", b"0"), (b"Transfer-Encoding", b"Chunked")]),
    "a list": ("1.1", [(b"content-length", b"0"), (b"transfer-encoding", b"gzip, CHUNKED")]),
    "a list in two fields": ("1.1", [(b"transfer-encoding", b"gzip"), CHUNKED, (b"content-length", b"0")]),
    "HTTP/1.0": ("1.0", [(b"content-length", b"0"), CHUNKED]),
    "HTTP/2": ("2", []),
    "HTTP/2, zero": ("2", [(b"content-length", b"0")]),
    "HTTP/3": ("3", []),
}
each_framing = pytest.mark.parametrize(("version", "headers"), FRAMINGS.values(), ids=FRAMINGS)


def client(version: str, headers: list[tuple[bytes, bytes]]) -> Client:
    made = Client("POST", body=PIECES, http_version=version)
    made.scope["headers"] = list(headers)
    return made


@each_framing
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.hybrid(5)], ids=["buffer", "hybrid"])
async def test_a_buffered_agent_comes_before_the_app(version: str, headers: Any, mode: BodyMode) -> None:
    heard: list[int] = []
    agent = Probe(request_body=lambda event: ALICE if not app.calls else heard.append(app.calls))
    app = App()
    await ask(app, config(agent, request_body_mode=mode), client=client(version, headers))
    assert b"".join(data for _, data, _ in agent.chunks) == app.body == BODY
    assert app.header(b"x-user") == b"alice"


@each_framing
async def test_a_block_of_the_body_keeps_the_app_from_being_called(version: str, headers: Any) -> None:
    app, visitor = App(), client(version, headers)
    await ask(app, config(Probe(request_body=AgentResponse.block(418))), client=visitor)
    assert (visitor.status, app.calls) == (418, 0)


@each_framing
@pytest.mark.parametrize("failure_mode", FailureMode)
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.STREAM], ids=["buffer", "stream"])
async def test_a_limit_is_for_what_arrives(
    version: str, headers: Any, failure_mode: FailureMode, mode: BodyMode
) -> None:
    """A client can't declare its way past an agent, in either direction."""
    within, beyond = Probe(request_body=None), Probe(request_body=None)
    options: dict[str, Any] = {"failure_mode": failure_mode, "request_body_mode": mode}
    app, visitor = App(), client(version, headers)
    await ask(app, config(within, max_request_body_bytes=10, **options), client=visitor)
    assert (visitor.status, b"".join(data for _, data, _ in within.chunks)) == (200, BODY)
    middleware = guarded(App(), config(beyond, max_request_body_bytes=9, **options))
    visitor = await ask_again(middleware, client(version, headers))
    assert visitor.status == (413 if failure_mode is FailureMode.CLOSED else 200)
    assert outcomes(middleware)["request_too_large"] == 1


@each_framing
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.STREAM], ids=["buffer", "stream"])
async def test_the_size_that_agents_are_told_is_not_the_client_s_word(
    version: str, headers: Any, mode: BodyMode
) -> None:
    agent = Probe(request_body=None)
    await ask(App(), config(agent, request_body_mode=mode), client=client(version, headers))
    assert {event.total_size for event in agent.of("request_body")} <= {None, len(BODY)}


@pytest.mark.parametrize("declared", [b"0", b"1", b"9999999"])
async def test_a_response_declared_twice_is_heard_whole_or_not_passed(declared: bytes) -> None:
    agent = Probe(response_body=None)
    app = App(
        start(200, (b"content-length", declared), CHUNKED), *(chunk(piece, more=True) for piece in PIECES), chunk()
    )
    reader = config(agent, failure_mode=FailureMode.OPEN, max_response_body_bytes=10)
    visitor = await ask(app, reader)
    assert b"".join(data for _, data, _ in agent.chunks) == visitor.body == BODY


WIRE = {
    "zero": b"content-length: 0\r\ntransfer-encoding: chunked",
    "huge": b"content-length: 9999999\r\ntransfer-encoding: chunked",
    "case": b"Content-Length: 0\r\nTransfer-Encoding: Chunked",
    "several": b"content-length: 0\r\ncontent-length: 0\r\ntransfer-encoding: chunked",
    "list": b"content-length: 0\r\ntransfer-encoding: gzip, chunked",
    "folded": b"content-length: 0\r\ntransfer-encoding:\r\n chunked",
    "plus": b"content-length: +10\r\ntransfer-encoding: chunked",
    "chunked alone": b"transfer-encoding: chunked",
}


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("framing", WIRE.values(), ids=WIRE)
def test_a_server_either_refuses_such_a_request_or_its_agents_hear_it_first(framing: bytes, http: str) -> None:
    seen: list[tuple[bytes, list[bytes]]] = []
    agent = Probe(request_body=ALICE)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        whole, heard = b"", b"".join(data for _, data, _ in agent.chunks)
        while (message := await receive())["type"] == "http.request":
            whole += message["body"]
            if not message["more_body"]:
                break
        assert heard == whole
        seen.append((whole, [value for name, value in scope["headers"] if name == b"x-user"]))
        await send(start(200, (b"content-length", b"0")))
        await send(chunk())

    with serve(guarded(app, config(agent)), http=http) as url:
        head = b"POST / HTTP/1.1\r\nhost: app\r\nconnection: close\r\nx-user: root\r\n"
        answer = say(url, head + framing + b"\r\n\r\na\r\n0123456789\r\n0\r\n\r\n")
    if answer.startswith(b"HTTP/1.1 400"):
        assert seen == []
    else:
        assert answer.startswith(b"HTTP/1.1 200")
        assert seen == [(BODY, [b"alice"])]
