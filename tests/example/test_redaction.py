import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from example_app.redaction import EventStreamRedactor, JsonRedactor, Redactor, TextRedactor, find, redact, redactor_for


def _fed(redactor: Redactor, chunks: Sequence[bytes]) -> bytes:
    return b"".join(redactor.feed(chunk, index == len(chunks) - 1) for index, chunk in enumerate(chunks))


def _bytewise(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()] or [b""]


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
    assert _fed(TextRedactor(), _bytewise(text)) == redacted.encode()


def test_tells_where_it_found_what() -> None:
    assert list(find("mail bob@example.org")) == [("email", 5, 20)]


def test_time_grows_with_the_length_and_not_faster() -> None:
    # With the square of it this would take minutes.
    for piece in ("a", "4", "4 ", "a@a.", "+1", "1234 ", "a.b-"):
        redact(piece * (200_000 // len(piece)))


# Whatever two rules could disagree about at a cut.
_PIECES = st.sampled_from(
    [
        *("alice", "@", "example.com", ".", "com", " ", "-", "+", "(", ")", "_", "é", "\\", '"', "\r", "z" * 70),
        *("1", "202", "555", "0143", "4111", "4111 1111 1111 1111", "3782 822463 10005", "+49 170 1234567"),
    ]
)
_TEXTS = st.lists(_PIECES, max_size=25).map("".join)
_STREAMS = st.lists(
    st.one_of(
        _TEXTS.map(lambda text: "data: " + text + "\n\n"),
        _PIECES.map(lambda text: "data:" + text + "\r\n"),
        st.sampled_from(["\n", "event: done\n", ": bob@example.org\n", "data\n", "data: ", "dat"]),
    ),
    max_size=12,
).map("".join)
_DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXTS,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(_TEXTS, values, max_size=4),
    max_leaves=8,
).map(json.dumps)


@st.composite
def _cut(draw: st.DrawFn, bodies: st.SearchStrategy[str]) -> tuple[bytes, list[bytes]]:
    """A body, and the same body in pieces, some of them empty."""
    body = draw(bodies).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=12)))
    return body, [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


@pytest.mark.parametrize(
    ("make", "bodies"),
    [
        (TextRedactor, _TEXTS),
        (EventStreamRedactor, _STREAMS),
        (EventStreamRedactor, _TEXTS),
        (JsonRedactor, _DOCUMENTS),
    ],
)
@given(data=st.data())
def test_output_does_not_depend_on_the_cuts(
    make: Callable[[], Redactor], bodies: st.SearchStrategy[str], data: st.DataObject
) -> None:
    body, chunks = data.draw(_cut(bodies))
    whole = _fed(make(), [body])
    assert _fed(make(), chunks) == whole
    assert _fed(make(), [bytes([byte]) for byte in body] or [b""]) == whole
    assert _fed(make(), [*chunks, b""]) == whole


@given(text=_TEXTS)
def test_text_in_pieces_is_redacted_like_text_in_one_piece(text: str) -> None:
    assert _fed(TextRedactor(), _bytewise(text)) == redact(text).encode()


@given(text=_TEXTS.filter(lambda text: "\r" not in text), sizes=st.lists(st.integers(1, 9), min_size=1))
@example(text="mail alice@example.com now", sizes=[1])
def test_events_say_together_what_the_text_would_say(text: str, sizes: list[int]) -> None:
    tokens: list[str] = []
    rest = text
    while rest:
        size = sizes[len(tokens) % len(sizes)]
        tokens.append(rest[:size])
        rest = rest[size:]
    stream = "".join(f"data: {token}\n\n" for token in tokens)
    out = _fed(EventStreamRedactor(), [stream.encode()]).decode()
    assert "".join(line.removeprefix("data: ") for line in out.split("\n")) == redact(text)
    assert out.count("data: ") == len(tokens)


def test_only_what_may_go_on_is_held_back() -> None:
    text = TextRedactor()
    assert text.feed(b"write to ali", False) == b"write to "
    assert text.feed(b"ce, or 12 3", False) == b"alice, or "
    events = EventStreamRedactor()
    assert events.feed(b"data: write to \n\n", False) == b"data: write to \n\n"
    assert events.feed(b"data: ali\n\ndata: ce\n\n", False) == b"data: "
    assert events.feed(b"data: , or\n\n", False) == b"ali\n\ndata: ce\n\ndata: , "


def test_long_runs_are_held_back_no_further_than_a_match_can_reach() -> None:
    redactor = TextRedactor()
    passed = b"".join(redactor.feed(b"x" * 100, False) for _ in range(100))
    assert len(passed) > 9_000


def test_comments_between_events_are_not_kept() -> None:
    redactor = EventStreamRedactor()
    redactor.feed(b"data: hello \n\n", False)
    for _ in range(3):
        assert redactor.feed(b": still there\n\n", False) == b": still there\n\n"


def test_json_escapes_are_no_part_of_an_address() -> None:
    body = rb'{"note": "first\nbob@example.org", "bob\u0040example.org": [1.5e3, true, null]}'
    out = json.loads(_fed(JsonRedactor(), [body]))
    assert out == {"note": "first\n[email]", "[email]": [1500.0, True, None]}


def test_json_with_nothing_to_redact_stays_as_it_is() -> None:
    body = b'{ "id" : 4111111111111111, "price" : 1.50 }\n'
    assert _fed(JsonRedactor(), [body]) == body


def test_what_only_claims_to_be_json_is_redacted_as_text() -> None:
    assert _fed(JsonRedactor(), [b"oops: bob@example.org"]) == b"oops: [email]"


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/json", JsonRedactor),
        ("application/problem+json; charset=utf-8", JsonRedactor),
        ("Text/Event-Stream; charset=utf-8", EventStreamRedactor),
        ("text/html", TextRedactor),
        ("image/png", type(None)),
        ("", type(None)),
    ],
)
def test_redactor_goes_by_content_type(content_type: str, kind: type) -> None:
    assert type(redactor_for(content_type)) is kind
