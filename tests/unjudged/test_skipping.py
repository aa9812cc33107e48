"""An agent can look away from bodies that are not its business, and from no others."""

import json
from typing import Any

import anyio.abc
import pytest

from asgi_agents import (
    Agent,
    AgentResponse,
    BodyMode,
    BodyMutation,
    ConfigurationError,
    EventType,
    HeaderOp,
    HttpTransport,
)
from asgi_agents.protocol import Encoding, encode_answer
from tests.support.asgi import App, Client, Probe, SlowProbe, guarded, start
from tests.support.asgi import body as chunk
from tests.transports.stream.peer import Peer, Received
from tests.transports.test_http import raw_agent, raw_answer, read_request

from .asking import PATIENCE, ask, ask_again, config, outcomes, skip_body

BIG = bytes(2 * 1024 * 1024)
TYPES = {"application/json", "text/*"}
MODES = [BodyMode.BUFFER, BodyMode.STREAM, BodyMode.hybrid(4)]
each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def typed(content_type: str | None, data: bytes = b"hello") -> App:
    fields = [] if content_type is None else [(b"Content-Type", content_type.encode())]
    return App(start(200, *fields), chunk(data[:3], more=True), chunk(data[3:]))


@pytest.mark.parametrize(("content_type", "heard"), [
    ("application/json", True), ("Application/JSON; charset=utf-8", True), (" application/json ", True),
    ("application/json;q=1", True), ("text/plain", True), ("TEXT/html;charset=x", True), ("text/event-stream", True),
    (None, True), ("", True),
    ("image/png", False), ("application/octet-stream", False), ("application/jsonp", False),
    ("application/problem+json", False), ("x-text/plain", False), ("image/png; text/html", False),
])  # fmt: skip
@each_mode
async def test_an_agent_hears_the_types_that_it_asks_for(content_type: str | None, heard: bool, mode: BodyMode) -> None:
    agent = Probe(response_body=AgentResponse.block(451), response_headers=None)
    options: dict[str, Any] = {"response_content_types": TYPES, "response_body_mode": mode}
    client = await ask(typed(content_type), config(agent, **options))
    assert bool(agent.of("response_body")) is heard
    assert len(agent.of("response_headers")) == 1
    assert (client.complete and client.status == 200 and client.body == b"hello") is not heard


async def test_two_types_in_two_fields_are_heard_if_one_of_them_is_to_be() -> None:
    for order in (1, -1):
        fields = [(b"content-type", b"image/png"), (b"content-type", b"text/html")][::order]
        agent = Probe(response_body=None)
        await ask(App(start(200, *fields), chunk(b"hello")), config(agent, response_content_types=TYPES))
        assert agent.of("response_body")


@pytest.mark.parametrize("extra", [{}, {"body_access": "write"}])
async def test_what_is_not_heard_is_not_limited_or_held_or_changed(extra: dict[str, Any]) -> None:
    app = App(start(200, (b"content-type", b"image/png"), (b"etag", b'"x"')), chunk(BIG, more=True), chunk(b"end"))
    middleware = guarded(app, config(Probe(response_body=None), response_content_types=TYPES, **extra))
    client = await ask_again(middleware)
    assert (client.status, client.body, client.header(b"etag")) == (200, BIG + b"end", b'"x"')
    assert (client.chunks[0], outcomes(middleware)) == (BIG, {})


async def test_a_request_s_type_decides_nothing() -> None:
    agent = Probe(request_body=AgentResponse.block(403))
    for content_type in (b"image/png", b"application/json", b""):
        sent = Client("POST", headers=[(b"content-type", content_type)], body=b"hello")
        client = await ask(App(), config(agent, response_content_types=TYPES), client=sent)
        assert client.status == 403


async def test_of_two_agents_each_hears_its_own_types() -> None:
    one, other, all_of_them = Probe(response_body=None), Probe(response_body=None), Probe(response_body=None)
    agents = [
        config(one, "one", response_content_types={"image/*"}),
        config(other, "other", response_content_types=TYPES),
        config(all_of_them, "all"),
    ]
    await ask(typed("image/png"), *agents)
    assert [bool(agent.heard) for agent in (one, other, all_of_them)] == [True, False, True]


@pytest.mark.parametrize("types", ["text/html", {"text"}, {1}, {"text/"}, {"a b/c"}])
def test_types_that_make_no_sense_are_refused(types: Any) -> None:
    with pytest.raises(ConfigurationError, match="response_content_types"):
        config(Probe(response_body=None), response_content_types=types)


@each_mode
@pytest.mark.parametrize("kind", [Probe, SlowProbe])
@pytest.mark.parametrize("direction", ["request", "response"])
async def test_only_the_agent_that_says_so_is_spared_that_body(mode: BodyMode, kind: Any, direction: str) -> None:
    both = {"request_body": None, "response_body": None}
    heads: dict[str, Any] = {"request_headers": None, "response_headers": None, f"{direction}_headers": skip_body()}
    agent, beside = kind(**both, **heads), kind(**both)
    modes: dict[str, Any] = {"request_body_mode": mode, "response_body_mode": mode}
    app, sent = typed("text/plain"), Client("POST", body=[b"he", b"llo"])
    client = await ask(app, config(agent, **modes), config(beside, "beside", **modes), client=sent)
    assert (client.status, client.body, app.body) == (200, b"hello", b"hello")
    other = "response" if direction == "request" else "request"
    assert (bool(agent.of(f"{direction}_body")), bool(agent.of(f"{other}_body"))) == (False, True)
    for name in both:
        assert b"".join(event.data for event in beside.of(name)) == b"hello"


@pytest.mark.parametrize("direction", ["request", "response"])
async def test_a_body_that_is_skipped_is_not_limited_or_held(direction: str) -> None:
    agent = Probe(**{f"{direction}_headers": skip_body(), f"{direction}_body": AgentResponse.block(403)})
    app = App(start(), chunk(BIG, more=True), chunk(b"end"))
    middleware = guarded(app, config(agent))
    client = await ask_again(middleware, Client("POST", body=BIG))
    assert (client.status, client.chunks[0], app.body) == (200, BIG, BIG)
    assert outcomes(middleware) == {"allow": 1}


async def test_one_request_s_skip_is_not_the_next_one_s() -> None:
    answers = [skip_body(), None]
    agent = Probe(request_headers=lambda _: answers.pop(0), request_body=AgentResponse.block(403))
    middleware = guarded(App(), config(agent))
    clients = [await ask_again(middleware, Client("POST", body=b"hello")) for _ in range(2)]
    assert [client.status for client in clients] == [200, 403]


async def test_header_operations_of_an_answer_that_skips_hold() -> None:
    app = App()
    answer = skip_body(request_headers=[HeaderOp.set("x-user", "alice")])
    await ask(app, config(Probe(request_headers=answer, request_body=None)), client=Client("POST", body=b"hello"))
    assert (app.header(b"x-user"), app.body) == (b"alice", b"hello")


async def test_an_answer_to_a_body_is_no_place_to_skip_it() -> None:
    """Whatever it is taken for, what comes after it is still heard."""
    heard: list[bytes] = []

    class Skipper(Agent):
        async def on_request_body_chunk(self, event: Any) -> AgentResponse:
            heard.append(event.data)
            return skip_body(request_body_mutation=BodyMutation(None))

    app = App()
    agent = config(Skipper(), request_body_mode=BodyMode.STREAM, body_access="write")
    await ask(app, agent, client=Client("POST", body=[b"one", b"two"]))
    assert b"".join(heard).startswith(app.body)


def test_it_is_left_out_of_the_wire_unless_it_is_said() -> None:
    assert b"skip" not in encode_answer(AgentResponse.allow(needs_more=True), Encoding.JSON)
    assert json.loads(encode_answer(skip_body(), Encoding.JSON))["skip_body"] is True
    assert b"skip_body" in encode_answer(skip_body(), Encoding.MSGPACK)


@pytest.mark.parametrize("over", ["http", "stream"])
@pytest.mark.parametrize("said", [True, False])
async def test_an_agent_elsewhere_can_say_it(over: str, said: bool) -> None:
    heard: list[str] = []
    answer = json.dumps({"decision": "allow", "skip_body": said}).encode()

    async def behave(stream: anyio.abc.ByteStream) -> None:
        while True:
            heard.append(json.loads(await read_request(stream))["event_type"])
            await stream.send(raw_answer(answer))

    async def judge(event: Received) -> None:
        heard.append(str(event.event_type))
        await event.answer(skip_body() if said else AgentResponse.allow())

    events = {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK}
    async with raw_agent(behave) as agent, Peer(behaviour=judge).listening() as peer:
        where: Any = HttpTransport(agent.url) if over == "http" else peer.url
        middleware = guarded(App(), config(where, events=events))
        with anyio.fail_after(PATIENCE):
            async with middleware.manager:
                client = await ask_again(middleware, Client("POST", body=b"hello"))
    assert client.status == 200
    assert heard == ["request_headers"] + ["request_body_chunk"] * (not said)


@pytest.mark.parametrize("said", [1, "yes", []])
async def test_only_true_and_false_are_said(said: Any) -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        while True:
            await read_request(stream)
            await stream.send(raw_answer(json.dumps({"decision": "allow", "skip_body": said}).encode()))

    async with raw_agent(behave) as agent:
        middleware = guarded(App(), config(HttpTransport(agent.url), events={EventType.REQUEST_HEADERS}))
        async with middleware.manager:
            client = await ask_again(middleware, Client("POST", body=b"hello"))
    assert client.status == 503
