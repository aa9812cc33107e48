"""A response that declares its length looks complete with its last byte: not before all of it was judged."""

from collections.abc import Sequence
from typing import Any, Final

import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import Agent, AgentConfig, AgentMiddleware, AgentResponse, BodyMode, ResponseAborted
from tests.support.asgi import Client, assert_nothing_left

pytestmark = pytest.mark.anyio

BODY: Final = b"0123456789"
#: How an app cuts it. Frameworks end what they stream with an empty message.
CUTS: Final[Sequence[Sequence[bytes]]] = (
    [BODY],
    [BODY, b""],
    [BODY[:9], BODY[9:]],
    [BODY[:9], BODY[9:], b""],
    [BODY[:3], BODY[3:6], BODY[6:], b""],
    [BODY[:3], b"", BODY[3:], b"", b""],
    [*(bytes([each]) for each in BODY), b""],
)


class App:
    def __init__(self, pieces: Sequence[bytes], length: int | None, *, raises: bool = False) -> None:
        self.pieces = pieces
        self.length = length
        self.raises = raises

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain")]
        if self.length is not None:
            headers.append((b"content-length", b"%d" % self.length))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index, piece in enumerate(self.pieces):
            last = index == len(self.pieces) - 1
            if last and self.raises:
                raise LookupError("the app's")
            await send({"type": "http.response.body", "body": piece, "more_body": not last})


class Judge(Agent):
    """Lets everything pass but what its body ends with, about which it does what it is told."""

    def __init__(self, end: str) -> None:
        self.end = end

    async def on_response_body_chunk(self, event: Any) -> AgentResponse | None:
        if event.is_last and self.end == "block":
            return AgentResponse.block(403)
        if event.is_last and self.end == "fail":
            raise RuntimeError("no")
        return None


def guarded(app: App, end: str, mode: BodyMode, **options: Any) -> AgentMiddleware:
    return AgentMiddleware(app, agents=[AgentConfig("judge", Judge(end), response_body_mode=mode, **options)])


modes = pytest.mark.parametrize("mode", [BodyMode.STREAM, BodyMode.hybrid(threshold=4), BodyMode.BUFFER], ids=str)
cuts = pytest.mark.parametrize("pieces", CUTS, ids=lambda pieces: "|".join(piece.decode() for piece in pieces))


def looks_complete(client: Client) -> bool:
    """Whether a client takes what it has for all of a response (RFC 9112, section 6.3)."""
    length = client.header(b"content-length")
    return client.complete if length is None else len(client.body) >= int(length)


@modes
@cuts
@pytest.mark.parametrize("end", ["block", "fail"])
@pytest.mark.parametrize("declared", [True, False])
async def test_what_is_denied_in_the_end_never_looks_complete(
    pieces: Sequence[bytes], mode: BodyMode, end: str, declared: bool
) -> None:
    client = Client("GET", "/")
    middleware = guarded(App(pieces, len(BODY) if declared else None), end, mode)
    try:
        await client.call(middleware)
    except ResponseAborted:
        assert client.status == 200
        assert not looks_complete(client)
    else:
        # It was replaced, as nothing had left.
        assert client.status == (403 if end == "block" else 503)
        assert looks_complete(client)
    assert_nothing_left(middleware.manager)


@modes
@cuts
@pytest.mark.parametrize("declared", [len(BODY), None, len(BODY) + 5])
@pytest.mark.parametrize("access", ["read", "write"])
async def test_what_is_allowed_arrives_whole(
    pieces: Sequence[bytes], mode: BodyMode, declared: int | None, access: str
) -> None:
    client = Client("GET", "/")
    await client.call(guarded(App(pieces, declared), "allow", mode, body_access=access))
    assert client.body == BODY
    assert client.complete


@pytest.mark.parametrize("pieces", [[BODY, b""], [BODY[:3], BODY[3:], b""]])
async def test_no_more_than_the_last_piece_waits_for_the_end(pieces: Sequence[bytes]) -> None:
    client = Client("GET", "/")
    with pytest.raises(LookupError):
        await client.call(guarded(App(pieces, len(BODY), raises=True), "allow", BodyMode.STREAM))
    # The app has broken it off, and so it is.
    assert client.body == b"".join(pieces[:-2])
    assert not client.complete


@cuts
@pytest.mark.parametrize("access", ["read", "write"])
async def test_the_messages_are_those_of_the_app(pieces: Sequence[bytes], access: str) -> None:
    """Starlette's BaseHTTPMiddleware, and whoever counts messages, sees no others."""
    client = Client("GET", "/")
    await client.call(guarded(App(pieces, len(BODY)), "allow", BodyMode.STREAM, body_access=access))
    sent = [message["body"] for message in client.messages if message["type"] == "http.response.body"]
    # An empty message in the middle says nothing, and may come before the piece that waits.
    assert [body for body in sent if body] == [piece for piece in pieces if piece]
    assert (sent[-1], client.messages[-1].get("more_body", False)) == (pieces[-1], False)


async def test_an_app_that_sends_more_than_it_declares_has_it_all_sent() -> None:
    """It is for the server to say so."""
    client = Client("GET", "/")
    await client.call(guarded(App([BODY, BODY, b""], len(BODY)), "allow", BodyMode.STREAM))
    assert client.body == BODY + BODY


async def test_a_response_to_head_is_not_held() -> None:
    client = Client("HEAD", "/")
    await client.call(guarded(App([BODY, b""], len(BODY)), "block", BodyMode.STREAM))
    assert client.complete
    assert client.header(b"content-length") == b"10"
