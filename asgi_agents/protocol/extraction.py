"""Decodes the data of a long event in JSON in place, without a second copy. No I/O.

The data is base64. To decode the whole event takes memory for both the base64 and the decoded bytes: 19 MiB for a body
of 8 MiB. Here the decoded bytes are written over the base64, piece by piece.
"""

import re
from binascii import Error, a2b_base64
from io import BytesIO
from typing import Final

import msgspec

#: Shorter frames, in bytes, are decoded as a whole.
LONG: Final = 1024 * 1024

# The most bytes that may stand before the data, and after it.
_MAX_REST: Final = 16 * 1024
# A multiple of 4: base64 has no state between groups of 4 characters.
_STEP: Final = 64 * 1024
_DATA: Final = re.compile(rb'[{,]\s*"data"\s*:\s*"')


def extract_data(frame: BytesIO) -> tuple[bytes, bytes] | None:
    """A version 2 frame with the event's ``data`` emptied, and the decoded data. ``frame`` is overwritten.

    Returns None, and leaves the frame as it was, if the data can't be found for certain. The event then has to be
    decoded as a whole. If the data is no valid base64, the returned frame has invalid base64 as well, so that decoding
    it raises the error.
    """
    size = frame.seek(0, 2)
    with frame.getbuffer() as view:
        head = bytes(view[:_MAX_REST])
        found = _DATA.search(head, 1)
        if found is None or not _is_at_the_top(head[1 : found.end()]):
            return None
        start = found.end()
        end = _end_of_text(view, start)
        if end is None or size - end > _MAX_REST:
            return None
        tail = bytes(view[end:])
        if b"data" in tail or b"\\" in tail:
            # The field may be there twice.
            return None
        length = _decode_in_place(view, start, end)
    if length is None:
        return head[:start] + b"!" + tail, b""
    frame.truncate(length)
    return head[:start] + tail, frame.getvalue()


def _is_at_the_top(prefix: bytes) -> bool:
    """Whether the text after ``prefix`` is the value of a field of the event itself, the first of that name."""
    if b"\\" in prefix or prefix.count(b'"data"') > 1:
        return False
    try:
        return isinstance(msgspec.json.decode(prefix + b'"}'), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _end_of_text(view: memoryview, start: int) -> int | None:
    """The end of the JSON string that begins at ``start``. None if it has escapes, or no end."""
    for place in range(start, len(view), _STEP):
        piece = bytes(view[place : place + _STEP])
        end = piece.find(b'"')
        if b"\\" in (piece if end < 0 else piece[:end]):
            return None
        if end >= 0:
            return place + end
    return None


def _decode_in_place(view: memoryview, start: int, end: int) -> int | None:
    """Decode the base64 from ``start`` to ``end`` to the beginning of ``view``.

    Returns the length of the decoded bytes, or None where it is no valid base64.
    """
    length = 0
    for place in range(start, end, _STEP):
        piece = view[place : min(place + _STEP, end)]
        try:
            said = a2b_base64(piece, strict_mode=True)
        except Error:
            return None
        if place + _STEP < end and len(said) != _STEP // 4 * 3:
            # Padding before the end.
            return None
        view[length : length + len(said)] = said
        length += len(said)
    return length
