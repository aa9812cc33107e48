"""What an agent that answers with detections is taken to have decided about a window."""

from collections.abc import Container
from typing import Final, Literal

from ..errors import AgentProtocolError
from ..protocol import Detection, GuardrailResponse, Severity
from .slots import Block, Decision, Flag, Redact, Window

#: What is done about a detection.
Action = Literal["redact", "block", "flag"]
# Severities are declared from the least on.
_RANKS: Final = {severity: rank for rank, severity in enumerate(Severity)}


def decisions_of(
    answer: GuardrailResponse,
    window: Window,
    *,
    action: Action = "redact",
    threshold: float = 0.5,
    categories: Container[str] | None = None,
    min_severity: Severity | None = None,
    shown_from: int = 0,
) -> list[Decision]:
    """The decisions that an answer amounts to.

    A detection's own ``action`` is done whatever its confidence, category and severity. Otherwise ``action`` is. A
    detection without a span is of the whole window. Where there is none at all, ``detected`` is one of its own, and
    ``redacted_content`` takes the place of what the agent was shown. What else is done about that is done whatever
    ``categories`` and ``min_severity`` are: the agent has decided that the text may not leave as it is.

    :param threshold: detections of less confidence are ignored; one that says nothing of it is certain.
    :param categories: detections of others are ignored. None: there are no others.
    :param min_severity: detections of less are ignored. None: none are.
    :param shown_from: an index into ``window.text``: what the agent was shown begins there. Its spans count from there.
    :raises AgentProtocolError: for a span that is not within what it was shown.
    """
    counted = [
        detection
        for detection in answer.detections
        # An agent that says what is to be done has decided already.
        if detection.action is not None
        or (
            (1.0 if detection.confidence is None else detection.confidence) >= threshold
            and (categories is None or detection.category in categories)
            and (min_severity is None or _RANKS[detection.severity] >= _RANKS[min_severity])
        )
    ]
    if not answer.detections:
        redacted = answer.redacted_content
        if redacted is not None and action == "redact":
            return [Redact(shown_from, len(window.text), redacted)]
        # Who says nothing else has said no category and no severity, so that none can be asked for.
        detected = answer.detected and categories is None and min_severity is None
        if detected or (redacted is not None and redacted != window.text[shown_from:]):
            counted = [Detection(category="content", description="")]
    return [_decision(detection, window, action, shown_from) for detection in counted]


def _decision(detection: Detection, window: Window, action: Action, shown_from: int) -> Decision:
    action = detection.action or action
    if action == "block":
        return Block(detection.category)
    start, end = window.fresh, len(window.text)
    if detection.span is not None:
        start, end = detection.span.start + shown_from, detection.span.end + shown_from
        if not shown_from <= start <= end <= len(window.text):
            raise AgentProtocolError(
                f"detections[].span: expected 0 <= start <= end <= {len(window.text) - shown_from}, "
                f"got {detection.span.start!r:.40} and {detection.span.end!r:.40}"
            )
    if action == "flag":
        return Flag(start, end, detection.category)
    return Redact(start, end, f"[{detection.category}]" if detection.replacement is None else detection.replacement)
