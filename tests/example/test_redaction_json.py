import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from example_app.redaction import JsonRedactor, NdjsonRedactor, UnreadableError, redact
from tests.support.examples import the_first_is_short

from .redacting import SECRETS, Number, Pairs, bytewise, cut, fed, read, scalars, spelt, steady

CARDS = ("4111111111111111", "378282246310005", "-4111111111111111", "4111111111111111.00", "4111111111111111e0")
PLAIN = st.sampled_from(["", "a", "index", " ", "é", "\n", '"', "\\", "/", "😀", "\ud800", "[email]", "x" * 50])
NUMBERS = st.sampled_from(["0", "-1", "1.50", "1e999", "-0.0", "9" * 400, "1E-7", "4111111111111112"])
SPACE = st.sampled_from(["", "", "", " ", "\n", "\t\r\n"])


@st.composite
def strings(draw: st.DrawFn, secrets: bool) -> str:
    pieces = st.one_of(PLAIN, st.sampled_from(SECRETS)) if secrets else PLAIN
    # What stands right beside a number may make something else of it.
    return spelt(draw, draw(st.sampled_from([" ", "\n", "é"])).join(draw(st.lists(pieces, max_size=4))))


@st.composite
def documents(draw: st.DrawFn, secrets: bool = True, depth: int = 3) -> str:
    """A document as somebody may write it: with duplicate keys, and white space and escapes anywhere."""
    kind = draw(
        st.sampled_from(["string", "string", "number", "word", "array", "object", "object"][: 7 if depth else 4])
    )
    match kind:
        case "string":
            value = draw(strings(secrets))
        case "number":
            value = draw(st.one_of(NUMBERS, st.sampled_from(CARDS)) if secrets else NUMBERS)
        case "word":
            value = draw(st.sampled_from(["true", "false", "null", "NaN", "-Infinity"]))
        case "array":
            value = f"[{','.join(draw(st.lists(documents(secrets, depth - 1), max_size=3)))}]"
        case _:
            members = draw(st.lists(st.tuples(strings(secrets), documents(secrets, depth - 1)), max_size=3))
            value = f"{{{','.join(f'{key}{draw(SPACE)}:{draw(SPACE)}{item}' for key, item in members)}}}"
    return draw(SPACE) + value + draw(SPACE)


def redacted(value: Any) -> Any:
    """What should be read, in place of ``value``."""
    match value:
        case Pairs():
            return Pairs((redact(key), redacted(item)) for key, item in value)
        case list():
            return [redacted(item) for item in value]
        case Number():
            return "[card]" if value in CARDS else value
        case str():
            return redact(value)
        case _:
            return value


def no_secret_is_in(body: bytes) -> bool:
    text = body.decode()
    return not any(secret in text for secret in (*SECRETS, *CARDS))


# repr, since NaN is not equal to itself.
@steady
@given(data=st.data())
def test_a_client_reads_the_document_with_each_string_redacted_and_all_else_as_it_was(data: st.DataObject) -> None:
    document = data.draw(documents())
    out = fed(JsonRedactor(), data.draw(cut(document.encode())))
    assert repr(read(out)) == repr(redacted(read(document)))
    assert not any(secret in text for text in scalars(read(out)) for secret in SECRETS)
    assert no_secret_is_in(out)


@steady
@given(data=st.data())
def test_a_document_with_nothing_to_redact_stays_as_it_is_to_the_byte(data: st.DataObject) -> None:
    document = data.draw(documents(secrets=False)).encode()
    assert fed(JsonRedactor(), data.draw(cut(document))) == document


@steady
@given(data=st.data())
def test_ndjson_is_read_line_by_line(data: st.DataObject) -> None:
    lines = [line.replace("\n", " ").replace("\r", " ") for line in data.draw(st.lists(documents(depth=2), max_size=4))]
    body = "\n".join(lines) + data.draw(st.sampled_from(["", "\n", "\r\n"]))
    out = fed(NdjsonRedactor(), data.draw(cut(body.encode())))
    assert repr([read(line) for line in out.decode().split("\n") if line.strip()]) == repr(
        [redacted(read(line)) for line in lines]
    )
    assert no_secret_is_in(out)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (rb'{"note": "first\nbob@example.org"}', rb'{"note": "first\n[email]"}'),
        (rb'{"a":"bob\u0040example\u002eorg \ud83d\ude00\ud800"}', rb'{"a":"[email] \ud83d\ude00\ud800"}'),
        (b'{"a": "bob@example.org", "a": "x"}', b'{"a": "[email]", "a": "x"}'),
        (b'{"bob@example.org": 1, "a@b.cc": 2}', b'{"[email]": 1, "[email]": 2}'),
        (b"[4111111111111111, 41111111111111110]", b'["[card]", 41111111111111110]'),
        (b"[4.111111111111111e15, 41111111111111110E-1]", b'["[card]", "[card]"]'),
        (b'{"z": 1e999, "a": 1.50, "n": 123456789012345678901234567890, "b": "a@b.cc"}',
         b'{"z": 1e999, "a": 1.50, "n": 123456789012345678901234567890, "b": "[email]"}'),
        (b'\xef\xbb\xbf"a@b.cc"', b'\xef\xbb\xbf"[email]"'),
        ('["über a@b.cc \xff"]'.encode("latin-1"), '["über [email] \xff"]'.encode("latin-1")),
        (b"", b""),
        (b" \n", b" \n"),
    ],
)  # fmt: skip
def test_only_what_is_redacted_changes(document: bytes, expected: bytes) -> None:
    assert fed(JsonRedactor(), [document]) == fed(JsonRedactor(), bytewise(document)) == expected


@pytest.mark.parametrize(
    "document",
    [
        *(
            b"oops: bob@example.org",
            b"{",
            b"[1",
            b"[1,]",
            b"{1: 2}",
            b'{"a"}',
            b'{"a": 1,}',
            b"[1 2]",
            b"1 2",
            b"]",
            b",",
        ),
        *(
            b'"',
            b'"\n"',
            b'"\\x40"',
            b'"\\u12"',
            b"01",
            b"1.",
            b".5",
            b"+1",
            b"- 1",
            b"nul",
            b"[}",
            b'{"a": 1]',
            b"'a'",
        ),
        *('{"a": 1}'.encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-32-be")),
    ],
)
def test_what_only_claims_to_be_json_is_refused(document: bytes) -> None:
    for make in (JsonRedactor, NdjsonRedactor):
        with pytest.raises(UnreadableError):
            fed(make(), [document])


@steady
@given(text=st.text(st.sampled_from('{}[],:"\\u0 1-.eEtrufalsn\n\x7f'), max_size=12))
@example(text="\x7f")
def test_whatever_is_no_json_is_refused_and_whatever_is_json_is_not(text: str) -> None:
    try:
        json.loads(text)
        valid = True
    except ValueError:
        valid = not text.strip(" \t\r\n")
    try:
        assert fed(JsonRedactor(), [text.encode()]) == text.encode()
        assert valid
    except UnreadableError:
        assert not valid


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"bob@example.org":', "}]")])
def test_no_document_is_too_deep(opening: str, closing: str) -> None:
    document = opening * 100_000 + '"bob@example.org"' + closing * 100_000
    assert fed(JsonRedactor(), [document.encode()]) == redact(document).encode()


@pytest.mark.parametrize(
    "document",
    the_first_is_short(
        [
            '"' * 300_000,
            '"' + "\\n" * 300_000,
            "[" * 300_000,
            "1" * 300_000,
            "1e" + "9" * 300_000,
            '"' + "a\\u0040" * 50_000,
        ]
    ),
)
def test_time_grows_with_the_length_and_not_faster(document: str) -> None:
    # With the square of it this would take minutes.
    for make in (JsonRedactor, NdjsonRedactor):
        try:
            fed(make(), [document.encode()])
        except UnreadableError:
            continue


def test_ndjson_holds_back_no_more_than_a_line() -> None:
    redactor = NdjsonRedactor()
    assert redactor.feed(b'["a@b.cc"]\n[1', False) == b'["[email]"]\n'
    assert redactor.feed(b"]\n", False) == b"[1]\n"
