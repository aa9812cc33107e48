"""How the keys of an issuer are fetched: what is configured of it, checked."""

import ssl
from urllib.parse import urlsplit

from ..errors import ConfigurationError
from ..messages.naming import named
from ..policy import require_seconds
from .addresses import address_of


def trusts_nobody() -> ssl.SSLContext:
    """For a URL without TLS: made in no time, and of no use to anybody who would come to TLS by another way."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def checked_url(url: object, allow_http: bool) -> str:
    """The URL, which no message quotes: it may have credentials in it."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        host = parts.hostname if parts is not None else None
    except ValueError:
        parts = host = None
    if not isinstance(url, str) or parts is None or not host or parts.scheme not in ("https", "http"):
        raise ConfigurationError("JwtAuth: jwks_url is no URL, expected https://.../jwks.json")
    address = address_of(host)
    here = host == "localhost" or (address is not None and address.is_loopback)
    if parts.scheme == "http" and not here and not allow_http:
        raise ConfigurationError(
            f"JwtAuth: jwks_url gets keys over plain HTTP from {named(host)}, expected https://, or allow_http=True"
        )
    return url


def checked_proxy(proxy: object) -> str | None:
    """The URL of a proxy, which no message quotes: it may have credentials in it."""
    try:
        parts = urlsplit(proxy) if isinstance(proxy, str) else None
        fits = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if proxy is not None and not fits:
        raise ConfigurationError("JwtAuth: proxy is no URL, expected such as 'http://proxy.internal:3128', or None")
    return proxy if isinstance(proxy, str) else None


def check_times(cooldown: float, max_age: float, max_stale: float) -> None:
    for name, value in (("cooldown", cooldown), ("max_age", max_age), ("max_stale", max_stale)):
        require_seconds("JwtAuth", name, value)
    if not cooldown <= max_age <= max_stale:
        raise ConfigurationError(
            f"JwtAuth: cooldown={cooldown}, max_age={max_age}, max_stale={max_stale}, expected each at least as long as"
            " the one before"
        )
