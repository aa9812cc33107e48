"""What a client of a served agent does not read, and what it sends in many small pieces, is bounded too."""

from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from asgi_agents import Agent, AgentResponse, RequestBodyChunkEvent, RequestHeadersEvent
from asgi_agents.protocol import Headers
from asgi_agents.protocol.stream import MAX_PING_BYTES, Cancel, MessageType, encode_frame, encode_message
from asgi_agents.serve import held
from asgi_agents.serve.connection import Service

from .client import RawClient, connected
from .test_held import KIB, Named, big, services, settles
from .test_stream import Instant, body_of, chunk, head, reason_of, serving

__all__ = ["services"]

ANSWER = 4 * 1024 * KIB


class Talkative(Agent):
    """Answers with more than a socket takes."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        return AgentResponse.block(403, "x" * ANSWER)


class Patient(Talkative):
    """As its base, in more than one step."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        await anyio.lowlevel.checkpoint()
        return await super().on_request_body_chunk(event)


@pytest.mark.parametrize("agent", [Talkative(), Patient()], ids=["at-once", "later"])
async def test_answers_that_a_client_does_not_read_count_until_it_does(agent: Agent, services: list[Service]) -> None:
    async with serving(agent) as address, connected(address) as client:
        await client.send(*(client.spell(chunk("c"), call_id=number) for number in range(3)))
        budget = services[0].budget
        await settles(lambda: budget.total >= ANSWER)
        for _ in range(3):
            assert len(body_of((await client.answer())[1])) == ANSWER
        await settles(lambda: budget.total == 0)


async def test_a_client_that_does_not_read_its_answers_in_time_is_closed(
    monkeypatch: pytest.MonkeyPatch, services: list[Service]
) -> None:
    monkeypatch.setattr(held, "READ_TIMEOUT", 0.05)
    async with serving(Talkative()) as address, connected(address) as client, connected(address) as other:
        await client.post(chunk("c"))
        await settles(lambda: len(services[0].connections) == 1)
        assert services[0].budget.total == 0
        # What is left of the answer is not an answer.
        assert await client.closed()
        # The deadline is not that of a connection on which nothing happens.
        await anyio.sleep(0.1)
        await other.send(encode_frame(MessageType.PING, b"{}"))
        assert (await other.frame())[0] == MessageType.PONG


async def test_those_that_read_nothing_hold_no_more_together_than_their_budget(services: list[Service]) -> None:
    async with serving(Talkative()) as address, connected(address) as modest:
        budget = services[0].budget
        budget.most = 3 * ANSWER
        async with connected(address) as first, connected(address) as second, connected(address) as third:
            for number, client in enumerate((first, second), 1):
                await client.post(chunk("c"))
                await settles(lambda number=number: budget.total > number * ANSWER)  # type: ignore[misc]
            # Who comes too late is closed, not who is there already.
            await third.post(chunk("c"))
            await settles(lambda: len(services[0].connections) == 3)
            assert 2 * ANSWER < budget.total < budget.most
            assert len(body_of((await first.answer())[1])) == ANSWER
            await modest.post(chunk("c"))
            assert len(body_of((await modest.answer())[1])) == ANSWER


@pytest.mark.parametrize("size", [MAX_PING_BYTES, MAX_PING_BYTES + 1, 8 * 1024 * KIB])
async def test_a_ping_that_is_long_is_not_sent_back(size: int) -> None:
    async with serving(Instant()) as address, connected(address) as client:
        with suppress(anyio.BrokenResourceError):
            await client.send(encode_frame(MessageType.PING, bytes(size)))
        if size > MAX_PING_BYTES:
            assert await client.closed()
        else:
            assert await client.frame() == bytes([MessageType.PONG]) + bytes(size)


async def test_what_is_refused_is_refused_at_once_though_others_wait_for_a_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held, "PATIENCE", 0.01)
    agent = Named()
    async with serving(agent, max_concurrency=1, max_held_bytes=8 * 64 * KIB) as address, connected(address) as client:
        # Two are read together: one is at work for good, and the other waits for it.
        await client.send(*(client.spell(big("a", 32 * KIB), call_id=number) for number in (1, 2)))
        await agent.until(lambda: agent.entered)
        for number in range(3, 6):
            await client.send(client.spell(chunk("c", b"x"), call_id=number))
            ids, answer = await client.answer()
            assert (ids.call_id, reason_of(answer)[1]) == (number, ["too many events of the connection are unanswered"])
        for number in (2, 1):
            await client.send(encode_message(MessageType.CANCEL, Cancel(correlation_id="c-a", call_id=number)))
            assert (await client.answer())[0].call_id == number


async def test_a_few_that_hold_all_they_can_do_not_keep_others_from_being_read(
    monkeypatch: pytest.MonkeyPatch, services: list[Service]
) -> None:
    # Nobody is read from because of having waited.
    monkeypatch.setattr(held, "PATIENCE", 600)
    limit = 4 * 1024 * KIB
    begun = (15 * 1024 * KIB).to_bytes(4, "big") + bytes([MessageType.REQUEST_BODY_CHUNK]) + bytes(14 * 1024 * KIB)

    async def begin(client: RawClient) -> None:
        with suppress(anyio.BrokenResourceError):
            await client.send(begun[: limit * 14 // 32])

    async with (
        serving(Instant(), max_held_bytes=limit) as address,
        connected(address) as first,
        connected(address) as second,
        connected(address) as third,
        connected(address) as modest,
        anyio.create_task_group() as tasks,
    ):
        budget = services[0].budget
        for client in (first, second, third):
            tasks.start_soon(begin, client)
        await settles(lambda: budget.total >= limit)
        frame = modest.spell(big("b", 150 * KIB))
        # In pieces, as a socket may deliver it.
        with anyio.fail_after(60):
            for start in range(0, len(frame), 50 * KIB):
                await modest.send(frame[start : start + 50 * KIB])
                await anyio.sleep(0.01)
            assert len(body_of((await modest.answer())[1])) == 150 * KIB
        assert budget.total < 2 * limit
        tasks.cancel_scope.cancel()


async def test_short_heads_of_many_texts_count_for_their_memory_where_there_are_many(services: list[Service]) -> None:
    class Waits(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            await anyio.sleep_forever()

    event = replace(head(), headers=Headers({"x": [f"a{number % 10}" for number in range(2500)]}))
    async with serving(Waits()) as address, connected(address) as client, anyio.create_task_group() as tasks:
        frame = client.spell(event)
        assert len(frame) < 16 * KIB
        budget = services[0].budget

        async def flood() -> None:
            for _ in range(300):
                await client.send(frame)

        tasks.start_soon(flood)
        await settles(lambda: budget.total >= budget.share)
        # All of them would be 4 MiB as they are spelt, and 40 MiB in memory.
        (connection,) = services[0].connections
        assert connection.unanswered < 100
        tasks.cancel_scope.cancel()
