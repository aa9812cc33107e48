"""Where something that agents ask has failed, and why, without a word of what it has said or of credentials."""

import os
import socket
import ssl
from urllib.parse import urlsplit


def place_of(url: str) -> str:
    """The host and port of a URL, or the path of its socket. Nothing else of it: there may be a password."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return parts.path or "a socket"
        host = parts.hostname or "localhost"
        host = f"[{host}]" if ":" in host else host
        return host if parts.port is None else f"{host}:{parts.port}"
    except ValueError:
        return "its address"


def reason_of(exc: BaseException) -> str:
    """The kind of an exception, and what the system has said of the connection, if it has."""
    told = _told(exc)
    return type(exc).__name__ if told is None else f"{type(exc).__name__} ({told})"


def _told(exc: BaseException | None) -> str | None:
    seen = 0
    while exc is not None and seen < 10:
        seen += 1
        if isinstance(exc, socket.gaierror):
            return "no such host"
        if isinstance(exc, ssl.SSLError):
            return str(getattr(exc, "reason", None) or "TLS").lower().replace("_", " ")
        if isinstance(exc, OSError) and isinstance(exc.errno, int) and exc.errno > 0:
            return os.strerror(exc.errno)
        exc = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__ or exc.__context__
    return None
