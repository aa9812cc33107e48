"""Decodes messages in msgpack whose payloads may be base64, as other hosts of the protocol send them. No I/O.

msgspec accepts base64 when it converts a str to bytes, but not when it decodes msgpack. Decoding the whole message into
plain values first would also build unknown fields: 16 MiB of empty maps take 1 GiB of memory. So the message is decoded
into a struct that keeps its payloads undecoded.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import NODEFAULT, Raw, Struct
from msgspec.structs import fields

# The name of fields that are payloads.
_DATA: Final = "data"


def decode_base64_payloads(
    message: bytes | memoryview, kind: type[Struct], mutation: type[Struct], dec_hook: Callable[[Any, Any], Any]
) -> Any:
    """A ``kind`` whose field ``data``, or that of each ``mutation`` in it, is raw bytes or base64.

    Raises :class:`msgspec.ValidationError` naming the field at fault.
    """
    undecoded = msgspec.msgpack.decode(message, type=_undecoded(kind, mutation), dec_hook=dec_hook)
    return _read(undecoded, kind, mutation, "")


def _read(undecoded: Any, kind: type[Struct], mutation: type[Struct], at: str) -> Any:
    values: dict[str, Any] = {}
    for field in fields(kind):
        value = getattr(undecoded, field.name)
        if field.name == _DATA and isinstance(value, Raw):
            value = _read_payload(value, field.type, f"{at}{_DATA}")
        elif field.type == mutation | None and value is not None:
            value = _read(value, mutation, mutation, f"{field.name}.")
        values[field.name] = value
    return kind(**values)


def _read_payload(undecoded: Raw, expected: Any, at: str) -> Any:
    given = memoryview(undecoded)
    # A fixstr, str 8, str 16 or str 32 (the str format family in the specification of msgpack).
    is_text = 0xA0 <= given[0] <= 0xBF or 0xD9 <= given[0] <= 0xDB
    try:
        if is_text:
            return msgspec.convert(msgspec.msgpack.decode(given, type=str), expected)
        return msgspec.msgpack.decode(given, type=expected)
    except msgspec.ValidationError as exc:
        raise msgspec.ValidationError(f"{exc} - at `$.{at}`") from None


@cache
def _undecoded(kind: type[Struct], mutation: type[Struct]) -> type[Struct]:
    """A struct like ``kind`` that keeps payloads undecoded."""
    defined: list[tuple[str, Any, Any]] = []
    for field in fields(kind):
        type_: Any = field.type
        if field.name == _DATA:
            type_ = Raw
        elif type_ == mutation | None:
            type_ = _undecoded(mutation, mutation) | None
        has_factory = field.default_factory is not NODEFAULT
        default = msgspec.field(default_factory=field.default_factory) if has_factory else field.default
        defined.append((field.name, type_, default))
    return msgspec.defstruct(kind.__name__, defined, kw_only=True)
