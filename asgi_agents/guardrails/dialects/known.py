"""How apps and clients write calls, answers and streams."""

from collections.abc import Iterable, Sequence
from typing import Final

from ...errors import ConfigurationError
from ...messages.naming import named
from ..dialect import Dialect
from ..json_text import JSON
from .anthropic import Anthropic
from .chat import Chat
from .gemini import Gemini
from .mcp import MCP
from .ollama import Ollama
from .responses import Responses
from .ui_message import UIMessages
from .unknown import Events, Lines, PlainText

#: Those that are tried, in this order.
_CHAT: Final = Chat()
_GEMINI: Final = Gemini()
# What says that it is JSON-RPC is that, whatever else a client has put into it.
BUILT_IN: Final[tuple[Dialect, ...]] = (MCP(), _CHAT, Responses(), Anthropic(), _GEMINI, Ollama(), UIMessages())
_MEMBERS: Final = (
    *("name", "form", "repeats", "knows_path", "knows", "call", "request", "answer", "framer", "reader", "reply"),
)
_EVENTS: Final[Dialect] = Events()
_LINES: Final[Dialect] = Lines()
_TEXT: Final[Dialect] = PlainText()
_GENERAL: Final = frozenset((_EVENTS.name, _LINES.name, _TEXT.name))
_LINE_TYPES: Final = frozenset(
    f"application/{name}" for name in ("x-ndjson", "ndjson", "jsonl", "x-jsonlines", "jsonlines", "jsonl+json")
)


def of_request(path: str, value: JSON, dialects: Sequence[Dialect] = BUILT_IN) -> Dialect:
    """The dialect of a request: by its path, else by its shape, else JSON of unknown shape."""
    for dialect in dialects:
        if dialect.knows_path(path):
            return dialect
    for dialect in dialects:
        if dialect.name not in _GENERAL and dialect.knows(value):
            return dialect
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return _CHAT
    return _EVENTS


def of_answer(called: Dialect, value: JSON, dialects: Sequence[Dialect] = BUILT_IN) -> Dialect:
    """The dialect of an answer that is no stream: that of its call, if it has that shape."""
    for dialect in (called, *dialects):
        if dialect.name not in _GENERAL and dialect.knows(value):
            return dialect
    if is_ours(called) and _GEMINI.knows_array(value):
        return _GEMINI
    return _EVENTS if is_ours(called) else called


def of_stream(called: Dialect, media_type: str, dialects: Sequence[Dialect] = BUILT_IN) -> Sequence[Dialect]:
    """The dialects that a stream may be in, that of its call first; empty for what is no text.

    :param media_type: without parameters, in lower case.
    """
    if not is_ours(called):
        return [called]
    # A user's own has another ending.
    lines = next((dialect for dialect in dialects if dialect.name == _LINES.name), _LINES)
    # That of the call, which may be bound to it, and not another of its name.
    known = {dialect.name: dialect for dialect in (*reversed(dialects), called) if dialect.name not in _GENERAL}
    known = {dialect.name: known[dialect.name] for dialect in (called, *dialects) if dialect.name in known}
    if media_type == "text/event-stream":
        return [*(dialect for dialect in known.values() if dialect.name != "ollama"), _EVENTS]
    if media_type in _LINE_TYPES:
        return [*(dialect for dialect in known.values() if dialect.name == "ollama"), lines]
    if media_type == "application/json":
        return [dialect for dialect in known.values() if dialect.name == "gemini"]
    if media_type.startswith("text/") or media_type.endswith(("+xml", "/xml")):
        return [_TEXT]
    return []


def has_units(media_type: str) -> bool:
    """Whether a stream of this type is of events or lines, or of the JSON of a dialect."""
    return media_type in ("text/event-stream", "application/json") or media_type in _LINE_TYPES


def checked_dialects(where: str, given: object) -> Sequence[Dialect]:
    """Users' dialects with the built-in ones behind them; ``where`` begins the :class:`ConfigurationError`."""
    if given is None:
        return BUILT_IN
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}={named(given)}, expected a list of dialects")
    dialects = list(given)
    for dialect in dialects:
        lacking = [name for name in _MEMBERS if not hasattr(dialect, name)]
        if lacking or isinstance(dialect, type):
            right = f"one with {', '.join(lacking)}" if lacking else "an object of it"
            raise ConfigurationError(f"{where} contains {named(dialect)}, expected {right}")
    own = [dialect for dialect in dialects if dialect not in BUILT_IN]
    # What is left out of the list is found all the same: a stream that nobody knows is no dialect's.
    return (*own, *BUILT_IN) if own else tuple(BUILT_IN)


def is_general(dialect: Dialect) -> bool:
    """Whether it is of what has no dialect of its own, so that no client has terms for a whole answer in its place."""
    return dialect.name in _GENERAL


def is_ours(dialect: Dialect) -> bool:
    """Whether it is no dialect of a user's own, who has said where its text is."""
    return dialect.name in _GENERAL or any(dialect.name == known.name for known in BUILT_IN)
