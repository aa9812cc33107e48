"""The request of a call, whose text guardrails judge: read in full, before or beside the app."""

from collections.abc import Sequence
from typing import Final

from anyio.lowlevel import checkpoint
from starlette.types import Message, Receive

from ..evaluation.text_judges import JudgeSet
from ..guardrails.body import Body, Parsed
from ..guardrails.framing import UnreadableError
from . import request_form
from .decoding import DECODED_AT_ONCE, Decoder, TooLargeBody, UnreadableBody
from .request_form import Readable
from .text_asking import Asking

#: How many bytes of a request are held.
MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
# How many pieces of it are kept apart. Each takes hundreds of bytes, however small its client has cut it.
_MAX_MESSAGES: Final = 1024


class TextRequest:
    """The body of a request.

    :ivar messages: those that were read and are for the app.
    :ivar data: the body, if all of it was read.
    :ivar too_large: whether it is too large; only its beginning was read then.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.messages: list[Message] = []
        self.data = b""
        self.too_large = False
        #: Whether :attr:`data` is what came decoded.
        self.decoded = False
        #: Whether all of it was read.
        self.complete = False

    async def read(self) -> bool:
        """Read the body. Returns False if the client has left. Of one that is too large, only the beginning is read."""
        joined = bytearray()
        pieces: list[bytes] = []
        size = 0
        more = True
        while more and not self.too_large:
            message = await self._receive()
            if message["type"] != "http.request":
                return False
            if len(self.messages) <= _MAX_MESSAGES:
                self.messages.append(message)
            pieces.append(bytes(message.get("body", b"")))
            if len(pieces) > _MAX_MESSAGES:
                joined += b"".join(pieces)
                pieces.clear()
            size += len(message.get("body", b""))
            self.too_large = size > MAX_REQUEST_BYTES
            more = message.get("more_body", False)
        data = b"".join((joined, *pieces)) if joined else b"".join(pieces)
        if len(self.messages) > _MAX_MESSAGES:
            self.messages = [{"type": "http.request", "body": data, "more_body": more}]
        if not self.too_large:
            self.data = data
            self.complete = True
        return True

    async def decode(self, codings: Sequence[str]) -> None:
        """Decode the body. The app is given the content: another reader could make something else of what came.

        :raises UnreadableError: for what is not encoded as it says.
        """
        if not codings:
            return
        content: list[bytes] = []
        try:
            decoder = Decoder(codings, MAX_REQUEST_BYTES)
            for start in range(0, len(self.data), DECODED_AT_ONCE):
                if start:
                    await checkpoint()
                end = start + DECODED_AT_ONCE
                content += decoder.feed(self.data[start:end], end >= len(self.data))
            self.data = b"".join(content)
            self.decoded = True
        except TooLargeBody:
            self.too_large = True
        except UnreadableBody as exc:
            raise UnreadableError(str(exc)) from None

    def release(self) -> None:
        """Let go of what was read."""
        self.messages.clear()
        self.data = b""


class RequestText:
    """The text of a request, in each form in which the app may read its body.

    :param data: the body.
    :param by_path: whether the path says that it is in a dialect.
    """

    def __init__(self, data: bytes, readable: Sequence[Readable], *, by_path: bool) -> None:
        self._given = data
        #: The body with what was changed in it.
        self.data = data
        self._readable = readable
        self._by_path = by_path

    @property
    def changed(self) -> bytes | None:
        """The body in which text is changed; None: it is not."""
        return None if self.data == self._given else self.data

    async def judge(self, asking: Asking, judges: JudgeSet) -> None:
        """Have it judged by those who may change it.

        :raises Stopped: if it must not pass.
        :raises UnreadableError: if it can't be read.
        """
        if not judges.on(request_form.REQUEST_KINDS):
            return
        for found in self._readable:
            given, body = self._body(found, self.data, judges)
            await asking.judge_body(body)
            assert body.data is not None
            if body.data != given:
                self.data = found.form.from_json(body.data, self.data)

    def bodies(self, judges: JudgeSet, *, as_it_came: bool = False) -> list[Body]:
        """What there is to judge for those who can't change it.

        :param as_it_came: without what others have changed.
        :raises UnreadableError: if it can't be read.
        """
        if not judges.on(request_form.REQUEST_KINDS):
            return []
        data = self._given if as_it_came else self.data
        bodies = (self._body(found, data, judges)[1] for found in self._readable)
        return [body for body in bodies if body.data is None]

    def _body(self, found: Readable, data: bytes, judges: JudgeSet) -> tuple[bytes, Body]:
        """``data`` in one form: as JSON, and as it is judged."""
        form, given, parsed = found.form, found.given, found.parsed
        if data is not self._given:
            # It was changed.
            given = form.to_json(data)
            parsed = Parsed(given)
        operations = form.operations or request_form.operations_of(found.dialect, self._by_path)
        return given, Body(given, operations, judges, kind="input", parsed=parsed)
