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
from .reasons import reason_of

PublicKey = RSAKey | ECKey | OKPKey
#: By their ids, and by their types: keys of several types may have one id (RFC 7517, section 4.5).
Keys = Mapping[str | None, Mapping[str, PublicKey]]

#: The largest answer that is read, in bytes: that of an issuer with hundreds of keys.
MAX_JWKS_BYTES: Final = 1024 * 1024
#: Seconds for a whole fetch, whatever the deadline of the call that needs it.
TIMEOUT: Final = 5.0


class NoKeysError(Exception):
    """There are no keys. The message may be logged: it has nothing of the URL, nor of the answer."""


async def fetch(url: str, tls: ssl.SSLContext, proxy: str | None) -> Keys:
    """The keys of a JWKS by id. Raises :class:`NoKeysError`, whatever goes wrong.

    :param proxy: the URL of one through which they are fetched.
    """
    try:
        with anyio.fail_after(TIMEOUT):
            body = await _get(url, tls, proxy)
    except TimeoutError:
        raise NoKeysError(f"the server has not answered within {TIMEOUT:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
        raise NoKeysError(reason_of(exc)) from None
    keys = keys_of(body)
    if not keys:
        raise NoKeysError("the server's answer has no key that could verify a signature")
    return keys


async def _get(url: str, tls: ssl.SSLContext, proxy: str | None) -> bytes:
    # A proxy that the environment names is not for this: who is on the way could put other keys in their place.
    # Redirects are not followed: they could lead anywhere. A compressed answer could become a very long one.
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    async with (
        httpx.AsyncClient(verify=tls, timeout=TIMEOUT, trust_env=False, proxy=proxy) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        if response.status_code != 200:
            raise NoKeysError(f"the server has answered {response.status_code}")
        body = await read_at_most(response, MAX_JWKS_BYTES)
        if body is None:
            raise NoKeysError(f"the server's answer has more than {MAX_JWKS_BYTES} bytes")
        return body


def keys_of(body: bytes) -> Keys:
    """The keys of a JWKS that can verify signatures, by id.

    Others are left out: of types that nobody knows here (RFC 7517, section 5), for encryption, and shared secrets,
    which an issuer would not publish.
    """
    try:
        found = json.loads(body)["keys"]
        given = [data for data in found if isinstance(data, dict)]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise NoKeysError("the server's answer is no JWKS") from None
    keys: dict[str | None, dict[str, PublicKey]] = {}
    for data in given:
        if data.get("use", "sig") != "sig" or data.get("kty") == OctKey.key_type:
            continue
        try:
            key = JWKRegistry.import_key(data)
        except (JoseError, ValueError, TypeError, LookupError):
            continue
        kid = data.get("kid")
        if isinstance(kid, str | None) and not isinstance(key, OctKey):
            keys.setdefault(kid, {}).setdefault(key.key_type, key)
    return keys
