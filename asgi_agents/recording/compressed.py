"""Whether a body is compressed, by what it begins with. No I/O."""

import re
import zlib
from codecs import getincrementaldecoder
from typing import Final

# gzip, xz, bzip2.
_MARKS: Final = (b"\x1f\x8b", b"\xfd7zXZ", b"BZh")
# zstd, of any version, and its frames that are to be skipped, which may stand in front of others.
_ZSTD: Final = re.compile(rb"[\x1e\x22-\x28]\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
# What zlib writes mostly.
_USUAL: Final = (b"x\x01", b"x\x9c", b"x\xda")
# Bytes that are looked at, and bytes that a text has so few of that it may be right as zlib by chance.
_LOOK: Final = 1024
_FEW: Final = 64
# The bit that says that a dictionary is needed, the bytes before what is compressed then, and what stands for it.
_DICTIONARY: Final = 0x20
_BEFORE: Final = 6
_ANY_DICTIONARY: Final = bytes(32 * 1024)
_decoder: Final = getincrementaldecoder("utf-8")
# What texts don't have.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def is_compressed(data: bytes) -> bool:
    """Whether ``data`` is compressed with gzip, zlib, zstd, xz or bzip2, or is the first piece of what is."""
    return data.startswith(_MARKS) or _ZSTD.match(data) is not None or _is_zlib(data)


def _is_zlib(data: bytes) -> bool:
    """By its header (RFC 1950, 2.2), with which many texts begin as well, and by what is behind it."""
    if len(data) < 2 or data[0] & 0x0F != 8 or data[0] >> 4 > 7 or (data[0] << 8 | data[1]) % 31:
        return False
    head, with_dictionary = data[:_LOOK], data[1] & _DICTIONARY
    text = _is_text(head)
    if text and (with_dictionary or len(data) < _FEW):
        return False
    try:
        if with_dictionary:
            zlib.decompressobj(-zlib.MAX_WBITS, zdict=_ANY_DICTIONARY).decompress(head[_BEFORE:], _LOOK)
        else:
            zlib.decompressobj().decompress(head, _LOOK)
    except zlib.error:
        # What is broken may have been read to where it is.
        return not text and data.startswith(_USUAL)
    return True


def _is_text(data: bytes) -> bool:
    """Whether it is one in UTF-8, which may end within a character."""
    try:
        text = _decoder().decode(data)
    except UnicodeDecodeError:
        return False
    return _CONTROLS.search(text) is None
