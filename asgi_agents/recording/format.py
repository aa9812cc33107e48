"""The lines of a recording: JSON, one object a line, each of one of four kinds. No I/O.

The first line is a :class:`RecordingLine`. An :class:`AgentLine` comes before the first :class:`ExchangeLine` of its
agent. The last is an :class:`EndLine`; where it is missing, the recording was cut off. Events and answers are in the
protocol's own encoding. The guide describes all fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ..config import is_agent_id
from ..errors import AgentsError
from ..failures import Failure, FailureKind
from ..policy import MAX_SECONDS
from ..protocol import PROTOCOL_VERSION, Answer, Encoding, EventType, encode_answer

#: The version of the format.
VERSION: Final = 1
#: A line of a recording takes at most so many bytes; a body of 16 MiB in base64 fits in.
MAX_LINE_BYTES: Final = 32 * 1024 * 1024

#: Why a recording ends that nothing has stopped.
CLOSED: Final = "closed"

#: What was done to texts: secrets replaced, something of the application's own, or nothing.
Redaction = Literal["default", "custom", "none"]


class RecordingError(AgentsError, ValueError):
    """A recording can't be read or replayed. The message names the file, and the line where it is about one."""


class RecordingLine(Struct, frozen=True, kw_only=True, tag_field="kind", tag="recording", forbid_unknown_fields=True):
    """The first line. ``time`` is RFC 3339 in UTC, ``bodies`` whether bodies and other content are in the file."""

    version: int
    protocol: int
    time: str
    bodies: bool
    redaction: Redaction


class AgentLine(Struct, frozen=True, kw_only=True, tag_field="kind", tag="agent", forbid_unknown_fields=True):
    """How an agent is configured, as far as its answers depend on it. It holds until another line of that agent."""

    agent: str
    transport: str
    events: Sequence[EventType]
    body_access: Literal["read", "write"]
    may_set_host: bool
    timeout: float
    chunk_timeout: float

    def __post_init__(self) -> None:
        # What configures an agent that the recording is replayed against has to be what can configure one.
        if not is_agent_id(self.agent):
            raise ValueError("agent: expected the id of an agent")
        for name in ("timeout", "chunk_timeout"):
            _require_time(name, getattr(self, name))
            if not getattr(self, name):
                raise ValueError(f"{name}: expected more than 0 seconds")


class FailureLine(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a call has failed."""

    kind: FailureKind
    message: str
    retry_after: float | None = None

    def __post_init__(self) -> None:
        _require_time("retry_after", self.retry_after or 0.0)


class ExchangeLine(
    Struct,
    frozen=True,
    kw_only=True,
    tag_field="kind",
    tag="exchange",
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """An event that an agent was asked about, and what came of it: an answer, a failure, or nothing (``given_up``)."""

    n: int
    agent: str
    at: float
    seconds: float
    event: Raw
    answer: Raw | UnsetType = UNSET
    failure: FailureLine | UnsetType = UNSET
    given_up: bool = False
    chunk: bool = False
    window: bool = False
    route: str | None = None
    #: What is not in the event and the answer, with its length in bytes or characters.
    left_out: Mapping[str, int] = {}
    answer_left_out: Mapping[str, int] = {}
    redacted: bool = False
    answer_redacted: bool = False

    def __post_init__(self) -> None:
        _require_time("seconds", self.seconds)


class EndLine(Struct, frozen=True, kw_only=True, tag_field="kind", tag="end", forbid_unknown_fields=True):
    """The last line. ``dropped`` counts exchanges that are not in the file, ``reason`` says why it ends."""

    exchanges: int
    dropped: int
    reason: str


def _require_time(name: str, seconds: float) -> None:
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{name}: expected 0 to {MAX_SECONDS} seconds")


Line = RecordingLine | AgentLine | ExchangeLine | EndLine

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Line)


class _Version(Struct):
    kind: Any = None
    version: Any = None


_PROBE: Final = msgspec.json.Decoder(_Version)


def encode_line(line: Line) -> bytes:
    """The line, with its end."""
    return _ENCODER.encode(line) + b"\n"


def decode_line(data: bytes) -> Line:
    """The line that is in ``data``.

    :raises RecordingError: it is none; the message says what is wrong, and not where.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RecordingError(str(exc)) from exc


def kind_of_line(data: bytes) -> object:
    """What kind of line is in ``data``, without a look at the rest of it.

    :raises RecordingError: it is no JSON object; the message does not say where.
    """
    try:
        return _PROBE.decode(data).kind
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RecordingError(str(exc)) from exc


def decode_first_line(data: bytes) -> RecordingLine:
    """The first line of a recording.

    :raises RecordingError: it is none, or of a version that is not known; the message does not say where.
    """
    try:
        probe = _PROBE.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        probe = _Version()
    if probe.kind != "recording":
        raise RecordingError('this is no recording, expected a first line with {"kind": "recording", …}')
    if probe.version != VERSION:
        raise RecordingError(f"version: expected {VERSION}, got {probe.version!r:.40}")
    line = decode_line(data)
    assert isinstance(line, RecordingLine)
    if line.protocol != PROTOCOL_VERSION:
        raise RecordingError(f"protocol: expected {PROTOCOL_VERSION}, got {line.protocol}")
    return line


def compact_answer(answer: Answer) -> dict[str, Any]:
    """The answer in the protocol's encoding, without what it says by default.

    It is what a recording has of an answer, and what two answers are compared by.
    """
    given: dict[str, Any] = msgspec.json.decode(encode_answer(answer, Encoding.JSON))
    if "decision" not in given:
        # In the shape of a guardrail's.
        given["detections"] = [_without_empty(detection) for detection in given.get("detections") or ()]
        return {"detected": given.pop("detected"), **_without_empty(given)}
    decision = given.pop("decision")
    if given.get("version") == PROTOCOL_VERSION:
        del given["version"]
    given["audit"] = _without_empty(given.get("audit") or {})
    return {"decision": decision, **_without_empty(given)}


#: What most calls come to.
PLAIN_ALLOW: Final[Mapping[str, Any]] = {"decision": "allow"}


def failure_line(failure: Failure, message: str) -> FailureLine:
    """The failure, with ``message`` in the place of its own."""
    return FailureLine(kind=failure.kind, message=message, retry_after=failure.retry_after)


def encode_plain(value: object) -> Raw:
    """A plain value as part of a line."""
    return Raw(_ENCODER.encode(value))


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, [], {}) and value is not False}
