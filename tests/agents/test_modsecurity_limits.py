"""What a request may cost: expressions of rules take the square of a text's length, unless they give up."""

import base64
import json
from random import Random
from time import process_time

import pytest

from asgi_agents import AgentResponse
from asgi_agents.agents import ModSecurity
from asgi_agents.testing import request_headers_event

from .core_rule_set import FORM, installed

pytest.importorskip("libmodsecurity", reason="the engine is not built for this platform")

from asgi_agents.agents.modsecurity_transaction import Transaction

NO_LIMIT = "SecPcreMatchLimit 1000000000"
HOSTILE = ["<a ", "(((", "../", "q' or ", "select from where "]
PLACES = ["query", "cookie", "form", "json"]


@pytest.fixture(scope="module")
def core() -> ModSecurity:
    return ModSecurity(crs=str(installed()))


def asked(waf: ModSecurity, place: str, text: str) -> AgentResponse:
    """The answer to a request that has a text in this place."""
    query = f"q={text.replace('+', '%2B').replace(' ', '+')}"
    headers = {"host": ["app.example"], "user-agent": ["x"], "accept": ["*/*"]}
    data, uri = b"", "/"
    match place:
        case "query":
            uri = f"/?{query}"
        case "cookie":
            headers["cookie"] = [query]
        case "form":
            headers["content-type"], data = [FORM], query.encode()
        case "json":
            headers["content-type"], data = ["application/json"], json.dumps({"q": text}).encode()
    if data:
        headers["content-length"] = [str(len(data))]
    transaction = Transaction(waf._rules, request_headers_event("POST" if data else "GET", uri=uri, headers=headers))
    answer = transaction.request_head()
    return transaction.request_body(data, True) if data else answer


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("place", PLACES)
def test_a_text_that_would_take_the_square_of_its_length_is_refused(core: ModSecurity, unit: str, place: str) -> None:
    answer = asked(core, place, unit * (60_000 // len(unit)))
    assert not answer.is_allow
    assert {"99102", "949110"} & set(answer.audit.rule_ids)


@pytest.mark.slow
@pytest.mark.parametrize("unit", HOSTILE)
def test_a_long_text_takes_less_than_a_quarter_of_it_would_without_the_limit(core: ModSecurity, unit: str) -> None:
    """By processor time, of one and the other in one run: what grows with the square takes sixteen times as long."""
    without = ModSecurity(crs=str(installed()), text=NO_LIMIT)
    taken = []
    for waf, length in ((core, 64_000), (without, 16_000)):
        begun = process_time()
        asked(waf, "query", unit * (length // len(unit)))
        taken.append(process_time() - begun)
    assert taken[0] < taken[1]


WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "we", "wait", "for", "morning"]
RANDOM = Random(1)  # noqa: S311 - no secret
ORDINARY = {
    "prose": " ".join(RANDOM.choice(WORDS) + RANDOM.choice(["", "", ",", "."]) for _ in range(14_000))[:68_000],
    "lines": "hello world\n" * 5700,
    "a-table": "\n".join(f"{at},name {at},{at * 7}.50,2026-01-{at % 28 + 1:02}" for at in range(2200)),
    "base64": base64.b64encode(RANDOM.randbytes(9000)).decode(),
    "a-source": "def total(items):\n    result = 0\n    for item in items:\n        result += item.price\n" * 100,
}


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("place", ["form", "json"])
def test_a_long_ordinary_text_meets_no_limit(core: ModSecurity, name: str, place: str) -> None:
    assert asked(core, place, ORDINARY[name]).is_allow


PICTURE = base64.b64encode(RANDOM.randbytes(51_000)).decode()


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, False),
        ({"text": "SecPcreMatchLimit 150000"}, True),
        ({"before": "SecPcreMatchLimit 150000"}, True),
        (
            {
                "before": 'SecRule REQUEST_FILENAME "@streq /" '
                '"id:10001,phase:1,pass,nolog,ctl:ruleRemoveTargetById=932150;ARGS:json.q"'
            },
            True,
        ),
    ],
)
def test_a_long_word_passes_where_rules_say_so(options: dict[str, str], allowed: bool) -> None:
    waf = ModSecurity(crs=str(installed()), **options)  # type: ignore[arg-type]
    answer = asked(waf, "json", PICTURE)
    assert answer.is_allow == allowed, answer.audit.rule_ids


def test_rules_of_ones_own_meet_it_as_well() -> None:
    waf = ModSecurity(text='SecRule ARGS "@rx ^(a+)+$" "id:1,phase:2,pass,nolog"')
    assert list(asked(waf, "query", "a" * 40 + "b").audit.rule_ids) == ["99102"]
    assert asked(waf, "query", "c" * 100_000).is_allow
