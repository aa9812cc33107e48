import json
import re
from collections import defaultdict
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from example_app.redaction import EventStreamRedactor, find, redact
from example_app.redaction.event_stream import PATIENCE
from tests.support.examples import the_first_is_short

from .redacting import SECRETS, Pairs, bytewise, cut, fed, read, scalars, spelt, steady

ENDS = st.sampled_from(["\n", "\r", "\r\n"])


class Event(NamedTuple):
    data: str
    name: str
    id: str


def events_of(stream: bytes) -> list[Event]:
    """The events that a client is given, after WHATWG HTML, section 9.2.6."""
    text = stream.decode().removeprefix("\ufeff")
    events, last_id = [], ""
    data: list[str] = []
    name = ""
    for line in re.split("\r\n|\r|\n", text)[:-1]:
        if line == "":
            if data:
                events.append(Event("\n".join(data), name, last_id))
            data, name = [], ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "data":
                data.append(value)
            case "event":
                name = value
            case "id":
                last_id = value
    return events


def texts_of(events: list[Event]) -> dict[Any, str]:
    """What the events say together: their plain data, and the strings at each place of their JSON."""
    texts: defaultdict[Any, str] = defaultdict(str)

    def walk(value: Any, place: tuple[Any, ...]) -> None:
        match value:
            case Pairs():
                place += (dict(value).get("index"),)
                for key, item in value:
                    walk(item, (*place, key))
            case list():
                for number, item in enumerate(value):
                    walk(item, (*place, number))
            case str():
                texts[place] += value

    for event in events:
        if is_json(event.data):
            walk(read(event.data), ())
        else:
            texts["plain"] += event.data
    return texts


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def fields(draw: st.DrawFn, data: str) -> str:
    """An event with that data, and with other fields around it."""
    end = draw(ENDS)
    others = [
        "",
        "",
        f"id: 7{end}",
        f"event:delta{end}",
        f": hm{end}",
        f"retry: 10{end}",
        f"other{end}",
        f": hm{end}{end}",
    ]
    lines = [f"data:{draw(st.sampled_from([' ', ' ', '']))}{line}{end}" for line in data.split("\n")]
    # The blank that may stand behind a colon is no part of the data.
    lines = [f"data: {line[5:]}" if line.startswith("data:  ") or line[5:6] == " " else line for line in lines]
    return draw(st.sampled_from(others)) + "".join(lines) + draw(st.sampled_from(others[:-1])) + end


@st.composite
def deltas(draw: st.DrawFn, text: str) -> str:
    """The stream of a model that says ``text``, in one of the ways in which models do."""
    style = draw(st.sampled_from(["plain", "choices", "blocks", "string", "pretty"]))
    stream = []
    for number, piece in enumerate(draw(pieces(text))):
        said = spelt(draw, piece)
        match style:
            case "plain":
                data = piece
            case "choices":
                delta = f'{{"role": "assistant", "content": {said}}}' if number == 0 else f'{{"content":{said}}}'
                data = f'{{"id": "c-1", "choices": [{{"index": 0, "delta": {delta}, "logprobs": null}}]}}'
            case "blocks":
                data = f'{{"type": "block_delta", "delta": {{"text": {said}}}, "index": 3}}'
            case "string":
                data = said
            case _:
                data = f'{{\n  "text": {said}\n}}'
        stream.append(draw(fields(data)))
    return draw(st.sampled_from(["", "\ufeff"])) + "".join(stream) + draw(st.sampled_from(["", "data: [DONE]\n\n"]))


SAID = st.lists(
    st.sampled_from(["a ", "Hi, ", "é ", "1 ", '"', "{", *(f" {secret}, " for secret in SECRETS)]), max_size=5
)


def is_json(data: str) -> bool:
    try:
        read(data)
    except ValueError:
        return False
    return data.lstrip()[:1] in ("{", "[", '"')


def no_secret_is_in(out: bytes) -> bool:
    text, events = out.decode(), events_of(out)
    said = [*texts_of(events).values(), *(event.data for event in events)]
    for event in events:
        said += scalars(read(event.data)) if is_json(event.data) else ()
    return not any(secret in place for secret in SECRETS for place in (text, *said))


@steady
@given(data=st.data(), said=SAID.map("".join))
def test_no_secret_in_the_deltas_of_a_model_comes_out_however_they_are_cut(data: st.DataObject, said: str) -> None:
    stream = data.draw(deltas(said)).encode()
    out = fed(EventStreamRedactor(), data.draw(cut(stream)))
    assert no_secret_is_in(out)
    before, after = events_of(stream), events_of(out)
    assert [event[1:] for event in after] == [event[1:] for event in before]
    for event, was in zip(after, before, strict=True):
        assert is_json(event.data) or not is_json(was.data)
    if not list(find(said)):
        assert out == stream


@steady
@given(data=st.data(), said=SAID.map("".join))
def test_a_client_reads_together_what_the_text_would_say(data: st.DataObject, said: str) -> None:
    tokens = [said[start : start + 5] for start in range(0, len(said), 5)]
    stream = "".join(data.draw(fields(f'{{"a": [{spelt_by(data, token)}]}}')) for token in tokens).encode()
    out = fed(EventStreamRedactor(), data.draw(cut(stream)))
    assert "".join(texts_of(events_of(out)).values()) == redact(said)


def spelt_by(data: st.DataObject, text: str) -> str:
    return data.draw(st.composite(spelt)(text))


@steady
@given(data=st.data(), secrets=st.lists(st.sampled_from(SECRETS), min_size=1, max_size=3))
def test_texts_that_take_turns_are_read_each_for_itself(data: st.DataObject, secrets: list[str]) -> None:
    queues = [data.draw(pieces(f" {secret} ")) for secret in secrets]
    turns = []
    while any(queues):
        number = data.draw(st.sampled_from([number for number, queue in enumerate(queues) if queue]))
        turns.append({"choices": [{"index": number, "delta": {"content": queues[number].pop(0)}}]})
    stream = "".join(f"data: {json.dumps(turn)}\n\n" for turn in turns).encode()
    assert no_secret_is_in(fed(EventStreamRedactor(), data.draw(cut(stream))))


@pytest.mark.parametrize("gap", range(2 * PATIENCE))
def test_what_goes_on_after_a_pause_is_never_complete(gap: int) -> None:
    other = [b'data: {"type": "ping"}\n\n'] * gap
    for secret in SECRETS:
        for at in range(1, len(secret)):
            first, second = (json.dumps({"text": part}).encode() for part in (secret[:at], secret[at:]))
            stream = b"".join([b"data: ", first, b"\n\n", *other, b"data: ", second, b"\n\n"])
            out = fed(EventStreamRedactor(), [bytes([byte]) for byte in stream] if at == 1 else stream.splitlines(True))
            assert no_secret_is_in(out)
            if gap < PATIENCE and at > len("email"):
                assert secret[:at].encode() not in out


@steady
@given(text=st.text(st.sampled_from('data:evntiry \n\r\ufeffxé{}[]"1'), max_size=40), cuts=st.data())
@example(text="data", cuts=None)
@example(text="\ufeffdata:x\r\r\ndata\r", cuts=None)
def test_a_stream_with_nothing_to_redact_stays_as_it_is_to_the_byte(text: str, cuts: st.DataObject | None) -> None:
    stream = text.encode()
    assert fed(EventStreamRedactor(), bytewise(stream) if cuts is None else cuts.draw(cut(stream))) == stream


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"id: bob@example.org\nevent: a@b.cc\ndata: x\n\n", b"id: [email]\nevent: [email]\ndata: x\n\n"),
        (b": bob@example.org\n\n", b": [email]\n\n"),
        (b"data: bob@exa\r\rdata: mple.org\r\r", b"data: [email]\r\rdata: \r\r"),
        (b"data: bob@\ndata: example.org\n\n", b"data: bob@\ndata: example.org\n\n"),
        # The blank in front of "now" is text, not the one that may follow the colon.
        (b"data:bob@exa\n\ndata:mple.org now\n\n", b"data:[email]\n\ndata:  now\n\n"),
        (b'data: {"n": 4111111111111111}\n\n', b'data: {"n": "[card]"}\n\n'),
        (b"data: 4111\n\ndata:  1111 1111 1111\n\n", b"data: [card]\n\ndata: \n\n"),
        (b'data: {"a@b.cc": 1, "a@b.cc": 1}\n\n', b'data: {"[email]": 1, "[email]": 1}\n\n'),
        (b'data: {"a":\ndata:  "bob\\u0040example.org"}\n\n', b'data: {"a":\ndata:  "[email]"}\n\n'),
        # The same in every event: no text that goes on, each by itself.
        (b'data: {"c": "4111111111111111"}\n\n' * 3, b'data: {"c": "[card]"}\n\n' * 3),
        (b'data: {"c": "bob@example.org"}\n\n' * 2, b'data: {"c": "[email]"}\n\n' * 2),
        # Not ended, and yet read by some.
        (b"data: bob@example.org", b"data: [email]"),
        (b"\xef\xbb\xbfdata: bob@exa\n\ndata: mple.org\n\n", b"\xef\xbb\xbfdata: [email]\n\ndata: \n\n"),
    ],
)
def test_only_what_is_redacted_changes(stream: bytes, expected: bytes) -> None:
    for chunks in ([stream], bytewise(stream)):
        assert fed(EventStreamRedactor(), chunks) == expected


def delta(**delta: str) -> bytes:
    return b'data: {"id": "x-1", "choices": [{"index": 0, "delta": %s}]}\n\n' % json.dumps(delta).encode()


def test_an_event_is_held_back_only_as_long_as_its_texts_may_go_on() -> None:
    redactor = EventStreamRedactor()
    said = [
        delta(role="assistant", content="Write "),
        *(delta(content=text) for text in ("to ", "bob", "@ex", "a.cc, ")),
    ]
    assert redactor.feed(said[0], False) == b""
    # What is the same in each event is no text that goes on, but the role may go on for a while.
    assert redactor.feed(said[1], False) == b""
    assert redactor.feed(said[2], False) == b""
    assert redactor.feed(said[3], False) == said[0] + said[1]
    assert redactor.feed(said[4], False) == delta(content="[email]") + delta(content="") + delta(content=", ")
    assert redactor.feed(delta(content=" Or "), False) == delta(content=" Or ")


def test_plain_data_are_held_back_up_to_the_end_of_a_word() -> None:
    redactor = EventStreamRedactor()
    assert redactor.feed(b"data: write to \n\n", False) == b"data: write to \n\n"
    assert redactor.feed(b"data: ali\n\ndata: ce\n\n", False) == b""
    assert redactor.feed(b"data: , or\n\n", False) == b"data: ali\n\ndata: ce\n\n"
    assert redactor.feed(b": a comment waits, too\n\n", False) == b""
    assert redactor.feed(b"", True) == b"data: , or\n\n: a comment waits, too\n\n"


def test_comments_between_events_are_not_held_back() -> None:
    redactor = EventStreamRedactor()
    redactor.feed(b"data: hello \n\n", False)
    for _ in range(3):
        assert redactor.feed(b": still there\n\n", False) == b": still there\n\n"


def test_little_is_held_back_of_a_long_stream() -> None:
    redactor = EventStreamRedactor()
    held = 0
    for number in range(2000):
        event = b'data: {"id": "id%d", "kind": "x", "t": "a%d"}\n\n' % (number, number)
        held += len(event) - len(redactor.feed(event, False))
        assert held < 3000


@pytest.mark.parametrize(
    "piece",
    the_first_is_short(
        ["data: a\n\n", 'data: {"a": "1"}\n\n', "data: a\n", "\n", "\r", ": \n\n", "data: [", "x", 'data: ["a"]\r\r']
    ),
)
def test_time_grows_with_the_length_and_not_faster(piece: str) -> None:
    # With the square of it this would take minutes.
    stream = (piece * (100_000 // len(piece))).encode()
    assert fed(EventStreamRedactor(), [stream]) == fed(EventStreamRedactor(), bytewise(stream)) == stream


def test_no_event_is_too_deep() -> None:
    event = "data: " + "[" * 100_000 + '"bob\\u0040example.org"' + "]" * 100_000 + "\n\n"
    assert fed(EventStreamRedactor(), [event.encode()]).decode() == event.replace("bob\\u0040example.org", "[email]")
