"""The app behind the agents: it keeps what reaches it, and answers as the row says."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import anyio
from starlette.types import Message, Receive, Scope, Send

from .case import Seen, as_bytes, joined
from .table import BY_SLUG

#: What reached the app, by the value of the header ``x-run``.
SEEN: dict[str, Seen] = {}
#: The same of clients that have some of the response's body.
HAVE_BEGUN: set[str] = set()
#: Who has made the request, and how it has come, which is not what the table is about.
_OF_THE_WAY = (
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "traceparent",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-request-id",
    "x-run",
)
#: Put there by Envoy, of what the agent has said for routing.
ROUTING = "x-routing-"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The app; raw ASGI, so that nothing is changed on the way."""
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    run = dict(fields)["x-run"]
    path = scope["raw_path"].decode()
    query = scope["query_string"].decode()
    slug = path.split("/")[1]
    routing = {name[len(ROUTING) :]: value for name, value in fields if name.startswith(ROUTING)}
    context = scope.get("state", {}).get("asgi_agents")
    if context is not None:
        routing |= context.decision.routing_metadata
    seen = Seen(
        method=scope.get("method", "GET"),
        target=path + (f"?{query}" if query else ""),
        headers=joined(list(_told(fields))),
        body=b"",
        routing=routing,
    )
    separator = b"\n" if scope["type"] == "websocket" else b""
    pieces: list[bytes] = []

    def keep(piece: bytes) -> None:
        pieces.append(piece)
        SEEN[run] = replace(seen, body=separator.join(pieces))

    SEEN[run] = seen
    if scope["type"] == "websocket":
        await _talk(receive, send, keep)
    elif await _read(receive, keep):
        await _answer(slug, seen.method, run, send)


async def _read(receive: Receive, keep: Callable[[bytes], None]) -> bool:
    """Whether all of the body has come."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        keep(message.get("body", b""))
        if not message.get("more_body", False):
            return True


async def _talk(receive: Receive, send: Send, keep: Callable[[bytes], None]) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        data = as_bytes(message["bytes"] if text is None else text)
        keep(data)
        if text is None:
            await send({"type": "websocket.send", "bytes": b"echo: " + data})
        else:
            await send({"type": "websocket.send", "text": f"echo: {text}"})
        if data == b"bye":
            await send({"type": "websocket.close", "code": 1000})
            return


async def _answer(slug: str, method: str, run: str, send: Send) -> None:
    reply = BY_SLUG[slug].reply
    headers = [(name.encode(), value.encode("latin-1")) for name, value in reply.headers]
    if len(reply.pieces) <= 1 and reply.status != 204:
        headers.append((b"content-length", b"%d" % len(b"".join(reply.pieces))))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if method != "HEAD":
        for piece in reply.pieces:
            sent: Message = {"type": "http.response.body", "body": piece, "more_body": True}
            await send(sent)
            while reply.waits and run not in HAVE_BEGUN:  # noqa: ASYNC110 - the client may be in another thread
                await anyio.sleep(0.001)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _told(fields: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    return (
        field
        for field in fields
        if field[0] not in _OF_THE_WAY and not field[0].startswith(("sec-websocket-", "x-envoy-", ROUTING))
    )
