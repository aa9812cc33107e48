"""Our served agents before a client that is as strict as the Rust kit's."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from asgi_agents import Agent, AgentResponse, BodyMutation, EventType, GuardrailResponse, HeaderOp
from asgi_agents.protocol import AuditMetadata, Detection, Event, Severity, TextSpan
from asgi_agents.protocol.stream import MESSAGE_OF_EVENT, CallIds, Framing, encode_event_frame
from asgi_agents.serve import stream as stream_module
from tests.peers import shapes
from tests.peers.rust_client import RustClient, rust_client
from tests.peers.wire import ENDS
from tests.serve.client import connected
from tests.serve.test_stream import Gated, Recorder, chunk, drainable, exists, serving
from tests.transports.stream.calls import until

METADATA = {
    "correlation_id": "rust-1",
    "request_id": "r",
    "client_ip": "127.0.0.1",
    "client_port": 1,
    "server_name": None,
    "protocol": "HTTP/1.1",
    "tls_version": None,
    "tls_cipher": None,
    "route_id": None,
    "upstream_id": None,
    "timestamp": "2026-01-01T00:00:00Z",
}
CHUNK: dict[str, Any] = {"data": b"\x00\xff", "is_last": True, "total_size": None, "chunk_index": 0}
#: Each event as the client spells it.
PAYLOADS: dict[EventType, dict[str, Any]] = {
    EventType.CONFIGURE: {"agent_id": "waf", "config": {"a": 1}},
    EventType.REQUEST_HEADERS: {
        "correlation_id": "rust-1",
        "metadata": METADATA,
        "method": "GET",
        "uri": "/",
        "headers": {"a": ["b"]},
    },
    EventType.REQUEST_BODY_CHUNK: CHUNK | {"bytes_received": 2},
    EventType.RESPONSE_HEADERS: {"status": 200, "headers": {"a": ["b"]}},
    EventType.RESPONSE_BODY_CHUNK: CHUNK | {"bytes_sent": 2},
    EventType.REQUEST_COMPLETE: {
        "status": 200,
        "duration_ms": 1,
        "request_body_size": 0,
        "response_body_size": 0,
        "upstream_attempts": 1,
        "error": None,
    },
    EventType.WEBSOCKET_FRAME: {
        "opcode": "text",
        "data": b"hi",
        "client_to_server": True,
        "frame_index": 0,
        "fin": True,
        "route_id": None,
        "client_ip": "127.0.0.1",
    },
    EventType.GUARDRAIL_INSPECT: {"inspection_type": "pii_detection", "content": "x", "categories": [], "metadata": {}},
}
WITH_DATA = (EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK, EventType.WEBSOCKET_FRAME)


@pytest.fixture(params=[False, True], ids=["json", "binary"])
def binary(request: pytest.FixtureRequest) -> bool:
    """Whether the client speaks msgpack."""
    return bool(request.param)


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="agents-") as directory:
        yield str(Path(directory) / "a.sock")


class Scripted(Agent):
    """Answers every event with what it is given, or raises it; at once or after a pause."""

    events = frozenset(EventType)

    def __init__(self, answer: Any = None, *, pause: bool = False) -> None:
        self._answer = answer
        for event_type in EventType:
            setattr(self, f"on_{event_type.value}", self._later if pause else self._now)

    async def _now(self, event: Event) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    async def _later(self, event: Event) -> Any:
        await anyio.lowlevel.checkpoint()
        return await self._now(event)


async def ask(client: RustClient, event_type: EventType, **changes: Any) -> shapes.Answer | None:
    return await client.ask(MESSAGE_OF_EVENT[event_type], **PAYLOADS[event_type] | changes)


async def test_every_event_that_it_spells_is_heard_and_answered(binary: bool, path: str) -> None:
    agent = Recorder(pause=False)
    async with serving(agent, f"unix://{path}"), rust_client(path, binary=binary) as client:
        for event_type in EventType:
            answer = await ask(client, event_type)
            assert answer is not None
            assert (answer.version, answer.decision, answer.audit.tags) == (2, "allow", [event_type.value])
    assert [event.event_type for event in agent.heard] == list(EventType)
    data = [event.data for event in agent.heard if event.event_type in WITH_DATA]  # type: ignore[union-attr]
    assert data == [b"\x00\xff", b"\x00\xff", b"hi"]


ANSWERS: dict[str, tuple[AgentResponse | None, dict[str, Any]]] = {
    "nothing": (None, {}),
    "block": (
        AgentResponse.block(403, "no", headers={"a": "b"}),
        {"decision": {"block": {"status": 403, "body": "no", "headers": {"a": "b"}}}},
    ),
    "redirect": (
        AgentResponse.redirect("https://a.example/"),
        {"decision": {"redirect": {"url": "https://a.example/", "status": 302}}},
    ),
    "challenge": (
        AgentResponse.challenge("bearer", {"realm": "a"}),
        {"decision": {"challenge": {"challenge_type": "bearer", "params": {"realm": "a"}}}},
    ),
    "header operations": (
        AgentResponse.allow(
            request_headers=[HeaderOp.set("a", "1"), HeaderOp.add("b", "2"), HeaderOp.remove("c")],
            response_headers=[HeaderOp.set("x", "1", always=True)],
            skip_body=True,
        ),
        {
            "request_headers": [
                {"set": {"name": "a", "value": "1"}},
                {"add": {"name": "b", "value": "2"}},
                {"remove": {"name": "c"}},
            ],
            "response_headers": [{"set": {"name": "x", "value": "1"}}],
        },
    ),
    "mutation": (
        AgentResponse.allow(request_body_mutation=BodyMutation(b"\x00\xff")),
        {"request_body_mutation": {"data": "AP8=", "chunk_index": 0}},
    ),
    "a chunk dropped": (
        AgentResponse.allow(response_body_mutation=BodyMutation(b"")),
        {"response_body_mutation": {"data": "", "chunk_index": 0}},
    ),
    "drop": (AgentResponse.websocket_drop(), {"websocket_decision": "drop"}),
    "close": (
        AgentResponse.websocket_close(1008, "no"),
        {"websocket_decision": {"close": {"code": 1008, "reason": "no"}}},
    ),
    "audit": (
        AgentResponse.allow(
            audit=AuditMetadata(tags=["t"], rule_ids=["r"], confidence=0.5, reason_codes=["c"]), needs_more=True
        ),
        {"needs_more": True},
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_every_answer_reaches_it_whole(name: str, binary: bool, path: str) -> None:
    given, expected = ANSWERS[name]
    async with serving(Scripted(given), f"unix://{path}"), rust_client(path, binary=binary) as client:
        answer = await ask(client, EventType.REQUEST_BODY_CHUNK, correlation_id="c")
    assert answer is not None
    found = msgspec.to_builtins(answer)
    if name == "audit":
        assert found["audit"] == {
            "tags": ["t"],
            "rule_ids": ["r"],
            "confidence": 0.5,
            "reason_codes": ["c"],
            "custom": {"correlation_id": "c"},
        }
    del found["audit"]
    plain = msgspec.to_builtins(shapes.Answer(version=2, decision="allow"))
    del plain["audit"]
    assert found == plain | expected


# No verdict


FAILURES: dict[str, Any] = {
    "raises": ValueError("s3cret"),
    "an answer of no kind": {"decision": "allow"},
    "a status that is none": AgentResponse.block(99),
    "what can't be encoded": AgentResponse.allow(audit=AuditMetadata(custom={"when": object()})),
}


@pytest.mark.parametrize("pause", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_an_agent_that_has_failed_is_taken_for_an_allow_on_no_event(
    failure: str, pause: bool, binary: bool, path: str
) -> None:
    agent = Scripted(FAILURES[failure], pause=pause)
    async with serving(agent, f"unix://{path}"), rust_client(path, binary=binary) as client:
        for event_type in EventType:
            answer = await ask(client, event_type)
            if event_type is EventType.CONFIGURE:
                assert answer is not None
                assert isinstance(answer.decision, shapes.Decision)
                assert isinstance(answer.decision.block, shapes.Block)
                assert answer.decision.block.status == 500
            else:
                assert answer is None
    assert not any(b"s3cret" in payload for payload in client.discarded)


@pytest.mark.parametrize("event_type", EventType)
async def test_a_malformed_event_is_taken_for_an_allow_on_no_event(
    event_type: EventType, binary: bool, path: str
) -> None:
    name = next(iter(PAYLOADS[event_type].keys() - {"correlation_id", "config", "is_last", "categories", "metadata"}))
    async with serving(Scripted(), f"unix://{path}"), rust_client(path, binary=binary) as client:
        answer = await ask(client, event_type, **{name: [None]})
    assert answer is None or answer.decision != "allow"


@pytest.mark.parametrize("event_type", [EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK])
async def test_a_body_over_the_limit_is_taken_for_no_allow(event_type: EventType, binary: bool, path: str) -> None:
    async with serving(Scripted(), f"unix://{path}", max_body_size=3), rust_client(path, binary=binary) as client:
        assert await ask(client, event_type, data=b"1234") is None
        assert await ask(client, event_type, data=b"123") is not None


async def test_a_call_that_it_cancels_is_cancelled_and_the_answer_is_no_allow(binary: bool, path: str) -> None:
    agent = Gated()
    async with serving(agent, f"unix://{path}"), rust_client(path, binary=binary) as client:
        correlation_id = await client.send(0x11, **CHUNK | {"data": b"a"})
        await agent.until(lambda: agent.running == 1)
        await client.cancel(correlation_id)
        assert await client.outcome(correlation_id) is None
        assert agent.cancelled == ["a"]
        await client.ping()


async def test_an_agent_that_shuts_down_answers_what_it_has_begun_and_is_taken_for_an_allow_of_nothing_else(
    binary: bool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "QUIET", 60)
    agent = Gated()
    async with (
        drainable(agent, f"unix://{path}") as (address, shutdown, _),
        rust_client(path, binary=binary) as client,
    ):
        begun = await client.send(0x11, **CHUNK | {"data": b"a"})
        await agent.until(lambda: agent.running == 1)
        shutdown.set()
        await until(lambda: not exists(address))
        await client.ping()
        assert await client.ask(0x11, **CHUNK | {"data": b"b"}) is None
        agent.open("a", "b")
        answer = await client.outcome(begun)
        assert answer is not None
        assert isinstance(answer.decision, shapes.Decision)
        with pytest.raises(ENDS):
            await client.outcome("nothing more")
    assert agent.entered == ["a"]


# The shapes of guardrail and configure answers


VERDICTS = [
    GuardrailResponse(detected=False),
    GuardrailResponse(
        detected=True,
        confidence=0.9,
        detections=[
            Detection(category="email", description="é", severity=Severity.HIGH, confidence=0.5, span=TextSpan(0, 1))
        ],
        redacted_content="***",
    ),
]


@pytest.mark.parametrize("verdict", [None, *VERDICTS], ids=["nothing", "clean", "detected"])
async def test_a_guardrail_verdict_is_where_it_looks_for_it(
    verdict: GuardrailResponse | None, binary: bool, path: str
) -> None:
    class Guardrail(Agent):
        async def on_guardrail_inspect(self, event: Any) -> GuardrailResponse | None:
            return verdict

    async with serving(Guardrail(), f"unix://{path}"), rust_client(path, binary=binary) as client:
        answer = await ask(client, EventType.GUARDRAIL_INSPECT)
    assert answer is not None
    text = answer.routing_metadata["guardrail_response"]
    found = msgspec.json.decode(text, type=shapes.Guardrail)
    expected = verdict or VERDICTS[0]
    sent = json.loads(msgspec.json.encode(expected))
    for detection in sent["detections"]:
        # Ours alone: it passes them over.
        del detection["replacement"], detection["action"]
    assert msgspec.to_builtins(found) == sent
    # Whoever overlooks that is not to take it for an allow.
    assert (answer.decision == "allow") == (not expected.detected)


async def test_a_configuration_that_is_taken_is_an_allow(binary: bool, path: str) -> None:
    async with serving(Scripted(), f"unix://{path}"), rust_client(path, binary=binary) as client:
        answer = await ask(client, EventType.CONFIGURE)
    assert answer is not None
    assert (answer.version, answer.decision) == (2, "allow")


# Between our own ends


async def test_a_client_that_names_its_calls_has_raw_bytes_in_msgpack(path: str) -> None:
    agent = Scripted(AgentResponse.allow(request_body_mutation=BodyMutation(b"\x00\xff")))
    async with (
        serving(agent, f"unix://{path}") as address,
        connected(address, encoding="msgpack", framing=Framing.V2) as client,
    ):
        named = encode_event_frame(chunk(data=b"\x00\xff"), client.encoding, CallIds("c", 1))
        assert b"\xc4\x02\x00\xff" in named
        await client.send(named)
        _, payload = await client.message()
    assert payload["request_body_mutation"]["data"] == b"\x00\xff"
