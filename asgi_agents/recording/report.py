"""What a replay has come to, for programs and for people."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from ..errors import printable
from ..observability.histograms import Distribution, percentile
from .comparing import Difference, FieldDifference

_WIDTH: Final = 80
_NAME: Final = 10


class ReplayTiming(Struct, frozen=True, kw_only=True):
    """Durations of calls in seconds: how many, their mean, and percentiles. None: there were none."""

    count: int
    mean: float | None
    p50: float | None
    p99: float | None


class ReplayReport(Struct, frozen=True, kw_only=True):
    """What a replay has come to.

    :ivar path: the recording.
    :ivar agent: the id of the agent in it.
    :ivar compared: exchanges whose outcomes were compared; ``same`` and ``different`` make up for all of them.
    :ivar differences: the first of those that differ, by the order in which the calls began.
    :ivar unheard: exchanges among those compared about events that the new agent does not receive. They count as an
        allow; where there are no others, :attr:`ok` is False.
    :ivar failed: calls of the new agent that have failed.
    :ivar redacted: exchanges among those compared in whose events a secret was replaced.
    :ivar not_replayed: events that could not be replayed, by type: what was in them was not recorded.
    :ivar not_asked: exchanges in which the agent was not asked when it was recorded: its breaker was open, say.
    :ivar given_up: events that were asked about again without comparing: when they were recorded, nobody waited for the
        answer.
    :ivar recorded_seconds: how long the calls took when they were recorded; ``replayed_seconds`` now.
    :ivar dropped: exchanges that the recording says it lacks.
    :ivar complete: whether the recording has its last line and all that this counts, and stopped for no other reason
        than its end.
    """

    path: str
    agent: str
    compared: int
    same: int
    different: int
    differences: Sequence[Difference]
    unheard: int
    failed: int
    redacted: int
    not_replayed: Mapping[str, int]
    not_asked: int
    given_up: int
    recorded_seconds: ReplayTiming
    replayed_seconds: ReplayTiming
    dropped: int
    complete: bool

    @property
    def ok(self) -> bool:
        """Whether the agent was asked about something that was compared, and all of it is the same."""
        return self.compared > self.unheard and self.different == 0

    def check(self) -> None:
        """Raise AssertionError, with the text of the report, unless it is :attr:`ok`."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, *, most: int = 20) -> Iterator[str]:
        """The report in lines of at most 80 columns, with the first ``most`` differences."""
        shown = self.differences[:most]
        for difference in shown:
            yield from _difference_lines(difference)
            yield ""
        if self.different > len(shown):
            yield f"… and {self.different - len(shown):,} more"
            yield ""
        yield from textwrap.wrap(
            f"{self.agent}: {self.compared:,} exchanges compared, {self.same:,} the same, {self.different:,} different",
            _WIDTH,
        )
        yield from self._notes()
        yield _timing_line("recorded", self.recorded_seconds)
        yield _timing_line("now", self.replayed_seconds)

    def _notes(self) -> Iterator[str]:
        notes = []
        if self.compared == 0:
            notes.append("nothing could be compared")
        elif self.compared == self.unheard:
            notes.append("the agent was asked about nothing")
        for event_type, number in self.not_replayed.items():
            notes.append(f"{number:,} {event_type} not replayed: recorded without content (bodies=False)")
        if self.redacted:
            notes.append(f"{self.redacted:,} events have secrets replaced, on which answers may depend")
        if self.unheard:
            notes.append(f"{self.unheard:,} events the agent does not receive now: counted as allow")
        if self.failed:
            notes.append(f"{self.failed:,} calls have failed now")
        if self.not_asked:
            notes.append(f"{self.not_asked:,} exchanges in which the agent was not asked when it was recorded")
        if self.given_up:
            notes.append(f"{self.given_up:,} calls were given up when it was recorded: asked, not compared")
        if self.dropped:
            notes.append(f"{self.dropped:,} exchanges are not in the recording")
        if not self.complete:
            notes.append("the recording was cut off, has stopped before its end, or lacks lines")
        for note in notes:
            yield from textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent="    ")


def timing_of(durations: Distribution) -> ReplayTiming:
    """The summary of durations."""
    count = durations.count
    return ReplayTiming(
        count=count,
        mean=durations.total / count if count else None,
        p50=percentile(durations.buckets, 0.5),
        p99=percentile(durations.buckets, 0.99),
    )


def _difference_lines(difference: Difference) -> Iterator[str]:
    what = f"line {difference.line}: {difference.event} {difference.request or difference.correlation_id}"
    yield _cut(what.rstrip() + ("  (redacted)" if difference.redacted else ""))
    for field in difference.fields:
        yield from _field_lines(field)


def _field_lines(field: FieldDifference) -> Iterator[str]:
    yield _cut(f"  {field.name}")
    yield _cut(f"    {'recorded':<{_NAME}}{_value(field.recorded)}")
    yield _cut(f"    {'now':<{_NAME}}{_value(field.now)}")


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _timing_line(name: str, timing: ReplayTiming) -> str:
    if timing.mean is None or timing.p50 is None or timing.p99 is None:
        return f"  {name:<{_NAME}}no calls"
    return (
        f"  {name:<{_NAME}}mean {_time(timing.mean)}, half within {_time(timing.p50)}, 99 % within {_time(timing.p99)}"
    )


def _time(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
