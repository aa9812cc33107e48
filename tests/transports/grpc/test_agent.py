"""The client of the agent protocol over gRPC, against a server that follows the published numbers."""

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from asgi_agents import (
    AgentConfig,
    AgentConnectionError,
    AgentError,
    AgentManager,
    AgentProtocolError,
    AgentTimeoutError,
    AgentUnavailableError,
    AuditMetadata,
    Challenge,
    ConfigurationError,
    Event,
    EventTooLargeError,
    EventType,
    FailureMode,
    GrpcTransport,
    HeaderOp,
    MetricsReport,
    Redirect,
)
from asgi_agents.manager import registry_of
from asgi_agents.protocol import ALLOW, Answer, Headers, RequestHeadersEvent, RequestMetadata, ResponseBodyChunkEvent
from asgi_agents.transports.base import AgentClient
from asgi_agents.transports.grpc.agent import GrpcClient
from tests.support.sample_events import head
from tests.support.wire_fields import Fields, message, read
from tests.transports.stream.pools import chunk, complete, response_head, until

from . import peer as wire
from .peer import Heard, Peer, answer, block, greeting

pytestmark = pytest.mark.anyio

HEADS = frozenset({EventType.REQUEST_HEADERS})


@asynccontextmanager
async def client_of(
    peer: Peer, *, events: frozenset[EventType] | None = HEADS, config: Any = None, **settings: Any
) -> AsyncIterator[GrpcClient]:
    """A client of ``peer``, on one stream unless told otherwise."""
    with peer.on_a_socket() as path:
        transport = GrpcTransport(f"grpc+unix://{path}", **{"connections": 1, "connect_timeout": 30.0, **settings})
        client = transport.bind("agent", events=events, config=config)
        assert isinstance(client, GrpcClient)
        try:
            yield client
        finally:
            await client.aclose()


async def ask(client: GrpcClient, event: Event, seconds: float = 30.0) -> Answer | None:
    return await client.call(event, time.monotonic() + seconds)


async def test_the_handshake_and_a_head_have_the_published_numbers() -> None:
    event = RequestHeadersEvent(
        metadata=RequestMetadata(
            correlation_id="c-1",
            request_id="r-1",
            client_ip="192.0.2.7",
            client_port=1234,
            server_name="a.example",
            protocol="HTTP/2",
            tls_version="TLSv1.3",
            route_id="/orders",
            upstream_id="app",
            timestamp="2026-01-02T03:04:05.678+00:00",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        method="POST",
        uri="/orders?a=%20b",
        headers=Headers({"accept": ["a", "b"], "x-latin": ["\xe9"]}),
    )
    async with client_of(peer := Peer(), config={"level": 3}) as client:
        assert await ask(client, event) is ALLOW

    handshake = peer.streams[0].handshake
    assert handshake[1] == [b"\x02"]
    assert handshake[2] == [b"agent"]
    assert handshake[4] == [b'{"level":3}']
    [heard] = peer.heard
    assert heard.kind == wire.REQUEST_HEADERS
    fields = heard.fields
    assert (fields[2], fields[3], fields[4]) == ([b"POST"], [b"/orders?a=%20b"], [b"HTTP/2"])
    assert [read(header) for header in fields[5]] == [
        {1: [b"accept"], 2: [b"a"]},
        {1: [b"accept"], 2: [b"b"]},
        {1: [b"x-latin"], 2: ["\xe9".encode()]},
    ]
    assert read(fields[1][0]) == {
        1: [b"c-1"],
        2: [b"r-1"],
        3: [b"192.0.2.7"],
        4: [1234],
        5: [b"a.example"],
        6: [b"HTTP/2"],
        7: [b"TLSv1.3"],
        8: [b"/orders"],
        9: [b"app"],
        10: [1767323045678],
        11: [b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    }


async def test_the_other_events_have_the_published_numbers() -> None:
    body = ResponseBodyChunkEvent(
        correlation_id="c", data=b"\x00\xff", is_last=True, total_size=9, chunk_index=2, bytes_sent=5
    )
    events = frozenset(GrpcTransport("grpc://127.0.0.1:9").carries)
    async with client_of(peer := Peer(), events=events) as client:
        for event in (head(), chunk(data=b"ab"), response_head(), body, complete()):
            assert await ask(client, event) is ALLOW

    kinds = [heard.kind for heard in peer.heard]
    assert kinds == [
        wire.REQUEST_HEADERS,
        wire.REQUEST_BODY,
        wire.RESPONSE_HEADERS,
        wire.RESPONSE_BODY,
        wire.COMPLETE,
    ]
    assert peer.heard[1].fields == {1: [b"c"], 3: [b"ab"], 4: [1], 6: [2]}
    assert peer.heard[2].fields == {1: [b"c"], 2: [200]}
    assert peer.heard[3].fields == {1: [b"c"], 2: [2], 3: [b"\x00\xff"], 4: [1], 5: [9], 6: [5]}
    assert peer.heard[4].fields == {1: [b"c"], 2: [200]}


async def test_answers_are_read_by_the_published_numbers() -> None:
    audit = message((1, "tag"), (2, "rule"), (3, 0.9), (4, "reason"), (5, message((1, "k"), (2, "v"))))
    ops = (
        (10, message((1, message((1, "x-a"), (2, "1"))))),
        (10, message((2, message((1, "x-b"), (2, "2"))))),
        (10, message((3, "x-c"))),
        (11, message((1, message((1, "x-d"), (2, "3"))))),
    )
    decisions = {
        "ops": answer("ops", wire.ALLOW, *ops, (12, audit), (13, 5), (14, 1)),
        "block": answer("block", message((3, message((1, 451), (2, "no"), (3, message((1, "x-e"), (2, "4"))))))),
        "redirect": answer("redirect", message((4, message((1, "https://a.example/"), (2, 307))))),
        "challenge": answer("challenge", message((5, message((1, "bearer"), (2, message((1, "realm"), (2, "a"))))))),
    }
    async with client_of(Peer(lambda event: decisions[event.correlation_id])) as client:
        found: dict[str, Any] = {name: await ask(client, head(name)) for name in decisions}

    assert found["ops"].request_headers == (HeaderOp.set("x-a", "1"), HeaderOp.add("x-b", "2"), HeaderOp.remove("x-c"))
    assert found["ops"].response_headers == (HeaderOp.set("x-d", "3"),)
    assert found["ops"].needs_more
    assert found["ops"].audit == AuditMetadata(
        tags=["tag"], rule_ids=["rule"], confidence=0.9, reason_codes=["reason"], custom={"k": "v"}
    )
    assert (found["block"].decision.status, found["block"].decision.body) == (451, "no")
    assert found["block"].decision.headers == {"x-e": "4"}
    assert found["redirect"].decision == Redirect("https://a.example/", 307)
    assert found["challenge"].decision == Challenge("bearer", {"realm": "a"})


@pytest.mark.parametrize(
    ("decision", "told"),
    [
        (b"", "expected one of allow, block, redirect and challenge, got none"),
        (wire.ALLOW + message((10, b"")), r"request_headers\[0\]: expected one of set, add and remove"),
    ],
)
async def test_an_answer_that_says_nothing_is_no_allow(decision: bytes, told: str) -> None:
    async with client_of(Peer(lambda event: answer(event.correlation_id, decision))) as client:
        with pytest.raises(AgentProtocolError, match=told):
            await ask(client, head())


async def test_the_first_event_that_published_agents_name_is_not_all_that_they_are_asked_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = frozenset({EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS})
    async with client_of(peer := Peer(), events=events) as client:
        await ask(client, response_head())

    assert [heard.kind for heard in peer.heard] == [wire.RESPONSE_HEADERS]
    assert "its events= also name response_headers: it is asked about these too" in caplog.text


async def test_what_the_agent_names_is_what_it_is_asked_about_and_what_is_not_carried_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer = Peer(greet=lambda request: greeting(events=(1, 4, 6, 7, 8), limits=message((1, 99), (2, 7), (3, 5))))
    async with client_of(peer, events=None) as client:
        await client.connect()
        assert client.hears == {EventType.REQUEST_HEADERS, EventType.RESPONSE_BODY_CHUNK}
        assert (client.max_concurrency, client.max_body_size) == (7, 99)
        [capabilities] = client.capabilities
        assert (capabilities.agent_id, capabilities.name, capabilities.features.cancellation) == ("peer", "Peer", True)

    assert "supports guardrail_inspect, websocket_frame: it isn't asked about these" in caplog.text


def test_events_that_are_not_carried_are_refused_with_the_configuration() -> None:
    with pytest.raises(ConfigurationError, match="guardrail_inspect, websocket_frame"):
        AgentConfig(
            "waf",
            GrpcTransport("grpc://127.0.0.1:9"),
            events={EventType.WEBSOCKET_FRAME, EventType.GUARDRAIL_INSPECT, EventType.REQUEST_HEADERS},
        )


async def test_no_configuration_is_an_empty_one() -> None:
    async with client_of(peer := Peer()) as client:
        await client.connect()
    assert peer.streams[0].handshake[4] == [b"{}"]


# Cancellation, deadlines


class Held:
    """Holds the answers to some events back."""

    def __init__(self, *held: str) -> None:
        self._held = set(held)
        self.go = threading.Event()

    def __call__(self, event: Heard) -> bytes:
        if event.correlation_id in self._held:
            assert self.go.wait(60)
            return answer(event.correlation_id, block(403, "late"))
        return answer(event.correlation_id)


async def test_a_call_that_is_cancelled_leaves_the_stream_as_it_was_and_its_late_answer_is_swallowed() -> None:
    behave = Held("slow")
    async with client_of(peer := Peer(behave)) as client:
        await client.connect()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client, head("slow"))
            await until(lambda: peer.heard)
            tasks.cancel_scope.cancel()
        await until(lambda: client.statistics()[0][0].in_flight == 1)
        async with anyio.create_task_group() as tasks:
            found: list[Answer | None] = []

            async def ask_again() -> None:
                found.append(await ask(client, head("slow")))

            tasks.start_soon(ask_again)
            behave._held.clear()
            behave.go.set()
        assert found == [ALLOW]
        [endpoint] = client.statistics()[0]
        assert (endpoint.in_flight, endpoint.late_answers, endpoint.unmatched_answers) == (0, 1, 0)
        await until(lambda: peer.cancelled == ["slow"])

    assert peer.calls == 1


async def test_a_cancellation_does_not_cancel_another_call_about_the_same_request() -> None:
    behave = Held("c")
    events = frozenset({EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_HEADERS})
    async with client_of(peer := Peer(behave), events=events) as client:
        await client.connect()
        found: list[Answer | None] = []

        async def ask_on() -> None:
            found.append(await ask(client, response_head()))

        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()

            async def ask_in_scope() -> None:
                with scope:
                    await ask(client, chunk())

            tasks.start_soon(ask_in_scope)
            await until(lambda: len(peer.heard) == 1)
            tasks.start_soon(ask_on)
            pool: Any = client._pools.peek()
            # What has come is read before it is sent.
            await until(lambda: len(pool.connections[0].pending_calls) == 2)
            scope.cancel()
            await anyio.sleep(0.01)
            behave.go.set()
        assert len(found) == 1

    assert peer.cancelled == []


async def test_a_call_ends_at_its_deadline_and_the_stream_goes_on() -> None:
    behave = Held("slow")
    async with client_of(peer := Peer(behave)) as client:
        await client.connect()
        with pytest.raises(AgentTimeoutError):
            await ask(client, head("slow"), 0.02)
        behave.go.set()
        assert await ask(client, head("quick")) is ALLOW
        await until(lambda: client.statistics()[0][0].late_answers == 1)

    assert peer.calls == 1


async def test_an_agent_that_does_not_want_cancellations_gets_none() -> None:
    behave = Held("slow")
    peer = Peer(behave, greet=lambda request: greeting(features=b""))
    async with client_of(peer) as client:
        await client.connect()
        with pytest.raises(AgentTimeoutError):
            await ask(client, head("slow"), 0.02)
        behave.go.set()
        assert await ask(client, head("quick")) is ALLOW

    assert peer.cancelled == []


# What ends a stream, and what comes after


@pytest.mark.parametrize("said", [b"\xff\xff\xff", answer("nobody"), answer("c") + b"\x0a"])
async def test_what_is_no_message_or_no_answer_to_a_call_ends_the_stream_and_another_is_begun(said: bytes) -> None:
    said_once = [said]
    peer = Peer(lambda event: said_once.pop() if said_once else answer(event.correlation_id))
    async with client_of(peer) as client:
        await client.connect()
        with pytest.raises(AgentConnectionError):
            await ask(client, head("x"))
        await until(lambda: client.connected)
        assert await ask(client, head("y")) is ALLOW

    assert len(peer.streams) == 2


async def test_an_answer_that_names_no_request_is_taken_for_none_of_several() -> None:
    def behave(event: Heard) -> bytes | None:
        return None if event.correlation_id == "a" else answer("")

    async with client_of(peer := Peer(behave)) as client:
        await client.connect()
        # It can be meant for one call only.
        assert await ask(client, head("b")) is ALLOW
        failed: list[str] = []

        async def fail(name: str) -> None:
            with pytest.raises(AgentConnectionError, match="names no request"):
                await ask(client, head(name))
            failed.append(name)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail, "a")
            await until(lambda: len(peer.heard) == 2)
            tasks.start_soon(fail, "b")
        assert sorted(failed) == ["a", "b"]


async def test_a_stream_that_the_agent_ends_fails_its_calls_and_another_is_begun() -> None:
    def behave(event: Heard) -> bytes | None:
        if event.correlation_id == "end":
            event.stream.end()
            return None
        return answer(event.correlation_id)

    async with client_of(peer := Peer(behave)) as client:
        await client.connect()
        with pytest.raises(AgentConnectionError, match="ended the stream"):
            await ask(client, head("end"))
        await until(lambda: client.connected)
        assert await ask(client, head()) is ALLOW

    assert len(peer.streams) == 2


async def _asked_until_answered(client: AgentClient) -> object:
    """A connection that was made while the server before was still going goes with it."""
    with anyio.fail_after(30):
        while True:
            try:
                return await client.call(head(), time.monotonic() + 30)
            except AgentConnectionError:
                await until(lambda: client.connected)


async def test_an_agent_that_comes_back_is_connected_to_again(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    client = GrpcTransport(f"grpc+unix://{path}", connections=1).bind("agent", events=HEADS)
    peer = Peer()
    try:
        with pytest.raises(AgentConnectionError, match="it can't be reached: No such file or directory"):
            await client.connect()
        assert client.statistics()[0][0].state == "down"
        await anyio.to_thread.run_sync(peer.start, f"unix:{path}")
        for _ in range(2):
            streams = len(peer.streams)
            await until(lambda: client.connected)
            assert await _asked_until_answered(client) is ALLOW
            await anyio.to_thread.run_sync(peer.restart, path)
            await until(lambda: len(peer.streams) > streams)  # noqa: B023 - it is awaited here
    finally:
        await client.aclose()
        await anyio.to_thread.run_sync(peer.stop)


@pytest.mark.parametrize(
    ("greet", "told"),
    [
        (lambda request: greeting(success=False, error="not today"), "refused the handshake: not today"),
        (lambda request: greeting(version=1), "speaks version 1 of the protocol, expected 2"),
        (lambda request: answer("c"), "answered the handshake with response"),
        (lambda request: b"", "answered the handshake with an empty message"),
        (lambda request: message((1, message((1, 2), (3, 1)))), "says nothing of its capabilities"),
        (lambda request: b"\xff", "not a message of the protocol"),
        (lambda request: greeting(events=(6, 7)), "supports no events that anybody could ask it about"),
    ],
)
async def test_an_agent_that_does_not_take_part_is_not_connected_to(
    greet: Callable[[Fields], bytes], told: str
) -> None:
    async with client_of(Peer(greet=greet), events=None) as client:
        with pytest.raises(AgentConnectionError, match=told):
            await client.connect()


async def test_a_server_of_something_else_is_no_agent() -> None:
    peer = Peer()
    peer.service = lambda details: None  # type: ignore[method-assign]
    async with client_of(peer) as client:
        with pytest.raises(AgentConnectionError, match="it does not know the method"):
            await client.connect()


async def test_a_handshake_without_an_answer_ends() -> None:
    behave = threading.Event()

    def greet(request: Fields) -> bytes:
        behave.wait(60)
        return greeting()

    async with client_of(Peer(greet=greet), connect_timeout=0.05) as client:
        try:
            with pytest.raises(AgentConnectionError, match=r"not connected within 0.05 s"):
                await client.connect()
        finally:
            behave.set()


async def test_events_and_configurations_that_are_too_long_are_not_sent_and_harm_nobody() -> None:
    events = frozenset({EventType.REQUEST_BODY_CHUNK})
    async with client_of(peer := Peer(), events=events, max_event_bytes=1000) as client:
        await client.connect()
        with pytest.raises(EventTooLargeError, match="expected 1000 at most"):
            await ask(client, chunk(data=bytes(1000)))
        assert await ask(client, chunk()) is ALLOW
        with pytest.raises(AgentError, match="the handshake, with the configuration, has"):
            await client.push_config({"a": "x" * 1000})
        assert await ask(client, chunk()) is ALLOW

    assert len(peer.streams) == 1


async def test_more_of_a_body_than_the_agent_takes_is_not_sent() -> None:
    peer = Peer(greet=lambda request: greeting(limits=message((1, 3))))
    async with client_of(peer, events=frozenset({EventType.REQUEST_BODY_CHUNK})) as client:
        await client.connect()
        with pytest.raises(EventTooLargeError, match="4 bytes at a time, the agent takes 3"):
            await ask(client, chunk(data=b"abcd"))


async def test_an_answer_that_is_too_long_is_an_error() -> None:
    peer = Peer(lambda event: answer(event.correlation_id, block(403, "x" * 2000)))
    async with client_of(peer, max_answer_bytes=1000) as client:
        await client.connect()
        with pytest.raises(AgentError, match="the answer is longer than max_answer_bytes"):
            await ask(client, head())


# What the agent says without being asked


async def test_health_is_followed() -> None:
    async with client_of(peer := Peer()) as client:
        await client.connect()
        stream = peer.streams[0]
        stream.say(wire.health(2, 3.0))
        await until(lambda: client.timeout_multiplier == 3.0)
        assert client.statistics()[0][0].state == "degraded"
        stream.say(wire.health(4))
        await until(lambda: client.statistics()[0][0].state == "unhealthy")
        with pytest.raises(AgentUnavailableError, match="unhealthy"):
            await ask(client, head())
        stream.say(wire.health(1))
        await until(lambda: client.statistics()[0][0].state == "up")
        assert await ask(client, head()) is ALLOW


async def test_an_agent_that_drains_gets_no_new_requests_and_another_stream_is_begun() -> None:
    async with client_of(peer := Peer()) as client:
        await client.connect()
        peer.streams[0].say(wire.health(3))
        await until(lambda: len(peer.streams) == 2)
        await until(lambda: peer.streams[0].ended.is_set() and client.connected)
        assert await ask(client, head()) is ALLOW
        assert [heard.stream.number for heard in peer.heard] == [1]


async def test_an_agent_may_ask_for_a_pause() -> None:
    async with client_of(peer := Peer()) as client:
        await client.connect()
        stream = peer.streams[0]
        stream.say(message((wire.FLOW, message((2, 1)))))
        await until(lambda: client.is_paused(head()))
        with pytest.raises(AgentUnavailableError, match="it has asked for a pause"):
            await client.reserve(head(), hold=False)
        stream.say(message((wire.FLOW, message((2, 2)))))
        await until(lambda: not client.is_paused(head()))


async def test_figures_and_requests_for_a_configuration_are_handed_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reports: list[MetricsReport] = []
    requests: list[Any] = []
    double = b"\x21\x00\x00\x00\x00\x00\x00\xf8\x3f"  # field 4, 1.5
    async with client_of(peer := Peer()) as client:
        client.on_metrics_report = lambda agent_id, endpoint, report: reports.append(report)
        client.on_config_update = lambda agent_id, request: requests.append(request)
        await client.connect()
        stream = peer.streams[0]
        label = (3, message((1, "k"), (2, "v")))
        bucket = b"\x09\x00\x00\x00\x00\x00\x00\xf0\x3f" + message((2, 3))
        metrics = message((1, "peer"), (2, 5), (3, 6), (4, message((1, "n"), (2, "h"), label, (4, 7))))
        metrics += message((5, message((1, "g")) + double))
        metrics += message((6, message((1, "s")) + double + message((5, 2), (6, bucket))))
        stream.say(message((wire.METRICS, metrics)))
        stream.say(message((wire.CONFIG_UPDATE, message((1, "r-1"), (10, b"")))))
        lists = message((1, "deny"), (2, "a"), (2, "b"), (3, "c"))
        stream.say(message((wire.CONFIG_UPDATE, message((1, "r-2"), (12, lists)))))
        stream.say(message((wire.LOG, message((1, 3), (2, "rules are\nold")))))
        await until(lambda: len(requests) == 2 and "rules are" in caplog.text)

    [report] = reports
    assert (report.counters[0].value, report.counters[0].labels, report.counters[0].help) == (7, {"k": "v"}, "h")
    assert (report.gauges[0].value, report.histograms[0].sum, report.histograms[0].count) == (1.5, 1.5, 2)
    assert (report.histograms[0].buckets[0].le, report.histograms[0].buckets[0].count) == (1.0, 3)
    assert [request.update_type for request in requests] == [
        "request_reload",
        {"list_update": {"list_id": "deny", "add": ["a", "b"], "remove": ["c"]}},
    ]
    assert r"says: rules are\nold" in caplog.text


async def test_pings_are_sent_and_an_agent_that_is_silent_is_given_up() -> None:
    peer = Peer()
    async with client_of(peer, ping_interval=0.02, stall_timeout=30.0) as client:
        await client.connect()
        await until(lambda: peer.pings >= 3)
        assert client.connected


# Configurations


async def test_another_configuration_goes_out_in_another_handshake() -> None:
    def greet(request: Fields) -> bytes:
        if request[4] == [b'{"bad":true}']:
            return greeting(success=False, error="no such rule")
        return greeting()

    async with client_of(peer := Peer(greet=greet), config={"a": 1}) as client:
        await client.connect()
        await client.push_config({"a": 2})
        await until(lambda: peer.streams[0].ended.is_set())
        assert await ask(client, head()) is ALLOW
        with pytest.raises(AgentError, match="no such rule"):
            await client.push_config({"bad": True})
        assert await ask(client, head()) is ALLOW
        assert client.config == {"a": 2}

    assert [stream.handshake[4] for stream in peer.streams if stream.number != 2] == [[b'{"a":1}'], [b'{"a":2}']]
    assert [heard.stream.number for heard in peer.heard] == [1, 1]


async def test_a_configuration_that_json_cant_hold_is_an_error() -> None:
    async with client_of(Peer(), config={"a": object()}) as client:
        with pytest.raises(AgentError, match="can't be encoded as JSON"):
            await client.connect()


# In a manager


async def test_calls_are_spread_over_streams_and_the_events_of_a_request_stay_on_one() -> None:
    peer = Peer(greet=lambda request: greeting(events=(1, 3)))
    with peer.on_a_socket() as path:
        transport = GrpcTransport(f"grpc+unix://{path}", connections=3)
        async with AgentManager([AgentConfig("waf", transport)]) as manager:
            await until(lambda: manager.statistics()["waf"].endpoints[0].connections == 3)
            for number in range(6):
                for event in (head(f"c{number}"), response_head(f"c{number}")):
                    await manager_call(manager, event)
    streams: dict[str, set[int]] = {}
    for heard in peer.heard:
        streams.setdefault(heard.correlation_id, set()).add(heard.stream.number)
    assert all(len(numbers) == 1 for numbers in streams.values())
    assert len(set.union(*streams.values())) == 3


async def manager_call(manager: AgentManager, event: Event) -> None:
    verdict = await registry_of(manager).guard("waf").call(event, FailureMode.CLOSED)
    assert verdict.failure is None
