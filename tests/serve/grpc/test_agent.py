"""An agent that is served over gRPC, asked by a client that follows the published numbers."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import grpc
import pytest

from asgi_agents import (
    Agent,
    AgentResponse,
    AuditMetadata,
    BodyMutation,
    Challenge,
    ConfigureEvent,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)
from asgi_agents.protocol.grpc.answers import NO_VERDICT
from asgi_agents.serve import framings
from asgi_agents.serve import stream as stream_module
from asgi_agents.serve.grpc.agent import AgentService
from tests.support.wire_fields import Fields, message, read

from .client import RawStream, chunk, head, serving

pytestmark = pytest.mark.anyio


class Waf(Agent):
    """Answers heads as it is told; notes what it hears."""

    def __init__(self, answer: Callable[[RequestHeadersEvent], Awaitable[AgentResponse | None]] | None = None) -> None:
        self._answer = answer
        self.heard: list[Any] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.heard.append(event)
        return None if self._answer is None else await self._answer(event)


def always(answer: AgentResponse) -> Waf:
    async def say(event: RequestHeadersEvent) -> AgentResponse:
        return answer

    return Waf(say)


def no_verdict(answer: Fields) -> str:
    """Why there is none. To who does not know it, it is a block."""
    assert read(answer[3][0])[1] == [503]
    custom = {str(read(entry)[1][0], "utf-8"): str(read(entry)[2][0], "utf-8") for entry in read(answer[12][0])[5]}
    return custom[NO_VERDICT]


async def test_the_handshake_says_what_the_agent_is_and_an_event_is_read_by_its_numbers() -> None:
    async with serving(waf := Waf(), max_concurrency=7) as served:
        stream = served.stream()
        said = await stream.introduce()
        stream.send(head("c-1", accept="a", Cookie="b"))
        answer = await stream.answer()

    assert (said[1], said[3]) == ([2], [1])
    capabilities = read(said[2][0])
    assert (capabilities[1], capabilities[2], capabilities[3]) == ([2], [b"Waf"], [b"Waf"])
    assert capabilities[5] == [b"\x01"]
    features, limits = read(capabilities[6][0]), read(capabilities[7][0])
    assert (features[6], features[7], features[9]) == ([7], [1], [1])
    assert limits[2] == [7]
    assert answer == {1: [b"c-1"], 2: [b""]}
    [event] = waf.heard
    assert (event.method, event.uri, event.header("cookie")) == ("GET", "/a?b", "b")
    metadata = event.metadata
    assert (metadata.correlation_id, metadata.client_ip, metadata.client_port) == ("c-1", "192.0.2.1", 7)
    assert (metadata.timestamp, metadata.protocol) == ("2026-01-02T03:04:05.678+00:00", "HTTP/1.1")


async def test_answers_have_the_published_numbers() -> None:
    audit = AuditMetadata(tags=["t"], rule_ids=["r"], confidence=0.5, reason_codes=["c"], custom={"k": "v", "n": [1]})
    answers = {
        "block": AgentResponse.block(451, "no", headers={"x-a": "1"}, audit=audit),
        "redirect": AgentResponse.redirect("https://a.example/", 307),
        "challenge": AgentResponse(decision=Challenge("bearer", {"realm": "a"})),
        "ops": AgentResponse.allow(
            request_headers=[HeaderOp.set("x-a", "1"), HeaderOp.add("x-b", "2"), HeaderOp.remove("x-c")],
            response_headers=[HeaderOp.set("x-d", "3", always=True)],
            skip_body=True,
        ),
    }

    async def say(event: RequestHeadersEvent) -> AgentResponse:
        return answers[event.correlation_id]

    async with serving(Waf(say)) as served:
        stream = await served.greeted()
        found = {}
        for name in answers:
            stream.send(head(name))
            found[name] = await stream.answer()

    decision = read(found["block"][3][0])
    assert (decision[1], decision[2], read(decision[3][0])) == ([451], [b"no"], {1: [b"x-a"], 2: [b"1"]})
    said = read(found["block"][12][0])
    assert (said[1], said[2], said[3], said[4]) == ([b"t"], [b"r"], [0.5], [b"c"])
    assert sorted(tuple(read(entry)[2]) for entry in said[5]) == [(b"[1]",), (b"v",)]
    assert read(found["redirect"][4][0]) == {1: [b"https://a.example/"], 2: [307]}
    assert read(found["challenge"][5][0]) == {1: [b"bearer"], 2: [message((1, "realm"), (2, "a"))]}
    ops = found["ops"]
    assert [read(op) for op in ops[10]] == [
        {1: [message((1, "x-a"), (2, "1"))]},
        {2: [message((1, "x-b"), (2, "2"))]},
        {3: [b"x-c"]},
    ]
    assert ops[11] == [message((1, message((1, "x-d"), (2, "3"))))]


class Bodies(Agent):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        self.heard.append(event)
        return None if event.is_last else AgentResponse.allow(needs_more=True)

    async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
        self.heard.append(event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
        self.heard.append(event)


async def test_bodies_and_responses_are_read_by_their_numbers() -> None:
    async with serving(bodies := Bodies()) as served:
        stream = await served.greeted()
        stream.send(message((3, message((1, "c"), (2, 1), (3, b"\x00"), (5, 9), (6, 4)))))
        assert (await stream.answer())[14] == [1]
        stream.send(chunk(data=b"ab"), message((4, message((1, "c"), (2, 204), (3, message((1, "X-A"), (2, "1")))))))
        stream.send(chunk(kind=5))
        assert [await stream.answer() for _ in range(3)] == [{1: [b"c"], 2: [b""]}] * 3

    first, last, response, body = bodies.heard
    assert (first.data, first.is_last, first.total_size) == (b"\0", False, 9)
    assert (first.chunk_index, first.bytes_received) == (1, 4)
    assert (last.data, last.is_last, last.total_size) == (b"ab", True, None)
    assert (response.status, response.header("x-a")) == (204, "1")
    assert (body.data, body.bytes_sent) == (b"x", 1)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (AgentResponse.allow(request_body_mutation=BodyMutation(b"x")), "request_body_mutation"),
        (AgentResponse.allow(response_body_mutation=BodyMutation(b"")), "response_body_mutation"),
        (AgentResponse.allow(routing_metadata={"pool": "b"}), "routing_metadata"),
        (AgentResponse.websocket_drop(), "websocket_decision"),
        (AgentResponse.websocket_close(1008, "no"), "websocket_decision"),
    ],
)
async def test_an_answer_that_cant_be_said_is_a_failure_and_never_an_allow(
    given: AgentResponse, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(always(given)) as served:
        stream = await served.greeted()
        stream.send(head())
        assert no_verdict(await stream.answer()) == "the agent's answer is not allowed by the protocol"
    assert f"{field}: gRPC has no message for it" in caplog.text


async def test_a_mutation_that_changes_nothing_can_be_said() -> None:
    async with serving(always(AgentResponse.allow(request_body_mutation=BodyMutation(None)))) as served:
        stream = await served.greeted()
        stream.send(head())
        assert (await stream.answer())[2] == [b""]


async def test_an_agent_that_raises_fails_that_call_alone() -> None:
    async def fail(event: RequestHeadersEvent) -> None:
        if event.correlation_id == "bad":
            raise RuntimeError("the password is hunter2")

    async with serving(Waf(fail)) as served:
        stream = await served.greeted()
        stream.send(head("bad"), head("good"))
        answers = {answer[1][0]: answer for answer in [await stream.answer(), await stream.answer()]}
        assert no_verdict(answers[b"bad"]) == "agent raised RuntimeError"
        assert answers[b"good"] == {1: [b"good"], 2: [b""]}


class Frames(Agent):
    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        return AgentResponse.websocket_drop() if event.data == b"bad" else None

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        return GuardrailResponse(detected=False)

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        pass


async def test_clients_are_not_told_of_events_whose_answers_cant_be_said_and_what_they_ask_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Frames()) as served:
        stream = served.stream()
        assert read((await stream.introduce())[2][0])[5] == [b"\x01"]
        for data in (b"good", b"bad"):
            stream.send(message((6, message((1, "c"), (2, 1), (3, 2), (4, data)))))
        assert (await stream.answer())[2] == [b""]
        assert no_verdict(await stream.answer()) == "the agent's answer is not allowed by the protocol"
        stream.send(message((7, message((1, "g"), (2, "text"), (3, 1)))))
        assert no_verdict(await stream.answer()) == "the event is malformed"
        stream.send(message((6, message((1, "c"), (3, 9)))))
        assert no_verdict(await stream.answer()) == "the event is malformed"
    assert "clients are not told that it supports guardrail_inspect, websocket_frame" in caplog.text


class Slow(Waf):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.go: dict[str, anyio.Event] = {}
        self.cancelled: list[str] = []

    def has_begun(self, number: int) -> bool:
        return len(self.go) > number

    async def _wait(self, event: RequestHeadersEvent) -> AgentResponse | None:
        go = self.go[event.uri + event.correlation_id] = anyio.Event()
        try:
            await go.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(event.correlation_id)
            raise
        return None


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - it may be a condition on anything
            await anyio.sleep(0.002)


async def test_requests_are_answered_as_they_finish() -> None:
    async with serving(slow := Slow()) as served:
        stream = await served.greeted()
        stream.send(head("a"), head("b"))
        await until(lambda: len(slow.go) == 2)
        slow.go["/a?bb"].set()
        assert (await stream.answer())[1] == [b"b"]
        slow.go["/a?ba"].set()
        assert (await stream.answer())[1] == [b"a"]


async def test_a_cancelled_call_ends_its_hook_and_still_has_an_answer() -> None:
    async with serving(slow := Slow()) as served:
        stream = await served.greeted()
        stream.send(head("a"))
        await until(lambda: slow.go)
        stream.send(message((9, message((1, "a"), (2, 2), (3, 5)))))
        assert no_verdict(await stream.answer()) == "cancelled"
        assert slow.cancelled == ["a"]


async def test_hooks_end_with_their_stream() -> None:
    async with serving(slow := Slow()) as served:
        stream = await served.greeted()
        stream.send(head("a"))
        await until(lambda: slow.go)
        stream.cancel()
        await until(lambda: slow.cancelled == ["a"])


async def test_a_client_that_sends_no_more_still_has_what_it_is_owed() -> None:
    async with serving(slow := Slow()) as served:
        stream = await served.greeted()
        stream.send(head("a"), head("b"))
        await until(lambda: len(slow.go) == 2)
        stream.end()
        await anyio.sleep(0.02)
        slow.go["/a?ba"].set()
        assert (await stream.answer())[1] == [b"a"]
        slow.go["/a?bb"].set()
        assert (await stream.answer())[1] == [b"b"]
        assert await stream.next() is None


async def test_hooks_end_where_a_client_that_sends_no_more_goes_away() -> None:
    async with serving(slow := Slow()) as served:
        stream = await served.greeted()
        stream.send(head("a"))
        await until(lambda: slow.go)
        stream.end()
        await anyio.sleep(0.02)
        stream.cancel()
        await until(lambda: slow.cancelled == ["a"])


async def test_events_may_come_before_the_handshake_is_answered() -> None:
    async with serving(agent := Configured()) as served:
        for _ in range(3):
            stream = served.stream()
            stream.send(handshake('{"a":1}'), head("a"), head("b"))
            stream.end()
            assert [(await stream.message())[0] for _ in range(2)] == [1, 3]
            assert {(await stream.answer())[1][0] for _ in range(2)} == {b"a", b"b"}
            assert await stream.next() is None
    assert len(agent.heard) == 6


async def test_a_client_that_ends_at_once_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Waf()) as served:
        stream = served.stream()
        stream.end()
        assert await stream.next() is None
        stream = await served.greeted()
        stream.end()
        assert await stream.next() is None
    assert caplog.records == []


async def test_no_more_hooks_are_at_work_than_may_be() -> None:
    async with serving(slow := Slow(), max_concurrency=2) as served:
        streams = [await served.greeted() for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.send(*(head(f"{number}-{each}") for each in range(3)))
        await until(lambda: len(slow.go) == 2)
        await anyio.sleep(0.05)
        assert len(slow.go) == 2
        for released in range(6):
            await until(partial(slow.has_begun, released))
            list(slow.go.values())[released].set()
        for stream in streams:
            assert len([await stream.answer() for _ in range(3)]) == 3


async def test_a_ping_is_answered() -> None:
    async with serving(Waf()) as served:
        stream = await served.greeted()
        stream.send(message((11, message((1, 5), (2, 6)))))
        kind, pong = await stream.message()
    assert (kind, pong[1], pong[2]) == (7, [5], [6])


@pytest.mark.parametrize("first", [head(), b"\xff", b"", message((11, message((1, 1))))])
async def test_a_stream_begins_with_a_handshake(first: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(waf := Waf()) as served:
        stream = served.stream()
        stream.send(first)
        assert await stream.next() is grpc.StatusCode.ABORTED
        assert waf.heard == []


async def test_a_client_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framings, "HANDSHAKE_TIMEOUT", 0.02)
    async with serving(Waf()) as served:
        stream = served.stream()
        assert await stream.next() is grpc.StatusCode.ABORTED


async def test_a_client_of_another_version_is_refused() -> None:
    async with serving(Waf()) as served:
        stream = served.stream()
        stream.send(message((1, message((1, b"\x01"), (2, "old")))))
        kind, fields = await stream.message()
        assert (kind, fields.get(3), fields[4]) == (1, None, [b"version 2 is supported, and none of [1]"])
        assert await stream.next() is None


async def test_what_a_later_version_says_is_ignored() -> None:
    async with serving(Waf()) as served:
        stream = await served.greeted()
        stream.send(message((99, b"new")), message((10, message((1, "{}")))), head())
        assert (await stream.answer())[2] == [b""]


async def test_a_body_that_is_too_large_is_refused() -> None:
    async with serving(AgentService(Bodies(), max_body_size=3)) as served:
        stream = await served.greeted()
        stream.send(chunk(data=b"abcd"), chunk(data=b"abc"))
        assert no_verdict(await stream.answer()) == "the body is larger than max_body_size, 3 bytes"
        assert (await stream.answer())[2] == [b""]


async def test_a_message_that_is_too_long_ends_its_stream_and_no_other() -> None:
    async with serving(Bodies(), max_event_bytes=1000) as served:
        channel = served.channel()
        good, bad = RawStream(channel), RawStream(channel)
        await good.introduce()
        await bad.introduce()
        bad.send(chunk(data=bytes(2000)))
        assert await bad.next() is grpc.StatusCode.RESOURCE_EXHAUSTED
        good.send(chunk())
        assert (await good.answer())[2] == [b""]


# Configurations


class Configured(Waf):
    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        self.given.append(event.config)
        if event.config == "raise":
            raise RuntimeError
        return AgentResponse.block(400, "no such rule") if event.config == {"bad": True} else None


def handshake(config: str) -> bytes:
    return message((1, message((1, b"\x02"), (2, "p"), (4, config))))


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ('{"bad":true}', "it refuses its configuration: no such rule"),
        ('"raise"', "agent raised RuntimeError"),
        ("{", "config_json: not JSON"),
    ],
)
async def test_a_configuration_that_the_agent_does_not_take_is_a_refused_handshake(config: str, error: str) -> None:
    async with serving(Configured()) as served:
        stream = served.stream()
        stream.send(handshake(config))
        kind, fields = await stream.message()
        assert (kind, fields.get(3)) == (1, None)
        assert str(fields[4][0], "utf-8").startswith(error)
        assert await stream.next() is None


async def test_a_configuration_is_handed_over_once_however_many_streams_bring_it() -> None:
    async with serving(agent := Configured()) as served:
        for config in ('{"a":1}', '{"a":1}', '{"a":2}', '{"a":1}', "{}", "", '{"bad":true}', '{"a":1}'):
            stream = served.stream()
            stream.send(handshake(config))
            assert (await stream.message())[0] == 1
    assert agent.given == [{"a": 1}, {"a": 2}, {"a": 1}, {"bad": True}, {"a": 1}]


class Loading(Agent):
    """Takes for ever to take a configuration whose name begins with "slow"."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.taken: list[str] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        pass

    async def on_configure(self, event: ConfigureEvent) -> None:
        name = str(event.config)[:6]
        self.begun.append(name)
        if name.startswith("slow"):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                try:
                    await anyio.sleep_forever()
                finally:
                    if name == "slow-r":
                        raise RuntimeError("what it does when it is interrupted fails")
        self.taken.append(name)


@pytest.mark.parametrize("leave", [RawStream.cancel, RawStream.end], ids=["cancels", "half-closes, and cancels"])
@pytest.mark.parametrize("name", ["slow", "slow-r"])
async def test_a_configuration_is_given_up_when_its_client_leaves(
    name: str, leave: Callable[[RawStream], None]
) -> None:
    """Also those that wait for another: none of them is applied later, or in the way of another client's."""
    service = AgentService(agent := Loading())
    async with serving(service) as served:
        assert service._service is not None
        budget = service._service.budget
        for _ in range(2):
            streams = [served.stream() for _ in range(3)]
            streams[0].send(handshake(f'"{name}"'))
            await until(lambda: agent.begun == [name])
            for stream in streams[1:]:
                stream.send(handshake('"left!' + "x" * 100_000 + '"'))
            # What waits is counted.
            await until(lambda: budget.total > 200_000)
            for stream in streams[1:]:
                leave(stream)
                stream.cancel()
            await until(lambda: budget.total < 100_000)
            leave(streams[0])
            streams[0].cancel()
            await until(lambda: budget.total == 0)
            agent.begun.clear()
        stream = served.stream()
        stream.send(handshake('"quick"'))
        assert (await stream.message())[1].get(3) == [1]
    assert agent.taken == ["quick"]


async def test_a_configuration_that_was_interrupted_leaves_none_behind_that_counts() -> None:
    """What the agent has then is for it to say: it is asked again, also about the one that it had before."""
    async with serving(agent := Loading()) as served:
        for name in ("a", "slow", "a"):
            stream = served.stream()
            stream.send(handshake(f'"{name}"'))
            if name == "a":
                assert (await stream.message())[1].get(3) == [1]
            else:
                await until(lambda: agent.begun[-1] == "slow")
                stream.cancel()
    assert agent.taken == ["a", "a"]


async def test_what_comes_while_a_configuration_is_taken_is_held_within_bounds() -> None:
    service = AgentService(agent := Loading(), max_held_bytes=1024 * 1024)
    async with serving(service) as served:
        assert service._service is not None
        budget = service._service.budget
        stream = served.stream()
        stream.send(handshake('"slow"'), *[chunk(data=b"x" * 50_000)] * 100)
        await until(lambda: agent.begun and budget.total >= budget.share)
        await anyio.sleep(0.1)
        # No more is read than what was on its way between two event loops.
        assert budget.total < 3 * 1024 * 1024
        stream.cancel()
        await until(lambda: budget.total == 0)


# The end


async def test_clients_are_told_that_it_drains_and_what_is_under_way_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_module, "QUIET", 0.2)
    async with serving(slow := Slow()) as served:
        stream = await served.greeted()
        stream.send(head("a"))
        await until(lambda: slow.go)
        served.shutdown.set()
        kind, health = await stream.message()
        assert (kind, health[2]) == (3, [3])
        # It has begun, or was sent before the client knew.
        stream.send(head("b"))
        await until(lambda: len(slow.go) == 2)
        for go in slow.go.values():
            go.set()
        assert {(await stream.answer())[1][0] for _ in range(2)} == {b"a", b"b"}
        assert await stream.next() is None


async def test_what_takes_longer_than_the_time_for_draining_is_ended() -> None:
    async with serving(slow := Slow(), drain_timeout=0.05) as served:
        stream = await served.greeted()
        stream.send(head("a"))
        await until(lambda: slow.go)
        served.shutdown.set()
        assert (await stream.message())[0] == 3
        await until(lambda: slow.cancelled == ["a"])
        # In order, or broken off by the server's library.
        assert not isinstance(await stream.next(), tuple)


@pytest.mark.slow
async def test_the_time_for_draining_may_end_in_any_moment_of_the_end_of_calls() -> None:
    """Two ends of a server of gRPC's library at a time have crashed the process, one time in twenty."""
    for _ in range(60):
        async with serving(slow := Slow(), drain_timeout=0.05) as served:
            stream = await served.greeted()
            stream.send(head("a"))
            await until(lambda slow=slow: slow.go)  # type: ignore[misc]
            served.shutdown.set()
            await until(lambda slow=slow: slow.cancelled == ["a"])  # type: ignore[misc]


async def test_an_agent_that_hears_no_event_that_can_be_carried_names_none() -> None:
    class Only(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None: ...

    async with serving(Only()) as served:
        assert 5 not in read((await served.stream().introduce())[2][0])
