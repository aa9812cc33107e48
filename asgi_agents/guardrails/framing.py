"""What a stream is cut into, whatever its framing."""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

#: How many bytes of a unit that has not ended yet are kept.
MAX_UNIT_BYTES: Final = 1024 * 1024


class UnreadableError(ValueError):
    """What was read is not in the form that its type promises. The message says what is wrong with it."""


class TooComplexError(UnreadableError):
    """What may well be in its form, and is over a limit of ours: others may read it."""


def decoded(data: bytes, at: int = 0) -> str:
    """``data``, which stands at ``at``, as text. Raises :class:`UnreadableError` for what is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise UnreadableError(f"expected UTF-8: {exc.reason} at byte {at + exc.start}") from None


class Beside(NamedTuple):
    """What a unit says beside its data.

    :ivar texts: comments and names that are none: where each begins and ends in the bytes.
    :ivar strays: whether there are lines that are in no grammar.
    """

    texts: tuple[tuple[int, int], ...]
    strays: bool


class Unit:
    """One event, line or element of a stream.

    The units of a stream, joined, are the stream: ``raw`` is exactly what came.

    :ivar event: the type of a server-sent event, where it has one.
    :ivar data: what it says; None where it says nothing to the reader of the stream, as a comment does.
    :ivar beside: what it says beside that; None where there is nothing.
    """

    beside: Beside | None = None

    __slots__ = ("data", "event", "raw", "start")

    def __init__(self, raw: bytes, data: bytes | None, start: int, event: bytes | None = None) -> None:
        self.raw = raw
        self.data = data
        self.event = event
        #: Where in ``raw`` the data is.
        self.start = start

    def put_back(self, data: bytes) -> bytes:
        """The bytes of the unit with other data; its framing stays."""
        before = self.data or b""
        return self.raw[: self.start] + data + self.raw[self.start + len(before) :]

    def again(self, raw: bytes) -> "Unit":
        """The unit that takes the place of this one, whose bytes are ``raw``."""
        behind = len(self.raw) - self.start - len(self.data or b"")
        return Unit(raw, raw[self.start : len(raw) - behind], self.start, self.event)

    def with_texts(self, changes: Mapping[tuple[int, int], bytes]) -> "Unit":
        """The unit with other texts beside its data. Only units that have some are asked."""
        raise NotImplementedError


class Framer(Protocol):
    """Cuts one stream into units, in time that is linear in its length."""

    @property
    def held(self) -> int:
        """How many bytes of a unit that has not ended yet there are."""
        ...

    def feed(self, data: bytes) -> list[Unit]:
        """The units that end with ``data``.

        :raises UnreadableError: when a unit grows over :data:`MAX_UNIT_BYTES`. :meth:`rest` has what came of it.
        """
        ...

    def end(self) -> list[Unit]:
        """What is left at the end of the stream, as a unit if it says anything."""
        ...

    def rest(self) -> bytes:
        """What is left, as it came. Nothing is left afterwards."""
        ...

    def between(self, sent: bytes) -> bytes:
        """What has to stand between ``sent``, the end of what has left, and a unit that is put behind it."""
        ...


def too_large(size: int) -> UnreadableError:
    """The error of a unit that has not ended after ``size`` bytes."""
    return UnreadableError(f"a unit of the stream has not ended after {size} bytes, expected at most {MAX_UNIT_BYTES}")
