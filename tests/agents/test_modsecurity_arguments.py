"""How many names and values the engine is given: it compares each with the others, and other threads wait meanwhile."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise, product
from random import Random
from typing import Any

import pytest

from asgi_agents import AgentResponse
from asgi_agents.agents import ModSecurity
from asgi_agents.testing import request_headers_event
from tests.support.asgi import App, Client
from tests.support.examples import examples
from tests.unjudged.asking import ask, config

from .core_rule_set import FORM

pytest.importorskip("libmodsecurity", reason="the engine is not built for this platform")

from asgi_agents.agents.modsecurity_arguments import BYTES_OF_NAMES, MAX_ARGUMENTS, Arguments, Form
from asgi_agents.agents.modsecurity_transaction import Transaction

MULTIPART = "multipart/form-data; boundary=x"
JSON = "application/json"
XML = "text/xml"
EVIL = ModSecurity(text='SecRule ARGS "@contains evil" "id:7,phase:2,deny,log"')
TOO_MANY = "99115"


def asked(
    waf: ModSecurity, kind: str, pieces: Sequence[bytes], most: int, uri: str = "/", cookie: str = ""
) -> AgentResponse:
    headers = {"host": ["a"], "content-type": [kind], "transfer-encoding": ["chunked"], "cookie": [cookie]}
    event = request_headers_event("POST", uri, {name: values for name, values in headers.items() if values[0]})
    transaction = Transaction(waf._rules, event, most)
    answer = transaction.request_head()
    for at, piece in enumerate(pieces):
        if answer.is_allow or answer.needs_more:
            answer = transaction.request_body(piece, at == len(pieces) - 1)
    return answer


def multipart(*names: str, kind: str = 'name="%s"') -> bytes:
    parts = (f"--x\r\nContent-Disposition: form-data; {kind % name}\r\n\r\n1\r\n" for name in names)
    return "".join([*parts, "--x--\r\n"]).encode()


def similar(count: int) -> list[str]:
    """Names of one length whose letters have one sum, which is all by which the engine tells them apart quickly."""
    pairs = [chr(97 + at) + chr(122 - at) for at in range(26)]
    return ["".join(letters) for letters in islice(product(pairs, repeat=3), count)]


SIMILAR = "=&".join(similar(4000))
HEADS = "\r\n".join(["", *(f"{name}:" for name in similar(4000)), "", "1"]).encode()
EMPTY = "='' "
DECLARED = "='u:1' xmlns:"
MARKUP = BYTES_OF_NAMES * MAX_ARGUMENTS
HOSTILE: dict[str, tuple[str, bytes, str, str]] = {
    "a-form": (FORM, SIMILAR.encode(), "/", ""),
    "a-query": ("", b"", f"/?{SIMILAR}", ""),
    "cookies": ("", b"", "/", SIMILAR.replace("&", ";")),
    "multipart": (MULTIPART, multipart(*similar(4000)), "/", ""),
    "files": (MULTIPART, multipart(*similar(4000), kind='name="%s"; filename="f"'), "/", ""),
    "heads-of-one-part": (MULTIPART, multipart("q").replace(b"\r\n\r\n1", HEADS), "/", ""),
    "json": (JSON, json.dumps(dict.fromkeys(similar(4000), 1)).encode(), "/", ""),
    "json-of-a-long-name": (JSON, b'{"' + b"k" * 4000 + b'":[' + b"1," * 1000 + b"1]}", "/", ""),
    "json-in-many-lists": (JSON, b"[" * 1000 + b"1," * 1000 + b"1" + b"]" * 1000, "/", ""),
    "json-in-many-maps": (JSON, b'{"k":' * 5000 + b"[" + b"1," * 100 + b"1]" + b"}" * 5000, "/", ""),
    "json-of-no-type": ("", b"[" + b"1," * 4000 + b"1]", "/", ""),
    "json-that-is-a-form": (FORM, b'{"a":"' + b"&" * 4000 + b'"}', "/", ""),
    "a-long-name": (FORM, b"k" * 100_000 + b"=1", "/", ""),
    "attributes-of-one-tag": (XML, f"<a {EMPTY.join(similar(1201))}{EMPTY}/>".encode(), "/", ""),
    "attributes-of-tags": (XML, b"<a>" + b"<b c=''/>" * 1201 + b"</a>", "/", ""),
    "namespaces-of-one-tag": (XML, f"<a xmlns:{DECLARED.join(similar(1201))}{DECLARED}z='u:1'/>".encode(), "/", ""),
    "namespaces-of-tags": (XML, b"<a>" + b"<b xmlns='u:1'/>" * 1201 + b"</a>", "/", ""),
    "tags": (XML, b"<a>" + b"<b/>" * MARKUP + b"</a>", "/", ""),
    "comments": (XML, b"<a>" + b"<!---->1" * MARKUP + b"</a>", "/", ""),
    "instructions": (XML, b"<a>" + b"<?b?>" * MARKUP + b"</a>", "/", ""),
    "sections": (XML, b"<a>" + b"<![CDATA[]]>" * MARKUP + b"</a>", "/", ""),
    "an-end-that-is-missing": (JSON, b'["' + b'\\"' * 50_000 + b"," * 4000, "/", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_request_with_very_many_arguments_is_refused_and_the_engine_is_not_given_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, data, uri, cookie = HOSTILE[name]
    asked_of_the_engine = 0
    judge = Transaction._request_is_complete

    def count(self: Transaction) -> AgentResponse:
        nonlocal asked_of_the_engine
        asked_of_the_engine += 1
        return judge(self)

    monkeypatch.setattr(Transaction, "_request_is_complete", count)
    for pieces in ([data], [data[at : at + 997] for at in range(0, len(data), 997)]):
        asked_of_the_engine = 0
        answer = asked(EVIL, kind, pieces, MAX_ARGUMENTS, uri, cookie)
        assert not answer.is_allow
        # That which is missing its end is no JSON, however much of it there is.
        assert {TOO_MANY, "99107"} & set(answer.audit.rule_ids)
        # A head without its body, and JSON before it is looked at as a form, are judged.
        assert asked_of_the_engine <= 1 + (name in {"json-that-is-a-form", "an-end-that-is-missing"})


ORDINARY: dict[str, tuple[str, bytes]] = {
    "a-form": (FORM, "&".join(f"items[{at}][quantity]={at}" for at in range(1000)).encode()),
    "multipart": (MULTIPART, multipart(*(f"items[{at}][quantity]" for at in range(1000)))),
    "files": (MULTIPART, multipart(*(f"f{at}" for at in range(1000)), kind='name="%s"; filename="a.png"')),
    "numbers": (JSON, json.dumps([*range(1000)]).encode()),
    "objects": (JSON, json.dumps({"items": [dict.fromkeys(["id", "name", "price", "title"], 1)] * 250}).encode()),
    "a-long-text": (JSON, json.dumps({"text": '[1, 2], {"a": 3}, ' * 9000}).encode()),
    "attributes": (XML, b"<a>" + b'<point lat="1" lon="2"/>' * 500 + b"</a>"),
    "tags": (XML, b"<a xmlns='https://a.example'>" + b"<point><lat>1</lat><lon>2</lon></point>\n" * 15_000 + b"</a>"),
    "a-long-value": (FORM, b"a=" + b"b=" * 50_000),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_requests_have_fewer(name: str) -> None:
    kind, data = ORDINARY[name]
    assert asked(EVIL, kind, [data], MAX_ARGUMENTS).is_allow
    assert asked(EVIL, kind, [data[:5000], data[5000:]], MAX_ARGUMENTS, "/?a=1", "b=2; c=3").is_allow


async def test_how_many_there_may_be_is_an_option_and_who_has_more_is_told_why() -> None:
    body = json.dumps([*range(3000)]).encode()
    for most, status in ((MAX_ARGUMENTS, 400), (4000, 200)):
        waf = ModSecurity(text='SecRule ARGS "@contains evil" "id:7,phase:2,deny,log"', max_arguments=most)
        app = App()
        client = Client("POST", headers=[(b"content-type", b"application/json")], body=body)
        assert (await ask(app, config(waf), client=client)).status == status
        assert app.calls == (status == 200)


@pytest.mark.parametrize("place", ["query", "body"])
@pytest.mark.parametrize("first", ["SecRuleEngine DetectionOnly", f"SecRuleRemoveById {TOO_MANY}"])
def test_where_the_rules_let_it_pass_the_engine_is_not_given_it(first: str, place: str) -> None:
    waf = ModSecurity(text=f'{first}\nSecRule ARGS "@contains evil" "id:7,phase:2,deny,log"')
    many = "a=evil&" * 20
    if place == "query":
        answer = asked(waf, FORM, [b"b=1"], 10, f"/?{many}")
    else:
        answer = asked(waf, FORM, [many.encode(), b"c=1"], 10)
    assert answer.is_allow
    assert "7" not in answer.audit.rule_ids


TAGS = [b"<b/>", b"<b c='1'/>", b"<b c='1' d='2'>e</b>", b"<b xmlns='u:1'/>", b"<b xmlns:e='u:1' e:f='1' g='2'/>", b"h"]


def generated(random: Random) -> Iterator[tuple[str, bytes, str, str]]:
    def value(depth: int) -> Any:
        match random.randrange(6 if depth < 4 else 3):
            case 0:
                return random.choice([1, -2.5, True, None, "a", "", 'b"', "\\", "[1,2]", "{", "é"])
            case 1 | 2:
                return {} if random.random() < 0.5 else []
            case 3 | 4:
                return [value(depth + 1) for _ in range(random.randint(0, 5))]
            case _:
                return {random.choice(["", "a", "bcd", 'e"', "\\", "é", "k" * 30, ":", "f "]): value(depth + 1)}

    while True:
        pairs = random.choices(["a=1", "", "=", "b", "ccc=%3d", "a=b=c", "d+=", "%26=1"], k=random.randint(0, 14))
        text, names = "&".join(pairs), [pair[:3] for pair in pairs if pair[:3].isalpha()]
        yield from (
            (JSON, json.dumps(value(0), indent=random.choice([None, 1]), ensure_ascii=False).encode(), "/", ""),
            (FORM, text.encode(), "/", ""),
            ("", b"1", f"/?{text}", ""),
            ("", b"1", "/", ";".join(pairs)),
            ("", b"1", "/", ";".join(f'{at}="1"' for at in range(random.randint(0, 9)))),
            (MULTIPART, multipart(*names), "/", ""),
            (XML, b"<a>%b</a>" % b"".join(random.choices(TAGS, k=random.randint(0, 9))), "/", ""),
        )


@pytest.mark.parametrize("most", [1, 2, 5, 10])
def test_the_engine_never_finds_more_than_there_may_be(most: int) -> None:
    """Whatever it takes for a name or a value is counted before."""
    found = "|".join(("ARGS_NAMES", "REQUEST_COOKIES_NAMES"))
    numbers = "\n".join(
        f'SecRule &{name} "@gt {most}" "id:{at},phase:2,deny,log"'
        for at, name in enumerate(("ARGS", "REQUEST_COOKIES", "REQUEST_HEADERS", "XML://@*"), 1)
    )
    long = f'SecRule {found} "@rx (?s)^.{{{most * BYTES_OF_NAMES + 1},}}" "id:9,phase:2,deny,log"'
    waf, random = ModSecurity(text=f"{numbers}\n{long}"), Random(most)  # noqa: S311 - no secret
    for kind, data, uri, cookie in islice(generated(random), examples(400)):
        at = random.randrange(len(data) + 1)
        answer = asked(waf, kind, [data[:at], data[at:]], most, uri, cookie)
        assert not {"1", "2", "3", "4", "9"} & set(answer.audit.rule_ids), (kind, data, uri, cookie)


def test_the_names_of_json_are_those_of_the_engine() -> None:
    """By what they are counted for and by what they are for the engine: neither is much longer than the other."""
    random = Random(5)  # noqa: S311 - no secret
    for kind, data, *_ in islice(generated(random), examples(400)):
        if kind == JSON and (names := [*_names(json.loads(data), "json", "")]):
            counted = Arguments(1000)
            assert counted.add_json(data.replace(b"{}", b"null").replace(b"[]", b"null"))
            length = 1000 * BYTES_OF_NAMES - counted._bytes_left
            assert sum(map(len, names)) <= length <= sum(len(name) + 20 * (name.count(".") + 1) for name in names)


def _names(value: Any, path: str, key: str) -> Iterator[str]:
    """As the engine makes them."""
    if isinstance(value, list) and value:
        for at, item in enumerate(value):
            yield from _names(item, f"{path}{key}.array_{at}", "")
    elif isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _names(item, f"{path}{key}.", name or "empty-key")
    else:
        yield path + key


def test_the_budget_is_taken_in_any_pieces() -> None:
    data = b"a=1&bc=2&&d&=5&eeee=6=7&f"
    counted = set[tuple[int, int]]()
    for places in [[], *([at] for at in range(len(data))), [*range(len(data))]]:
        arguments = Arguments(100)
        asked_with = [data[at:to] for at, to in pairwise([0, *places, len(data)])]
        form = Form(arguments)
        assert b"".join(form.read(piece, is_last=False) or b"" for piece in asked_with) == data
        counted.add((arguments._left, arguments._bytes_left))
    assert counted == {(100 - 7, 100 * BYTES_OF_NAMES - 9)}
