"""The official clients, over real connections to a real server, behind which guardrails judge what an app streams."""

import gc
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, Literal

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from asgi_agents import AgentConfig, AgentMiddleware, FailureMode
from asgi_agents.guardrails import Block, Decision, Guardrail, TextGuardrail, Window
from tests.guardrails.clients import (
    ARGUMENTS,
    FILTERED,
    FILTERED_ERROR,
    PARAMETERS,
    PATIENCE,
    PLAIN,
    REDACTED,
    REDACTED_ARGUMENTS,
    Client,
    Reading,
    connected,
    events_of,
)
from tests.guardrails.detectors import EMAIL, HOLD, settled
from tests.guardrails.driving import EVERYTHING
from tests.guardrails.samples import Sample
from tests.support.servers import serve

REASON: Final = "the policy says no"
UNAVAILABLE: Final = "Agent unavailable"
LATE: Final = "Gateway timeout"

# The client of Gemini says so whenever it is async and aiohttp is there.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

How = Literal["blocks", "fails"]
# Where the events of a stream come from: they are awaited one by one, are all there already, or come from a thread.
Source = Literal["awaited", "at hand", "thread"]


class Plan:
    """What the app sends in answer to the next request, and what the guardrail makes of it.

    :ivar behind: how many events the app has sent when the guardrail stops them. None: it never does.
    :ivar sent: how many events the app has sent.
    :ivar sent_when_stopped: how many that were when the guardrail stopped them. None: it has not.
    :ivar prompt: the request as the app has read it.
    """

    def __init__(
        self,
        events: Sequence[bytes],
        media_type: str,
        behind: int | None = None,
        how: How = "blocks",
        source: Source = "awaited",
    ) -> None:
        self.events = events
        self.media_type = media_type
        self.behind = behind
        self.how = how
        self.source = source
        self.sent = 0
        self.sent_when_stopped: int | None = None
        self.prompt = ""
        self.ended = threading.Event()

    @property
    def is_reached(self) -> bool:
        """Whether the guardrail stops what it is asked about now."""
        return self.behind is not None and self.sent > self.behind

    def judge(self, window: Window) -> Sequence[Decision]:
        if not self.is_reached:
            return EVERYTHING(window)
        if self.sent_when_stopped is None:
            self.sent_when_stopped = self.sent
        if self.how == "fails":
            raise RuntimeError("the guardrail is broken")
        return [Block(REASON)]

    def content(self) -> Any:
        return {"awaited": self._awaited, "at hand": self._at_hand, "thread": self._from_thread}[self.source]()

    async def _awaited(self) -> AsyncIterator[bytes]:
        try:
            for event in self.events:
                self.sent += 1
                yield event
                await checkpoint()
        finally:
            self.ended.set()

    async def _at_hand(self) -> AsyncIterator[bytes]:
        try:
            for event in self.events:
                self.sent += 1
                yield event
        finally:
            self.ended.set()

    def _from_thread(self) -> Iterator[bytes]:
        try:
            for event in self.events:
                self.sent += 1
                yield event
        finally:
            self.ended.set()


class AtOnce(TextGuardrail):
    """Judges every event as it comes."""

    hold = HOLD

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage

    async def check(self, window: Window) -> Sequence[Decision]:
        return self._stage.plan.judge(window)

    def settled(self, text: str) -> int:
        return settled(text)


class Late(AtOnce):
    """Judges beside the app, and says nothing before the plan has it stop."""

    async def check(self, window: Window) -> Sequence[Decision]:
        plan = self._stage.plan
        while plan.behind is not None and not plan.is_reached and not plan.ended.is_set():
            await checkpoint()
        return plan.judge(window)


class Never(AtOnce):
    """Has no verdict."""

    async def check(self, window: Window) -> Sequence[Decision]:
        await anyio.sleep_forever()
        return ()


class Stage:
    """An app that answers as planned, behind several middlewares; a test chooses one."""

    def __init__(self) -> None:
        self.plan = Plan((), "text/plain")
        app = Starlette(routes=[Route("/{rest:path}", self._answer, methods=["POST"])])
        answers = {"output", "tool_call", "reasoning"}

        def behind(agent: TextGuardrail, on: Any, **options: Any) -> AgentMiddleware:
            config = AgentConfig("judge", agent, circuit_breaker=None, **options)
            return AgentMiddleware(app, agents=[config], guardrails=[Guardrail("judge", on=on)])

        self._guarded = {
            "at once": behind(AtOnce(self), answers),
            "late": behind(Late(self), answers, timeout=PATIENCE),
            "open": behind(AtOnce(self), answers, failure_mode=FailureMode.OPEN),
            "never": behind(Never(self), answers, timeout=0.05),
            "input": behind(AtOnce(self), {"input"}),
        }
        self._chosen = self._guarded["at once"]
        self.url = ""

    def choose(self, guard: str, plan: Plan) -> Plan:
        """From now on this middleware is in front of the app."""
        self._chosen = self._guarded[guard]
        self.plan = plan
        return plan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._chosen(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        plan = self.plan
        plan.prompt = (await request.body()).decode()
        if plan.media_type == "application/json":
            plan.sent += 1
            plan.ended.set()
            return Response(b"".join(plan.events), media_type=plan.media_type)
        return StreamingResponse(plan.content(), media_type=plan.media_type)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    with serve(stage, lifespan="off") as url:
        stage.url = url.rstrip("/")
        yield stage


@pytest.fixture(scope="module", params=PARAMETERS)
def client(request: pytest.FixtureRequest, stage: Stage) -> Iterator[Client]:
    way, asynchronous = request.param
    with connected(way, stage.url, asynchronous=asynchronous) as client:
        yield client


@pytest.fixture(scope="module", params=PLAIN)
def plain_client(request: pytest.FixtureRequest, stage: Stage) -> Iterator[Client]:
    """Of the clients without their helpers, which are for streams alone."""
    way, asynchronous = request.param
    with connected(way, stage.url, asynchronous=asynchronous) as client:
        yield client


def planned(sample: Sample, **how: Any) -> Plan:
    return Plan(events_of(sample)[0], sample.media_type, **how)


def check_redacted(sample: Sample, reading: Reading) -> None:
    assert reading.text == REDACTED
    assert reading.arguments
    assert all(arguments == REDACTED_ARGUMENTS for arguments in reading.arguments)
    assert not EMAIL.search(reading.tokens)
    assert reading.end not in {"", *FILTERED}


def test_a_stream_with_nothing_in_it_passes_unchanged(stage: Stage, client: Client) -> None:
    events, text = events_of(client.sample)
    # A broken guardrail that fails open finds nothing.
    plan = stage.choose("open", planned(client.sample, behind=0, how="fails"))
    reading = client.read()
    assert reading.text == text
    assert reading.arguments
    assert all(arguments == ARGUMENTS for arguments in reading.arguments)
    assert reading.end not in {"", *FILTERED}
    assert plan.sent_when_stopped is not None
    stage.choose("open", planned(client.sample, behind=0, how="fails"))
    assert httpx.post(f"{stage.url}/x", content=b"{}").content == b"".join(events)


@pytest.mark.parametrize("guard", ["at once", "late"])
def test_a_redacted_stream_is_read(stage: Stage, client: Client, guard: str) -> None:
    stage.choose(guard, planned(client.sample))
    check_redacted(client.sample, client.read())


@pytest.mark.parametrize("guard", ["at once", "late"])
@pytest.mark.parametrize("how", ["blocks", "fails"])
def test_a_stream_that_is_stopped_at_any_event_is_understood(
    stage: Stage, client: Client, guard: str, how: How
) -> None:
    count = len(events_of(client.sample)[0])
    stops = 0
    for behind in range(count):
        plan = stage.choose(guard, planned(client.sample, behind=behind, how=how))
        reading = check_stopped(plan, client)
        stops += plan.sent_when_stopped is not None
        if plan.sent_when_stopped is None:
            assert reading is not None
            check_redacted(client.sample, reading)
        check_app_was_stopped(plan)
    # Behind the last text, nothing is judged any more as it comes; late verdicts come behind every event.
    assert stops == count if guard == "late" else stops > count // 2


def check_stopped(plan: Plan, client: Client) -> Reading | None:
    """Read a stream that is stopped somewhere. Returns what was read if the client doesn't raise."""
    reasons = (REASON, FILTERED_ERROR) if plan.how == "blocks" else (UNAVAILABLE,)
    try:
        reading = client.read()
    except client.errors as exc:
        if plan.sent_when_stopped is None or not any(reason in str(exc) for reason in reasons):
            raise
        return None
    if plan.sent_when_stopped is not None:
        assert plan.how == "blocks", f"behind {plan.behind}: the client takes the part for the whole"
        assert reading.end in FILTERED, (plan.behind, reading)
        assert REDACTED.startswith(reading.text)
        # No call that was refused arrives as one without arguments, or with some of them.
        assert all(arguments == REDACTED_ARGUMENTS for arguments in reading.arguments), (plan.behind, reading)
    return reading


def has_ended(plan: Plan) -> bool:
    """Whether the app's generator ends.

    One that is not stopped in a step of its own is left to the garbage collector, as for clients that leave.
    """
    deadline = time.monotonic() + PATIENCE
    while not plan.ended.wait(0.02) and time.monotonic() < deadline:
        gc.collect()
    return plan.ended.is_set()


def check_app_was_stopped(plan: Plan, *, within: int = 1) -> None:
    """The app has found its client gone, ``within`` so many events behind the verdict."""
    assert has_ended(plan)
    if plan.sent_when_stopped is not None:
        assert plan.sent - plan.sent_when_stopped <= within, plan.behind


@pytest.mark.parametrize("source", ["awaited", "at hand", "thread"])
@pytest.mark.parametrize("guard", ["at once", "late"])
@pytest.mark.parametrize("how", ["blocks", "fails"])
def test_the_app_is_stopped_within_a_token(stage: Stage, guard: str, how: How, source: Source) -> None:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    choice = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
    event = f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()
    for behind in (0, 1, 7, 40):
        plan = stage.choose(guard, Plan([event] * 1000, "text/event-stream", behind, how, source))
        content = httpx.post(f"{stage.url}/v1/chat/completions", content=b"{}", timeout=PATIENCE).content
        assert plan.sent_when_stopped is not None
        assert content.endswith(b"data: [DONE]\n\n") if how == "blocks" else UNAVAILABLE.encode() in content
        check_app_was_stopped(plan)


# Answers in one piece


def whole(sample: Sample) -> bytes:
    """What a provider answers to those who don't ask for a stream."""
    text = events_of(sample)[1]
    arguments = json.dumps(ARGUMENTS)
    answers: dict[str, Any] = {
        "chat": {
            "id": "c1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": text,
                        "tool_calls": [
                            {"id": "t", "type": "function", "function": {"name": "send", "arguments": arguments}}
                        ],
                    },
                    "logprobs": {
                        "content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}],
                        "refusal": None,
                    },
                    "finish_reason": "tool_calls",
                }
            ],
        },
        "responses": {
            "id": "r1",
            "object": "response",
            "created_at": 0,
            "status": "completed",
            "model": "m",
            "output": [
                {
                    "type": "message",
                    "id": "m1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
                },
                {"type": "function_call", "id": "f1", "call_id": "f1", "name": "send", "arguments": arguments},
            ],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
        },
        "anthropic": {
            "id": "m1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [
                {"type": "text", "text": text},
                {"type": "tool_use", "id": "t1", "name": "send", "input": ARGUMENTS},
            ],
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 4},
        },
        "ollama": {
            "model": "m",
            "created_at": "2026-01-01T00:00:00Z",
            "message": {
                "role": "assistant",
                "content": text,
                "tool_calls": [{"function": {"name": "send", "arguments": ARGUMENTS}}],
            },
            "done": True,
            "done_reason": "stop",
        },
        "gemini": {
            "candidates": [
                {
                    "content": {
                        "parts": [{"text": text}, {"functionCall": {"name": "send", "args": ARGUMENTS}}],
                        "role": "model",
                    },
                    "index": 0,
                    "finishReason": "STOP",
                }
            ]
        },
    }
    return json.dumps(answers[sample.name]).encode()


def planned_whole(sample: Sample, **how: Any) -> Plan:
    return Plan([whole(sample)], "application/json", **how)


def test_a_redacted_answer_is_read(stage: Stage, plain_client: Client) -> None:
    stage.choose("at once", planned_whole(plain_client.sample))
    check_redacted(plain_client.sample, plain_client.read_whole())


def status_of(exc: Exception) -> int:
    """The status that a client says that it got."""
    status: int = getattr(exc, "status_code", None) or exc.code  # type: ignore[attr-defined]
    return status


def test_a_blocked_answer_is_an_error_with_its_reason(stage: Stage, plain_client: Client) -> None:
    stage.choose("at once", planned_whole(plain_client.sample, behind=0))
    with pytest.raises(plain_client.errors, match=REASON) as caught:
        plain_client.read_whole()
    assert status_of(caught.value) == 400
    if plain_client.way.name.startswith(("openai", "anthropic")):
        assert type(caught.value).__name__ == "BadRequestError"


@pytest.mark.parametrize(("guard", "told", "status"), [("at once", UNAVAILABLE, 503), ("never", LATE, 504)])
def test_an_answer_that_could_not_be_judged_is_an_error(
    stage: Stage, plain_client: Client, guard: str, told: str, status: int
) -> None:
    stage.choose(guard, planned_whole(plain_client.sample, behind=0, how="fails"))
    with pytest.raises(plain_client.errors, match=told) as caught:
        plain_client.read_whole()
    assert status_of(caught.value) == status


def test_a_stream_without_a_verdict_is_an_error(stage: Stage, client: Client) -> None:
    plan = stage.choose("never", planned(client.sample))
    with pytest.raises(client.errors, match=LATE):
        client.read()
    assert has_ended(plan)


# Requests


@pytest.mark.parametrize("stream", [True, False])
def test_the_app_reads_a_redacted_prompt(stage: Stage, plain_client: Client, stream: bool) -> None:
    sample = plain_client.sample
    plan = stage.choose("input", planned(sample) if stream else planned_whole(sample))
    read = plain_client.read if stream else plain_client.read_whole
    assert read("I am alice@example.com.").end not in {"", *FILTERED}
    assert "I am [0]." in plan.prompt
    assert "alice" not in plan.prompt


STOPS: Final = pytest.mark.parametrize(
    ("how", "told", "status"), [("blocks", REASON, 400), ("fails", UNAVAILABLE, 503)]
)


@STOPS
def test_a_prompt_that_is_stopped_is_an_error_with_its_reason(
    stage: Stage, client: Client, how: How, told: str, status: int
) -> None:
    plan = stage.choose("input", planned(client.sample, behind=-1, how=how))
    with pytest.raises(client.errors, match=told) as caught:
        client.read()
    assert status_of(caught.value) == status
    assert plan.sent == 0, "the app was called"


@STOPS
def test_a_prompt_for_an_answer_that_is_stopped_is_an_error_with_its_reason(
    stage: Stage, plain_client: Client, how: How, told: str, status: int
) -> None:
    plan = stage.choose("input", planned_whole(plain_client.sample, behind=-1, how=how))
    with pytest.raises(plain_client.errors, match=told) as caught:
        plain_client.read_whole()
    assert status_of(caught.value) == status
    assert plan.sent == 0, "the app was called"
