"""Verifying tokens with joserfc. Needs the ``jwt`` extra."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from joserfc import jws, jwt
from joserfc.errors import ExpiredTokenError, JoseError, UnsupportedAlgorithmError
from joserfc.jwt import JWTClaimsRegistry
from msgspec import Struct

from ..errors import ConfigurationError
from ..messages.naming import named
from ..policy import require_seconds
from .claims import InvalidTokenError
from .key_sets import PublicKey
from .settings import require_strings

# What parsing what anybody may have written can raise, besides the library's own exceptions.
_UNREADABLE: Final = (JoseError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


class UnverifiedToken(Struct, frozen=True):
    """A token that could be one of the issuer, by its header."""

    text: str
    algorithm: str
    kid: str | None

    @property
    def key_type(self) -> str:
        """Of the keys that fit the algorithm."""
        return jws.JWSRegistry.algorithms[self.algorithm].key_type


class _Registry(jws.JWSRegistry):
    # Bytes of the parts of a token. Issuers put certificates into headers, and groups of users into payloads.
    max_header_length = 8192
    max_payload_length = 32_768
    max_signature_length = 2048

    def get_alg(self, name: str) -> Any:
        """The algorithm, without a warning for each token: an issuer may use ``EdDSA`` under its old name."""
        if name not in (self.allowed or ()):
            raise UnsupportedAlgorithmError
        return self.algorithms[name]


class Tokens:
    """Which tokens are valid.

    Nothing in a token's header chooses how it is verified: the algorithm has to be one of ``algorithms`` and fit the
    key, the key is one of the issuer's, and keys or URLs in the header (``jwk``, ``jku``, ``x5c``, ``x5u``) mean
    nothing.
    """

    def __init__(
        self,
        issuer: str | Iterable[str],
        audience: str | Iterable[str],
        algorithms: Iterable[str],
        types: Iterable[str],
        leeway: float,
    ) -> None:
        issuers = require_strings("JwtAuth", "issuer", (issuer,) if isinstance(issuer, str) else issuer)
        audiences = require_strings("JwtAuth", "audience", (audience,) if isinstance(audience, str) else audience)
        algorithms = require_strings("JwtAuth", "algorithms", algorithms)
        if leeway != 0:
            require_seconds("JwtAuth", "leeway", leeway)
        for name, given in (("issuer", issuers), ("audience", audiences), ("algorithms", algorithms)):
            if not given or "" in given:
                raise ConfigurationError(f"JwtAuth: {name} is empty, expected at least one")
        for algorithm in algorithms:
            model = jws.JWSRegistry.algorithms.get(algorithm)
            if model is None or model.key_type == "oct":
                raise ConfigurationError(
                    f"JwtAuth: algorithms contains {named(algorithm)}, expected one with key pairs such as 'RS256'"
                )
        self._algorithms = frozenset(algorithms)
        self._types = frozenset(map(_media_type, require_strings("JwtAuth", "types", types)))
        # Fields that nobody knows are ignored (RFC 7515, section 4).
        self._registry = _Registry(algorithms=list(algorithms), strict_check_header=False)
        self._claims = JWTClaimsRegistry(
            leeway=math.ceil(leeway),
            iss={"essential": True, "values": list(issuers)},
            aud={"essential": True, "values": list(audiences)},
            exp={"essential": True},
        )

    def read(self, text: str) -> UnverifiedToken:
        """What the header says. Raises :class:`InvalidTokenError` for one that no valid token has."""
        try:
            header = jws.extract_compact(text.encode("ascii"), registry=self._registry).headers()
            algorithm, kid, kind = header["alg"], header.get("kid"), header.get("typ")
        except _UNREADABLE:
            raise InvalidTokenError("malformed_token", "the token is malformed") from None
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise InvalidTokenError("algorithm_not_allowed", "the token is signed with another algorithm")
        # Extensions that have to be understood, of which none is.
        if not isinstance(kid, str | None) or "crit" in header or "b64" in header:
            raise InvalidTokenError("malformed_token", "the token is malformed")
        if kind is not None and (not isinstance(kind, str) or _media_type(kind) not in self._types):
            raise InvalidTokenError("wrong_type", "the token is of another type")
        return UnverifiedToken(text, algorithm, kid)

    def verify(self, token: UnverifiedToken, key: PublicKey | None) -> Mapping[str, Any]:
        """The claims. Raises :class:`InvalidTokenError` unless all is right.

        :param key: the issuer's, of the token's key id.
        """
        if key is None:
            raise InvalidTokenError("unknown_key", "the token is signed with an unknown key")
        try:
            key.check_use("sig")
            key.check_alg(token.algorithm)
            claims = jwt.decode(token.text, key, registry=self._registry).claims
        except _UNREADABLE:
            raise InvalidTokenError("bad_signature", "the signature is wrong") from None
        try:
            self._claims.validate(claims)
            # JSON of Python knows NaN, before which no time is.
            if not isinstance(claims["iss"], str) or not math.isfinite(claims["exp"]):
                raise ValueError
        except ExpiredTokenError:
            raise InvalidTokenError("expired_token", "the token has expired") from None
        except _UNREADABLE:
            raise InvalidTokenError("wrong_claims", "the token is not valid here or now") from None
        return claims


def _media_type(kind: str) -> str:
    """A type is a media type, of which "application/" need not be written (RFC 7515, section 4.1.9)."""
    lower = kind.lower()
    return lower if "/" in lower else f"application/{lower}"
