"""The messages of one direction: which text they say together, and which message it leaves in."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest

from asgi_agents.guardrails import Block, Window
from asgi_agents.guardrails.dialects.cut_json import rest_of
from asgi_agents.guardrails.dialects.realtime import ServerEvents
from asgi_agents.guardrails.judges import Inspection, Judge, Judges
from asgi_agents.guardrails.message import MAX_MESSAGE_BYTES, Payload
from asgi_agents.guardrails.message_stream import MessageStream
from asgi_agents.guardrails.windows import WindowLimits
from tests.guardrails.detectors import CARD, EMAIL, HOLD, Detector, detector, redacted
from tests.guardrails.driving import EVERYTHING, LOCAL, limits

TEXT: Final = (
    "Write to alice.smith@example.com or, if that fails, to bob@example.org; the card is 4111 1111 1111 1111, and the "
    "other one 5500-0000-0000-0004. Nothing else matters. \u00e9\U0001f600 carol.jones@sub.example.co is the last."
)
SEEDS: Final = range(40)


class Driving:
    """Passes messages of one direction; verdicts come at once, or late with ``rng``."""

    def __init__(self, stream: MessageStream, check: Detector, rng: random.Random | None = None) -> None:
        self.stream = stream
        self.out: list[Payload] = []
        self.now = 0.0
        self._check = check
        self._rng = rng
        self._waiting: list[Inspection] = []

    def feed(self, *messages: Payload) -> list[Payload]:
        before = len(self.out)
        for message in messages:
            while self.stream.full:
                self._judge(all_of_it=True)
            self.stream.feed([message], self.now)
            self._judge(all_of_it=self._rng is None)
        return self.out[before:]

    def wait(self, seconds: float) -> list[Payload]:
        before = len(self.out)
        self.now += seconds
        self.stream.tick(self.now)
        self._judge(all_of_it=True)
        return self.out[before:]

    def end(self) -> list[Payload]:
        self.stream.end(self.now)
        self._judge(all_of_it=True)
        return self.out

    def _judge(self, *, all_of_it: bool) -> None:
        rng = self._rng
        while True:
            self._waiting += self.stream.inspections()
            if not self._waiting or (rng is not None and not all_of_it and rng.random() < 0.4):
                break
            inspection = self._waiting.pop(rng.randrange(len(self._waiting)) if rng is not None else 0)
            self.stream.verdict(inspection, self._check(inspection.window), self.now)
        self.out += self.stream.take()


def driving(
    check: Detector = EVERYTHING,
    *,
    judge: Judge = LOCAL,
    from_client: bool = False,
    strict: bool = True,
    rng: random.Random | None = None,
    silence: float = 0.5,
) -> Driving:
    judges = Judges([judge if rng is None else Judge(name="local", limits=limits(rng))])
    return Driving(
        MessageStream(judges, from_client=from_client, strict=strict, speaks_realtime=True, silence=silence), check, rng
    )


def cut(text: str, rng: random.Random) -> list[str]:
    """``text`` in pieces."""
    pieces: list[str] = []
    at = 0
    while at < len(text):
        size = rng.choice((1, 2, 3, rng.randrange(1, 40)))
        pieces.append(text[at : at + size])
        at += size
    return pieces


def delta(text: str, number: int, **fields: Any) -> str:
    event = {
        "type": "response.output_text.delta",
        "event_id": f"event_{number}",
        "response_id": "resp_1",
        "item_id": "item_1",
        "output_index": 0,
        "content_index": 0,
        "delta": text,
        **fields,
    }
    return json.dumps(event, ensure_ascii=False)


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, "event_id": "event_x", **fields})


def said(messages: Sequence[Payload], kind: str = "response.output_text.delta", field: str = "delta") -> str:
    events = [json.loads(message) for message in messages]
    return "".join(event[field] for event in events if event["type"] == kind)


# The shapes in which a text may be cut into messages, and how it is put together again.
Shape = tuple[Callable[[Sequence[str]], list[Payload]], Callable[[Sequence[Payload]], str]]
SHAPES: Final[dict[str, Shape]] = {
    "text": (list, lambda messages: "".join(map(str, messages))),
    "bytes": (
        lambda pieces: [piece.encode() for piece in pieces],
        lambda messages: b"".join(message for message in messages if isinstance(message, bytes)).decode(),
    ),
    "json": (
        lambda pieces: [json.dumps({"n": n, "chunk": {"text": piece}}) for n, piece in enumerate(pieces)],
        lambda messages: "".join(json.loads(message)["chunk"]["text"] for message in messages),
    ),
    "realtime": (
        lambda pieces: [
            *(delta(piece, number) for number, piece in enumerate(pieces)),
            event(
                "response.output_text.done",
                response_id="resp_1",
                item_id="item_1",
                output_index=0,
                content_index=0,
                text="".join(pieces),
            ),
        ],
        said,
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_however_a_text_is_cut_into_messages_it_leaves_as_all_of_it_would(shape: str, seed: int) -> None:
    rng = random.Random(f"{shape} {seed}")  # noqa: S311
    make, joined = SHAPES[shape]
    given = make(cut(TEXT, rng))

    out = driver_out(given, rng if seed % 2 else None)

    assert joined(out) == redacted(TEXT, EVERYTHING) != TEXT
    assert len(out) == len(given)
    if shape == "realtime":
        assert json.loads(out[-1])["text"] == redacted(TEXT, EVERYTHING)


@pytest.mark.parametrize("shape", SHAPES)
def test_messages_that_nobody_changes_are_the_very_same(shape: str) -> None:
    rng = random.Random(shape)  # noqa: S311
    given = SHAPES[shape][0](cut(TEXT, rng))

    out = driver_out(given, rng, check=lambda window: ())

    assert len(out) == len(given)
    assert all(after is before for after, before in zip(out, given, strict=True))


@pytest.mark.parametrize("seed", SEEDS)
def test_messages_in_which_nothing_was_found_are_the_very_same(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    given = SHAPES["json"][0](cut(TEXT, rng))

    out = driver_out(given, rng)

    kept = sum(after is before for after, before in zip(out, given, strict=True))
    changed = sum(json.loads(after) != json.loads(before) for after, before in zip(out, given, strict=True))
    assert kept + changed == len(given)
    assert kept > 0 < changed


def driver_out(
    given: Sequence[Payload], rng: random.Random | None, check: Detector = EVERYTHING, **options: Any
) -> list[Payload]:
    driver = driving(check, rng=rng, **options)
    driver.feed(*given)
    out = driver.end()
    assert driver.stream.done
    assert driver.stream.ending is None, driver.stream.ending
    assert driver.stream.held == driver.stream.waiting == 0
    return out


def test_text_stays_text_and_bytes_stay_bytes() -> None:
    driver = driving()
    driver.feed("to alice@example.com", b" and bob@example.com", "!")
    assert driver.end() == ["to [0]", b" and [0]", "!"]


def test_what_is_held_leaves_when_no_message_has_come_for_a_while() -> None:
    driver = driving(judge=Judge(name="local", limits=WindowLimits(hold=HOLD, window=4 * HOLD)))

    assert driver.feed("hello") == []
    assert driver.stream.wake_at() == 0.5
    assert driver.wait(0.4) == []
    assert driver.wait(0.2) == ["hello"]
    assert driver.stream.wake_at() is None


def test_text_behind_a_silence_is_judged_with_what_precedes_it() -> None:
    shown: list[str] = []

    def check(window: Window) -> Any:
        shown.append(window.text)
        return EVERYTHING(window)

    driver = driving(check)
    driver.feed("alice@exam")
    driver.wait(1.0)
    driver.feed("ple.com")
    out = driver.end()

    # What has left can't be changed; what follows is a part of the same find.
    assert shown[-1] == "alice@example.com"
    assert out == ["alice@exam", "[0]"]


def test_no_silence_ends_a_text_of_a_dialect_that_says_itself_when_it_ends() -> None:
    driver = driving()
    driver.feed(delta("write to alice@exam", 0))
    driver.wait(10.0)
    out = driver.feed(delta("ple.com", 1), delta(" now", 2))
    out += driver.feed(event("response.output_text.done", response_id="resp_1", item_id="item_1", text="x"))
    assert said(driver.out) == "write to [0] now"


_TRANSCRIPTION: Final = "conversation.item.input_audio_transcription"
_AUDIO: Final = event("response.output_audio.delta", response_id="r", item_id="i", delta="UklGRiQAAABXQVZF" * 40)
_ITEM: Final = {"id": "i", "type": "message", "role": "assistant", "content": []}
_ADDED: Final = event("response.output_item.added", response_id="r", output_index=0, item=_ITEM)
_INTERRUPTED: Final[dict[str, list[str]]] = {
    kind: [event(f"{_TRANSCRIPTION}.delta", item_id="u", content_index=0, delta="mail alice@example.com"), ends]
    for kind in ("deleted", "truncated")
    for ends in [event(f"conversation.item.{kind}", item_id="u")]
} | {
    name: [*added, delta("mail alice@example.com", 0, response_id="r", item_id="i"), done]
    for done in [event("response.done", response={"id": "r", "status": "cancelled", "output": []})]
    for name, added in (
        ("known at once", [_ADDED]),
        ("known of its response", [_ADDED, event("conversation.item.added", item=_ITEM)]),
        ("known before its response", [event("conversation.item.added", item=_ITEM), _ADDED]),
    )
}


@pytest.mark.parametrize("name", _INTERRUPTED)
def test_a_text_of_a_dialect_that_is_interrupted_holds_nothing(name: str) -> None:
    driver = driving()
    out = driver.feed(*_INTERRUPTED[name], _AUDIO)
    assert len(out) == len(_INTERRUPTED[name]) + 1
    assert json.loads(out[-3])["delta"] == "mail [0]"


def test_a_text_of_a_dialect_that_never_ends_holds_nothing_for_ever() -> None:
    driver = driving()
    driver.feed(event(f"{_TRANSCRIPTION}.delta", item_id="u", content_index=0, delta="mail alice@example.com"))
    for _ in range(100):
        driver.now += 0.25
        driver.feed(_AUDIO)
    assert driver.out == []
    assert driver.stream.wake_at() is not None
    for _ in range(100):
        driver.wait(0.25)
        driver.feed(_AUDIO)
    assert json.loads(driver.out[0])["delta"] == "mail [0]"
    assert len(driver.out) > 100


_CUT: Final = '{"n": [1, tr, {"to": "alice\\u0040example.com'.replace("tr,", "true,")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("item_status", ["incomplete", None])
def test_arguments_that_were_interrupted_leave_judged(item_status: str | None, size: int, strict: bool) -> None:
    at = {"response_id": "r", "item_id": "i", "output_index": 0}
    kind = "response.function_call_arguments"
    item = {"id": "i", "type": "function_call", "name": "mail", "call_id": "c", "arguments": ""}
    full = {**item, "arguments": _CUT, "status": "incomplete"}
    given = [
        event("conversation.item.added", item=item),
        event("response.output_item.added", response_id="r", output_index=0, item=item),
        *(event(f"{kind}.delta", **at, delta=_CUT[n : n + size]) for n in range(0, len(_CUT), size)),
        event(f"{kind}.done", **at, name="mail", arguments=_CUT),
        *([event("response.output_item.done", response_id="r", output_index=0, item=full)] if item_status else []),
        event("response.done", response={"id": "r", "status": "cancelled", "output": [full] if item_status else []}),
        event("response.created", response={"id": "s"}),
    ]
    driver = driving(strict=strict)
    out = driver.feed(*given)

    assert driver.stream.ending is None
    events = [json.loads(message) for message in out]
    assert len(events) == len(given)
    changed = '{"n": [1, true, {"to": "[0]"'
    assert said(out, f"{kind}.delta") == changed
    assert said(out, f"{kind}.done", "arguments") == changed
    if item_status:
        assert events[-3]["item"]["arguments"] == events[-2]["response"]["output"][0]["arguments"] == changed


@pytest.mark.parametrize(
    "text", ['{"a\\u00e9": [1.5e-3, "b\\\\\\"", {"c": true, "d": null}, [], -2], "e": {}}', ' "x" ', "[[]]"]
)
def test_json_may_be_cut_anywhere(text: str) -> None:
    for end in range(1, len(text)):
        if text[:end].strip():
            assert rest_of(text[:end]) is not None, text[:end]
    assert rest_of("{]") is rest_of("}") is rest_of("{a") is None


def test_a_call_is_held_until_it_has_ended_however_long_that_takes() -> None:
    at = {"response_id": "r", "item_id": "i"}
    kind = "response.function_call_arguments"
    driver = driving()
    driver.feed(event(f"{kind}.delta", **at, delta='{"to": "alice@'))
    for _ in range(10):
        assert driver.wait(31.0) == []
        wake = driver.stream.wake_at()
        assert wake is None or wake > driver.now
    driver.feed(event(f"{kind}.delta", **at, delta='example.com"}'), event(f"{kind}.done", **at, arguments=""))
    assert said(driver.out, f"{kind}.delta") == '{"to": "[0]"}'


def test_tools_of_items_without_an_id_are_not_remembered() -> None:
    driver = driving()
    for number in range(500):
        item = {"id": number, "type": "function_call", "name": "mail", "arguments": "{}"}
        for kind in ("added", "done"):
            driver.feed(event(f"response.output_item.{kind}", response_id="r", item=item))
    assert isinstance(driver.stream._dialect, ServerEvents)
    assert len(driver.stream._dialect._tools) <= 64
    assert driver.stream.ending is None


def test_a_block_leaves_what_was_released_before_and_nothing_else() -> None:
    def check(window: Window) -> Any:
        return [Block("no")] if "secret" in window.text else []

    driver = driving(check)
    driver.feed("a" * 500, "secret")
    assert driver.stream.ending is not None
    assert driver.stream.ending.stop.message == "no"
    assert "secret" not in "".join(map(str, driver.out))
    driver.feed("more")
    assert driver.stream.take() == []


def test_json_in_text_is_judged_with_its_escapes_read() -> None:
    message = '{"to": "alice\\u0040example.com"}'
    driver = driving()
    driver.feed("some text first", message, '"bob\\u0040example.com"')
    assert [json.loads(m) for m in driver.end()[1:]] == [{"to": "[0]"}, "[0]"]


_PREFIXES: Final = (
    *(
        "42",
        "4",
        "451-",
        "42/admin,",
        "42/admin,17",
        "4312",
        "42" + "1" * 11,
        "42" + "1" * 99,
        "42\u0663",
        "\u0664\u0662",
    ),
    *("42/?" + "a" * 140 + ",", "42/a b?,", "42/a b?[,", '42/"{,9', "42 ", "42/admin,17\n\t", "42\u06631-/admin,"),
)


@pytest.mark.parametrize("prefix", _PREFIXES)
def test_messages_of_socket_io_are_judged_with_their_escapes_read(prefix: str) -> None:
    # Ids of many digits may be called cards.
    driver = driving(detector(EMAIL))
    driver.feed("2", f'{prefix}["say", {{"to": "alice\\u0040example.com"}}]', f'{prefix}["say", "none"]', "3")
    assert driver.end() == ["2", f'{prefix}["say", {{"to": "[0]"}}]', f'{prefix}["say", "none"]', "3"]


def test_a_message_of_socket_io_may_be_a_string() -> None:
    driver = driving()
    driver.feed('42"alice\\u0040example.com"', ' 12" of pipe', '4" of it', "42[no JSON]", "42/")
    assert driver.end() == ['42"[0]"', ' 12" of pipe', '4" of it', "42[no JSON]", "42/"]


def test_a_key_that_is_there_twice_behind_a_prefix_hides_nothing() -> None:
    driver = driving()
    driver.feed('42\u0663[{"to": "alice\\u0040example.com", "to": "x"}]')
    assert driver.end() == ['42\u0663[{"to": "[0]", "to": "x"}]']


def test_what_precedes_the_json_of_a_message_is_judged_too() -> None:
    driver = driving()
    driver.feed('42/alice@example.com,["!"]', b'42/bob@example.com,["carol@example.com"]')
    assert driver.end() == ['42/[0],["!"]', b'42/[0],["[0]"]']


def test_a_key_that_is_there_twice_hides_nothing() -> None:
    driver = driving()
    driver.feed('{"to": "alice@example.com", "to": "x"}')
    assert driver.end() == ['{"to": "[0]", "to": "x"}']


UNREADABLE: Final[dict[str, Payload]] = {
    "bytes that are no UTF-8": b"\xff\xfe\x00\x01",
    "JSON in UTF-16": '{"a": "alice@example.com"}'.encode("utf-16-le"),
    "JSON with a byte order mark": b'\xef\xbb\xbf{"a": "alice\\u0040example.com"}',
    "text that is JSON in UTF-16 when it is encoded": '{"a": "alice\\u0040example.com"}'.encode("utf-16-le").decode(),
    "JSON in UTF-16 that is too deep": ("[" * 100_000).encode("utf-16-le"),
    "a lone surrogate": "\ud800",
    "nested too deep": "[" * 300 + '"alice\\u0040example.com"' + "]" * 300,
    "too long": "x" * (MAX_MESSAGE_BYTES + 1),
}


@pytest.mark.parametrize("given", ["\x00a", b"\x00ls\n", b"\x00", b"l\x00s\x00", "\x00\x00\x00a"])
def test_zeros_do_not_make_a_message_unreadable(given: Payload) -> None:
    behind: Payload = " alice@example.com" if isinstance(given, str) else b" alice@example.com"
    driver = driving()
    driver.feed(given, behind)
    assert driver.end() == [given, " [0]" if isinstance(given, str) else b" [0]"]


@pytest.mark.parametrize("from_client", [True, False])
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_can_not_be_read_stops_a_strict_stream_and_passes_another(name: str, from_client: bool) -> None:
    strict = driving(from_client=from_client)
    strict.feed("before", UNREADABLE[name])
    assert strict.stream.ending is not None
    assert strict.stream.ending.blocked is None
    assert UNREADABLE[name] not in strict.out

    lenient = driving(from_client=from_client, strict=False)
    lenient.feed("before", UNREADABLE[name], "behind alice@example.com")
    assert lenient.end() == ["before", UNREADABLE[name], "behind [0]"]
    assert lenient.stream.unreadable == 1


def test_texts_of_a_client_are_input_and_those_of_the_app_output() -> None:
    for from_client, kind in ((True, "input"), (False, "output")):
        stream = MessageStream(Judges([LOCAL]), from_client=from_client)
        stream.feed(['{"a": "x"}', "text"], 0.0)
        stream.end(0.0)
        assert {inspection.slot.kind for inspection in stream.inspections()} == {kind}


def test_many_paths_do_not_fill_memory() -> None:
    driver = driving(detector(EMAIL, CARD), from_client=True, silence=1e9)
    for number in range(3000):
        driver.feed(json.dumps({f"k{number}": "a@b.co"}))
    assert driver.stream._release.open < 1200
    assert len(driver.stream._release._json.changed) < 300


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("size", [2, 8])
def test_many_bytes_at_once_leave_and_stop_nothing(size: int, late: bool) -> None:
    padding = " " * ((size << 20) - 1000)
    shapes: list[Callable[[str], str]] = [lambda text: json.dumps({"n": text}), lambda text: delta(text, 0)]
    for shape in shapes:
        texts = ["hi ", "mail alice@exam", *(["hi "] * (24 // size))]
        given: list[Payload] = [shape(text) + padding for text in texts]
        judge = Judge(name="local", limits=WindowLimits(hold=HOLD, window=4 * HOLD, max_hold=1e9))
        driver = driving(detector(EMAIL), judge=judge, silence=1e9)
        for message in given:
            while driver.stream.full:
                driver._judge(all_of_it=True)
            driver.stream.feed([message], 0.0)
            if not late:
                driver._judge(all_of_it=True)
            else:
                driver._waiting += driver.stream.inspections()
        assert driver.end() == given
        assert driver.stream.ending is None


def test_empty_messages_and_those_without_text_keep_their_place() -> None:
    given: list[Payload] = ["one", "", b"", "{}", "[1]", "null", '{"n": 1}', "two"]
    assert driver_out(given, None) == given
