"""What a guardrail says of a text that a handler has asked about."""

from collections.abc import Sequence

from ..guardrails.windows import Found
from ..protocol.redacted_repr import RedactedRepr, redacted_repr, size_of


class InspectedText(RedactedRepr, frozen=True, kw_only=True):
    """What a guardrail says of a text that a handler has asked about.

    :ivar text: the text as it may be used: all that the guardrail redacts is redacted. It is empty where the text is
        blocked, so that whoever does not look passes nothing on.
    :ivar reason: why the text is blocked; None: it is not.
    :ivar found: what was found, in order, in code points of the text that was given.
    """

    text: str
    reason: str | None = None
    found: Sequence[Found] = ()

    @property
    def blocked(self) -> bool:
        """Whether the text must not be used."""
        return self.reason is not None

    def __repr__(self) -> str:
        return redacted_repr(self, text=size_of(self.text), reason=size_of(self.reason))
