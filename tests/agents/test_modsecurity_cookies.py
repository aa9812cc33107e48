"""Cookies: rules are shown each of them as the engine finds it, and as Python's frameworks read it."""

from random import Random

import pytest
from starlette.requests import cookie_parser

from asgi_agents.agents import ModSecurity
from asgi_agents.testing import request_headers_event
from tests.support.examples import examples

pytest.importorskip("libmodsecurity", reason="the engine is not built for this platform")

from asgi_agents.agents.modsecurity_fields import request_fields_of
from asgi_agents.agents.modsecurity_transaction import Transaction

PARTS = [
    "evil",
    "a",
    "evi",
    "vil",
    " ",
    "\t",
    "\xa0",
    "\x1c",
    '"',
    '"',
    "\\",
    "\\145",
    "=",
    "=",
    ";",
    "; ",
    "b=",
    'b="',
]
OTHERWISE = [
    *("b=evil", "=evil", "evil", "b =evil", "\xa0b=evil", 'b="evil"', "b= evil", "b=evil ;c=1", "b=evil\x85"),
    *('a=evil; b="\\145vil"', 'a="\\000"; b="\\145vil"', '="\\145vil"; b=1', 'b=x; b="evil"', "a=evil; b=evil\xa0"),
    *("c=evil; b =evil", 'b="evil";', "b=evil ;", " ; =evil; ", " evil ;", 'b=" evil "', 'b=" evil ";', 'b=" evil " '),
]
RULES = ModSecurity(
    text="\n".join(
        f'SecRule {where} "@rx {rx}" "id:{at},phase:1,pass,log,t:none,t:urlDecodeUni"'
        for at, (where, rx) in enumerate(
            [
                ("REQUEST_COOKIES", r"\Aevil\z"),
                ("REQUEST_COOKIES:b", r"\Aevil\z"),
                ("REQUEST_COOKIES", r"\A evil \z"),
                ("REQUEST_COOKIES:empty-key", r"\Aevil\z"),
            ],
            1,
        )
    )
)


def test_each_cookie_that_an_app_reads_is_shown_to_rules_under_its_name() -> None:
    random = Random(4)  # noqa: S311 - no secret
    generated = ("".join(random.choices(PARTS, k=random.randint(1, 9))) for _ in range(examples(3000)))
    for field in [*OTHERWISE, *generated]:
        read = cookie_parser(field)
        looked_for = {
            "1": "evil" in read.values(),
            "2": read.get("b") == "evil",
            "3": " evil " in read.values(),
            "4": read.get("") == "evil",
        }
        headers = {"host": ["a"], "cookie": [field]}
        answer = Transaction(RULES._rules, request_headers_event("GET", headers=headers)).request_head()
        assert {number for number, found in looked_for.items() if found} <= set(answer.audit.rule_ids), field


@pytest.mark.parametrize(
    "field", ["a=1; b=2", "a=1;b=2;", "a=1; b=2  ", "session=eyJ1c2VyIjo0Mn0.aGk=; theme=dark", "", ";", "a=1; a=2"]
)
def test_cookies_that_the_engine_finds_as_apps_read_them_are_shown_once(field: str) -> None:
    headers = request_headers_event("GET", headers={"cookie": [field]}).headers
    assert [*request_fields_of(headers)] == [(b"cookie", field.encode())]
