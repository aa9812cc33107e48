"""What a client can do with a websocket, and an agent with what it answers to its messages."""

import socket
import struct
import threading
from typing import Any

import anyio.to_thread
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route as AppRoute
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    EventType,
    HeaderOp,
    RequestHeadersEvent,
    Route,
    WebSocketClose,
    WebSocketFrameEvent,
)
from tests.support.servers import serve

from .raw import connected, get, status_of

HANDSHAKE = (
    b"upgrade: websocket",
    b"sec-websocket-version: 13",
    b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
)


def frame(data: bytes, opcode: int = 1, *, fin: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    first = (0x80 if fin else 0) | opcode
    if len(data) < 126:
        return bytes([first, 0x80 | len(data)]) + bytes(4) + data
    return bytes([first, 0x80 | 127]) + struct.pack(">Q", len(data)) + bytes(4) + data


class Messages(Agent):
    """Remembers every message of the client, and closes at one that has `evil` in it."""

    def __init__(self) -> None:
        self.shown: list[bytes] = []
        self.handshakes: list[RequestHeadersEvent] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self.handshakes.append(event)

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        if not event.client_to_server:
            return None
        self.shown.append(event.data)
        return AgentResponse.websocket_close(4000, "evil") if b"evil" in event.data else None


class Talk:
    """An app that remembers every message, and what it was offered."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.subprotocols: list[list[str]] = []
        self.app = Starlette(routes=[WebSocketRoute("/ws", self.listen), AppRoute("/http", self.answer)])

    async def listen(self, websocket: WebSocket) -> None:
        self.subprotocols.append(websocket.scope["subprotocols"])
        await websocket.accept()
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                self.heard.append(message.get("text") or message.get("bytes"))
        except WebSocketDisconnect:
            pass

    async def answer(self, request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")


def upgrade(sock: socket.socket, path: bytes = b"/ws") -> None:
    """Ask for a websocket."""
    sock.sendall(b"\r\n".join((b"GET %b HTTP/1.1" % path, b"host: app", b"connection: Upgrade", *HANDSHAKE, b"", b"")))


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    """What comes, up to ``wanted`` or the end."""
    received = b""
    while wanted not in received and (data := sock.recv(65536)):
        received += data
    return received


CLOSE = frame(struct.pack(">H", 1000), 8)
# Frames that bring `evil` past those who look at single frames.
SLY = {
    "at once": frame(b"evil"),
    "after a good one": frame(b"good") + frame(b"evil"),
    "in fragments": frame(b"ev", fin=False) + frame(b"i", 0, fin=False) + frame(b"l", 0),
    "around a ping": frame(b"ev", fin=False) + frame(b"x", 9) + frame(b"il", 0),
    "as binary": frame(b"\x00evil\xff", 2),
    "in a large one": frame(b"a" * 200_000 + b"evil"),
    "before a close": frame(b"evil") + CLOSE,
}


class Early(Messages):
    """Thinks about the handshake until the client has sent something that should have waited for the answer to it."""

    def __init__(self, answer: AgentResponse | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.asked, self.sent = threading.Event(), threading.Event()

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:  # type: ignore[override]
        self.asked.set()
        await anyio.to_thread.run_sync(self.sent.wait, 10)
        return self.answer


@pytest.mark.parametrize("early", [True, False], ids=["before accept", "after accept"])
@pytest.mark.parametrize("sly", SLY)
def test_no_message_passes_unjudged_however_it_is_sent(server: dict[str, Any], sly: str, early: bool) -> None:
    talk, agent = Talk(), Early()
    app = AgentMiddleware(talk.app, agents=[AgentConfig("agent", agent, timeout=30)])
    with serve(app, **server) as url, connected(url) as sock:
        upgrade(sock)
        answered = b""
        if early:
            agent.asked.wait(60)
            sock.sendall(SLY[sly])
            agent.sent.set()
        else:
            agent.sent.set()
            answered = read_until(sock, b"\r\n\r\n")
            sock.sendall(SLY[sly])
        answered += read_until(sock, b"\x0f\xa0evil")

    if sly != "before a close":  # there the client may be first
        assert b"\x0f\xa0evil" in answered  # closed with 4000
        assert b"evil" in agent.shown[-1]
    assert not [message for message in talk.heard if "evil" in str(message)]


def test_frames_that_come_with_a_handshake_that_is_denied_reach_nobody(server: dict[str, Any]) -> None:
    talk, agent = Talk(), Early(AgentResponse.block(403, "no"))
    with (
        serve(AgentMiddleware(talk.app, agents=[AgentConfig("agent", agent, timeout=30)]), **server) as url,
        connected(url) as sock,
    ):
        upgrade(sock)
        agent.asked.wait(60)
        sock.sendall(frame(b"evil") * 10)
        agent.sent.set()
        answered = read_until(sock, b"\r\n\r\n")

    assert status_of(answered) in (0, 403)  # 0: the server has broken it off
    assert (agent.shown, talk.heard, talk.subprotocols) == ([], [], [])


def test_an_upgrade_on_a_plain_route_and_a_request_to_a_websocket_route_are_heard(server: dict[str, Any]) -> None:
    talk, agent = Talk(), Messages()
    routes = [Route("/ws", ["agent"], methods=["GET"]), Route("/http", ["agent"], methods=["GET"])]
    with serve(AgentMiddleware(talk.app, agents=[AgentConfig("agent", agent)], routes=routes), **server) as url:
        assert status_of(get(url, b"/ws")) == 404
        assert status_of(get(url, b"/http")) == 200
        with connected(url) as sock:
            upgrade(sock, b"/http")
            assert sock.recv(65536).startswith(b"HTTP/1.1 403 ")

    assert [event.uri for event in agent.handshakes] == ["/ws", "/http", "/http"]
    assert talk.subprotocols == []


def test_an_agent_can_not_change_what_a_websocket_negotiates() -> None:
    class Meddler(Agent):
        def __init__(self, name: str) -> None:
            self.name = name

        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
            op = HeaderOp.set(self.name, "chat")
            return AgentResponse.allow(request_headers=[op], response_headers=[op])

    for name in ("Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Sec-WebSocket-Accept", "Upgrade"):
        talk = Talk()
        app = AgentMiddleware(talk.app, agents=[AgentConfig("agent", Meddler(name))])
        with pytest.raises(WebSocketDisconnect), TestClient(app).websocket_connect("/ws"):
            pass
        assert talk.subprotocols == []


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65536, -1])
def test_an_agent_can_not_close_with_a_code_that_no_peer_may_send(code: int) -> None:
    class Close(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse:
            return AgentResponse(websocket_decision=WebSocketClose(code, "x"))

    app = AgentMiddleware(Talk().app, agents=[AgentConfig("agent", Close())])
    with TestClient(app).websocket_connect("/ws") as websocket:
        websocket.send_text("x")
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()

    assert (closed.value.code, closed.value.reason) == (1011, "Agent error")


def test_a_close_reason_of_any_length_fits_into_its_frame(server: dict[str, Any]) -> None:
    class Close(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse:
            return AgentResponse.websocket_close(4000, "\u20ac" * 1000)

    app = AgentMiddleware(Talk().app, agents=[AgentConfig("agent", Close())])
    with serve(app, **server) as url, connected(url) as sock:
        upgrade(sock)
        read_until(sock, b"\r\n\r\n")
        sock.sendall(frame(b"x"))
        reason = "\u20ac".encode() * 41
        answered = read_until(sock, reason)

    assert answered == b"\x88\x7d\x0f\xa0" + reason


def test_a_message_larger_than_the_server_takes_is_the_servers_to_refuse() -> None:
    """What is not defended: a message is shown whole, of whatever size the server lets it be (`ws_max_size`)."""
    talk, agent = Talk(), Messages()
    app = AgentMiddleware(talk.app, agents=[AgentConfig("agent", agent, events={EventType.WEBSOCKET_FRAME})])
    with serve(app, ws_max_size=1000) as url, connected(url) as sock:
        upgrade(sock)
        read_until(sock, b"\r\n\r\n")
        sock.sendall(frame(b"b" * 1001))
        answered = read_until(sock, b"\x03\xf1")

    assert agent.shown == []
    assert b"\x03\xf1" in answered  # 1009, message too big
