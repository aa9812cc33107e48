"""What guardrails say, rightly or wrongly, and what is done about it."""

import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from asgi_agents import Agent, Detection, FailureMode, GuardrailInspectEvent, GuardrailResponse, TextSpan
from asgi_agents.guardrails import Block, Flag, Redact, Window
from tests.guardrails.wired.exchanging import CHAT, ENTITY, Finder, Sending, SettlingFinder, SlowFinder, asking, one
from tests.guardrails.wired.test_endings import event
from tests.guardrails.wired.test_timing import Timed
from tests.support.asgi import Client

pytestmark = pytest.mark.anyio

_OUT: Final = {"output"}
_TEXT: Final = f"I am {ENTITY}."


def answer() -> Sending:
    return Sending([json.dumps(_TEXT).encode()], "application/json", length=True)


class Answering(Agent):
    """Gives the same answer to everything."""

    def __init__(self, answer: GuardrailResponse) -> None:
        self.answer = answer

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        return self.answer


def detection(start: int | None = None, end: int = 0, **said: Any) -> Detection:
    span = None if start is None else TextSpan(start, end)
    return Detection(category="x", description="", span=span, **said)


def found(*detections: Detection, **said: Any) -> GuardrailResponse:
    return GuardrailResponse(detected=True, confidence=1.0, detections=detections, **said)


async def text_of(agent: Agent, **options: Any) -> Any:
    client = Client("GET", "/x")
    await one(answer(), agent, _OUT, **options).call(client)
    return json.loads(client.body) if client.status == 200 else client.status


@pytest.mark.parametrize("agent", [Finder, SlowFinder])
async def test_overlapping_redactions_are_merged_and_the_first_text_stands(agent: Any) -> None:
    for decisions, expected in (
        ([Redact(0, 4, "A"), Redact(2, 9, "B")], f"A{_TEXT[9:]}"),
        ([Redact(2, 9, "B"), Redact(0, 4, "A")], f"A{_TEXT[9:]}"),
        ([Redact(0, 9, "A"), Redact(2, 4, "B")], f"A{_TEXT[9:]}"),
        ([Redact(0, 2, "A"), Redact(2, 4, "B")], f"AB{_TEXT[4:]}"),
        ([Redact(0, len(_TEXT), "")], ""),
        ([Redact(3, 3, "+")], f"{_TEXT[:3]}+{_TEXT[3:]}"),
        ([Redact(0, 1, 'é\U0001f600\\"\n')], f'é\U0001f600\\"\n{_TEXT[1:]}'),
        ([Flag(0, 4, "a"), Redact(5, 28, "[0]")], "I am [0]."),
        ([Redact(5, 28, "[0]"), Block("no")], 400),
        ((), _TEXT),
        (None, _TEXT),
    ):
        assert await text_of(agent(lambda window, decisions=decisions: decisions)) == expected


_WRONG: Final[list[Callable[[Window], Any]]] = [
    lambda window: [Redact(0, len(window.text) + 1, "")],
    lambda window: [Redact(-1, 2, "")],
    lambda window: [Redact(3, 2, "")],
    lambda window: [Flag(0, 10**9, "x")],
    lambda window: [Redact("0", 1, "")],  # type: ignore[arg-type]
    lambda window: [Redact(0, 1, None)],  # type: ignore[arg-type]
    lambda window: [Redact(True, 2, "")],
    lambda window: [Block(None)],  # type: ignore[arg-type]
    lambda window: ["x"],
    lambda window: "x",
    lambda window: 5,
    lambda window: Redact(0, 1, ""),
    lambda window: (Redact(0, 1, "") for _ in "x"),
]


@pytest.mark.parametrize("number", range(len(_WRONG)))
async def test_a_wrong_decision_is_an_error_of_the_agent(number: int) -> None:
    find = _WRONG[number]
    for agent in (Finder(find), SettlingFinder(find), SlowFinder(find)):
        assert await text_of(agent) == 503
        assert await text_of(agent, failure_mode=FailureMode.OPEN) == _TEXT
        client = Timed()
        app = Sending([event("I am alice.smith"), event("@example.com, "), event("bye.")])
        guarded = one(app, agent, _OUT)
        await guarded.call(client)
        assert client.complete
        assert b"Agent unavailable" in client.body
        assert client.text_by(100) == ""
        assert guarded.record.decision == "error"


async def test_wrong_decisions_open_the_breaker() -> None:
    guarded = one(answer(), Finder(_WRONG[0]), _OUT)
    for _ in range(6):
        client = Client("GET", "/x")
        await guarded.call(client)
    assert client.status == 503
    assert client.body == b"Service unavailable"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (found(detection(5, 28)), "I am [x]."),
        (found(detection(5, 28, replacement="")), "I am ."),
        (found(detection(5, 28, replacement="you")), "I am you."),
        (found(detection(5, 28, confidence=0.4)), _TEXT),
        (found(detection(5, 28, confidence=0.5)), "I am [x]."),
        (found(detection(5, 28, confidence=None)), "I am [x]."),
        (found(detection()), "[x]"),
        (found(), "[content]"),
        (found(detection(0, 1), detection(5, 28)), "[x] am [x]."),
        (found(detection(5, 28, action="block")), 400),
        (found(detection(5, 28, action="flag")), _TEXT),
        (found(redacted_content="no"), "no"),
        (found(redacted_content=""), ""),
        (GuardrailResponse(detected=False, redacted_content=_TEXT), _TEXT),
        (found(detection(5, 99)), 503),
        (found(detection(9, 5)), 503),
        (GuardrailResponse(detected=False), _TEXT),
        (GuardrailResponse(detected=False, detections=[detection(5, 28)]), "I am [x]."),
        ("yes", 503),
        ({"detected": True}, 503),
    ],
)
async def test_answers_with_detections(answer: Any, expected: Any) -> None:
    assert await text_of(Answering(answer)) == expected


async def test_a_detection_without_a_span_takes_the_whole_window() -> None:
    app = Sending([event(f"some words {index}, ") for index in range(60)])
    client = Timed()
    await one(app, Answering(found(detection())), _OUT).call(client)
    assert "words" not in client.text_by(100)
    assert client.text_by(100)


class Unsettled(SettlingFinder):
    def __init__(self, says: Callable[[str], Any]) -> None:
        super().__init__()
        self.says = says

    def settled(self, text: str) -> int:
        number: int = self.says(text)
        return number


def raising(text: str) -> int:
    raise RuntimeError(text)


@pytest.mark.parametrize(
    "says",
    [raising, lambda text: -1, lambda text: len(text) + 1, lambda text: "x", lambda text: None, lambda text: 1.5],
)
async def test_a_wrong_word_about_what_is_settled_lets_nothing_leave(says: Callable[[str], Any]) -> None:
    for mode in FailureMode:
        app = Sending([event("I am alice.smith"), event("@example.com, "), event("bye.")])
        client = Timed()
        await one(app, Unsettled(says), _OUT, failure_mode=mode, circuit_breaker=None).call(client)
        assert "alice" not in client.text_by(100)
        assert client.complete


async def test_a_slot_is_judged_by_the_kind_that_it_is() -> None:
    kinds: list[tuple[str, str | None, str | None]] = []

    class Seeing(Finder):
        async def on_guardrail_inspect(self, event: Any) -> Any:
            kinds.append((event.slot.kind, event.slot.role, event.slot.tool))
            return await super().on_guardrail_inspect(event)

    message = {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "b",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "send", "arguments": '{"to": "c"}'}}],
    }
    app = Sending([json.dumps({"choices": [{"index": 0, "message": message}]}).encode()], "application/json")
    body = {"messages": [{"role": "system", "content": "d"}, {"role": "user", "content": "e"}]}
    await one(app, Seeing()).call(asking(CHAT, json.dumps(body).encode()))
    assert sorted(kinds, key=str) == sorted(
        [
            ("input", "system", None),
            ("input", "user", None),
            ("output", "assistant", None),
            ("reasoning", "assistant", None),
            ("tool_call", "assistant", "send"),
        ],
        key=str,
    )


async def test_a_flag_without_a_category_is_counted_as_a_flag() -> None:
    for app in (answer(), Sending([event(_TEXT)])):
        guarded = one(app, Finder(lambda window: [Flag(0, 4, "")]), _OUT)
        await guarded.call(Timed())
        (report,) = guarded.record.guardrails
        assert report.counts == guarded.middleware.manager.metrics["g"].finds == {"flag": 1}


@pytest.mark.parametrize("path", [CHAT, "/x", "/v1/messages"])
@pytest.mark.parametrize("kind", ["input", "output"])
async def test_a_reason_may_quote_what_utf_8_can_not_carry(path: str, kind: str) -> None:
    body = b'{"a": "\\ud800"}'
    agent = Finder(lambda window: [Flag(0, 1, window.text), Block(f"not {window.text}")])
    guarded = one(Sending([body], "application/json"), agent, {kind})
    client = await guarded.call(asking(path, body))
    assert client.status == 400
    assert b"not ?" in client.body
    assert guarded.record.decision == "block"
    assert str(guarded.record)
