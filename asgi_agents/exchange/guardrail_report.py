"""What a guardrail did for one connection, for its audit record."""

from typing import Final

from msgspec import Struct

from ..guardrails.slots import Kind

#: How many spans of a guardrail are kept for the audit record of one connection.
MAX_SPANS: Final = 20


class FoundSpan(Struct, frozen=True, array_like=True):
    """What was found, and where: code points from the beginning of its text. ``what`` is the category of a flag."""

    kind: Kind
    start: int
    end: int
    what: str


class GuardrailReport:
    """What one guardrail did for one connection.

    :ivar counts: how much it did of each: ``redact``, ``block``, ``flag``, ``failure``, ``unreadable``,
        ``dropped``.
    :ivar found: the kinds of text that something was found in, with the number of finds.
    :ivar spans: the first that were found.
    :ivar held: code points; how much text waited at most.
    :ivar delay: seconds; how long an event waited at most.
    """

    __slots__ = ("agent_id", "counts", "delay", "dialect", "found", "held", "spans")

    def __init__(self, agent_id: str, dialect: str) -> None:
        self.agent_id = agent_id
        self.dialect = dialect
        self.counts: dict[str, int] = {}
        self.found: dict[str, int] = {}
        self.spans: list[FoundSpan] = []
        self.held = 0
        self.delay = 0.0

    def count(self, what: str) -> None:
        """Count one more."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def add(self, what: str, kind: Kind, span: tuple[int, int, str] | None) -> None:
        """Count a find, and keep where it is."""
        self.count(what)
        self.found[kind] = self.found.get(kind, 0) + 1
        if span is not None and len(self.spans) < MAX_SPANS:
            self.spans.append(FoundSpan(kind, *span))
