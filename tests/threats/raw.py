"""A client that sends any bytes it likes."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

# Seconds after which a server that says nothing has failed the test.
PATIENCE = 60.0


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A connection to the server at ``url``."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), PATIENCE) as sock:
        yield sock


def answer_of(sock: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    try:
        while data := sock.recv(65536):
            received += data
    except ConnectionResetError:
        # It has closed with some of ours unread.
        pass
    return received


def say(url: str, data: bytes) -> bytes:
    """What the server answers to these bytes until it closes the connection, for which they have to ask."""
    with connected(url) as sock:
        # It may have heard enough before the end.
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
        return answer_of(sock)


def get(url: str, target: bytes = b"/", *headers: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    """The answer to a request for ``target``, which is sent as it is, as are ``headers``."""
    return say(url, _head(target, headers, method) + body)


def shake_hands(url: str, target: bytes, *headers: bytes) -> bytes:
    """The answer to a websocket's handshake. The client closes the websocket as soon as it is open."""
    with connected(url) as sock:
        sock.sendall(_head(target, headers))
        answer = b""
        while b"\r\n\r\n" not in answer and (data := sock.recv(65536)):
            answer += data
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(_CLOSE)
        return answer + answer_of(sock)


# A close frame without a status. Clients mask what they send, here with zeros.
_CLOSE = b"\x88\x80" + bytes(4)


def _head(target: bytes, headers: Iterable[bytes], method: bytes = b"GET") -> bytes:
    lines = (b"%b %b HTTP/1.1" % (method, target), b"host: app", b"connection: close", *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def status_of(answer: bytes) -> int:
    """The status of an answer; 0 where there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def head_of(answer: bytes) -> list[bytes]:
    """The header lines of an answer, in lower case."""
    return [line.lower() for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
