"""What a response has before its head and after its body."""

from typing import Any

import pytest
from starlette.types import Message

from asgi_agents import AgentResponse, BodyMode, HeaderOp
from tests.support.asgi import App, Client, Probe, body, start

from .asking import ask, config

BLOCK = AgentResponse.block(403)
HINT: Message = {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]}
EXTENSIONS: dict[str, Any] = {"http.response.early_hint": {}, "http.response.trailers": {}}


def trailers(*headers: tuple[bytes, bytes], more: bool = False) -> Message:
    return {"type": "http.response.trailers", "headers": list(headers), "more_trailers": more}


def app(*fields: tuple[bytes, bytes]) -> App:
    head = {**start(), "trailers": True}
    return App(HINT, head, body(b"one", more=True), body(b"two"), trailers(*fields, more=True), trailers(*fields))


def types(client: Client) -> list[str]:
    return [message["type"].removeprefix("http.response.") for message in client.messages]


def trailing(client: Client) -> list[tuple[bytes, bytes]]:
    fields = [message["headers"] for message in client.messages if message["type"] == "http.response.trailers"]
    return [field for several in fields for field in several]


def visitor() -> Client:
    return Client(extensions=EXTENSIONS, lenient=True)


ALLOWING = {
    "heads": {"request_headers": None, "response_headers": None},
    "bodies": {"request_headers": None, "response_body": None},
}


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.STREAM], ids=["buffer", "stream"])
@pytest.mark.parametrize("reactions", ALLOWING.values(), ids=ALLOWING)
async def test_what_nobody_objects_to_passes_in_order(mode: BodyMode, reactions: Any) -> None:
    client = await ask(app((b"x-sum", b"1")), config(Probe(**reactions), response_body_mode=mode), client=visitor())
    assert [kind for kind in types(client) if kind != "body"] == ["early_hint", "start", "trailers", "trailers"]
    assert (client.body, trailing(client)) == (b"onetwo", [(b"x-sum", b"1")] * 2)


DENYING: dict[str, tuple[dict[str, Any], BodyMode]] = {
    "request head": ({"request_headers": BLOCK}, BodyMode.BUFFER),
    "response head": ({"response_headers": BLOCK}, BodyMode.BUFFER),
    "response body": ({"response_body": BLOCK}, BodyMode.BUFFER),
    "last chunk": ({"response_body": lambda event: BLOCK if event.data == b"two" else None}, BodyMode.STREAM),
}


@pytest.mark.parametrize(("reactions", "mode"), DENYING.values(), ids=DENYING)
async def test_no_trailer_follows_a_response_that_was_stopped(reactions: Any, mode: BodyMode) -> None:
    client = await ask(app((b"x-leak", b"1")), config(Probe(**reactions), response_body_mode=mode), client=visitor())
    assert "trailers" not in types(client)
    if "request_headers" in reactions:
        assert "early_hint" not in types(client)
    # Nor does a hint follow the reply.
    assert "early_hint" not in types(client)[1:]


REMOVING = AgentResponse.allow(response_headers=[HeaderOp.remove("x-internal"), HeaderOp.set("x-mark", "agent")])
SAYING = {"request head": "request_headers", "response head": "response_headers", "response body": "response_body"}


@pytest.mark.parametrize("event", SAYING.values(), ids=SAYING)
@pytest.mark.parametrize("name", [b"x-internal", b"X-Internal"])
async def test_a_field_that_an_agent_removes_does_not_come_back_as_a_trailer(event: str, name: bytes) -> None:
    sent = app((name, b"db7.example"), (b"x-mark", b"app"), (b"x-sum", b"1"))
    client = await ask(sent, config(Probe(**{event: REMOVING})), client=visitor())
    assert client.header(b"x-mark") == b"agent"
    assert not any(value == b"db7.example" for _, value in trailing(client))
    assert (b"x-mark", b"app") not in trailing(client)
    assert (b"x-sum", b"1") in trailing(client)


async def test_a_shadow_agent_takes_nothing_from_trailers() -> None:
    sent = app((b"x-internal", b"db7.example"))
    client = await ask(sent, config(Probe(response_headers=REMOVING), enforce=False), client=visitor())
    assert (b"x-internal", b"db7.example") in trailing(client)


async def test_an_early_hint_has_no_field_that_an_agent_has_forbidden() -> None:
    """Agents on the request's head have spoken before it is sent."""
    removing = AgentResponse.allow(response_headers=[HeaderOp.remove("Link")])
    client = await ask(app(), config(Probe(request_headers=removing)), client=visitor())
    assert not any(message.get("links") for message in client.messages if message["type"] == HINT["type"])
    assert (client.status, client.body) == (200, b"onetwo")
