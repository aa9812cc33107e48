"""What is found, checked and merged, and the parts of a text that it is found in, changed."""

from collections import deque
from collections.abc import Sequence

from ..errors import AgentProtocolError
from ..protocol.validation import number_or_type
from .slots import Block, Decision, Flag, Redact, Window


class Edits:
    """Redactions of a slot, in order, that reach into parts of its text that have not left."""

    __slots__ = ("_edits",)

    def __init__(self) -> None:
        self._edits: deque[tuple[int, int, str]] = deque()

    def __bool__(self) -> bool:
        return bool(self._edits)

    def add(self, redactions: Sequence[tuple[int, int, str]]) -> None:
        """More of them, behind the others: start, end, text."""
        self._edits.extend(redactions)

    def part(self, end: int, text: str, *, last: bool) -> str:
        """The part of the slot that ends at ``end``, changed. Parts are asked for in order.

        A redaction is made in the part in which it begins. What it covers of later ones is taken out there.

        :param last: whether the slot ends there.
        """
        edits = self._edits
        start = at = end - len(text)
        pieces: list[str] = []
        while edits:
            first, behind, new = edits[0]
            if first >= end and not (last and first == end):
                break
            if first >= start:
                pieces += [text[at - start : first - start], new]
            at = max(at, min(behind, end))
            if behind > end:
                break
            edits.popleft()
        pieces.append(text[at - start :])
        return "".join(pieces)


def check_decisions(decisions: Sequence[Decision], window: Window) -> None:
    """Raise :class:`AgentProtocolError` unless every one is a decision about ``window``."""
    for decision in decisions:
        match decision:
            case Block(reason=said) | Redact(text=said) | Flag(category=said):
                if not isinstance(said, str):
                    raise AgentProtocolError(
                        f"{type(decision).__name__}: expected a str as its text, got {type(said).__name__}"
                    )
            case _:
                raise AgentProtocolError(f"expected Redact, Block or Flag, got {type(decision).__name__}")
        if isinstance(decision, Block):
            continue
        start, end, length = decision.start, decision.end, len(window.text)
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= length:
            raise AgentProtocolError(
                f"{type(decision).__name__}: expected 0 <= start <= end <= {length}, the code points of the window, "
                f"got {number_or_type(start)} and {number_or_type(end)}"
            )


def merged(redactions: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """In order, the ones that overlap made one, with the text of the first."""
    redactions.sort(key=lambda redaction: redaction[0])
    out: list[tuple[int, int, str]] = []
    for start, end, text in redactions:
        if out and (start < out[-1][1] or (start, end) == out[-1][:2]):
            first, last, kept = out[-1]
            out[-1] = (first, max(last, end), kept)
        else:
            out.append((start, end, text))
    return out
