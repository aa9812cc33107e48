"""No text passes unjudged for standing where its dialect has none, or where events have no text."""

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from asgi_agents.guardrails.dialect import Dialect
from asgi_agents.guardrails.dialects.anthropic import Anthropic
from asgi_agents.guardrails.dialects.chat import Chat
from asgi_agents.guardrails.dialects.gemini import Gemini
from asgi_agents.guardrails.dialects.known import of_answer, of_stream
from asgi_agents.guardrails.dialects.responses import Responses
from asgi_agents.guardrails.dialects.unknown import Events
from asgi_agents.guardrails.json_text import JSON
from asgi_agents.guardrails.judges import Inspection, Judges
from asgi_agents.guardrails.operations import Operation
from asgi_agents.guardrails.stream import Stream
from asgi_agents.guardrails.uncovered import uncovered
from tests.guardrails.driving import EVERYTHING, LOCAL, Driver, judged_body, passed
from tests.guardrails.samples import SAMPLES, Cut, Sample, events_of
from tests.guardrails.test_body import ANSWERS, REQUESTS
from tests.support.examples import some_are_short

SSE = "text/event-stream"
ENTITY = "alice.smith@example.com"
_UNKNOWN: Any = ({"zzz": ENTITY}, {"zzz": [{"yyy": [ENTITY, 1]}]})
_WITH_JSON = [sample for sample in SAMPLES if sample.name not in ("text", "pointers")]


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from objects_in(inner)


def planted(value: Any) -> Iterator[Any]:
    """``value`` with a member more in one of its objects, whose type is another in every second one."""
    for index, _ in enumerate(objects_in(value)):
        for member in _UNKNOWN:
            changed = copy.deepcopy(value)
            holder = list(objects_in(changed))[index]
            holder.update(copy.deepcopy(member))
            yield changed
            if isinstance(holder.get("type"), str):
                changed = copy.deepcopy(changed)
                list(objects_in(changed))[index]["type"] = "xxx"
                yield changed


def shape_of(value: Any) -> Any:
    match value:
        case dict():
            kind = value.get("type")
            return (kind, *((key, shape_of(member)) for key, member in value.items()))
        case list():
            return tuple(map(shape_of, value))
    return type(value)


def plantings(events: Sequence[bytes]) -> Iterator[bytes]:
    """Streams in one event of which there is a member more."""
    seen = set()
    for index, event in enumerate(events):
        start, end = event.find(b"{"), event.rfind(b"}") + 1
        if not end:
            continue
        value = json.loads(event[start:end])
        if (shape := shape_of(value)) in seen:
            continue
        seen.add(shape)
        for changed in planted(value):
            new = event[:start] + json.dumps(changed).encode() + event[end:]
            yield b"".join([*events[:index], new, *events[index + 1 :]])


def check(dialects: Sequence[Dialect], media_type: str, data: bytes) -> None:
    drive = Driver(Stream(dialects, media_type, Judges([LOCAL])), {"local": EVERYTHING})
    drive.feed(data)
    drive.end()
    assert ENTITY.encode() not in drive.sent
    if drive.stream.ending is None and drive.sent != (expected := data.replace(ENTITY.encode(), b"[0]")):
        # With a changed text the probabilities of its tokens are left out.
        assert [without_tokens(event) for event in events_of(drive.sent)] == [
            without_tokens(event) for event in events_of(expected)
        ]


def without_tokens(event: Any) -> Any:
    return {**event, "choices": [{**choice, "logprobs": None} for choice in event["choices"]]}


@pytest.mark.parametrize("sample", some_are_short(_WITH_JSON, one_in=4), ids=lambda sample: sample.name)
def test_no_member_more_of_an_event_passes_unjudged(sample: Sample) -> None:
    texts = {name: '{"a": "x y"}' if name.startswith("json") else "some words " for name in sample.texts}
    events = sample.stream(texts, Cut(random.Random(1)))  # noqa: S311
    several = of_stream(Events(), sample.media_type)
    for data in plantings(events):
        check([sample.dialect], sample.media_type, data)
        check(several, sample.media_type, data)


@pytest.mark.parametrize(("dialect", "answer"), ANSWERS, ids=lambda given: getattr(given, "name", ""))
def test_no_member_more_of_an_answer_passes_unjudged(dialect: Dialect, answer: Any) -> None:
    if dialect.name == "json":
        # Where its text is was said by its user.
        return
    for value in planted(answer):
        for knowing in (dialect, of_answer(Events(), value)):
            body = judged_body(json.dumps(value).encode(), knowing.answer)
            assert body.data is not None
            assert ENTITY.encode() not in body.data


@pytest.mark.parametrize(("dialect", "request_"), [case[:2] for case in REQUESTS])
def test_no_member_more_of_a_request_passes_unjudged(dialect: Dialect, request_: Any) -> None:
    if dialect.name == "json":
        return

    def operations(value: JSON) -> list[Operation]:
        found = dialect.request(value)
        return [*found, *uncovered(value, found)]

    for value in planted(request_):
        body = judged_body(json.dumps(value).encode(), operations)
        assert body.data is not None
        assert ENTITY.encode() not in body.data


PARTS = ("I am alice.smith@", "example.com", ", hello.")


def joined(events: Sequence[Any]) -> bytes:
    data = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return passed(of_stream(Events(), SSE), SSE, data, EVERYTHING)


@pytest.mark.parametrize(
    "extra",
    [
        *({"type": kind} for kind in ("message", "text-delta", "error", "ping", "start", "finish", "data-x", "file")),
        *({"type": f"response.{name}"} for name in ("created", "output_text.delta", "x")),
        *({"type": kind} for kind in ("message_start", "message_delta", "content_block_delta", "tool-input-delta")),
        *({name: []} for name in ("choices", "candidates", "output")),
        *({name: {}} for name in ("usageMetadata", "promptFeedback", "response", "message")),
        {"object": "response"},
        {"done": False},
    ],
)
def test_events_of_an_apps_own_are_joined_whatever_else_they_have(extra: Any) -> None:
    if extra == {"type": "data-x"}:
        # Such a part of a message may have any data.
        return
    assert b"alice.smith@" not in joined([{**extra, "text": part} for part in PARTS])


CHUNK = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "Hello "}}]}
STARTED = {"type": "message_start", "message": {"role": "assistant", "content": []}}
CREATED = {"type": "response.created", "response": {"object": "response", "output": []}}


@pytest.mark.parametrize(
    "known",
    [
        CHUNK,
        STARTED,
        CREATED,
        {"type": "start", "messageId": "m"},
        {"candidates": [{"content": {"parts": [{"text": "Hello "}], "role": "model"}}]},
    ],
)
def test_events_of_an_apps_own_are_joined_before_and_behind_those_of_a_dialect(known: Any) -> None:
    own = [{"note": part} for part in PARTS]
    sent = joined([*own, known, *own, known])
    assert b"alice.smith@" not in sent
    assert sent.count(b"[0]") == 2


def test_the_first_event_that_a_dialect_knows_tells_it() -> None:
    stream = Stream(of_stream(Events(), SSE), SSE, Judges([LOCAL]))
    for event, name in (({"note": "x"}, "unknown"), (CHUNK, "openai.chat"), (STARTED, "openai.chat")):
        stream.feed(b"data: " + json.dumps(event).encode() + b"\n\n", 0.0)
        assert stream.dialect is not None
        assert stream.dialect.name == name


def test_text_between_events_of_a_dialect_waits_for_the_next_of_those_and_no_longer() -> None:
    stream = Stream([Chat()], SSE, Judges([LOCAL]))
    drive = Driver(stream, {"local": EVERYTHING})
    note = b'data: {"note": "alice"}\n\n'
    drive.feed(note)
    assert not drive.sent
    drive.feed(b"data: " + json.dumps({**CHUNK, "choices": [{"index": 0, "delta": {}}]}).encode() + b"\n\n")
    assert drive.sent.startswith(note)


def asked(stream: Stream, data: bytes) -> list[Inspection]:
    stream.feed(data, 0.0)
    inspections = stream.inspections()
    for inspection in inspections:
        stream.verdict(inspection, (), 0.0)
    return inspections


def test_what_is_the_same_in_every_event_is_asked_for_once() -> None:
    stream = Stream([Chat()], SSE, Judges([LOCAL]))
    data = b"data: " + json.dumps({**CHUNK, "region": "Amazon Web Services"}).encode() + b"\n\n"
    assert [inspection.window.text for inspection in asked(stream, data)] == ["Amazon Web Services"]
    assert not asked(stream, data)
    other = data.replace(b"Amazon", b"Other")
    assert [inspection.window.text for inspection in asked(stream, other)] == ["Other Web Services"]


def test_what_is_the_same_and_is_redacted_is_redacted_in_every_event() -> None:
    data = b"data: " + json.dumps({**CHUNK, "region": ENTITY}).encode() + b"\n\n"
    assert passed(Chat(), SSE, [data] * 3, EVERYTHING) == data.replace(ENTITY.encode(), b"[0]") * 3


def test_names_cost_no_judge_a_call() -> None:
    stream = Stream([Chat()], SSE, Judges([LOCAL]))
    names = {"id": "chatcmpl-1", "model": "a/b:free", "system_fingerprint": "fp_1", "obfuscation": "aB3"}
    assert not asked(stream, b"data: " + json.dumps({**CHUNK, **names}).encode() + b"\n\n")


@pytest.mark.parametrize("name", ["id", "model", "object", "service_tier", "obfuscation"])
def test_text_where_a_name_is_expected_is_judged(name: str) -> None:
    usual = b"data: " + json.dumps({"obfuscation": "ab", **CHUNK}).encode() + b"\n\n"
    data = b"data: " + json.dumps({**CHUNK, name: ENTITY}).encode() + b"\n\n"
    sent = passed(Chat(), SSE, [usual, usual, data], EVERYTHING)
    assert sent == usual * 2 + data.replace(ENTITY.encode(), b"[0]")


# Lines beside the data of events

DATA = b"data: " + json.dumps(CHUNK).encode() + b"\n"
KEPT_OPEN = [
    *(b": ping", b":", b": OPENROUTER PROCESSING", b":keep-alive", b": ping - 2026-01-01 10:00:00.000000+00:00"),
    *(b":" + b" " * 2048, b": connected", b": 1767225600"),
]


@pytest.mark.parametrize("comment", KEPT_OPEN)
def test_comments_that_keep_a_connection_open_overtake(comment: bytes) -> None:
    drive = Driver(Stream([Chat()], SSE, Judges([LOCAL])), {"local": EVERYTHING})
    drive.feed(DATA.replace(b"Hello ", b"alice") + b"\n" + comment + b"\n\n")
    assert drive.sent == comment + b"\n\n"


@pytest.mark.parametrize("line", [b": %b", b"event: %b", b"id: %b", b"event:%b", b":%b"])
@pytest.mark.parametrize("behind", [b"", DATA])
def test_text_beside_the_data_of_an_event_is_judged(line: bytes, behind: bytes) -> None:
    data = b"id: 1\r\n" + line % f"I am \u00fc {ENTITY}".encode() + b"\r\n" + behind + b"\n"
    assert passed(Chat(), SSE, [data], EVERYTHING) == data.replace(ENTITY.encode(), b"[0]")


def test_text_beside_changed_data_is_judged() -> None:
    data = b"\xef\xbb\xbf: " + ENTITY.encode() + b"\n" + DATA.replace(b"Hello", ENTITY.encode()) + b"\n"
    assert passed(Chat(), SSE, [data], EVERYTHING) == data.replace(ENTITY.encode(), b"[0]")


@pytest.mark.parametrize(
    "lines",
    [
        b'{"message": "x"}\n',
        b"Hello\n\n",
        b"data: {}\nnote: x\n\n",
        b"retry: soon\n\n",
        b": \xff x@y\n\n",
        b" data: x\n\n",
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_lines_that_are_no_fields_can_not_be_read(lines: bytes, strict: bool) -> None:
    drive = Driver(Stream([Chat()], SSE, Judges([LOCAL]), strict=strict), {"local": EVERYTHING})
    drive.feed(lines)
    drive.end()
    assert drive.stream.unreadable == 1
    assert (drive.stream.ending is not None) == strict
    assert strict or drive.sent == lines


@pytest.mark.parametrize("begun", [b"d", b"dat", b"data", b"even", b"i", b"id:", b"retr", b"retry: ", b": pi"])
def test_a_stream_may_break_off_within_the_name_of_a_field(begun: bytes) -> None:
    assert passed(Chat(), SSE, [DATA + b"\n" + begun]) == DATA + b"\n" + begun


@pytest.mark.parametrize(
    ("usual", "event"),
    [
        ({"delta": {"role": "assistant"}, "text": "x"}, {"delta": {"role": ENTITY}, "text": "x"}),
        ({"delta": {"content": [{"text": "x"}]}}, {"delta": {"content": [{"text": "x", "id": ENTITY}]}}),
        ({"delta": {"content": "x"}}, {"delta": {"content": "x"}, "stop_reason": ENTITY}),
    ],
)
def test_what_is_usual_hides_nothing_in_a_chunk(usual: Any, event: Any) -> None:
    check([Chat()], SSE, events({"choices": [usual]}, {"choices": [usual]}, {"choices": [event]}))


@pytest.mark.parametrize(
    ("usual", "event"),
    [
        ({"delta": "x"}, {"delta": "x", "item_id": ENTITY}),
        ({"delta": "x", "sequence_number": "a"}, {"delta": "x", "sequence_number": ENTITY}),
        ({"delta": "x", "sequence_number": 1}, {"delta": "x", "sequence_number": ENTITY}),
        ({"delta": "x", "obfuscation": "a"}, {"delta": "x", "obfuscation": ENTITY}),
        ({"delta": "x"}, {"text": ENTITY}),
    ],
)
def test_what_is_usual_hides_nothing_in_an_event_of_a_response(usual: Any, event: Any) -> None:
    for kind in ("response.output_text.delta", "response.function_call_arguments.delta", "response.x.delta"):
        base = {"type": kind, "output_index": 0}
        check([Responses()], SSE, events({**base, **usual}, {**base, **usual}, {**base, **event}))
    base = {"type": "response.x.delta"}
    deltas = ({"type": "x", "text": "x"}, {"type": "x", "text": "x"}, {"type": ENTITY, "text": "x"})
    check([Responses()], SSE, events(*({**base, "delta": delta} for delta in deltas)))


@pytest.mark.parametrize("kind", ["text_delta", "input_json_delta", "thinking_delta", "signature_delta", "x"])
def test_what_is_usual_hides_nothing_in_a_delta_of_a_block(kind: str) -> None:
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": kind, "zzz": ENTITY}}
    check([Anthropic()], SSE, events(event))
    check([Anthropic()], SSE, events({**event, "index": ENTITY}))


def events(*values: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)


def test_what_a_response_repeats_of_its_request_is_asked_for_once_and_left_out_whole() -> None:
    tools = [{"type": "function", "name": name, "description": "It is a tool."} for name in ("send", "read")]
    stream = Stream([Responses()], SSE, Judges([LOCAL]))
    created = {"type": "response.created", "response": {"object": "response", "output": [], "tools": tools}}
    assert len(asked(stream, events(created))) == 1
    assert not asked(stream, events({**created, "type": "response.in_progress"}))
    tools[1]["description"] = ENTITY
    assert b'"tools": []' in passed(Responses(), SSE, [events(created)], EVERYTHING)


def test_what_stands_between_the_elements_of_an_array_can_not_be_read() -> None:
    element = b'{"candidates": [{"content": {"parts": [{"text": "x"}]}}]}'
    drive = Driver(Stream([Gemini()], "application/json", Judges([LOCAL])), {"local": EVERYTHING})
    drive.feed(b"[" + element + b", " + ENTITY.encode() + element + b"]")
    drive.end()
    assert drive.stream.ending is not None
    assert ENTITY.encode() not in drive.sent


def test_the_line_feed_of_a_line_end_that_was_cut_in_two_leaves_behind_its_event() -> None:
    drive = Driver(Stream([Chat()], SSE, Judges([LOCAL])), {"local": EVERYTHING})
    event = DATA.replace(b"Hello ", b"alice").replace(b"\n", b"\r\n")
    drive.feed(event + b"\r")
    drive.feed(b"\n: ping\r\n\r\n")
    assert drive.sent == b": ping\r\n\r\n"
    drive.end()
    assert drive.sent == b": ping\r\n\r\n" + event + b"\r\n"


def test_text_is_joined_over_the_elements_of_an_answer_that_is_an_array_of_gemini() -> None:
    def chunk(text: str) -> Any:
        return {"candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}]}

    answer: Any = [*map(chunk, PARTS), {"usageMetadata": {"totalTokenCount": 1}, "note": ENTITY}]
    dialect = of_answer(Events(), answer)
    assert dialect.name == "gemini"
    body = judged_body(json.dumps(answer).encode(), dialect.answer)
    assert body.data is not None
    texts = [part["text"] for part in (it["candidates"][0]["content"]["parts"][0] for it in json.loads(body.data)[:3])]
    assert texts == ["I am [0]", "", ", hello."]
    assert ENTITY.encode() not in body.data
    assert of_answer(Events(), [*answer, {"other": 1}]).name == "unknown"


def test_reasoning_that_a_client_returns_is_judged_unless_it_is_signed() -> None:
    for block, key in (
        ({"type": "thinking", "thinking": ENTITY}, "signature"),
        ({"text": ENTITY, "thought": True}, "thoughtSignature"),
    ):
        for signature, left in ({}, 0), ({key: "EqQBCgIYAhIM"}, 1):
            part = {**block, **signature}
            dialect: Dialect = Gemini() if key == "thoughtSignature" else Anthropic()
            request = (
                {"contents": [{"parts": [part]}]} if dialect.name == "gemini" else {"messages": [{"content": [part]}]}
            )

            def operations(value: JSON, dialect: Dialect = dialect) -> list[Operation]:
                found = dialect.request(value)
                return [*found, *uncovered(value, found)]

            body = judged_body(json.dumps(request).encode(), operations)
            assert body.data is not None
            assert body.data.count(ENTITY.encode()) == left
