"""Claims as text for headers."""

from typing import Any

import pytest

from asgi_agents.agents.claims import InvalidTokenError, scopes_of, text_of


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        (None, None),
        ("", None),
        ([], None),
        ("alice", "alice"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (7, "7"),
        (1.5, "1.5"),
        (["admin"], "admin"),
        (["read", "write"], "read write"),
    ],
)
def test_a_claim_is_text(claim: object, text: str | None) -> None:
    assert text_of(claim) == text


@pytest.mark.parametrize(
    "claim",
    [{}, {"a": 1}, [1], ["read", "x admin"], ["read", ""], ["a\tb"], "a\ud800", [["a"]], float("nan"), float("inf")],
)
def test_a_claim_that_would_say_something_else_as_text_is_refused(claim: object) -> None:
    with pytest.raises(InvalidTokenError):
        text_of(claim)


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({}, ()),
        ({"scope": ""}, ()),
        ({"scope": []}, ()),
        ({"scope": "read"}, ("read",)),
        ({"scope": " read  write "}, ("read", "write")),
        ({"scope": ["read", "write"]}, ("read", "write")),
        ({"scp": "read write"}, ("read", "write")),
        ({"scp": ["read"]}, ("read",)),
        # The standard one counts, where there are both.
        ({"scope": "read", "scp": "admin"}, ("read",)),
    ],
)
def test_scopes_are_found_wherever_issuers_put_them(claims: dict[str, Any], scopes: tuple[str, ...]) -> None:
    assert scopes_of(claims) == scopes


@pytest.mark.parametrize(
    "given",
    [7, True, {"admin": True}, ["read", "x admin"], [None], "x\u00a0admin", "x\tadmin", "x\x1fadmin", "x\u2003admin"],
)
def test_scopes_that_can_not_be_told_apart_are_refused(given: object) -> None:
    with pytest.raises(InvalidTokenError):
        scopes_of({"scope": given})
