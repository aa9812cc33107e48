"""What is in a multipart form, rules judge as in a form without parts, and readers agree what of it is a file."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from itertools import islice, pairwise, product
from random import Random
from urllib.parse import quote_plus

import pytest
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from asgi_agents import AgentResponse
from asgi_agents.agents import ModSecurity
from asgi_agents.testing import request_headers_event
from tests.support.examples import examples

from .core_rule_set import FORM, installed

pytest.importorskip("libmodsecurity", reason="the engine is not built for this platform")

from asgi_agents.agents.modsecurity_arguments import Arguments
from asgi_agents.agents.modsecurity_multipart import Multipart
from asgi_agents.agents.modsecurity_transaction import Transaction

TYPE = "multipart/form-data; boundary=x"
HEAD = b'--x\r\nContent-Disposition: form-data; name="q"\r\n\r\n'
END = b"\r\n--x--\r\n"
FILE = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
#: One for each place where line ends could get lost: between words, at both ends, in a line of its own, one by one.
RULES = [
    *(r"union\s+select", r"\A\s*union", r"select\s\z", r"(?m)^select$", r"\n", r"\r\n", r"a\n\nb", r"--\s+x", r"\n--"),
    *(r"\s--x", r"^\r", r"unionselect", r"\A(?:union|select|\s)*\z", r"a{4090}\s", r"b\sa{40}", r"\s\s\s\s"),
]
LINES = ModSecurity(
    text="\n".join(f'SecRule ARGS "@rx {rx}" "id:{at},phase:2,pass,log"' for at, rx in enumerate(RULES, 1))
)
UNION = ModSecurity(text='SecRule ARGS|ARGS_NAMES "@rx union\\s+select" "id:1,phase:2,deny,log"')
#: The engine reads 4,096 bytes at a time.
WORDS = [
    *(b"union", b"select", b"\n", b"\n", b"\r\n", b"\r\n", b"\r", b" ", b"a", b"b", b"--", b"--x", b"--xx", b"x", b"-"),
    *(b"a" * 4089, b"a" * 4090, b"a" * 4094, b"a" * 4095, b"a" * 4096, b"a" * 4097, b"a" * 40),
]


def asked(waf: ModSecurity, kind: str, pieces: Sequence[bytes]) -> AgentResponse:
    headers = {
        "host": ["a"],
        "user-agent": ["x"],
        "accept": ["*/*"],
        "content-type": [kind],
        "transfer-encoding": ["x"],
    }
    transaction = Transaction(waf._rules, request_headers_event("POST", headers=headers))
    answer = transaction.request_head()
    for at, piece in enumerate(pieces):
        answer = transaction.request_body(piece, at == len(pieces) - 1)
    return answer


def as_form(waf: ModSecurity, value: bytes) -> AgentResponse:
    return asked(waf, FORM, [b"q=" + quote_plus(value).encode()])


def cut(data: bytes, random: Random) -> list[bytes]:
    places = sorted(random.randrange(len(data) + 1) for _ in range(random.choice([0, 1, 2, 5])))
    return [data[at:to] for at, to in pairwise([0, *places, len(data)])]


def generated(random: Random) -> Iterator[bytes]:
    """Values that are no boundary of the form themselves."""
    while True:
        value = b"".join(random.choices(WORDS, k=random.randint(1, 9)))
        if b"\n--x" not in b"\n" + value:
            yield value


EXAMPLES = [
    *(b"union\nselect", b"union\r\nselect", b"union\rselect", b"union\n\r\n\nselect", b"\nunion select", b"select\n"),
    *(b"1 union\n--\nselect", b"union\n-\n--y\nselect", b"\r\n", b"\n\n\n\n", b"select\r\n--", b"a" * 4095 + b"\nb"),
]


@pytest.mark.parametrize("others", [b"", FILE + b"a\nb\r\n"], ids=["alone", "behind-a-file"])
def test_a_value_of_several_lines_has_the_verdict_that_it_has_in_a_form(others: bytes) -> None:
    random = Random(1)  # noqa: S311 - no secret
    for value in [*EXAMPLES, *islice(generated(random), examples(50))]:
        wanted = set(as_form(LINES, value).audit.rule_ids)
        for pieces in (cut(others + HEAD + value + END, random) for _ in range(2)):
            # A rule that finds a carriage return may find one that the engine was given, and never less than that.
            assert wanted <= set(asked(LINES, TYPE, pieces).audit.rule_ids), (value, pieces)


def test_a_form_is_denied_wherever_it_is_cut() -> None:
    for value in (b"union\nselect", b"a\r\nunion\r\n\r\nselect\r\n", b"--\nunion\n--\n--x\r"):
        data = HEAD + (value if b"select" in value else value.replace(b"--x", b"select")) + END
        wanted = asked(UNION, TYPE, [data]).is_allow
        for at in range(len(data) + 1):
            assert asked(UNION, TYPE, [data[:at], data[at:]]).is_allow == wanted
        assert asked(UNION, TYPE, [data[at : at + 1] for at in range(len(data))]).is_allow == wanted


def test_the_engine_is_given_a_file_as_it_is_and_the_same_form_in_any_pieces() -> None:
    content = b"a\nb\r\n\r\n--y\r\n--\n\r-x" * 5
    file = FILE + content
    data = b"".join((file, b"\r\n", HEAD, content, b"\r\n", file, END))
    random = Random(2)  # noqa: S311 - no secret
    seen = set[bytes]()
    for pieces in [[data], *(cut(data, random) for _ in range(200)), [data[at : at + 1] for at in range(len(data))]]:
        form = Multipart(Arguments(), [TYPE])
        read = [form.read(piece, is_last=at == len(pieces) - 1) for at, piece in enumerate(pieces)]
        seen.add(b"".join(piece or b"" for piece in read))
        assert form.as_form() == b"q=" + quote_plus(content).encode()
    assert len(seen) == 1
    assert seen.pop().count(file + b"\r\n") == 2


def test_the_first_look_at_a_form_finds_blanks_between_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule for parts that denies a form together with what is in a field."""
    monkeypatch.setattr(Multipart, "as_form", lambda self: None)
    for value in EXAMPLES:
        data = HEAD + value + END
        assert asked(UNION, TYPE, [data]).is_allow == as_form(UNION, value).is_allow


#: Where a value has no line end, it is judged once: a rule may count.
def test_a_value_of_one_line_is_what_it_is() -> None:
    exact = ModSecurity(text='SecRule ARGS:q "!@rx ^[a-z -]{2,9}$" "id:1,phase:2,deny,log"')
    for value in (b"union select", b"a -- b"):
        data = HEAD + value + END
        assert asked(exact, TYPE, [data]).is_allow == as_form(exact, value).is_allow
    form = Multipart(Arguments(), [TYPE])
    assert form.read(HEAD + b"a" + END, is_last=True) == HEAD + b"a" + END
    assert form.as_form() is None


@pytest.mark.parametrize(
    "value",
    [
        b"1' # a\nunion all select 1,2 -- -",
        b"1 -- x\nunion select 1,2 from users",
        b"a\nLocation: http://x",
        b"; cat\n/etc/x",
    ],
)
def test_the_core_rule_set_finds_what_it_finds_in_a_form(value: bytes) -> None:
    waf = ModSecurity(crs=str(installed()))
    assert as_form(waf, value).is_allow or not asked(waf, TYPE, [HEAD + value + END]).is_allow


TOKENS = [
    *('"', "\\", "\\\\", '\\"', '\\\\"', ";", "; ", "=", "name", "filename", "filename*", "q", "y", "name=q", 'y="'),
    *('name="q"', 'filename="f"', 'filename=""', "'", " ", "; name=q; ", '; filename="; name=q; y="', "utf-8''f"),
]
#: A part is a file for one reader and a field for the other, unless it is refused.
AMBIGUOUS = [
    'name="z\\\\"; filename="; name=q; y="',
    'name="z\\\\"; filename="x"',
    'name="z\\\\\\\\"; filename="; name=q; y="',
    'name="\\\\\\\\\\\\"; filename="; name=q; y="',
    'name="a"; filename="z\\\\"; name="; name=q; y="',
]
READ_BY_BOTH = [
    *('name="q"', 'name="q"; filename="f"', 'name="q"; filename=""', 'name="a \\"b\\""', "name=q; filename=f"),
    *('name="q";', 'name="f"; filename="C:\\dir\\a.txt"', 'name="f"; filename="a\\\\b"', 'name="\u00e9"'),
    *('name="f"; filename="f"; filename*=UTF-8\'\'f', 'name="a;b=c"', 'filename="f"; name="q"'),
    'name="filename=\\"x\\""; filename="a; name=q"',
]


async def _are_fields(data: bytes, kind: str = TYPE) -> list[bool]:
    """Of each part whether Starlette takes it for a field; none where it can't read the form."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield data
        yield b""

    async with aclosing(whole()) as stream:
        parser = MultiPartParser(Headers({"content-type": kind}), stream)
        try:
            return [not isinstance(value, UploadFile) for _, value in (await parser.parse()).multi_items()]
        except Exception:
            return []
        finally:
            for file in parser._files_to_close_on_error:
                file.close()


def _part(disposition: str) -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\nunion select" + END


async def test_no_part_is_a_file_for_the_engine_and_a_field_for_starlette() -> None:
    random = Random(3)  # noqa: S311 - no secret
    some = ("".join(random.choices(TOKENS, k=random.randint(3, 9))) for _ in range(examples(400)))
    named = ('name="' + "".join(tokens) for tokens in product(TOKENS[:5], TOKENS, TOKENS[5:], TOKENS))
    every = [*AMBIGUOUS, *some, *islice(named, 0, None, max(1, 30_000 // examples(400)))]
    for disposition in every:
        if any(await _are_fields(_part(disposition))):
            assert not asked(UNION, TYPE, [_part(disposition)]).is_allow, disposition


@pytest.mark.parametrize("disposition", AMBIGUOUS)
def test_a_part_that_could_be_a_file_or_a_field_is_refused(disposition: str) -> None:
    assert list(asked(UNION, TYPE, [_part(disposition)]).audit.rule_ids) == ["99112"]


@pytest.mark.parametrize("disposition", READ_BY_BOTH)
async def test_a_part_that_is_read_in_one_way_is_judged(disposition: str) -> None:
    (is_field,) = await _are_fields(_part(disposition))
    # The engine takes a file without a name for a field.
    is_file = not is_field and 'filename=""' not in disposition
    assert asked(UNION, TYPE, [_part(disposition)]).is_allow == is_file
    lines = _part(disposition).replace(b"union select", b"union\nselect")
    assert asked(UNION, TYPE, [lines]).is_allow == is_file


@pytest.mark.parametrize("boundary", ["x", '"x"', "x;y", '"x;y"', " x", "x; charset=utf-8", "y", ""])
def test_no_form_is_given_to_the_engine_whose_boundary_is_another_one_here(boundary: str) -> None:
    """What is not found to be a form of parts here would be one without line ends there."""
    answer = asked(UNION, f"multipart/form-data; boundary={boundary}", [HEAD + b"union\nselect" + END])
    assert not answer.is_allow


SIGNS = [chr(code) for code in range(256)]
SPELLINGS = [
    *("", '""', '"', '"\\""', '" "', "''", "-", "--", "=", ";", '";"', ",", "x y", '"x y"', "x" * 70, "x" * 1100),
    *(pattern.format(sign) for sign in SIGNS for pattern in ("{}", "{}x", "x{}", "x{}x", '"{}"', '"{}x"', '"x{}"')),
]
BEFORE = [
    *("multipart/form-data; boundary=", "multipart/form-data;boundary=", "Multipart/Form-Data; Boundary="),
    *("multipart/form-data; boundary =", "multipart/form-data; boundary= ", "multipart/form-data;; boundary="),
    *("multipart/form-data ;boundary=", "multipart/form-data; a=b; boundary=", "multipart/form-data; \0boundary="),
    *("multipart/form-data; boundary=; boundary=", "multipart/form-data; boundary*=y; boundary="),
    "multipart/form-data\0; boundary=",
]
BEHIND = ["", ";", "; charset=utf-8", '; a="b"', "; boundary=", "\0"]
TABLE = list(product(BEFORE, SPELLINGS, BEHIND))


def _of_boundary(boundary: bytes) -> bytes:
    return (HEAD + b"union select" + END).replace(b"--x", b"--" + boundary)


@pytest.mark.parametrize("boundary", ["", '""', "\0", "\0x", '""\0', "\0; charset=utf-8"])
async def test_a_form_of_a_boundary_that_the_engine_takes_for_none_is_refused(boundary: str) -> None:
    kind = f"multipart/form-data; boundary={boundary}"
    data = _of_boundary(parse_options_header(kind)[1][b"boundary"])
    assert await _are_fields(data, kind) == [True]
    for pieces in ([data], [b"", data], [data[:1], data[1:]], [data, b""]):
        assert list(asked(UNION, kind, pieces).audit.rule_ids) == ["99112"]


async def test_what_starlette_takes_for_a_boundary_the_engine_takes_for_none_or_the_same() -> None:
    """Each body is a form for the boundary that Starlette reads."""
    read = 0
    for before, spelling, behind in islice(TABLE, 0, None, max(1, 400_000 // examples(2000))):
        kind = f"{before}{spelling}{behind}"
        boundary = parse_options_header(kind)[1].get(b"boundary")
        if boundary is not None and any(await _are_fields(data := _of_boundary(boundary), kind)):
            read += 1
            assert not asked(UNION, kind, [data]).is_allow, kind
    assert read > 100
