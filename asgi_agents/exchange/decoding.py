"""Content codings (RFC 9110, section 8.4.1): from the bytes on the wire to the content. No ASGI in here.

``gzip`` and ``deflate`` are always known. ``br`` is known where ``brotli`` 1.2 or newer is installed, ``zstd`` from
Python 3.14 on or where ``backports.zstd`` is installed.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from typing import Any, Final, Protocol

#: The most that a body may grow by, over all of what has come of it, with all its codings undone.
MAX_RATIO: Final = 100
# Below so many bytes nothing is a bomb, however well it was compressed.
_NEVER_A_BOMB: Final = 64 * 1024
# How much is decoded at a time, in bytes.
_PIECE: Final = 64 * 1024
#: How many encoded bytes are best decoded before others have their turn: some milliseconds, whatever is in them.
DECODED_AT_ONCE: Final = _PIECE
# What each member or frame counts for, whatever is in it: to begin one takes time, and a body can be millions of them.
_MEMBER_COST: Final = 1024
# More codings than this have no honest use; each multiplies what a small body can grow to.
_MAX_CODINGS: Final = 3
# RFC 9659: 8 MiB is the largest window that a zstd decoder on the web has to have.
_ZSTD_WINDOW_LOG: Final = 23


class UnreadableBody(Exception):  # noqa: N818 - says what is wrong with it
    """The body is not what its ``content-encoding`` says, or a coding that nobody here knows. The message says which.

    It never quotes the body or the header.
    """


class TooLargeBody(UnreadableBody):
    """More comes of the body than may."""


class _Layer(Protocol):
    """Undoes one coding.

    :ivar members: how many members or frames have begun.
    """

    members: int

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What ``data`` adds to the content, in pieces of about 64 KiB."""
        ...

    def finish(self) -> None:
        """Nothing follows. Raises :class:`UnreadableBody` if something should."""
        ...


class Decoder:
    """Decodes one body, bounded: it stops at a body that grows to more than :data:`MAX_RATIO` times its size.

    :param codings: in the order in which they were applied, as :func:`~.headers.codings_of` gives them.
    :param most: how many bytes may come of it, and of each of its codings. None: any number.
    :raises UnreadableBody: for a coding that isn't known here.
    """

    def __init__(self, codings: Iterable[str], most: int | None = None) -> None:
        names = list(codings)
        if len(names) > _MAX_CODINGS:
            raise UnreadableBody(f"encoded {len(names)} times, expected {_MAX_CODINGS} at most")
        self._layers: list[_Bounded] = [_Bounded(_layer(coding), most) for coding in reversed(names)]
        self._taken = 0

    def feed(self, data: bytes, last: bool) -> Iterator[bytes]:
        """The content that ``data`` adds, in pieces of about 64 KiB; ``last`` says that nothing follows.

        Raises :class:`UnreadableBody`, also after some pieces; for more than ``most``, :class:`TooLargeBody`.
        """
        self._taken += len(data)
        limit = max(_NEVER_A_BOMB, MAX_RATIO * self._taken)
        # The libraries copy what they have not come to with every piece, and with every member.
        for start in range(0, len(data), _PIECE):
            yield from self._through(0, data[start : start + _PIECE], limit)
        if last:
            for layer in self._layers:
                layer.finish()

    def _through(self, index: int, data: bytes, limit: int) -> Iterator[bytes]:
        if index == len(self._layers):
            yield data
            return
        for piece in self._layers[index].feed(data, limit):
            yield from self._through(index + 1, piece, limit)


class _Bounded:
    """A layer that may not make too much of too little. The one place where libraries' errors become ours."""

    def __init__(self, layer: _Layer, most: int | None) -> None:
        self._layer = layer
        self._most = most
        self._begun = False
        self._given = 0

    def feed(self, data: bytes, limit: int) -> Iterator[bytes]:
        """What ``data`` adds. ``limit`` bounds all that the layer has made so far, by what came on the wire.

        By that, and not by what the layer before has made of it: two layers could else make a hundred times a hundred.
        """
        self._begun = self._begun or bool(data)
        pieces = self._layer.feed(data)
        while True:
            try:
                piece = next(pieces, None)
            except UnreadableBody:
                raise
            except Exception as exc:
                # Each library has errors of its own, and none of these says anything but that the data is wrong.
                raise UnreadableBody("not what its content-encoding says") from exc
            if piece is None:
                return
            self._given += len(piece)
            if self._given + _MEMBER_COST * self._layer.members > limit:
                raise UnreadableBody(f"grows to more than {MAX_RATIO} times its size when it is decoded")
            if self._most is not None:
                if self._given > self._most:
                    raise TooLargeBody(f"more than {self._most} bytes when it is decoded")
                if _MEMBER_COST * self._layer.members > self._most:
                    raise UnreadableBody(f"encoded in more than {self._most // _MEMBER_COST} members or frames")
            if piece:
                yield piece

    def finish(self) -> None:
        # An empty body is not encoded, whatever its head says.
        if self._begun:
            self._layer.finish()


class _Inflate:
    """``gzip`` (RFC 1952; all members) and ``deflate`` (RFC 1950, or bare RFC 1951 as some servers send it)."""

    def __init__(self, coding: str) -> None:
        self.members = 1
        self._gzip = coding == "gzip"
        self._stream: Any = zlib.decompressobj(zlib.MAX_WBITS | 16) if self._gzip else None
        self._head = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            # Two bytes say which of the two it is.
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return
            has_header = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        while data:
            if self._stream.eof:
                if not self._gzip:
                    raise UnreadableBody("something follows the end of what is encoded")
                self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
                self.members += 1
            while True:
                piece = self._stream.decompress(data, _PIECE)
                data = self._stream.unconsumed_tail
                yield piece
                if self._stream.eof or (not data and len(piece) < _PIECE):
                    break
            data = self._stream.unused_data

    def finish(self) -> None:
        if self._stream is None or not self._stream.eof:
            raise UnreadableBody("ends before what is encoded does")


class _Brotli:
    """``br`` (RFC 7932)."""

    def __init__(self, library: Any) -> None:
        self.members = 1
        self._stream = library.Decompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            piece = self._stream.process(data, output_buffer_limit=_PIECE)
            data = b""
            # Whether it holds more back is only told by asking for it.
            if not piece:
                return
            yield piece

    def finish(self) -> None:
        if not self._stream.is_finished():
            raise UnreadableBody("ends before what is encoded does")


class _Zstd:
    """``zstd`` (RFC 8878; all frames)."""

    def __init__(self, library: Any) -> None:
        self.members = 0
        self._library = library
        self._stream = self._new()

    def _new(self) -> Any:
        self.members += 1
        parameter = self._library.DecompressionParameter.window_log_max
        return self._library.ZstdDecompressor(options={parameter: _ZSTD_WINDOW_LOG})

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._stream.eof:
                self._stream = self._new()
            while True:
                yield self._stream.decompress(data, _PIECE)
                data = b""
                if self._stream.eof or self._stream.needs_input:
                    break
            data = self._stream.unused_data if self._stream.eof else b""

    def finish(self) -> None:
        if not self._stream.eof:
            raise UnreadableBody("ends before what is encoded does")


_ALIASES: Final[Mapping[str, str]] = {"x-gzip": "gzip"}


def canonical(coding: str) -> str:
    """The name of a coding, given in lower case, for which there may be another one (RFC 9110, section 8.4.1.3)."""
    return _ALIASES.get(coding, coding)


@cache
def known_codings() -> Mapping[str, Callable[[], _Layer]]:
    """The codings that can be decoded here, and how."""
    known: dict[str, Callable[[], _Layer]] = {
        "gzip": partial(_Inflate, "gzip"),
        "deflate": partial(_Inflate, "deflate"),
    }
    with suppress(ImportError):
        brotli = import_module("brotli")
        # Without it one call could make gigabytes of a few bytes.
        if hasattr(brotli.Decompressor, "can_accept_more_data"):
            known["br"] = partial(_Brotli, brotli)
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            zstd = import_module(name)
            known["zstd"] = partial(_Zstd, zstd)
            break
    return known


def _layer(coding: str) -> _Layer:
    make = known_codings().get(coding)
    if make is None:
        raise UnreadableBody("its content-encoding is none that can be decoded here")
    return make()
