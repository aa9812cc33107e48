"""What ``repr()`` shows of values with secrets or somebody's data in them: they end up in logs and tracebacks."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct


class RedactedRepr(Struct, frozen=True):
    """Values whose ``repr()`` leaves something out."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # For tracebacks that are made with rich. What structs have of themselves shows everything.
        return [("shown", repr(self))]


def redacted_repr(value: Struct, /, **instead: str) -> str:
    """``repr(value)``, with the text ``instead`` of what is in some of its fields."""
    fields = (f"{name}={instead.get(name) or repr(getattr(value, name))}" for name in value.__struct_fields__)
    return f"{type(value).__name__}({', '.join(fields)})"


def size_of(data: object) -> str:
    """Its length in bytes or characters."""
    match data:
        case bytes():
            return f"<{len(data)} bytes>"
        case str():
            return f"<{len(data)} characters>"
        case _:
            return repr(data) if data is None else f"<{type(data).__name__}>"


def names_of(pairs: object) -> str:
    """The names, without their values."""
    if isinstance(pairs, Mapping):
        return f"<{', '.join(map(repr, pairs))}>"
    return size_of(pairs)


def without_query(url: object) -> str:
    """The URL, without what comes behind its path."""
    path, mark, _ = str(url).partition("?")
    return f"{path}{mark}…" if mark else path
