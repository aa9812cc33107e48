from typing import Any

import pytest
from msgspec.structs import replace

from asgi_agents.errors import AgentProtocolError
from asgi_agents.guardrails.slots import Block, Decision, Flag, Redact, Window
from asgi_agents.guardrails.verdicts import Action, decisions_of
from asgi_agents.protocol import Detection, GuardrailResponse, Severity, TextSpan

WINDOW = Window("context: secret", 100, 9, final=False)


def found(category: str = "pii", span: tuple[int, int] | None = (9, 15), confidence: float | None = None) -> Detection:
    return Detection(
        category=category, description="", confidence=confidence, span=None if span is None else TextSpan(*span)
    )


def answer(*detections: Detection, detected: bool = True, redacted: str | None = None) -> GuardrailResponse:
    return GuardrailResponse(detected=detected, detections=detections, redacted_content=redacted)


@pytest.mark.parametrize(
    ("action", "decision"),
    [("redact", Redact(9, 15, "[pii]")), ("block", Block("pii")), ("flag", Flag(9, 15, "pii"))],
)
def test_the_action_is_done_for_each_detection(action: Action, decision: Decision) -> None:
    assert decisions_of(answer(found()), WINDOW, action=action) == [decision]
    assert decisions_of(answer(detected=False), WINDOW, action=action) == []


def test_a_detection_without_a_span_is_of_the_whole_window() -> None:
    assert decisions_of(answer(found(span=None)), WINDOW) == [Redact(9, 15, "[pii]")]
    assert decisions_of(answer(), WINDOW, action="flag") == [Flag(9, 15, "content")]


def test_an_answer_that_redacts_without_spans_takes_the_place_of_what_was_shown() -> None:
    assert decisions_of(answer(redacted="context: x"), WINDOW) == [Redact(0, 15, "context: x")]
    assert decisions_of(answer(redacted="x", detected=False), WINDOW, shown_from=9) == [Redact(9, 15, "x")]
    assert decisions_of(answer(redacted="x"), WINDOW, action="block") == [Block("content")]


def test_threshold_and_categories_choose_among_detections() -> None:
    given = answer(found("a", confidence=0.4), found("b", confidence=0.6), found("c"))
    assert decisions_of(given, WINDOW, action="block") == [Block("b"), Block("c")]
    assert decisions_of(given, WINDOW, action="block", threshold=0.7) == [Block("c")]
    assert decisions_of(given, WINDOW, action="block", categories={"b"}) == [Block("b")]
    assert decisions_of(answer(), WINDOW, action="block", categories={"b"}) == []


@pytest.mark.parametrize(
    ("confidence", "counts"), [(0.0, False), (0.499, False), (0.5, True), (0.501, True), (1.0, True), (None, True)]
)
def test_a_detection_of_just_the_threshold_counts(confidence: float | None, counts: bool) -> None:
    given = answer(found(confidence=confidence))
    assert decisions_of(given, WINDOW, action="block", threshold=0.5) == [Block("pii")] * counts


def test_spans_count_from_where_the_shown_text_begins() -> None:
    assert decisions_of(answer(found(span=(0, 6))), WINDOW, shown_from=9) == [Redact(9, 15, "[pii]")]
    with pytest.raises(AgentProtocolError, match="<= 6"):
        decisions_of(answer(found(span=(0, 7))), WINDOW, shown_from=9)


@pytest.mark.parametrize("severity", Severity)
@pytest.mark.parametrize("least", [None, *Severity])
def test_detections_of_less_severity_are_ignored(severity: Severity, least: Severity | None) -> None:
    order = ["low", "medium", "high", "critical"]
    counts = least is None or order.index(severity.value) >= order.index(least.value)
    detection = replace(found(), severity=severity)
    assert bool(decisions_of(answer(detection), WINDOW, min_severity=least)) == counts
    # An agent that says what is to be done has decided already.
    assert decisions_of(answer(replace(detection, action="block")), WINDOW, min_severity=least) == [Block("pii")]


def test_an_answer_that_says_no_severity_is_ignored_where_one_is_asked_for() -> None:
    assert decisions_of(answer(), WINDOW, min_severity=Severity.LOW) == []
    # What it redacts, it has decided.
    assert decisions_of(answer(redacted="x"), WINDOW, min_severity=Severity.HIGH) == [Redact(0, 15, "x")]


@pytest.mark.parametrize("choice", [{}, {"categories": {"a"}}, {"min_severity": Severity.HIGH}])
@pytest.mark.parametrize("detected", [True, False])
@pytest.mark.parametrize(
    ("action", "decision"),
    [("redact", Redact(9, 15, "***")), ("block", Block("content")), ("flag", Flag(9, 15, "content"))],
)
def test_a_text_that_was_changed_without_a_detection_is_acted_upon_whatever_is_chosen(
    action: Action, decision: Decision, detected: bool, choice: dict[str, Any]
) -> None:
    given = answer(redacted="***", detected=detected)
    assert decisions_of(given, WINDOW, action=action, shown_from=9, **choice) == [decision]
    # Who has changed nothing has found nothing.
    unchanged = answer(redacted="secret", detected=False)
    same = [Redact(9, 15, "secret")] if action == "redact" else []
    assert decisions_of(unchanged, WINDOW, action=action, shown_from=9, **choice) == same
