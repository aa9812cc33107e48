"""Agents served as external processors, with the messages that Envoy sends, in every mode."""

import json
import logging
import re
from collections.abc import Callable
from typing import Any, ClassVar

import anyio
import pytest
from opentelemetry.trace import get_current_span

from asgi_agents import (
    Agent,
    AgentError,
    AgentResponse,
    AuditMetadata,
    BodyMutation,
    ConfigurationError,
    Event,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)
from asgi_agents.guardrails import Block, Decision, Redact, TextGuardrail, Window
from asgi_agents.observability.correlation import current_correlation_id
from asgi_agents.serve.__main__ import main
from asgi_agents.serve.grpc.ext_proc import ExtProcService
from asgi_agents.serve.grpc.server import serve_grpc
from asgi_agents.transports.grpc.channel import open_channel
from asgi_agents.transports.grpc.ext_proc_messages import AUDIT, ROUTING, ProcessingMode, Side, plain
from tests.serve.grpc.proxy import Proxy, changes, serving, settings_of

REQUEST, RESPONSE = Side.REQUEST, Side.RESPONSE
HOLDING = ("BUFFERED", "BUFFERED_PARTIAL")


class Changes(Agent):
    """Has something to say about everything."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.completed = anyio.Event()

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        self.seen.append(event)
        return AgentResponse.allow(
            request_headers=[HeaderOp.set("x-user", "alice"), HeaderOp.remove("cookie")],
            response_headers=[HeaderOp.add("x-early", "1")],
            routing_metadata={"tier": "gold"},
            audit=AuditMetadata(rule_ids=["r1"]),
        )

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        self.seen.append(event)
        return AgentResponse.allow(request_body_mutation=BodyMutation(event.data.upper()))

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse:
        self.seen.append(event)
        return AgentResponse.allow(response_headers=[HeaderOp.set("x-seen", "yes")])

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse:
        self.seen.append(event)
        return AgentResponse.allow(response_body_mutation=BodyMutation(event.data[::-1]))

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        self.seen.append(event)
        self.completed.set()


class Heads(Agent):
    """Answers to heads with what it is made with."""

    def __init__(self, answer: AgentResponse | Exception | None = None) -> None:
        self.answer = answer

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Emails(TextGuardrail):
    hold = 40

    async def check(self, window: Window) -> list[Decision]:
        if "FORBIDDEN" in window.text:
            return [Block("forbidden")]
        found = re.compile(r"\b\w{1,20}@\w{1,12}\.\w{1,6}").finditer(window.text, window.fresh)
        return [Redact(match.start(), match.end(), "[email]") for match in found]


# Every mode


async def test_all_of_an_exchange_with_buffered_bodies() -> None:
    agent = Changes()
    async with serving(agent) as channel:
        proxy = Proxy(channel, "BUFFERED")
        await proxy.request({"cookie": "a=b", "content-length": "3"}, attributes={"source.address": "192.0.2.1:7"})
        answer = await proxy.receive()
        # The body is needed first: it may change what the head says.
        assert answer is not None
        assert changes(answer.request_headers.response.header_mutation) == {}
        await proxy.body(REQUEST, b"abc", True)
        answer = await proxy.receive()
        assert answer is not None
        common = answer.request_body.response
        assert common.body_mutation.body == b"ABC"
        assert changes(common.header_mutation) == {"cookie": [], "x-user": ["alice"]}
        assert plain(answer.dynamic_metadata)[ROUTING] == {"tier": "gold"}
        await proxy.response({"content-length": "2", "etag": "1"})
        answer = await proxy.receive()
        assert answer is not None
        assert answer.HasField("response_headers")
        await proxy.body(RESPONSE, b"12", True)
        answer = await proxy.receive()
        assert answer is not None
        common = answer.response_body.response
        assert common.body_mutation.body == b"21"
        assert changes(common.header_mutation) == {"etag": [], "x-early": ["1"], "x-seen": ["yes"]}
        await proxy.end()
        assert await proxy.receive() is None
    head, body, response, chunk, complete = agent.seen
    assert isinstance(head, RequestHeadersEvent)
    assert (head.method, head.uri, head.header("host")) == ("POST", "/orders?x=1", "shop.example")
    assert (head.metadata.client_ip, head.metadata.client_port) == ("192.0.2.1", 7)
    assert isinstance(body, RequestBodyChunkEvent)
    assert (body.data, body.is_last, body.total_size) == (b"abc", True, 3)
    assert isinstance(response, ResponseHeadersEvent)
    assert response.status == 200
    assert isinstance(chunk, ResponseBodyChunkEvent)
    assert isinstance(complete, RequestCompleteEvent)
    assert (complete.status, complete.request_body_size, complete.response_body_size) == (200, 3, 2)


async def test_a_changed_body_of_another_length_changes_the_length_that_the_head_says() -> None:
    class Longer(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            return AgentResponse.allow(request_body_mutation=BodyMutation(event.data * 2))

    async with serving(Longer()) as channel:
        for mode in ("BUFFERED", None):
            # Envoy before 1.34 says nothing of the mode, and refuses a body of another length all the same.
            proxy = Proxy(channel, mode)
            await proxy.request({"content-length": "3"})
            assert await proxy.receive()
            await proxy.body(REQUEST, b"abc", True)
            answer = await proxy.receive()
            assert answer is not None
            assert answer.request_body.response.body_mutation.body == b"abcabc"
            assert changes(answer.request_body.response.header_mutation) == {"content-length": ["6"]}
            proxy.cancel()


@pytest.mark.parametrize("mode", ["STREAMED", "BUFFERED_PARTIAL", None])
async def test_all_of_an_exchange_with_an_answer_to_each_message(mode: str | None) -> None:
    agent = Changes()
    async with serving(agent) as channel:
        proxy = Proxy(channel, mode)
        await proxy.request({"cookie": "a=b"})
        answer = await proxy.receive()
        assert answer is not None
        assert changes(answer.request_headers.response.header_mutation) == {"cookie": [], "x-user": ["alice"]}
        for data, last in ((b"ab", False), (b"c", True)):
            await proxy.body(REQUEST, data, last)
            answer = await proxy.receive()
            assert answer is not None
            assert answer.request_body.response.body_mutation.body == data.upper()
        await proxy.response({"content-length": "4"})
        answer = await proxy.receive()
        assert answer is not None
        assert changes(answer.response_headers.response.header_mutation) == {"x-early": ["1"], "x-seen": ["yes"]}
        for data, last in ((b"12", False), (b"34", True)):
            await proxy.body(RESPONSE, data, last)
            answer = await proxy.receive()
            assert answer is not None
            assert answer.response_body.response.body_mutation.body == data[::-1]
        await proxy.end()
        assert await proxy.receive() is None
        await agent.completed.wait()


async def test_all_of_an_exchange_with_bodies_in_both_directions_at_once() -> None:
    agent = Changes()
    async with serving(agent) as channel:
        proxy = Proxy(channel, "FULL_DUPLEX_STREAMED")
        await proxy.request({"cookie": "a=b"})
        answer = await proxy.receive()
        assert answer is not None
        assert changes(answer.request_headers.response.header_mutation) == {"cookie": [], "x-user": ["alice"]}
        await proxy.body(REQUEST, b"ab", False)
        await proxy.body(REQUEST, b"c", True)
        # Envoy may send the last message twice: https://github.com/envoyproxy/envoy/issues/46237.
        await proxy.body(REQUEST, b"c", True)
        assert await proxy.streamed(REQUEST) == b"ABC"
        await proxy.response()
        answer = await proxy.receive()
        assert answer is not None
        assert answer.HasField("response_headers")
        await proxy.body(RESPONSE, b"12", False)
        await proxy.body(RESPONSE, b"", True)
        await proxy.body(RESPONSE, b"", True)
        assert await proxy.streamed(RESPONSE) == b"21"
        await proxy.end()
        assert await proxy.receive() is None
    assert [event.data for event in agent.seen if isinstance(event, RequestBodyChunkEvent)] == [b"ab", b"c"]


async def test_long_bodies_leave_in_messages_of_64_kib() -> None:
    data = bytes(range(256)) * 600
    async with serving(Changes()) as channel:
        proxy = Proxy(channel, "FULL_DUPLEX_STREAMED")
        await proxy.request()
        assert await proxy.receive()
        await proxy.body(REQUEST, data, True)
        sizes: list[int] = []
        while sum(sizes) < len(data):
            answer = await proxy.receive()
            assert answer is not None
            streamed = answer.request_body.response.body_mutation.streamed_response
            sizes.append(len(streamed.body))
        assert sizes == [65536, 65536, 22528]
        assert streamed.end_of_stream
        proxy.cancel()


async def test_bodies_that_are_not_shown_pass_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    agent = Changes()
    with caplog.at_level(logging.WARNING, "asgi_agents.serve"):
        async with serving(agent) as channel:
            proxy = Proxy(channel, "NONE")
            await proxy.request({"content-length": "3"})
            answer = await proxy.receive()
            assert answer is not None
            assert changes(answer.request_headers.response.header_mutation) == {"x-user": ["alice"]}
            await proxy.response({"content-length": "5"})
            answer = await proxy.receive()
            assert answer is not None
            assert changes(answer.response_headers.response.header_mutation) == {"x-early": ["1"], "x-seen": ["yes"]}
            await proxy.end()
            assert await proxy.receive() is None
    assert [record.getMessage() for record in caplog.records if record.name == "asgi_agents.serve"] == [
        "Changes: Envoy's request_body_mode is NONE: its hook for request_body_chunk is not called"
        " (logged once a minute)",
        "Changes: Envoy's response_body_mode is NONE: its hook for response_body_chunk is not called"
        " (logged once a minute)",
    ]


# Trailers


@pytest.mark.parametrize("mode", ["STREAMED", "BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_trailers_end_bodies_and_are_passed_on(mode: str) -> None:
    agent = Changes()
    async with serving(agent) as channel:
        proxy = Proxy(channel, mode)
        await proxy.request()
        assert await proxy.receive()
        for side in Side:
            if side is RESPONSE:
                await proxy.response()
                assert await proxy.receive()
            await proxy.body(side, b"ab", False)
            answer = await proxy.receive()
            assert answer is not None
            mutation = getattr(answer, f"{side.value}_body").response.body_mutation
            assert (mutation.body or mutation.streamed_response.body) == (b"AB" if side is REQUEST else b"ba")
            assert not mutation.streamed_response.end_of_stream
            trailers: dict[str, Any] = {f"{side.value}_trailers": {}}
            await proxy.send(**trailers)
            answer = await proxy.receive()
            assert answer is not None
            assert answer.WhichOneof("response") == f"{side.value}_trailers"
        await proxy.end()
        assert await proxy.receive() is None
    last = [event.is_last for event in agent.seen if isinstance(event, RequestBodyChunkEvent | ResponseBodyChunkEvent)]
    assert last == ([True, True] if mode == "BUFFERED" else [False, True, False, True])


@pytest.mark.parametrize("mode", ["NONE", "STREAMED"])
async def test_trailers_are_answered_where_no_body_is_shown(mode: str) -> None:
    async with serving(Heads()) as channel:
        proxy = Proxy(channel, mode)
        await proxy.request()
        assert await proxy.receive()
        await proxy.send(request_trailers={})
        said = await proxy.receive()
        assert said is not None
        assert said.HasField("request_trailers")
        await proxy.response()
        assert await proxy.receive()
        await proxy.send(response_trailers={})
        said = await proxy.receive()
        assert said is not None
        assert said.HasField("response_trailers")
        await proxy.end()
        assert await proxy.receive() is None


# Decisions


@pytest.mark.parametrize("mode", ["NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED", None])
async def test_a_denial_is_an_immediate_response(mode: str | None) -> None:
    answer = AgentResponse.block(403, "no", headers={"x-why": "rule"}, audit=AuditMetadata(rule_ids=["r"]))
    async with serving(Heads(answer)) as channel:
        proxy = Proxy(channel, mode)
        await proxy.request()
        said = await proxy.receive()
        assert said is not None
        immediate = said.immediate_response
        assert (immediate.status.code, immediate.body, immediate.details) == (403, b"no", "asgi_agents_Heads")
        assert changes(immediate.headers) == {"content-type": ["text/plain; charset=utf-8"], "x-why": ["rule"]}
        assert plain(said.dynamic_metadata) == {AUDIT: {"rule_ids": ["r"]}}
        assert await proxy.receive() is None


@pytest.mark.parametrize(
    ("answer", "status", "headers"),
    [
        (AgentResponse.redirect("https://x.example/", 307), 307, {"location": ["https://x.example/"]}),
        (
            AgentResponse.challenge("bearer", {"realm": "a"}),
            401,
            {"content-type": ["text/plain; charset=utf-8"], "www-authenticate": ['Bearer realm="a"']},
        ),
        (
            AgentResponse.block(
                200, "", response_headers=[HeaderOp.add("set-cookie", "a"), HeaderOp.add("set-cookie", "b")]
            ),
            200,
            {"set-cookie": ["a", "b"]},
        ),
    ],
)
async def test_other_denials_are_what_the_middleware_makes_of_them(
    answer: AgentResponse, status: int, headers: dict[str, list[str]]
) -> None:
    async with serving(Heads(answer)) as channel:
        proxy = Proxy(channel)
        await proxy.request()
        said = await proxy.receive()
        assert said is not None
        assert (said.immediate_response.status.code, changes(said.immediate_response.headers)) == (status, headers)


async def test_a_client_that_prefers_json_gets_json() -> None:
    async with serving(Heads(AgentResponse.block(403, "no"))) as channel:
        proxy = Proxy(channel)
        await proxy.request({"accept": "application/json"})
        said = await proxy.receive()
        assert said is not None
        assert json.loads(said.immediate_response.body)["detail"] == "no"


class Blocks(Agent):
    """Denies what has ATTACK in it."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(422, "attack") if b"ATTACK" in event.data else None

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        return AgentResponse.block(502, "hidden") if event.header("x-secret") else None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(451, "secret") if b"ATTACK" in event.data else None


@pytest.mark.parametrize("mode", ["STREAMED", "BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_bodies_and_responses_are_denied(mode: str) -> None:
    async with serving(Blocks()) as channel:
        proxy = Proxy(channel, mode)
        await proxy.request()
        assert await proxy.receive()
        await proxy.body(REQUEST, b"ATTACK", True)
        said = await proxy.receive()
        assert said is not None
        assert (said.immediate_response.status.code, said.immediate_response.body) == (422, b"attack")
        proxy = Proxy(channel, mode)
        await proxy.request(ends=True)
        assert await proxy.receive()
        await proxy.response({"x-secret": "1"})
        said = await proxy.receive()
        assert said is not None
        assert said.immediate_response.status.code == 502


async def test_a_response_whose_body_is_denied_is_replaced_where_nothing_of_it_has_left() -> None:
    async with serving(Blocks()) as channel:
        proxy = Proxy(channel, "BUFFERED")
        await proxy.request(ends=True)
        assert await proxy.receive()
        await proxy.response({"content-length": "6"})
        assert await proxy.receive()
        await proxy.body(RESPONSE, b"ATTACK", True)
        said = await proxy.receive()
        assert said is not None
        assert (said.immediate_response.status.code, said.immediate_response.body) == (451, b"secret")


@pytest.mark.parametrize("mode", ["STREAMED", "FULL_DUPLEX_STREAMED"])
@pytest.mark.parametrize("last", [False, True])
async def test_a_response_that_has_begun_is_broken_off_by_an_immediate_response(mode: str, last: bool) -> None:
    async with serving(Blocks()) as channel:
        proxy = Proxy(channel, mode)
        await proxy.request(ends=True)
        assert await proxy.receive()
        await proxy.response()
        assert await proxy.receive()
        await proxy.body(RESPONSE, b"fine", False)
        said = await proxy.receive()
        assert said is not None
        mutation = said.response_body.response.body_mutation
        assert mutation.streamed_response.body == (b"" if mode == "STREAMED" else b"fine")
        await proxy.body(RESPONSE, b"ATTACK", last)
        said = await proxy.receive()
        assert said is not None
        # Envoy resets a response that has begun (ext_proc's ImmediateResponse).
        assert said.immediate_response.status.code == 451


async def test_an_agent_that_fails_when_the_response_has_begun_ends_the_stream_with_an_error() -> None:
    class Fails(Agent):
        async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
            raise ValueError

    async with serving(Fails()) as channel:
        proxy = Proxy(channel, "STREAMED")
        await proxy.request(ends=True)
        assert await proxy.receive()
        await proxy.response()
        assert await proxy.receive()
        await proxy.body(RESPONSE, b"x", True)
        with pytest.raises(AgentError, match="INTERNAL"):
            await proxy.receive()


async def test_bodies_are_judged_where_heads_are_not_shown() -> None:
    class Bodies(Agent):
        on_request_body_chunk = Changes.on_request_body_chunk
        on_response_body_chunk = Changes.on_response_body_chunk
        seen: ClassVar[list[Event]] = []

    async with serving(Bodies()) as channel:
        proxy = Proxy(channel, "STREAMED")
        await proxy.body(REQUEST, b"abc", True)
        said = await proxy.receive()
        assert said is not None
        assert said.request_body.response.body_mutation.body == b"ABC"
        await proxy.body(RESPONSE, b"12", True)
        said = await proxy.receive()
        assert said is not None
        assert said.response_body.response.body_mutation.body == b"21"
        await proxy.end()
        assert await proxy.receive() is None
    # Nobody is told of a head that nobody knows.
    async with serving(Changes()) as channel:
        proxy = Proxy(channel, "STREAMED")
        await proxy.request(ends=True)
        assert await proxy.receive()
        await proxy.body(RESPONSE, b"12", True)
        with pytest.raises(AgentError, match="INTERNAL"):
            await proxy.receive()


class Undecided(Agent):
    """Denies a head unless the body has the word."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.block(403, "no word", needs_more=True)

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        if b"please" in event.data:
            return AgentResponse.allow(request_headers=[HeaderOp.set("x-word", "1")])
        return AgentResponse.block(403, "no word", needs_more=not event.is_last)


async def test_a_provisional_denial_holds_the_head_back() -> None:
    async with serving(Undecided()) as channel:
        proxy = Proxy(channel, "FULL_DUPLEX_STREAMED")
        await proxy.request()
        await proxy.body(REQUEST, b"hello, ", False)
        await proxy.body(REQUEST, b"please", True)
        said = await proxy.receive()
        assert said is not None
        assert changes(said.request_headers.response.header_mutation) == {"x-word": ["1"]}
        assert await proxy.streamed(REQUEST) == b"hello, please"
        proxy.cancel()
        proxy = Proxy(channel, "BUFFERED")
        await proxy.request()
        assert await proxy.receive()
        await proxy.body(REQUEST, b"hello", True)
        said = await proxy.receive()
        assert said is not None
        assert said.immediate_response.status.code == 403


async def test_headers_that_come_too_late_for_envoy_are_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Undecided()) as channel:
        proxy = Proxy(channel, "STREAMED")
        await proxy.request()
        assert await proxy.receive()
        await proxy.body(REQUEST, b"please", True)
        with pytest.raises(AgentError, match="INTERNAL"):
            await proxy.receive()
    assert "Undecided: the request's head is gone: its headers can't be changed any more" in caplog.text


async def test_the_log_has_no_line_for_each_exchange(caplog: pytest.LogCaptureFixture) -> None:
    """Who serves agents in other ways has none either, and Envoy has what agents have said in its metadata."""
    with caplog.at_level(logging.INFO):
        async with serving(Heads()) as channel:
            proxy = Proxy(channel)
            await proxy.request()
            assert await proxy.receive()
    assert [record.name for record in caplog.records if record.name == "asgi_agents.audit"] == []


# Failures


async def test_an_agent_that_fails_ends_the_stream_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Heads(ValueError("s3cret"))) as channel:
        proxy = Proxy(channel)
        await proxy.request()
        with pytest.raises(AgentError, match="it ended the call with the status INTERNAL"):
            await proxy.receive()
    assert "raised ValueError" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("mode", ["BUFFERED", "STREAMED", "FULL_DUPLEX_STREAMED", "NONE"])
async def test_a_failure_on_the_head_of_a_response_waits_for_none_of_its_body(mode: str) -> None:
    class Fails(Agent):
        async def on_response_headers(self, event: ResponseHeadersEvent) -> None:
            raise ValueError

    async with serving(Fails()) as channel:
        proxy = Proxy(channel, mode)
        await proxy.request({}, ends=True)
        assert await proxy.receive() is not None
        await proxy.response({"content-length": "2"})
        # Envoy sends the body when the head is answered.
        with pytest.raises(AgentError, match="INTERNAL"):
            await proxy.receive()


async def test_garbage_ends_the_stream() -> None:
    async with serving(Heads()) as channel:
        proxy = Proxy(channel)
        await proxy._stream.send(b"\xff\xff\xff\xff")
        with pytest.raises(AgentError, match="INVALID_ARGUMENT"):
            await proxy.receive()


async def test_a_stream_without_messages_is_fine() -> None:
    async with serving(Heads()) as channel:
        proxy = Proxy(channel)
        await proxy.end()
        assert await proxy.receive() is None


async def test_an_agent_is_cancelled_when_envoy_gives_up() -> None:
    class Slow(Agent):
        def __init__(self) -> None:
            self.began, self.ended = anyio.Event(), anyio.Event()

        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            self.began.set()
            try:
                await anyio.sleep_forever()
            finally:
                self.ended.set()

    agent = Slow()
    async with serving(agent) as channel:
        proxy = Proxy(channel)
        await proxy.request()
        await agent.began.wait()
        proxy.cancel()
        with anyio.fail_after(10):
            await agent.ended.wait()


# What is and isn't asked for


async def test_envoy_is_told_what_an_agent_does_not_hear() -> None:
    async with serving(Heads()) as channel:
        proxy = Proxy(channel, "STREAMED")
        await proxy.request()
        said = await proxy.receive()
        assert said is not None
        assert said.mode_override == ProcessingMode(response_header_mode=ProcessingMode.SKIP)
    async with serving(Changes()) as channel:
        proxy = Proxy(channel, "STREAMED")
        await proxy.request()
        said = await proxy.receive()
        assert said is not None
        assert not said.HasField("mode_override")


async def test_the_response_is_asked_for_where_its_headers_are_to_be_changed() -> None:
    answer = AgentResponse.allow(response_headers=[HeaderOp.set("x-a", "1")])
    async with serving(Heads(answer)) as channel:
        proxy = Proxy(channel, "NONE")
        await proxy.request()
        said = await proxy.receive()
        assert said is not None
        assert not said.HasField("mode_override")
        await proxy.response()
        said = await proxy.receive()
        assert said is not None
        assert changes(said.response_headers.response.header_mutation) == {"x-a": ["1"]}


async def test_skip_body_lets_the_body_pass() -> None:
    class Skips(Changes):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
            return AgentResponse.allow(skip_body=True)

    agent = Skips()
    async with serving(agent) as channel:
        proxy = Proxy(channel, "BUFFERED")
        await proxy.request()
        said = await proxy.receive()
        assert said is not None
        assert said.mode_override.request_body_mode == ProcessingMode.NONE
        assert said.mode_override.response_body_mode == ProcessingMode.BUFFERED
        # Where Envoy does not take that.
        await proxy.body(REQUEST, b"abc", True)
        said = await proxy.receive()
        assert said is not None
        assert not said.request_body.response.HasField("body_mutation")
    assert not any(isinstance(event, RequestBodyChunkEvent) for event in agent.seen)


async def test_observers_are_asked_and_not_answered() -> None:
    agent = Changes()
    async with serving(agent) as channel:
        proxy = Proxy(channel, "STREAMED")
        await proxy.request(observe=True)
        await proxy.send(observe=True, request_body={"body": b"abc", "end_of_stream": True})
        await proxy.end()
        assert await proxy.receive() is None
    assert [type(event) for event in agent.seen[:2]] == [RequestHeadersEvent, RequestBodyChunkEvent]
    async with serving(Heads(AgentResponse.block(403))) as channel:
        proxy = Proxy(channel, "STREAMED")
        await proxy.request(observe=True)
        await proxy.end()
        assert await proxy.receive() is None


async def test_a_response_of_envoys_own_is_judged_without_its_request() -> None:
    agent = Changes()
    async with serving(agent) as channel:
        proxy = Proxy(channel, "BUFFERED")
        await proxy.response(status=429)
        said = await proxy.receive()
        assert said is not None
        assert said.HasField("response_headers")
        await proxy.body(RESPONSE, b"12", True)
        said = await proxy.receive()
        assert said is not None
        assert said.response_body.response.body_mutation.body == b"21"
        await proxy.end()
        assert await proxy.receive() is None
    assert not any(isinstance(event, RequestHeadersEvent) for event in agent.seen)


async def test_headers_as_text_are_answered_as_text() -> None:
    async with serving(Changes()) as channel:
        proxy = Proxy(channel, None)
        fields = [{"key": ":method", "value": "GET"}, {"key": ":path", "value": "/"}]
        await proxy.send(request_headers={"headers": {"headers": fields}, "end_of_stream": True})
        said = await proxy.receive()
        assert said is not None
        (option,) = said.request_headers.response.header_mutation.set_headers
        assert (option.header.value, option.header.raw_value) == ("alice", b"")


async def test_an_audit_that_can_not_be_said_makes_no_error_of_a_refusal() -> None:
    async with serving(Heads(AgentResponse.block(403, audit=AuditMetadata(custom={"at": object()})))) as channel:
        proxy = Proxy(channel)
        await proxy.request()
        said = await proxy.receive()
        assert said is not None
        assert said.immediate_response.status.code == 403
        assert not said.HasField("dynamic_metadata")
        await proxy.end()


# Other protocols on the same connection


@pytest.mark.parametrize("mode", ["STREAMED", "FULL_DUPLEX_STREAMED"])
async def test_a_handshake_is_judged_and_what_follows_passes(mode: str) -> None:
    agent = Changes()
    async with serving(agent) as channel:
        proxy = Proxy(channel, mode)
        await proxy.request({":method": "GET", "upgrade": "websocket", "connection": "upgrade"})
        said = await proxy.receive()
        assert said is not None
        assert changes(said.request_headers.response.header_mutation) == {"x-user": ["alice"]}
        await proxy.response({"upgrade": "websocket"}, status=101)
        said = await proxy.receive()
        assert said is not None
        assert said.HasField("response_headers")
        for side in (REQUEST, RESPONSE):
            await proxy.body(side, b"\x81\x01a", False)
            said = await proxy.receive()
            assert said is not None
            mutation = getattr(said, f"{side.value}_body").response.body_mutation
            if mode == "STREAMED":
                assert mutation.WhichOneof("mutation") is None
            else:
                assert mutation.streamed_response.body == b"\x81\x01a"
        await proxy.end()
        assert await proxy.receive() is None
    assert not any(isinstance(event, RequestBodyChunkEvent | ResponseBodyChunkEvent) for event in agent.seen)


async def test_an_upgrade_is_refused_where_its_messages_are_to_be_judged(caplog: pytest.LogCaptureFixture) -> None:
    class Frames(Heads):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
            pass

    for agent in (Frames(), Emails()):
        async with serving(agent) as channel:
            proxy = Proxy(channel, "BUFFERED")
            await proxy.request({":method": "GET", "upgrade": "websocket"}, ends=True)
            with pytest.raises(AgentError, match="INTERNAL"):
                await proxy.receive()
    assert "it judges messages of websockets, which Envoy does not show" in caplog.text


async def test_a_body_of_a_request_that_asks_for_another_protocol_is_refused() -> None:
    for method, length in (("POST", "5"), ("POST", "0"), ("GET", "5")):
        async with serving(Changes()) as channel:
            proxy = Proxy(channel, "STREAMED")
            upgrade = {"upgrade": "websocket", "connection": "upgrade", "content-length": length}
            await proxy.request({":method": method, **upgrade})
            said = await proxy.receive()
            assert said is not None
            assert said.immediate_response.status.code == 400
            assert await proxy.receive() is None
    # Who does not judge bodies has no use for them here either.
    async with serving(Heads()) as channel:
        proxy = Proxy(channel, "STREAMED")
        await proxy.request({"upgrade": "websocket", "content-length": "5"})
        said = await proxy.receive()
        assert said is not None
        assert said.HasField("request_headers")
        await proxy.end()


async def test_a_response_is_judged_though_its_request_has_asked_for_another_protocol() -> None:
    agent = Changes()
    async with serving(agent) as channel:
        proxy = Proxy(channel, "STREAMED")
        await proxy.request({":method": "GET", "upgrade": "websocket", "connection": "upgrade"})
        said = await proxy.receive()
        assert said is not None
        # Whether the app takes the offer is not known yet.
        assert said.mode_override.response_body_mode == ProcessingMode.STREAMED
        await proxy.response({"content-type": "text/plain"})
        said = await proxy.receive()
        assert said is not None
        assert not said.HasField("mode_override")
        await proxy.body(RESPONSE, b"secret", True)
        said = await proxy.receive()
        assert said is not None
        assert said.response_body.response.body_mutation.body == b"terces"
        await proxy.end()


async def test_the_bytes_of_an_open_tunnel_need_not_be_shown() -> None:
    for head, status in (({":method": "GET", "upgrade": "websocket"}, 101), ({":method": "CONNECT"}, 200)):
        async with serving(Changes()) as channel:
            proxy = Proxy(channel, "STREAMED")
            await proxy.request(head)
            await proxy.receive()
            await proxy.response({}, status=status)
            said = await proxy.receive()
            assert said is not None
            assert said.mode_override.response_body_mode == ProcessingMode.NONE
            await proxy.end()


# Text guardrails

CHAT = {":path": "/v1/chat/completions", "content-type": "application/json"}
QUESTION = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'


def events(*texts: str) -> list[bytes]:
    chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]


def content(stream: bytes) -> str:
    lines = [line[6:] for line in stream.decode().splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for line in lines for choice in json.loads(line)["choices"])


@pytest.mark.parametrize("cut", [None, 7])
async def test_a_redactor_of_streams_works_behind_envoy(cut: int | None) -> None:
    async with serving(Emails(), judges={"output"}) as channel:
        proxy = Proxy(channel, "FULL_DUPLEX_STREAMED")
        await proxy.request(CHAT)
        await proxy.body(REQUEST, QUESTION, True)
        said = await proxy.receive()
        assert said is not None
        assert said.HasField("request_headers")
        assert await proxy.streamed(REQUEST) == QUESTION
        await proxy.response({"content-type": "text/event-stream"})
        sent = events("write to me", "@exam", "ple.org or not. ", "x" * 50, " the end")
        whole = b"".join(sent)
        pieces = sent if cut is None else [whole[start : start + cut] for start in range(0, len(whole), cut)]
        for piece in pieces:
            await proxy.body(RESPONSE, piece, False)
        await proxy.body(RESPONSE, b"", True)
        said = await proxy.receive()
        assert said is not None
        assert said.HasField("response_headers")
        got = await proxy.streamed(RESPONSE)
        assert content(got) == f"write to [email] or not. {'x' * 50} the end"
        assert got.endswith(b"data: [DONE]\n\n")
        await proxy.end()
        assert await proxy.receive() is None


async def test_a_stream_that_is_stopped_ends_in_the_words_of_its_dialect() -> None:
    async with serving(Emails(), judges={"output"}) as channel:
        proxy = Proxy(channel, "FULL_DUPLEX_STREAMED")
        await proxy.request(CHAT)
        await proxy.body(REQUEST, QUESTION, True)
        assert await proxy.receive()
        assert await proxy.streamed(REQUEST) == QUESTION
        await proxy.response({"content-type": "text/event-stream"})
        sent = events("first of all " + "y" * 200, " FORBIDDEN", "z" * 100)
        for piece in sent[:2]:
            await proxy.body(RESPONSE, piece, False)
        said = await proxy.receive()
        assert said is not None
        assert said.HasField("response_headers")
        # It ends although more is to come, and what comes is dropped.
        got = await proxy.streamed(RESPONSE)
        assert b'"finish_reason":"content_filter"' in got
        assert b"FORBIDDEN" not in got
        await proxy.body(RESPONSE, sent[2], True)
        await proxy.end()
        assert await proxy.receive() is None


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_prompts_are_judged_before_the_app_has_anything(mode: str) -> None:
    async with serving(Emails()) as channel:
        proxy = Proxy(channel, mode)
        await proxy.request(CHAT)
        if mode == "BUFFERED":
            assert await proxy.receive()
        await proxy.body(REQUEST, QUESTION.replace(b"hi", b"FORBIDDEN"), True)
        said = await proxy.receive()
        assert said is not None
        assert said.immediate_response.status.code == 400
        assert json.loads(said.immediate_response.body)["error"]["code"] == "content_filter"
        proxy = Proxy(channel, mode)
        await proxy.request({**CHAT, "content-length": str(len(QUESTION))})
        changed = QUESTION.replace(b"hi", b"[email]")
        if mode == "BUFFERED":
            assert await proxy.receive()
        await proxy.body(REQUEST, QUESTION.replace(b"hi", b"me@example.org"), True)
        said = await proxy.receive()
        assert said is not None
        if mode == "BUFFERED":
            assert said.request_body.response.body_mutation.body == changed
            assert changes(said.request_body.response.header_mutation)["content-length"] == [str(len(changed))]
        else:
            assert said.HasField("request_headers")
            assert await proxy.streamed(REQUEST) == changed
        proxy.cancel()


@pytest.mark.parametrize("mode", ["STREAMED", "BUFFERED_PARTIAL", None])
async def test_text_is_not_judged_in_modes_in_which_it_can_not_be_held(
    mode: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Emails()) as channel:
        proxy = Proxy(channel, mode)
        await proxy.request(CHAT)
        with pytest.raises(AgentError, match="FAILED_PRECONDITION"):
            await proxy.receive()
    assert "text is judged where it is FULL_DUPLEX_STREAMED or BUFFERED" in caplog.text


async def test_text_that_envoy_does_not_show_is_not_judged_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Emails()) as channel:
        proxy = Proxy(channel, "NONE")
        await proxy.request(CHAT)
        assert await proxy.receive()
        await proxy.response({"content-type": "text/event-stream"})
        assert await proxy.receive()
    assert "request_body_mode is NONE, and text is judged" in caplog.text
    assert "response_body_mode is NONE, and text is judged" in caplog.text


async def test_the_mode_for_messages_of_grpc_is_refused() -> None:
    async with serving(Heads()) as channel:
        proxy = Proxy(channel, "GRPC")
        await proxy.request()
        with pytest.raises(AgentError, match="FAILED_PRECONDITION"):
            await proxy.receive()


# Ids, traces, arguments


async def test_an_exchange_has_the_id_of_its_request_and_the_trace_of_its_stream() -> None:
    found: list[tuple[str, str, int]] = []

    class Looks(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            found.append(
                (event.correlation_id, current_correlation_id(), get_current_span().get_span_context().trace_id)
            )

    trace = "0af7651916cd43dd8448eb211c80319c"
    async with serving(Looks()) as channel:
        metadata = [("traceparent", f"00-{trace}-b7ad6b7169203331-01")]
        proxy = Proxy(channel, metadata=metadata)
        await proxy.request({"x-request-id": "r-1"})
        assert await proxy.receive()
        # A second with the same id at the same time is another exchange.
        other = Proxy(channel)
        await other.request({"x-request-id": "r-1"})
        assert await other.receive()
    (first, current, trace_id), (second, _, none) = found
    assert (first, current, trace_id, none) == ("r-1", "r-1", int(trace, 16), 0)
    assert second != "r-1"


async def test_no_more_hooks_are_at_work_than_may_be() -> None:
    class Counts(Agent):
        now = most = 0

        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            await anyio.sleep(0.01)
            self.now -= 1

    agent = Counts()
    async with serving(agent, max_concurrency=2) as channel:

        async def one() -> None:
            proxy = Proxy(channel)
            await proxy.request()
            assert await proxy.receive()

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(one)
    assert agent.most == 2


def anything(given: Any) -> Any:
    """What a type checker does not look at."""
    return given


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExtProcService(anything("waf")), "expected an instance of an Agent"),
        (lambda: ExtProcService(Heads(), max_concurrency=0), "max_concurrency=0"),
        (lambda: ExtProcService(Heads(), max_body_bytes=0), "max_body_bytes=0"),
        (lambda: ExtProcService(Heads(), judges={"output"}), "not Heads"),
        (lambda: ExtProcService(Emails(), judges=set()), "on is empty"),
        (lambda: ExtProcService(Heads(), name="a b"), "AgentConfig: id='a b'"),
        (lambda: ExtProcService(Changes(), body_access=anything("maybe")), "body_access='maybe'"),
    ],
)
def test_what_can_not_work_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()


def test_the_command_says_what_can_not_work(capsys: pytest.CaptureFixture[str]) -> None:
    here = f"{__name__}:Heads"
    assert main([here, "--ext-proc", "127.0.0.1:0", "--judges", "output"]) == 2
    assert "judges, expected None or a TextGuardrail for an agent, and not Heads" in capsys.readouterr().err
    assert main([here, "--ext-proc", "127.0.0.1"]) == 2
    assert "--ext-proc: '127.0.0.1', expected unix:///path or host:port" in capsys.readouterr().err


@pytest.mark.parametrize("max_concurrency", [1, 100])
async def test_what_was_not_judged_counts_and_streams_are_refused_beyond_what_all_may_hold(
    max_concurrency: int,
) -> None:
    """Whether a body waits to be taken, for a permit, or for its hook."""
    judge = anyio.Event()

    class Slow(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
            await judge.wait()

    service = ExtProcService(Slow(), max_concurrency=max_concurrency, max_held_bytes=100_000)
    held, size = service._held, 1024 * 1024
    passed: list[Proxy] = []
    refused: list[str] = []
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(serve_grpc, service, "127.0.0.1:0")
        channel = open_channel(settings_of(address), address.replace("grpc://", "dns:///"))

        async def exchange() -> None:
            proxy = Proxy(channel, "BUFFERED")
            await proxy.request()
            assert await proxy.receive()
            await proxy.body(REQUEST, b"x" * size, True)
            try:
                answer = await proxy.receive()
            except AgentError as exc:
                refused.append(str(exc))
            else:
                assert answer is not None
                assert answer.HasField("request_body")
                passed.append(proxy)

        async with anyio.create_task_group() as exchanges:
            for _ in range(10):
                exchanges.start_soon(exchange)
            with anyio.fail_after(60):
                while len(refused) < 6:  # noqa: ASYNC110 - they say so themselves
                    await anyio.sleep(0.01)
            assert 3 * size < held.total <= 200_000 + 4 * size
            judge.set()
        assert len(passed) == 4
        assert all("RESOURCE_EXHAUSTED" in each for each in refused), refused
        # They go on with the response, and nothing of the request is needed any more, once the server has a turn.
        with anyio.fail_after(60):
            while held.total >= size:  # noqa: ASYNC110 - nobody tells
                await anyio.sleep(0.01)
        for proxy in passed:
            proxy.cancel()
        await channel.aclose()
        tasks.cancel_scope.cancel()
    assert held.total == 0


# On trio some are on their way from the thread of gRPC's library.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_waits_for_a_slow_agent_is_bounded() -> None:
    """Envoy sends bodies without waiting for answers in the mode FULL_DUPLEX_STREAMED."""
    resume = anyio.Event()

    class Slow(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
            await resume.wait()

    service = ExtProcService(Slow(), max_held_bytes=1000)
    size, count = 256 * 1024, 64
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(serve_grpc, service, "127.0.0.1:0")
        channel = open_channel(settings_of(address), address.replace("grpc://", "dns:///"))
        proxy = Proxy(channel, "FULL_DUPLEX_STREAMED")
        await proxy.request()
        assert await proxy.receive()
        sent = 0

        async def send() -> None:
            nonlocal sent
            for index in range(count):
                await proxy.body(REQUEST, b"x" * size, index == count - 1)
                sent += 1

        tasks.start_soon(send)
        with anyio.move_on_after(0.5):
            while sent < count:  # noqa: ASYNC110 - it must not come so far
                await anyio.sleep(0.01)
        assert sent < count
        assert service._held.total <= 4 * size
        resume.set()
        assert len(await proxy.streamed(REQUEST)) == size * count
        proxy.cancel()
        await channel.aclose()
        tasks.cancel_scope.cancel()
    assert service._held.total == 0
