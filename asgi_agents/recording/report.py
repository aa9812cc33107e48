"""What a replay has come to, for programs and for people."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from ..observability.histograms import Distribution, percentile
from .beside import cut, lines_beside
from .comparing import Difference

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
    :ivar redacted_ignored: the same that were asked about and not compared, because that was asked for.
    :ivar not_replayed: events that the agent receives and that could not be replayed, by type: what was in them was not
        recorded. Nobody knows what it decides about them: :attr:`ok` is False, unless ``not_replayed_ignored``.
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
    redacted_ignored: int = 0
    not_replayed_ignored: bool = False

    @property
    def ok(self) -> bool:
        """Whether the agent was asked about something that was compared, all of it is the same, and nothing that it
        receives could not be replayed.
        """
        return self.judged and self.different == 0 and (not self.not_replayed or self.not_replayed_ignored)

    @property
    def judged(self) -> bool:
        """Whether the agent was asked about something that was compared."""
        return self.compared > self.unheard

    def check(self) -> None:
        """Raise AssertionError, with the text of the report, unless it is :attr:`ok`."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, *, most: int = 20, width: int = _WIDTH) -> Iterator[str]:
        """The report in lines of at most ``width`` columns, with the first ``most`` differences."""
        shown = self.differences[:most]
        for difference in shown:
            yield from _difference_lines(difference, width)
            yield ""
        if self.different > len(shown):
            yield f"… and {self.different - len(shown):,} more"
            yield ""
        yield from textwrap.wrap(
            f"{self.agent}: {self.compared:,} exchanges compared, {self.same:,} the same, {self.different:,} different",
            width,
        )
        yield from self._notes(width)
        yield _timing_line("recorded", self.recorded_seconds)
        yield _timing_line("now", self.replayed_seconds)

    def _notes(self, width: int) -> Iterator[str]:
        notes = []
        if self.compared == 0:
            notes.append("nothing could be compared")
        elif self.compared == self.unheard:
            notes.append("the agent was asked about nothing")
        for event_type, number in self.not_replayed.items():
            notes.append(
                f"{number:,} {event_type} not replayed: recorded without content (bodies=False, compressed or long)"
            )
        if self.not_replayed and not self.not_replayed_ignored:
            notes.append(
                "what the agent decides about these is not known, so this is no success: record with bodies=True, or"
                " accept it with ignore_not_replayed=True (--ignore-not-replayed)"
            )
        if self.redacted:
            notes.append(f"{self.redacted:,} events have secrets replaced, on which answers may depend")
        if any(difference.redacted for difference in self.differences):
            notes.append(
                "what is marked (redacted) may differ for that reason alone: record tests with redact=None, or leave"
                " these events out with ignore_redacted=True (--ignore-redacted)"
            )
        if self.redacted_ignored:
            notes.append(f"{self.redacted_ignored:,} events have secrets replaced: asked, not compared")
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
            # The name of an option stays whole.
            yield from textwrap.wrap(note, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def timing_of(durations: Distribution) -> ReplayTiming:
    """The summary of durations."""
    count = durations.count
    return ReplayTiming(
        count=count,
        mean=durations.total / count if count else None,
        p50=percentile(durations.buckets, 0.5),
        p99=percentile(durations.buckets, 0.99),
    )


def _difference_lines(difference: Difference, width: int) -> Iterator[str]:
    what = f"line {difference.line}: {difference.event} {difference.request or difference.correlation_id}"
    mark = "  (redacted)" if difference.redacted else ""
    yield cut(what.rstrip(), width - len(mark)) + mark
    for field in difference.fields:
        yield from lines_beside(field.name, field.recorded, field.now, width)


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
