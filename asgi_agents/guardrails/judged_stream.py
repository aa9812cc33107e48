"""What streams of bytes and of messages have in common on their way through guardrails."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from .dialect import Stop
from .judges import Blocked, Finding, Inspection, JudgeFailure
from .mixed_release import MixedRelease
from .release import Release
from .slots import Decision

#: What is fed, and what leaves: bytes, or messages.
Data = TypeVar("Data")


class Ending(Struct, frozen=True):
    """How a stream was stopped.

    :ivar stop: what the client is told.
    :ivar blocked: the judge that has blocked it; None for failures.
    :ivar cut_off: whether nothing could be told: the connection is to be broken off.
    """

    stop: Stop
    blocked: Blocked | None = None
    cut_off: bool = False


class JudgedStream(Generic[Data]):
    """Asks for verdicts on what a release holds, and takes them until the stream was stopped.

    :param release: holds what has come and may not leave yet.
    """

    __slots__ = ("_release", "ending", "finished", "unreadable")

    def __init__(self, release: Release | MixedRelease) -> None:
        self._release = release
        #: Whether nothing more will come.
        self.finished = False
        #: How it was stopped, if it was.
        self.ending: Ending | None = None
        #: How many times something could not be read.
        self.unreadable = 0

    @property
    def done(self) -> bool:
        """Whether nothing more will leave."""
        return self.ending is not None or (self.finished and not self._release.waiting)

    @property
    def held(self) -> int:
        """How many code points wait for verdicts, for what follows them, or for the end of their tool call."""
        return self._release.held

    @property
    def longest_delay(self) -> float:
        """Seconds; how long an event or message has waited at most."""
        return self._release.longest_delay

    @property
    def findings(self) -> list[Finding]:
        """What was found. The owner takes out what it has noted."""
        return self._release.outcome.findings

    @property
    def failures(self) -> list[JudgeFailure]:
        """Judges that have failed while they were not asked for a verdict. The owner takes out what it has noted."""
        return self._release.outcome.failures

    def inspections(self) -> list[Inspection]:
        """What is to be judged and was not handed out before."""
        return [] if self.ending is not None else self._release.inspections()

    def verdict(self, inspection: Inspection, decisions: Sequence[Decision], now: float) -> None:
        """What a judge says of a window.

        :raises AgentProtocolError: for a decision that is not about the window. It is still to be judged.
        """
        if self.ending is None:
            self._release.verdict(inspection, decisions, now)
            self._leave(now)

    def hold_to_end(self, inspection: Inspection, now: float) -> None:
        """In place of a verdict: the judge can't say what it has found where. It is asked when the slot has ended."""
        if self.ending is None:
            self._release.hold_to_end(inspection, now)
            self._leave(now)

    @property
    def full(self) -> bool:
        """Whether who feeds it has to wait for verdicts."""
        raise NotImplementedError

    def wake_at(self) -> float | None:
        """When :meth:`tick` is to be called if nothing else happens before."""
        raise NotImplementedError

    def feed(self, data: Data, now: float) -> None:
        """What comes next."""
        raise NotImplementedError

    def end(self, now: float) -> None:
        """All has come."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Time has passed."""
        raise NotImplementedError

    def fail(self, stop: Stop) -> None:
        """Stop it. What waits is discarded."""
        raise NotImplementedError

    def take(self) -> Data:
        """What may leave now."""
        raise NotImplementedError

    def _leave(self, now: float) -> None:
        """Let go of what may leave, and stop where a judge has blocked."""
        raise NotImplementedError
