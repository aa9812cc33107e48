"""Drives an ASGI app without a server: what it would be given by one, as fast as it takes it."""

import asyncio
from collections.abc import Sequence
from typing import Final

from starlette.types import ASGIApp, Message, Scope

_HEADERS: Final = (
    (b"host", b"127.0.0.1"),
    (b"user-agent", b"benchmark/1"),
    (b"accept", b"application/json, text/plain, */*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"authorization", b"Bearer 0123456789abcdef0123456789abcdef"),
)


def http_scope(path: str, *, method: str = "GET", headers: Sequence[tuple[bytes, bytes]] = ()) -> Scope:
    """What uvicorn makes of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": method,
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"verbose=1",
        "headers": [*_HEADERS, *headers],
        "state": {},
    }


def websocket_scope(path: str) -> Scope:
    scope = http_scope(path)
    del scope["method"]
    extensions: dict[str, dict[str, str]] = {"websocket.http.response": {}}
    return {**scope, "type": "websocket", "scheme": "ws", "subprotocols": [], "extensions": extensions}


def body_messages(*chunks: bytes) -> Sequence[Message]:
    last = len(chunks) - 1
    return [{"type": "http.request", "body": body, "more_body": at < last} for at, body in enumerate(chunks)]


def frame_messages(text: str, count: int) -> Sequence[Message]:
    """A whole session: the handshake, ``count`` messages, the end."""
    return [
        {"type": "websocket.connect"},
        *[{"type": "websocket.receive", "text": text} for _ in range(count)],
        {"type": "websocket.disconnect", "code": 1000, "reason": ""},
    ]


async def drive(app: ASGIApp, scope: Scope, messages: Sequence[Message], times: int) -> list[Message]:
    """Open ``times`` connections, one after the other.

    :returns: what the app sent in the last of them.
    """
    sent: list[Message] = []
    coming = iter(messages)

    async def receive() -> Message:
        for message in coming:
            return message
        # As with a server: the client says no more, and stays.
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    for _ in range(times):
        sent.clear()
        coming = iter(messages)
        await app({**scope, "headers": [*scope["headers"]], "state": {}}, receive, send)
    return sent
