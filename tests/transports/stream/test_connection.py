import asyncio
import gc
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest
from anyio import CancelScope
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents import (
    AgentConfig,
    AgentDecision,
    AgentManager,
    AgentResponse,
    AuditMetadata,
    CircuitBreakerConfig,
    EventType,
    StreamTransport,
)
from asgi_agents.breaker import BreakerState
from asgi_agents.errors import (
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    AgentUnavailableError,
    EventTooLargeError,
)
from asgi_agents.failures import FailureKind
from asgi_agents.observability.correlation import outside_name
from asgi_agents.protocol import (
    ALLOW,
    Block,
    Encoding,
    RequestBodyChunkEvent,
    ResponseBodyChunkEvent,
)
from asgi_agents.protocol.stream import (
    MAX_ENVELOPE_BYTES,
    MAX_FRAME_BYTES,
    CallIds,
    CancelReason,
    FlowAction,
    Framing,
    HealthState,
    MessageType,
    Ping,
    encode_frame,
    encode_message,
)
from asgi_agents.transports.stream import StreamClient
from asgi_agents.transports.wire import Wire
from tests.support.cancelling import cancelling
from tests.support.examples import examples
from tests.support.sample_events import RESPONSE_HEAD as HEAD

from .calls import PATIENCE, Asked, Talk, chunk, leaving_nothing, name, said, settle, talking, until
from .peer import Link, Peer, Received, handshake

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])

NOBODY = CallIds("nobody")
NO_SUCH_CALL = 2**62
BIG = 1024 * 1024
CALL_IDS = {"call_ids": True}
CANCELLATION = {"cancellation": True}
NO_LIMITS = {"max_body_size": 0, "max_concurrency": 1000}

HEAD_EVENTS = frozenset({EventType.RESPONSE_HEADERS})
BODY_EVENTS = frozenset({EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK})


def raw_answer(**fields: Any) -> bytes:
    """An answer's frame as an agent with its own mind would write it."""
    return encode_frame(MessageType.AGENT_RESPONSE, msgspec.json.encode(fields))


def ids_of(received: Received) -> dict[str, Any]:
    return {"audit": {"custom": {"correlation_id": received.correlation_id}}}


def echo(received: Received, ids: CallIds | None = None) -> bytes:
    """The frame of :meth:`Received.echo`."""
    return received.frame(AgentResponse.block(403, received.name), ids=ids)


# Whose answer it is


async def test_answers_that_name_nothing_are_for_the_calls_in_the_order_they_were_sent() -> None:
    async with talking(Peer()) as talk:
        calls = [await talk.send(chunk("ab"[index % 2], index)) for index in range(6)]

        for _, received in calls:
            await talk.peer.links[0].send(echo(received, CallIds()))

        assert [await asked.answer() for asked, _ in calls] == [received.name for _, received in calls]
        await talk.is_sound()


async def test_answers_that_name_their_request_may_come_in_any_order() -> None:
    async with talking(Peer()) as talk:
        calls = [await talk.send(chunk(request)) for request in "abcdef"]

        for _, received in (calls[index] for index in (3, 0, 5, 4, 1, 2)):
            await received.echo()

        assert [await asked.answer() for asked, _ in calls] == [name(request) for request in "abcdef"]
        await talk.is_sound()


async def test_the_answers_of_one_request_are_in_order_whatever_others_do() -> None:
    async with talking(Peer()) as talk:
        a1, b1, a2, b2 = [await talk.send(chunk(request, index)) for index, request in enumerate("abab")]

        for _, received in (b1, b2, a1, a2):
            await received.echo()

        assert [await asked.answer() for asked, _ in (a1, b1, a2, b2)] == [
            "a/0x11/0",
            "b/0x11/1",
            "a/0x11/2",
            "b/0x11/3",
        ]


async def test_with_call_ids_even_those_of_one_request_may_come_in_any_order() -> None:
    async with talking(Peer(handshake(features=CALL_IDS))) as talk:
        calls = [await talk.send(chunk("a", index)) for index in range(5)]

        for _, received in (calls[index] for index in (4, 0, 2, 3, 1)):
            await received.echo()

        assert [await asked.answer() for asked, _ in calls] == [name("a", index) for index in range(5)]
        await talk.is_sound()


async def test_call_ids_are_only_sent_to_agents_that_know_them() -> None:
    async with talking(Peer()) as talk:
        _, received = await talk.send(chunk())
        assert "call_id" not in received.payload
    async with talking(Peer(handshake(features=CALL_IDS))) as talk:
        _, received = await talk.send(chunk())
        assert type(received.payload["call_id"]) is int


@pytest.mark.parametrize("custom", [{"call_id": "+49 30 123"}, {"call_id": 7}, {"call_id": None}])
async def test_what_an_agent_without_call_ids_calls_call_id_is_its_own_affair(custom: dict[str, Any]) -> None:
    async with talking(Peer()) as talk:
        asked, received = await talk.send(chunk())
        await received.link.send(
            raw_answer(decision={"block": {"status": 403, "body": "mine"}}, audit={"custom": custom})
        )

        assert await asked.answer() == "mine"
        assert talk.connection.alive


class TestLateAnswers:
    """The answer to a call that was given up is nobody's."""

    @pytest.mark.parametrize("features", [{}, CALL_IDS, CANCELLATION, CALL_IDS | CANCELLATION])
    @pytest.mark.parametrize("named", [True, False])
    @pytest.mark.parametrize("same_request", [True, False])
    async def test_the_next_call_gets_its_own(self, features: dict[str, Any], named: bool, same_request: bool) -> None:
        ids = None if named else CallIds()
        async with talking(Peer(handshake(features=features))) as talk:
            late, received_late = await talk.send(chunk("a", 1))
            await late.give_up()
            asked, received = await talk.send(chunk("a" if same_request else "b", 2))

            await talk.peer.links[0].send(echo(received_late, ids))
            await until(lambda: talk.connection.pending_calls.late_answers == 1)
            assert not asked.over
            await talk.peer.links[0].send(echo(received, ids))

            assert await asked.answer() == received.name
            assert talk.connection.pending_calls.unmatched_answers == 0
            await talk.is_sound()

    @pytest.mark.parametrize("named", [True, False])
    async def test_many_in_a_row_are_swallowed(self, named: bool) -> None:
        ids = None if named else CallIds()
        async with talking(Peer()) as talk:
            calls = [await talk.send(chunk("a", index)) for index in range(20)]
            for asked, _ in calls[:19]:
                await asked.give_up()
            assert talk.connection.calls == 20

            await talk.peer.links[0].send(b"".join(echo(received, ids) for _, received in calls))

            assert await calls[19][0].answer() == name("a", 19)
            assert talk.connection.pending_calls.late_answers == 19
            assert talk.client.statistics()[0][0].late_answers == 19
            await talk.is_sound()

    async def test_one_that_comes_when_nobody_has_called_since_is_swallowed_too(self) -> None:
        async with talking(Peer()) as talk:
            late, received = await talk.send(chunk())
            await late.give_up()
            await talk.peer.links[0].send(echo(received, CallIds()))

            await until(lambda: talk.connection.pending_calls.late_answers == 1)
            await talk.is_sound()

    async def test_a_malformed_one_is_nobodys_problem(self) -> None:
        async with talking(Peer()) as talk:
            late, received = await talk.send(chunk())
            await late.give_up()
            await received.link.send(raw_answer(decision=["nonsense"], **ids_of(received)))

            await until(lambda: talk.connection.pending_calls.late_answers == 1)
            await talk.is_sound()

    async def test_a_call_that_times_out_is_given_up_like_any_other(self) -> None:
        peer = Peer(handshake(events=HEAD_EVENTS))
        async with peer.listening(), managing(peer, timeout=0.05) as manager:
            decision = await manager.process_response_headers(HEAD)
            assert failure_of(decision) is FailureKind.TIMEOUT
            late = await peer.next()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(decide_until_blocked, manager)
                await peer.next()
                # Were it taken for the answer to the call that waits now, that would be allowed.
                await late.answer(ids=CallIds())
                await blocking(peer)

    async def test_it_still_takes_a_place_until_it_comes(self) -> None:
        async with talking(Peer(), max_calls_per_connection=1) as talk:
            late, received_late = await talk.send(chunk("a"))
            await late.give_up()
            asked = talk.ask(chunk("b"))
            await until(lambda: talk.pool.waiting == 1)
            assert talk.peer.unread == 0

            await received_late.echo()
            await (await talk.peer.next()).echo()

            assert await asked.answer() == name("b")
            await talk.is_sound()


class TestAnsweredTwice:
    @pytest.mark.parametrize("waiting", [True, False])
    async def test_without_call_ids_the_connection_is_given_up(self, waiting: bool) -> None:
        """A third answer could come while the next event of the request is judged, and be taken for its verdict."""
        async with talking(Peer()) as talk:
            connection = talk.connection
            first, received = await talk.send(chunk("a"))
            second = (await talk.send(chunk("b")))[0] if waiting else None
            await received.link.send(echo(received) + received.frame(ALLOW))

            assert await first.answer() == name("a")
            await until(lambda: not connection.alive)
            assert (connection.fault, connection.pending_calls.unmatched_answers) == ("an answer to no call", 1)
            if second is not None:
                with pytest.raises(AgentConnectionError, match="an answer to no call"):
                    await second.answer()
            await until(lambda: talk.pool.connections)
            await talk.is_sound()

    async def test_with_call_ids_it_is_ignored_also_while_another_call_of_the_request_waits(self) -> None:
        async with talking(Peer(handshake(features=CALL_IDS))) as talk:
            first, received = await talk.send(chunk("a", 1))
            second, received_second = await talk.send(chunk("a", 2))
            await received.link.send(echo(received) + received.frame(ALLOW) + received.frame(ALLOW))

            assert await first.answer() == name("a", 1)
            await until(lambda: talk.connection.pending_calls.unmatched_answers == 2)
            assert not second.over
            await received_second.echo()
            assert await second.answer() == name("a", 2)

    @pytest.mark.parametrize("waiting", [True, False])
    async def test_an_answer_that_names_the_call_alone_is_ignored_the_second_time(self, waiting: bool) -> None:
        async with talking(Peer(handshake(features=CALL_IDS))) as talk:
            asked, received = await talk.send(chunk("a", 1))
            other = (await talk.send(chunk("a", 2)))[0] if waiting else None
            ids = CallIds(call_id=received.ids.call_id)
            await received.link.send(echo(received, ids) + received.frame(ALLOW, ids=ids))

            assert await asked.answer() == name("a", 1)
            await talk.peer.links[0].send(encode_message(MessageType.PING, Ping()))
            await until(lambda: not talk.pool.connections or talk.peer.unread)
            assert talk.connection.pending_calls.unmatched_answers == 1
            assert other is None or not other.over

    async def test_so_it_is_where_the_call_was_given_up(self) -> None:
        async with talking(Peer()) as talk:
            connection = talk.connection
            late, received = await talk.send(chunk("a"))
            await late.give_up()
            await received.link.send(received.frame(ALLOW) + received.frame(ALLOW))
            await until(lambda: not connection.alive)

            assert (connection.pending_calls.late_answers, connection.pending_calls.unmatched_answers) == (1, 1)
            await until(lambda: talk.pool.connections)
            await talk.is_sound()

    @pytest.mark.parametrize("named", [True, False])
    async def test_a_second_answer_that_has_begun_before_the_next_event_was_sent_is_not_its_answer(
        self, named: bool
    ) -> None:
        async with talking(Peer()) as talk:
            ids = None if named else CallIds()
            first, received = await talk.send(chunk("a", 1))
            again = received.frame(ALLOW, ids=ids)
            await received.link.send(echo(received, ids) + again[:7])
            await first.answer()
            await until(lambda: talk.connection._reader.pending)

            second, _ = await talk.send(chunk("a", 2))
            await received.link.send(again[7:])
            with pytest.raises(AgentConnectionError, match="an answer to no call"):
                await second.answer()
            await until(lambda: talk.pool.connections)
            await talk.is_sound()

    async def test_where_it_names_nothing_and_nothing_is_owed_the_connection_is_given_up(self) -> None:
        async with talking(Peer(), connections=2) as talk:
            first, received = await talk.send(chunk("a"))
            other, received_other = await talk.send(chunk("b"))
            assert received.link is not received_other.link
            before = talk.pool.connections

            await received.link.send(echo(received, CallIds()) + received.frame(ALLOW, ids=CallIds()))

            assert await first.answer() == name("a")
            await until(lambda: not all(connection.alive for connection in before))
            assert sorted(connection.fault for connection in before) == ["", "an answer to no call"]
            await received_other.echo()
            assert await other.answer() == name("b")


class TestAnswersToNobody:
    @pytest.mark.parametrize(
        "ids",
        [NOBODY, CallIds("nobody", NO_SUCH_CALL), CallIds("a", NO_SUCH_CALL), CallIds(call_id=NO_SUCH_CALL)],
        ids=["request", "both", "call of a known request", "call"],
    )
    async def test_are_ignored(self, ids: CallIds) -> None:
        async with talking(Peer(handshake(features=CALL_IDS))) as talk:
            asked, received = await talk.send(chunk("a"))
            await received.answer(ids=ids)
            await until(lambda: talk.connection.pending_calls.unmatched_answers == 1)
            assert not asked.over
            await received.echo()

            assert await asked.answer() == name("a")
            assert talk.client.statistics()[0][0].unmatched_answers == 1
            await talk.is_sound()

    async def test_are_ignored_also_when_nothing_is_owed(self) -> None:
        async with talking(Peer(handshake(features=CALL_IDS))) as talk:
            asked, received = await talk.send(chunk("a"))
            await received.echo()
            await asked.answer()
            for ids in (NOBODY, CallIds("a", NO_SUCH_CALL), CallIds(call_id=NO_SUCH_CALL)):
                await received.answer(ids=ids)

            await received.link.send(encode_message(MessageType.PING, Ping()))
            await until(lambda: not talk.pool.connections or talk.peer.unread)
            assert talk.connection.pending_calls.unmatched_answers == 3

    async def test_a_call_id_with_the_correlation_id_of_another_call_is_nobodys(self) -> None:
        async with talking(Peer(handshake(features=CALL_IDS))) as talk:
            (a, received_a), (b, received_b) = await talk.send(chunk("a")), await talk.send(chunk("b"))
            await received_a.answer(ids=CallIds("b", received_a.ids.call_id))
            await received_a.answer(ids=CallIds("a", received_b.ids.call_id))
            await until(lambda: talk.connection.pending_calls.unmatched_answers == 2)
            await received_b.echo()
            await received_a.echo()

            assert (await a.answer(), await b.answer()) == (name("a"), name("b"))


class TestPieces:
    """Where one segment ends and the next begins means nothing."""

    async def test_an_answer_in_one_byte_pieces(self) -> None:
        async with talking(Peer()) as talk:
            asked, received = await talk.send(chunk("a"))
            await received.answer(AgentResponse.block(403, received.name), piece=1)

            assert await asked.answer() == name("a")
            await talk.is_sound()

    async def test_a_handshake_in_one_byte_pieces(self) -> None:
        greeting = handshake()

        class Stammering(Peer):
            async def _frame(self, link: Link, frame: bytes) -> None:
                if frame[0] == MessageType.HANDSHAKE_REQUEST:
                    self.links.append(link)
                    await link.send(greeting, piece=1)
                else:
                    await super()._frame(link, frame)

        async with talking(Stammering()) as talk:
            await talk.is_sound()

    async def test_several_answers_in_one_segment(self) -> None:
        async with talking(Peer()) as talk:
            calls = [await talk.send(chunk("ab"[index % 2], index)) for index in range(40)]
            await talk.peer.links[0].send(b"".join(echo(received) for _, received in calls))

            assert [await asked.answer() for asked, _ in calls] == [received.name for _, received in calls]
            await talk.is_sound()

    async def test_two_answers_cut_at_every_place(self) -> None:
        async with talking(Peer()) as talk:
            cut = 0
            while True:
                (first, received), (second, received_second) = await talk.send(chunk("a")), await talk.send(chunk("b"))
                data = echo(received_second) + echo(received)
                await received.link.send(data[:cut])
                # So that the client has read it before the rest comes.
                await settle()
                await received.link.send(data[cut:])

                assert (await first.answer(), await second.answer()) == (name("a"), name("b"))
                cut += 1
                if cut > len(data):
                    break
            await talk.is_sound()

    async def test_an_answer_behind_messages_of_all_other_kinds(self) -> None:
        async with talking(Peer()) as talk:
            asked, received = await talk.send(chunk("a"))
            others = [
                encode_frame(MessageType.PONG, b"{}"),
                encode_frame(MessageType.HEALTH_STATUS, b'{"state": 1}'),
                encode_frame(MessageType.HEALTH_STATUS, b'{"state": 99}'),
                encode_frame(MessageType.METRICS_REPORT, b"{}"),
                encode_frame(MessageType.CONFIG_UPDATE_REQUEST, b"{}"),
                encode_frame(MessageType.FLOW_CONTROL, b'{"action": 2}'),
                encode_frame(MessageType.HANDSHAKE_RESPONSE, b"not again"),
                encode_frame(MessageType.CANCEL, b"{}"),
                # From the future.
                b"\0\0\0\1\x7f",
                b"\0\0\0\4\xffabc",
            ]
            await received.link.send(b"".join(others) + echo(received))

            assert await asked.answer() == name("a")
            await talk.is_sound()


@pytest.mark.parametrize("call_ids", [False, True])
@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("framing", list(Framing))
async def test_raw_bytes_arrive_as_they_are_in_every_framing_and_encoding(
    framing: Framing, encoding: Encoding, call_ids: bool
) -> None:
    data = bytes(range(256))
    event = RequestBodyChunkEvent(correlation_id="c", data=data, is_last=True, bytes_received=256)
    greeting = handshake(encoding=encoding, features={"call_ids": call_ids})
    # Other hosts, which don't name calls, have base64 in msgpack too.
    raw = encoding is Encoding.MSGPACK and (call_ids or framing is Framing.ENVELOPE)
    async with talking(Peer(greeting, framing=framing, encoding=encoding)) as talk:
        asked, received = await talk.send(event)
        sent = received.payload["data"]
        assert sent == (data if raw else msgspec.json.decode(msgspec.json.encode(data)))
        await received.echo()

        assert await asked.answer() == name()
        await talk.is_sound()


async def test_an_agent_that_does_not_speak_msgpack_is_spoken_to_in_json() -> None:
    peer = Peer(handshake(encoding="json"))
    async with talking(peer, encoding="msgpack") as talk:
        assert peer.handshakes[0]["supported_encodings"] == ["msgpack", "json"]
        await talk.is_sound()


# Hypothesis drives

NAMES_NOTHING, NAMES_REQUESTS, NAMES_CALLS = "names nothing", "names requests", "names calls"
HABITS = pytest.mark.parametrize(
    ("framing", "encoding", "habit"),
    [
        ("v2", "json", NAMES_NOTHING),
        ("v2", "json", NAMES_REQUESTS),
        ("v2", "msgpack", NAMES_CALLS),
        ("v2", "json", NAMES_CALLS),
        ("envelope", "json", NAMES_NOTHING),
    ],
)

Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "call", "give up", "answer", "answer", "again", "unknown", "send"]),
        st.integers(0, 7),
    ),
    max_size=30,
)


class Play:
    """A peer that answers as its habit is, with everything that can happen on the way."""

    def __init__(self, talk: Talk, habit: str) -> None:
        self.talk = talk
        self.habit = habit
        self.calls: list[tuple[Asked, Received]] = []
        self.owed: list[int] = []
        self.sent: set[int] = set()
        self.given_up: set[int] = set()
        self.unsent = b""
        self.about_to_be_sent: set[int] = set()
        self.nobodys = 0

    def ids(self, received: Received) -> CallIds:
        return CallIds() if self.habit == NAMES_NOTHING else received.ids

    async def step(self, what: str, number: int) -> None:
        match what:
            case "call" if self.talk.peer.framing is Framing.V2 or not (self.owed or self.unsent):
                self.owed.append(len(self.calls))
                self.calls.append(await self.talk.send(chunk("ab"[number % 2], len(self.calls))))
            case "give up":
                candidates = [i for i in range(len(self.calls)) if i not in self.sent | self.given_up]
                if candidates:
                    index = candidates[number % len(candidates)]
                    self.given_up.add(index)
                    await self.calls[index][0].give_up()
            case "answer" if self.owed:
                self.answer(number)
            case "again":
                self.again(number)
            case "unknown" if self.habit == NAMES_CALLS and self.calls:
                received = self.calls[number % len(self.calls)][1]
                ids = CallIds("a", NO_SUCH_CALL) if number % 2 else NOBODY
                self.unsent += received.frame(ALLOW, ids=ids)
                self.nobodys += 1
            case "send":
                await self.send(number)

    def answer(self, number: int) -> None:
        if self.habit == NAMES_NOTHING:
            index = self.owed[0]
        else:
            index = self.owed[number % len(self.owed)]
            if self.habit == NAMES_REQUESTS:
                request = self.calls[index][1].correlation_id
                index = next(i for i in self.owed if self.calls[i][1].correlation_id == request)
        self.owed.remove(index)
        self.about_to_be_sent.add(index)
        self.unsent += echo(self.calls[index][1], self.ids(self.calls[index][1]))

    def again(self, number: int) -> None:
        """Answer something a second time, where the ids allow to tell."""
        answered = [i for i in range(len(self.calls)) if i not in self.owed]
        if self.habit == NAMES_CALLS and answered:
            self.unsent += self.calls[answered[number % len(answered)]][1].frame(ALLOW)
            self.nobodys += 1

    async def send(self, number: int) -> None:
        data, self.unsent = self.unsent, b""
        self.sent |= self.about_to_be_sent
        self.about_to_be_sent.clear()
        if not data:
            return
        link = self.talk.peer.links[0]
        if number == 1:
            await link.send(data[:64], piece=1)
            await link.send(data[64:])
        else:
            await link.send(data, piece=37 * number or None)

    async def end(self) -> None:
        while self.owed:
            self.answer(0)
        await self.send(0)
        for index, (asked, received) in enumerate(self.calls):
            if index in self.given_up:
                assert asked.cancelled
            else:
                assert await asked.answer() == received.name
        await until(lambda: self.talk.connection.calls == 0)
        await until(lambda: self.talk.connection.pending_calls.unmatched_answers == self.nobodys)
        assert self.talk.connection.pending_calls.late_answers == len(self.given_up)
        await self.talk.is_sound()
        assert self.talk.peer.accepted == 1


async def play(framing: str, encoding: str, habit: str, steps: Sequence[Step]) -> None:
    greeting = handshake(encoding=encoding, features=CALL_IDS if habit == NAMES_CALLS else {})
    with tempfile.TemporaryDirectory() as directory:
        peer = Peer(greeting, framing=framing, encoding=encoding, path=f"{directory}/peer.sock")
        async with talking(peer) as talk:
            acts = Play(talk, habit)
            for what, number in steps:
                await acts.step(what, number)
            await acts.end()


@BACKENDS
@HABITS
@given(steps=STEPS)
@settings(deadline=None, max_examples=examples(100), derandomize=True, database=None)
def test_every_call_gets_its_own_answer_however_the_answers_come(
    backend: str, framing: str, encoding: str, habit: str, steps: list[Step]
) -> None:
    anyio.run(play, framing, encoding, habit, steps, backend=backend)


# What ends a connection, and what doesn't


class TestALostConnection:
    @pytest.mark.parametrize("framing", list(Framing))
    async def test_fails_all_that_wait_at_once(self, framing: Framing) -> None:
        async with talking(Peer(framing=framing)) as talk:
            # In the older framing all but the first wait for a place.
            at_a_time = 50 if framing is Framing.V2 else 1
            calls = [talk.ask(chunk("ab"[index % 2], index)) for index in range(at_a_time)]
            await until(lambda: talk.peer.unread == at_a_time)
            await talk.peer.links[0].aclose()
            await until(lambda: any(asked.over for asked in calls))
            await settle()

            assert all(asked.over for asked in calls)
            for asked in calls:
                with pytest.raises(AgentConnectionError, match=r"closed the connection|the connection broke"):
                    await asked.answer()

    async def test_is_replaced(self) -> None:
        async with talking(Peer()) as talk:
            asked, received = await talk.send(chunk())
            await received.link.aclose()
            with pytest.raises(AgentConnectionError):
                await asked.answer()

            await until(lambda: talk.pool.connections)
            await talk.is_sound()
            assert talk.peer.accepted == 2

    async def test_that_was_reset_says_so(self) -> None:
        # A peer that closes with something unread resets.
        unread = anyio.Event()

        async def look_away(event: Received) -> None:
            unread.set()
            await anyio.sleep_forever()

        async with talking(Peer(behaviour=look_away)) as talk:
            calls = [talk.ask(chunk("a"))]
            await unread.wait()
            calls.append(talk.ask(chunk("b", size=1000)))
            await until(lambda: talk.connection.calls == 2)
            await settle()
            await talk.peer.links[0].aclose()

            for asked in calls:
                with pytest.raises(AgentConnectionError, match="the connection broke"):
                    await asked.answer()

    async def test_fails_none_that_was_answered_before(self) -> None:
        async with talking(Peer()) as talk:
            (first, received), (second, _) = await talk.send(chunk("a")), await talk.send(chunk("b"))
            await received.echo()
            await received.link.aclose()

            assert await first.answer() == name("a")
            with pytest.raises(AgentConnectionError):
                await second.answer()

    async def test_in_the_middle_of_an_answer_fails_the_call(self) -> None:
        async with talking(Peer()) as talk:
            asked, received = await talk.send(chunk())
            await received.link.send(echo(received)[:-1])
            await received.link.aclose()

            with pytest.raises(AgentConnectionError):
                await asked.answer()

    async def test_leaves_the_others_of_the_pool_alone(self) -> None:
        async with talking(Peer(), connections=4) as talk:
            calls = [await talk.send(chunk("abcd"[index % 4], index)) for index in range(8)]
            lost = calls[0][1].link
            assert len({received.link for _, received in calls}) == 4
            await lost.aclose()

            for asked, received in calls:
                if received.link is lost:
                    with pytest.raises(AgentConnectionError):
                        await asked.answer()
                else:
                    await received.echo()
                    assert await asked.answer() == received.name

    async def test_that_only_half_closes_fails_all_that_wait_also_when_the_peer_no_longer_reads(self) -> None:
        async with talking(deaf(Peer())) as talk:
            calls = await congest(talk)
            broken = talk.connection
            await talk.peer.links[0].stream.send_eof()

            await until(lambda: not broken.alive)
            for asked in calls:
                with pytest.raises(AgentConnectionError):
                    await asked.answer()

    async def test_fails_a_call_that_waits_to_be_written(self) -> None:
        async with talking(deaf(Peer())) as talk:
            await congest(talk)
            connection = talk.connection
            asked = talk.ask(chunk("a", 2))
            await until(lambda: connection.flow.reserved == 1)
            await talk.peer.links[0].aclose()

            with pytest.raises(AgentConnectionError):
                await asked.answer()
            assert connection.calls == 0


async def hand_over(peer: Peer, event: Received) -> None:
    """Let ``event`` wait in :meth:`Peer.next`, as without behaviour."""
    behaviour, peer.behaviour = peer.behaviour, None
    await peer._event(event)
    peer.behaviour = behaviour


def deaf(peer: Peer) -> Peer:
    """``peer``, which stops to read each connection at its first event, for good."""

    async def look_away(event: Received) -> None:
        await hand_over(peer, event)
        await anyio.sleep_forever()

    peer.behaviour = look_away
    return peer


async def congest(talk: Talk) -> list[Asked]:
    """Call a peer that is :func:`deaf` until no more can be written, and for good."""
    first, _ = await talk.send(chunk("a"))
    second = talk.ask(chunk("a", 1, size=BIG))
    await until(lambda: wire_of(talk).congested)
    return [first, second]


def wire_of(talk: Talk) -> Wire:
    """What the only connection writes to."""
    wire = talk.connection._wire
    assert wire is not None
    return wire


UNREADABLE = {
    "length 0": b"\0\0\0\0",
    "over 16 MiB": (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
    "over 4 GiB": b"\xff\xff\xff\xff",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "not json": encode_frame(MessageType.AGENT_RESPONSE, b"{nonsense"),
    "not an object": encode_frame(MessageType.AGENT_RESPONSE, b"[]"),
    "nothing": encode_frame(MessageType.AGENT_RESPONSE, b""),
    "not utf-8": encode_frame(MessageType.AGENT_RESPONSE, b'{"audit": {"custom": {"correlation_id": "\xff"}}}'),
    "ids of the wrong shape": raw_answer(audit={"custom": [5]}),
    "nested beyond reason": encode_frame(MessageType.AGENT_RESPONSE, b'{"x":' + b"[" * 100_000),
    "health of the wrong type": encode_frame(MessageType.HEALTH_STATUS, b'{"state": "fine"}'),
    "health without state": encode_frame(MessageType.HEALTH_STATUS, b"{}"),
    "flow control that is not json": encode_frame(MessageType.FLOW_CONTROL, b"\xff"),
    "metrics of the wrong type": encode_frame(MessageType.METRICS_REPORT, b'{"counters": 5}'),
    "an empty config update": encode_frame(MessageType.CONFIG_UPDATE_REQUEST, b""),
}


@pytest.mark.parametrize("unreadable", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_what_cannot_be_read_ends_that_connection_only(unreadable: bytes) -> None:
    async with talking(Peer(), connections=3) as talk:
        calls = [await talk.send(chunk("abc"[index % 3], index)) for index in range(6)]
        broken = calls[0][1].link
        # What comes behind it is not looked at.
        await broken.send(unreadable + b"".join(echo(received) for _, received in calls if received.link is broken))

        for asked, received in calls:
            if received.link is broken:
                with pytest.raises(AgentConnectionError):
                    await asked.answer()
            else:
                await received.echo()
                assert await asked.answer() == received.name
        with anyio.fail_after(5):
            await broken.closed.wait()
        await until(lambda: len(talk.pool.connections) == 3)
        await talk.is_sound()


async def test_what_was_answered_before_something_unreadable_in_the_same_segment_counts() -> None:
    async with talking(Peer()) as talk:
        asked, received = await talk.send(chunk())
        await received.link.send(echo(received) + b"\0\0\0\0")

        assert await asked.answer() == name()


@pytest.mark.parametrize(
    ("framing", "most"), [(Framing.V2, MAX_FRAME_BYTES - 1), (Framing.ENVELOPE, MAX_ENVELOPE_BYTES)]
)
async def test_the_longest_frame_is_read_and_no_longer_one(framing: Framing, most: int) -> None:
    def blank(size: int) -> bytes:
        payload = b"{}".ljust(size)
        prefix = b"" if framing is Framing.ENVELOPE else bytes([MessageType.AGENT_RESPONSE])
        return (len(prefix) + size).to_bytes(4, "big") + prefix + payload

    async with talking(Peer(framing=framing)) as talk:
        asked, received = await talk.send(chunk())
        await received.link.send(blank(most))
        assert await asked.answer() == "allow"

        asked, received = await talk.send(chunk())
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await received.link.send(blank(most + 1))
        with pytest.raises(AgentConnectionError, match=f"a frame of {most + 1 + (framing is Framing.V2)} bytes"):
            await asked.answer()


WRONG_FIELDS: dict[str, dict[str, Any]] = {
    "decision": {"decision": 5},
    "an unknown decision": {"decision": {"shrug": {}}},
    "two decisions": {"decision": {"block": {"status": 403}, "redirect": {"url": "/", "status": 302}}},
    "status": {"decision": {"block": {"status": "403"}}},
    "header operations": {"request_headers": {"set": {"name": "a", "value": "b"}}},
    "version": {"version": "two"},
    "mutation": {"request_body_mutation": {"data": "not base64!", "chunk_index": 0}},
    "websocket decision": {"websocket_decision": "shrug"},
}


@pytest.mark.parametrize("fields", WRONG_FIELDS.values(), ids=WRONG_FIELDS.keys())
async def test_an_answer_that_is_wrong_but_names_its_call_fails_that_call_only(fields: dict[str, Any]) -> None:
    async with talking(Peer()) as talk:
        (first, received), (second, received_second) = await talk.send(chunk("a")), await talk.send(chunk("b"))
        await received_second.link.send(raw_answer(**fields, **ids_of(received_second)))

        with pytest.raises(AgentProtocolError):
            await second.answer()
        assert not first.over
        await received.echo()
        assert await first.answer() == name("a")
        assert talk.peer.accepted == 1
        await talk.is_sound()


async def test_an_answer_of_version_0_says_that_there_is_no_verdict() -> None:
    async with talking(Peer()) as talk:
        asked, received = await talk.send(chunk())
        await received.answer(AgentResponse(version=0, audit=AuditMetadata(reason_codes=["the hook raised"])))

        with pytest.raises(AgentError, match="the hook raised"):
            await asked.answer()
        await talk.is_sound()


async def test_the_ids_of_an_answer_are_not_part_of_what_the_agent_says() -> None:
    async with talking(Peer(handshake(features=CALL_IDS))) as talk:
        answers = []

        async def ask() -> None:
            answers.append(await talk.client.call(chunk()))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await (await talk.peer.next()).answer(
                AgentResponse.allow(audit=AuditMetadata(tags=["pii"], custom={"rule": 7}))
            )

        assert answers == [AgentResponse.allow(audit=AuditMetadata(tags=["pii"], custom={"rule": 7}))]


class TestConfiguring:
    """A connection is configured before it is used."""

    @pytest.mark.parametrize("behind", ["the same answer again", "something unreadable"])
    async def test_one_that_ends_with_the_answer_is_never_taken_for_one_that_is_there(self, behind: str) -> None:
        peer = Peer(handshake(events=frozenset(EventType)))

        async def behave(event: Received) -> None:
            if event.event_type is not EventType.CONFIGURE:
                await event.echo()
                return
            answer = event.frame(ALLOW, ids=CallIds())
            too_much = answer if behind == "the same answer again" else b"\0\0\0\0"
            await event.link.send(answer + too_much if peer.accepted == 1 else answer)

        peer.behaviour = behave
        client = StreamTransport(peer.url, connections=1).bind("peer", config={})
        async with peer.listening():
            try:
                # The first attempt may have failed, and say so; the next is not far.
                with suppress(AgentConnectionError), anyio.fail_after(PATIENCE):
                    await client.connect()
                await until(lambda: client.statistics()[0][0].connections == 1)
                assert said(await client.call(chunk())) == name()
            finally:
                await client.aclose()

    @pytest.mark.parametrize("behind", [b"\0\0\0\0", encode_frame(MessageType.AGENT_RESPONSE, b"{}")])
    async def test_something_unreadable_behind_the_handshake_gets_no_connection(self, behind: bytes) -> None:
        peer = Peer(handshake() + behind)
        async with peer.listening():
            client = StreamTransport(peer.url, connections=1).bind("peer")
            try:
                with pytest.raises(AgentConnectionError):
                    await client.connect()
            finally:
                await client.aclose()


# Cancel messages


def failure_of(decision: AgentDecision) -> FailureKind | None:
    return None if decision.failure is None else decision.failure.kind


@asynccontextmanager
async def managing(*peers: Peer, settings: dict[str, Any] | None = None, **config: Any) -> AsyncIterator[AgentManager]:
    """A manager whose agents ``0``, ``1``, … are ``peers``, connected."""
    config = {"timeout": 10.0, "chunk_timeout": 10.0} | config
    options = {"connections": 1, "drain_timeout": 0.01} | (settings or {})
    manager = AgentManager(
        AgentConfig(
            str(index), StreamTransport(peer.url, framing=peer.framing, encoding=peer.encoding, **options), **config
        )
        for index, peer in enumerate(peers)
    )
    async with manager:
        yield manager


async def decide_until_blocked(manager: AgentManager) -> None:
    decision = await manager.process_response_headers(HEAD)
    assert isinstance(decision.decision, Block), decision


async def blocking(peer: Peer) -> None:
    """Answer as if to the latest event, in order."""
    for link in peer.links:
        await link.send(raw_answer(decision={"block": {"status": 403}}))


def canceller(features: dict[str, Any] | None = None, **options: Any) -> Peer:
    return Peer(handshake(events=HEAD_EVENTS, features=CANCELLATION if features is None else features), **options)


class TestCancelMessages:
    async def test_a_client_that_goes_away_is_reason_1(self) -> None:
        peer = canceller()
        async with peer.listening(), managing(peer) as manager, anyio.create_task_group() as tasks:
            tasks.start_soon(manager.process_response_headers, HEAD)
            await peer.next()
            tasks.cancel_scope.cancel()
        await until(lambda: peer.cancels)

        assert [(cancel.correlation_id, cancel.reason) for cancel in peer.cancels] == [(outside_name("c"), 1)]

    async def test_a_client_that_goes_away_is_reason_1_for_all_agents_that_were_asked(self) -> None:
        peers = [canceller() for _ in range(4)]
        async with (
            peers[0].listening(),
            peers[1].listening(),
            peers[2].listening(),
            peers[3].listening(),
            managing(*peers) as manager,
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(manager.process_response_headers, HEAD)
                for peer in peers:
                    await peer.next()
                tasks.cancel_scope.cancel()
            await until(lambda: all(peer.cancels for peer in peers))

        assert [[cancel.reason for cancel in peer.cancels] for peer in peers] == [[1]] * 4

    async def test_a_deadline_is_reason_2(self) -> None:
        peer = canceller()
        async with peer.listening(), managing(peer, timeout=0.02) as manager:
            decision = await manager.process_response_headers(HEAD)
            await until(lambda: peer.cancels)

        assert failure_of(decision) is FailureKind.TIMEOUT
        assert [(cancel.correlation_id, cancel.reason) for cancel in peer.cancels] == [(outside_name("c"), 2)]

    async def test_a_deadline_is_reason_2_also_beside_other_agents(self) -> None:
        slow, other = canceller(), canceller()
        async with slow.listening(), other.listening(), managing(slow, other, timeout=0.05) as manager:
            await manager.process_response_headers(HEAD)
            await until(lambda: slow.cancels and other.cancels)

        assert [cancel.reason for peer in (slow, other) for cancel in peer.cancels] == [2, 2]

    async def test_another_agents_block_is_reason_3(self) -> None:
        blocks, waits = canceller(), canceller()
        async with blocks.listening(), waits.listening(), managing(blocks, waits) as manager:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(decide_until_blocked, manager)
                await waits.next()
                await (await blocks.next()).answer(AgentResponse.block(403))
            await until(lambda: waits.cancels)

        assert [(cancel.correlation_id, cancel.reason) for cancel in waits.cancels] == [(outside_name("c"), 3)]
        assert blocks.cancels == []

    async def test_a_shutdown_is_reason_5(self) -> None:
        async with talking(Peer(handshake(features=CANCELLATION))) as talk:
            calls = [await talk.send(chunk("ab"[index % 2], index)) for index in range(3)]
            await talk.client.aclose()
            await until(lambda: len(talk.peer.cancels) == 3)

            assert [(cancel.correlation_id, cancel.reason) for cancel in talk.peer.cancels] == [
                ("a", 5),
                ("b", 5),
                ("a", 5),
            ]
            for asked, _ in calls:
                with pytest.raises(AgentUnavailableError):
                    await asked.answer()

    async def test_a_shutdown_does_not_count_for_the_breaker(self) -> None:
        peer = canceller()
        async with (
            peer.listening(),
            managing(peer, circuit_breaker=CircuitBreakerConfig(failure_threshold=1)) as manager,
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(manager.process_response_headers, HEAD)
                await peer.next()
                await manager.shutdown()

            assert manager.statistics()["0"].breaker is BreakerState.CLOSED

    async def test_a_call_that_was_given_up_before_the_shutdown_is_not_cancelled_again(self) -> None:
        async with talking(Peer(handshake(features=CANCELLATION))) as talk:
            asked, _ = await talk.send(chunk())
            await asked.give_up()
            await talk.client.aclose()
            await until(lambda: not talk.peer.links)

            assert [cancel.reason for cancel in talk.peer.cancels] == [CancelReason.CLIENT_DISCONNECT]

    async def test_none_are_sent_to_an_agent_that_does_not_know_them(self) -> None:
        async with talking(Peer()) as talk:
            for index in range(3):
                asked, received = await talk.send(chunk("a", index))
                await asked.give_up()
                await received.echo()
            await talk.is_sound()
            await talk.send(chunk("b"))
            await talk.client.aclose()
            await until(lambda: not talk.peer.links)

            assert talk.peer.cancels == []

    async def test_they_name_the_call_where_the_agent_knows_call_ids(self) -> None:
        async with talking(Peer(handshake(features=CALL_IDS | CANCELLATION))) as talk:
            calls = [await talk.send(chunk("a", index)) for index in range(3)]
            await calls[1][0].give_up()
            await until(lambda: talk.peer.cancels)

            (cancel,) = talk.peer.cancels
            assert (cancel.correlation_id, cancel.call_id) == ("a", calls[1][1].ids.call_id)
            assert cancel.timestamp_ms > 1_600_000_000_000

    @pytest.mark.parametrize("encoding", list(Encoding))
    async def test_they_are_in_json_whatever_the_encoding(self, encoding: Encoding) -> None:
        peer = Peer(handshake(features=CANCELLATION, encoding=encoding), encoding=encoding)
        async with talking(peer) as talk:
            asked, received = await talk.send(chunk())
            await asked.give_up()
            await until(lambda: peer.cancels)
            await received.echo()

            assert peer.cancels[0].correlation_id == "c"
            await talk.is_sound()

    async def test_none_is_sent_for_a_call_that_was_answered(self) -> None:
        async with talking(Peer(handshake(features=CANCELLATION))) as talk:
            asked, received = await talk.send(chunk())
            await received.echo()
            await asked.answer()
            await asked.give_up()
            await talk.is_sound()

            assert talk.peer.cancels == []

    @pytest.mark.parametrize("answer_first", [True, False])
    async def test_none_is_sent_where_answer_and_cancellation_come_together(self, answer_first: bool) -> None:
        async with talking(Peer(handshake(features=CANCELLATION))) as talk:
            asked, received = await talk.send(chunk())
            acts: list[Callable[[], object]]
            acts = [partial(talk.connection.data_received, echo(received)), asked.scope.cancel]
            for act in acts if answer_first else reversed(acts):
                act()
            await until(lambda: asked.over)
            await talk.is_sound()

            assert talk.peer.cancels == []
            assert asked.cancelled or await asked.answer() == name()

    async def test_none_is_sent_for_a_call_that_never_was(self) -> None:
        peer = Peer(handshake(features=CANCELLATION))
        async with talking(peer, max_calls_per_connection=1) as talk:
            first, received = await talk.send(chunk("a"))
            waiting = talk.ask(chunk("b"))
            await until(lambda: talk.pool.waiting == 1)
            await waiting.give_up()
            await received.echo()
            await first.answer()
            await talk.is_sound()

            assert peer.cancels == []


# Is it there?


class Clock:
    """What the connections take for the time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("asgi_agents.transports.stream.connection.time", clock)
    monkeypatch.setattr("asgi_agents.transports.stream.pending_calls.time", clock)
    return clock


async def pinged(peer: Peer, times: int) -> None:
    await until(lambda: peer.pings == times)


async def hear(talk: Talk, clock: Clock, data: bytes) -> None:
    """Let the peer send ``data``, and wait until it has been read."""
    clock.now += 0.001
    await talk.peer.links[0].send(data)
    await until(lambda: not talk.pool.connections or talk.connection.health.heard_at == clock.now)


class TestLiveness:
    async def test_a_connection_is_pinged_again_and_again(self) -> None:
        async with talking(Peer(), ping_interval=0.01, stall_timeout=60) as talk:
            await until(lambda: talk.peer.pings >= 4)
            await talk.is_sound()
            assert talk.peer.accepted == 1

    async def test_every_connection_is_pinged(self) -> None:
        class Noting(Peer):
            pinged: set[int] = set()  # noqa: RUF012

            async def _frame(self, link: Link, frame: bytes) -> None:
                if frame[0] == MessageType.PING:
                    self.pinged.add(link.number)
                await super()._frame(link, frame)

        peer = Noting()
        async with talking(peer, connections=3, ping_interval=0.01, stall_timeout=60):
            await until(lambda: len(peer.pinged) == 3)

    async def test_they_are_pinged_also_while_another_cannot_be_made(self) -> None:
        peer = Peer()
        async with talking(peer, connections=2, ping_interval=0.01, stall_timeout=60, connect_timeout=0.02) as talk:
            # The agent takes no new connections, but goes on with one that it has.
            peer.greeting = None
            await peer.links[0].aclose()
            await until(lambda: len(talk.pool.connections) == 1 and peer.accepted > 3)
            pings = peer.pings

            await until(lambda: peer.pings > pings + 2)

    async def test_a_peer_that_stalls_is_dropped_also_while_another_connection_cannot_be_made(self) -> None:
        peer = Peer()
        async with talking(peer, connections=2, ping_interval=0.01, stall_timeout=0.1, connect_timeout=0.02) as talk:
            peer.greeting, peer.pong = None, False
            await peer.links[0].aclose()

            await until(lambda: not talk.pool.connections)

    async def test_pings_are_not_sent_in_the_older_framing(self) -> None:
        async with talking(Peer(framing="envelope"), ping_interval=0.005, stall_timeout=0.02) as talk:
            for _ in range(10):
                await anyio.sleep(0.005)
            assert talk.peer.unread == 0
            await talk.is_sound()
            assert talk.peer.accepted == 1

    @pytest.mark.parametrize("encoding", list(Encoding))
    async def test_the_peers_ping_comes_back_as_it_was(self, encoding: Encoding) -> None:
        peer = Peer(handshake(encoding=encoding), encoding=encoding)
        async with talking(peer) as talk:
            ping = Ping(sequence=41, timestamp_ms=1_700_000_000_000)
            await peer.links[0].send(encode_message(MessageType.PING, ping, encoding))
            pong = await peer.next()

            assert pong.type == MessageType.PONG
            assert pong.payload == {"sequence": 41, "timestamp_ms": 1_700_000_000_000}
            await talk.is_sound()

    async def test_a_peer_that_says_nothing_any_more_is_dropped_and_its_calls_fail(self) -> None:
        peer = Peer()
        async with talking(peer, ping_interval=0.01, stall_timeout=0.05) as talk:
            peer.pong = False
            asked, _ = await talk.send(chunk())
            with pytest.raises(AgentConnectionError, match=r"nothing was heard of the agent for 0\.05 s"):
                await asked.answer()
            peer.pong = True

            await until(lambda: talk.pool.connections)
            await until(lambda: peer.accepted > 1)
            assert talk.pool.connections

    async def test_one_that_is_dropped_leaves_the_others_alone(self) -> None:
        class Half(Peer):
            async def _frame(self, link: Link, frame: bytes) -> None:
                if frame[0] != MessageType.PING or link.number != 0:
                    await super()._frame(link, frame)

        peer = Half()
        async with talking(peer, connections=3, ping_interval=0.01, stall_timeout=0.1) as talk:
            calls = [await talk.send(chunk(request)) for request in "abc"]
            stalled = next(asked for asked, received in calls if received.link.number == 0)
            with pytest.raises(AgentConnectionError):
                await stalled.answer()

            for asked, received in calls:
                if received.link.number != 0:
                    await received.echo()
                    assert await asked.answer() == received.name

    async def test_a_ping_that_is_not_answered_is_not_repeated(self, clock: Clock) -> None:
        peer = Peer()
        peer.pong = False
        async with talking(peer, ping_interval=3600) as talk:
            for _ in range(3):
                talk.connection.check(20)
                clock.now += 1
            await talk.is_sound()

            assert peer.pings == 1

    @pytest.mark.parametrize(
        "data",
        [
            encode_frame(MessageType.HEALTH_STATUS, b'{"state": 1}'),
            encode_frame(MessageType.AGENT_RESPONSE, b'{"audit": {"custom": {"correlation_id": "nobody"}}}'),
            b"\0\0\0\1\x7f",
            b"\0",
        ],
        ids=["health", "an answer to nobody", "from the future", "part of a frame"],
    )
    async def test_whatever_comes_instead_of_a_pong_says_that_it_is_there(self, clock: Clock, data: bytes) -> None:
        # With call ids, or an answer to nobody would be the end.
        peer = Peer(handshake(features=CALL_IDS))
        peer.pong = False
        async with talking(peer, ping_interval=3600) as talk:
            for number in range(3):
                talk.connection.check(20)
                await pinged(peer, number + 1)
                clock.now += 19
                await hear(talk, clock, data[:1] if data == b"\0" else data)
                clock.now += 19
                talk.connection.check(20)
                assert talk.connection.alive

    async def test_answers_instead_of_pongs_say_that_it_is_there(self, clock: Clock) -> None:
        peer = Peer()
        peer.pong = False
        async with talking(peer, ping_interval=3600) as talk:
            for _ in range(5):
                talk.connection.check(20)
                clock.now += 15
                asked, received = await talk.send(chunk())
                await received.echo()
                assert await asked.answer() == name()
            talk.connection.check(20)
            assert talk.connection.alive

    async def test_it_is_dropped_when_the_time_is_up_and_no_sooner(self, clock: Clock) -> None:
        peer = Peer()
        peer.pong = False
        async with talking(peer, ping_interval=3600) as talk:
            connection = talk.connection
            # However long it had nothing to say: nobody had asked it.
            clock.now += 1000
            connection.check(20)
            clock.now += 19.9
            connection.check(20)
            assert connection.alive
            clock.now += 0.1
            connection.check(20)
            assert not connection.alive

    async def test_a_call_that_takes_long_is_none_of_its_business(self, clock: Clock) -> None:
        async with talking(Peer(), ping_interval=3600) as talk:
            asked, received = await talk.send(chunk())
            for _ in range(5):
                talk.connection.check(20)
                await hear(talk, clock, encode_frame(MessageType.PONG, b"{}"))
                clock.now += 100
            assert talk.connection.in_rotation
            await received.echo()
            assert await asked.answer() == name()

    async def test_one_that_never_answers_what_was_given_up_is_retired_and_replaced(self) -> None:
        async with talking(Peer(), ping_interval=0.01, stall_timeout=0.05) as talk:
            forgetful = talk.connection
            asked, received = await talk.send(chunk("a"))
            await asked.give_up()
            talk.client.forget("a")

            with anyio.fail_after(5):
                await received.link.closed.wait()
            assert forgetful.health.retired
            await until(lambda: any(connection.in_rotation for connection in talk.pool.connections))
            await talk.is_sound()

    async def test_one_that_is_retired_finishes_what_it_has(self, clock: Clock) -> None:
        async with talking(Peer(), ping_interval=3600) as talk:
            forgotten, _ = await talk.send(chunk("a", 1))
            await forgotten.give_up()
            retired = talk.connection
            talk.client.forget("a")
            clock.now += 20
            asked, received = await talk.send(chunk("b", 1))
            await hear(talk, clock, encode_frame(MessageType.PONG, b"{}"))
            retired.check(20)
            assert retired.health.retired
            assert retired.alive
            assert not retired.in_rotation
            await received.echo()
            assert await asked.answer() == name("b", 1)

            # The request is not over.
            asked, received_again = await talk.send(chunk("b", 2))
            assert received_again.link is received.link
            await received_again.echo()
            assert await asked.answer() == name("b", 2)
            talk.client.forget("b")
            with anyio.fail_after(5):
                await received.link.closed.wait()

    async def test_one_that_answers_late_but_answers_is_kept(self, clock: Clock) -> None:
        async with talking(Peer(), ping_interval=3600) as talk:
            for _ in range(3):
                asked, received = await talk.send(chunk())
                await asked.give_up()
                clock.now += 19
                await hear(talk, clock, echo(received))
                clock.now += 19
                talk.connection.check(20)
                assert talk.connection.in_rotation

    async def test_one_of_the_older_kits_that_owes_an_answer_and_says_nothing_is_dropped(self, clock: Clock) -> None:
        async with talking(Peer(framing="envelope"), ping_interval=3600) as talk:
            connection = talk.connection
            clock.now += 1000
            connection.check(20)
            assert connection.alive
            asked, _ = await talk.send(chunk())
            clock.now += 1000
            connection.check(20)
            # Somebody waits for it, within a deadline of his own.
            assert connection.alive
            await asked.give_up()
            connection.check(20)
            assert not connection.alive


# A peer that doesn't read


class TestCongestion:
    async def test_other_connections_go_on(self) -> None:
        slow, fast = 0, 1
        peer = Peer()
        look_up = anyio.Event()

        async def behave(event: Received) -> None:
            await hand_over(peer, event)
            if event.link.number == slow:
                await look_up.wait()

        peer.behaviour = behave
        async with talking(peer, connections=2) as talk:
            first, received = await talk.send(chunk("a", size=BIG))
            second, received_second = await talk.send(chunk("b", size=BIG))
            if received.link.number == fast:
                first, received, second, received_second = second, received_second, first, received
            await received_second.echo()
            assert await second.answer() == received_second.name
            stuck = [talk.ask(chunk(received.correlation_id, index, size=BIG)) for index in range(1, 4)]
            for index in range(4, 9):
                asked, received_other = await talk.send(chunk(received_second.correlation_id, index))
                await received_other.echo()
                assert await asked.answer() == received_other.name
            assert not any(asked.over for asked in stuck)

            look_up.set()
            await received.echo()
            assert await first.answer() == received.name
            for _ in stuck:
                await (await peer.next()).echo()
            assert [await asked.answer() for asked in stuck] == [name(received.correlation_id, i) for i in (1, 2, 3)]
            await talk.is_sound()

    async def test_a_call_that_is_given_up_while_it_waits_to_be_written_is_never_sent(self) -> None:
        peer = Peer(handshake(features=CANCELLATION))
        look_up = anyio.Event()

        async def behave(event: Received) -> None:
            await hand_over(peer, event)
            await look_up.wait()

        peer.behaviour = behave
        async with talking(peer) as talk:
            first, received = await talk.send(chunk("a"))
            second = talk.ask(chunk("a", 1, size=BIG))
            await until(lambda: wire_of(talk).congested)
            third = talk.ask(chunk("a", 2, size=BIG))
            await until(lambda: talk.connection.flow.reserved == 1)
            await third.give_up()
            assert (talk.connection.flow.reserved, len(talk.connection.pending_calls), talk.connection.calls) == (
                0,
                2,
                2,
            )

            look_up.set()
            await received.echo()
            assert await first.answer() == name("a", 0)
            await (await peer.next()).echo()
            assert await second.answer() == name("a", 1)
            await talk.is_sound()
            assert peer.cancels == []

    async def test_a_call_that_is_given_up_while_it_is_being_written_arrives_whole(self) -> None:
        peer = Peer(handshake(features=CANCELLATION))
        look_up = anyio.Event()

        async def behave(event: Received) -> None:
            await hand_over(peer, event)
            await look_up.wait()

        peer.behaviour = behave
        async with talking(peer) as talk:
            first, received = await talk.send(chunk("a"))
            second = talk.ask(chunk("a", 1, size=4 * BIG))
            await until(lambda: wire_of(talk).congested)
            await second.give_up()
            look_up.set()
            await received.echo()
            assert await first.answer() == name("a", 0)
            late = await peer.next()
            assert len(late.payload["data"]) > 4 * BIG
            await late.echo()

            await talk.is_sound()
            assert [cancel.reason for cancel in peer.cancels] == [1]

    async def test_a_peer_that_never_reads_again_is_dropped(self) -> None:
        async with talking(deaf(Peer()), ping_interval=0.01, stall_timeout=0.1) as talk:
            calls = await congest(talk)
            calls.append(talk.ask(chunk("a", 2, size=BIG)))
            for asked in calls:
                with pytest.raises(AgentConnectionError, match="nothing was heard"):
                    await asked.answer()

    @pytest.mark.parametrize("size", [BIG, 190 * 1024], ids=["much", "little"])
    async def test_a_peer_that_drains_and_never_reads_again_leaves_nothing(self, size: int) -> None:
        closed = False
        async with leaving_nothing(), talking(deaf(Peer())) as talk:
            calls = [(await talk.send(chunk("a")))[0], talk.ask(chunk("a", 1, size=size))]
            connection, wire = talk.connection, wire_of(talk)
            await until(lambda: connection.calls == 2)
            await settle()
            assert wire.congested == (size == BIG)
            (link,) = talk.peer.links
            await link.say(HealthState.DRAINING)
            await until(lambda: not connection.in_rotation)
            for asked in calls:
                await asked.give_up()
            talk.client.forget("a")
            await until(lambda: not connection.alive)
            await talk.client.aclose()
            with anyio.move_on_after(3):
                await wire.wait_closed()
                closed = True
        assert closed, "it is still open after everything was closed"

    async def test_a_peer_may_ping_while_it_has_much_to_read(self) -> None:
        peer = Peer()
        look_up = anyio.Event()

        async def behave(event: Received) -> None:
            await hand_over(peer, event)
            await look_up.wait()

        peer.behaviour = behave
        async with talking(peer) as talk:
            first, received = await talk.send(chunk("a"))
            second = talk.ask(chunk("a", 1, size=BIG))
            await until(lambda: wire_of(talk).congested)
            await received.link.send(encode_message(MessageType.PING, Ping(sequence=1)))
            await received.echo()
            assert await first.answer() == name("a", 0)
            look_up.set()
            while (event := await peer.next()).type == MessageType.PONG:
                pass
            await event.echo()

            assert await second.answer() == name("a", 1)


# The older framing


class TestEnvelopes:
    async def test_a_connection_carries_one_call_at_a_time(self) -> None:
        async with talking(Peer(framing="envelope")) as talk:
            calls = [talk.ask(chunk("ab"[index % 2], index)) for index in range(6)]
            for _ in calls:
                received = await talk.peer.next()
                await settle()
                assert talk.peer.unread == 0
                await received.link.send(echo(received), piece=11)

            assert sorted([await asked.answer() for asked in calls]) == sorted(
                name("ab"[index % 2], index) for index in range(6)
            )
            await talk.is_sound()

    async def test_an_id_in_an_answer_means_nothing(self) -> None:
        async with talking(Peer(framing="envelope")) as talk:
            asked, received = await talk.send(chunk("a"))
            answer = {
                "decision": {"block": {"status": 403, "body": received.name}},
                "audit": {"custom": {"correlation_id": "b", "call_id": 1}},
            }
            data = msgspec.json.encode(answer)
            await received.link.send(len(data).to_bytes(4, "big") + data)

            assert await asked.answer() == name("a")

    async def test_a_call_that_was_given_up_is_in_the_way_of_the_next_until_its_answer_has_come(self) -> None:
        async with talking(Peer(framing="envelope")) as talk:
            late, received_late = await talk.send(chunk("a", 1))
            await late.give_up()
            asked = talk.ask(chunk("a", 2))
            await until(lambda: talk.pool.waiting == 1)
            await settle()
            assert talk.peer.unread == 0
            await received_late.echo()
            received = await talk.peer.next()
            assert talk.connection.pending_calls.late_answers == 1
            await received.echo()

            assert await asked.answer() == name("a", 2)
            await talk.is_sound()

    async def test_a_call_that_was_given_up_is_in_the_way_until_the_connection_was_given_up_for_it(self) -> None:
        async with talking(Peer(framing="envelope"), ping_interval=0.01, stall_timeout=0.05) as talk:
            await talk.is_sound()
            late, received = await talk.send(chunk("a", 1))
            await late.give_up()
            link = received.link
            asked, received = await talk.send(chunk("a", 2))
            assert received.link is not link
            await received.echo()

            assert await asked.answer() == name("a", 2)

    @pytest.mark.parametrize("cut", [None, 1, 4, 20])
    @pytest.mark.parametrize("together", [True, False])
    async def test_whatever_nobody_has_asked_for_ends_the_connection(self, cut: int | None, together: bool) -> None:
        """Also a part of an answer: what is sent next is not what the rest of it is to."""
        async with talking(Peer(framing="envelope")) as talk:
            connection = talk.connection
            asked, received = await talk.send(chunk("a"))
            again = received.frame(ALLOW)[:cut]
            if together:
                await received.link.send(echo(received) + again)
            else:
                await received.echo()
            assert await asked.answer() == name("a")
            if not together:
                await received.link.send(again)
            await until(lambda: not connection.alive)

            assert connection.fault == "an answer to no call"
            await until(lambda: talk.pool.connections)
            await talk.is_sound()

    async def test_an_answer_that_nobody_has_asked_for_ends_that_connection_only(self) -> None:
        async with talking(Peer(framing="envelope"), connections=2) as talk:
            asked, received = await talk.send(chunk("a"))
            second, received_second = await talk.send(chunk("b"))
            await received_second.echo()
            await second.answer()
            await received_second.link.send(received_second.frame(ALLOW))
            with anyio.fail_after(5):
                await received_second.link.closed.wait()
            await received.echo()

            assert await asked.answer() == name("a")
            await talk.is_sound()

    @pytest.mark.parametrize("data", [b"\0\0\0\0", (MAX_ENVELOPE_BYTES + 1).to_bytes(4, "big")])
    async def test_a_frame_that_may_not_be_ends_that_connection_only(self, data: bytes) -> None:
        async with talking(Peer(framing="envelope"), connections=2) as talk:
            (a, received_a), (b, received_b) = await talk.send(chunk("a")), await talk.send(chunk("b"))
            await received_a.link.send(data)

            with pytest.raises(AgentConnectionError):
                await a.answer()
            await received_b.echo()
            assert await b.answer() == name("b")

    @pytest.mark.parametrize("answer", [b"nonsense", b"[]", b'{"decision": 5}', b"{}x"])
    async def test_an_answer_that_cannot_be_read_fails_its_call(self, answer: bytes) -> None:
        async with talking(Peer(framing="envelope")) as talk:
            asked, received = await talk.send(chunk())
            await received.link.send(len(answer).to_bytes(4, "big") + answer)

            with pytest.raises(AgentError):
                await asked.answer()
            await until(lambda: talk.pool.connections)
            await talk.is_sound()

    async def test_nothing_is_said_when_a_call_is_given_up(self) -> None:
        async with talking(Peer(framing="envelope")) as talk:
            asked, received = await talk.send(chunk())
            await asked.give_up()
            await received.echo()
            await talk.is_sound()

            assert (talk.peer.unread, talk.peer.cancels) == (0, [])


# Too large


def body(size: int, *, response: bool) -> RequestBodyChunkEvent | ResponseBodyChunkEvent:
    kind = ResponseBodyChunkEvent if response else RequestBodyChunkEvent
    return kind(correlation_id="c", data=bytes(size), is_last=True)


async def judge(manager: AgentManager, size: int, *, response: bool) -> AgentDecision:
    event = body(size, response=response)
    if isinstance(event, ResponseBodyChunkEvent):
        return await manager.process_response_body_streaming(event)
    return await manager.process_request_body_streaming(event)


@pytest.mark.parametrize(
    ("response", "kind", "status"),
    [(False, FailureKind.REQUEST_TOO_LARGE, 413), (True, FailureKind.RESPONSE_TOO_LARGE, 500)],
    ids=["request", "response"],
)
class TestTooLarge:
    """What the agent can't be shown is no fault of the agent's."""

    async def check(self, peer: Peer, size: int, response: bool, kind: FailureKind, status: int) -> None:
        breaker = CircuitBreakerConfig(failure_threshold=1)
        async with peer.listening(), managing(peer, events=BODY_EVENTS, circuit_breaker=breaker) as manager:
            decision = await judge(manager, size, response=response)

            assert failure_of(decision) is kind
            assert isinstance(decision.decision, Block)
            assert decision.decision.status == status
            statistics = manager.statistics()["0"]
            assert (statistics.breaker, statistics.in_flight) == (BreakerState.CLOSED, 0)
            assert [(e.in_flight, e.connections) for e in statistics.endpoints] == [(0, 1)]
            assert peer.unread == 0

            # And the connection is as good as before.
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(judge, manager, 10, response=response))
                await (await peer.next()).answer()

    async def test_a_body_over_what_the_agent_takes(self, response: bool, kind: FailureKind, status: int) -> None:
        peer = Peer(handshake(limits={"max_body_size": 100}))
        await self.check(peer, 101, response, kind, status)

    @pytest.mark.parametrize(("encoding", "size"), [("json", 13 * BIG), ("msgpack", 16 * BIG)])
    async def test_a_body_over_what_a_frame_takes(
        self, response: bool, kind: FailureKind, status: int, encoding: str, size: int
    ) -> None:
        peer = Peer(handshake(limits=NO_LIMITS, encoding=encoding), encoding=encoding)
        await self.check(peer, size, response, kind, status)

    async def test_a_body_over_what_an_envelope_takes(self, response: bool, kind: FailureKind, status: int) -> None:
        await self.check(Peer(framing="envelope"), 8 * BIG, response, kind, status)


async def test_a_body_of_just_what_the_agent_takes_is_shown() -> None:
    async with talking(Peer(handshake(limits={"max_body_size": 100}))) as talk:
        asked, received = await talk.send(chunk(size=100))
        await received.echo()
        assert await asked.answer() == name()

        with pytest.raises(EventTooLargeError, match="101 bytes at a time, the agent takes 100"):
            await talk.ask(chunk(size=101)).answer()


async def test_an_event_that_cannot_be_written_takes_no_place() -> None:
    async with talking(Peer(), max_calls_per_connection=1) as talk:
        for _ in range(3):
            with pytest.raises(AgentError):
                await talk.ask(chunk("\ud800")).answer()
        assert talk.connection.calls == 0
        await talk.is_sound()


# Cancellation


def obliging(peer: Peer) -> Peer:
    """``peer``, which answers everything at once."""
    peer.behaviour = Received.echo
    return peer


async def quiet(client: StreamClient) -> None:
    """Wait until nothing is under way on any of the connections; assert that nothing waits."""
    pool = client._pools.peek()
    assert pool is not None
    await until(lambda: all(connection.calls == 0 for connection in pool.connections))
    assert pool.waiting == 0
    assert all(connection.flow.reserved == 0 and not connection.pending_calls for connection in pool.connections)


class TestCancellation:
    @pytest.mark.parametrize("connected", [True, False])
    async def test_a_call_can_be_cancelled_wherever_it_suspends(self, connected: bool) -> None:
        peer = obliging(Peer())
        async with peer.listening():
            suspension, unfinished = 0, True
            while unfinished:
                suspension += 1
                client = StreamTransport(peer.url, connections=1).bind("peer")
                if connected:
                    await client.call(chunk())
                with CancelScope() as scope:
                    unfinished = await cancelling(client.call(chunk()), scope.cancel, suspension)

                await client.call(chunk())
                await quiet(client)
                await client.aclose()
            assert suspension > (1 if connected else 2)

    async def test_leaves_no_task_and_no_file_descriptor_wherever_it_comes(self) -> None:
        async with leaving_nothing():
            await self.test_a_call_can_be_cancelled_wherever_it_suspends(False)
            gc.collect()

    async def test_while_waiting_for_a_place_leaves_nobody_waiting(self) -> None:
        async with talking(Peer(), max_calls_per_connection=1) as talk:
            first, received = await talk.send(chunk("a"))
            calls = [talk.ask(chunk(request)) for request in "abab"]
            await until(lambda: talk.pool.waiting == 4)
            for number, asked in enumerate(calls):
                await asked.give_up()
                assert talk.pool.waiting == 3 - number
            assert talk.pool.queue.for_one == {}
            await received.echo()

            assert await first.answer() == name("a")
            assert talk.connection.calls == 0
            await talk.is_sound()

    @pytest.mark.parametrize("cancelled_first", [True, False])
    @pytest.mark.parametrize("same_request", [True, False])
    async def test_in_the_moment_that_a_place_comes_passes_it_on(
        self, cancelled_first: bool, same_request: bool
    ) -> None:
        async with talking(Peer(), max_calls_per_connection=1) as talk:
            first, received = await talk.send(chunk("a"))
            given_up = talk.ask(chunk("a" if same_request else "b", 1))
            await until(lambda: talk.pool.waiting == 1)
            last = talk.ask(chunk("a" if same_request else "c", 2))
            await until(lambda: talk.pool.waiting == 2)
            acts: list[Callable[[], object]]
            acts = [given_up.scope.cancel, partial(talk.connection.data_received, echo(received))]
            for act in acts if cancelled_first else reversed(acts):
                act()

            received = await talk.peer.next()
            if received.payload["chunk_index"] == 1:
                # It had the place, and has been sent before it heard that it was given up.
                assert not cancelled_first
                await received.echo()
                received = await talk.peer.next()
            await received.echo()
            assert await last.answer() == received.name
            assert await first.answer() == name("a")
            assert given_up.cancelled
            await talk.is_sound()

    async def test_while_waiting_for_the_answer_leaves_only_what_the_agent_owes(self) -> None:
        async with talking(Peer()) as talk:
            calls = [await talk.send(chunk("ab"[index % 2], index)) for index in range(10)]
            for asked, _ in calls[::2]:
                await asked.give_up()
            assert (talk.connection.calls, talk.connection.waited_for) == (10, 5)
            for _, received in calls:
                await received.echo()

            for asked, received in calls[1::2]:
                assert await asked.answer() == received.name
            await talk.is_sound()
            assert talk.client.statistics()[0][0].in_flight == 0

    async def test_of_a_call_that_waits_for_the_first_connection_leaves_nothing(self) -> None:
        async with leaving_nothing():
            peer = Peer(silent=True)
            client = StreamTransport(peer.url, connections=1).bind("peer")
            async with peer.listening():
                with anyio.move_on_after(0.02) as scope:
                    await client.call(chunk())
                assert scope.cancelled_caught
                pool = client._pools.peek()
                assert pool is not None
                assert pool.waiting == 0
                await client.aclose()

    async def test_of_closing_leaves_nothing_either(self) -> None:
        async with leaving_nothing():
            peer = Peer()
            client = StreamTransport(peer.url, connections=2, drain_timeout=30).bind("peer")
            async with peer.listening(), anyio.create_task_group() as tasks:
                await client.connect()
                asked = Asked()
                tasks.start_soon(asked.run, client, chunk())
                await peer.next()
                with anyio.move_on_after(0.02) as scope:
                    await client.aclose()
                assert scope.cancelled_caught
                with pytest.raises(AgentUnavailableError):
                    await asked.answer()


class TestAsyncioCancellation:
    """``Task.cancel()``, which is what ``asyncio.timeout`` uses, knows no scopes and no shields."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.mark.parametrize("connected", [True, False])
    async def test_a_call_can_be_cancelled_wherever_it_suspends(self, connected: bool) -> None:
        async def cancelled_at(suspension: int) -> bool:
            task = asyncio.current_task()
            assert task is not None
            return await cancelling(client.call(chunk()), task.cancel, suspension)

        async with leaving_nothing():
            peer = obliging(Peer())
            async with peer.listening():
                suspension, unfinished = 0, True
                while unfinished:
                    suspension += 1
                    client = StreamTransport(peer.url, connections=1).bind("peer")
                    if connected:
                        await client.call(chunk())
                    with suppress(asyncio.CancelledError):
                        unfinished = await asyncio.create_task(cancelled_at(suspension))

                    await client.call(chunk())
                    await quiet(client)
                    await client.aclose()


@pytest.mark.parametrize("framing", list(Framing))
async def test_nothing_is_left_of_a_client_that_was_closed(framing: Framing) -> None:
    async with leaving_nothing():
        async with talking(Peer(framing=framing), connections=20) as talk:
            calls = [await talk.send(chunk(f"{index}", index)) for index in range(20)]
            for asked, received in calls[:8]:
                await received.echo()
                assert await asked.answer() == received.name
            for asked, _ in calls[8:14]:
                await asked.give_up()
            await talk.client.aclose()
            for asked, _ in calls[14:]:
                with pytest.raises(AgentUnavailableError):
                    await asked.answer()
        gc.collect()


async def test_nothing_is_left_of_a_guarded_call_however_it_ended() -> None:
    async with leaving_nothing():
        peer = canceller(CALL_IDS | CANCELLATION)
        async with peer.listening(), managing(peer, timeout=0.05, circuit_breaker=None) as manager:
            kinds = []
            for ending in ("answer", "late", "lost", "cancelled"):
                async with anyio.create_task_group() as tasks:

                    async def decide() -> None:
                        kinds.append(failure_of(await manager.process_response_headers(HEAD)))

                    tasks.start_soon(decide)
                    received = await peer.next()
                    match ending:
                        case "answer":
                            await received.answer()
                        case "lost":
                            await received.link.aclose()
                        case "cancelled":
                            tasks.cancel_scope.cancel()
                if ending in ("late", "cancelled"):
                    await received.answer()
                await until(lambda: manager.statistics()["0"].connections == 1)
                await until(lambda: manager.statistics()["0"].endpoints[0].in_flight == 0)
                assert (manager.statistics()["0"].in_flight, manager.statistics()["0"].waiting) == (0, 0)
            # The first may be as slow as it likes on a slow machine; what matters is what is left.
            assert len(kinds) == 3


async def test_calls_of_one_request_that_wait_for_their_first_place_get_the_same_connection() -> None:
    async with talking(Peer(), connections=2) as talk:
        for link in talk.peer.links:
            await link.flow(FlowAction.PAUSE)
        await until(lambda: all(connection.flow.paused for connection in talk.pool.connections))
        calls = [talk.ask(chunk("a", index)) for index in range(2)]
        await until(lambda: talk.pool.waiting == 2)
        for link in talk.peer.links:
            await link.flow(FlowAction.RESUME)
        events = [await talk.peer.next() for _ in calls]
        for event in events:
            await event.echo()

        assert [await asked.answer() for asked in calls] == [name("a", index) for index in range(2)]
        assert len({event.link for event in events}) == 1
        talk.client.forget("a")
        assert [len(connection.requests) for connection in talk.pool.connections] == [0, 0]
