"""Frames: where each message in a stream of bytes begins and ends. No I/O.

A frame is a 4-byte big-endian length, and as many bytes: a type byte and a payload. In the older framing
(``envelope``) there is no type byte, and the payload is what the HTTP transport posts.
"""

import struct
from collections.abc import Iterator
from enum import StrEnum
from io import BytesIO
from typing import Final

from msgspec import Struct

from ...errors import AgentProtocolError, EventTooLargeError
from ..codec import Encoding, encode_value
from ..extraction import LONG, extract_data
from .messages import MessageType

#: The longest frame, type byte included, and the longest of the older framing.
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
MAX_ENVELOPE_BYTES: Final = 10 * 1024 * 1024
#: The longest frame before a peer has introduced itself: a client's, which may carry a configuration, and an agent's.
MAX_HANDSHAKE_REQUEST_BYTES: Final = 1024 * 1024
MAX_HANDSHAKE_RESPONSE_BYTES: Final = 64 * 1024

_LENGTH_BYTES: Final = 4
_FRAME_HEAD: Final = struct.Struct(">IB")
_MESSAGES_WITH_DATA: Final = frozenset(
    {MessageType.REQUEST_BODY_CHUNK, MessageType.RESPONSE_BODY_CHUNK, MessageType.WEBSOCKET_FRAME}
)


class Framing(StrEnum):
    """Which of the two framings a peer uses. It has to be configured: the bytes don't show it."""

    V2 = "v2"
    ENVELOPE = "envelope"

    @property
    def max_bytes(self) -> int:
        """The longest frame."""
        return MAX_FRAME_BYTES if self is Framing.V2 else MAX_ENVELOPE_BYTES


class FrameReader:
    """Cuts a stream of bytes into frames.

    :param max_bytes: the longest frame that may come now; None: the longest of the framing.
    """

    def __init__(self, framing: Framing, max_bytes: int | None = None) -> None:
        #: The longest frame that may come from now on.
        self.max_bytes = framing.max_bytes if max_bytes is None else max_bytes
        #: Whether a frame has begun that has not ended.
        self.pending = False
        #: How many frames have begun to come in one read and did not end in it.
        self.divided = 0
        #: Whether the data of long events in JSON is taken out of their frames. It is in :attr:`data` then, until the
        #: next frame.
        self.extracts = False
        self.data: bytes | None = None
        # The bytes that have come of a length, and of the frame after it. A BytesIO gives its bytes away without
        # copying them.
        self._length = b""
        self._frame: BytesIO | None = None
        self._missing = 0

    @property
    def held(self) -> int:
        """How many bytes have come of a frame that has not ended."""
        return len(self._length) if self._frame is None else _LENGTH_BYTES + self._frame.tell()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that ``data`` completes, without their lengths.

        Raises :class:`AgentProtocolError` at a frame whose length is not allowed; nothing after it can be read.
        """
        if not self.pending and len(data) - _LENGTH_BYTES == int.from_bytes(data[:_LENGTH_BYTES], "big"):
            # The usual case: exactly one frame.
            length = len(data) - _LENGTH_BYTES
            if 0 < length <= self.max_bytes:
                return iter((data[_LENGTH_BYTES:],))
        return self._cut(data)

    def _cut(self, data: bytes) -> Iterator[bytes]:
        position = 0
        size = len(data)
        while position < size:
            if self._frame is not None:
                part = memoryview(data)[position : position + self._missing]
                self._frame.write(part)
                position += len(part)
                self._missing -= len(part)
                if not self._missing:
                    self.pending = False
                    yield self._take()
                continue
            if self._length or size - position < _LENGTH_BYTES:
                self._begin()
                wanted = _LENGTH_BYTES - len(self._length)
                self._length += data[position : position + wanted]
                position += wanted
                if len(self._length) < _LENGTH_BYTES:
                    return
                prefix, self._length = self._length, b""
            else:
                prefix = data[position : position + _LENGTH_BYTES]
                position += _LENGTH_BYTES
            length = int.from_bytes(prefix, "big")
            if not 0 < length <= self.max_bytes:
                raise AgentProtocolError(_describe_length(prefix, length, self.max_bytes))
            end = position + length
            if end <= size:
                self.pending = False
                frame = data[position:end]
                position = end
                yield frame
            else:
                self._begin()
                self._frame = BytesIO()
                self._missing = length

    def _begin(self) -> None:
        if not self.pending:
            self.pending = True
            self.divided += 1

    def _take(self) -> bytes:
        """The frame that is complete. The reader keeps no reference to it."""
        assert self._frame is not None
        buffer, self._frame = self._frame, None
        if self.extracts and buffer.tell() >= LONG and buffer.getbuffer()[0] in _MESSAGES_WITH_DATA:
            extracted = extract_data(buffer)
            if extracted is not None:
                frame, self.data = extracted
                return frame
        return buffer.getvalue()

    def take_data(self) -> bytes | None:
        """The data of the latest event, if it was taken out of its frame."""
        data, self.data = self.data, None
        return data


def _describe_length(prefix: bytes, length: int, max_bytes: int) -> str:
    fault = f"a frame of {length} bytes, expected 1 to {max_bytes}"
    if prefix == b"HTTP":
        return f"{fault}: the peer speaks HTTP"
    return fault


def encode_frame(message_type: int, payload: bytes) -> bytes:
    """A version 2 frame. Raises :class:`EventTooLargeError` for one that would be too long."""
    length = len(payload) + 1
    if length > MAX_FRAME_BYTES:
        _check_length(length, MAX_FRAME_BYTES)
    return _FRAME_HEAD.pack(length, message_type) + payload


def encode_envelope_frame(envelope: bytes) -> bytes:
    """A frame of the older framing. Raises :class:`EventTooLargeError` for one that would be too long."""
    _check_length(len(envelope), MAX_ENVELOPE_BYTES)
    return len(envelope).to_bytes(_LENGTH_BYTES, "big") + envelope


def _check_length(length: int, max_bytes: int) -> None:
    if length > max_bytes:
        raise EventTooLargeError(f"it takes a frame of {length} bytes, expected {max_bytes} at most")


def encode_message(message_type: MessageType, message: Struct, encoding: Encoding = Encoding.JSON) -> bytes:
    """A frame of anything but an event or an answer."""
    return encode_frame(message_type, encode_value(message, encoding, message_type.name.lower()))
