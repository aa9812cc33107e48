"""What agents do to the header fields of a response, wherever the app sends these."""

from collections.abc import Iterable, Sequence

from starlette.types import Message

from ..protocol import HeaderOp
from .headers import apply_header_ops, without_headers
from .scope import RawHeaders


class HeaderChanges:
    """The header operations on one response.

    An app can send fields before the head, in early hints, and after the body, in trailers. These must not bring what
    an agent has set or removed in the head.

    :ivar always: the operations that are for every response, also for one in the app's place.
    """

    def __init__(self) -> None:
        self.always: list[HeaderOp] = []
        # The names of the fields that agents have set or removed, in lower case.
        self._settled: set[str] = set()

    def apply(self, headers: Iterable[tuple[bytes, bytes]], ops: Sequence[HeaderOp]) -> RawHeaders:
        """A new header list with ``ops`` done in order."""
        self.always += [op for op in ops if op.always]
        self._settled |= _settled_by(ops)
        return apply_header_ops(headers, ops)

    def trailers(self, message: Message) -> Message:
        """The app's trailers without the fields that agents have set or removed."""
        headers = message.get("headers") or ()
        if not self._settled or not headers:
            return message
        return {**message, "headers": without_headers(headers, {name.encode("latin-1") for name in self._settled})}

    def allow_hint(self, waiting: Sequence[HeaderOp]) -> bool:
        """Whether early hints may be sent: these are ``link`` fields.

        :param waiting: the operations that wait for the head.
        """
        return "link" not in self._settled | _settled_by(waiting)


def _settled_by(ops: Iterable[HeaderOp]) -> set[str]:
    return {op.name.lower() for op in ops if op.kind != "add"}
