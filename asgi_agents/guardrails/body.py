"""A request, or an answer that is no stream: one JSON document."""

from collections.abc import Callable, Sequence

from . import json_text
from .framing import Unit, UnreadableError
from .json_text import JSON
from .judges import Blocked, Finding, Inspection, Judges
from .operations import End, Operation
from .release import Release
from .shadowed import shadowed
from .slots import Decision, Kind


class Body:
    """A document on its way through guardrails.

    :param operations: says what text is in it: the ``request`` or ``answer`` of a dialect.
    :param kind: of strings that no dialect finds, for their keys are there twice.
    :raises UnreadableError: for what is no JSON, or not in the dialect, or has arguments in it that are no JSON.
    """

    __slots__ = ("_release", "data", "value")

    def __init__(
        self, data: bytes, operations: Callable[[JSON], list[Operation]], judges: Judges, *, kind: Kind = "output"
    ) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError as exc:
            raise UnreadableError(f"expected UTF-8: {exc.reason} at byte {exc.start}") from None
        #: What it says, as it came.
        self.value, duplicates = json_text.loads(text)
        #: The document; None while there are verdicts to come.
        self.data: bytes | None = None
        self._release = Release(judges, lambda mark, dropped: {}, repeats=True)
        # All of it is there, so that nothing needs windows.
        found = [*operations(self.value), End()]
        if duplicates:
            found += shadowed(text, kind)
        self._release.add(Unit(data, data, 0), found, 0.0)
        self._leave()

    @property
    def blocked(self) -> Blocked | None:
        """The judge that has blocked it, if one has."""
        return self._release.outcome.blocked

    @property
    def findings(self) -> list[Finding]:
        """What was found. The owner takes out what it has noted."""
        return self._release.outcome.findings

    def inspections(self) -> list[Inspection]:
        """What is to be judged and was not handed out before."""
        return self._release.inspections()

    def verdict(self, inspection: Inspection, decisions: Sequence[Decision]) -> None:
        """What a judge says of a window.

        :raises AgentProtocolError: for a decision that is not about the window. It is still to be judged.
        """
        self._release.verdict(inspection, decisions, 0.0)
        self._leave()

    def _leave(self) -> None:
        out = self._release.leave(0.0)
        if out:
            self.data = out[0]
