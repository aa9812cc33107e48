"""Parses the answers on one connection. No I/O.

httptools does the parsing. What it does not tell, and what is decided here: how much an answer may hold, and whether
anything has come after its last byte (RFC 9112, section 6.3: that must not be taken for the next answer).
"""

from collections.abc import Callable, Mapping
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from ...errors import AgentConnectionError, AgentError
from ...memory.pieces import Pieces
from ..http_answer import AnswerTooLongError

if not hasattr(HttpResponseParser, "set_dangerous_leniencies"):
    # Older ones take much for HTTP that is none, such as two bytes of anything after a chunk.
    raise ImportError("httptools 0.6.4 is needed")

#: Bytes of the heads of an answer, trailers included; and of what stands around the content of one that has not ended.
MAX_HEAD_BYTES: Final = 64 * 1024
# In chunks of one byte each, an answer takes six times as many bytes as it has.
_MAX_OVERHEAD: Final = 16

_NOTED: Final = frozenset({b"content-encoding", b"content-length", b"content-type", b"transfer-encoding"})
_LINE_ENDS: Final = b"\r\n"

CheckHead = Callable[[int, Mapping[str, str]], None]


class _SurplusError(Exception):
    """Something has come after the end of an answer."""


class _HeadOnlyError(Exception):
    """An answer to HEAD has ended, whatever its head says of a content."""


class AnswerParser:
    """Parses one answer after the other. :meth:`begin` is called before each.

    :param check_head: called with the status and some of the headers of an answer, in lower case, once its head has
        come. What it raises ends the answer.
    :param max_bytes: of the content of an answer.
    :param keep_headers: keep all headers of an answer, in :attr:`headers`.
    """

    __slots__ = (
        "_accepted",
        "_check_head",
        "_content",
        "_error",
        "_head_bytes",
        "_head_only",
        "_in_content",
        "_interim",
        "_keep_headers",
        "_latest",
        "_max_bytes",
        "_noted",
        "_parser",
        "_pieces",
        "_received",
        "_tail",
        "_until_eof",
        "complete",
        "headers",
        "reusable",
        "size",
        "status",
    )

    def __init__(self, check_head: CheckHead, max_bytes: int, *, keep_headers: bool = False) -> None:
        self._check_head = check_head
        self._max_bytes = max_bytes
        self._keep_headers = keep_headers
        # The noted headers of the latest head with status 200 that was in order: most answers have the same.
        self._accepted: dict[bytes, bytes] | None = None
        # It refers to this object.
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self.begin()

    def begin(self, *, head_only: bool = False) -> None:
        """Whatever is fed from now on belongs to the next answer.

        ``head_only``: it has no content, as the answer to a HEAD request (RFC 9112, section 6.3).
        """
        self._head_only = head_only
        #: The status of the answer, 0 until its head has come.
        self.status = 0
        #: Its headers, with names in lower case, if they are kept.
        self.headers: list[tuple[bytes, bytes]] = []
        #: Whether the answer has come, whole.
        self.complete = False
        #: Whether it is complete, nothing has come after it, and another may follow.
        self.reusable = False
        #: Bytes of its content that have come.
        self.size = 0
        self._received = self._head_bytes = 0
        self._in_content = self._interim = self._until_eof = False
        self._noted: dict[bytes, bytes] = {}
        # Most contents come in one piece.
        self._latest = b""
        self._pieces: Pieces | None = None
        # The latest bytes of an answer that comes in several reads.
        self._tail = b""
        self._error: AgentError | None = None

    def feed(self, data: bytes) -> bool:
        """The next bytes, of which there are some. Returns whether the answer is complete.

        :raises AgentConnectionError: they are not HTTP.
        :raises AgentError: what ``check_head`` raises, or the answer is too long.
        """
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as exc:
            if self.complete:
                self.reusable = False
                return True
            if self._error is not None:
                raise self._error from None
            raise AgentConnectionError(f"the answer is not HTTP/1.1: {exc}") from exc
        if self.complete:
            if self.reusable:
                self.reusable = self._ends_with(data)
            return True
        self._received += len(data)
        if self._received - self.size > MAX_HEAD_BYTES + _MAX_OVERHEAD * self.size:
            raise _too_much()
        self._tail = (self._tail + data[-4:])[-4:]
        return False

    def feed_eof(self) -> bool:
        """Nothing more comes. Returns whether the answer is complete by that."""
        if self._in_content and self._until_eof:
            self.complete = True
        return self.complete

    def take(self) -> bytes:
        """The content of the answer that is complete."""
        content = self._latest if self._pieces is None else self._pieces.take()
        # An idle connection keeps nothing of it.
        self._latest, self._pieces = b"", None
        return content

    @property
    def started(self) -> bool:
        """Whether anything of the answer has come."""
        return self._received > 0

    def close(self) -> None:
        """No more is fed."""
        self.reusable = False
        self._parser = None

    def _ends_with(self, data: bytes) -> bool:
        """Whether ``data``, with which the answer became complete, ends with its last byte.

        Where something else came after that byte, httptools has begun another message or has raised. Only the line ends
        that may stand before a message pass without a word. Where it is not clear whether there are any, this says so:
        to close a connection more often than necessary is slow, and not wrong.
        """
        if data[-1] not in _LINE_ENDS:
            return True
        seen = self._tail + data
        if b"transfer-encoding" in self._noted:
            return seen.endswith(b"0\r\n\r\n")
        if not self.size:
            # It ends with its head, of which the last line but one is not empty.
            return len(seen) - len(seen.rstrip(_LINE_ENDS)) == len(b"\r\n\r\n")
        # Some agents end their JSON with a line end.
        content = self._latest.rstrip(_LINE_ENDS)
        return bool(content) and len(self._latest) - len(content) == len(data) - len(data.rstrip(_LINE_ENDS))

    def _read_interim_head(self) -> None:
        if b"content-length" in self._noted or b"transfer-encoding" in self._noted:
            # RFC 9110, section 8.6, and RFC 9112, section 6.1.
            raise self._refuse(AgentConnectionError("an interim response has content"))
        self._interim = True

    def _read_head(self, status: int) -> None:
        noted = self._noted
        if noted.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise self._refuse(AgentConnectionError("the answer has a transfer-encoding other than chunked"))
        try:
            self._check_head(status, {name.decode(): value.decode("latin-1") for name, value in noted.items()})
        except AgentError as exc:
            self._error = exc
            raise

    def _refuse(self, error: AgentError) -> AgentError:
        self._error = error
        return error

    # What httptools calls

    def on_message_begin(self) -> None:
        if self.complete:
            self.reusable = False
            raise _SurplusError

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise self._refuse(_too_much())
        if self._in_content:
            return
        name = name.lower()
        if self._keep_headers:
            self.headers.append((name, value))
        if name in _NOTED:
            noted = self._noted
            noted[name] = noted[name] + b", " + value if name in noted else value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        noted = self._noted
        self.status = status = self._parser.get_status_code()
        if status != 200 or noted != self._accepted:
            if 100 <= status < 200 and status != 101:
                self._read_interim_head()
                return
            self._read_head(status)
            if status == 200:
                self._accepted = noted
        self._until_eof = b"content-length" not in noted and b"transfer-encoding" not in noted
        self._in_content = True
        if self._head_only:
            # The parser would wait for the content that the head tells of. Its connection is not used again.
            self.complete = True
            raise _HeadOnlyError

    def on_body(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._max_bytes:
            raise self._refuse(AnswerTooLongError(self._max_bytes, self.status))
        if self._pieces is not None:
            self._pieces.append(data)
        elif self.size > len(data):
            self._pieces = Pieces()
            self._pieces.append(self._latest)
            self._pieces.append(data)
        self._latest = data

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            self._noted = {}
            self.headers = []
            return
        assert self._parser is not None
        self.complete = True
        self.reusable = self._parser.should_keep_alive()


def _too_much() -> AgentConnectionError:
    return AgentConnectionError(f"the answer has more than {MAX_HEAD_BYTES} bytes of headers")
