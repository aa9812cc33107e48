"""What a fake agent answers, and to what."""

import math
from typing import Any

import anyio
import pytest
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from asgi_agents import (
    AgentConfig,
    AgentResponse,
    BadInput,
    BodyMutation,
    ConfigurationError,
    Encoding,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    WebSocketFrameEvent,
)
from asgi_agents.protocol.codec import decode_event, encode_event
from asgi_agents.testing import (
    FakeAgent,
    configure_event,
    guardrail_inspect_event,
    override_agents,
    request_body_chunk_event,
    request_complete_event,
    request_headers_event,
    request_metadata,
    response_body_chunk_event,
    response_headers_event,
    websocket_frame_event,
)

from .apps import get, protected, remote

EVENTS: dict[EventType, Event] = {
    event.event_type: event
    for event in (
        configure_event(),
        request_headers_event(),
        request_body_chunk_event("text"),
        response_headers_event(),
        response_body_chunk_event(b"data"),
        request_complete_event(),
        websocket_frame_event("text"),
        guardrail_inspect_event("text"),
    )
}
BLOCK = AgentResponse.block(403)
HEADS, BODIES, FRAMES, QUESTIONS = (
    {EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS},
    {EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK},
    {EventType.WEBSOCKET_FRAME},
    {EventType.GUARDRAIL_INSPECT},
)


async def ask(fake: FakeAgent, event: Event) -> Any:
    return await getattr(fake, f"on_{event.event_type.value}")(event)


@pytest.mark.parametrize(
    ("reaction", "fits"),
    [
        (BLOCK, HEADS | BODIES | FRAMES | QUESTIONS),
        (AgentResponse.redirect("/login"), HEADS | BODIES | FRAMES | QUESTIONS),
        (AgentResponse.allow(request_headers=[HeaderOp.set("a", "b")]), {"request_headers", "request_body_chunk"}),
        (AgentResponse.allow(response_headers=[HeaderOp.set("a", "b")]), HEADS | BODIES),
        (AgentResponse.allow(request_body_mutation=BodyMutation(b"")), {"request_body_chunk", "websocket_frame"}),
        (AgentResponse.allow(response_body_mutation=BodyMutation(b"")), {"response_body_chunk", "websocket_frame"}),
        (AgentResponse.allow(skip_body=True), HEADS),
        (AgentResponse.websocket_drop(), FRAMES),
        (AgentResponse.websocket_close(1008), FRAMES),
        (GuardrailResponse(detected=True), QUESTIONS),
        (lambda event: BLOCK, HEADS | BODIES | FRAMES | QUESTIONS),
    ],
)
async def test_a_reaction_is_given_to_the_events_that_it_fits(reaction: Any, fits: set[str]) -> None:
    answered = {kind for kind, event in EVENTS.items() if await ask(FakeAgent(reaction), event) is not None}
    assert answered == fits


@pytest.mark.parametrize("kind", EventType)
async def test_a_script_of_its_own_goes_first_and_its_last_reaction_repeats(kind: EventType) -> None:
    other = AgentResponse.block(429)
    scripts: dict[str, Any] = {kind.value: [None, other, BLOCK]}
    fake = FakeAgent(ValueError("not this one"), **scripts)
    assert [await ask(fake, EVENTS[kind]) for _ in range(4)] == [None, other, BLOCK, BLOCK]


@pytest.mark.parametrize("reaction", [ConnectionError("down"), ConnectionError, BadInput("no"), HTTPException(400)])
async def test_exceptions_are_raised_each_time_without_what_was_raised_before(reaction: Any) -> None:
    fake = FakeAgent(reaction)
    depths = []
    for _ in range(3):
        with pytest.raises(type(reaction) if isinstance(reaction, Exception) else reaction) as caught:
            await ask(fake, request_headers_event())
        depths.append(len(caught.traceback))
    assert depths[0] == depths[2]
    assert len(fake.received) == 3


async def asynchronous(event: RequestHeadersEvent) -> AgentResponse:
    await anyio.lowlevel.checkpoint()
    return AgentResponse.block(400, event.uri)


@pytest.mark.parametrize("function", [asynchronous, lambda event: AgentResponse.block(400, event.uri)])
async def test_functions_are_given_the_event_and_may_be_coroutine_functions(function: Any) -> None:
    answer = await ask(FakeAgent(function), request_headers_event(uri="/a?b"))
    assert answer == AgentResponse.block(400, "/a?b")


async def test_events_are_remembered_in_order_and_configurations_apart() -> None:
    fake = FakeAgent()
    for event in EVENTS.values():
        await ask(fake, event)
    await ask(fake, configure_event({"a": 1}))
    assert fake.received == [event for kind, event in EVENTS.items() if kind is not EventType.CONFIGURE]
    assert fake.configurations == [None, {"a": 1}]
    assert fake.received_of(RequestBodyChunkEvent) == [EVENTS[EventType.REQUEST_BODY_CHUNK]]
    assert fake.received_of(WebSocketFrameEvent)[0].data == b"text"
    assert fake.received_of(GuardrailInspectEvent)[0].content == "text"


@pytest.mark.parametrize("delay", [60, math.inf])
def test_a_delay_is_before_every_answer_but_that_to_a_configuration(delay: float) -> None:
    async def main() -> None:
        fake = FakeAgent(delay=delay)
        await ask(fake, configure_event())
        with anyio.move_on_after(59) as scope:
            await ask(fake, request_headers_event())
        assert scope.cancelled_caught

    from asgi_agents.testing import run_in_virtual_time

    run_in_virtual_time(main)


def test_a_fake_may_refuse_its_configuration() -> None:
    app = protected(remote(config={"rules": []}))
    fake = FakeAgent(configure=[ValueError("no rules"), None])
    with override_agents(app, waf=fake):
        assert get(app).status_code == 503
        assert get(app).status_code == 200


def test_a_fake_by_itself_receives_everything_or_what_it_is_told_to() -> None:
    assert AgentConfig("a", FakeAgent()).hears == frozenset(EventType)
    heads = frozenset({EventType.REQUEST_HEADERS})
    assert AgentConfig("a", FakeAgent(events=heads)).hears == heads


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reaction": [BLOCK]}, "reaction is a list, expected one reaction to all events"),
        ({"reaction": "block"}, "reaction='block', expected an AgentResponse, a GuardrailResponse, an exception"),
        ({"reaction": 403}, "reaction=403, expected"),
        ({"reaction": KeyboardInterrupt}, "reaction=the class KeyboardInterrupt, expected"),
        ({"reaction": KeyboardInterrupt()}, "reaction=a KeyboardInterrupt, expected"),
        ({"reaction": AgentResponse}, "reaction=the class AgentResponse, expected"),
        ({"request_headers": []}, "request_headers=[], expected at least one reaction"),
        ({"request_headers": [None, 1]}, "request_headers=1, expected an AgentResponse"),
        ({"delay": -1}, "delay=-1, expected a number of seconds, 0 or more"),
        ({"delay": math.nan}, "delay=nan, expected"),
        ({"delay": True}, "delay=True, expected"),
        (
            {"events": {EventType.REQUEST_HEADERS}, "response_headers": BLOCK},
            "response_headers has a script, expected it to be among its events",
        ),
    ],
)
def test_what_is_no_reaction_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FakeAgent(**given)
    assert message in str(caught.value)


# The factories of events


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_an_event_of_the_kit_can_be_sent(event: Event) -> None:
    for encoding in Encoding:
        assert decode_event(encode_event(event, encoding), encoding) == event


def test_events_of_the_kit_are_like_those_of_the_middleware() -> None:
    """Whatever field the middleware sets, the kit sets as well, to a value of the same type."""
    app = protected(
        remote(
            events=set(EventType) - {EventType.CONFIGURE, EventType.GUARDRAIL_INSPECT},
            config=None,
        )
    )
    fake = FakeAgent()
    with override_agents(app, waf=fake), TestClient(app) as client:
        client.post("/orders", content=b"data")
        with client.websocket_connect("/echo") as session:
            session.send_text("text")
            session.receive_text()
    seen = {event.event_type: event for event in reversed(fake.received)}
    assert set(seen) == set(EVENTS) - {EventType.CONFIGURE, EventType.GUARDRAIL_INSPECT}
    for kind, event in seen.items():
        types = {name: type(getattr(event, name)) for name in event.__struct_fields__}
        assert {name: type(getattr(EVENTS[kind], name)) for name in types} == types, kind


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ({"X-A": "1"}, {"x-a": ["1"]}),
        ({"x-a": ["1", "2"], "B": ("3",)}, {"x-a": ["1", "2"], "b": ["3"]}),
    ],
)
def test_headers_may_be_given_as_one_thinks_of_them(given: Any, expected: dict[str, list[str]]) -> None:
    for event in (request_headers_event(headers=given), response_headers_event(headers=given)):
        assert {name: list(values) for name, values in event.headers.items()} == expected
        assert request_headers_event(headers=event.headers).headers is event.headers


def test_what_is_given_to_a_factory_is_in_the_event() -> None:
    metadata = request_metadata(correlation_id="c", client_ip="192.0.2.1", route_id="/{a}")
    event = request_headers_event("POST", "/a", metadata=metadata)
    assert (event.method, event.correlation_id, event.metadata.request_id) == ("POST", "c", "c")
    chunk = request_body_chunk_event("é", is_last=False, chunk_index=1)
    assert (chunk.data, chunk.total_size, chunk.bytes_received) == ("é".encode(), None, 2)
    assert response_body_chunk_event(b"123").total_size == 3
    assert websocket_frame_event(b"x").opcode == "binary"
    assert guardrail_inspect_event("a", "secrets", categories=["b"]).inspection_type == "secrets"
    assert configure_event(1, "waf").agent_id == "waf"
