"""Who judges which slots, and what a driver is asked to have judged."""

from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct

from .slots import KINDS, Block, Decision, Kind, Slot, Window
from .windows import AskedWindow, Found, WindowLimits


class Judge(Struct, frozen=True, kw_only=True):
    """One guardrail, as far as the text of one call is concerned.

    :ivar name: the agent's id.
    :ivar on: the kinds of slots that it judges.
    :ivar redacts: it is shown the output of the redacting ones before it. Others judge beside them.
    """

    name: str
    on: frozenset[Kind] = KINDS
    redacts: bool = True
    limits: WindowLimits = WindowLimits()


class Judges:
    """The guardrails of one call, in route order."""

    __slots__ = ("_by_kind",)

    def __init__(self, judges: Sequence[Judge]) -> None:
        self._by_kind: Final[dict[Kind, tuple[tuple[Judge, ...], tuple[Judge, ...]]]] = {}
        for kind in KINDS:
            those = [judge for judge in judges if kind in judge.on]
            if those:
                in_a_row = tuple(judge for judge in those if judge.redacts)
                self._by_kind[kind] = (in_a_row, tuple(judge for judge in those if not judge.redacts))

    def of(self, slot: Slot) -> tuple[tuple[Judge, ...], tuple[Judge, ...]] | None:
        """Those who judge a slot: in a row, and beside. None if nobody does."""
        return self._by_kind.get(slot.kind)


class Judged(Protocol):
    """Text that is being judged."""

    slot: Slot

    def decide(self, inspection: "Inspection", decisions: Sequence[Decision]) -> None:
        """Take a verdict.

        :raises AgentProtocolError: for a decision that is not about the inspection's window. It is still to be judged.
        """
        ...

    def hold_to_end(self, judge: Judge) -> None:
        """Have ``judge`` see what has not left when the slot has ended, and all of it at once."""
        ...

    def advance(self, now: float) -> None:
        """Move on what may move on, and ask for what may be judged."""
        ...


class Inspection:
    """A window that a judge is to give its verdict on.

    :ivar stale: whether its verdict has no use any more: the driver may let it go.
    """

    __slots__ = ("_asked", "judge", "judged", "slot", "window")

    def __init__(self, judge: Judge, judged: Judged, asked: AskedWindow) -> None:
        self.judge = judge
        self.judged = judged
        self.slot = judged.slot
        self.window: Window = asked.window
        self._asked = asked

    @property
    def asked(self) -> AskedWindow:
        """The window as the state machine knows it."""
        return self._asked

    @property
    def stale(self) -> bool:
        return self._asked.stale


class Finding(Struct, frozen=True):
    """What a judge has found, and where: code points from the beginning of the slot as the judge has seen it."""

    judge: Judge
    slot: Slot
    found: Found


class Blocked(Struct, frozen=True):
    """The judge that has stopped the call, and the slot for which it did."""

    judge: Judge
    slot: Slot
    block: Block


class JudgeFailure(Struct, frozen=True):
    """A judge whose ``settled`` has raised, or has said what can't be. It is not called again for the slot."""

    judge: Judge
    slot: Slot
    error: Exception
