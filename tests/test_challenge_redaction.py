"""Headers that ask a client to authenticate: what they say is kept, and no token in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents import AgentResponse, HeaderOp
from asgi_agents.observability.redaction import (
    REDACTED,
    is_challenge_header,
    redact_challenge,
)
from asgi_agents.observability.secret_names import is_secret_name
from asgi_agents.recording.cleaning import Cleaner

MARK = "Qx7MARKx"


@pytest.mark.parametrize("name", ["www-authenticate", "WWW-Authenticate", "Proxy-Authenticate"])
def test_a_challenge_is_no_credential(name: str) -> None:
    assert is_challenge_header(name)
    assert not is_secret_name(name)


@pytest.mark.parametrize("name", ["authorization", "authentication-info", "x-www-authenticate", "x-authenticate-user"])
def test_what_is_named_alike_may_be_one(name: str) -> None:
    assert is_secret_name(name)
    assert not is_challenge_header(name)


def test_whether_credentials_may_be_sent_is_no_credential() -> None:
    assert not is_secret_name("Access-Control-Allow-Credentials")
    assert is_secret_name("credentials")


@pytest.mark.parametrize(
    "value",
    [
        "ApiKey",
        "Basic",
        "Negotiate, Basic",
        'Basic realm="the api", charset="UTF-8"',
        'Bearer realm="api", error="invalid_token", error_description="The token has expired"',
        'Bearer resource_metadata="https://mcp.example/.well-known/oauth-protected-resource"',
        'Bearer scope="a b", Basic realm=api',
        'Digest realm="a \\" b, c", qop="auth, auth-int", algorithm=SHA-256',
        "",
    ],
)
def test_what_is_asked_for_is_kept(value: str) -> None:
    assert redact_challenge(value) == value


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("Negotiate SECRET", "Negotiate [redacted]"),
        ("Negotiate SECRET==, Basic", "Negotiate [redacted], Basic"),
        ("Negotiate SECRET=", "Negotiate [redacted]"),
        ("Bearer SECRET", "Bearer [redacted]"),
        ("Bearer eyJSECRET.SECRET.SECRET", "Bearer [redacted]"),
        ('Digest realm="a", nonce="SECRET", opaque=SECRET', 'Digest realm="a", nonce=[redacted], opaque=[redacted]'),
        ('Bearer token="SECRET"', "Bearer token=[redacted]"),
        ('Bearer error_description="password=SECRET"', 'Bearer error_description="password=[redacted]"'),
        ('Basic realm="https://a:SECRET@b/"', 'Basic realm="https://[redacted]@b/"'),
        ("ghp_SECRETSECRETSECRET", "[redacted]"),
        ('Digest nonce="SECRET', "Digest nonce=[redacted]"),
    ],
)
def test_no_token_is_left(value: str, kept: str) -> None:
    assert redact_challenge(value.replace("SECRET", MARK)) == kept


TOKENS = st.text("abcXYZ019-._~+/", min_size=1, max_size=30).map(lambda text: MARK + text)
PADDING = st.sampled_from(["", "=", "=="])


@given(
    st.sampled_from(["Negotiate", "NTLM", "Bearer", "X-Own"]), TOKENS, PADDING, st.sampled_from(["", ", Basic", " "])
)
def test_a_token_behind_a_scheme_is_never_kept(scheme: str, token: str, padding: str, end: str) -> None:
    redacted = redact_challenge(f'Basic realm="a", {scheme} {token}{padding}{end}')
    assert MARK not in redacted
    assert scheme in redacted


PARTS = st.sampled_from(["Basic", 'Basic realm="a, b"', f"Negotiate {MARK}==", f'Digest realm=a, nonce="{MARK}"'])


@given(st.lists(PARTS, min_size=1, max_size=4).map(", ".join))
def test_what_is_redacted_once_stays_as_it_is(value: str) -> None:
    once = redact_challenge(value)
    assert MARK not in once
    assert redact_challenge(once) == once


@given(st.text(st.characters(codec="latin-1"), max_size=80))
def test_no_value_makes_it_raise(value: str) -> None:
    assert isinstance(redact_challenge(value), str)


@pytest.mark.parametrize("unit", ["a", "a=", 'a="', "a,", " ", "=", '"', '\\"', "a b", "a=b,"])
def test_a_long_value_is_looked_at_once(unit: str) -> None:
    # With a part that is tried twice this would take minutes.
    assert len(redact_challenge(unit * 200_000)) > 0


def test_recordings_and_commands_have_challenges_and_no_credentials() -> None:
    challenge = 'Bearer realm="the api"'
    headers = {"www-authenticate": challenge, "x-auth-token": MARK}
    answer = AgentResponse.block(401, headers=headers, response_headers=[HeaderOp.set("Proxy-Authenticate", challenge)])
    cleaned = Cleaner(bodies=True).answer(answer)
    assert cleaned.value.decision.headers == {"www-authenticate": challenge, "x-auth-token": REDACTED}
    assert cleaned.value.response_headers[0].value == challenge
    assert Cleaner(bodies=True).plain({"name": "www-authenticate", "value": challenge})["value"] == challenge
    assert Cleaner(bodies=True).plain({"www-authenticate": challenge}) == {"www-authenticate": challenge}


def test_a_redaction_of_ones_own_is_asked_about_challenges_too() -> None:
    cleaner = Cleaner(bodies=True, redact=lambda text: text.replace("api", "***"))
    assert cleaner.named("www-authenticate", 'Basic realm="api"') == 'Basic realm="***"'
    assert Cleaner(bodies=True, redact=None).named("www-authenticate", f"Negotiate {MARK}") == f"Negotiate {MARK}"
