"""Key sets of issuers of tokens (JWKS, RFC 7517): fetched and read. Needs the ``jwt`` extra."""

import json
import ssl
from collections.abc import Mapping
from typing import Final

import anyio
import httpx
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OctKey, OKPKey, RSAKey

from ..transports.http_origin import read_at_most

PublicKey = RSAKey | ECKey | OKPKey

#: The largest answer that is read, in bytes: that of an issuer with hundreds of keys.
MAX_JWKS_BYTES: Final = 1024 * 1024
#: Seconds for a whole fetch, whatever the deadline of the call that needs it.
TIMEOUT: Final = 5.0


class NoKeysError(Exception):
    """There are no keys. The message may be logged: it has nothing of the URL, nor of the answer."""


async def fetch(url: str, tls: ssl.SSLContext) -> Mapping[str | None, PublicKey]:
    """The keys of a JWKS by id. Raises :class:`NoKeysError`, whatever goes wrong."""
    try:
        with anyio.fail_after(TIMEOUT):
            body = await _get(url, tls)
    except TimeoutError:
        raise NoKeysError(f"the server has not answered within {TIMEOUT:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
        raise NoKeysError(type(exc).__name__) from None
    keys = keys_of(body)
    if not keys:
        raise NoKeysError("the server's answer has no key that could verify a signature")
    return keys


async def _get(url: str, tls: ssl.SSLContext) -> bytes:
    # Redirects are not followed: they could lead anywhere. A compressed answer could become a very long one.
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    async with (
        httpx.AsyncClient(verify=tls, timeout=TIMEOUT) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        if response.status_code != 200:
            raise NoKeysError(f"the server has answered {response.status_code}")
        body = await read_at_most(response, MAX_JWKS_BYTES)
        if body is None:
            raise NoKeysError(f"the server's answer has more than {MAX_JWKS_BYTES} bytes")
        return body


def keys_of(body: bytes) -> Mapping[str | None, PublicKey]:
    """The keys of a JWKS that can verify signatures, by id.

    Others are left out: of types that nobody knows here (RFC 7517, section 5), for encryption, and shared secrets,
    which an issuer would not publish.
    """
    try:
        found = json.loads(body)["keys"]
        given = [data for data in found if isinstance(data, dict)]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise NoKeysError("the server's answer is no JWKS") from None
    keys: dict[str | None, PublicKey] = {}
    for data in given:
        if data.get("use", "sig") != "sig" or data.get("kty") == OctKey.key_type:
            continue
        try:
            key = JWKRegistry.import_key(data)
        except (JoseError, ValueError, TypeError, LookupError):
            continue
        kid = data.get("kid")
        if isinstance(kid, str | None) and not isinstance(key, OctKey):
            keys.setdefault(kid, key)
    return keys
