"""How a stream ends that is stopped, and what the app sees of it."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import FailureMode
from asgi_agents.errors import ResponseAborted
from asgi_agents.guardrails import Block, Decision, TextGuardrail, Window
from tests.guardrails.samples import SAMPLES, Cut, Sample
from tests.guardrails.wired.exchanging import (
    CHAT,
    PATHS,
    SSE,
    Finder,
    Guarded,
    Sending,
    SlowFinder,
    asking,
    blocking,
    one,
    seeded,
)
from tests.support.asgi import Client, assert_nothing_left, start

pytestmark = pytest.mark.anyio

REASON: Final = "the policy says no"
_ENDED_IN_BAND: Final = [sample for sample in SAMPLES if sample.name != "text"]


class Stopping(TextGuardrail):
    """Blocks, or fails, as soon as it is told to."""

    hold = 0

    def __init__(self, how: str) -> None:
        self.how = how
        self.stopping = False
        #: Called when it stops the stream.
        self.note_stop: Callable[[], None] = lambda: None

    def settled(self, text: str) -> int:
        return len(text)

    async def check(self, window: Window) -> Sequence[Decision]:
        if not self.stopping:
            return []
        self.note_stop()
        if self.how == "block":
            return [Block(REASON)]
        raise RuntimeError(window.text)


class Telling(Sending):
    """Sends events, and tells the guardrail to stop the stream before one of them."""

    def __init__(self, pieces: Sequence[bytes], media_type: str, stopping: Stopping, count: int) -> None:
        super().__init__(pieces, media_type)
        self.stopping = stopping
        self.count = count
        #: How many events it had sent when the stream was stopped, the one that it was sending included.
        self.sent_before = 0
        stopping.note_stop = self.note

    def note(self) -> None:
        self.sent_before = self.sent_before or self.sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if self.sent > self.count:
                self.stopping.stopping = True
            await send(message)

        await super().__call__(scope, receive, counted)


def texts_of(sample: Sample) -> dict[str, str]:
    return {name: '{"a": "b c"}' if "json" in name else "one two, three.\n" for name in sample.texts}


async def stopped(
    sample: Sample, how: str, count: int, mode: FailureMode = FailureMode.CLOSED
) -> tuple[Client, Telling, Guarded]:
    events = sample.stream(texts_of(sample), Cut(seeded(3), longest=12))
    stopping = Stopping(how)
    app = Telling(events, sample.media_type, stopping, count)
    options: dict[str, Any] = {"dialects": [sample.dialect]} if sample.name == "pointers" else {}
    guarded = one(app, stopping, failure_mode=mode, circuit_breaker=None, **options)
    client = asking(PATHS[sample.name], b'{"messages": [], "stream": true}')
    try:
        await guarded.call(client)
    except ResponseAborted:
        assert not client.complete
    else:
        assert client.complete
    assert_nothing_left(guarded.middleware.manager)
    return client, app, guarded


def events_in(sample: Sample, data: bytes) -> list[Any]:
    """The JSON of a whole stream; raises where there is half an event."""
    if sample.media_type == "application/json":
        value: list[Any] = json.loads(data)
        return value
    if sample.media_type != SSE:
        assert not data or data.endswith(b"\n")
        return [json.loads(line) for line in data.split(b"\n")[:-1]]
    text = data.decode().replace("\r\n", "\n")
    assert not text or text.endswith("\n\n")
    lines = [line.removeprefix("data:").strip() for line in text.split("\n") if line.startswith("data:")]
    return [json.loads(line) if line.startswith("{") else line for line in lines]


@pytest.mark.parametrize("how", ["block", "failure"])
@pytest.mark.parametrize("sample", _ENDED_IN_BAND, ids=lambda sample: sample.name)
async def test_a_stream_that_is_stopped_at_any_event_is_whole_and_says_why(sample: Sample, how: str) -> None:
    count = len(sample.stream(texts_of(sample), Cut(seeded(3), longest=12)))
    told = 0
    for before in range(count):
        client, app, guarded = await stopped(sample, how, before)
        if guarded.record.guardrails[0].counts.keys().isdisjoint({"block", "failure"}):
            # Nothing was said that could have been judged.
            assert client.body == b"".join(piece for piece in app.pieces if isinstance(piece, bytes))
            continue
        assert client.complete
        if client.status == 200:
            events = events_in(sample, client.body)
            said = json.dumps(events[-3:])
            reason = REASON if how == "block" else "Agent unavailable"
            filtered = how == "block" and any(word in said for word in ("content_filter", "refusal", "SAFETY"))
            assert reason in said or filtered, events[-3:]
        else:
            assert client.status == (400 if how == "block" else 503)
            json.loads(client.body)
        told += 1
        # It sees that its client is gone within one token.
        assert app.sent <= app.sent_before + 1
        assert isinstance(app.raised, OSError) or app.sent == len(app.pieces)
        assert guarded.record.decision == ("block" if how == "block" else "error")
        assert guarded.record.decided_by == "g"
    assert told


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
async def test_in_fail_open_mode_a_failing_guardrail_changes_nothing(sample: Sample) -> None:
    count = len(sample.stream(texts_of(sample), Cut(seeded(3), longest=12)))
    for before in range(0, count, 3):
        client, app, guarded = await stopped(sample, "failure", before, FailureMode.OPEN)
        assert client.complete
        assert client.body == b"".join(piece for piece in app.pieces if isinstance(piece, bytes))
        assert app.finished
        if "failure" in guarded.record.guardrails[0].counts:
            assert guarded.record.passed_open == ["g"]


async def test_openai_chat_ends_every_choice_and_the_stream() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "chat")
    client, _, _ = await stopped(sample, "block", 9)
    events = events_in(sample, client.body)
    assert events[-1] == "[DONE]"
    seen: dict[int, list[Any]] = {}
    for event in events[:-1]:
        for choice in event["choices"]:
            seen.setdefault(choice["index"], []).append(choice["finish_reason"])
    assert seen
    for reasons in seen.values():
        assert reasons[-1] == "content_filter"
        assert set(reasons[:-1]) <= {None}
    client, _, _ = await stopped(sample, "failure", 9)
    last = events_in(sample, client.body)[-1]
    assert last["error"]["message"] == "Agent unavailable"


async def test_openai_responses_ends_with_an_error_event() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "responses")
    for how in ("block", "failure"):
        client, _, _ = await stopped(sample, how, 9)
        events = events_in(sample, client.body)
        assert events[-1]["type"] == "error"
        assert b"response.incomplete" not in client.body
        assert b"response.failed" not in client.body


async def test_anthropic_closes_its_blocks_and_says_nothing_after_its_end() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "anthropic")
    for before in range(3, 30, 3):
        client, _, guarded = await stopped(sample, "block", before)
        if "block" not in guarded.record.guardrails[0].counts:
            continue
        events = events_in(sample, client.body)
        assert [event["type"] for event in events].count("message_stop") == 1
        assert events[-1]["type"] == "message_stop"
        assert events[-2]["delta"]["stop_reason"] == "refusal"
        starts = [event["index"] for event in events if event["type"] == "content_block_start"]
        stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
        assert starts == stops == list(range(len(starts)))
    client, _, _ = await stopped(sample, "failure", 9)
    last = events_in(sample, client.body)[-1]
    assert last["type"] == "error"
    assert last["error"]["message"] == "Agent unavailable"


@pytest.mark.parametrize("how", ["block", "failure"])
async def test_plain_text_is_cut_off(how: str) -> None:
    stopping = Stopping(how)
    app = Telling([b"one ", b"two ", b"three "], "text/plain", stopping, 1)
    client = asking("/text", b"{}")
    guarded = one(app, stopping)
    with pytest.raises(ResponseAborted):
        await guarded.call(client)
    assert client.status == 200
    assert client.body == b"one "
    assert not client.complete
    assert guarded.record.complete is False


async def test_plain_text_with_a_length_that_was_declared_is_answered_with_a_status() -> None:
    stopping = Stopping("block")
    app = Telling([b"one ", b"two ", b"three "], "text/plain", stopping, 1)
    app.response_headers.append((b"content-length", b"14"))
    client = asking("/text", b"{}")
    await one(app, stopping).call(client)
    assert client.status == 400
    assert client.body == REASON.encode()


# What the app sees


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def refuses(window: Window) -> list[Decision]:
    return [Block(REASON)] if "bad" in window.text else []


async def test_send_raises_within_one_token_where_the_servers_does() -> None:
    app = Sending([event("fine "), event("bad "), event("never "), event("never ")])
    guarded = one(app, Finder(refuses), hold=0)
    client = await guarded.call(asking(CHAT, b"{}"))
    assert isinstance(app.raised, OSError)
    assert app.sent <= 3
    assert client.complete
    assert b"never" not in client.body


async def test_send_does_nothing_where_the_servers_does_not_raise() -> None:
    app = Sending([event("fine "), event("bad "), *(event("never ") for _ in range(100))])
    guarded = one(app, Finder(refuses), hold=0)
    client = await guarded.call(asking(CHAT, b"{}", spec_version="2.3"))
    assert app.finished
    assert client.complete
    assert b"never" not in client.body


class Listening:
    """Streams while another task waits for the client to leave.

    :param heeds: whether it then ends.
    """

    def __init__(self, *, heeds: bool, media_type: str = SSE) -> None:
        self.heeds = heeds
        self.media_type = media_type
        self.left_at: float | None = None
        self.began = 0.0
        self.ended: float | None = None
        self.cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.began = anyio.current_time()
        await receive()
        await send(start(200, (b"content-type", self.media_type.encode())))
        for text in ("fine ", "bad "):
            data = event(text) if self.media_type == SSE else text.encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        try:
            if self.heeds:
                message = await receive()
                assert message["type"] == "http.disconnect"
                self.left_at = anyio.current_time()
                await anyio.sleep(20)
            else:
                await anyio.sleep(20)
        except BaseException:
            self.cancelled = True
            raise
        finally:
            self.ended = anyio.current_time()


async def test_receive_gives_a_disconnect() -> None:
    app = Listening(heeds=True)
    client = await one(app, SlowFinder(refuses), hold=0).call(asking(CHAT, b"{}"))
    assert app.left_at is not None
    assert app.left_at - app.began < 1
    assert client.complete
    assert REASON.encode() in client.body or b"content_filter" in client.body


async def test_receive_gives_a_disconnect_where_the_answer_is_broken_off() -> None:
    # The server has not ended the answer, so it says nothing of a disconnect itself.
    app = Listening(heeds=True, media_type="text/plain")
    client = asking("/text", b"{}")
    with pytest.raises(ResponseAborted):
        await one(app, SlowFinder(refuses), hold=0).call(client)
    assert app.left_at is not None
    assert app.left_at - app.began < 1
    assert b"bad" not in client.body
    assert not client.complete


@pytest.mark.parametrize("grace", [0.0, 0.5, 3.0])
async def test_an_app_that_notices_nothing_is_cancelled_after_the_grace(grace: float) -> None:
    app = Listening(heeds=False)
    client = await one(app, SlowFinder(refuses, lambda: 0.01), hold=0, stop_grace=grace).call(asking(CHAT, b"{}"))
    assert app.cancelled
    assert app.ended is not None
    assert app.ended - app.began == pytest.approx(grace, abs=0.6)
    assert client.complete


async def test_a_client_that_leaves_ends_the_stream_as_it_does_without_guardrails() -> None:
    for agent in (Finder(), SlowFinder(seconds=lambda: 0.2)):
        app = Sending([event("fine "), 5.0, event("more "), event("never "), 5.0, event("never ")])
        guarded = one(app, agent, hold=0)
        client = asking(CHAT, b"{}")

        async def serve(guarded: Guarded = guarded, client: Client = client) -> None:
            with pytest.raises(OSError, match="the client is gone"):
                await guarded.call(client)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            await anyio.sleep(1)
            client.leave()
        assert isinstance(app.raised, OSError)
        assert app.sent <= 4
        assert_nothing_left(guarded.middleware.manager)


async def test_the_error_of_an_answer_that_is_broken_off_has_nothing_in_it_that_an_agent_has_said() -> None:
    find = blocking("three", reason="no: one,\r\nINFO 10.0.0.1 GET /")
    guarded = one(Sending([b"one, two, three.", 1.0], "text/plain"), SlowFinder(find), {"output"})
    with pytest.raises(ResponseAborted, match=r"^response broken off after it had started: agent 'g': block$"):
        await guarded.call(asking("/text", b"{}"))


@pytest.mark.parametrize("agent", [Finder, SlowFinder])
@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_what_a_task_sends_that_the_app_has_left_behind_is_not_judged_and_does_not_leave(
    agent: type[TextGuardrail], before: int, spec_version: str
) -> None:
    left: list[Send] = []
    messages: list[Message] = [
        start(200, (b"content-type", SSE.encode())),
        *({"type": "http.response.body", "body": event("some words. " * 10), "more_body": True} for _ in range(9)),
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        left.append(send)
        for message in messages[:before]:
            await send(message)

    client = asking(CHAT, b"{}", spec_version=spec_version)
    guarded = one(app, agent(), {"output"})
    await guarded.call(client)
    sent, calls = len(client.messages), guarded.middleware.manager.metrics["g"].calls
    for message in messages[before:]:
        if spec_version == "2.4":
            with pytest.raises(OSError, match="nothing more"):
                await left[0](message)
        else:
            await left[0](message)
    metrics = guarded.middleware.manager.metrics["g"]
    assert (metrics.calls, metrics.held, metrics.windows) == (calls, 0, 0)
    assert len(client.messages) == sent
