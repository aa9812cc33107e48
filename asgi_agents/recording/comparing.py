"""Two outcomes of one event: what was recorded, and what has come now. No I/O."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from msgspec import Struct

from ..decision import Verdict
from ..failures import FailureKind
from ..protocol import ALLOW, Answer, EventType, RequestHeadersEvent
from ..protocol.stream import correlation_id_of
from .cleaning import Cleaner
from .format import PLAIN_ALLOW, compact_answer
from .reading import RecordedExchange

#: Failures of calls that have not come as far as the agent.
NOT_ASKED: Final = frozenset({FailureKind.BREAKER_OPEN, FailureKind.QUEUE_TIMEOUT, FailureKind.UNAVAILABLE})

#: Stands in a :class:`Difference` for what is not there.
ABSENT: Final = None


class FieldDifference(Struct, frozen=True):
    """A part of an answer that differs: its name, what was recorded, and what has come now, as plain values.

    ``name`` is ``failure``, ``decision``, ``request_headers``, ``audit.tags``, …: a field of the answer as it is
    encoded. None stands for what is not there.
    """

    name: str
    recorded: Any
    now: Any


class Difference(Struct, frozen=True, kw_only=True):
    """An exchange in which the agent now does something else.

    :ivar line: the line of the file.
    :ivar n: the number of the exchange, in the order in which the calls began.
    :ivar event: the type of the event, such as ``request_headers``.
    :ivar request: method and target of the request, as its head in the recording has them; empty where there is none.
    :ivar redacted: whether a secret was replaced in the event. That may be why the answers differ.
    """

    line: int
    n: int
    agent: str
    event: EventType
    correlation_id: str
    request: str
    fields: tuple[FieldDifference, ...]
    redacted: bool


def outcome_of(verdict: Verdict, inspection: Answer | None, cleaner: Cleaner) -> dict[str, Any]:
    """What a call has come to, in the form in which recordings have it."""
    if verdict.failure is not None:
        return {"failure": verdict.failure.kind.value}
    answer = verdict.response if inspection is None else inspection
    assert answer is not None
    if answer is ALLOW:
        return dict(PLAIN_ALLOW)
    cleaned = cleaner.answer(answer)
    return _with_lengths(compact_answer(cleaned.value), cleaned.left_out)


def recorded_outcome(exchange: RecordedExchange) -> dict[str, Any]:
    """What a call had come to when it was recorded."""
    if exchange.failure is not None:
        return {"failure": exchange.failure.kind.value}
    return _with_lengths(exchange.answer or {}, exchange.about.answer_left_out)


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any], ignore: Collection[str]) -> list[FieldDifference]:
    """The parts in which two outcomes differ, but for those whose names, or the beginnings of them, are ignored."""
    before, after = _flat(recorded), _flat(now)
    return [
        FieldDifference(name, before.get(name, ABSENT), after.get(name, ABSENT))
        for name in dict.fromkeys((*before, *after))
        if before.get(name, ABSENT) != after.get(name, ABSENT)
        and name not in ignore
        and name.partition(".")[0] not in ignore
    ]


def difference_of(exchange: RecordedExchange, fields: list[FieldDifference], request: str) -> Difference:
    """The difference of an exchange in these fields. ``request`` is what is known of it, where this is not its head."""
    event = exchange.event
    return Difference(
        line=exchange.line,
        n=exchange.about.n,
        agent=exchange.about.agent,
        event=event.event_type,
        correlation_id=correlation_id_of(event),
        request=request_of(event) if isinstance(event, RequestHeadersEvent) else request,
        fields=tuple(fields),
        redacted=exchange.about.redacted,
    )


def request_of(head: RequestHeadersEvent) -> str:
    """Method and target of a request."""
    return f"{head.method} {head.uri}"


def _with_lengths(answer: Mapping[str, Any], left_out: Mapping[str, int]) -> dict[str, Any]:
    return {**answer, **({"left_out": dict(left_out)} if left_out else {})}


def _flat(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """With the parts of ``audit`` and of what is left out by names of their own."""
    flat: dict[str, Any] = {}
    for name, value in outcome.items():
        if name in ("audit", "left_out"):
            flat.update({f"{name}.{part}": item for part, item in value.items()})
        else:
            flat[name] = value
    return flat
