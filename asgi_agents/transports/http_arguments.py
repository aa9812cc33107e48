"""What an :class:`~asgi_agents.HttpTransport` is given. Each function takes an argument, or refuses what can't work."""

import re
from collections.abc import Mapping
from typing import Final

import httpx

from .._version import __version__
from ..errors import ConfigurationError
from ..protocol import TOKEN, Encoding

# Set by the transport for each message, or the connection's own (RFC 9110, section 7.6.1).
_OWNED_HEADERS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# RFC 9110, section 5.5, without the obsolete bytes beyond ASCII, which HTTP libraries disagree about.
_HEADER_VALUE: Final = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?\Z")


def parse_url(given: object) -> httpx.URL:
    """The URL: of HTTP, with a host, and without credentials."""
    expected = "an http:// or https:// URL"
    if not isinstance(given, str):
        raise wrong("url", given, expected)
    try:
        url = httpx.URL(given)
    except httpx.InvalidURL as exc:
        # Not the whole URL: there may be credentials in it.
        raise ConfigurationError(f"HttpTransport: url: {exc}, expected {expected}") from exc
    except UnicodeEncodeError:
        raise ConfigurationError(f"HttpTransport: url: not UTF-8, expected {expected}") from None
    if url.userinfo:
        without = str(url.copy_with(userinfo=b""))
        raise ConfigurationError(
            f"HttpTransport: url has credentials in it, expected {without!r} and headers={{'authorization': …}}"
        )
    if url.scheme not in ("http", "https"):
        raise wrong("url", given, expected)
    if not url.host:
        raise wrong("url", given, f"{expected} with a host")
    return url


def parse_encoding(given: Encoding | str) -> Encoding:
    """The encoding, by its name or as it is."""
    try:
        return Encoding(given)
    except ValueError:
        raise wrong("encoding", given, "'json' or 'msgpack'") from None


def fixed_headers(url: httpx.URL, encoding: Encoding, given: object) -> list[tuple[bytes, bytes]]:
    """The headers of every request, those of ``headers`` among them."""
    fields = {
        "host": url.netloc.decode(),
        "user-agent": f"asgi-agents/{__version__}",
        "accept": encoding.content_type,
        "accept-encoding": "identity",
        "content-type": encoding.content_type,
    }
    # No values in the messages: they may be secrets.
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"HttpTransport: headers is a {type(given).__name__}, expected names mapped to values")
    for name, value in given.items():
        if not isinstance(name, str) or not TOKEN.match(name):
            raise wrong("headers", name, "names of letters, digits and !#$%&'*+-.^_`|~ (RFC 9110, section 5.1)")
        if name.lower() in _OWNED_HEADERS:
            raise wrong("headers", name, "none of those that the transport sets itself")
        if not isinstance(value, str) or not _HEADER_VALUE.match(value):
            raise ConfigurationError(
                f"HttpTransport: headers[{name!r}], expected visible ASCII characters, with blanks only between them"
            )
        fields[name.lower()] = value
    return [(name.encode(), value.encode()) for name, value in fields.items()]


def wrong(field: str, value: object, expected: str) -> ConfigurationError:
    """For an argument that can't work, which is no secret."""
    return ConfigurationError(f"HttpTransport: {field}={value!r}, expected {expected}")
