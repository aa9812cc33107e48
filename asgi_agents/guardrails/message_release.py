"""Messages that wait for their texts, those behind escapes first."""

from collections import deque
from collections.abc import Callable
from typing import Final

from .escapes import MAX_RUNS, Run, count
from .held_event import HeldEvent, Leaves
from .judges import Judges
from .message import Message
from .mixed_release import MixedRelease
from .operations import Escaped
from .release import Release
from .slots import Kind, Slot

_ESCAPED: Final = ("escaped",)


class MessageRelease(MixedRelease):
    """Holds the messages of one direction of a websocket until they may leave.

    What a message says behind escapes (:mod:`~asgi_agents.guardrails.escapes`) is judged before the message is read,
    for both are in the same letters.

    :param kind: of their texts.
    :param strict: whether a tool call that can't be judged stops them. Otherwise it passes, and is counted.
    :param read: reads a message in which nothing is behind escapes any more, and adds it.
    """

    __slots__ = ("_ends", "_hidden", "_kind", "_read", "_runs", "_runs_of")

    def __init__(
        self, judges: Judges, leaves: Leaves, kind: Kind, read: Callable[[Message, float], None], *, strict: bool
    ) -> None:
        super().__init__(judges, leaves, repeats=True, strict=strict)
        self._kind: Kind = kind
        self._read = read
        self._hidden = Release(judges, leaves, outcome=self.outcome)
        # How many runs wait, and how many each message has that does: a run takes far more memory than its letters.
        self._runs = 0
        self._runs_of: deque[int] = deque()
        # Whether there will be no more messages behind those that wait to be read.
        self._ends = False

    @property
    def waiting(self) -> int:
        return super().waiting + self._hidden.waiting

    @property
    def unread(self) -> bool:
        """Whether there are messages that wait to be read."""
        return self._hidden.waiting > 0

    @property
    def full(self) -> bool:
        return super().full or self._hidden.full or (self._runs > MAX_RUNS and self.outcome.judging)

    @property
    def held(self) -> int:
        return super().held + self._hidden.held

    @property
    def held_bytes(self) -> int:
        return super().held_bytes + self._hidden.held_bytes

    @property
    def longest_delay(self) -> float:
        return max(super().longest_delay, self._hidden.longest_delay)

    def add_escaped(self, message: Message, text: str, runs: tuple[Run, ...], now: float, *, known: bool) -> None:
        """The next message, to be read later.

        :param text: its data.
        :param runs: of that; none where it only waits for those before it.
        :param known: as in :class:`~asgi_agents.guardrails.operations.Escaped`.
        :raises UnreadableError: when too much waits.
        """
        operations = [Escaped(Slot(_ESCAPED, self._kind), text, runs, known)] if runs else []
        self._runs_of.append(count(runs))
        self._runs += self._runs_of[-1]
        self._hidden.add(message, operations, now, is_json=False)

    def finish(self, now: float) -> None:
        self._ends = True
        if not self._hidden.waiting:
            super().finish(now)

    def leave(self, now: float, left: list[HeldEvent] | None = None) -> list[bytes]:
        if self._hidden.waiting and self.outcome.blocked is None:
            events: list[HeldEvent] = []
            for raw, event in zip(self._hidden.leave(now, events), events, strict=True):
                self._runs -= self._runs_of.popleft()
                if isinstance(event.unit, Message):
                    self._read(event.unit if raw is event.unit.raw else event.unit.again(raw), now)
            if self._ends and not self._hidden.waiting:
                super().finish(now)
        return super().leave(now, left)

    def discard(self, now: float) -> None:
        super().discard(now)
        self._hidden.discard(now)
        self._runs = 0
        self._runs_of.clear()
