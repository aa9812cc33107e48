import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from example_app.redaction import (
    EventStreamRedactor,
    JsonRedactor,
    NdjsonRedactor,
    Redactor,
    SniffedRedactor,
    TextRedactor,
    UnreadableError,
    find,
    redact,
    redactor_for,
)

from .redacting import SECRETS, bytewise, cut, fed, steady


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("alice.smith+shop@mail.example.co.uk.", "[email]."),
        ("<bob@example.org>", "<[email]>"),
        (f"{'b' * 64}@{('x' * 63 + '.') * 8}{'c' * 24} ", "[email] "),
        ("bob@localhost", "bob@localhost"),
        ("4111 1111 1111 1111", "[card]"),
        ("4111-1111-1111-1111, 4111111111111111", "[card], [card]"),
        ("3782 822463 10005", "[card]"),
        ("4111 1111 1111 1111 123", "[card] 123"),
        ("1234 4111 1111 1111 1111", "1234 [card]"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),
        ("order 41111111111111110", "order 41111111111111110"),
        ("+49 (0)30 1234567", "[phone]"),
        ("(202) 555-0143 or 202-555-0143", "[phone] or [phone]"),
        ("+1 (202) 555-0143 ", "[phone] "),
        ("2026-11-22T12:30:00 0.4111111111111111", "2026-11-22T12:30:00 0.4111111111111111"),
        ("naïve@example.com übung@example.com", "naï[email] ü[email]"),
    ],
)
def test_finds_personal_data_and_nothing_else(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert fed(TextRedactor(), bytewise(text.encode())) == redacted.encode()


def test_tells_where_it_found_what() -> None:
    assert list(find("mail bob@example.org")) == [("email", 5, 20)]


def test_time_grows_with_the_length_and_not_faster() -> None:
    # With the square of it this would take minutes.
    for piece in ("a", "4", "4 ", "a@a.", "+1", "1234 ", "a.b-"):
        redact(piece * (200_000 // len(piece)))


# Whatever two rules could disagree about at a cut.
PIECES = st.sampled_from(
    [
        *("alice", "@", "example.com", ".", "com", " ", "-", "+", "(", ")", "_", "%", "é", "\\", '"', "\r", "z" * 70),
        *("1", "202", "555", "0143", "4111", "4111 1111 1111 1111", "3782 822463 10005", "+49 170 1234567"),
    ]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)
STREAMS = st.lists(
    st.one_of(
        TEXTS.map(lambda text: "data: " + text + "\n\n"),
        PIECES.map(lambda text: "data:" + text + "\r\n"),
        TEXTS.map(lambda text: f"data: {json.dumps({'a': text})}\r\r"),
        st.sampled_from(
            ["\n", "\r", "\r\n", "event: done\n", ": bob@example.org\n", "id: 1\r", "data\n", "data: ", "dat"]
        ),
    ),
    max_size=12,
).map("".join)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXTS, values, max_size=4),
    max_leaves=8,
).map(json.dumps)


@pytest.mark.parametrize(
    ("make", "bodies"),
    [
        (TextRedactor, TEXTS),
        (EventStreamRedactor, STREAMS),
        (EventStreamRedactor, TEXTS),
        (JsonRedactor, DOCUMENTS),
        (NdjsonRedactor, st.lists(DOCUMENTS).map("\n".join)),
        (SniffedRedactor, st.one_of(DOCUMENTS, STREAMS, TEXTS, st.tuples(TEXTS, DOCUMENTS).map(" ".join))),
    ],
)
@steady
@given(data=st.data())
def test_output_does_not_depend_on_the_cuts(
    make: Callable[[], Redactor], bodies: st.SearchStrategy[str], data: st.DataObject
) -> None:
    body = data.draw(bodies).encode()
    whole = fed(make(), [body])
    assert fed(make(), data.draw(cut(body))) == whole
    assert fed(make(), bytewise(body)) == whole
    assert fed(make(), [body, b""]) == whole


def test_a_word_that_comes_again_and_then_goes_on_is_the_same_for_any_cut() -> None:
    body = b"data: alice\n\ndata: alice\n\ndata: @example.com\n\n"
    assert fed(EventStreamRedactor(), [body]) == fed(EventStreamRedactor(), bytewise(body))


@steady
@given(text=TEXTS)
def test_text_in_pieces_is_redacted_like_text_in_one_piece(text: str) -> None:
    assert fed(TextRedactor(), bytewise(text.encode())) == redact(text).encode()


def test_only_what_may_go_on_is_held_back() -> None:
    text = TextRedactor()
    assert text.feed(b"write to ali", False) == b"write to "
    assert text.feed(b"ce, or 12 3", False) == b"alice, or "


def test_long_words_are_held_back_no_further_than_an_address_can_reach() -> None:
    redactor = TextRedactor()
    assert redactor.feed(b"x" * 60, False) == b""
    assert redactor.feed(b"x" * 10, False) == b"x" * 70
    # A domain may go on for longer.
    assert redactor.feed(b"x a@" + b"x." * 100, False) == b"x "
    assert len(redactor.feed(b"x." * 1000, False)) > 1000


@pytest.mark.parametrize("body", [b"\xff\xfea\0", b"\xfe\xff\0a", "bob@example.org".encode("utf-16-le"), b"\0"])
def test_what_is_no_text_is_not_passed_on_as_text(body: bytes) -> None:
    for make in (TextRedactor, SniffedRedactor):
        for chunks in ([body], bytewise(body)):
            with pytest.raises(UnreadableError):
                fed(make(), chunks)


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/json", JsonRedactor),
        ("application/problem+json; charset=utf-8", JsonRedactor),
        ("text/json", JsonRedactor),
        ("application/vnd.shop.json", JsonRedactor),
        ("application/x-ndjson", NdjsonRedactor),
        ("application/jsonl; charset=UTF8", NdjsonRedactor),
        ("Text/Event-Stream; charset=utf-8", EventStreamRedactor),
        ("text/html", TextRedactor),
        ("text/plain;charset=iso-8859-1", TextRedactor),
        ('text/plain; charset="us-ascii"', TextRedactor),
        ("application/xml", TextRedactor),
        ("image/svg+xml", TextRedactor),
        ("image/png", type(None)),
        ("image/png; charset=utf-16", type(None)),
        ("", SniffedRedactor),
        ("unknown", SniffedRedactor),
    ],
)
def test_redactor_goes_by_content_type(content_type: str, kind: type) -> None:
    assert type(redactor_for(content_type)) is kind


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain; charset=utf-16",
        "application/json;CHARSET = 'utf-7'",
        "text/html; charset=ebcdic",
        "text/html; charset=utf-8; charset=utf-16",
        "text/event-stream; charset=no such thing",
        "multipart/byteranges; boundary=x",
    ],
)
def test_no_redactor_is_better_than_one_that_guesses(content_type: str) -> None:
    with pytest.raises(UnreadableError):
        redactor_for(content_type)


@pytest.mark.parametrize(
    ("body", "redacted"),
    [
        (rb' {"a": "bob\u0040example.org"}', rb' {"a": "[email]"}'),
        (b'\xef\xbb\xbf["bob@example.org"]', b'\xef\xbb\xbf["[email]"]'),
        (b'{"a": 1}\n{"a": 4111111111111111}\n', b'{"a": 1}\n{"a": "[card]"}\n'),
        (b"[a link](mailto:bob@example.org)", b"[a link](mailto:[email])"),
        (b'data: {"a": "bob@exa"}\n\ndata: {"a": "mple.org"}\n\n', b'data: {"a": "[email]"}\n\ndata: {"a": ""}\n\n'),
        (b"id: 1\ndata: bob@exa\n\ndata: mple.org\n\n", b"id: 1\ndata: [email]\n\ndata: \n\n"),
        (b"bob@example.org", b"[email]"),
        (b"", b""),
        (b" ", b" "),
    ],
)
def test_a_body_without_a_type_is_taken_for_what_it_looks_like(body: bytes, redacted: bytes) -> None:
    assert fed(SniffedRedactor(), [body]) == fed(SniffedRedactor(), bytewise(body)) == redacted


@steady
@given(data=st.data(), secret=st.sampled_from(SECRETS))
def test_nothing_planted_in_a_text_comes_out(data: st.DataObject, secret: str) -> None:
    before, after = data.draw(st.sampled_from(["", " ", "é", "a ", "\n"])), data.draw(st.sampled_from(["", " ", ", b"]))
    body = f"{before}{secret}{after}".encode()
    out = fed(TextRedactor(), data.draw(cut(body))).decode()
    assert out == before + redact(secret) + after
    assert secret not in out
