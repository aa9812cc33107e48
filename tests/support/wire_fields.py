"""Messages of protobuf by the numbers of their fields, without any description of them.

What a test says in this way, it says by the published numbers, and not by the package's own file of them.
"""

import struct
from typing import Any

Fields = dict[int, list[Any]]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: bytes | str | float) -> bytes:
    """One field: a whole number as a varint, a float in 32 bits, text and bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value & 0xFFFFFFFFFFFFFFFF)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(*fields: tuple[int, bytes | str | float]) -> bytes:
    return b"".join(field(number, value) for number, value in fields)


def read(data: bytes) -> Fields:
    """The fields of a message. What has a length is bytes, also where it is a message of its own."""
    found: Fields = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = number()
        value: Any
        match tag & 7:
            case 0:
                value = number()
            case 2:
                length = number()
                value = data[at : at + length]
                at += length
            case 5:
                (value,) = struct.unpack("<f", data[at : at + 4])
                at += 4
            case 1:
                (value,) = struct.unpack("<d", data[at : at + 8])
                at += 8
            case other:
                raise AssertionError(f"wire type {other}")
        found.setdefault(tag >> 3, []).append(value)
    return found
