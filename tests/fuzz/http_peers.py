"""Both ends of the HTTP transport, before a peer that says anything at all."""

from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio
import httpx
from anyio.lowlevel import checkpoint
from starlette.types import Message, Scope

from asgi_agents import AgentError, AgentResponse
from asgi_agents.protocol import Acknowledgement, Encoding, EventType, GuardrailResponse, decode_answer, encode_event
from asgi_agents.serve import agent_app
from asgi_agents.transports import HttpTransport

from . import wire
from .choices import Choices
from .loops import BACKENDS, run
from .stream_peers import Served

_LENGTHS: Final = ("0", "1", "70", "1" * 5000, "-1", "x", "٣", "", "1e3", "²")


class _Body(httpx.AsyncByteStream):
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            # As where it comes from a socket.
            await checkpoint()
            self.taken += len(piece)
            yield piece


class _Answering(httpx.AsyncBaseTransport):
    def __init__(self, response: Callable[[], httpx.Response]) -> None:
        self._response = response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self._response()


def http_calling_end(data: bytes) -> None:
    """Whatever comes back from an agent's URL is an answer or an agent error, and no more of it is read than may be."""
    choices = Choices(data)
    encoding = choices.pick(tuple(Encoding))
    event = wire.event(choices, encoding)
    kinds = (encoding.content_type, f"{encoding.content_type.upper()} ; charset=x", "text/html", "")
    headers = [("content-type", choices.pick(kinds))] if not choices.one_in(8) else []
    if choices.one_in(4):
        headers.append(("content-length", choices.pick(_LENGTHS)))
    if choices.one_in(8):
        headers.append(("content-encoding", choices.pick(("gzip", "identity", " IDENTITY", ""))))
    status = choices.pick((200, 200, 200, 201, 204, 500, 999))
    answer = wire.message(choices, encoding) * choices.pick((1, 1, 1, 40))
    body = _Body(choices.cuts(answer) or [answer])
    raw = [(name.encode(), value.encode("utf-8")) for name, value in headers]
    limit = 2000
    transport = HttpTransport(
        "http://agent/",
        encoding=encoding,
        max_answer_bytes=limit,
        transport=_Answering(lambda: httpx.Response(status, headers=raw, stream=body)),
    )

    async def call() -> None:
        try:
            answer = await transport.call(event)
        except AgentError as exc:
            wire.explained(exc)
        else:
            assert isinstance(answer, AgentResponse | GuardrailResponse | Acknowledgement)
        longest = max(map(len, body._pieces))
        assert body.taken <= limit + longest, f"{body.taken} bytes were read of an answer that may have {limit}"

    run("asyncio", call)


def http_serving_end(data: bytes) -> None:
    """Whatever is posted to a served agent gets one whole response, and no more of it is read than may be."""
    choices = Choices(data)
    encoding = choices.pick(tuple(Encoding))
    backend = choices.pick(BACKENDS)
    event = encode_event(wire.event(choices, encoding), encoding)
    posted = wire.message(choices, encoding) if choices.flag() else event
    headers: list[tuple[bytes, bytes]] = []
    if not choices.one_in(8):
        headers.append((b"content-type", choices.pick((encoding.content_type, "text/plain", "")).encode()))
    if choices.one_in(4):
        headers.append((b"content-length", choices.pick(_LENGTHS).encode("utf-8")))
    if choices.one_in(8):
        headers.append((choices.pick((b"traceparent", b"tracestate", b"content-encoding")), choices.take(60)))
    scope: Scope = {
        "type": "http",
        "method": choices.pick(("POST", "POST", "GET", "PUT")),
        "path": "/",
        "headers": headers,
    }
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in choices.cuts(posted)
    ]
    leaves = choices.one_in(8)
    messages.append({"type": "http.disconnect"} if leaves else {"type": "http.request"})
    limit, read = 1000, 0
    sent: list[Message] = []

    async def receive() -> Message:
        nonlocal read
        if not messages:
            await anyio.sleep_forever()
        message = messages.pop(0)
        read += len(message.get("body", b""))
        return message

    async def send(message: Message) -> None:
        sent.append(message)

    async def serve() -> None:
        await agent_app(Served([]), max_event_bytes=limit)(scope, receive, send)

    run(backend, serve)
    if leaves and not sent:
        return
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] in (200, 400, 405, 413, 415, 500), sent
    assert read <= limit + len(posted), "more was read than may be"
    if sent[0]["status"] == 200 and scope["method"] == "POST":
        decode_answer(sent[1]["body"], encoding, EventType.CONFIGURE)
