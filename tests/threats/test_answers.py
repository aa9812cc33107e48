"""What an agent behind HTTP or a stream can do with the answers that it gives."""

import gzip
import time
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest

from asgi_agents import AgentConfig, AgentManager, EventType, FailureKind, HttpTransport, StreamTransport
from asgi_agents.manager import registry_of
from asgi_agents.protocol.stream import FlowControl, HealthStatus, MessageType, encode_frame, encode_message
from tests.support.asgi import App, Client, guarded
from tests.transports.stream.peer import Peer, Received, handshake
from tests.transports.test_http import raw_agent, read_request

MIB = 1024 * 1024
ALLOW = b'{"decision":"allow"}'
Behaviour = Callable[[anyio.abc.ByteStream], Awaitable[None]]


def head(content_length: int | None = None, *lines: bytes) -> bytes:
    length = b"transfer-encoding: chunked" if content_length is None else b"content-length: %d" % content_length
    return b"\r\n".join((b"HTTP/1.1 200 OK", b"content-type: application/json", length, *lines, b"", b""))


async def ask_over_http(behave: Behaviour, **options: Any) -> tuple[Client, AgentManager]:
    """One request to an app whose only agent behaves like that at the level of bytes."""
    async with raw_agent(behave) as agent:
        return await ask(AgentConfig("agent", HttpTransport(agent.url), events=HEADS, **options))


HEADS = {EventType.REQUEST_HEADERS}


async def ask(config: AgentConfig) -> tuple[Client, AgentManager]:
    middleware = guarded(App(), config)
    client = Client()
    async with middleware.manager:
        with anyio.fail_after(60):
            await client.call(middleware)
    return client, middleware.manager


def outcomes(manager: AgentManager) -> dict[str, int]:
    return manager.metrics["agent"].outcomes


BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip.compress(ALLOW + b" " * 100 * MIB, 1),
    "deflate": lambda: zlib.compress(ALLOW + b" " * 100 * MIB, 1),
    # Nobody gets so far as to find out that these are none.
    "br": lambda: b"\x00" * 1000,
    "zstd": lambda: b"\x28\xb5\x2f\xfd" * 100,
    "identity, gzip": lambda: gzip.compress(ALLOW),
}


@pytest.mark.parametrize("encoding", BOMBS)
async def test_a_compressed_answer_is_never_unpacked(encoding: str, http_client: str) -> None:
    requests: list[bytes] = []
    bomb = BOMBS[encoding]()

    async def behave(stream: anyio.abc.ByteStream) -> None:
        received = b""
        while not received.endswith(b"}"):
            received += await stream.receive()
        requests.append(received)
        await stream.send(head(len(bomb), b"content-encoding: " + encoding.encode()) + bomb)

    tracemalloc.start()
    try:
        client, manager = await ask_over_http(behave, timeout=10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (client.status, outcomes(manager)) == (503, {"error": 1})
    assert b"accept-encoding: identity\r\n" in requests[0].lower()
    assert peak < 10 * MIB


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "endless"])
async def test_an_answer_without_end_is_cut_off(declared: bool, http_client: str) -> None:
    sent = 0

    async def behave(stream: anyio.abc.ByteStream) -> None:
        nonlocal sent
        await read_request(stream)
        await stream.send(head(10**15) if declared else head())
        while True:
            await stream.send(b" " * 65536 if declared else b"10000\r\n" + b" " * 65536 + b"\r\n")
            sent += 65536

    client, manager = await ask_over_http(behave, timeout=15)

    assert (client.status, outcomes(manager)) == (503, {"error": 1})
    # What the sockets hold comes on top.
    assert sent < (8 if declared else 20) * MIB


async def test_a_frame_over_the_limit_ends_its_connection_before_it_is_read() -> None:
    async def behave(event: Received) -> None:
        # 16 MiB and a byte, of which only the beginning comes.
        await event.link.send((16 * MIB + 1).to_bytes(4, "big") + b"\x20 ")

    async with Peer(behaviour=behave).listening() as peer:
        client, manager = await ask(AgentConfig("agent", peer.url, events=HEADS, timeout=15))

    assert (client.status, outcomes(manager)) == (503, {"error": 1})


NESTED = {
    "unknown field": b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "audit": b'{"audit":{"custom":{"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_003,
    "audit list": b'{"audit":{"custom":{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}}}",
}
# What JSON parsers differ about, or fall over.
STRANGE = {
    "number": b'{"decision":{"block":{"status":' + b"9" * 10_000 + b"}}}",
    "number in audit": b'{"audit":{"custom":{"x":' + b"9" * 10_000 + b"}}}",
    "exponent": b'{"audit":{"confidence":1e99999}}',
    "NaN": b'{"audit":{"confidence":NaN}}',
    "Infinity": b'{"audit":{"confidence":-Infinity}}',
    "status": b'{"decision":{"block":{"status":199}}}',
    "fraction": b'{"decision":{"block":{"status":403.5}}}',
    "surrogate": b'{"decision":{"block":{"status":403,"body":"\\ud800"}}}',
    "not UTF-8": b'{"decision":{"block":{"status":403,"body":"\xff"}}}',
    "two decisions": b'{"decision":{"block":{"status":403},"redirect":{"url":"/"}}}',
    "trailing": ALLOW + b"{}",
    "byte order mark": b"\xef\xbb\xbf" + ALLOW,
    "UTF-16": '{"decision":"allow"}'.encode("utf-16"),
    "version": b'{"version":3}',
    "case": b'{"decision":"Allow"}',
    "empty": b"",
}


async def answered_over_http(answer: bytes) -> tuple[Client, AgentManager]:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        await stream.send(head(len(answer)) + answer)

    return await ask_over_http(behave, timeout=10)


async def answered_over_a_stream(answer: bytes) -> tuple[Client, AgentManager]:
    async def behave(event: Received) -> None:
        await event.link.send(encode_frame(MessageType.AGENT_RESPONSE, answer))

    async with Peer(behaviour=behave).listening() as peer:
        return await ask(AgentConfig("agent", peer.url, events=HEADS, timeout=10))


VIA = [answered_over_http, answered_over_a_stream]


@pytest.mark.parametrize("via", VIA)
@pytest.mark.parametrize("answer", [*NESTED.values(), *STRANGE.values()], ids=[*NESTED, *STRANGE])
async def test_an_answer_that_makes_no_sense_is_an_agent_error_and_nothing_else(via: Any, answer: bytes) -> None:
    client, manager = await via(answer)

    assert (client.status, client.body) == (503, b"Agent unavailable")
    assert outcomes(manager) == {"error": 1}


@pytest.mark.parametrize("via", VIA)
async def test_of_a_key_that_comes_twice_the_last_counts(via: Any) -> None:
    """As in any other JSON parser of Python; a proxy that reads along may think otherwise."""
    client, _ = await via(b'{"decision":"allow","decision":{"block":{"status":418}}}')
    assert client.status == 418
    client, _ = await via(b'{"decision":{"block":{"status":418}},"decision":"allow"}')
    assert client.status == 200


async def slowly(stream: anyio.abc.ByteStream, data: bytes) -> None:
    """A byte at a time, each well within any deadline for a single read."""
    for byte in data:
        await stream.send(bytes([byte]))
        await anyio.sleep(0.02)


async def drips_the_head(stream: anyio.abc.ByteStream) -> None:
    await read_request(stream)
    await slowly(stream, head(len(ALLOW)) * 100)


async def drips_the_body(stream: anyio.abc.ByteStream) -> None:
    await read_request(stream)
    await stream.send(head(10**6))
    await slowly(stream, ALLOW + b" " * 10**4)


async def goes_on_with_interim_responses(stream: anyio.abc.ByteStream) -> None:
    await read_request(stream)
    while True:
        await stream.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await anyio.sleep(0.005)


async def says_nothing(stream: anyio.abc.ByteStream) -> None:
    await read_request(stream)
    await anyio.sleep_forever()


async def reads_nothing(stream: anyio.abc.ByteStream) -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    "behave", [drips_the_head, drips_the_body, goes_on_with_interim_responses, says_nothing, reads_nothing]
)
async def test_an_agent_that_answers_byte_by_byte_has_its_deadline_in_all(behave: Behaviour) -> None:
    began = time.monotonic()
    client, manager = await ask_over_http(behave, timeout=0.3)

    assert (client.status, outcomes(manager)) == (504, {"timeout": 1})
    # A deadline for each byte would have taken minutes.
    assert time.monotonic() - began < 15


async def test_an_agent_that_answers_byte_by_byte_on_a_stream_has_its_deadline_in_all() -> None:
    async def behave(event: Received) -> None:
        await slowly(event.link.stream, event.frame())

    async with Peer(behaviour=behave).listening() as peer:
        client, manager = await ask(AgentConfig("agent", peer.url, events=HEADS, timeout=0.3))

    assert (client.status, outcomes(manager)) == (504, {"timeout": 1})


@pytest.mark.parametrize("greeting", ["silence", "a byte at a time", "half a frame", "noise", "pings for ever"])
async def test_a_handshake_that_never_ends_is_the_failure_mode(greeting: str) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                match greeting:
                    case "silence":
                        await anyio.sleep_forever()
                    case "a byte at a time":
                        await slowly(stream, b"\x00\xff\xff\xff\x02" + b" " * 10**6)
                    case "half a frame":
                        await stream.send(b"\x00\x10\x00\x00\x02{")
                        await anyio.sleep_forever()
                    case "noise":
                        await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    case _:
                        while True:
                            await stream.send(encode_frame(MessageType.PING, b"{}"))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass

    peer = Peer()
    async with await anyio.create_unix_listener(peer.path) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        transport = StreamTransport(peer.url, connect_timeout=0.3)
        client, manager = await ask(AgentConfig("agent", transport, events=HEADS, timeout=0.3))
        tasks.cancel_scope.cancel()

    assert client.status in (503, 504)
    assert manager.metrics["agent"].calls == 1


@pytest.mark.slow
async def test_an_agent_that_floods_its_connection_fills_neither_memory_nor_log(log: pytest.LogCaptureFixture) -> None:
    report = msgspec.json.encode(
        {"counters": [{"name": f"n{number}", "labels": {"l": "v" * 50}, "value": 1} for number in range(2000)]}
    )
    frames = {
        "health": [encode_message(MessageType.HEALTH_STATUS, HealthStatus(state=state)) for state in (2, 1, 4, 1, 99)],
        "flow": [
            encode_message(MessageType.FLOW_CONTROL, FlowControl(action=action, correlation_id=correlation_id))
            for action in (1, 2, 77)
            for correlation_id in (None, "nobody's")
        ],
        "pong": [encode_frame(MessageType.PONG, b"x" * 100_000)],
        "unknown": [encode_frame(MessageType.CANCEL, b"\xff" * 1000), b"\x00\x00\x00\x02\x99\xff"],
        "ping": [encode_frame(MessageType.PING, b'"%b"' % (b"y" * 1022))],
        "answer": [encode_frame(MessageType.AGENT_RESPONSE, b'{"audit":{"custom":{"correlation_id":"nobody\'s"}}}')],
        "metrics": [encode_frame(MessageType.METRICS_REPORT, report)],
    }

    async def behave(event: Received) -> None:
        if event.event_type is None:
            return  # a pong
        flow_ends = encode_message(MessageType.FLOW_CONTROL, FlowControl(action=2))
        for several in frames.values():
            for _ in range(30):
                await event.link.send(b"".join(several))
        await event.link.send(flow_ends)
        await event.answer()

    tracemalloc.start()
    try:
        # With call ids: without, the first answer to nobody ends the connection.
        async with Peer(handshake(features={"call_ids": True}), behaviour=behave).listening() as peer:
            client, manager = await ask(AgentConfig("agent", peer.url, events=HEADS, timeout=15))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert client.status == 200
    assert outcomes(manager) == {"allow": 1}
    assert sum(1 for _ in registry_of(manager).reports.current(time.monotonic())) <= 1000
    assert peak < 40 * MIB
    assert len([record for record in log.records if record.name == "asgi_agents"]) < 30


async def test_an_answer_that_names_another_connection_is_nobodys() -> None:
    """One client's verdict is never given to another's request."""
    seen: list[str] = []

    async def behave(event: Received) -> None:
        seen.append(event.correlation_id)
        await event.link.send(
            encode_frame(MessageType.AGENT_RESPONSE, b'{"audit":{"custom":{"correlation_id":"somebody-else"}}}')
        )

    async with Peer(behaviour=behave).listening() as peer:
        client, manager = await ask(AgentConfig("agent", peer.url, events=HEADS, timeout=0.5))

    # Nor can it be told for whom the next one would be.
    assert (client.status, outcomes(manager)) == (503, {"error": 1})
    assert "somebody-else" not in seen


async def test_a_failure_of_an_agent_of_any_kind_fails_closed_by_default() -> None:
    kinds = {
        FailureKind.ERROR: b"",
        FailureKind.TIMEOUT: None,
    }
    for kind, answer in kinds.items():
        failing = ask_over_http(says_nothing, timeout=0.1) if answer is None else answered_over_http(answer)
        client, manager = await failing
        assert client.status in (503, 504)
        assert outcomes(manager) == {kind: 1}
