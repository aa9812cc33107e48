"""One slot and one guardrail: which windows are to be judged, and which text may leave. A pure state machine.

Text arrives in parts, and leaves in the same parts, each changed by what was found in it. All offsets count code points
from the beginning of the slot.

::

    0 ............ fresh ............ limit ........ asked ......... end
    may leave      in the window, finds  context that    not judged
                   that begin here       is judged again
                   count

- A window is asked for from ``fresh``, with ``hold`` code points of context before it. Its limit is ``hold`` before its
  end, or what ``settled`` says, or its end if the slot has ended. Finds that begin at the limit or later don't count:
  the next window begins there and sees more of what follows.
- No find that counts crosses the limit: if one does, the limit moves back to where it begins, and so to where the finds
  begin that overlap it. So the next window is judged from there, and windows that were asked for already are judged
  again. A find longer than ``hold``, or in a window that can't grow, counts as it is; the next window begins at its
  end. If it was longer than ``hold``, the next window says how it began: it may go on there, and go on again.
- Everything before the limit of a window whose verdict is applied may leave. Verdicts are applied in order.

For a detector that honours ``fresh``, and whose finds are at most ``hold`` long with all that they look at, this gives
what its finds in the whole text would give: a find that begins before a limit was seen with all that it depends on, and
no find lies across the place where the next window begins.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..errors import AgentProtocolError
from ..protocol.validation import number_or_type
from .redactions import Edits, check_decisions, merged
from .slots import Block, Decision, Redact, Window

#: How many code points of context are kept beyond those that are needed, before they are cut off.
_SLACK: Final = 512
#: How many code points are told of what goes on, where `hold` is less. By what is in `hold` a find is known.
_TOLD: Final = 256
#: How many code points that have left last `settled` sees again where something goes on.
_SEEN_AGAIN: Final = 128


class WindowLimits(Struct, frozen=True, kw_only=True):
    """When text is judged by one guardrail.

    :ivar hold: code points; the longest thing that it looks for.
    :ivar window: code points; how much is judged at once. More than ``hold``.
    :ivar max_hold: seconds after which a window is judged although it is not full.
    :ivar in_flight: how many windows of a slot are judged at once.
    :ivar eager: judge whenever text may leave if nothing is found in it.
    :ivar whole: judge a slot when it has ended, as one window. For agents that redact without spans.
    :ivar settled: how much of a text, which is what has not left yet, can't be part of anything any more.
    """

    hold: int = 80
    window: int = 400
    max_hold: float = 0.5
    in_flight: int = 2
    eager: bool = False
    whole: bool = False
    settled: Callable[[str], int] | None = None

    def __post_init__(self) -> None:
        if self.hold < 0:
            raise ValueError(f"hold: expected at least 0 code points, got {self.hold}")
        if self.window <= self.hold:
            raise ValueError(f"window: expected more than hold, which is {self.hold} code points, got {self.window}")
        if self.in_flight < 1:
            raise ValueError(f"in_flight: expected at least 1 window, got {self.in_flight}")


class AskedWindow:
    """A window that a guardrail was asked about.

    :ivar fresh: finds before this don't count; where the text that has left reaches.
    :ivar limit: finds that begin here or later don't count.
    :ivar stale: whether its verdict has no use any more.
    """

    __slots__ = ("decisions", "end", "fresh", "limit", "stale", "window")

    def __init__(self, window: Window, fresh: int, limit: int) -> None:
        self.window = window
        self.fresh = fresh
        self.end = window.start + len(window.text)
        self.limit = limit
        self.stale = False
        self.decisions: Sequence[Decision] | None = None

    @property
    def has_left(self) -> bool:
        """Whether finds may begin in text that has left, because it seemed to be all of the slot."""
        return self.window.start + self.window.fresh < self.fresh


class Found(Struct, frozen=True):
    """A find that counts, in code points from the beginning of the slot. ``category`` is None for redactions."""

    start: int
    end: int
    category: str | None = None


class SlotWindows:
    """The windows of one slot for one guardrail."""

    __slots__ = (
        "_asked",
        "_base",
        "_edits",
        "_ended",
        "_final_until",
        "_flagged",
        "_fresh",
        "_going_on",
        "_limits",
        "_new",
        "_next",
        "_parts",
        "_seen",
        "_settles",
        "_text",
        "_unseen_since",
        "_useless",
        "blocked",
        "end",
        "failed",
        "found",
        "one_at_a_time",
    )

    def __init__(self, limits: WindowLimits) -> None:
        self._limits = limits
        #: Whether no second window is asked for before the verdict on the first.
        self.one_at_a_time = limits.eager
        # The text from `_base` on, and what has come since it was last joined.
        self._base = 0
        self._text = ""
        self._new: list[str] = []
        #: How many code points there are.
        self.end = 0
        self._ended = False
        # Up to here text may leave, the next window begins here, and up to here windows were asked for.
        self._fresh = 0
        self._next = 0
        self._seen = 0
        self._unseen_since = 0.0
        # Up to here windows would have released nothing.
        self._useless = 0
        self._asked: deque[AskedWindow] = deque()
        # Where each part that has not left ends, and its text.
        self._parts: deque[tuple[int, str]] = deque()
        self._edits = Edits()
        self._flagged = 0
        # Where a redaction has ended that may go on, and how it began.
        self._going_on = (-1, "")
        # Where a window has ended that seemed to be the last one.
        self._final_until = -1
        # Whether `settled` has not failed yet.
        self._settles = True
        #: What it has raised since the owner last looked.
        self.failed: Exception | None = None
        #: What has stopped it. No text leaves any more.
        self.blocked: Block | None = None
        #: What has been found since the owner last looked.
        self.found: list[Found] = []

    @property
    def held(self) -> int:
        """How many code points have not been released."""
        return self.end - self._fresh

    @property
    def complete(self) -> bool:
        """Whether the slot has ended and all of its text may leave."""
        return self._ended and self._fresh >= self.end and not self._asked

    @property
    def full(self) -> bool:
        """Whether there is more text than the windows in flight and the next one take."""
        limits = self._limits
        return not limits.whole and self.end - self._seen > limits.window and len(self._asked) >= self._in_flight

    @property
    def _in_flight(self) -> int:
        return 1 if self._limits.eager else self._limits.in_flight

    def wake_at(self) -> float | None:
        """When :meth:`ask` may have a window although nothing else happens."""
        limits = self._limits
        if limits.whole or limits.eager or self._ended or len(self._asked) >= limits.in_flight:
            return None
        # Nothing is asked twice about the same text, and nothing that releases nothing.
        if self.end <= max(self._seen, self._useless):
            return None
        return self._unseen_since + limits.max_hold

    def feed(self, text: str, now: float) -> None:
        """The next part of the slot."""
        if self.end <= self._seen:
            self._unseen_since = now
        self.end += len(text)
        self._new.append(text)
        self._parts.append((self.end, text))

    def finish(self) -> None:
        """The slot has ended."""
        self._ended = True

    def resume(self) -> None:
        """The slot goes on although it had ended. What has left can't be changed. Finds may begin there."""
        self._ended = False

    def hold_to_end(self) -> None:
        """Judge all that has not left as one window, when the slot has ended. What was asked for is of no use now."""
        self._limits = replace(self._limits, whole=True)
        for asked in self._asked:
            asked.stale = True
        self._asked.clear()
        self._next = self._seen = self._fresh

    def following(self, context: str, start: int, *, ended: bool) -> "SlotWindows":
        """Windows with the same limits for a text that goes on. What these have asked for is of no use any more.

        :param context: what has left last; ``start`` is where it ends.
        :param ended: whether what has left seemed to be all of the slot.
        """
        for asked in self._asked:
            asked.stale = True
        self._asked.clear()
        windows = SlotWindows(self._limits)
        windows._text, windows._base = context, start - len(context)
        windows.end = windows._fresh = windows._next = windows._seen = start
        windows._settles = self._settles
        if ended:
            windows._final_until = start
        return windows

    def ask(self, now: float) -> AskedWindow | None:
        """The next window to judge, if there is one now."""
        begin, end = self._next, self.end
        if begin >= end or self.blocked is not None:
            return None
        limits = self._limits
        if len(self._asked) >= self._in_flight:
            return None
        if self._ended:
            return self._make(begin, end, end, final=True)
        if limits.whole or end <= self._seen:
            return None
        if not limits.eager:
            if end - begin >= limits.window:
                end = begin + limits.window
            elif now < self._unseen_since + limits.max_hold:
                return None
        limit = end - limits.hold
        if limits.settled is not None and self._settles:
            limit = max(limit, self._settled(limits.settled, begin, end))
        if limit <= begin:
            # A verdict would release nothing.
            self._useless = self.end
            return None
        return self._make(begin, end, limit, final=False)

    def verdict(self, asked: AskedWindow, decisions: Sequence[Decision]) -> None:
        """What the guardrail says of a window.

        :raises AgentProtocolError: for a span that is not within the window. The window is still to be judged.
        """
        check_decisions(decisions, asked.window)
        if asked.stale or self.blocked is not None:
            return
        asked.decisions = decisions
        while self._asked and self._asked[0].decisions is not None:
            self._apply(self._asked.popleft())

    def released(self) -> list[tuple[str, str]]:
        """The parts that may leave and have not yet: as they came, and as they leave."""
        parts, fresh = self._parts, self._fresh
        out: list[tuple[str, str]] = []
        while parts and parts[0][0] <= fresh and self.blocked is None:
            end, text = parts.popleft()
            out.append(
                (text, self._edits.part(end, text, last=self._ended and end == self.end) if self._edits else text)
            )
        return out

    def _settled(self, settled: Callable[[str], int], begin: int, end: int) -> int:
        start = begin if begin != self._final_until else self._before(begin)
        if begin == self._going_on[0]:
            # Something may have begun in what went on, such as a name before what is assigned to it.
            start = max(self._before(begin), begin - _SEEN_AGAIN)
        text = self._joined()[start - self._base : end - self._base]
        try:
            count = settled(text)
            if type(count) is int and 0 <= count <= len(text):
                return start + count
            self.failed = AgentProtocolError(f"settled: expected 0 to {len(text)}, got {number_or_type(count)}")
        except Exception as exc:
            self.failed = exc
        self._settles = False
        return begin

    def _joined(self) -> str:
        if self._new:
            self._text += self._new[0] if len(self._new) == 1 else "".join(self._new)
            self._new.clear()
        return self._text

    def _make(self, begin: int, end: int, limit: int, *, final: bool) -> AskedWindow:
        start = self._before(begin)
        text = self._joined()[start - self._base : end - self._base]
        # Behind text that was taken for all of the slot, finds that begin in it count as far as they reach out of it.
        # But who judges a slot as a whole can't say where anything is.
        going_on = self._going_on[1] if begin == self._going_on[0] else ""
        fresh = start if begin == self._final_until and not (self._limits.whole or going_on) else begin
        if final:
            self._final_until = end
        asked = AskedWindow(Window(text, start, fresh - start, final, going_on), begin, limit)
        self._asked.append(asked)
        self._next, self._seen = limit, end
        return asked

    def _before(self, begin: int) -> int:
        """Where finds may begin that reach behind ``begin``, as far as that text is still known."""
        return max(self._base, begin - self._limits.hold)

    def _apply(self, asked: AskedWindow) -> None:
        shift, limit = asked.window.start, asked.limit
        redactions: list[tuple[int, int, str]] = []
        found: list[tuple[int, str, int]] = []
        for decision in asked.decisions or ():
            if isinstance(decision, Block):
                self.blocked = decision
                self._asked.clear()
                self._parts.clear()
                return
            start, end = decision.start + shift, decision.end + shift
            # What ends before the window's own text was judged with the window before.
            if end < asked.fresh or (end == asked.fresh and (start < end or asked.has_left)):
                continue
            if start >= limit and not asked.window.final:
                continue
            if isinstance(decision, Redact):
                redactions.append((max(start, asked.fresh), end, decision.text))
                found.append((start, decision.text, end))
            elif start >= self._flagged or start == end:
                self._flagged = max(self._flagged, end)
                self.found.append(Found(start, end, decision.category))
        finds = merged(redactions) if len(redactions) > 1 else redactions
        if finds and finds[-1][1] > limit:
            limit = self._crossed(asked, redactions, finds)
        self._edits.add(finds)
        # What only goes on was found before.
        known = 1 if finds and asked.window.going_on and finds[0][0] == asked.fresh and not finds[0][2] else 0
        self.found += [Found(start, end) for start, end, _ in finds[known:]]
        going_on = self._beginning(asked, found, limit) if finds and finds[-1][1] == limit else ""
        if limit > asked.fresh:
            self._going_on = (limit, going_on) if going_on else (-1, "")
        if limit != asked.limit or going_on:
            self._judge_again(asked, limit)
        self._fresh = limit
        self._cut_off()

    def _crossed(
        self, asked: AskedWindow, redactions: list[tuple[int, int, str]], finds: list[tuple[int, int, str]]
    ) -> int:
        """The limit of a window whose last find crosses it. Takes the find away if it is to be found again."""
        limits = self._limits
        start, end, _ = finds[-1]
        longest = max(last - first for first, last, _ in redactions if first >= start)
        if longest > limits.hold or (start <= asked.fresh and asked.end - asked.fresh >= limits.window):
            return end
        finds.pop()
        return start

    def _beginning(self, asked: AskedWindow, found: list[tuple[int, str, int]], limit: int) -> str:
        """How the redaction that ends at ``limit`` began, if it may go on there; otherwise nothing."""
        told = asked.window.going_on
        if told and (asked.fresh, "", limit) in found:
            return told
        start = min(start for start, _, end in found if end == limit)
        # One that is short and ends before the limit was seen with what follows it.
        if not (told and start < asked.fresh) and limit <= asked.limit and limit - start <= self._limits.hold:
            return ""
        told_until = min(limit, start + max(_TOLD, self._limits.hold))
        return self._joined()[start - self._base : told_until - self._base]

    def _judge_again(self, asked: AskedWindow, limit: int) -> None:
        """The next window begins at ``limit``, and not where the window after ``asked`` does."""
        if self._asked:
            for later in self._asked:
                later.stale = True
            self._asked.clear()
            # What comes behind was due to be judged already.
            self._unseen_since = float("-inf")
        self._next, self._seen = limit, max(asked.end, limit)

    def _cut_off(self) -> None:
        keep = min(self._fresh, self._next) - self._limits.hold
        # In proportion to what is kept, so that it costs no more than what has come.
        if keep - self._base > _SLACK + len(self._text) // 2:
            self._text = self._joined()[keep - self._base :]
            self._base = keep
