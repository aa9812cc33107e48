"""The head of a request. No I/O."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from ...protocol import TOKEN

# What must not get into a head is whatever would end a line or the head itself, and what parsers disagree about.
_TARGET: Final = re.compile(rb"[!-~]+\Z")
_VALUE: Final = re.compile(rb"(?:[!-~](?:[\t -~]*[!-~])?)?\Z")
_TRACE_VALUE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?\Z")


class PostHead:
    """The head of each POST to one URL.

    :param target: the path and query of the URL, in ASCII.
    :param headers: of every request, ``host`` among them; none that says how long the body is.
    :raises ValueError: for bytes that can't be sent in a head; the message has no values in it.
    """

    __slots__ = ("_fixed",)

    def __init__(self, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if not _TARGET.match(target):
            raise ValueError("the target of the request is not visible ASCII")
        lines = [b"POST %b HTTP/1.1\r\n" % target]
        for name, value in headers:
            if not TOKEN.match(name.decode("latin-1")):
                raise ValueError("the name of a header is not a token")
            if not _VALUE.match(value):
                raise ValueError(f"the value of {name.decode()!r} is not visible ASCII with blanks only between")
            lines.append(b"%b: %b\r\n" % (name, value))
        self._fixed = b"".join(lines)

    def encode(self, length: int, trace_context: Mapping[str, str]) -> bytes:
        """The head of a request.

        :param length: bytes of its body.
        :param trace_context: headers for this request alone. One whose value can't be sent is left out: it may come
            from a client, and the agent can do without it.
        """
        if not trace_context:
            return b"%bcontent-length: %d\r\n\r\n" % (self._fixed, length)
        lines = [
            f"{name}: {value}\r\n"
            for name, value in trace_context.items()
            if TOKEN.match(name) and _TRACE_VALUE.match(value)
        ]
        return b"%b%bcontent-length: %d\r\n\r\n" % (self._fixed, "".join(lines).encode("ascii"), length)
