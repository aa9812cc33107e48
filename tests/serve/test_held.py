"""What clients make a served agent hold is bounded in bytes, and nobody who behaves pays for it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import fail_after
from msgspec.structs import replace

from asgi_agents import Agent, AgentResponse, RequestBodyChunkEvent, RequestHeadersEvent
from asgi_agents.protocol import Encoding, Headers, encode_event
from asgi_agents.protocol.stream import (
    MAX_HANDSHAKE_REQUEST_BYTES,
    Cancel,
    Framing,
    MessageType,
    Ping,
    decode_answer_ids,
    encode_envelope_frame,
    encode_message,
)
from asgi_agents.serve import held
from asgi_agents.serve.connection import Service
from asgi_agents.transports import partial

from .client import RawClient, connected
from .test_stream import Gated, Instant, body_of, chunk, head, serving

KIB = 1024
PAYLOAD = 8 * KIB


class Named(Agent):
    """Waits for the gate of a body's first byte, and answers with that."""

    def __init__(self) -> None:
        self.gates = Gated()
        self.entered = self.gates.entered
        self.until = self.gates.until
        self.open = self.gates.open

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        short = RequestBodyChunkEvent(correlation_id=event.correlation_id, data=event.data[:1], is_last=True)
        return await self.gates.on_request_body_chunk(short)


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> list[Service]:
    """Those that are made in the test."""
    made: list[Service] = []

    class Noted(Service):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr("asgi_agents.serve.stream.Service", Noted)
    return made


def big(name: str, size: int = PAYLOAD) -> RequestBodyChunkEvent:
    return chunk("c-" + name, name.encode() * size)


async def settles(condition: Callable[[], bool]) -> None:
    with fail_after(60):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await anyio.sleep(0.001)


@pytest.mark.parametrize("framing", Framing)
async def test_a_connection_that_holds_its_share_is_not_read_from_and_loses_nothing(
    framing: Framing, services: list[Service]
) -> None:
    agent = Named()
    async with (
        serving(agent, framing=framing, max_held_bytes=256 * KIB) as address,
        connected(address, framing=framing) as client,
        anyio.create_task_group() as tasks,
    ):
        names = [chr(ord("a") + number) for number in range(20)]

        async def send() -> None:
            for name in names:
                if framing is Framing.V2:
                    await client.post(big(name))
                else:
                    await client.send(encode_envelope_frame(encode_event(big(name), Encoding.JSON)))

        tasks.start_soon(send)
        budget = services[0].budget
        await settles(lambda: budget.total >= budget.share)
        agent.open(*names)
        answers = [await client.frame() for _ in names]
        # Those of different connections may overtake each other.
        answered = [name for answer in answers for name in names if f'"body":"{name}"'.encode() in answer]
        assert (sorted(answered) if framing is Framing.V2 else answered) == names
    assert budget.total == 0


async def test_no_more_is_taken_than_the_share_and_what_was_read_together(services: list[Service]) -> None:
    agent = Named()
    async with serving(agent, max_held_bytes=8 * 64 * KIB) as address, connected(address) as client:
        most = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.post, *(big("a", 32 * KIB) for _ in range(100)))
            budget = services[0].budget
            await settles(lambda: budget.total >= budget.share)
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
                most = max(most, budget.total)
            tasks.cancel_scope.cancel()
    # 256 KiB are read at a time, and on trio once more after the pause.
    assert budget.share <= most < budget.share + 3 * 256 * KIB


async def test_other_connections_are_served_while_one_is_not_read_from() -> None:
    agent = Named()
    async with (
        serving(agent, max_held_bytes=64 * KIB) as address,
        connected(address) as greedy,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(greedy.post, *(big("a", 64 * KIB) for _ in range(100)))
        await agent.until(lambda: agent.entered)
        agent.open("b")
        async with connected(address) as modest:
            await modest.post(big("b", 10))
            assert body_of((await modest.answer())[1]) == "b"
        tasks.cancel_scope.cancel()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "PATIENCE", 0.01)


@pytest.mark.usefixtures("impatient")
async def test_what_nobody_answers_in_time_does_not_keep_cancellations_and_pings_unread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = Named()
    answers: dict[object, bytes] = {}
    ponged = False
    async with (
        serving(agent, max_held_bytes=8 * 16 * KIB) as address,
        connected(address) as client,
        anyio.create_task_group() as tasks,
    ):
        await client.send(client.spell(big("a", 16 * KIB), call_id=1))
        await agent.until(lambda: agent.entered)
        # What of it was read before the pause waits for a place; what is read after it is refused.
        events = [client.spell(big("z", 16 * KIB), call_id=number) for number in range(2, 60)]
        ping = encode_message(MessageType.PING, Ping(sequence=7))
        cancel = encode_message(MessageType.CANCEL, Cancel(correlation_id="c-a", call_id=1))
        tasks.start_soon(client.send, b"".join((*events, ping, cancel)))
        while 1 not in answers:
            frame = await client.frame()
            if frame[0] == MessageType.PONG:
                ponged = True
            else:
                answers[decode_answer_ids(frame[1:], client.encoding).call_id] = frame
        tasks.cancel_scope.cancel()
    assert ponged
    assert any(b"too many events of the connection are unanswered" in frame for frame in answers.values())
    assert b"cancelled" in answers[1]
    assert len([record for record in caplog.records if "refuses events" in record.getMessage()]) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_leaves_while_it_is_not_read_from_is_noticed(services: list[Service]) -> None:
    agent = Named()
    async with serving(agent, max_held_bytes=8 * 16 * KIB) as address:
        async with connected(address) as client:
            await client.post(big("a", 64 * KIB))
            await agent.until(lambda: agent.entered)
        await agent.until(lambda: agent.gates.cancelled == ["a"])
        await settles(lambda: not services[0].connections)
        assert services[0].budget.total == 0


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_goes_on_although_it_is_refused_is_closed() -> None:
    agent = Named()
    async with serving(agent, max_held_bytes=8 * 16 * KIB) as address, connected(address) as client:
        with fail_after(60), suppress(anyio.BrokenResourceError, OSError):
            while True:
                await client.post(*(big("a", 16 * KIB) for _ in range(4)))


@pytest.mark.parametrize("size", [16 * KIB, 300 * KIB])
async def test_an_answer_that_waits_for_its_turn_counts_too(size: int, services: list[Service]) -> None:
    class Long(Named):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            await super().on_request_body_chunk(event)
            return AgentResponse.block(403, "x" * size)

    agent = Long()
    async with serving(agent) as address, connected(address) as client:
        agent.open("b")
        # Neither has a call id, nor do they differ in their correlation ids.
        await client.post(chunk("c", b"a"), chunk("c", b"b"))
        budget = services[0].budget
        await settles(lambda: budget.total >= size)
        agent.open("a")
        for _ in range(2):
            await client.answer()
        assert budget.total == 0


async def test_a_frame_that_stops_before_its_end_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "FRAME_TIMEOUT", 0.05)
    async with serving(Instant()) as address, connected(address) as client:
        await client.send(client.spell(big("a"))[:-1])
        assert await client.closed()
    async with serving(Instant()) as address, connected(address) as client:
        # Nor is there a deadline where no frame has begun.
        await client.post(chunk("c", b"a"))
        assert body_of((await client.answer())[1]) == "a"
        await anyio.sleep(0.15)
        await client.post(chunk("c", b"b"))
        assert body_of((await client.answer())[1]) == "b"


@pytest.mark.parametrize("announced", [MAX_HANDSHAKE_REQUEST_BYTES + 1, 15 * 1024 * KIB])
async def test_before_the_handshake_only_short_frames_may_come(announced: int) -> None:
    async with serving(Instant()) as address, connected(address, handshake=False) as client:
        await client.send(announced.to_bytes(4, "big") + bytes([MessageType.HANDSHAKE_REQUEST]))
        assert await client.closed()
    async with serving(Instant()) as address, connected(address) as client:
        await client.post(big("a", 2 * 1024 * KIB))
        assert len(body_of((await client.answer())[1])) == 2 * 1024 * KIB


async def test_frames_that_have_begun_are_held_within_the_budget_of_all(services: list[Service]) -> None:
    limit = 2 * 1024 * KIB
    begun = (15 * 1024 * KIB).to_bytes(4, "big") + bytes([MessageType.REQUEST_BODY_CHUNK]) + bytes(limit)

    async def begin(client: RawClient) -> None:
        await client.send(begun)

    async with (
        serving(Instant(), max_held_bytes=limit) as address,
        connected(address) as first,
        connected(address) as second,
        connected(address) as third,
        anyio.create_task_group() as tasks,
    ):
        for client in (first, second, third):
            tasks.start_soon(begin, client)
        budget = services[0].budget
        await settles(lambda: budget.total >= limit)
        # Whoever sends little is served all the same.
        async with connected(address) as modest:
            await modest.post(chunk("c", b"a"))
            assert body_of((await modest.answer())[1]) == "a"
        # The oldest of them is always read from, and the others a little further than they should be.
        assert budget.total < 2 * limit + 3 * 512 * KIB
        tasks.cancel_scope.cancel()


async def test_an_event_of_many_short_texts_counts_for_the_memory_that_it_takes(services: list[Service]) -> None:
    class Waits(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            await anyio.sleep_forever()

    event = replace(head(), headers=Headers({f"x{number}": ["y"] for number in range(10_000)}))
    async with serving(Waits()) as address, connected(address) as client:
        frame = client.spell(event)
        await client.send(frame)
        budget = services[0].budget
        await settles(lambda: budget.total > 5 * len(frame))
