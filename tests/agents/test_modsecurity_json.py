"""All text of JSON that Python finds, the rules find: in any escapes, as the name of nothing, in any pieces."""

import json
from collections.abc import Iterator
from itertools import islice, pairwise
from random import Random
from typing import Any

import pytest

from asgi_agents.agents import ModSecurity
from asgi_agents.testing import request_headers_event
from tests.support.examples import examples

pytest.importorskip("libmodsecurity", reason="the engine is not built for this platform")

from asgi_agents.agents.modsecurity_arguments import Arguments
from asgi_agents.agents.modsecurity_json import Json
from asgi_agents.agents.modsecurity_transaction import Transaction

EVIL = "union's"
WAF = ModSecurity(text=f'SecRule ARGS|ARGS_NAMES "@contains {EVIL}" "id:7,phase:2,deny,log"')
CONTAINERS = ["{}", "[]", "{ }", "[\r\n]", "{\t \n}"]


def passes(pieces: list[bytes]) -> bool:
    headers = {"content-type": ["application/json"], "transfer-encoding": ["chunked"]}
    transaction = Transaction(WAF._rules, request_headers_event("POST", headers=headers))
    answers = [transaction.request_head()]
    answers += [transaction.request_body(piece, at == len(pieces) - 1) for at, piece in enumerate(pieces)]
    return all(answer.is_allow for answer in answers)


def texts(data: bytes) -> Iterator[str]:
    """Also of what has a name that comes again, of which Python keeps the last."""

    def of(value: Any) -> Iterator[str]:
        match value:
            case str():
                yield value
            case list() | tuple():
                yield from (text for item in value for text in of(item))

    yield from of(json.loads(data, object_pairs_hook=list))


def escaped(text: str, random: Random) -> str:
    """As JSON may write it."""
    return "".join(
        f"\\u{ord(letter):04{random.choice('xX')}}"
        if letter < " " or letter in '"\\' or (random.random() < 0.2 and ord(letter) < 65536)
        else letter
        for letter in text
    )


PIECES = [EVIL, EVIL, "uni", "on's", "\\", '"', "{}", "[", "]}", "\U0001f600", "é", "\\ud800", "\0", "\n", "a", "/"]


def written(random: Random, depth: int) -> str:
    """A value with texts anywhere, some of which are no text that there can be."""

    def string() -> str:
        parts = [escaped(random.choice(PIECES), random) for _ in range(random.choice([0, 1, 1, 2]))]
        if random.random() < 0.03:
            parts.insert(0, random.choice(["\\ud83d", "\\uDC00", "\\ud83d\\u0041", "\\ud83d\\ud83d\\ude00"]))
        return f'"{"".join(parts)}"'

    def blank() -> str:
        return random.choice(["", "", " ", "\r\n", "\t  "])

    kind = random.choice("soaeen" if depth else "sen")
    match kind:
        case "s":
            return string()
        case "e":
            return random.choice(CONTAINERS)
        case "n":
            return random.choice(["1", "-2.5e3", "true", "null"])
    values = [written(random, depth - 1) for _ in range(random.choice([1, 1, 2, 3]))]
    if kind == "o":
        values = [f"{string()}{blank()}:{blank()}{value}" for value in values]
    return ("{%s}" if kind == "o" else "[%s]") % f"{blank()},{blank()}".join(values)


def bodies(random: Random) -> Iterator[tuple[bytes, list[bytes]]]:
    while True:
        data = written(random, 3).encode()
        cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.choice([0, 1, 2, 5])))
        yield data, [data[at:to] for at, to in pairwise([0, *cuts, len(data)])]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_rules_are_given_all_text_that_python_finds(seed: int) -> None:
    """And what has no such text passes, unless it has half of a surrogate pair."""
    for data, pieces in islice(bodies(Random(seed)), examples(8000)):  # noqa: S311 - no secret
        found = list(texts(data))
        halves = any(text.encode("utf-8", "ignore") != text.encode("utf-8", "surrogatepass") for text in found)
        assert passes(pieces) == (not halves and not any(EVIL in text for text in found)), pieces


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("outer", ["%s", "[%s]", '{"a": %s}', '[1, {"b": [%s, 2]}]'])
def test_the_name_of_what_is_empty_is_judged(container: str, outer: str) -> None:
    for name, expected in (("fine", True), (EVIL, False), (EVIL.replace("u", "\\u0075"), False)):
        data = (outer % f'{{"{name}": {container}}}').encode()
        for at in range(len(data)):
            assert passes([data[:at], data[at:]]) == expected, (data, at)


@pytest.mark.parametrize("before", ["", "a", "\\\\", "\\\\\\\\", "\\n", "\\ud83d\\ude00", '\\"'])
@pytest.mark.parametrize(("half", "expected"), [("\\ud800", False), ("\\uDFFF", False), ("\\\\ud800", True)])
@pytest.mark.parametrize("behind", ["", "'", "u0041", "\\u0041", "\\n", "\\\\udc00", " " * 20])
def test_half_of_a_surrogate_pair_is_refused_wherever_it_is_cut(
    before: str, half: str, expected: bool, behind: str
) -> None:
    data = f'{{"a": "{before}{half}{behind}"}}'.encode()
    json.loads(data)
    for at in range(len(data)):
        assert passes([data[:at], data[at:]]) == expected, (data, at)
    assert passes([data[at : at + 1] for at in range(len(data))]) == expected


def test_blanks_of_what_may_be_empty_are_not_kept() -> None:
    reader = Json(Arguments())
    assert reader.read(b'{"a": [', is_last=False) == b'{"a": '
    assert b"".join(reader.read(b" \n" * 100, is_last=False) or b"" for _ in range(100)) == b""
    assert reader._rest == b"["
    assert reader.read(b"1]}", is_last=True) == b"[1]}"
