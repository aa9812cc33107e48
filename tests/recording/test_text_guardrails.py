"""Text guardrails in the process are recorded in the protocol's words: nothing more is written, and it comes again."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.responses import StreamingResponse

from asgi_agents import Agent, AgentConfig, AgentManager, GuardrailInspectEvent, GuardrailResponse, protect
from asgi_agents.guardrails import Block, Decision, Flag, Guardrail, Redact, TextGuardrail, Window
from asgi_agents.recording import RecordedAgent, assert_same_decisions, record
from asgi_agents.recording.cleaning import Cleaner

from .judges import exchanges_in, text_in

KEY = re.compile(r"sk\d{6}")
PRIVATE = "Anna is ill"
TEXTS = [
    f"{PRIVATE}, and her key is sk123456, as sk654321 was",
    f"{PRIVATE}, stop",
    f"{PRIVATE}, odd",
    f"{PRIVATE}, and nothing else",
]


class Keys(TextGuardrail):
    hold = 20

    async def check(self, window: Window) -> Sequence[Decision] | None:
        if "stop" in window.text:
            return [Block("not this")]
        found: list[Decision] = [Redact(*match.span(), "[key]") for match in KEY.finditer(window.text, window.fresh)]
        odd = window.text.find("odd", window.fresh)
        return [*found, Flag(odd, odd + 3, "odd")] if odd >= 0 else found


class Whole(Agent):
    """Judges text, and knows no windows."""

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        return GuardrailResponse(detected="stop" in event.content, redacted_content=KEY.sub("[key]", event.content))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


def chat(agent: Any, on: str) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> StreamingResponse:
        text = (await request.json())["messages"][0]["content"]

        async def events() -> Any:
            for word in text.split(" "):
                choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
                said = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
                yield f"data: {json.dumps(said)}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    guardrail = Guardrail("keys", on={on}, hold=20)  # type: ignore[arg-type]
    protect(app, agents=[AgentConfig("keys", agent, circuit_breaker=None)], guardrails=[guardrail])
    return app


def use(app: FastAPI, texts: Sequence[str] = TEXTS) -> list[tuple[int, str]]:
    """The status of each answer, and what a client has read of it."""
    found = []
    with TestClient(app) as client:
        for text in texts:
            body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": text}]}
            response = client.post("/v1/chat/completions", json=body)
            said = "".join(re.findall(r'"content": ?"([^"]*)"', response.text))
            found.append((response.status_code, said or response.text))
    return found


@pytest.mark.parametrize("agent", [Keys, Whole])
@pytest.mark.parametrize("on", ["input", "output"])
def test_without_bodies_no_text_of_a_window_is_in_the_file(agent: type[Agent], on: str, path: Path) -> None:
    long = [text + " and so on" * 100 for text in TEXTS]
    app = chat(agent(), on)
    with record(app, path) as log:
        use(app, long)
    assert log.exchanges > (len(TEXTS) if on == "output" else 3)
    for word in ("Anna", "sk123456", "and so on", "[key]"):
        assert word not in text_in(path)
    for exchange in exchanges_in(path):
        assert exchange.about.left_out["content"] > 0
        assert set(exchange.about.left_out) <= {"content", "window.context"}
        assert isinstance(exchange.event, GuardrailInspectEvent)
        assert "window.start" in exchange.event.metadata


def test_with_bodies_the_text_is_cleaned_as_any_other(path: Path) -> None:
    app = chat(Keys(), "input")
    with record(app, path, bodies=True):
        use(app, [f"{PRIVATE}; password=hunter2hunter2"])
    assert PRIVATE in text_in(path)
    assert "hunter2" not in text_in(path)


@pytest.mark.parametrize("on", ["input", "output"])
def test_the_same_guardrail_decides_the_same_in_a_replay_and_another_one_does_not(on: str, path: Path) -> None:
    app = chat(Keys(), on)
    with record(app, path, bodies=True):
        use(app, [*TEXTS, *(text + " and so on" * 100 for text in TEXTS)])
    report = assert_same_decisions(path, Keys())
    assert (report.compared, report.redacted) == (len(exchanges_in(path)), 0)
    with pytest.raises(AssertionError, match="different"):
        assert_same_decisions(path, Whole())


def test_recorded_decisions_on_texts_come_again(path: Path) -> None:
    app = chat(Keys(), "input")
    with record(app, path, bodies=True):
        expected = use(app)
    assert [status for status, _ in expected] == [200, 400, 200, 200]
    assert use(chat(RecordedAgent(path), "input")) == expected


@pytest.mark.parametrize("bodies", [True, False])
@pytest.mark.parametrize("on", ["input", "output"])
def test_what_was_blocked_or_redacted_does_not_pass_with_recorded_answers(on: str, bodies: bool, path: Path) -> None:
    app = chat(Keys(), on)
    with record(app, path, bodies=bodies):
        use(app)
    for agent in (RecordedAgent(path), RecordedAgent(path, repeat=True)):
        said = use(chat(agent, on))
        for forbidden in ("sk123456", "sk654321", "stop"):
            assert not any(forbidden in text for _, text in said)


async def test_windows_that_differ_in_what_precedes_them_are_different_questions(path: Path) -> None:
    def question(**metadata: str) -> GuardrailInspectEvent:
        said = {name.replace("_", "."): value for name, value in metadata.items()}
        return GuardrailInspectEvent(correlation_id="c", inspection_type="x", content="op", metadata=said)

    questions = [
        question(window_start="1"),
        question(window_context="st", window_start="2"),
        question(window_context="so", window_start="3"),
    ]
    async with AgentManager([AgentConfig("keys", Keys())]) as manager, record(manager, path, bodies=True):
        expected = [await manager.call_guardrail_agent("keys", one) for one in questions]
    async with AgentManager([AgentConfig("keys", RecordedAgent(path))]) as manager:
        found = [await manager.call_guardrail_agent("keys", questions[index]) for index in (0, 2, 1)]
    assert [answer.detected for answer in found] == [False, False, True]
    assert found == [expected[index] for index in (0, 2, 1)]


@pytest.mark.parametrize("bodies", [False, True])
@pytest.mark.parametrize("name", ["window.context", "window.going_on"])
def test_no_text_beside_a_window_is_written_that_may_be_a_piece_of_a_secret(name: str, bodies: bool) -> None:
    token = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiJhbGljZSIsInNjb3BlIjoiYWRtaW4ifQ"
    event = GuardrailInspectEvent(
        correlation_id="c", inspection_type="x", content="x", metadata={name: token[:64], "window.start": "9"}
    )
    cleaned = Cleaner(bodies=bodies).event(event)
    assert isinstance(cleaned.value, GuardrailInspectEvent)
    assert cleaned.value.metadata["window.start"] == "9"
    if bodies and name == "window.context":
        # As the text itself: of a secret that was cut there may be a piece in it.
        return
    assert cleaned.value.metadata[name] in ("", "[redacted]")
    assert cleaned.redacted or cleaned.left_out
