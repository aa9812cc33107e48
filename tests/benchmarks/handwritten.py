"""Middlewares as one would write them for a single agent: no deadline, no breaker, no failure mode. For scale."""

import asyncio
import json
import re
from collections import deque
from datetime import UTC, datetime
from itertools import count
from typing import Final, cast

import httpx
import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Metadata(msgspec.Struct):
    correlation_id: str
    request_id: str
    client_ip: str
    client_port: int
    protocol: str
    timestamp: str


class RequestHeaders(msgspec.Struct):
    metadata: Metadata
    method: str
    uri: str
    headers: dict[str, list[str]]


class Event(msgspec.Struct):
    payload: RequestHeaders
    version: int = 2
    event_type: str = "request_headers"


class Answer(msgspec.Struct):
    decision: str


_JSON_HEADERS: Final = {"content-type": "application/json"}
_AGENT_URL: Final = "http://agent/"

_encoder: Final = msgspec.json.Encoder()
_event_decoder: Final = msgspec.json.Decoder(Event)
_answer_decoder: Final = msgspec.json.Decoder(Answer)
_numbers: Final = count()


def _event(scope: Scope) -> Event:
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    host, port = scope["client"]
    number = f"request-{next(_numbers)}"
    metadata = Metadata(number, number, host, port, f"HTTP/{scope['http_version']}", datetime.now(UTC).isoformat())
    uri = scope["raw_path"].decode("latin-1")
    if query := scope["query_string"]:
        uri += "?" + query.decode("latin-1")
    return Event(RequestHeaders(metadata, scope["method"], uri, headers))


class InProcess:
    """Asks before each request. The subclasses differ in whom they ask, and how."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif await self.allows(_event(scope)):
            await self._app(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def allows(self, event: Event) -> bool:
        return True

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass


class UnixSocketEcho(InProcess):
    """One connection, each message behind its length; answers come in the order of the calls."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        super().__init__(app)
        self._path = path

    async def open(self) -> None:
        _, self._pending_calls = await asyncio.get_running_loop().create_unix_connection(_Line, self._path)

    async def close(self) -> None:
        self._pending_calls.close()

    async def allows(self, event: Event) -> bool:
        answer = _event_decoder.decode(await self._pending_calls.call(_encoder.encode(event)))
        return answer.payload.metadata.correlation_id == event.payload.metadata.correlation_id


class _Line(asyncio.Protocol):
    _transport: asyncio.WriteTransport

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def call(self, message: bytes) -> asyncio.Future[bytes]:
        self._transport.write(len(message).to_bytes(4, "big") + message)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append(answer)
        return answer

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        start = 0
        while len(data) >= start + 4:
            end = start + 4 + int.from_bytes(data[start : start + 4], "big")
            if len(data) < end:
                break
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(data[start + 4 : end])
            start = end
        self._received = data[start:]

    def close(self) -> None:
        self._transport.close()


class AiohttpPost(InProcess):
    def __init__(self, app: ASGIApp, path: str) -> None:
        super().__init__(app)
        self._path = path

    async def open(self) -> None:
        # Of the extra `benchmark`: the rest does without it.
        import aiohttp

        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(self._path))

    async def close(self) -> None:
        await self._session.close()

    async def allows(self, event: Event) -> bool:
        async with self._session.post(_AGENT_URL, data=_encoder.encode(event), headers=_JSON_HEADERS) as response:
            return response.status == 200 and _answer_decoder.decode(await response.read()).decision == "allow"


class HttpxPost(InProcess):
    def __init__(self, app: ASGIApp, path: str) -> None:
        super().__init__(app)
        self._client = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path))

    async def close(self) -> None:
        await self._client.aclose()

    async def allows(self, event: Event) -> bool:
        response = await self._client.post(_AGENT_URL, content=_encoder.encode(event), headers=_JSON_HEADERS)
        return response.status_code == 200 and _answer_decoder.decode(response.content).decision == "allow"


class RedactEvents:
    """Redacts each event of a chat stream for itself. What is cut over two events passes.

    :param pattern: what is redacted, by ``instead``.
    """

    def __init__(self, app: ASGIApp, pattern: re.Pattern[str], instead: str) -> None:
        self._app = app
        self._pattern = pattern
        self._instead = instead

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def redact(message: Message) -> None:
            body: bytes = message.get("body", b"")
            if body.startswith(b"data: {"):
                event = json.loads(body[6:])
                for choice in event["choices"]:
                    if content := choice["delta"].get("content"):
                        choice["delta"]["content"] = self._pattern.sub(self._instead, content)
                message = {**message, "body": b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"}
            await send(message)

        await self._app(scope, receive, redact)
