"""The text of one slot on its way through its guardrails: redacting ones in a row, others beside them.

A guardrail may say of a find that it is to be redacted although it stands beside the others, because it has something
else done about its finds otherwise. It has seen the text as it came, which those in the row may have changed. So it
goes to the end of the row, and judges their output instead.
"""

from collections import deque
from collections.abc import Callable, Sequence

from .judges import Blocked, Finding, Inspection, Judge, JudgeFailure
from .redactions import check_decisions, merged
from .slots import Block, Decision, Flag, Redact, Slot, Window
from .windows import AskedWindow, Found, SlotWindows


class Outcome:
    """Where the texts of one call leave what comes of them: the windows to judge, what was found, what blocks."""

    __slots__ = ("blocked", "failures", "findings", "in_flight", "inspections", "unreadable")

    def __init__(self) -> None:
        #: What was handed out and has no verdict.
        self.in_flight: set[Inspection] = set()
        self.inspections: list[Inspection] = []
        self.findings: list[Finding] = []
        self.failures: list[JudgeFailure] = []
        self.blocked: Blocked | None = None
        #: How many texts have passed because they could not be read.
        self.unreadable = 0

    @property
    def judging(self) -> bool:
        """Whether there are verdicts to come."""
        return any(not inspection.stale for inspection in self.in_flight)

    def hand_out(self) -> list[Inspection]:
        """What is to be judged and was not handed out before."""
        fresh, self.inspections = self.inspections, []
        self.in_flight = {inspection for inspection in self.in_flight if not inspection.stale}
        self.in_flight.update(fresh)
        return [inspection for inspection in fresh if not inspection.stale]

    def block(self, judge: Judge, slot: Slot, block: Block) -> None:
        """The first one stands."""
        if self.blocked is None:
            self.blocked = Blocked(judge, slot, block)


class _Stage:
    """One judge and its windows. ``released`` counts parts, where it judges beside the others."""

    __slots__ = ("judge", "released", "windows")

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.windows = SlotWindows(judge.limits)
        self.released = 0


class SlotText:
    """The text of a slot that arrives in parts.

    :param released: called with what each part leaves as, in the order of the parts.
    """

    __slots__ = (
        "_beside",
        "_context",
        "_hold",
        "_left",
        "_out",
        "_outcome",
        "_released",
        "_resumed",
        "_row",
        "_sent",
        "ended",
        "slot",
    )

    def __init__(
        self,
        slot: Slot,
        in_a_row: tuple[Judge, ...],
        beside: tuple[Judge, ...],
        outcome: Outcome,
        released: Callable[[str], None],
    ) -> None:
        self.slot = slot
        self._row = [_Stage(judge) for judge in in_a_row]
        self._beside = [_Stage(judge) for judge in beside]
        self._outcome = outcome
        self._released = released
        # What has come out of the row, and waits for those beside it.
        self._out: deque[str] = deque()
        self._sent = 0
        # How many code points have left, and the last of them: what precedes the text for one that joins the row.
        self._left = 0
        self._context = ""
        self._hold = max((judge.limits.hold for judge in beside), default=0)
        # Whether all that has left seemed to be all of the slot.
        self._resumed = False
        self.ended = False

    @property
    def full(self) -> bool:
        """Whether no more text should come before there are verdicts."""
        for stage in self._row:
            if stage.windows.full:
                return True
        for stage in self._beside:  # noqa: SIM110 - this is asked for every token, and a generator takes longer
            if stage.windows.full:
                return True
        return False

    @property
    def complete(self) -> bool:
        """Whether the slot has ended and all of its text has left."""
        return self.ended and all(stage.windows.complete for stage in (*self._row, *self._beside))

    def wake_at(self) -> float | None:
        """When there may be something to judge although nothing else happens."""
        times = [at for stage in (*self._row, *self._beside) if (at := stage.windows.wake_at()) is not None]
        return min(times) if times else None

    def feed(self, text: str, now: float) -> None:
        """The next part."""
        if self._row:
            self._row[0].windows.feed(text, now)
        else:
            self._out.append(text)
        for stage in self._beside:
            stage.windows.feed(text, now)

    def finish(self) -> None:
        """The slot has ended."""
        self.ended = True
        for stage in self._beside:
            stage.windows.finish()
        if self._row:
            self._row[0].windows.finish()

    def resume(self) -> None:
        """The slot goes on although it had ended."""
        self.ended = False
        self._resumed = True
        for stage in (*self._row, *self._beside):
            stage.windows.resume()

    def decide(self, inspection: Inspection, decisions: Sequence[Decision]) -> None:
        """Take a verdict. Raises AgentProtocolError as :meth:`SlotWindows.verdict` does."""
        for stage in (*self._row, *self._beside):
            if stage.judge is not inspection.judge:
                continue
            if stage in self._beside and not inspection.stale and _redacts(decisions):
                check_decisions(decisions, inspection.window)
                self._join(stage)
            else:
                stage.windows.verdict(inspection.asked, decisions)
                self._note(stage)
            return

    def hold_to_end(self, judge: Judge) -> None:
        """Have ``judge`` see what has not left when the slot has ended, and all of it at once."""
        for stage in (*self._row, *self._beside):
            if stage.judge is judge:
                stage.windows.hold_to_end()

    def advance(self, now: float) -> None:
        """Move on what may move on, and ask for what may be judged."""
        before: SlotWindows | None = None
        for stage in self._row:
            windows = stage.windows
            if before is not None:
                for _, text in before.released():
                    windows.feed(text, now)
                if self.ended and before.complete:
                    windows.finish()
            self._ask(stage, now)
            before = windows
        if before is not None:
            self._out.extend([text for _, text in before.released()])
        may_leave = len(self._out)
        for stage in self._beside:
            self._ask(stage, now)
            stage.released += len(stage.windows.released())
            may_leave = min(may_leave, stage.released - self._sent)
        if self._outcome.blocked is None:
            for _ in range(may_leave):
                self._sent += 1
                text = self._out.popleft()
                if self._beside:
                    self._left += len(text)
                    self._context = (self._context + text)[-self._hold :] if self._hold else ""
                    self._resumed = False
                self._released(text)

    def _join(self, stage: _Stage) -> None:
        """Put a judge that stands beside the others behind them, for the text that has not left."""
        stage.windows = stage.windows.following(self._context, self._left, ended=self._resumed)
        for text in self._out:
            # It was due to be judged already.
            stage.windows.feed(text, float("-inf"))
        self._out.clear()
        self._beside.remove(stage)
        self._row.append(stage)
        if self.ended and stage is self._row[0]:
            stage.windows.finish()

    def _ask(self, stage: _Stage, now: float) -> None:
        windows = stage.windows
        while (asked := windows.ask(now)) is not None:
            self._outcome.inspections.append(Inspection(stage.judge, self, asked))
            if windows.one_at_a_time:
                break
        if stage.windows.failed is not None:
            self._outcome.failures.append(JudgeFailure(stage.judge, self.slot, stage.windows.failed))
            stage.windows.failed = None

    def _note(self, stage: _Stage) -> None:
        windows = stage.windows
        if windows.found:
            self._outcome.findings += [Finding(stage.judge, self.slot, found) for found in windows.found]
            windows.found.clear()
        if windows.blocked is not None:
            self._outcome.block(stage.judge, self.slot, windows.blocked)


class WholeText:
    """A text that is known in full, and judged as one window by each judge.

    :param released: called with what it leaves as.
    """

    __slots__ = ("_left", "_outcome", "_released", "_row", "_text", "_turn", "slot")

    def __init__(
        self,
        slot: Slot,
        text: str,
        in_a_row: tuple[Judge, ...],
        beside: tuple[Judge, ...],
        outcome: Outcome,
        released: Callable[[str], None],
    ) -> None:
        self.slot = slot
        self._text = text
        self._outcome = outcome
        self._released = released
        # How many verdicts are still to come.
        self._left = len(in_a_row) + len(beside)
        # Those of the row whose turn has not come. Who has stood beside them is there with what it was asked.
        self._row: deque[tuple[Judge, Inspection | None]] = deque((judge, None) for judge in in_a_row)
        self._turn: Judge | None = None
        self._next()
        for judge in beside:
            self._ask(judge)

    def decide(self, inspection: Inspection, decisions: Sequence[Decision]) -> None:
        """Take a verdict. Raises AgentProtocolError for a decision that is not about the inspection's window."""
        check_decisions(decisions, inspection.window)
        if inspection.asked.decisions is not None:
            return
        inspection.asked.decisions = decisions
        judge = inspection.judge
        for decision in decisions:
            if isinstance(decision, Block):
                self._outcome.block(judge, self.slot, decision)
                return
        if judge is self._turn:
            self._apply(judge, decisions)
            self._next()
        elif _redacts(decisions):
            self._row.append((judge, inspection))
            if self._turn is None:
                self._next()
        else:
            self._apply(judge, decisions)

    def hold_to_end(self, judge: Judge) -> None:
        """It is all there."""

    def advance(self, now: float) -> None:
        """Move on if all verdicts are there."""
        if self._left == 0 and self._outcome.blocked is None:
            self._left = -1
            self._released(self._text)

    def _apply(self, judge: Judge, decisions: Sequence[Decision]) -> None:
        self._left -= 1
        redactions: list[tuple[int, int, str]] = []
        findings = self._outcome.findings
        for decision in decisions:
            if isinstance(decision, Redact):
                redactions.append((decision.start, decision.end, decision.text))
            elif isinstance(decision, Flag):
                findings.append(Finding(judge, self.slot, Found(decision.start, decision.end, decision.category)))
        if not redactions:
            return
        pieces: list[str] = []
        at = 0
        for start, end, new in merged(redactions):
            findings.append(Finding(judge, self.slot, Found(start, end)))
            pieces += [self._text[at:start], new]
            at = end
        self._text = "".join(pieces) + self._text[at:]

    def _next(self) -> None:
        """Ask the next one of the row."""
        self._turn = None
        while self._row and self._turn is None:
            judge, inspection = self._row.popleft()
            if inspection is not None and inspection.window.text == self._text:
                # What it was asked about has not been changed since.
                self._apply(judge, inspection.asked.decisions or ())
            else:
                self._turn = judge
                self._ask(judge)

    def _ask(self, judge: Judge) -> None:
        window = Window(self._text)
        self._outcome.inspections.append(Inspection(judge, self, AskedWindow(window, 0, len(self._text))))


def _redacts(decisions: Sequence[Decision]) -> bool:
    """Whether something is to be redacted, and nothing blocks."""
    found = False
    for decision in decisions:
        if isinstance(decision, Block):
            return False
        found = found or isinstance(decision, Redact)
    return found
