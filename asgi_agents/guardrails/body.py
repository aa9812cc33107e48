"""A request, or an answer that is no stream: one JSON document."""

from collections.abc import Callable, Sequence

from . import json_text
from .framing import Unit, decoded
from .json_text import JSON
from .judges import Blocked, Finding, Inspection, Judges
from .operations import End, Operation
from .release import Release
from .shadowed import shadowed
from .slots import Decision, Kind


class Parsed:
    """A document that was read, so that its dialect can be chosen.

    :raises UnreadableError: for what is no JSON in UTF-8.
    """

    __slots__ = ("duplicates", "text", "value")

    def __init__(self, data: bytes) -> None:
        self.text = decoded(data)
        #: What it says, and whether any object in it has a key twice.
        self.value, self.duplicates = json_text.loads(self.text)


class Body:
    """A document on its way through guardrails.

    :param operations: says what text is in it: the ``request`` or ``answer`` of a dialect.
    :param kind: of strings that no dialect finds, for their keys are there twice.
    :param parsed: ``data``, if it was read before.
    :raises UnreadableError: for what is no JSON, or not in the dialect, or has arguments in it that are no JSON.
    """

    __slots__ = ("_release", "data", "value")

    def __init__(
        self,
        data: bytes,
        operations: Callable[[JSON], list[Operation]],
        judges: Judges,
        *,
        kind: Kind = "output",
        parsed: Parsed | None = None,
    ) -> None:
        parsed = Parsed(data) if parsed is None else parsed
        #: What it says, as it came.
        self.value = parsed.value
        #: The document; None while there are verdicts to come.
        self.data: bytes | None = None
        self._release = Release(judges, lambda mark, dropped: {}, repeats=True)
        # All of it is there, so that nothing needs windows.
        found = [*operations(self.value), End()]
        if parsed.duplicates:
            found += shadowed(parsed.text, kind)
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
