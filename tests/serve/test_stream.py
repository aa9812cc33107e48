import asyncio
import errno
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import trustme
from opentelemetry import trace

from asgi_agents.agent import Agent
from asgi_agents.errors import ConfigurationError
from asgi_agents.protocol import (
    Acknowledgement,
    AgentResponse,
    AuditMetadata,
    ConfigureEvent,
    Encoding,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    Headers,
    InspectionType,
    Opcode,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
    encode_event,
)
from asgi_agents.protocol.stream import (
    MAX_FRAME_BYTES,
    CallIds,
    Cancel,
    Framing,
    MessageType,
    Ping,
    encode_envelope_frame,
    encode_event_frame,
    encode_frame,
    encode_message,
)
from asgi_agents.serve import framings, held, serve_stream
from asgi_agents.serve import stream as stream_module
from asgi_agents.serve.sockets import listen
from asgi_agents.transports.wire import parse_address
from tests.serve.client import RawClient, connected

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def chunk(correlation_id: str = "c-1", data: bytes = b"x") -> RequestBodyChunkEvent:
    return RequestBodyChunkEvent(correlation_id=correlation_id, data=data, is_last=True)


def head(traceparent: str | None = None) -> RequestHeadersEvent:
    metadata = RequestMetadata(
        correlation_id="c-1",
        request_id="r-1",
        client_ip="127.0.0.1",
        client_port=1,
        protocol="HTTP/1.1",
        timestamp="2026-01-01T00:00:00Z",
        traceparent=traceparent,
    )
    return RequestHeadersEvent(metadata=metadata, method="GET", uri="/", headers=Headers({"host": ["a"]}))


COMPLETE = RequestCompleteEvent(
    correlation_id="c-1", status=200, duration_ms=1, request_body_size=0, response_body_size=0, upstream_attempts=1
)
QUESTION = GuardrailInspectEvent(
    correlation_id="c-1", inspection_type=InspectionType.PROMPT_INJECTION, content="ignore"
)
EVENTS: list[Event] = [
    head(),
    chunk(data=b"\x00\xff"),
    ResponseHeadersEvent(correlation_id="c-1", status=200, headers=Headers({"a": ["b"]})),
    ResponseBodyChunkEvent(correlation_id="c-1", data=b"\x00\xff", is_last=False),
    COMPLETE,
    WebSocketFrameEvent(
        correlation_id="c-1", opcode=Opcode.TEXT, data=b"hi", client_to_server=True, frame_index=0, client_ip="::1"
    ),
    QUESTION,
    ConfigureEvent(agent_id="waf", config={"level": 3}),
]


class Deaf(Agent):
    """Declares that it receives no events."""

    events = frozenset()


class Recorder(Agent):
    """Hears everything, and answers with a tag that names it; at once or after a pause."""

    def __init__(self, *, pause: bool) -> None:
        self.heard: list[Event] = []
        for event_type in EventType:
            setattr(self, f"on_{event_type.value}", self._later if pause else self._now)

    @property
    def events(self) -> frozenset[EventType]:
        return frozenset(EventType)

    async def _now(self, event: Event) -> AgentResponse:
        self.heard.append(event)
        return AgentResponse.allow(audit=AuditMetadata(tags=[event.event_type.value]))

    async def _later(self, event: Event) -> AgentResponse:
        await anyio.lowlevel.checkpoint()
        return await self._now(event)


class Instant(Agent):
    """Never awaits: answers with the bytes it was shown, or raises them."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        if event.data == b"raise":
            raise ValueError("s3cret")
        if event.data == b"cancelled":
            raise asyncio.CancelledError
        return AgentResponse.block(403, event.data.decode())


class Gated(Agent):
    """Each hook waits until the gate of its body's name is opened."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.cancelled: list[str] = []
        self.running = self.most = 0
        self._gates: dict[str, anyio.Event] = {}
        self._changed = anyio.Event()

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def gate(self, name: str) -> anyio.Event:
        return self._gates.setdefault(name, anyio.Event())

    def open(self, *names: str) -> None:
        for name in names:
            self.gate(name).set()

    async def until(self, condition: Any) -> None:
        with anyio.fail_after(60):
            while not condition():
                await self._changed.wait()

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        name = event.data.decode()
        self.entered.append(name)
        self.running += 1
        self.most = max(self.most, self.running)
        self._change()
        try:
            await self.gate(name).wait()
        except BaseException:
            self.cancelled.append(name)
            raise
        finally:
            self.running -= 1
            self._change()
        return AgentResponse.block(403, name)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse:
        return AgentResponse.block(403, event.data.decode())


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: the path of a socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="agents-") as path:
        yield Path(path)


@pytest.fixture
def bind(directory: Path) -> str:
    return f"unix://{directory}/a.sock"


@asynccontextmanager
async def serving(agent: Agent, bind: str = "tcp://127.0.0.1:0", **options: Any) -> AsyncIterator[str]:
    """The address of ``agent``; when it ends, nothing is left of it."""
    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: Any) -> None:
            await serve_stream(agent, bind, task_status=task_status, **options)

        yield await tasks.start(run)
        tasks.cancel_scope.cancel()


def exists(bind: str) -> bool:
    """Whether there is anything at the path of an address."""
    return os.path.lexists(bind.removeprefix("unix://"))


def body_of(answer: Any) -> str:
    body: str = answer.decision.body
    return body


def reason_of(answer: Any) -> tuple[int, list[str]]:
    return answer.version, list(answer.audit.reason_codes)


# --- Handshake ----------------------------------------------------------------------------------------------------


async def test_the_handshake_tells_what_the_agent_is_and_can() -> None:
    options: dict[str, Any] = {"max_concurrency": 7, "max_body_size": 1000, "name": "waf"}
    async with serving(Recorder(pause=False), **options) as address, connected(address, handshake=False) as client:
        response = await client.handshake("json")
    assert response["protocol_version"] == 2
    capabilities = response["capabilities"]
    assert (capabilities["agent_id"], capabilities["name"]) == ("waf", "waf")
    assert capabilities["supported_events"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert capabilities["limits"] == {"max_body_size": 1000, "max_concurrency": 7, "preferred_chunk_size": 65536}
    assert capabilities["features"] == {
        "streaming_body": True,
        "websocket": True,
        "guardrails": True,
        "config_push": True,
        "metrics_export": False,
        "concurrent_requests": 7,
        "cancellation": True,
        "flow_control": False,
        "health_reporting": True,
        "call_ids": True,
    }


async def test_what_the_agent_does_not_hear_it_does_not_offer() -> None:
    async with serving(Deaf()) as address, connected(address, handshake=False) as client:
        capabilities = (await client.handshake())["capabilities"]
    assert (capabilities["agent_id"], capabilities["supported_events"]) == ("Deaf", [])
    assert not any(capabilities["features"][name] for name in ("streaming_body", "websocket", "guardrails"))
    assert not capabilities["features"]["config_push"]


@pytest.mark.parametrize(
    ("offered", "taken"), [((), "json"), (("msgpack", "json"), "msgpack"), (("cbor", "json", "msgpack"), "json")]
)
async def test_the_first_encoding_that_is_known_is_taken(offered: tuple[str, ...], taken: str) -> None:
    async with serving(Instant()) as address, connected(address, handshake=False) as client:
        assert (await client.handshake(*offered))["encoding"] == taken


async def test_health_follows_the_handshake(bind: str) -> None:
    async with serving(Instant(), bind) as address, connected(address, handshake=False) as client:
        await client.send(encode_frame(MessageType.HANDSHAKE_REQUEST, b'{"supported_versions":[1,2]}'))
        assert (await client.message())[1]["success"]
        message_type, health = await client.message()
    assert (message_type, health["state"], health["agent_id"]) == (MessageType.HEALTH_STATUS, 1, "Instant")


async def test_another_version_is_told_which_one_is_right() -> None:
    async with serving(Instant()) as address:
        async with connected(address, handshake=False) as client:
            response = await client.handshake(versions=[1, 3])
            assert not response["success"]
            assert response["error"] == "version 2 is supported, and none of [1, 3]"
            assert await client.closed()
        async with connected(address):
            pass


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"{}", b'{"supported_versions":"2"}'])
async def test_a_handshake_that_is_none_is_told_so(payload: bytes) -> None:
    async with serving(Instant()) as address, connected(address, handshake=False) as client:
        await client.send(encode_frame(MessageType.HANDSHAKE_REQUEST, payload))
        _, response = await client.message()
        assert not response["success"]
        assert response["error"].startswith("not a handshake: ")
        assert await client.closed()


async def test_silence_is_no_handshake(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(framings, "HANDSHAKE_TIMEOUT", 0.02)
    async with serving(Instant()) as address, connected(address, handshake=False) as client:
        assert await client.closed()
    assert "no handshake within 0.02 s" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"\x00\x00\x00\x00",
        encode_frame(MessageType.PING, b"{}"),
        encode_frame(MessageType.REQUEST_BODY_CHUNK, b"{}"),
        encode_frame(MessageType.HANDSHAKE_RESPONSE, b"{}"),
    ],
)
async def test_a_peer_that_speaks_something_else_is_closed_alone(data: bytes) -> None:
    async with serving(Instant()) as address, connected(address) as good:
        async with connected(address, handshake=False) as bad:
            await bad.send(data)
            assert await bad.closed()
        await good.post(chunk())
        assert body_of((await good.answer())[1]) == "x"


# --- Events -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("encoding", Encoding)
async def test_every_event_is_heard_and_answered(encoding: Encoding, pause: bool, bind: str) -> None:
    agent = Recorder(pause=pause)
    async with serving(agent, bind) as address, connected(address, encoding=encoding) as client:
        for event in EVENTS:
            await client.send(client.spell(event, call_id=5))
            ids, answer = await client.answer(event.event_type)
            assert isinstance(answer, AgentResponse)
            assert answer.audit.tags == (event.event_type.value,)
            assert ids == CallIds("" if isinstance(event, ConfigureEvent) else "c-1", 5)
    assert agent.heard == EVENTS


@pytest.mark.parametrize("event", EVENTS)
async def test_what_the_agent_does_not_hear_is_allowed(event: Event) -> None:
    async with serving(Deaf()) as address, connected(address) as client:
        await client.post(event)
        _, answer = await client.answer(event.event_type)
    match event.event_type:
        case EventType.GUARDRAIL_INSPECT:
            assert answer == GuardrailResponse(detected=False)
        case EventType.CONFIGURE:
            assert answer == Acknowledgement(success=True)
        case _:
            assert isinstance(answer, AgentResponse)
            assert (answer.version, answer.is_allow) == (2, True)


async def test_a_configuration_that_is_refused_is_answered_with_the_kind_of_error() -> None:
    class Picky(Deaf):
        async def on_configure(self, event: ConfigureEvent) -> None:
            raise ValueError(f"s3cret {event.config}")

    async with serving(Picky()) as address, connected(address) as client:
        await client.post(ConfigureEvent(agent_id="a"))
        assert (await client.answer(EventType.CONFIGURE))[1] == Acknowledgement(success=False, error="ValueError")


async def test_a_guardrail_answers_in_its_own_shape() -> None:
    class Guardrail(Agent):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
            return GuardrailResponse(detected=True, confidence=0.9)

    async with serving(Guardrail()) as address, connected(address) as client:
        await client.post(QUESTION)
        ids, answer = await client.answer(EventType.GUARDRAIL_INSPECT)
    assert (ids.correlation_id, answer) == ("c-1", GuardrailResponse(detected=True, confidence=0.9))


@pytest.mark.parametrize("pause", [False, True])
async def test_the_hook_runs_in_the_trace_of_its_caller(pause: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Tracing(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
            return AgentResponse.block(403, f"{trace.get_current_span().get_span_context().span_id:016x}")

    class TracingLater(Tracing):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
            await anyio.lowlevel.checkpoint()
            return await super().on_request_headers(event)

    async with serving(TracingLater() if pause else Tracing()) as address, connected(address) as client:
        await client.post(head(f"00-{TRACE}-{SPAN}-01"), head())
        spans = [body_of((await client.answer())[1]) for _ in range(2)]
    assert spans == [SPAN, "0" * 16]
    assert not caplog.records


@pytest.mark.parametrize("pause", [False, True])
async def test_hooks_run_in_the_context_of_the_server_and_leave_nothing_in_it(pause: bool) -> None:
    place: ContextVar[str] = ContextVar("place")

    class Here(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            found = place.get()
            place.set("changed")
            # anyio knows its event loop here too.
            assert anyio.current_time() > 0
            return AgentResponse.block(403, found)

    class Later(Here):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            await anyio.lowlevel.checkpoint()
            return await super().on_request_body_chunk(event)

    place.set("outside")
    async with serving(Later() if pause else Here()) as address, connected(address) as client:
        await client.post(chunk(), chunk())
        assert [body_of((await client.answer())[1]) for _ in range(2)] == ["outside"] * 2


def test_runs_on_plain_asyncio_too() -> None:
    class Clock(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            assert anyio.current_time() > 0
            return AgentResponse.block(403, "here")

    async def run() -> None:
        async with serving(Clock()) as address, connected(address) as client:
            await client.post(chunk())
            assert body_of((await client.answer())[1]) == "here"

    asyncio.run(run())


# --- Agents that fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", Encoding)
async def test_a_hook_that_raises_is_an_answer_of_version_0_with_the_kind_of_error(
    encoding: Encoding, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Instant()) as address, connected(address, encoding=encoding) as client:
        await client.post(chunk(data=b"raise"), chunk(data=b"cancelled"), chunk())
        assert reason_of((await client.answer())[1]) == (0, ["agent raised ValueError"])
        assert reason_of((await client.answer())[1]) == (0, ["agent raised CancelledError"])
        assert body_of((await client.answer())[1]) == "x"
    assert [record.getMessage() for record in caplog.records] == [
        "Instant: request_body_chunk: raised ValueError",
        "Instant: request_body_chunk: raised CancelledError, though nobody has cancelled it",
    ]


async def test_a_hook_that_fails_after_a_pause_fails_alone() -> None:
    class Failing(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
            await anyio.lowlevel.checkpoint()
            if event.data == b"cancelled":
                raise asyncio.CancelledError
            raise KeyError("s3cret")

    async with serving(Failing()) as address, connected(address) as client:
        for _ in range(2):
            await client.post(chunk())
            assert reason_of((await client.answer())[1]) == (0, ["agent raised KeyError"])
        await client.post(chunk(data=b"cancelled"), chunk())
        assert reason_of((await client.answer())[1]) == (0, ["agent raised CancelledError"])
        assert reason_of((await client.answer())[1]) == (0, ["agent raised KeyError"])


def _on_trio() -> bool:
    import trio

    return bool(trio.lowlevel.in_trio_task())


@pytest.mark.parametrize(
    "answer",
    [
        {"decision": "allow"},
        AgentResponse.block(99),
        AgentResponse.allow(audit=AuditMetadata(custom={"when": object()})),
        AgentResponse.block(403, "x" * 17 * 1024 * 1024),
    ],
    ids=["dict", "status", "custom", "long"],
)
async def test_an_answer_that_cannot_be_sent_is_an_answer_of_version_0(answer: Any) -> None:
    class Answering(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            sent: AgentResponse = answer
            return sent

    async with serving(Answering()) as address, connected(address) as client:
        await client.post(chunk())
        assert reason_of((await client.answer())[1]) == (0, ["the agent's answer is not allowed by the protocol"])


async def test_a_body_over_the_limit_is_refused() -> None:
    async with serving(Instant(), max_body_size=3) as address, connected(address) as client:
        await client.post(chunk(data=b"1234"), chunk(data=b"123"))
        assert (await client.answer())[1].version == 0  # type: ignore[union-attr]
        assert body_of((await client.answer())[1]) == "123"


# --- Bad clients --------------------------------------------------------------------------------------------------


async def test_an_event_that_is_malformed_is_refused_by_its_ids(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Instant()) as address, connected(address) as client:
        payload = b'{"correlation_id":"c-9","call_id":3,"data":17}'
        await client.send(encode_frame(MessageType.REQUEST_BODY_CHUNK, payload), client.spell(chunk()))
        ids, answer = await client.answer()
        assert (ids, reason_of(answer)) == (CallIds("c-9", 3), (0, ["the event is malformed"]))
        assert body_of((await client.answer())[1]) == "x"
    assert "$.data" in caplog.text


async def test_malformed_events_are_logged_once_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    malformed = encode_frame(MessageType.REQUEST_BODY_CHUNK, b'{"correlation_id":"c-9","call_id":3,"data":17}')
    async with serving(Instant()) as address:
        for _ in range(2):
            async with connected(address) as client:
                await client.send(*[malformed] * 100)
                for _ in range(100):
                    await client.answer()
    assert caplog.text.count("malformed:") == 2


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x00\x00",
        (16 * 1024 * 1024 + 1).to_bytes(4, "big"),
        encode_frame(MessageType.REQUEST_BODY_CHUNK, b"{"),
        encode_frame(MessageType.REQUEST_BODY_CHUNK, b'{"correlation_id":"c","call_id":"one"}'),
        encode_frame(MessageType.CANCEL, b"[]"),
    ],
    ids=["empty", "oversize", "garbage", "ids", "cancel"],
)
async def test_what_cannot_be_read_closes_its_connection_only(frame: bytes) -> None:
    async with serving(Instant()) as address, connected(address) as good, connected(address) as bad:
        await bad.send(frame)
        assert await bad.closed()
        await good.post(chunk())
        assert body_of((await good.answer())[1]) == "x"


async def test_ids_that_cannot_be_sent_back_close_the_connection() -> None:
    async with serving(Instant()) as address, connected(address) as client:
        payload = b'{"correlation_id":"c","call_id":1' + b"0" * 5000 + b',"data":"","is_last":true}'
        await client.send(encode_frame(MessageType.REQUEST_BODY_CHUNK, payload))
        assert await client.closed()


async def test_messages_that_are_unknown_are_ignored() -> None:
    async with serving(Instant()) as address, connected(address) as client:
        await client.send(*(b"\x00\x00\x00\x03%c{}" % message_type for message_type in (0x01, 0x20, 0x30, 0x42, 0xFF)))
        await client.post(chunk())
        assert body_of((await client.answer())[1]) == "x"


@pytest.mark.parametrize("agent", [Instant(), Recorder(pause=True)])
async def test_frames_may_come_in_pieces_and_many_at_once(agent: Agent) -> None:
    async with serving(agent) as address, connected(address) as client:
        for byte in client.spell(chunk()):
            await client.send(bytes([byte]))
        await client.answer()
        await client.send(b"".join(client.spell(chunk(str(number))) for number in range(200)))
        got = [(await client.answer())[0].correlation_id for _ in range(200)]
    assert sorted(got, key=int) == [str(number) for number in range(200)]


async def test_too_many_unanswered_events_close_the_connection() -> None:
    agent = Gated()
    async with serving(agent, max_concurrency=1) as address, connected(address) as client:
        frame = client.spell(chunk(data=b"a"))
        await client.send(frame * 1010)
        await client.send(encode_message(MessageType.PING, Ping(sequence=1)))
        assert (await client.message())[0] == MessageType.PONG
        await client.send(frame)
        assert await client.closed()
        await agent.until(lambda: agent.cancelled == ["a"])


@pytest.mark.parametrize("pause", [False, True])
async def test_a_client_that_does_not_read_is_served_no_further_until_it_does(pause: bool, bind: str) -> None:
    class Verbose(Agent):
        heard = 0

        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            Verbose.heard += 1
            return AgentResponse.block(403, "x" * 100_000)

    class VerboseLater(Verbose):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            await anyio.lowlevel.checkpoint()
            return await super().on_request_body_chunk(event)

    Verbose.heard = 0
    agent = VerboseLater() if pause else Verbose()
    async with serving(agent, bind, max_concurrency=5) as address, connected(address) as client:
        ping = encode_message(MessageType.PING, Ping(sequence=1))
        async with connected(address) as other:
            await client.send(*(client.spell(chunk(str(number))) for number in range(400)), ping, ping)
            # What comes later on another connection is answered, so that all that can be has been started.
            await other.post(chunk())
            await other.answer()
        assert Verbose.heard < 200
        got: list[str] = []
        pongs = 0
        while len(got) < 400:
            message_type, payload = await client.message()
            if message_type == MessageType.PONG:
                pongs += 1
            else:
                got.append(payload["audit"]["custom"]["correlation_id"])
        assert sorted(got, key=int) == [str(number) for number in range(400)]
        assert pongs in (1, 2)


async def test_a_client_that_leaves_without_reading_is_forgotten(bind: str) -> None:
    class Verbose(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            return AgentResponse.block(403, "x" * 100_000)

    async with drainable(Verbose(), bind, drain_timeout=10) as (address, shutdown, _):
        async with connected(address) as client, connected(address) as other:
            await client.send(*(client.spell(chunk(str(number))) for number in range(100)))
            await other.post(chunk())
            await other.answer()
        # Ends at once, though of the client's events most were never answered.
        shutdown.set()


# --- Concurrency and order ----------------------------------------------------------------------------------------


async def test_hooks_run_concurrently_and_no_more_than_allowed_over_all_connections() -> None:
    agent = Gated()
    async with serving(agent, max_concurrency=2) as address, connected(address) as one, connected(address) as two:
        await one.post(chunk("1", b"a"), chunk("2", b"b"), chunk("3", b"c"))
        await agent.until(lambda: agent.running == 2)
        await two.post(chunk("4", b"d"))
        await two.send(encode_message(MessageType.PING, Ping(sequence=1)))
        await two.message()
        agent.open("b")
        assert (await one.answer())[0].correlation_id == "2"
        # trio begins tasks that are ready together in any order.
        await agent.until(lambda: set(agent.entered) == {"a", "b", "c"})
        agent.open("c")
        assert (await one.answer())[0].correlation_id == "3"
        await agent.until(lambda: agent.entered[2:] == ["c", "d"])
        agent.open("a", "d")
        assert body_of((await two.answer())[1]) == "d"
        assert body_of((await one.answer())[1]) == "a"
    assert agent.most == 2


async def test_answers_of_one_correlation_id_go_out_in_order() -> None:
    agent = Gated()
    reply = ResponseBodyChunkEvent(correlation_id="1", data=b"instant", is_last=True)
    async with serving(agent) as address, connected(address) as client:
        await client.post(chunk("1", b"a"), chunk("1", b"b"), chunk("2", b"c"), reply)
        agent.open("b")
        await agent.until(lambda: agent.running == 2)
        agent.open("c")
        assert body_of((await client.answer())[1]) == "c"
        agent.open("a")
        assert [body_of((await client.answer())[1]) for _ in range(3)] == ["a", "b", "instant"]


async def test_answers_with_call_ids_go_out_as_they_come() -> None:
    agent = Gated()
    async with serving(agent) as address, connected(address) as client:
        names = [b"a", b"b", b"c"]
        await client.send(*(client.spell(chunk("1", name), call_id=index) for index, name in enumerate(names)))
        for index in (2, 0, 1):
            agent.open(names[index].decode())
            ids, answer = await client.answer()
            assert (ids, body_of(answer)) == (CallIds("1", index), names[index].decode())


async def test_an_answer_without_ids_waits_until_it_is_the_oldest() -> None:
    agent = Gated()
    async with serving(agent) as address, connected(address) as client:
        await client.post(chunk("1", b"a"), ConfigureEvent(agent_id="x"), chunk("2", b"b"))
        agent.open("b")
        assert body_of((await client.answer())[1]) == "b"
        agent.open("a")
        assert body_of((await client.answer())[1]) == "a"
        assert (await client.answer(EventType.CONFIGURE))[1] == Acknowledgement(success=True)


async def test_pings_are_answered_while_hooks_are_at_work() -> None:
    agent = Gated()
    async with serving(agent, max_concurrency=1) as address, connected(address) as client:
        await client.post(chunk("1", b"a"), chunk("2", b"b"))
        await agent.until(lambda: agent.running == 1)
        await client.send(encode_message(MessageType.PING, Ping(sequence=77, timestamp_ms=5)))
        assert await client.message() == (MessageType.PONG, {"sequence": 77, "timestamp_ms": 5})


# --- Cancelling ---------------------------------------------------------------------------------------------------


def cancel(client: RawClient, correlation_id: str, **call_id: int) -> bytes:
    return encode_message(MessageType.CANCEL, Cancel(correlation_id=correlation_id, **call_id), client.encoding)


@pytest.mark.parametrize("encoding", Encoding)
async def test_a_call_that_is_given_up_is_cancelled_and_answered_once(encoding: Encoding) -> None:
    agent = Gated()
    async with serving(agent) as address, connected(address, encoding=encoding) as client:
        frames = [client.spell(chunk("1", name), call_id=index) for index, name in enumerate((b"a", b"b"))]
        await client.send(*frames)
        await agent.until(lambda: agent.running == 2)
        await client.send(cancel(client, "1", call_id=0), cancel(client, "1", call_id=0), cancel(client, "9"))
        ids, answer = await client.answer()
        assert (ids.call_id, reason_of(answer)) == (0, (0, ["cancelled"]))
        assert agent.cancelled == ["a"]
        agent.open("b")
        assert body_of((await client.answer())[1]) == "b"
        await client.send(cancel(client, "1"), encode_message(MessageType.PING, Ping(), encoding))
        assert (await client.message())[0] == MessageType.PONG


async def test_without_a_call_id_all_of_the_correlation_id_are_cancelled_also_in_the_queue() -> None:
    agent = Gated()
    async with serving(agent, max_concurrency=1) as address, connected(address) as client:
        await client.post(chunk("1", b"a"), chunk("1", b"b"), chunk("2", b"c"))
        await agent.until(lambda: agent.running == 1)
        await client.send(cancel(client, "1"))
        for _ in range(2):
            ids, answer = await client.answer()
            assert (ids.correlation_id, reason_of(answer)) == ("1", (0, ["cancelled"]))
        agent.open("c")
        assert body_of((await client.answer())[1]) == "c"
    assert agent.entered == ["a", "c"]


@pytest.mark.parametrize(("agent", "given_up"), [(Instant, False), (Gated, False), (Gated, True)])
async def test_an_id_that_is_too_long_to_be_sent_back_closes_that_connection_alone(
    agent: type[Agent], given_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The event alone is more than one connection may hold.
    monkeypatch.setattr(held, "PATIENCE", 0.01)
    served = agent()
    # As long as an event can carry, without anything else. All answers are longer than this.
    spelt = '{"correlation_id":"%s","data":"YQ==","is_last":true}'
    name = "x" * (MAX_FRAME_BYTES - 1 - len(spelt % ""))
    event = encode_frame(MessageType.REQUEST_BODY_CHUNK, (spelt % name).encode())
    async with serving(served) as address, connected(address) as other, connected(address) as client:
        await client.send(event)
        if isinstance(served, Gated):
            await served.until(lambda: served.running == 1)
            if given_up:
                await client.send(encode_frame(MessageType.CANCEL, b'{"correlation_id":"%b"}' % name.encode()))
            else:
                served.open("a")
        assert await client.closed()
        await other.send(encode_message(MessageType.PING, Ping(sequence=3)))
        assert (await other.message())[0] == MessageType.PONG


async def test_what_is_refused_behind_the_queue_is_answered_once_too_and_waits_for_no_hook() -> None:
    agent = Gated()
    malformed = encode_frame(MessageType.REQUEST_BODY_CHUNK, b'{"correlation_id":"2"}')
    async with serving(agent, max_concurrency=1) as address, connected(address) as client:
        await client.post(chunk("1", b"a"), chunk("2", b"b"))
        await client.send(malformed, cancel(client, "2"), malformed)
        reasons = [reason_of((await client.answer())[1]) for _ in range(3)]
        assert reasons == [
            (0, [reason]) for reason in ("cancelled", "the event is malformed", "the event is malformed")
        ]
        await agent.until(lambda: agent.running == 1)
        agent.open("a")
        assert (await client.answer())[0].correlation_id == "1"
        await client.post(chunk("3", b"a"))
        assert (await client.answer())[0].correlation_id == "3"


async def test_a_call_cancelled_before_it_began_never_begins() -> None:
    agent = Gated()
    async with serving(agent) as address, connected(address) as client:
        await client.send(client.spell(chunk("1", b"a")), cancel(client, "1"))
        assert reason_of((await client.answer())[1]) == (0, ["cancelled"])
    assert agent.entered == []


async def test_a_hook_that_fails_over_its_cancellation_counts_as_cancelled() -> None:
    class Sore(Gated):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._fail)
                return await super().on_request_body_chunk(event)
            raise AssertionError

        async def _fail(self) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError

    agent = Sore()
    async with serving(agent) as address, connected(address) as client:
        await client.post(chunk("1", b"a"))
        await agent.until(lambda: agent.running == 1)
        await client.send(cancel(client, "1"))
        assert (await client.answer())[0].correlation_id == "1"
        agent.open("b")
        await client.send(encode_message(MessageType.PING, Ping()))
        assert (await client.message())[0] == MessageType.PONG


async def test_a_hook_that_will_not_be_cancelled_counts_as_cancelled_and_is_answered_once() -> None:
    class Stubborn(Gated):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            with anyio.CancelScope(shield=True):
                return await super().on_request_body_chunk(event)
            raise AssertionError

    agent = Stubborn()
    async with serving(agent) as address, connected(address) as client:
        await client.post(chunk("1", b"a"))
        await agent.until(lambda: agent.running == 1)
        await client.send(cancel(client, "1"))
        agent.open("a")
        assert reason_of((await client.answer())[1]) == (0, ["cancelled"])
        await client.send(encode_message(MessageType.PING, Ping()))
        assert (await client.message())[0] == MessageType.PONG


async def test_a_lost_connection_cancels_its_hooks_and_frees_their_permits() -> None:
    agent = Gated()
    async with serving(agent, max_concurrency=1) as address, connected(address) as other:
        async with connected(address) as client:
            await client.post(chunk("1", b"a"), chunk("2", b"b"))
            await agent.until(lambda: agent.running == 1)
            await other.post(chunk("3", b"c"))
        agent.open("c")
        assert body_of((await other.answer())[1]) == "c"
    assert (agent.entered, agent.cancelled) == (["a", "c"], ["a"])


async def test_nothing_is_left_when_the_server_is_cancelled(bind: str) -> None:
    agent = Gated()
    tasks = _tasks()
    async with AsyncExitStack() as clients:
        async with serving(agent, bind) as address:
            client = await clients.enter_async_context(connected(address))
            await client.post(chunk("1", b"a"))
            await agent.until(lambda: agent.running == 1)
        assert agent.cancelled == ["a"]
        assert await client.closed()
        assert not exists(bind)
        assert _tasks() == tasks


def _tasks() -> set[Any]:
    """All tasks; trio itself sees to it that a nursery leaves none."""
    return set() if _on_trio() else asyncio.all_tasks()


# --- The older framing --------------------------------------------------------------------------------------------


async def test_the_older_framing_is_answered_in_order_with_bare_answers() -> None:
    agent = Gated()
    async with serving(agent, framing="envelope") as address, connected(address, framing=Framing.ENVELOPE) as client:
        frames = [encode_envelope_frame(encode_event(chunk(n, n.encode()), Encoding.JSON)) for n in "ab"]
        complete = encode_envelope_frame(encode_event(COMPLETE, Encoding.JSON))
        await client.send(*frames, complete, encode_envelope_frame(b"{}"))
        agent.open("b")
        await agent.until(lambda: agent.running == 1)
        agent.open("a")
        answers = [msgspec.json.decode(await client.frame()) for _ in range(4)]
    assert answers[0]["decision"]["block"]["body"] == "a"
    assert answers[1]["decision"]["block"]["body"] == "b"
    assert (answers[2]["version"], answers[2]["decision"]) == (2, "allow")
    assert (answers[3]["version"], answers[3]["audit"]["reason_codes"]) == (0, ["the event is malformed"])
    assert answers[0]["audit"]["custom"] == {}


async def test_the_older_framing_takes_configurations() -> None:
    class Picky(Deaf):
        async def on_configure(self, event: ConfigureEvent) -> None:
            if event.config:
                raise ValueError

    async with (
        serving(Picky(), framing=Framing.ENVELOPE) as address,
        connected(address, framing=Framing.ENVELOPE) as client,
    ):
        refused = {"block": {"status": 500, "body": "ValueError", "headers": None}}
        for config, decision in ((None, "allow"), ({"a": 1}, refused)):
            event = encode_event(ConfigureEvent(agent_id="a", config=config), Encoding.JSON)
            await client.send(encode_envelope_frame(event))
            answer = msgspec.json.decode(await client.frame())
            assert (answer["version"], answer["decision"]) == (2, decision)
            assert answer["success"] == (decision == "allow")


# --- Draining -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def drainable(agent: Agent, bind: str, **options: Any) -> AsyncIterator[tuple[str, anyio.Event, anyio.Event]]:
    """The address, the event that drains, and one that says that it has."""
    shutdown, ended = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: Any) -> None:
            await serve_stream(agent, bind, shutdown=shutdown, task_status=task_status, **options)
            ended.set()

        yield await tasks.start(run), shutdown, ended
        with anyio.fail_after(60):
            await ended.wait()


async def test_draining_answers_what_is_under_way_and_what_a_client_that_names_its_calls_still_sends(
    bind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "QUIET", 60)
    agent = Gated()
    async with drainable(agent, bind) as (address, shutdown, ended), connected(address) as client:
        await client.send(client.spell(chunk("1", b"a"), call_id=1))
        await agent.until(lambda: agent.running == 1)
        shutdown.set()
        message_type, health = await client.message()
        assert (message_type, health["state"]) == (MessageType.HEALTH_STATUS, 3)
        assert not exists(bind)
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the backend
            await anyio.connect_unix(bind.removeprefix("unix://"))
        agent.open("a", "b")
        assert body_of((await client.answer())[1]) == "a"
        await client.send(client.spell(chunk("2", b"b"), call_id=2))
        assert body_of((await client.answer())[1]) == "b"
        assert not ended.is_set()


@pytest.mark.parametrize("framing", Framing)
async def test_draining_takes_no_more_events_of_a_client_that_does_not_name_its_calls(
    framing: Framing, bind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "QUIET", 60)
    agent = Gated()

    def spell(event: Event) -> bytes:
        if framing is Framing.V2:
            return encode_event_frame(event, Encoding.JSON, CallIds("c"))
        return encode_envelope_frame(encode_event(event, Encoding.JSON))

    async def answer(client: RawClient) -> Any:
        frame = await client.frame()
        return msgspec.json.decode(frame[1:] if framing is Framing.V2 else frame)

    async with (
        drainable(agent, bind, framing=framing) as (address, shutdown, _),
        connected(address, framing=framing) as client,
        connected(address, framing=framing) as idle,
    ):
        agent.open("i")
        await idle.send(spell(chunk("c", b"i")))
        assert (await answer(idle))["decision"]["block"]["body"] == "i"
        await client.send(spell(chunk("c", b"a")))
        await agent.until(lambda: agent.running == 1)
        shutdown.set()
        if framing is Framing.V2:
            assert [(await each.message())[1]["state"] for each in (client, idle)] == [3, 3]
        # It is owed nothing.
        assert await idle.closed()
        await client.send(spell(chunk("c", b"b")))
        if framing is Framing.V2:
            await client.send(encode_message(MessageType.PING, Ping()))
            assert (await client.message())[0] == MessageType.PONG
        agent.open("a")
        assert (await answer(client))["decision"]["block"]["body"] == "a"
        if framing is Framing.V2:
            refused = await answer(client)
            assert (refused["decision"], refused["audit"]["reason_codes"]) == ("error", ["the agent is shutting down"])
        else:
            # Without a pong it can't be told whether the event has come before the connection was closed.
            with suppress(anyio.EndOfStream):
                assert (await answer(client))["decision"] == "error"
        with suppress(anyio.EndOfStream):
            await client.frame()
            raise AssertionError("the connection is open")
    assert agent.entered == ["i", "a"]


async def test_draining_closes_connections_that_are_quiet(bind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "QUIET", 0.02)
    async with drainable(Instant(), bind) as (address, shutdown, _), connected(address) as client:
        shutdown.set()
        assert (await client.message())[1]["state"] == 3
        assert await client.closed()


async def test_a_handshake_while_draining_is_told_so(bind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "QUIET", 60)
    async with (
        drainable(Instant(), bind) as (address, shutdown, _),
        connected(address, handshake=False) as client,
        connected(address) as other,
    ):
        shutdown.set()
        assert (await other.message())[1]["state"] == 3
        await client.send(encode_frame(MessageType.HANDSHAKE_REQUEST, b'{"supported_versions":[2]}'))
        assert (await client.message())[1]["success"]
        assert (await client.message())[1]["state"] == 3


async def test_what_is_not_done_within_the_drain_timeout_is_cancelled_without_an_answer(bind: str) -> None:
    agent = Gated()
    async with drainable(agent, bind, drain_timeout=0.02) as (address, shutdown, _), connected(address) as client:
        await client.post(chunk("1", b"a"))
        await agent.until(lambda: agent.running == 1)
        shutdown.set()
        assert (await client.message())[1]["state"] == 3
        assert await client.closed()
        await agent.until(lambda: agent.cancelled == ["a"])


@pytest.mark.parametrize("call", ["unlink", "lstat"])
@pytest.mark.parametrize("suffix", ["", ".lock"])
async def test_what_is_under_way_is_answered_also_where_the_file_cannot_be_removed(
    call: str, suffix: str, bind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a server has given up its privileges once it listens."""
    path = bind.removeprefix("unix://")
    really = getattr(os, call)

    def refuse(name: Any, *arguments: Any, **more: Any) -> Any:
        if str(name) == path + suffix:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return really(name, *arguments, **more)

    agent = Gated()
    async with drainable(agent, bind) as (address, shutdown, _), connected(address) as client:
        await client.send(client.spell(chunk("1", b"a"), call_id=1))
        await agent.until(lambda: agent.running == 1)
        with monkeypatch.context() as refusing:
            refusing.setattr(os, call, refuse)
            shutdown.set()
            assert (await client.message())[1]["state"] == 3
        agent.open("a")
        assert body_of((await client.answer())[1]) == "a"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == (
        [] if suffix else [f"{path}: can't be removed, and stays: Permission denied"]
    )
    # Neither is in the way of the next.
    async with serving(Instant(), bind):
        pass


async def test_without_clients_it_ends_at_once(bind: str) -> None:
    async with drainable(Instant(), bind) as (_, shutdown, _ended):
        shutdown.set()


# --- Addresses ----------------------------------------------------------------------------------------------------


async def test_port_0_becomes_the_actual_one() -> None:
    async with serving(Instant(), "tcp://127.0.0.1:0") as address:
        assert address.startswith("tcp://127.0.0.1:")
        assert not address.endswith(":0")


async def test_a_name_is_served_on_all_its_addresses() -> None:
    listening = await listen(parse_address("test", "tcp://localhost:0"))
    ports = {each.sock.getsockname()[1] for each in listening}
    for each in listening:
        each.close()
    assert len(ports) == 1


async def test_a_port_in_use_is_named() -> None:
    async with serving(Instant()) as address:
        with pytest.raises(OSError, match="in use: somebody listens there") as caught:
            await serve_stream(Instant(), address)
    assert caught.value.errno == errno.EADDRINUSE
    assert address in str(caught.value)


async def test_tls_is_spoken_where_a_context_is_given() -> None:
    import ssl

    authority = trustme.CA()
    server, client_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client_context)
    async with serving(Instant(), ssl_context=server) as address:
        async with connected(address, handshake=False) as plain:
            await plain.send(b"\x00\x00\x00\x02\x01{}")
            assert await _ends(plain)
        async with connected(address, tls=client_context) as client:
            await client.post(chunk())
            assert body_of((await client.answer())[1]) == "x"


async def _ends(client: RawClient) -> bool:
    """Whether the server hangs up, whatever it says before."""
    with anyio.fail_after(60):
        try:
            while True:
                await client.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return True


async def test_the_socket_is_for_owner_and_group(bind: str) -> None:
    before = os.umask(0)
    try:
        async with serving(Instant(), bind):
            mode = os.stat(bind.removeprefix("unix://")).st_mode
    finally:
        os.umask(before)
    assert stat.S_IMODE(mode) == 0o660
    assert stat.S_ISSOCK(mode)


async def test_a_socket_that_nobody_listens_on_is_replaced(bind: str) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(bind.removeprefix("unix://"))
    async with serving(Instant(), bind) as address, connected(address):
        pass
    assert not exists(bind)


async def test_a_socket_that_is_served_stays(bind: str) -> None:
    async with serving(Instant(), bind) as address:
        with pytest.raises(OSError, match="in use: somebody listens there"):
            await serve_stream(Instant(), bind)
        async with connected(address):
            pass


@pytest.fixture(params=["file", "directory", "symlink", "dangling symlink"])
def occupied(request: pytest.FixtureRequest, bind: str, directory: Path) -> Iterator[str]:
    """What is at the path already; it has to be there afterwards."""
    path = Path(bind.removeprefix("unix://"))
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(directory / "stale"))
    match request.param:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "symlink":
            path.symlink_to(directory / "stale")
        case _:
            path.symlink_to(directory / "nowhere")
    before = path.lstat()
    yield request.param.split()[-1]
    assert path.lstat() == before
    assert (directory / "stale").exists()


async def test_what_is_no_socket_stays(occupied: str, bind: str) -> None:
    with pytest.raises(ConfigurationError, match=f"there is a {occupied} that is no socket"):
        await serve_stream(Instant(), bind)


async def test_a_file_that_is_somebody_elses_by_now_stays(bind: str) -> None:
    path = bind.removeprefix("unix://")
    async with serving(Instant(), bind):
        # Bound first, so that the inode isn't the same again.
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(f"{path}.new")
        os.replace(f"{path}.new", path)
    assert exists(bind)


@pytest.mark.parametrize("framing", Framing)
async def test_a_socket_that_listens_already_is_served_and_its_file_stays(framing: Framing, bind: str) -> None:
    [listening] = await listen(parse_address("test", bind))
    async with serving(Instant(), bind, sock=listening.sock, framing=framing) as address:
        assert address == bind
        async with connected(address, framing=framing) as client:
            if framing is Framing.ENVELOPE:
                await client.send(encode_envelope_frame(encode_event(chunk(), Encoding.JSON)))
                await client.frame()
    assert listening.sock.fileno() == -1
    assert exists(bind)


@pytest.mark.parametrize("bind", ["unix:///" + "x" * 200, "unix:///nowhere/at/all/a.sock"])
async def test_a_path_that_cannot_be_had_is_named(bind: str) -> None:
    with pytest.raises((ConfigurationError, OSError), match="unix:///"):
        await serve_stream(Instant(), bind)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agent": Instant}, "agent=<class "),
        ({"bind": "http://a"}, "bind: 'http://a', expected unix:///path or tcp://host:port"),
        ({"bind": None}, "bind: None, expected unix:///path or tcp://host:port"),
        ({"framing": "v1"}, "framing='v1', expected 'v2' or 'envelope'"),
        ({"max_concurrency": 0}, "max_concurrency=0, expected a whole number of at least 1"),
        ({"max_body_size": 1.5}, "max_body_size=1.5, expected a whole number of at least 1"),
        ({"name": ""}, "name='', expected text or None"),
        ({"drain_timeout": -1}, "drain_timeout=-1, expected seconds"),
        ({"drain_timeout": float("nan")}, "drain_timeout=nan, expected seconds"),
        ({"ssl_context": True}, "ssl_context, expected an ssl.SSLContext, and a tcp:// address"),
        ({"sock": 3}, "sock=3, expected a listening stream socket"),
    ],
)
async def test_arguments_that_cannot_work_are_configuration_errors(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"agent": Instant(), "bind": "tcp://127.0.0.1:0"}
    with pytest.raises(ConfigurationError) as caught:
        await serve_stream(**given | arguments)
    assert str(caught.value).startswith(f"serve_stream: {message}")
