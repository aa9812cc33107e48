"""Checks acknowledgements and guardrail answers, and converts the offsets of spans."""

from collections.abc import Callable, Sequence
from typing import Final, Literal

from msgspec.structs import replace

from ..errors import AgentProtocolError
from .events import Event, GuardrailInspectEvent
from .responses import Acknowledgement, Answer, Detection, GuardrailResponse, Severity, TextSpan
from .validation import check_bool, check_number, check_text, number_or_type

#: The unit of a span's offsets: code points of the content, or bytes of its UTF-8 encoding.
SpanUnit = Literal["codepoints", "bytes"]

_SEVERITIES: Final = ", ".join(repr(severity.value) for severity in Severity)
_ACTIONS: Final = (None, "redact", "block", "flag")
_UNIT_HINT: Final = "a remote agent that counts bytes needs span_unit='bytes'"


def check_inspection(answer: GuardrailResponse, content: str) -> GuardrailResponse:
    """Return ``answer`` if everything in it is of its type and within ``content``.

    Raises :class:`AgentProtocolError` naming the field at fault otherwise.
    """
    check_bool("detected", answer.detected)
    check_number("confidence", answer.confidence)
    if answer.redacted_content is not None:
        check_text("redacted_content", answer.redacted_content)
    if not isinstance(answer.detections, tuple):
        raise AgentProtocolError(
            f"detections: expected a sequence of Detection, got {type(answer.detections).__name__}"
        )
    for index, detection in enumerate(answer.detections):
        _check_detection(f"detections[{index}]", detection, len(content))
    return answer


def _check_detection(field: str, detection: object, length: int) -> None:
    if not isinstance(detection, Detection):
        raise AgentProtocolError(f"{field}: expected a Detection, got {type(detection).__name__}")
    check_text(f"{field}.category", detection.category)
    check_text(f"{field}.description", detection.description)
    if not isinstance(detection.severity, Severity):
        raise AgentProtocolError(
            f"{field}.severity: expected one of {_SEVERITIES}, got {type(detection.severity).__name__}"
        )
    if detection.confidence is not None:
        check_number(f"{field}.confidence", detection.confidence)
    if detection.replacement is not None:
        check_text(f"{field}.replacement", detection.replacement)
    if detection.action not in _ACTIONS:
        raise AgentProtocolError(f"{field}.action: expected 'redact', 'block', 'flag' or None")
    if detection.span is not None:
        _check_span(f"{field}.span", detection.span)
        if detection.span.end > length:
            raise AgentProtocolError(
                f"{field}.span.end: expected at most {length}, the code points of the content, "
                f"got {number_or_type(detection.span.end)}; {_UNIT_HINT}"
            )


def _check_span(field: str, span: object) -> None:
    if not isinstance(span, TextSpan):
        raise AgentProtocolError(f"{field}: expected a TextSpan or None, got {type(span).__name__}")
    for name, offset in (("start", span.start), ("end", span.end)):
        if type(offset) is not int:
            raise AgentProtocolError(f"{field}.{name}: expected an int, got {type(offset).__name__}")
    if span.start < 0:
        raise AgentProtocolError(f"{field}.start: expected at least 0, got {number_or_type(span.start)}")
    if span.end < span.start:
        raise AgentProtocolError(f"{field}.end: expected at least its start, got {number_or_type(span.end)}")


def check_acknowledgement(answer: Acknowledgement) -> Acknowledgement:
    """Return ``answer`` if everything in it is of its type, else raise :class:`AgentProtocolError` naming the field."""
    check_bool("success", answer.success)
    if answer.error is not None:
        check_text("error", answer.error)
    return answer


def in_code_points(answer: Answer, event: Event, unit: SpanUnit) -> Answer:
    """The answer of an agent that counts in ``unit``, with the spans of its detections converted to code points.

    Raises :class:`AgentProtocolError` as :func:`count_code_points` does.
    """
    if unit == "bytes" and isinstance(answer, GuardrailResponse) and isinstance(event, GuardrailInspectEvent):
        return count_code_points(answer, event.content)
    return answer


def count_code_points(answer: GuardrailResponse, content: str) -> GuardrailResponse:
    """An answer with the spans of its detections in code points, where the agent has counted bytes of UTF-8.

    Raises :class:`AgentProtocolError` for a span that is not within ``content`` or begins or ends within a character.
    """
    spans = [(index, detection.span) for index, detection in enumerate(answer.detections) if detection.span is not None]
    if not spans:
        return answer
    for index, span in spans:
        _check_span(f"detections[{index}].span", span)
    converted = _converter(content, sorted({offset for _, span in spans for offset in (span.start, span.end)}))
    detections = list(answer.detections)
    for index, span in spans:
        field = f"detections[{index}].span"
        in_code_points = TextSpan(converted(f"{field}.start", span.start), converted(f"{field}.end", span.end))
        detections[index] = replace(detections[index], span=in_code_points)
    return replace(answer, detections=tuple(detections))


def _converter(content: str, offsets: Sequence[int]) -> Callable[[str, int], int]:
    """A function that maps a field's name and one of ``offsets``, which are sorted, to the index of the code point.

    The content is gone through once, however many offsets there are.
    """
    data = content.encode()
    indices: dict[int, int] = {}
    at = index = 0
    for offset in offsets:
        if offset > len(data) or _is_within_a_character(data, offset):
            continue
        index += len(data[at:offset].decode())
        at = offset
        indices[offset] = index

    def convert(field: str, offset: int) -> int:
        found = indices.get(offset)
        if found is not None:
            return found
        if offset > len(data):
            raise AgentProtocolError(
                f"{field}: expected at most {len(data)}, the bytes of the content, got {number_or_type(offset)}"
            )
        raise AgentProtocolError(f"{field}: expected the beginning of a character, got byte {offset} within one")

    return convert


def _is_within_a_character(data: bytes, offset: int) -> bool:
    """Whether a byte continues a character (RFC 3629, section 3)."""
    return offset < len(data) and data[offset] & 0xC0 == 0x80
