"""An agent that knows users by signed tokens (RFC 7519), as OpenID providers and OAuth servers issue them."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from ..agent import Agent
from ..errors import ConfigurationError
from ..imports.extras import from_extra
from ..messages.naming import named
from ..protocol import AgentResponse, AuditMetadata, ConfigureEvent, HeaderOp, RequestHeadersEvent
from .claims import InvalidTokenError, headers_of_claims, scopes_of, text_of
from .cookies import cookies_of
from .settings import is_user, own_headers, require_mapping, require_strings

#: Signatures by key pairs. A shared secret would have to be published to verify by it.
ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "Ed25519", "EdDSA"),
)
# RFC 6749, section 3.3.
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+\Z")
_HEADERS: Final[Mapping[str, str]] = MappingProxyType({"sub": "x-user", "scope": "x-scopes"})


class JwtAuth(Agent):
    """Verifies bearer tokens, and puts what they say of the user into headers.

    401 for a token that is missing, forged, expired, or somebody else's; 403 for one without the ``scopes`` (RFC 6750,
    section 3). Where the keys can't be fetched, the agent is unavailable, to which its failure mode applies::

        AgentConfig(
            "jwt",
            JwtAuth("https://id.example/jwks.json", issuer="https://id.example/", audience="shop"),
            sets={"x-user", "x-scopes"},
        )

    Needs the ``jwt`` extra.

    :param jwks_url: where the issuer publishes its keys.
    :param issuer: the ``iss`` that tokens have to have, or several of which they have to have one.
    :param audience: the ``aud`` that tokens have to be for, or several, one of which is enough.
    :param scopes: those that each token has to have, all of them: in its claim ``scope`` or ``scp``.
    :param headers: which claim goes into which request header. ``scope`` has the scopes separated by spaces, whichever
        claim they come in. A header whose claim is missing is taken out of the request. A value that no header can
        carry as it is makes the token invalid.
    :param metadata: which claim goes into which key of ``request.state.agents.routing_metadata``.
    :param algorithms: a token signed otherwise is invalid. Not those of shared secrets (``HS256``), nor ``none``.
    :param types: the values of ``typ`` that a token may have, in any case. One without it is taken.
    :param leeway: seconds that the clocks of issuer and server may differ by.
    :param cookie: the name of a cookie that has the token where there is no ``authorization`` header.
    :param forward_token: whether the app sees the ``authorization`` header.
    :param max_age: seconds after which keys are fetched anew, beside the requests.
    :param max_stale: seconds for which keys are used while no new ones can be fetched.
    :param cooldown: seconds between two fetches because of a key id that is not known.
    :param allow_http: take keys over plain HTTP from other machines than this one. Whoever is on the way can then put
        others in their place.
    :param proxy: the URL of a proxy that the keys are fetched through. One that the environment names is not asked.
    :raises ConfigurationError: for what can't work, and without the extra.
    """

    def __init__(
        self,
        jwks_url: str,
        *,
        issuer: str | Iterable[str],
        audience: str | Iterable[str],
        scopes: Iterable[str] = (),
        headers: Mapping[str, str] = _HEADERS,
        metadata: Mapping[str, str] = MappingProxyType({}),
        algorithms: Iterable[str] = ALGORITHMS,
        types: Iterable[str] = ("JWT", "at+jwt"),
        leeway: float = 30.0,
        cookie: str | None = None,
        forward_token: bool = False,
        max_age: float = 600.0,
        max_stale: float = 86_400.0,
        cooldown: float = 30.0,
        allow_http: bool = False,
        proxy: str | None = None,
    ) -> None:
        with from_extra("JwtAuth", "jwt", ConfigurationError):
            from .jwks import Jwks
            from .tokens import Tokens
        self._jwks = Jwks(jwks_url, max_age, max_stale, cooldown, allow_http=allow_http, proxy=proxy)
        self._tokens = Tokens(issuer, audience, algorithms, types, leeway)
        self._scopes = require_strings("JwtAuth", "scopes", scopes)
        if not all(map(_SCOPE.match, self._scopes)):
            raise ConfigurationError("JwtAuth: scopes contains what is no scope, expected such as 'orders:read'")
        self._headers = headers_of_claims(headers)
        taken = () if forward_token else ("authorization",)
        self.own_headers, self.replaced_headers = own_headers(self._headers.values(), taken)
        self._metadata = require_mapping("JwtAuth", "metadata", metadata)
        if cookie is not None and not isinstance(cookie, str):
            raise ConfigurationError(f"JwtAuth: cookie={named(cookie)}, expected the name of a cookie, or None")
        self._cookie, self._forwards = cookie, forward_token
        self._missing = _denied(401, "missing_credentials", "Bearer")

    async def on_configure(self, event: ConfigureEvent) -> None:
        """The keys are there before the first request needs them, or the agent counts as down."""
        await self._jwks.load()

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        token = self._token_of(event)
        if token is None:
            return self._missing
        try:
            unverified = self._tokens.read(token)
            # Only what could be a token of the issuer has a key fetched.
            claims = self._tokens.verify(unverified, await self._jwks.key(unverified.kid, unverified.key_type))
            scopes = scopes_of(claims)
            if not set(self._scopes) <= set(scopes):
                challenge = f'Bearer error="insufficient_scope", scope="{" ".join(self._scopes)}"'
                return _denied(403, "insufficient_scope", challenge)
            return self._allowed({**claims, "scope": " ".join(scopes) or None})
        except InvalidTokenError as exc:
            return _denied(401, exc.reason, f'Bearer error="invalid_token", error_description="{exc}"')

    def _token_of(self, event: RequestHeadersEvent) -> str | None:
        given = event.headers.get("authorization", ())
        if given:
            scheme, _, token = given[0].partition(" ")
            # Of several fields, the app might read another one.
            return token.strip(" \t") if scheme.lower() == "bearer" and len(given) == 1 else None
        if self._cookie is None:
            return None
        return cookies_of(event.header("cookie") or "", (self._cookie,)).get(self._cookie) or None

    def _allowed(self, claims: Mapping[str, Any]) -> AgentResponse:
        operations = [] if self._forwards else [HeaderOp.remove("authorization")]
        for claim, name in self._headers.items():
            text = text_of(claims.get(claim))
            if text is None:
                operations.append(HeaderOp.remove(name))
            elif is_user(text):
                operations.append(HeaderOp.set(name, text))
            else:
                raise InvalidTokenError("unsendable_claim", "a claim can't be put into a header")
        metadata = {name: text for claim, name in self._metadata.items() if (text := text_of(claims.get(claim)))}
        return AgentResponse.allow(request_headers=operations, routing_metadata=metadata)


def _denied(status: int, reason: str, challenge: str) -> AgentResponse:
    return AgentResponse.block(
        status, headers={"www-authenticate": challenge}, audit=AuditMetadata(reason_codes=(reason,))
    )
