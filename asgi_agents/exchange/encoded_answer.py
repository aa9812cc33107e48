"""An answer that its app has encoded although nobody has asked for that, decoded for guardrails as it comes."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from anyio.lowlevel import checkpoint
from starlette.types import Message

from ..concurrency.limiter import Limiter
from ..memory.pieces import Pieces
from .decoding import DECODED_AT_ONCE, Decoder, UnreadableBody

#: How many encoded bytes are kept, so that they can pass as they are while nothing has left.
MAX_ORIGINAL_BYTES: Final = 16 * 1024 * 1024


class DecodedTaker(Protocol):
    """What takes the content."""

    @property
    def takes_content(self) -> bool:
        """Whether it still takes content."""
        ...

    async def take(self, message: Message) -> None:
        """The next message with content."""
        ...

    def lost(self, exc: BaseException) -> None:
        """Content was decoded, and will not come any more, because a send was given up."""
        ...


class EncodedAnswer:
    """Hands an answer on decoded.

    :param codings: in the order in which they were applied.
    :param failed: called with what is wrong with the body, and with the message that it was found in.
    :raises UnreadableBody: for a coding that is not known here.
    """

    def __init__(
        self, codings: Sequence[str], taker: DecodedTaker, failed: Callable[[str, Message], Awaitable[None]]
    ) -> None:
        self._decoder = Decoder(codings)
        self._taker = taker
        self._failed = failed
        # Content that two tasks send must not be mixed up.
        self._turn = Limiter(1)
        self._originals: Pieces | None = Pieces()
        #: Whether the app has sent all of it.
        self.complete = False

    async def take(self, message: Message) -> None:
        """The app's next message with a part of the body."""
        if not self._turn.try_acquire():
            await self._turn.acquire()
        try:
            if not self._taker.takes_content:
                await self._taker.take(message)
                return
            data, last = bytes(message.get("body", b"")), not message.get("more_body", False)
            self.complete = last
            if self._originals is not None:
                self._originals.append(data)
                if self._originals.size > MAX_ORIGINAL_BYTES:
                    await self._failed(f"more than {MAX_ORIGINAL_BYTES} encoded bytes", message)
                    return
            try:
                await self._decode(message, data, last)
            except UnreadableBody as exc:
                await self._failed(str(exc), message)
            except BaseException as exc:
                if self._taker.takes_content:
                    self._taker.lost(exc)
                raise
        finally:
            self._turn.release()

    def take_originals(self) -> bytes:
        """All that the app has sent, as it came. Nothing of it has left."""
        assert self._originals is not None
        return self._originals.take()

    def forget_originals(self) -> None:
        """The client has been told that the body is not encoded."""
        self._originals = None

    async def _decode(self, message: Message, data: bytes, last: bool) -> None:
        # One piece behind, for only the last may be called so.
        latest: bytes | None = None
        for start in range(0, len(data) or 1, DECODED_AT_ONCE):
            if start:
                # Much can be decoded without that anything comes of it.
                await checkpoint()
            end = start + DECODED_AT_ONCE
            for piece in self._decoder.feed(data[start:end], last and end >= len(data)):
                if latest is not None:
                    await self._taker.take({**message, "body": latest, "more_body": True})
                    if not self._taker.takes_content:
                        return
                latest = piece
        if latest is not None or last:
            await self._taker.take({**message, "body": latest or b"", "more_body": not last})
