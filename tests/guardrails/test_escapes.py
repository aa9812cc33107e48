"""What messages of websockets say behind escapes of JSON, whatever carries the JSON in them."""

import json
import random
import re
from collections.abc import Callable
from typing import Any, Final

import pytest

from asgi_agents.guardrails import Block, Decision, Window
from asgi_agents.guardrails.escapes import MAX_LEVELS, MAX_RUNS, runs_in
from asgi_agents.guardrails.framing import TooComplexError
from asgi_agents.guardrails.message import Payload
from tests.guardrails.detectors import EMAIL, detector
from tests.guardrails.driving import EVERYTHING
from tests.guardrails.test_message_stream import delta, driving

CARD: Final = "4111111111111111"


def hidden(text: str) -> str:
    """A literal of JSON in which every letter is escaped."""
    return '"' + "".join(f"\\u{ord(letter):04x}" for letter in text) + '"'


def document(text: str = CARD) -> str:
    return f'{{"type": 1, "said": {hidden(text)}}}'


def stomp(body: str, header: str = "subscription:0") -> str:
    return f"MESSAGE\ndestination:/topic/a\n{header}\n\n{body}\x00"


def literal(text: str) -> str:
    return json.dumps(text)


#: What carries JSON in a message, given a document.
FRAMINGS: Final[dict[str, Callable[[str], str]]] = {
    "JSON": str,
    "a document a line": lambda body: f'{{"type": 0}}\n{body}\n{{"type": 2, "to": "b\\u0061r"}}\n',
    "documents in a row": lambda body: f"{body}{body} {body}",
    "lines of which one is cut": lambda body: f'{{"cut": "\n{body}',
    "SignalR": lambda body: f'{{"protocol":"json","version":1}}\x1e{body}\x1e',
    "RFC 7464": lambda body: f"\x1e{body}\n\x1e{body}\n",
    "STOMP": stomp,
    "STOMP, a quote in a header": lambda body: stomp(body, 'note:5" of it'),
    "STOMP, a backslash at the end of a header": lambda body: stomp(body, "note:\\"),
    "SockJS": lambda body: f"a[{literal(body)}]",
    "SockJS, two at once": lambda body: f"a[{literal('hello')},{literal(body)}]",
    "SockJS, one message": lambda body: f"m{literal(body)}",
    "SockJS, of the client": lambda body: json.dumps([body]),
    "SockJS with STOMP": lambda body: f"a[{literal(stomp(body))}]",
    "SockJS with STOMP, of the client": lambda body: json.dumps([stomp(body)]),
    "JSON in a string": lambda body: json.dumps({"n": 1, "payload": body}),
    "JSON in a string in a string": lambda body: json.dumps({"payload": json.dumps({"payload": body})}),
    "JSON in a string, escaped further": lambda body: json.dumps({"payload": body}).replace("\\\\", "\\u005c"),
    "JSON in a string of a batch": lambda body: json.dumps([{"m": [{"payload": body}]}]),
    "JSON in a key that is there twice": lambda body: f'{{"m": {literal(body)}, "m": "x"}}',
    "Socket.IO": lambda body: f'42["say", {literal(body)}]',
    "Engine.IO, several packets": lambda body: f"4{body}\x1e4{body}",
    "length first": lambda body: f"{len(body)}:{body}",
    "words first": lambda body: f"PUBLISH room {body}",
    "a stray quote first": lambda body: f'say " {body}',
    "an escaped quote first": lambda body: f'say \\" {body}',
    "a backslash first": lambda body: f"say \\{body}",
    "an apostrophe and single quotes": lambda body: f"it's {{'a': {body}}}",
    "a script": lambda body: f"onmessage({{said: {body}, more: undefined}});",
    "server-sent events": lambda body: f"event: message\ndata: {body}\n\n",
    "JSON that is cut": lambda body: body[:-1],
}


def left(message: Payload, **options: Any) -> str:
    driver = driving(**options)
    driver.feed(message)
    (out,) = driver.end()
    assert driver.stream.ending is None
    assert driver.stream.held == driver.stream.waiting == 0
    assert type(out) is type(message)
    return out if isinstance(out, str) else out.decode()


def read(text: str) -> str:
    """All that anybody may read in it."""
    seen = [text]
    while (more := re.sub(r"\\+u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), seen[-1])) != seen[-1]:
        seen.append(more)
    return "\n".join(seen)


@pytest.mark.parametrize("from_client", [True, False])
@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("name", FRAMINGS)
def test_escapes_hide_nothing_whatever_carries_the_json(name: str, as_bytes: bool, from_client: bool) -> None:
    frame = FRAMINGS[name]
    for text, after in ((CARD, "[1]"), ("alice@example.com", "[0]"), ("4111 1111 1111 1111", "[1]")):
        message = frame(document(text))
        assert text not in message
        assert text in read(message)
        out = left(message.encode() if as_bytes else message, from_client=from_client)
        assert text not in read(out)
        assert after in out
        assert len(out) > len(frame(document(""))) - 10


# What counts letters is not told that there are fewer.
@pytest.mark.parametrize("name", [name for name in FRAMINGS if name != "length first"])
def test_what_carries_the_json_stays_and_so_does_the_json(name: str) -> None:
    frame = FRAMINGS[name]
    assert left(frame(document())).replace(" ", "") in (
        frame(f'{{"type": 1, "said": "{after}"}}').replace(" ", "") for after in ("[1]", "[[1]]")
    )


@pytest.mark.parametrize("name", FRAMINGS)
def test_a_message_in_which_nothing_is_found_is_the_very_same(name: str) -> None:
    message = FRAMINGS[name](document("a caf\u00e9 \U0001f600"))
    driver = driving()
    driver.feed(message)
    assert driver.end()[0] is message


#: Messages that are called as events of the Realtime API are.
MISCALLED: Final[list[tuple[bool, dict[str, Any]]]] = [
    (True, {"type": "conversation.item.create", "item": 5}),
    (True, {"type": "conversation.item.create", "item": "x"}),
    (True, {"type": "conversation.item.create", "item": []}),
    (True, {"type": "conversation.item.create", "item": {"type": "message", "content": 5}}),
    (True, {"type": "conversation.item.create", "item": {"type": "message", "content": {}}}),
    (True, {"type": "response.create", "response": 7}),
    (True, {"type": "session.update", "session": True}),
    (False, {"type": "response.done", "response": 5}),
    (False, {"type": "response.done", "response": None}),
    (False, {"type": "response.done", "response": {"id": "r", "output": 3}}),
    (False, {"type": "response.output_item.added", "item": 3}),
    (False, {"type": "response.output_item.done", "item": 3}),
    (False, {"type": "response.output_text.delta", "delta": 5}),
    (False, {"type": "response.output_text.delta", "delta": ["x"]}),
    (False, {"type": "response.function_call_arguments.done", "arguments": {}}),
    # These are events, and have a member that none has.
    (True, {"type": "session.update", "session": {"type": "realtime", "instructions": "be kind"}}),
    (True, {"type": "input_audio_buffer.append", "audio": "UklG"}),
    (False, {"type": "rate_limits.updated"}),
    (False, json.loads(delta("hello", 1))),
]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("from_client", "message"), MISCALLED)
def test_escapes_hide_nothing_in_what_is_only_called_an_event(
    from_client: bool, message: dict[str, Any], waits: bool
) -> None:
    given = json.dumps({**message, "payload": document()})
    driver = driving(from_client=from_client, rng=random.Random(1) if waits else None)  # noqa: S311
    driver.feed(*(["a\\u0034 "] if waits else []), given)
    out = driver.end()
    assert driver.stream.ending is None
    assert len(out) == 1 + waits
    assert CARD in read(given)
    assert CARD not in read(str(out[-1]))


@pytest.mark.parametrize("escape", ["\\/", "\\n", "\\t", "\\u0020", "\\\\", '\\"'])
def test_all_escapes_are_read(escape: str) -> None:
    def check(window: Window) -> list[Decision]:
        return [Block("no")] if json.loads(f'"pass{escape}word"') in window.text else []

    for message in (f'a["pass{escape}word"]', f'{{"a": 1}}\n{{"m": "pass{escape}word"}}', f"pass{escape}word"):
        driver = driving(check)
        driver.feed(message)
        driver.end()
        assert driver.stream.ending is not None
        assert driver.out == []


def nested(text: str, levels: int) -> str:
    for _ in range(levels):
        text = literal(text)
    return text


def test_texts_are_read_to_a_bounded_depth_and_no_deeper() -> None:
    deepest = nested(document(), MAX_LEVELS - 1)
    assert CARD not in read(left("a" + deepest))
    deeper = "a" + nested(document(), MAX_LEVELS)
    strict = driving()
    strict.feed(deeper)
    assert strict.stream.ending is not None
    assert strict.stream.unreadable == 1
    lenient = driving(strict=False)
    lenient.feed("a\\u0034 ", deeper, "alice@example.com")
    assert lenient.end() == ["a\\u0034 ", deeper, "[0]"]
    assert lenient.stream.unreadable == 1


def test_there_may_be_so_many_texts_and_no_more() -> None:
    assert len(runs_in('"\\n"' * MAX_RUNS)) == MAX_RUNS
    with pytest.raises(TooComplexError, match="more than 20000 texts"):
        runs_in('"\\n"' * (MAX_RUNS + 1))


@pytest.mark.parametrize("message", ['x"\\n"', "a" + json.dumps(json.dumps('"\n"'))])
def test_no_more_comes_while_many_texts_wait_for_verdicts(message: str) -> None:
    driver = driving(rng=random.Random(2))  # noqa: S311
    stream = driver.stream
    many = message * (MAX_RUNS // 4)
    fed = 0
    while not stream.full and fed < 8:
        stream.feed([many], 0.0)
        driver._waiting += stream.inspections()
        fed += 1
    assert stream.full
    assert fed <= 5
    driver._judge(all_of_it=True)
    assert not stream.full
    driver.end()
    assert driver.out == [many] * fed
    assert stream.waiting == stream.held == 0


@pytest.mark.parametrize("text", ["\\" * 100_000, "\\u005c" + "u005c" * 100_000, '\\"' * 100_000, "\\u" * 100_000])
def test_long_rows_of_escapes_take_no_long_time(text: str) -> None:
    try:
        assert len(runs_in(text)) <= 1
    except TooComplexError as exc:
        assert "escaped more than 8 times" in str(exc)  # noqa: PT017


_WORDS: Final = ("alice@example.com", "4111 1111 1111 1111", "hello", "\u00e9", "12", "\n", '"', "\\", "\\d", "{", "[")


@pytest.mark.parametrize("seed", range(200))
def test_messages_keep_their_order_and_their_parts(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    given: list[str] = []
    for _ in range(rng.randrange(1, 12)):
        body = json.dumps({"said": "".join(rng.choices(_WORDS, k=3))}, ensure_ascii=rng.random() < 0.5)
        if rng.random() < 0.5:
            body = body.replace("@", "\\u0040").replace("4111", "\\u0034111")
        given.append(rng.choice(list(FRAMINGS.values()))(body) if rng.random() < 0.8 else f"text {body}")
    driver = driving(rng=rng if seed % 2 else None)
    driver.feed(*given)
    out = driver.end()

    assert driver.stream.ending is None
    assert driver.stream.held == driver.stream.waiting == 0
    assert len(out) == len(given)
    for after in out:
        assert isinstance(after, str)
        for found in ("alice@example.com", "4111 1111 1111 1111"):
            assert found not in read(after)
    if not any(found in read("".join(given)) for found in ("@example.com", "1111")):
        assert out == given


def test_a_block_behind_an_escape_stops_the_stream_and_what_waits_behind_it() -> None:
    def check(window: Window) -> list[Decision]:
        return [Block("no")] if CARD in window.text else []

    driver = driving(check, rng=random.Random(4))  # noqa: S311
    driver.feed("before ", f"a[{literal(document())}]", "behind")
    driver.end()
    assert driver.stream.ending is not None
    assert driver.stream.ending.stop.message == "no"
    assert "behind" not in driver.out
    assert driver.stream.waiting == driver.stream.held == 0


def test_what_waits_behind_a_text_that_is_not_judged_yet_is_counted() -> None:
    driver = driving()
    stream = driver.stream
    stream.feed(["a\\u0034!", "b", '{"t": "alice@example.com"}', b"\xff"], 0.0)
    assert (stream.waiting, stream.held > 0, stream.unreadable) == (4, True, 0)
    driver._judge(all_of_it=True)
    # The last one can't be read, which is known when it is read.
    assert stream.ending is not None
    assert stream.unreadable == 1


def test_a_pause_ends_what_is_read_late_too() -> None:
    driver = driving(detector(EMAIL))
    driver.stream.feed(["mail \\u0061lice@example.com", "and"], 0.0)
    driver.stream.tick(1.0)
    assert driver.stream.take() == []
    driver._judge(all_of_it=True)
    assert driver.out == ["mail [0]", "and"]


def test_the_escapes_of_one_reader_are_letters_to_another() -> None:
    # A reader of text sees a card behind "u"; a reader of JSON sees none.
    assert "4111 1111 1111 1111" not in left('a["\\u4111 1111 1111 1111"]', check=EVERYTHING)


def test_a_text_that_is_cut_over_frames_is_not_joined() -> None:
    """A limit: the parts are under one path only to a reader that knows the framing."""
    given = [f"a[{literal(json.dumps({'delta': part}))}]" for part in ("4111 1111 ", "1111 1111")]
    driver = driving()
    driver.feed(*given)
    assert driver.end() == given
