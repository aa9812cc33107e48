"""Bodies on their way past the agents: buffered, streamed and hybrid, read and changed, in both directions."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_agents import (
    AgentConfig,
    AgentDecision,
    AgentManager,
    AgentResponse,
    Block,
    BodyMode,
    BodyMutation,
    EventType,
    FailureMode,
)
from asgi_agents.exchange.body import BodyInspection
from asgi_agents.exchange.state import ExchangeState
from asgi_agents.exchange.units import Cutter
from asgi_agents.manager import registry_of
from tests.support.asgi import (
    Answer,
    App,
    Client,
    Held,
    Probe,
    SlowProbe,
    assert_nothing_left,
    body,
    guarded,
    settle,
    start,
)

BUFFER, STREAM, HYBRID = BodyMode.BUFFER, BodyMode.STREAM, BodyMode.hybrid(4)
MODES = [BUFFER, STREAM, HYBRID]
MIB = 1024 * 1024

each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
each_way = pytest.mark.parametrize("way", ["request", "response"])

# The functions under test are the same for every example, and only their event loop is a fixture.
reproducible = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def uncut() -> Cutter:
    """For a body whose every piece is a unit."""
    return Cutter((b"",), lambda data, start: len(data))


def replace(change: Callable[[bytes], bytes]) -> Callable[[Any], Answer]:
    """The reaction of an agent that changes each chunk it is shown, in either direction."""

    def react(event: Any) -> AgentResponse:
        mutation = BodyMutation(change(event.data), event.chunk_index)
        if event.event_type is EventType.REQUEST_BODY_CHUNK:
            return AgentResponse.allow(request_body_mutation=mutation)
        return AgentResponse.allow(response_body_mutation=mutation)

    return react


def agent(way: str, probe: Probe, mode: BodyMode, *, write: bool = False, **options: Any) -> AgentConfig:
    """An agent with that mode in that direction."""
    mode_option: dict[str, Any] = {f"{way}_body_mode": mode}
    agent_id = options.pop("id", f"agent-{id(probe)}")
    return AgentConfig(agent_id, probe, body_access="write" if write else "read", **mode_option, **options)


class Passage:
    """A body sent in one direction past agents: what came out, on the far side."""

    def __init__(self, way: str, pieces: Sequence[bytes], *, declared: bool = False, ends_empty: bool = False) -> None:
        self.way = way
        messages = [*pieces, b""] if ends_empty else list(pieces)
        length = [(b"content-length", b"%d" % sum(map(len, pieces)))] if declared else []
        if way == "request":
            self.client = Client("POST", headers=length, body=messages, http_version="2" if declared else "1.1")
            if declared:
                self.client.scope["headers"] = length
            self.app = App()
        else:
            self.client = Client()
            last = len(messages) - 1
            self.app = App(
                start(200, *length), *(body(piece, more=index < last) for index, piece in enumerate(messages))
            )

    async def past(self, *agents: AgentConfig, **options: Any) -> bytes:
        """Send it, and return what came out."""
        middleware = guarded(self.app, *agents, **options)
        await self.client.call(middleware)
        assert self.client.complete
        assert_nothing_left(middleware.manager)
        return self.out

    @property
    def pieces(self) -> list[bytes]:
        """What came out, piece by piece."""
        if self.way == "request":
            return [message["body"] for message in self.app.received]
        return self.client.chunks

    @property
    def out(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def length(self) -> bytes | None:
        """The content-length on the far side."""
        return (self.app if self.way == "request" else self.client).header(b"content-length")


# What agents are shown


@each_way
async def test_a_buffering_agent_is_shown_the_whole_body_at_once(way: str, probe: type[Probe]) -> None:
    reader, passage = probe(**{f"{way}_body": None}), Passage(way, [b"one ", b"two ", b"three"])
    assert await passage.past(agent(way, reader, BUFFER)) == b"one two three"
    assert reader.chunks == [(0, b"one two three", True)]
    assert [_total_size(event) for event in reader.heard] == [13]
    assert [_running_total(event) for event in reader.heard] == [13]


@each_way
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
async def test_a_streaming_agent_is_shown_each_chunk_as_it_comes(way: str, declared: bool, probe: type[Probe]) -> None:
    reader, passage = probe(**{f"{way}_body": None}), Passage(way, [b"one ", b"two ", b"three"], declared=declared)
    await passage.past(agent(way, reader, STREAM))
    assert passage.pieces == [b"one ", b"two ", b"three"]
    assert reader.chunks == [(0, b"one ", False), (1, b"two ", False), (2, b"three", True)]
    assert [_running_total(event) for event in reader.heard] == [4, 8, 13]
    assert [_total_size(event) for event in reader.heard] == [*[13 if declared else None] * 2, 13]


@each_way
async def test_a_hybrid_agent_is_shown_what_reaches_its_threshold_at_once_and_then_each_chunk(
    way: str, probe: type[Probe]
) -> None:
    reader, passage = probe(**{f"{way}_body": None}), Passage(way, [b"1", b"2", b"34", b"5", b"6"])
    await passage.past(agent(way, reader, HYBRID))
    assert reader.chunks == [(0, b"1234", False), (1, b"5", False), (2, b"6", True)]
    assert [_running_total(event) for event in reader.heard] == [4, 5, 6]
    assert [_total_size(event) for event in reader.heard] == [None, None, 6]
    assert passage.pieces == [b"1234", b"5", b"6"]


@each_way
async def test_a_hybrid_agent_is_shown_a_body_below_its_threshold_as_a_whole(way: str) -> None:
    reader, passage = Probe(**{f"{way}_body": None}), Passage(way, [b"1", b"2", b"3"])
    await passage.past(agent(way, reader, HYBRID))
    assert reader.chunks == [(0, b"123", True)]
    assert _total_size(reader.heard[0]) == 3


@each_way
async def test_a_body_that_ends_with_an_empty_message_is_ended_for_a_streaming_agent(way: str) -> None:
    reader, passage = Probe(**{f"{way}_body": None}), Passage(way, [b"one", b"two"], ends_empty=True)
    assert await passage.past(agent(way, reader, STREAM)) == b"onetwo"
    assert reader.chunks == [(0, b"one", False), (1, b"two", False), (2, b"", True)]
    assert passage.pieces == [b"one", b"two", b""]


@each_way
async def test_a_body_that_ends_with_an_empty_message_is_one_event_for_a_buffering_agent(way: str) -> None:
    reader, passage = Probe(**{f"{way}_body": None}), Passage(way, [b"one", b"two"], ends_empty=True)
    await passage.past(agent(way, reader, BUFFER))
    assert reader.chunks == [(0, b"onetwo", True)]


@each_way
@each_mode
async def test_empty_messages_in_between_are_no_events_and_are_passed_on_where_nothing_is_held(
    way: str, mode: BodyMode
) -> None:
    reader, passage = Probe(**{f"{way}_body": None}), Passage(way, [b"", b"one", b"", b"two!"])
    assert await passage.past(agent(way, reader, mode)) == b"onetwo!"
    assert b"" not in [data for _, data, _ in reader.chunks]
    if mode is STREAM:
        assert passage.pieces == [b"", b"one", b"", b"two!"]


@each_way
@each_mode
@pytest.mark.parametrize("pieces", [[b""], [b"", b""]], ids=["one message", "two messages"])
async def test_an_empty_body_makes_no_event(way: str, mode: BodyMode, pieces: list[bytes], probe: type[Probe]) -> None:
    reader, passage = probe(**{f"{way}_body": AgentResponse.block()}), Passage(way, pieces)
    assert await passage.past(agent(way, reader, mode)) == b""
    assert reader.heard == []


@each_way
async def test_bodies_in_other_buffers_than_bytes_are_judged_and_passed_on(way: str) -> None:
    reader = Probe(**{f"{way}_body": None})
    passage = Passage(way, [b""])
    chunk: Any = bytearray(b"one")
    view: Any = memoryview(b"two")
    if way == "request":
        passage.client = Client("POST", body=[chunk, view])
    else:
        passage.app = App(start(), body(chunk, more=True), body(view))
    assert await passage.past(agent(way, reader, STREAM)) == b"onetwo"
    assert reader.chunks == [(0, b"one", False), (1, b"two", True)]
    assert all(type(data) is bytes for _, data, _ in reader.chunks)


async def test_keys_that_a_message_may_leave_out_mean_their_defaults() -> None:
    reader = Probe(request_body=None, response_body=None)
    app = App({"type": "http.response.start", "status": 200}, {"type": "http.response.body"})
    client = Client("POST", unfinished=True)
    client._inbox.append({"type": "http.request"})
    await client.call(guarded(app, AgentConfig("a", reader)))
    assert client.complete
    assert client.status == 200
    assert reader.heard == []


# When what is passed on


async def test_nothing_of_a_buffered_request_reaches_the_app_before_it_is_judged() -> None:
    held, app = Held(), App()
    middleware = guarded(app, agent("request", SlowProbe(request_body=held), BUFFER))
    client = Client("POST", body=[b"one", b"two"])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await held.reached.wait()
        await settle()
        assert app.calls == 0
        held.gate.set()
    assert app.body == b"onetwo"


async def test_nothing_of_a_buffered_response_reaches_the_client_before_it_is_judged() -> None:
    held = Held()
    middleware = guarded(App(), agent("response", SlowProbe(response_body=held), BUFFER))
    client = Client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await held.reached.wait()
        await settle()
        assert client.messages == []
        held.gate.set()
    assert client.body == b"hello"


async def test_a_streamed_chunk_is_passed_on_before_the_next_one_comes() -> None:
    client, got = Client("POST", unfinished=True), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for data in (b"one", b"two"):
            client.give(data, more=data == b"one")
            message = await receive()
            got.append(message["body"])
            await send(body(message["body"], more=message["more_body"]))
            assert client.chunks[-1] == data

    reader = SlowProbe(request_body=None, response_body=None)
    await client.call(guarded(app, AgentConfig("a", reader, request_body_mode=STREAM, response_body_mode=STREAM)))
    assert got == [b"one", b"two"]


@each_way
async def test_what_is_below_a_hybrid_threshold_is_held_and_what_follows_is_not(way: str) -> None:
    holding = []
    manager = AgentManager([agent(way, Probe(**{f"{way}_body": None}), HYBRID)])
    inspection = _inspection(manager, way)
    out = []
    for data, last in ((b"1", False), (b"23", False), (b"4", False), (b"5", False), (b"", True)):
        holding.append(inspection.holding)
        out.append(await inspection.feed(data, last))
    assert out == [b"", b"", b"1234", b"5", b""]
    assert holding == [True, True, True, False, False]


@each_way
@pytest.mark.parametrize(
    ("mode", "passes"),
    [(BUFFER, False), (STREAM, True), (BodyMode.hybrid(4), True), (BodyMode.hybrid(100), True)],
    ids=["buffer", "stream", "hybrid", "hybrid, below its threshold"],
)
async def test_chunks_of_streamed_and_hybrid_bodies_have_a_deadline_of_their_own(
    way: str, mode: BodyMode, passes: bool
) -> None:
    async def react(event: Any) -> Answer:
        await anyio.sleep(0.03)
        return None

    passage = Passage(way, [b"one", b"two"])
    middleware = guarded(
        passage.app, agent(way, SlowProbe(**{f"{way}_body": react}), mode, timeout=0.01, chunk_timeout=5.0)
    )
    await passage.client.call(middleware)
    assert passage.client.status == (200 if passes else 504)


# Changes


@each_way
@each_mode
async def test_a_writer_replaces_what_it_is_shown(way: str, mode: BodyMode, probe: type[Probe]) -> None:
    writer, passage = probe(**{f"{way}_body": replace(bytes.upper)}), Passage(way, [b"one ", b"two ", b"three"])
    assert await passage.past(agent(way, writer, mode, write=True)) == b"ONE TWO THREE"


@each_way
@each_mode
async def test_a_writer_drops_what_it_is_shown(way: str, mode: BodyMode) -> None:
    writer, passage = Probe(**{f"{way}_body": replace(lambda _: b"")}), Passage(way, [b"one ", b"two ", b"three"])
    assert await passage.past(agent(way, writer, mode, write=True)) == b""
    assert passage.client.status == 200


@each_way
async def test_a_dropped_chunk_leaves_its_neighbours_alone(way: str) -> None:
    writer = Probe(**{f"{way}_body": replace(lambda data: b"" if data == b"two" else data)})
    passage = Passage(way, [b"one", b"two", b"three"])
    await passage.past(agent(way, writer, STREAM, write=True))
    assert passage.pieces == [b"one", b"three"]


@each_way
@each_mode
async def test_a_mutation_without_data_passes_what_was_shown(way: str, mode: BodyMode) -> None:
    passing = AgentResponse.allow(request_body_mutation=BodyMutation(None), response_body_mutation=BodyMutation(None))
    writer, passage = Probe(**{f"{way}_body": passing}), Passage(way, [b"one ", b"two"])
    assert await passage.past(agent(way, writer, mode, write=True)) == b"one two"


@each_way
async def test_an_agent_that_only_reads_may_pass_with_a_mutation_that_changes_nothing(way: str) -> None:
    passing = AgentResponse.allow(request_body_mutation=BodyMutation(None), response_body_mutation=BodyMutation(None))
    assert await Passage(way, [b"one"]).past(agent(way, Probe(**{f"{way}_body": passing}), BUFFER)) == b"one"


@each_way
async def test_a_change_by_an_agent_that_only_reads_is_an_agent_error(way: str) -> None:
    reader, passage = Probe(**{f"{way}_body": replace(bytes.upper)}), Passage(way, [b"one"])
    middleware = guarded(passage.app, agent(way, reader, BUFFER))
    await passage.client.call(middleware)
    assert (passage.client.status, passage.client.body) == (503, b"Agent unavailable")


@each_way
async def test_a_mutation_for_the_other_direction_is_a_failure(way: str) -> None:
    other = BodyMutation(b"changed")
    answer = (
        AgentResponse.allow(response_body_mutation=other)
        if way == "request"
        else AgentResponse.allow(request_body_mutation=other)
    )
    passage = Passage(way, [b"one"])
    await passage.client.call(guarded(passage.app, agent(way, Probe(**{f"{way}_body": answer}), BUFFER, write=True)))
    assert (passage.client.status, passage.client.body) == (503, b"Agent unavailable")


@each_way
async def test_a_shadow_writer_changes_nothing(way: str) -> None:
    writer, passage = Probe(**{f"{way}_body": replace(bytes.upper)}), Passage(way, [b"one"], declared=True)
    assert await passage.past(agent(way, writer, STREAM, write=True, enforce=False)) == b"one"
    assert passage.length == b"3"


@each_way
async def test_a_writer_may_add_to_the_last_chunk_even_if_that_is_empty(way: str) -> None:
    writer = Probe(**{f"{way}_body": lambda event: replace(lambda data: data + b"!")(event) if event.is_last else None})
    passage = Passage(way, [b"one", b"two"], ends_empty=True)
    assert await passage.past(agent(way, writer, STREAM, write=True)) == b"onetwo!"


@each_way
async def test_each_writer_sees_what_the_one_before_it_made(way: str, probe: type[Probe]) -> None:
    first = probe(**{f"{way}_body": replace(lambda data: data.replace(b"a", b"b"))})
    second = probe(**{f"{way}_body": replace(lambda data: data.replace(b"b", b"c"))})
    reader = probe(**{f"{way}_body": None})
    out = await Passage(way, [b"aXa"]).past(
        agent(way, first, STREAM, write=True), agent(way, second, STREAM, write=True), agent(way, reader, STREAM)
    )
    assert out == b"cXc"
    assert second.chunks == [(0, b"bXb", True)]
    assert reader.chunks == [(0, b"cXc", True)]


# Mixed chains


@each_way
async def test_agents_of_all_modes_in_one_chain_each_see_the_body_in_their_own_way(
    way: str, probe: type[Probe]
) -> None:
    buffering, writing, mixed = (
        probe(**{f"{way}_body": None}),
        probe(**{f"{way}_body": replace(bytes.upper)}),
        probe(**{f"{way}_body": None}),
    )
    passage = Passage(way, [b"ab", b"cd", b"ef"])
    out = await passage.past(
        agent(way, mixed, HYBRID), agent(way, writing, STREAM, write=True), agent(way, buffering, BUFFER)
    )
    assert out == b"ABCDEF"
    assert mixed.chunks == [(0, b"abcd", False), (1, b"ef", True)]
    assert writing.chunks == [(0, b"abcd", False), (1, b"ef", True)]
    assert buffering.chunks == [(0, b"ABCDEF", True)]


@each_way
async def test_a_stream_writer_behind_a_buffering_reader_is_shown_everything_at_once(way: str) -> None:
    buffering, writing = Probe(**{f"{way}_body": None}), Probe(**{f"{way}_body": replace(bytes.upper)})
    out = await Passage(way, [b"ab", b"cd"], declared=True).past(
        agent(way, buffering, BUFFER), agent(way, writing, STREAM, write=True)
    )
    assert out == b"ABCD"
    assert writing.chunks == [(0, b"abcd", True)]


@each_way
async def test_a_buffering_agent_in_a_chain_holds_everything_back_until_it_has_judged(way: str) -> None:
    streaming = Probe(**{f"{way}_body": None})
    blocking = Probe(**{f"{way}_body": AgentResponse.block(403, "no")})
    passage = Passage(way, [b"ab", b"cd"])
    await passage.client.call(guarded(passage.app, agent(way, streaming, STREAM), agent(way, blocking, BUFFER)))
    assert (passage.client.status, passage.client.body) == (403, b"no")
    assert streaming.chunks == [(0, b"ab", False), (1, b"cd", True)]
    if way == "request":
        assert passage.app.calls == 0


@each_way
async def test_an_agent_behind_one_that_denies_is_not_asked(way: str) -> None:
    blocking, behind = Probe(**{f"{way}_body": AgentResponse.block()}), Probe(**{f"{way}_body": None})
    passage = Passage(way, [b"ab"])
    await passage.client.call(
        guarded(passage.app, agent(way, blocking, BUFFER, write=True), agent(way, behind, BUFFER, write=True))
    )
    assert passage.client.status == 403
    assert behind.heard == []


@each_way
async def test_a_body_that_a_writer_dropped_is_no_event_for_those_behind_it(way: str) -> None:
    dropping, behind = Probe(**{f"{way}_body": replace(lambda _: b"")}), Probe(**{f"{way}_body": AgentResponse.block()})
    passage = Passage(way, [b"ab", b"cd"])
    out = await passage.past(agent(way, dropping, STREAM, write=True), agent(way, behind, BUFFER))
    assert out == b""
    assert behind.heard == []


@each_way
async def test_the_declared_size_is_not_told_to_agents_behind_a_writer(way: str) -> None:
    writing, behind = Probe(**{f"{way}_body": replace(bytes.upper)}), Probe(**{f"{way}_body": None})
    await Passage(way, [b"ab", b"cd"], declared=True).past(
        agent(way, writing, STREAM, write=True), agent(way, behind, STREAM)
    )
    assert [_total_size(event) for event in writing.heard] == [4, 4]
    assert [_total_size(event) for event in behind.heard] == [None, 4]


@each_way
async def test_neighbours_that_only_read_are_asked_in_parallel(way: str) -> None:
    first, second = Held(), Held()
    passage = Passage(way, [b"ab"])
    middleware = guarded(
        passage.app,
        agent(way, SlowProbe(**{f"{way}_body": first}), STREAM),
        agent(way, SlowProbe(**{f"{way}_body": second}), STREAM),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(passage.client.call, middleware)
        await first.reached.wait()
        await second.reached.wait()
        second.gate.set()
        await settle()
        assert passage.out == b""
        first.gate.set()
    assert passage.out == b"ab"


@each_way
async def test_a_sibling_that_denies_first_ends_the_wait_for_those_after_it(way: str) -> None:
    hanging, passage = Held(), Passage(way, [b"ab"])
    middleware = guarded(
        passage.app,
        agent(way, SlowProbe(**{f"{way}_body": AgentResponse.block(403, "no")}), BUFFER),
        agent(way, SlowProbe(**{f"{way}_body": hanging}), BUFFER),
    )
    await passage.client.call(middleware)
    assert passage.client.status == 403
    assert hanging.cancelled == hanging.calls == 1
    assert_nothing_left(middleware.manager)


@each_way
async def test_buffering_ends_for_those_that_remain_when_an_agent_goes_over_its_limit(way: str) -> None:
    small, large = Probe(**{f"{way}_body": None}), Probe(**{f"{way}_body": None})
    limit: dict[str, Any] = {f"max_{way}_body_bytes": 3}
    passage = Passage(way, [b"ab", b"cd", b"ef"])
    out = await passage.past(
        agent(way, small, BUFFER, failure_mode=FailureMode.OPEN, **limit), agent(way, large, BUFFER)
    )
    assert out == b"abcdef"
    assert small.heard == []
    assert large.chunks == [(0, b"abcdef", True)]


@each_way
async def test_what_was_buffered_for_the_only_agent_goes_on_when_it_is_over_its_limit(way: str) -> None:
    small = Probe(**{f"{way}_body": None})
    limit: dict[str, Any] = {f"max_{way}_body_bytes": 3}
    passage = Passage(way, [b"ab", b"cd", b"ef"])
    await passage.past(agent(way, small, BUFFER, failure_mode=FailureMode.OPEN, **limit))
    assert passage.pieces == [b"abcd", b"ef"]


# Lengths and validators


VALIDATORS = [
    (b"etag", b'"1"'),
    (b"Digest", b"sha-256=x"),
    (b"content-digest", b"sha-256=:x:"),
    (b"repr-digest", b"sha-256=:x:"),
    (b"Content-MD5", b"x"),
    (b"accept-ranges", b"bytes"),
]
# Nobody is told to ask for parts of what an agent judges as a whole.
WHOLE_BODY_VALIDATORS = [pair for pair in VALIDATORS if pair[0] != b"accept-ranges"]


def _with_validators(mode: BodyMode, react: Callable[[Any], Answer] | None, **options: Any) -> tuple[Client, Any]:
    app = App(
        start(200, *VALIDATORS, (b"Content-Length", b"6"), (b"x-kept", b"1")), body(b"abc", more=True), body(b"def")
    )
    return Client(), guarded(app, agent("response", Probe(response_body=react), mode, **options))


async def test_a_response_changed_in_a_buffer_has_its_right_length_and_no_validators() -> None:
    client, app = _with_validators(BUFFER, replace(lambda _: b"changed!"), write=True)
    await client.call(app)
    assert client.body == b"changed!"
    assert client.headers == [(b"x-kept", b"1"), (b"content-length", b"8")]


async def test_a_response_changed_below_a_hybrid_threshold_has_its_right_length() -> None:
    client, app = _with_validators(BodyMode.hybrid(100), replace(lambda _: b"changed!"), write=True)
    await client.call(app)
    assert client.headers == [(b"x-kept", b"1"), (b"content-length", b"8")]


@pytest.mark.parametrize("mode", [STREAM, BodyMode.hybrid(2)], ids=lambda mode: mode.name)
@pytest.mark.parametrize("react", [None, replace(bytes.upper)], ids=["passed", "changed"])
async def test_a_response_that_a_writer_is_shown_as_it_is_sent_has_no_length_and_no_validators(
    mode: BodyMode, react: Callable[[Any], Answer] | None
) -> None:
    client, app = _with_validators(mode, react, write=True)
    await client.call(app)
    assert client.headers == [(b"x-kept", b"1")]


@pytest.mark.parametrize("react", [None, replace(lambda data: data)], ids=["no mutation", "same data"])
async def test_a_response_that_a_writer_left_alone_in_a_buffer_keeps_its_headers(
    react: Callable[[Any], Answer] | None,
) -> None:
    client, app = _with_validators(BUFFER, react, write=True)
    await client.call(app)
    assert client.headers == [*WHOLE_BODY_VALIDATORS, (b"Content-Length", b"6"), (b"x-kept", b"1")]


@each_mode
async def test_a_response_that_is_only_read_keeps_its_headers(mode: BodyMode) -> None:
    client, app = _with_validators(mode, None)
    await client.call(app)
    assert client.headers == [*WHOLE_BODY_VALIDATORS, (b"Content-Length", b"6"), (b"x-kept", b"1")]


async def test_a_changed_response_never_has_both_a_length_and_a_transfer_encoding() -> None:
    app = App(start(200, (b"transfer-encoding", b"chunked")), body(b"abc"))
    client = Client()
    writer = Probe(response_body=replace(bytes.upper))
    await client.call(guarded(app, agent("response", writer, BUFFER, write=True)))
    names = {name for name, _ in client.headers}
    assert not {b"transfer-encoding", b"content-length"} <= names


async def test_a_request_changed_in_a_buffer_has_its_right_length_and_no_validators() -> None:
    app, writer = App(), Probe(request_body=replace(lambda _: b"changed!"))
    client = Client("POST", headers=[(b"Content-MD5", b"x"), (b"digest", b"y"), (b"x-kept", b"1")], body=b"abc")
    await client.call(guarded(app, agent("request", writer, BUFFER, write=True)))
    assert app.headers == [(b"x-kept", b"1"), (b"content-length", b"8")]
    assert app.body == b"changed!"
    assert (b"content-length", b"3") in client.scope["headers"]


async def test_a_changed_request_without_a_length_is_not_given_one() -> None:
    app, writer = App(), Probe(request_body=replace(lambda _: b"changed!"))
    await Client("POST", body=[b"ab", b"c"]).call(guarded(app, agent("request", writer, BUFFER, write=True)))
    assert app.headers == [(b"transfer-encoding", b"chunked")]


async def test_a_changed_request_that_need_not_declare_its_body_is_not_given_a_length() -> None:
    app, writer = App(), Probe(request_body=replace(lambda _: b"changed!"))
    client = Client("POST", body=[b"abc"], http_version="2")
    client.scope["headers"] = [(b"x-kept", b"1")]
    await client.call(guarded(app, agent("request", writer, BUFFER, write=True)))
    assert app.headers == [(b"x-kept", b"1")]
    assert app.body == b"changed!"


async def test_a_request_that_a_writer_left_alone_in_a_buffer_keeps_its_headers() -> None:
    app, writer = App(), Probe(request_body=None)
    client = Client("POST", headers=[(b"digest", b"y")], body=b"abc")
    await client.call(guarded(app, agent("request", writer, BUFFER, write=True)))
    assert app.headers == [(b"digest", b"y"), (b"content-length", b"3")]


@pytest.mark.parametrize("mode", [STREAM, HYBRID], ids=lambda mode: mode.name)
async def test_a_request_that_a_writer_is_shown_while_the_app_reads_it_has_no_length(mode: BodyMode) -> None:
    app, writer = App(), Probe(request_body=replace(bytes.upper))
    client = Client("POST", body=[b"abcd", b"ef"])
    client.scope["headers"] = [(b"digest", b"y"), (b"content-length", b"6"), (b"x-kept", b"1")]
    await client.call(guarded(app, agent("request", writer, mode, write=True, request_length="unknown")))
    assert app.headers == [(b"x-kept", b"1")]
    assert app.body == b"ABCDEF"


@each_way
@pytest.mark.parametrize("first", [True, False], ids=["the first", "the second"])
async def test_a_body_that_one_of_two_writers_has_changed_has_its_right_length(way: str, first: bool) -> None:
    changing, idle = Probe(**{f"{way}_body": replace(lambda data: data + b"!")}), Probe(**{f"{way}_body": None})
    writers = [agent(way, changing, BUFFER, write=True), agent(way, idle, BUFFER, write=True)]
    passage = Passage(way, [b"ab", b"cd"], declared=True)
    assert await passage.past(*(writers if first else writers[::-1])) == b"abcd!"
    assert passage.length == b"5"


@each_way
async def test_a_streamed_body_that_is_only_read_keeps_its_length(way: str) -> None:
    passage = Passage(way, [b"ab", b"cd"], declared=True)
    await passage.past(agent(way, Probe(**{f"{way}_body": None}), STREAM))
    assert passage.length == b"4"


# Provisional answers


def needs_more(answer: AgentResponse | None = None, *, until: bytes = b"verdict") -> Callable[[Any], Answer]:
    """The reaction of an agent that denies provisionally until it sees ``until``, and then gives its ``answer``."""

    def react(event: Any) -> Answer:
        if until in event.data:
            return answer
        return AgentResponse.block(403, "undecided", needs_more=True)

    return react


@each_way
async def test_a_provisionally_denied_chunk_is_held_until_its_agent_allows_the_next(
    way: str, probe: type[Probe]
) -> None:
    passage = Passage(way, [b"one", b"two", b"verdict", b"four"])
    reader = probe(**{f"{way}_body": lambda e: None if e.data == b"four" else needs_more()(e)})
    await passage.past(agent(way, reader, STREAM))
    assert reader.chunks == [(0, b"one", False), (1, b"two", False), (2, b"verdict", False), (3, b"four", True)]
    assert passage.pieces == [b"onetwoverdict", b"four"]


async def test_nothing_of_a_provisionally_denied_response_is_sent_before_the_verdict() -> None:
    client, seen = Client(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for data in (b"one", b"verdict"):
            await send(body(data, more=True))
            seen.append(client.body)
        await send(body(b"end"))

    reader = Probe(response_body=lambda e: None if e.is_last else needs_more()(e))
    await client.call(guarded(app, agent("response", reader, STREAM)))
    assert seen == [b"", b"oneverdict"]


@each_way
async def test_a_provisional_denial_becomes_final_when_the_body_ends(way: str, probe: type[Probe]) -> None:
    passage = Passage(way, [b"one", b"two"])
    middleware = guarded(passage.app, agent(way, probe(**{f"{way}_body": needs_more()}), HYBRID))
    await passage.client.call(middleware)
    assert (passage.client.status, passage.client.body) == (403, b"undecided")
    if way == "request":
        assert passage.app.body == b""


@each_way
async def test_a_provisional_denial_can_turn_into_another_one(way: str) -> None:
    passage = Passage(way, [b"one-", b"verdict"])
    reader = Probe(**{f"{way}_body": needs_more(AgentResponse.block(451, "decided"))})
    await passage.client.call(guarded(passage.app, agent(way, reader, HYBRID)))
    assert (passage.client.status, passage.client.body) == (451, b"decided")


@each_way
@each_mode
async def test_a_provisional_allow_passes(way: str, mode: BodyMode) -> None:
    reader = Probe(**{f"{way}_body": AgentResponse.allow(needs_more=True)})
    passage = Passage(way, [b"one", b"two", b"three"])
    assert await passage.past(agent(way, reader, mode)) == b"onetwothree"
    if mode is STREAM:
        assert passage.pieces == [b"one", b"two", b"three"]


@each_way
async def test_a_provisional_answer_is_final_for_a_body_that_was_shown_as_a_whole(way: str) -> None:
    passage = Passage(way, [b"one", b"two"])
    await passage.client.call(guarded(passage.app, agent(way, Probe(**{f"{way}_body": needs_more()}), BUFFER)))
    assert passage.client.status == 403


@each_way
async def test_nobody_else_can_take_a_provisional_denial_back(way: str, probe: type[Probe]) -> None:
    passage = Passage(way, [b"verdict", b"two", b"three"])
    undecided = probe(**{f"{way}_body": needs_more(until=b"never")})
    allowing = probe(**{f"{way}_body": AgentResponse.allow()})
    await passage.client.call(
        guarded(
            passage.app,
            agent(way, undecided, HYBRID),
            agent(way, allowing, HYBRID, id="beside"),
            agent(way, allowing, STREAM, id="behind"),
        )
    )
    assert (passage.client.status, passage.client.body) == (403, b"undecided")


@each_way
async def test_the_denial_of_another_agent_needs_no_second_chunk(way: str) -> None:
    passage = Passage(way, [b"onetwo", b"three"])
    undecided = Probe(**{f"{way}_body": needs_more()})
    denying = Probe(**{f"{way}_body": AgentResponse.block(451, "denied")})
    await passage.client.call(guarded(passage.app, agent(way, undecided, HYBRID), agent(way, denying, HYBRID)))
    assert (passage.client.status, passage.client.body) == (451, b"denied")
    assert len(undecided.heard) == 1


@each_way
async def test_a_provisional_denial_holds_back_from_the_agents_behind_it_too(way: str) -> None:
    passage = Passage(way, [b"one", b"two", b"verdict"])
    first, second = Probe(**{f"{way}_body": needs_more()}), Probe(**{f"{way}_body": None})
    await passage.past(agent(way, first, STREAM, write=True), agent(way, second, STREAM))
    assert second.chunks == [(0, b"onetwoverdict", True)]


@each_way
async def test_a_writer_that_was_undecided_may_still_change_what_it_is_shown_next(way: str) -> None:
    def react(event: Any) -> Answer:
        if b"verdict" in event.data:
            return replace(bytes.upper)(event)
        return AgentResponse.block(403, needs_more=True)

    passage = Passage(way, [b"one", b"verdict"])
    assert await passage.past(agent(way, Probe(**{f"{way}_body": react}), STREAM, write=True)) == b"oneVERDICT"


@each_way
async def test_a_provisional_denial_of_a_fail_open_agent_that_then_fails_is_lifted(way: str) -> None:
    def react(event: Any) -> Answer:
        if event.chunk_index == 0:
            return AgentResponse.block(403, needs_more=True)
        raise ValueError

    passage = Passage(way, [b"one", b"two", b"three"])
    reader = Probe(**{f"{way}_body": react})
    assert await passage.past(agent(way, reader, STREAM, failure_mode=FailureMode.OPEN)) == b"onetwothree"


@each_way
async def test_a_provisional_denial_of_a_shadow_agent_holds_nothing_back(way: str) -> None:
    passage = Passage(way, [b"one", b"two"])
    reader = Probe(**{f"{way}_body": needs_more()})
    await passage.past(agent(way, reader, STREAM, enforce=False))
    assert passage.pieces == [b"one", b"two"]


@each_way
async def test_an_undecided_fail_closed_agent_can_make_the_middleware_hold_only_so_much(way: str) -> None:
    piece = b"x" * (MIB // 2)
    passage = Passage(way, [piece, piece, b"y", b"z"])
    reader = Probe(**{f"{way}_body": needs_more()})
    middleware = guarded(passage.app, agent(way, reader, HYBRID, id="a"))
    await passage.client.call(middleware)
    assert passage.client.status == (413 if way == "request" else 500)
    assert len(reader.heard) == 3
    assert passage.out == (b"" if way == "request" else b"Response too large for security inspection")
    assert middleware.manager.metrics["a"].outcomes[f"{way}_too_large"] == 1


@each_way
async def test_what_is_held_for_an_undecided_agent_is_counted_anew_each_time(way: str) -> None:
    piece = b"x" * (MIB // 2 + 1)
    passage = Passage(way, [piece, b"verdict", piece, b"verdict"])
    out = await passage.past(agent(way, Probe(**{f"{way}_body": needs_more()}), STREAM))
    assert out == piece + b"verdict" + piece + b"verdict"


@each_way
async def test_an_undecided_fail_open_agent_is_left_out_once_too_much_is_held_for_it(way: str) -> None:
    piece = b"x" * (MIB // 2)
    passage = Passage(way, [piece, piece, b"y", b"z"])
    undecided, other = Probe(**{f"{way}_body": needs_more()}), Probe(**{f"{way}_body": None})
    out = await passage.past(agent(way, undecided, STREAM, failure_mode=FailureMode.OPEN), agent(way, other, STREAM))
    assert out == piece * 2 + b"yz"
    assert len(undecided.heard) == 3
    assert [data for _, data, _ in other.chunks] == [piece, piece, b"y", b"z"]


@each_way
async def test_an_undecided_agent_with_a_larger_limit_of_its_own_is_held_back_for_up_to_that(way: str) -> None:
    piece = b"x" * MIB
    passage = Passage(way, [piece, piece, b"verdict"])
    limit: dict[str, Any] = {f"max_{way}_body_bytes": 3 * MIB}
    out = await passage.past(agent(way, Probe(**{f"{way}_body": needs_more()}), STREAM, **limit))
    assert out == piece * 2 + b"verdict"


@each_way
async def test_of_two_undecided_agents_the_one_that_fails_closed_decides_when_too_much_is_held(way: str) -> None:
    piece = b"x" * (MIB // 2)
    passage = Passage(way, [piece, piece, b"y", b"z"])
    lax, strict = Probe(**{f"{way}_body": needs_more()}), Probe(**{f"{way}_body": needs_more()})
    middleware = guarded(
        passage.app,
        agent(way, lax, HYBRID, failure_mode=FailureMode.OPEN, id="lax"),
        agent(way, strict, HYBRID, id="strict"),
    )
    await passage.client.call(middleware)
    context: ExchangeState = passage.client.scope["state"]["agents"]
    assert context.decision.decided_by == "strict"


@each_way
async def test_an_undecided_agent_that_goes_over_its_own_limit_loses_its_say(way: str) -> None:
    passage = Passage(way, [b"ab", b"cd", b"ef"])
    limit: dict[str, Any] = {f"max_{way}_body_bytes": 3}
    undecided, other = Probe(**{f"{way}_body": needs_more()}), Probe(**{f"{way}_body": None})
    out = await passage.past(
        agent(way, undecided, STREAM, failure_mode=FailureMode.OPEN, **limit), agent(way, other, STREAM)
    )
    assert out == b"abcdef"
    assert [data for _, data, _ in other.chunks] == [b"ab", b"cd", b"ef"]


# However a body is cut

_chunkings = st.lists(st.binary(max_size=6), min_size=1, max_size=8)
_modes = st.sampled_from([BUFFER, STREAM, BodyMode.hybrid(1), BodyMode.hybrid(5), BodyMode.hybrid(1000)])
_kinds = st.sampled_from([Probe, SlowProbe])


@each_way
@reproducible
@given(
    pieces=_chunkings,
    chain=st.lists(st.tuples(_modes, _kinds, st.booleans()), min_size=1, max_size=3),
    declared=st.booleans(),
)
async def test_a_chain_that_allows_everything_delivers_the_same_bytes(
    way: str, pieces: list[bytes], chain: list[tuple[BodyMode, type[Probe], bool]], declared: bool
) -> None:
    whole = b"".join(pieces)
    probes = [kind(**{f"{way}_body": None}) for _, kind, _ in chain]
    passage = Passage(way, pieces, declared=declared)
    out = await passage.past(
        *(
            agent(way, probe, mode, write=write, id=f"agent-{index}")
            for index, (probe, (mode, _, write)) in enumerate(zip(probes, chain, strict=True))
        )
    )
    assert out == whole
    assert passage.length in (None, b"%d" % len(whole))
    for probe in probes:
        assert b"".join(data for _, data, _ in probe.chunks) == whole
        assert [index for index, _, _ in probe.chunks] == list(range(len(probe.chunks)))
        assert [last for _, _, last in probe.chunks] == [False] * (len(probe.chunks) - 1) + [True] * bool(whole)
        for event in probe.heard:
            before = [data for index, data, _ in probe.chunks if index <= _index(event)]
            assert _running_total(event) == len(b"".join(before))
            assert _total_size(event) in (None, len(whole))


class Redactor(Probe):
    """Replaces ``secret`` by ``******`` in a stream, holding back what could be the beginning of it."""

    def __init__(self, way: str) -> None:
        super().__init__(**{f"{way}_body": self._redact})
        self._tail = b""

    def _redact(self, event: Any) -> Answer:
        data = (self._tail + event.data).replace(b"secret", b"******")
        self._tail = b""
        if not event.is_last:
            for size in range(5, 0, -1):
                if data.endswith(b"secret"[:size]):
                    data, self._tail = data[:-size], data[-size:]
                    break
        return replace(lambda _: data)(event)


@each_way
@reproducible
@given(
    text=st.lists(st.sampled_from([b"secret", b"sec", b"ret", b"s", b"x"]), min_size=1, max_size=8).map(b"".join),
    cuts=st.lists(st.integers(0, 48), max_size=6),
    mode=_modes,
    readers=st.lists(_modes, max_size=2),
    ends_empty=st.booleans(),
)
async def test_what_a_redactor_lets_through_does_not_depend_on_how_the_body_was_cut(
    way: str, text: bytes, cuts: list[int], mode: BodyMode, readers: list[BodyMode], ends_empty: bool
) -> None:
    out = await Passage(way, _cut(text, cuts), ends_empty=ends_empty).past(
        agent(way, Redactor(way), mode, write=True, id="redactor"),
        *(
            agent(way, Probe(**{f"{way}_body": None}), reader, id=f"reader-{index}")
            for index, reader in enumerate(readers)
        ),
    )
    assert out == text.replace(b"secret", b"******")


@each_way
@reproducible
@given(pieces=_chunkings, allowing=_modes, denying=_modes, order=st.booleans())
async def test_a_body_with_something_forbidden_never_passes_as_a_whole(
    way: str, pieces: list[bytes], allowing: BodyMode, denying: BodyMode, order: bool
) -> None:
    seen = b""

    def deny(event: Any) -> Answer:
        nonlocal seen
        seen += event.data
        return AgentResponse.block() if b"\x00" in seen else None

    pieces = [*pieces, b"\x00after"]
    agents = [
        agent(way, Probe(**{f"{way}_body": None}), allowing, id="allowing"),
        agent(way, Probe(**{f"{way}_body": deny}), denying, id="denying"),
    ]
    inspection = _inspection(AgentManager(agents if order else agents[::-1]), way)
    out = b""
    for index, piece in enumerate(pieces):
        result = await inspection.feed(piece, index == len(pieces) - 1)
        if isinstance(result, AgentDecision):
            break
        out += result
    assert isinstance(result, AgentDecision)
    assert isinstance(result.decision, Block)
    assert b"\x00" not in out
    assert b"".join(pieces).startswith(out)


# The parts


def _inspection(manager: AgentManager, way: str, **options: Any) -> BodyInspection:
    event_type = EventType.REQUEST_BODY_CHUNK if way == "request" else EventType.RESPONSE_BODY_CHUNK
    registry = registry_of(manager)
    resolved_route = registry.resolved_route(None)
    context = ExchangeState(registry, resolved_route, "id", None)
    return BodyInspection(context, event_type, agents=resolved_route.agents_for(event_type), **options)


@each_way
async def test_judging_can_suspend_only_if_an_agent_can(way: str) -> None:
    prompt = agent(way, Probe(**{f"{way}_body": None}), BUFFER, id="prompt")
    slow = agent(way, SlowProbe(**{f"{way}_body": None}), BUFFER, id="slow")
    assert not _inspection(AgentManager([prompt]), way).may_suspend
    assert _inspection(AgentManager([prompt, slow]), way).may_suspend


@each_way
async def test_a_body_may_change_only_if_an_enforced_agent_may_write(way: str) -> None:
    reader = agent(way, Probe(**{f"{way}_body": None}), BUFFER, id="reader")
    shadow = agent(way, Probe(**{f"{way}_body": None}), BUFFER, write=True, enforce=False, id="shadow")
    writer = agent(way, Probe(**{f"{way}_body": None}), BUFFER, write=True, id="writer")
    assert not _inspection(AgentManager([reader, shadow]), way).alters(ended=False)
    assert _inspection(AgentManager([reader, shadow, writer]), way).alters(ended=False)


@each_way
@each_mode
async def test_a_body_in_units_is_streamed_whatever_the_mode(way: str, mode: BodyMode) -> None:
    reader = Probe(**{f"{way}_body": None})
    inspection = _inspection(AgentManager([agent(way, reader, mode)]), way, cutter=uncut)
    assert not inspection.holding
    assert await inspection.feed(b"1", False) == b"1"
    assert await inspection.feed(b"2", True) == b"2"
    assert reader.chunks == [(0, b"1", False), (1, b"2", True)]


@each_way
async def test_a_body_streamed_against_the_mode_of_its_agent_has_no_default_limit(way: str) -> None:
    reader = Probe(**{f"{way}_body": None})
    inspection = _inspection(AgentManager([agent(way, reader, BUFFER)]), way, cutter=uncut)
    piece = b"x" * MIB
    assert await inspection.feed(piece, False) == piece
    assert await inspection.feed(piece, True) == piece


@each_way
async def test_admission_without_a_declared_length_is_granted(way: str) -> None:
    assert _inspection(AgentManager([agent(way, Probe(**{f"{way}_body": None}), BUFFER)]), way).admit() is None


def _running_total(event: Any) -> int:
    total: int = event.bytes_received if event.event_type is EventType.REQUEST_BODY_CHUNK else event.bytes_sent
    return total


def _index(event: Any) -> int:
    index: int = event.chunk_index
    return index


def _total_size(event: Any) -> int | None:
    size: int | None = event.total_size
    return size


def _cut(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]
