"""Whatever clients and issuers send, ready-made agents refuse it, and fail over none of it."""

import json
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.agents.addresses import address_of
from asgi_agents.agents.askers import Askers
from asgi_agents.agents.claims import InvalidTokenError, scopes_of, text_of
from asgi_agents.agents.crowds import ASKERS
from asgi_agents.agents.decoys import Decoys
from asgi_agents.agents.key_sets import NoKeysError, keys_of
from asgi_agents.agents.places import COUNTRY, SYSTEM, kind_of_place, places_in
from asgi_agents.agents.tokens import Tokens
from asgi_agents.testing import request_headers_event

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
    for key in [key for keys in found.values() for key in keys.values()]:
        with suppress(InvalidTokenError):
            TOKENS.verify(TOKENS.read(token(header={"kid": "any"})), key)


@given(st.text() | st.text(alphabet='0123456789abcdef:.[]%" ,/'))
def test_what_is_no_address_is_none(text: str) -> None:
    assert isinstance(address_of(text), IPv4Address | IPv6Address | None)


what_browsers_say = st.sampled_from(["sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest", "origin", "host"])


@given(st.text() | st.text(alphabet="./%20ea"), st.lists(st.tuples(what_browsers_say, st.text())))
def test_whatever_a_client_asks_for_it_is_a_decoy_or_none(uri: str, given_headers: list[tuple[str, str]]) -> None:
    event = request_headers_event(uri=uri, headers=dict(given_headers))
    assert Decoys(["/.env", "/a/{rest:path}", "/b/{number:int}"]).find(event) in (
        *(None, "/.env", "/a/{rest:path}", "/b/{number:int}"),
    )
    assert Askers(["https://app.shop.example"]).of(event) in ASKERS


records = st.fixed_dictionaries(
    {},
    optional={
        name: values | st.dictionaries(st.sampled_from(["iso_code", "asn"]), values)
        for name in ("country", "country_code", "asn", "autonomous_system_number", "traits")
    },
)


@given(records | values)
def test_of_a_record_of_any_kind_there_are_two_places_at_most(record: Any) -> None:
    assert [kind_of_place(place) for place in places_in(record)] in ([], [COUNTRY], [SYSTEM], [COUNTRY, SYSTEM])
