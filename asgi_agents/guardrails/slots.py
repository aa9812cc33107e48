"""The values that guardrails and their wiring exchange. All offsets are code points, the indices of a Python str."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from ..protocol.redacted_repr import RedactedRepr, redacted_repr, size_of

#: What a text is to the app and its client.
Kind = Literal["input", "output", "tool_call", "tool_result", "reasoning"]
KINDS: Final[frozenset[Kind]] = frozenset(("input", "output", "tool_call", "tool_result", "reasoning"))

#: Names one slot among those of its body or stream.
SlotKey = tuple[str | int, ...]


class Call(Struct, frozen=True, kw_only=True):
    """One exchange as the app's user thinks of it; known once the request was read.

    :ivar tools: the names of the tools that the model may call.
    :ivar scope: the ASGI scope.
    """

    dialect: str
    model: str | None = None
    user: str | None = None
    stream: bool = False
    tools: tuple[str, ...] = ()
    scope: Mapping[str, Any] = {}


class Slot(Struct, frozen=True):
    """One text of a body or stream, independent of every other.

    :ivar role: the role of the message, where it has one.
    :ivar tool: the name of the tool, for ``tool_call`` and ``tool_result``.
    """

    key: SlotKey
    kind: Kind
    role: str | None = None
    tool: str | None = None


class Window(RedactedRepr, frozen=True):
    """What a guardrail is shown of a slot.

    :ivar text: context, and from ``fresh`` on what is to be judged.
    :ivar start: how many code points of the slot precede ``text``.
    :ivar fresh: an index into ``text``. Finds begin there or later: ``pattern.finditer(window.text, window.fresh)``.
    :ivar final: whether the slot ends with ``text``.
    :ivar going_on: the beginning of a redaction that ends at ``fresh``, and was longer than ``hold`` or filled its
        window: as many code points as ``hold``, and at least 256, if it has them. What it covers may go on: redact that
        from ``fresh``, without a text. Empty: there is none.
    """

    text: str
    start: int = 0
    fresh: int = 0
    final: bool = True
    going_on: str = ""

    def __repr__(self) -> str:
        return redacted_repr(self, text=size_of(self.text), going_on=size_of(self.going_on))


class Redact(RedactedRepr, frozen=True):
    """Replace ``window.text[start:end]`` by ``text``."""

    start: int
    end: int
    text: str = ""

    def __repr__(self) -> str:
        return redacted_repr(self, text=size_of(self.text))


class Block(Struct, frozen=True):
    """Stop the call. The client is told ``reason``."""

    reason: str


class Flag(Struct, frozen=True):
    """Record that ``window.text[start:end]`` is of ``category``, and change nothing."""

    start: int
    end: int
    category: str


Decision = Redact | Block | Flag
