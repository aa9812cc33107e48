"""Whatever clients and issuers send, ready-made agents refuse it, and fail over none of it."""

import json
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.agents.addresses import address_of
from asgi_agents.agents.claims import InvalidTokenError, scopes_of, text_of
from asgi_agents.agents.key_sets import NoKeysError, keys_of
from asgi_agents.agents.tokens import Tokens

from .issuer import EC, claims, encoded, token

TOKENS = Tokens("https://id.example/", "shop", ["ES256", "RS256", "EdDSA"], ["JWT"], 30)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
names = ("typ", "kid", "crit", "b64", "jwk", "jku", "x5c", "x5t", "cty", "x")
headers = st.fixed_dictionaries(
    {}, optional={"alg": st.sampled_from(["ES256", "none", "EdDSA"]) | values, **dict.fromkeys(names, values)}
)
keys = st.fixed_dictionaries(
    {},
    optional={
        "kty": st.sampled_from(["EC", "RSA", "OKP", "oct"]) | values,
        "crv": st.sampled_from(["P-256", "Ed25519", "X25519"]) | values,
        "x": st.sampled_from([EC.as_dict()["x"], "AAAA"]) | values,
        "y": st.sampled_from([EC.as_dict()["y"], "AAAA"]) | values,
        **dict.fromkeys(("n", "e", "d", "k"), st.just("AQAB") | values),
        **dict.fromkeys(("use", "alg", "kid", "key_ops", "x5c"), values),
    },
)


@given(
    headers.map(lambda header: f"{encoded(header)}.{encoded({})}.AAAA")
    | st.binary().map(lambda data: f"{encoded(data)}.{encoded(data)}.{encoded(data)}")
    | st.text(alphabet="abcAB-_.=ey")
    | st.text()
)
def test_what_is_no_token_is_invalid(given_token: str) -> None:
    with suppress(InvalidTokenError):
        TOKENS.verify(TOKENS.read(given_token), EC)


@given(st.dictionaries(st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "scope", "scp"]), values))
def test_signed_claims_of_any_kind_are_taken_or_refused(changes: dict[str, Any]) -> None:
    try:
        found = TOKENS.verify(TOKENS.read(token(**changes)), EC)
        assert found["iss"] == claims()["iss"]
        scopes_of(found)
        for value in found.values():
            text = text_of(value)
            assert text is None or text.encode().decode() == text
    except InvalidTokenError:
        pass


@given(
    st.lists(keys | values).map(lambda given_keys: json.dumps({"keys": given_keys}).encode())
    | values.map(lambda value: json.dumps(value).encode())
    | st.binary()
)
def test_what_is_no_key_is_left_out(body: bytes) -> None:
    try:
        found = keys_of(body)
    except NoKeysError:
        return
    for key in found.values():
        with suppress(InvalidTokenError):
            TOKENS.verify(TOKENS.read(token(header={"kid": "any"})), key)


@given(st.text() | st.text(alphabet='0123456789abcdef:.[]%" ,/'))
def test_what_is_no_address_is_none(text: str) -> None:
    assert isinstance(address_of(text), IPv4Address | IPv6Address | None)
