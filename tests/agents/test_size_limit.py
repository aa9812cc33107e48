"""SizeLimit, in front of an app and of a real server."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from asgi_agents import AgentConfig, ConfigurationError, EventType, protect
from asgi_agents.agents import SizeLimit
from tests.support.asgi import App, Client
from tests.support.servers import serve
from tests.unjudged.asking import ask, config

MODES = pytest.mark.parametrize("mode", ["buffer", "stream", "hybrid"])


def limit(mode: str, **limits: int) -> AgentConfig:
    return config(SizeLimit(**limits), "size", request_body_mode=mode)


@MODES
@pytest.mark.parametrize("body", [b"x" * 10, [b"x" * 5, b"x" * 5], [b"x"] * 10, b"", None])
async def test_a_body_up_to_the_limit_passes(mode: str, body: Any) -> None:
    app = App()
    client = await ask(app, limit(mode, max_body_bytes=10), client=Client("POST", body=body))
    assert (client.status, app.body) == (200, b"".join(body or []) if isinstance(body, list) else body or b"")


@MODES
async def test_a_body_that_declares_too_much_is_refused_before_the_app_is_called(mode: str) -> None:
    app = App()
    client = await ask(app, limit(mode, max_body_bytes=10), client=Client("POST", body=b"x" * 11))
    assert (client.status, app.calls, client.received) == (413, 0, 0)


@MODES
@pytest.mark.parametrize("declared", [b"3", b"0", b"-1", b"+11", b"1e2", "١١".encode(), b"", b"none"])
async def test_what_arrives_counts_and_not_a_length_that_lies(mode: str, declared: bytes) -> None:
    app = App()
    client = Client("POST", headers=[(b"content-length", declared)], body=b"x" * 11)
    assert (await ask(app, limit(mode, max_body_bytes=10), client=client)).status == 413
    assert b"x" * 11 not in app.body


@MODES
@pytest.mark.parametrize("declared", [b"11", b"9" * 30, b"9" * 10_000, b"0" * 30 + b"11"])
async def test_a_declared_length_of_any_number_of_digits_is_read(mode: str, declared: bytes) -> None:
    client = Client("POST", headers=[(b"content-length", declared)], unfinished=True)
    assert (await ask(App(), limit(mode, max_body_bytes=10), client=client)).status == 413


@MODES
async def test_a_body_of_no_declared_length_is_refused_once_it_is_too_long(mode: str) -> None:
    client = await ask(App(), limit(mode, max_body_bytes=10), client=Client("POST", body=[b"x" * 6, b"x" * 6]))
    assert client.status == 413


async def test_bodies_are_not_kept_in_stream_mode() -> None:
    """What is kept is limited to 1 MiB unless the configuration says otherwise; here nothing is."""
    app = App()
    body = [b"x" * 65_536] * 32
    client = await ask(app, limit("stream", max_body_bytes=3_000_000), client=Client("POST", body=body))
    assert (client.status, len(app.body)) == (200, 32 * 65_536)


@pytest.mark.parametrize(("size", "status"), [(100, 200), (101, 431)])
async def test_headers_are_counted_names_and_values_and_all_fields(size: int, status: int) -> None:
    headers = [(b"x-a", b"x" * 47), (b"x-a", b"y" * (size - 53))]
    client = await ask(App(), config(SizeLimit(max_headers_bytes=100)), client=Client(headers=headers))
    assert client.status == status


@pytest.mark.parametrize(("path", "status"), [("/" + "x" * 19, 200), ("/" + "x" * 20, 414)])
async def test_a_uri_that_is_too_long_is_refused(path: str, status: int) -> None:
    assert (await ask(App(), config(SizeLimit(max_uri_bytes=20)), client=Client(path=path))).status == status


def test_a_websocket_message_that_is_too_large_closes_the_session_with_1009() -> None:
    app = FastAPI()

    @app.websocket("/ws")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text * 3)

    protect(app, agents=[AgentConfig("size", SizeLimit(max_message_bytes=10))])
    with TestClient(app).websocket_connect("/ws") as session:
        session.send_text("x" * 10)
        # The app's own messages may be larger.
        assert session.receive_text() == "x" * 30
        session.send_text("é" * 6)
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_text()
    assert (closed.value.code, closed.value.reason) == (1009, "Message too big")


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_a_real_client_is_told_413(http: str) -> None:
    app = FastAPI()

    @app.post("/")
    async def size(request: Request) -> int:
        return len(await request.body())

    protect(app, agents=[limit("stream", max_body_bytes=100_000)])

    def pieces() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 1000

    with serve(app, http=http) as url, httpx.Client() as client:
        assert client.post(url, content=b"x" * 100_000).status_code == 200
        assert client.post(url, content=b"x" * 100_001).status_code == 413
        assert client.post(url, content=pieces()).status_code == 413


def test_only_what_has_a_limit_is_looked_at() -> None:
    head = EventType.REQUEST_HEADERS
    assert SizeLimit(max_uri_bytes=1).events == {head}
    assert SizeLimit(max_body_bytes=1).events == {head, EventType.REQUEST_BODY_CHUNK}
    assert SizeLimit(max_message_bytes=1).events == {head, EventType.WEBSOCKET_FRAME}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "no limit"),
        ({"max_body_bytes": 0}, "max_body_bytes=0"),
        ({"max_uri_bytes": True}, "max_uri_bytes=True"),
        ({"max_message_bytes": "1 MB"}, "max_message_bytes='1 MB'"),
    ],
)
def test_a_limit_that_is_none_is_a_configuration_error(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^SizeLimit: {message}"):
        SizeLimit(**limits)
