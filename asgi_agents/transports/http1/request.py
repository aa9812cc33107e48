"""The head of a request. No I/O."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from ...protocol import TOKEN

# What must not get into a head is whatever would end a line or the head itself, and what parsers disagree about.
_TARGET: Final = re.compile(rb"[!-~]+\Z")
_VALUE: Final = re.compile(rb"(?:[!-~](?:[\t -~]*[!-~])?)?\Z")
_CLIENTS_VALUE: Final = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?\Z")
_TRACE_VALUE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?\Z")


class HttpRequest(NamedTuple):
    """A request. ``content`` is None where it has none; ``trace_context`` are headers for this request alone."""

    head: "RequestHead"
    content: bytes | None
    trace_context: Mapping[str, str]


class RequestHead:
    """The head of requests of one method to one target.

    :param method: a token.
    :param target: the path and query of the URL, in ASCII.
    :param headers: of every request, ``host`` among them; none that says how long the body is.
    :param of_client: some of them are a client's, whose values may have bytes beyond ASCII (RFC 9110, section 5.5).
    :raises ValueError: for bytes that can't be sent in a head; the message has no values in it.
    """

    __slots__ = ("_fixed", "headers", "method", "target")

    def __init__(
        self, method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]], *, of_client: bool = False
    ) -> None:
        if not TOKEN.match(method.decode("latin-1")):
            raise ValueError("the method of the request is not a token")
        if not _TARGET.match(target):
            raise ValueError("the target of the request is not visible ASCII")
        self.method = method
        self.target = target
        self.headers: Sequence[tuple[bytes, bytes]] = tuple(headers)
        sendable = _CLIENTS_VALUE if of_client else _VALUE
        lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
        for name, value in self.headers:
            if not TOKEN.match(name.decode("latin-1")):
                raise ValueError("the name of a header is not a token")
            if not sendable.match(value):
                raise ValueError(f"the value of {name.decode()!r} is not visible ASCII with blanks only between")
            lines.append(b"%b: %b\r\n" % (name, value))
        self._fixed = b"".join(lines)

    def encode(self, length: int | None, trace_context: Mapping[str, str]) -> bytes:
        """The head of a request.

        :param length: bytes of its body; None: it has none, and says nothing of one.
        :param trace_context: headers for this request alone. One whose value can't be sent is left out: it may come
            from a client, and the agent can do without it.
        """
        end = b"\r\n" if length is None else b"content-length: %d\r\n\r\n" % length
        if not trace_context:
            return self._fixed + end
        lines = [
            f"{name}: {value}\r\n"
            for name, value in trace_context.items()
            if TOKEN.match(name) and _TRACE_VALUE.match(value)
        ]
        return b"%b%b%b" % (self._fixed, "".join(lines).encode("ascii"), end)
