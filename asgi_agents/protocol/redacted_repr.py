"""``repr()`` without the secrets and data in a value: it ends up in logs and tracebacks."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct


class RedactedRepr(Struct, frozen=True):
    """A struct whose ``repr()`` leaves out secrets and data."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # For tracebacks made with rich: the method that msgspec gives to structs shows everything.
        return [("shown", repr(self))]


def redacted_repr(value: Struct, /, **instead: str) -> str:
    """``repr(value)``, in which the texts of ``instead`` replace the values of the fields of that name."""
    fields = (f"{name}={instead.get(name) or repr(getattr(value, name))}" for name in value.__struct_fields__)
    return f"{type(value).__name__}({', '.join(fields)})"


def size_of(data: object) -> str:
    """The length of a value in bytes or characters, as text."""
    match data:
        case bytes():
            return f"<{len(data)} bytes>"
        case str():
            return f"<{len(data)} characters>"
        case _:
            return repr(data) if data is None else f"<{type(data).__name__}>"


def names_of(pairs: object) -> str:
    """The names of a mapping without their values, as text."""
    if isinstance(pairs, Mapping):
        return f"<{', '.join(map(repr, pairs))}>"
    return size_of(pairs)


def without_query(url: object) -> str:
    """The URL without its query and fragment, as text."""
    path, mark, _ = str(url).partition("?")
    return f"{path}{mark}…" if mark else path
