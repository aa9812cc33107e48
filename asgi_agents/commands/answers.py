"""Answers of agents as they are printed."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from ..protocol import (
    AgentResponse,
    Block,
    BodyMutation,
    Challenge,
    Encoding,
    GuardrailResponse,
    HeaderOp,
    Redirect,
    WebSocketClose,
    encode_answer,
)
from ..recording.cleaning import Cleaner

# Bytes of a body that are shown.
_MOST_SHOWN: Final = 500
_CLEANER: Final = Cleaner(bodies=True)


class AnswerLines(Struct, frozen=True):
    """An answer for a reader: what stands behind the outcome, and a line for each detail."""

    marks: Sequence[str] = ()
    details: Sequence[tuple[str, str]] = ()


def without_secrets(answer: AgentResponse | GuardrailResponse) -> AgentResponse | GuardrailResponse:
    """An answer without what looks like a credential, as recordings have it too."""
    cleaned: AgentResponse | GuardrailResponse = _CLEANER.answer(answer).value
    return cleaned


def plain_without_secrets(value: Any) -> Any:
    """The same of plain values, such as parts of answers as they are on the wire."""
    return _CLEANER.plain(value)


def url_without_secrets(url: str) -> str:
    """The same of a URL, or of what ends in one."""
    return _CLEANER.url(url)


def plain_answer(answer: AgentResponse | GuardrailResponse) -> Any:
    """An answer as it is on the wire, as JSON."""
    return json.loads(encode_answer(answer, Encoding.JSON))


def lines_of(answer: AgentResponse | GuardrailResponse) -> AnswerLines:
    """An answer for a reader."""
    if isinstance(answer, GuardrailResponse):
        return _inspection(answer)
    marks: list[str] = []
    details: list[tuple[str, str]] = []
    match answer.decision:
        case Block(status, body, headers):
            marks.append(str(status))
            details += [("body", _text(body))] if body is not None else []
            details += _fields("header", headers)
        case Redirect(url, status):
            marks.append(str(status))
            details.append(("to", url))
        case Challenge(kind, params):
            marks.append(kind)
            details += _fields("param", params)
    if isinstance(answer.websocket_decision, WebSocketClose):
        marks.append(str(answer.websocket_decision.code))
        details += [("reason", _text(answer.websocket_decision.reason))] if answer.websocket_decision.reason else []
    marks += [name for name in ("needs_more", "skip_body") if getattr(answer, name)]
    for name, ops in (("request header", answer.request_headers), ("response header", answer.response_headers)):
        details += [(name, _op(op)) for op in ops]
    for name, mutation in (
        ("request body", answer.request_body_mutation),
        ("response body", answer.response_body_mutation),
    ):
        details += [] if mutation is None else [(name, _mutation(mutation))]
    audit = answer.audit
    for name, values in (("reason", audit.reason_codes), ("rule", audit.rule_ids), ("tag", audit.tags)):
        details += [(name, ", ".join(map(str, values)))] if values else []
    details += [] if audit.confidence is None else [("confidence", f"{audit.confidence:g}")]
    details += _fields("audit", audit.custom)
    details += _fields("routing", answer.routing_metadata)
    return AnswerLines(marks, details)


def _inspection(answer: GuardrailResponse) -> AnswerLines:
    details = [("confidence", f"{answer.confidence:g}")] if answer.detected else []
    for detection in answer.detections:
        where = "" if detection.span is None else f" at {detection.span.start}-{detection.span.end}"
        text = f"{detection.category} ({detection.severity}){where}: {detection.description}"
        details.append(("detection", text))
    details += [] if answer.redacted_content is None else [("redacted", _text(answer.redacted_content))]
    return AnswerLines((), details)


def _fields(name: str, fields: Mapping[str, object] | None) -> list[tuple[str, str]]:
    return [(name, f"{field}: {value}") for field, value in (fields or {}).items()]


def _op(op: HeaderOp) -> str:
    what = op.name if op.kind == "remove" else f"{op.name}: {op.value}"
    return f"{op.kind} {what}" + (" (always)" if op.always else "")


def _mutation(mutation: BodyMutation) -> str:
    if mutation.data is None:
        return "unchanged"
    return _text(mutation.data.decode(errors="backslashreplace")) if mutation.data else "dropped"


def _text(text: str) -> str:
    shown = text.replace("\r", "\\r").replace("\n", "\\n")
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}… ({len(text)} characters)"
