"""Our end before an agent as the Rust kit serves it."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import httpx
import pytest
from anyio import CancelScope

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentManager,
    AgentResponse,
    EventType,
    FailureKind,
    GuardrailResponse,
    HttpTransport,
    StreamTransport,
)
from asgi_agents.manager import registry_of
from asgi_agents.protocol import Block, ConfigureEvent, Event, RequestBodyChunkEvent, RequestHeadersEvent
from asgi_agents.serve import agent_app
from tests.peers import shapes
from tests.peers.rust_kit import RustKit, block
from tests.transports.stream.calls import PATIENCE, until
from tests.transports.stream.peer import Peer, Received, handshake
from tests.transports.stream.pools import chunk, complete, connected, head, managing, pool_of, question, response_head

EVENTS = frozenset(EventType) - {EventType.CONFIGURE}


@pytest.fixture(params=[False, True], ids=["json", "binary"])
def binary(request: pytest.FixtureRequest) -> bool:
    """Whether the kit was built to speak msgpack."""
    return bool(request.param)


@asynccontextmanager
async def guarding(kit: RustKit, *, stream: dict[str, Any] | None = None, **fields: Any) -> AsyncIterator[AgentManager]:
    """A manager that is connected to ``kit``, and speaks msgpack with it if it does."""
    options: dict[str, Any] = {"connections": 1, "drain_timeout": 0.01, "encoding": "msgpack"} | (stream or {})
    defaults: dict[str, Any] = {"timeout": PATIENCE, "chunk_timeout": PATIENCE, "events": EVENTS}
    config = AgentConfig("waf", StreamTransport(kit.url, **options), **defaults | fields)
    async with kit.listening(), AgentManager([config]) as manager:
        await until(lambda: manager.statistics()["waf"].connections == 1)
        assert kit.spoken[0] == ("msgpack" if len(kit.encodings) == 2 else "json")
        yield manager


async def test_it_is_asked_about_all_that_it_is_configured_for_and_can_read_it(binary: bool) -> None:
    kit = RustKit(binary=binary)
    async with guarding(kit) as manager:
        client = registry_of(manager).guard("waf").client
        assert client is not None
        events: list[Event] = [
            head("a"),
            RequestBodyChunkEvent(correlation_id="a", data=bytes(2), is_last=False),
            response_head("a"),
            complete("a"),
        ]
        for event in events:
            answer = await client.call(event)
            assert isinstance(answer, AgentResponse)
            assert answer.is_allow
        client.forget("a")
    assert [type(event) for event in kit.events] == [
        shapes.RequestHeaders,
        shapes.RequestBodyChunk,
        shapes.ResponseHeaders,
        shapes.RequestComplete,
    ]
    assert kit.events[1].data == base64.b64encode(bytes(2)).decode()
    assert kit.undecodable == []


@pytest.mark.parametrize("supported_events", [(1,), (1, 8), (0, 1, 2)])
async def test_it_is_not_configured_with_nothing(supported_events: tuple[int, ...], binary: bool) -> None:
    kit = RustKit(binary=binary, supported_events=supported_events)
    async with guarding(kit) as manager:
        assert (await manager.process_request_headers(head())).is_allow
    assert kit.configurations == []
    assert kit.accepted == 1


@pytest.mark.parametrize("config", [{"a": 1}, {}, 0, False, "", []])
async def test_it_is_configured_with_anything_else_and_told_for_which_agent(config: Any, binary: bool) -> None:
    kit = RustKit(binary=binary, supported_events=(1, 8))
    async with guarding(kit, config=config) as manager:
        assert (await manager.process_request_headers(head())).is_allow
        await manager.push_config("waf", {"new": True})
    assert [each.config for each in kit.configurations] == [config, {"new": True}]
    assert {each.agent_id for each in kit.configurations} == {"waf"}
    assert kit.undecodable == []


async def test_an_agent_that_changes_bodies_has_them_as_base64_both_ways(binary: bool) -> None:
    seen: list[str] = []

    async def shout(event: Any) -> dict[str, Any]:
        seen.append(event.data)
        data = base64.b64encode(base64.b64decode(event.data).upper()).decode()
        return {
            "version": 2,
            "decision": "allow",
            "request_body_mutation": {"data": data, "chunk_index": event.chunk_index},
        }

    kit = RustKit(binary=binary, judge=shout)
    async with guarding(kit, events={EventType.REQUEST_BODY_CHUNK}, body_access="write") as manager:
        client = registry_of(manager).guard("waf").client
        assert client is not None
        for data in (b"", b"abc", b"\x00\xff", b"x" * 100_000):
            answer = await client.call(RequestBodyChunkEvent(correlation_id="a", data=data, is_last=True))
            assert isinstance(answer, AgentResponse)
            assert answer.request_body_mutation is not None
            assert answer.request_body_mutation.data == data.upper()
    assert seen[1] == "YWJj"


async def test_it_is_told_in_json_that_a_call_was_given_up(binary: bool) -> None:
    asked = anyio.Event()

    async def never(event: Any) -> dict[str, Any]:
        asked.set()
        await cancelled.wait()
        return {"version": 2, "decision": "allow"}

    cancelled = anyio.Event()
    kit = RustKit(binary=binary, judge=never)
    async with guarding(kit) as manager, anyio.create_task_group() as tasks:
        client = registry_of(manager).guard("waf").client
        assert client is not None
        with CancelScope() as scope:
            async with anyio.create_task_group() as short:
                short.start_soon(client.call, head("a"))
                await asked.wait()
                scope.cancel()
        # It reads on when it has answered.
        tasks.start_soon(client.call, head("b"))
        cancelled.set()
        await until(lambda: kit.cancels)
    assert [each.correlation_id for each in kit.cancels] == ["a"]
    assert kit.undecodable == []


async def test_it_is_pinged_in_json_and_its_pongs_are_read(binary: bool) -> None:
    kit = RustKit(binary=binary)
    async with guarding(kit, stream={"ping_interval": 0.01}) as manager:
        await until(lambda: len(kit.pings) > 2)
        assert (await manager.process_request_headers(head())).is_allow
    assert [ping.sequence for ping in kit.pings[:3]] == [1, 2, 3]
    assert kit.undecodable == []
    assert kit.accepted == 1


async def test_a_guardrail_question_that_it_never_answers_takes_no_other_answer(binary: bool) -> None:
    async def no_bodies(event: Any) -> dict[str, Any]:
        if isinstance(event, shapes.RequestBodyChunk):
            return block(403, "evil")
        return {"version": 2, "decision": "allow"}

    kit = RustKit(binary=binary, judge=no_bodies)
    async with guarding(kit, circuit_breaker=None) as manager:
        assert (await manager.process_request_headers(head("a"))).is_allow
        client = registry_of(manager).guard("waf").client
        assert client is not None
        with CancelScope() as scope:
            async with anyio.create_task_group() as short:
                short.start_soon(client.call, question("a"))
                await until(lambda: kit.questions)
                scope.cancel()
        decision = await manager.process_request_body(chunk("a"))
    assert isinstance(decision.decision, Block)
    assert decision.failure is None
    assert kit.questions[0]["correlation_id"].startswith("a/inspect-")
    assert kit.accepted == 1


# The same, of agents elsewhere


class Told(Agent):
    def __init__(self) -> None:
        self.configurations: list[ConfigureEvent] = []

    async def on_configure(self, event: ConfigureEvent) -> None:
        self.configurations.append(event)

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        return None


@pytest.mark.parametrize("config", [None, {"a": 1}, {}])
async def test_over_http_too_nothing_is_no_configuration(config: Any) -> None:
    agent = Told()
    transport = HttpTransport("http://waf/", transport=httpx.ASGITransport(app=agent_app(agent)))
    events = {EventType.REQUEST_HEADERS, EventType.CONFIGURE}
    async with AgentManager([AgentConfig("waf", transport, events=events, config=config)]) as manager:
        assert (await manager.process_request_headers(head())).is_allow
    expected = [] if config is None else [ConfigureEvent(agent_id="waf", config=config)]
    assert agent.configurations == expected


@pytest.mark.parametrize("config", [None, {"a": 1}])
async def test_an_agent_in_the_same_process_is_told_that_it_is_connected_either_way(config: Any) -> None:
    agent = Told()
    async with AgentManager([AgentConfig("waf", agent, config=config)]) as manager:
        assert (await manager.process_request_headers(head())).is_allow
    assert agent.configurations == [ConfigureEvent(agent_id="waf", config=config)]


# Answers of other hosts' agents


def answering(answer: dict[str, Any], encoding: str = "json") -> Peer:
    """A peer that answers guardrail questions so, and allows all else."""

    async def behave(event: Received) -> None:
        if event.event_type is EventType.GUARDRAIL_INSPECT:
            audit = {"custom": {"correlation_id": event.correlation_id}}
            content = b"\x20" + shapes.encode({"version": 2, "decision": "allow", "audit": audit} | answer, encoding)
            await event.link.send(len(content).to_bytes(4, "big") + content)
        else:
            await event.answer()

    return Peer(handshake(encoding=encoding), encoding=encoding, behaviour=behave)


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("decision", ["allow", {"block": {"status": 403}}])
async def test_a_guardrail_verdict_in_the_routing_metadata_is_read(decision: Any, encoding: str) -> None:
    text = '{"detected": true, "confidence": 0.5, "detections": [], "redacted_content": "***"}'
    peer = answering({"decision": decision, "routing_metadata": {"guardrail_response": text}}, encoding)
    async with managing(peer, connections=1, stream={"connections": 1, "encoding": encoding}) as manager:
        client = registry_of(manager).guard("waf").client
        assert client is not None
        answer = await client.call(question())
    assert answer == GuardrailResponse(detected=True, confidence=0.5, redacted_content="***")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"detected": "no"}', '{"detected": false, "detections": [1]}'])
async def test_one_that_cant_be_read_is_a_failure_and_the_connection_lives(text: str) -> None:
    peer = answering({"routing_metadata": {"guardrail_response": text}})
    async with managing(peer, connections=1) as manager:
        guard = registry_of(manager).guard("waf")
        verdict, _ = await guard.inspect(question(), guard.config.fails)
        assert verdict.failure is not None
        assert verdict.failure.kind is FailureKind.ERROR
        assert "routing_metadata.guardrail_response" in verdict.failure.message
        assert (await manager.process_request_headers(head())).is_allow
    assert peer.accepted == 1


async def test_such_an_entry_of_another_answer_is_routing_metadata() -> None:
    metadata = {"guardrail_response": '{"detected": true}'}

    async def behave(event: Received) -> None:
        await event.answer(AgentResponse.allow(routing_metadata=metadata))

    async with managing(Peer(behaviour=behave), connections=1) as manager:
        assert (await manager.process_request_headers(head())).routing_metadata == metadata


@pytest.mark.parametrize("version", [0, 2])
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_an_answer_without_a_verdict_is_a_failure_with_its_reason_and_the_connection_lives(
    encoding: Literal["json", "msgpack"], version: int
) -> None:
    def reasons(correlation_id: str) -> dict[str, Any]:
        return {"reason_codes": ["it is broken"], "custom": {"correlation_id": correlation_id}}

    async def behave(event: Received) -> None:
        answer = {"version": version, "decision": "error", "audit": reasons(event.correlation_id)}
        content = b"\x20" + shapes.encode(answer, encoding)
        await event.link.send(len(content).to_bytes(4, "big") + content)

    peer = Peer(handshake(encoding=encoding), encoding=encoding, behaviour=behave)
    async with peer.listening():
        client = StreamTransport(peer.url, connections=1, drain_timeout=0.01, encoding=encoding).client("waf")
        await connected(client)
        for _ in range(2):
            with pytest.raises(AgentError, match=r"^it is broken$"):
                await client.call(head())
        assert len(pool_of(client).connections) == 1
        await client.aclose()
    assert peer.accepted == 1
