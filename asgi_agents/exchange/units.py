"""Bodies that stream in units: server-sent events, lines of JSON, parts. No ASGI in here.

Such a body is never buffered. Its agents receive whole units, wherever the app has cut it. Where an agent stops it,
it ends behind a whole unit, in a way that its clients understand.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from ..decision import AgentDecision
from ..protocol import Block
from .headers import media_type as media_type_of
from .reply import status_and_detail

#: How many bytes of a unit that has not ended yet are held.
MAX_UNIT_BYTES: Final = 1024 * 1024

# WHATWG HTML, section 9.2.5: a line ends with CRLF, LF or CR, an event with a blank line. Possessive, for a CRLF is one
# end and never two.
_LINE_END: Final = rb"(?>\r\n|\n|\r)"
_EVENT_END: Final = re.compile(_LINE_END + _LINE_END)
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
# Comments keep a connection alive: they need not wait for the event that comes after them.
_COMMENTS: Final = re.compile(rb"(?::[^\r\n]*+" + _LINE_END + rb"|" + _LINE_END + rb")+")
# RFC 7464: a record begins with RS and ends with LF.
_RECORD_END: Final = re.compile(rb"\n(?=\x1e|\Z)")


class Cutter:
    """Cuts a body into pieces that end where a unit does.

    :param fast: what a piece most often ends with, if it ends where a unit does.
    :param last_end: the end of the last unit in some bytes, at or behind a position; 0 where there is none.
    :param overlap: how many bytes of what was looked at before can be part of an end that is complete only now.
    """

    __slots__ = ("_fast", "_last_end", "_overlap", "_rest")

    def __init__(self, fast: tuple[bytes, ...], last_end: Callable[[bytearray, int], int], *, overlap: int = 3) -> None:
        self._fast = fast
        self._last_end = last_end
        self._overlap = overlap
        self._rest = bytearray()

    @property
    def held(self) -> int:
        """How many bytes of a unit that has not ended yet there are."""
        return len(self._rest)

    def feed(self, data: bytes, last: bool) -> bytes:
        """All that ends with ``data``; with ``last``, all that is left."""
        if not self._rest and (last or data.endswith(self._fast)):
            return data
        start = max(0, len(self._rest) - self._overlap)
        self._rest += data
        end = len(self._rest) if last else self._last_end(self._rest, start)
        whole = bytes(self._rest[:end])
        del self._rest[:end]
        return whole


class StreamedType(Struct, frozen=True):
    """A media type whose bodies stream in units.

    :ivar cutter: makes a cutter for one body, whose ``content-type`` is given.
    :ivar ending: the last unit of a body that an agent has stopped; None where no client would understand one, so that
        the connection has to be broken off.
    :ivar ends: with what a unit ends; ``separator`` is put before an ending that follows something else.
    """

    cutter: Callable[[str], Cutter]
    ending: Callable[[bytes], bytes] | None
    ends: tuple[bytes, ...] = ()
    separator: bytes = b""


def streamed_type(media_type: str | None) -> StreamedType | None:
    """What is known of a type (in lower case) whose bodies stream in units; None for all others."""
    return None if media_type is None else _TYPES.get(media_type)


def last_unit(streamed: StreamedType, decision: AgentDecision, media_type: str, *, sent: bytes) -> bytes | None:
    """What ends a body that an agent has stopped. None: its type has no such unit.

    A block that has a ``content-type`` of the same type brings its own last units. ``sent`` is the end of what the
    client has already, at least the last four bytes.
    """
    if streamed.ending is None:
        return None
    own = _own_ending(decision, media_type)
    if own is None:
        ending = streamed.ending(error_object(decision))
    else:
        ending = own if own.endswith(streamed.ends) else own + streamed.separator
    return ending if not sent or sent.endswith(streamed.ends) else streamed.separator + ending


def error_object(decision: AgentDecision) -> bytes:
    """Why a body was stopped, as JSON on one line, in the shape on which clients of language models raise.

    Those of OpenAI (chat and responses) and Anthropic raise an error of their own for an event of this shape. ``type``
    is ``blocked`` or the kind of a failure, ``code`` the status that a reply would have had.
    """
    status, detail = status_and_detail(decision)
    kind = "blocked" if decision.failure is None else decision.failure.kind.value
    return msgspec.json.encode({"type": "error", "error": {"message": detail, "type": kind, "code": str(status)}})


def _own_ending(decision: AgentDecision, media_type: str) -> bytes | None:
    block = decision.decision
    if not isinstance(block, Block) or not block.body:
        return None
    given = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (block.headers or {}).items()]
    return block.body.encode() if media_type_of(given) == media_type else None


def _last_event_end(data: bytearray, start: int) -> int:
    if data.find(b"\n", start) < 0 and data.find(b"\r", start) < 0:
        return 0
    end = 0
    for match in _EVENT_END.finditer(data, start):
        end = match.end()
    comments = _COMMENTS.match(data, end)
    return end if comments is None else comments.end()


def _last_line_end(data: bytearray, start: int) -> int:
    return data.rfind(b"\n", start) + 1


def _last_record_end(data: bytearray, start: int) -> int:
    end = 0
    for match in _RECORD_END.finditer(data, start):
        end = match.end()
    return end


def _part_cutter(content_type: str) -> Cutter:
    """Parts end where the next delimiter begins (RFC 2046, section 5.1.1)."""
    found = re.search(r';\s*boundary=(?:"([^"]+)"|([^\s;"]+))', content_type, re.IGNORECASE)
    # Some servers have the dashes in the parameter already.
    boundary = (found[1] or found[2]).removeprefix("--").encode("latin-1") if found else b""
    delimiter = b"--" + boundary

    def last_part_end(data: bytearray, start: int) -> int:
        place = data.rfind(b"\n" + delimiter, start)
        return place + 1

    return Cutter((b"\n" + delimiter + b"--\r\n",), last_part_end, overlap=len(delimiter) + 1)


_EVENTS: Final = StreamedType(
    cutter=lambda content_type: Cutter(_EVENT_ENDS, _last_event_end),
    ending=lambda error: b"event: error\ndata: %b\n\n" % error,
    ends=_EVENT_ENDS,
    separator=b"\n\n",
)
_LINES: Final = StreamedType(
    cutter=lambda content_type: Cutter((b"\n",), _last_line_end),
    ending=lambda error: error + b"\n",
    ends=(b"\n",),
    separator=b"\n",
)
_RECORDS: Final = StreamedType(
    cutter=lambda content_type: Cutter((b"\n",), _last_record_end),
    ending=lambda error: b"\x1e%b\n" % error,
    ends=(b"\n",),
    separator=b"\n",
)
_TYPES: Final[Mapping[str, StreamedType]] = {
    "text/event-stream": _EVENTS,
    "application/x-ndjson": _LINES,
    "application/ndjson": _LINES,
    "application/jsonl": _LINES,
    "application/x-jsonlines": _LINES,
    "application/json-seq": _RECORDS,
    "multipart/x-mixed-replace": StreamedType(cutter=_part_cutter, ending=None),
}
