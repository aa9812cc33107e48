"""What an agent's connections hold of frames that have begun to come is bounded, in bytes and in time."""

from typing import Any

import anyio
import pytest

from asgi_agents.protocol import EventType
from asgi_agents.protocol.stream import (
    MAX_HANDSHAKE_REQUEST_BYTES,
    MAX_HANDSHAKE_RESPONSE_BYTES,
    MessageType,
    encode_frame,
)
from asgi_agents.transports import partial
from asgi_agents.transports.partial import PartialFrames
from asgi_agents.transports.stream import stream_pool as pool_module
from asgi_agents.transports.stream.stream_pool import StreamPool

from .peer import ALL_EVENTS, Peer, handshake
from .pools import allow, chunk, client_of, connected, until

KIB = 1024


def begun(size: int, held: int) -> bytes:
    """So many bytes of a frame that is longer."""
    return size.to_bytes(4, "big") + bytes([MessageType.METRICS_REPORT]) + bytes(held - 5)


async def test_a_frame_that_stops_before_its_end_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "FRAME_TIMEOUT", 0.05)
    async with client_of(peer := Peer(behaviour=allow)) as client:
        (connection,) = (await connected(client)).connections
        await peer.links[0].send(begun(1000, 999))
        await until(lambda: connection.fault)
        assert "a frame that has begun was not complete within 0.05 s" in connection.fault


async def test_a_frame_that_comes_slowly_but_in_time_is_read() -> None:
    async with client_of(peer := Peer(behaviour=None)) as client:
        await connected(client)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call, chunk())
            event = await peer.next()
            await event.answer(piece=1)


async def test_the_answer_to_a_handshake_is_short() -> None:
    peer = Peer(handshake(filler="x" * MAX_HANDSHAKE_RESPONSE_BYTES))
    async with client_of(peer) as client:
        with anyio.fail_after(10), pytest.raises(Exception, match=f"expected 1 to {MAX_HANDSHAKE_RESPONSE_BYTES}"):
            await client.connect()


async def test_after_the_handshake_answers_may_be_long() -> None:
    async with client_of(peer := Peer(behaviour=allow)) as client:
        (connection,) = (await connected(client)).connections
        await peer.links[0].send(encode_frame(0x7F, bytes(2 * MAX_HANDSHAKE_RESPONSE_BYTES)))
        await client.call(chunk())
        assert connection.alive


@pytest.mark.parametrize("size", [10, MAX_HANDSHAKE_REQUEST_BYTES])
async def test_a_long_configuration_is_left_to_the_configure_event(size: int) -> None:
    config = {"denied": "x" * size}
    heard: list[Any] = []

    async def behave(event: Any) -> None:
        heard.append(event.payload)
        await event.answer()

    peer = Peer(handshake(events=ALL_EVENTS | {EventType.CONFIGURE}), behaviour=behave)
    async with client_of(peer, config=config) as client:
        await connected(client)
    assert peer.handshakes[0]["config"] == (config if size == 10 else None)
    assert [payload["config"] for payload in heard] == [config]


async def test_a_configuration_that_can_be_handed_over_in_no_way_is_an_error() -> None:
    async with client_of(Peer(behaviour=allow), config="x" * MAX_HANDSHAKE_REQUEST_BYTES) as client:
        with anyio.fail_after(10), pytest.raises(Exception, match="its configuration is longer than"):
            await client.connect()


async def test_all_connections_together_hold_no_more_than_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MAX_PARTIAL_BYTES", 100 * KIB)
    async with client_of(peer := Peer(behaviour=allow), connections=3) as client:
        pool = await connected(client, 3)
        assert isinstance(pool, StreamPool)
        first, second, third = peer.links
        await first.send(begun(200 * KIB, 40 * KIB))
        await until(lambda: pool.partial_frames.total == 40 * KIB)
        await second.send(begun(200 * KIB, 40 * KIB))
        await until(lambda: pool.partial_frames.total == 80 * KIB)
        await third.send(begun(200 * KIB, 40 * KIB))
        await until(lambda: first.closed.is_set())
        await until(lambda: pool.partial_frames.total == 80 * KIB)
        assert not second.closed.is_set()
        # What has come whole is not held any more.
        await second.send(bytes(160 * KIB + 4))
        await until(lambda: pool.partial_frames.total == 40 * KIB)


def test_the_frame_that_has_been_coming_for_longest_has_to_go() -> None:
    failed: list[str] = []

    class Holder:
        def __init__(self, name: str) -> None:
            self.name = name

        def fail(self, fault: str) -> None:
            failed.append(self.name)
            shared.note(self, 0)

    shared = PartialFrames(100)
    a, b, c = Holder("a"), Holder("b"), Holder("c")
    shared.note(a, 40)
    shared.note(b, 50)
    shared.note(a, 50)
    assert (failed, shared.total) == ([], 100)
    shared.note(a, 0)
    shared.note(a, 10)
    shared.note(c, 41)
    assert (failed, shared.total) == (["b"], 51)
    shared.note(c, 101)
    assert failed == ["b", "a", "c"]
    assert shared.total == 0
