"""What comes behind the end of a text or a tool call, as servers say it too early or in every event."""

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest

from asgi_agents.guardrails.dialect import Dialect
from asgi_agents.guardrails.dialects.anthropic import Anthropic
from asgi_agents.guardrails.dialects.chat import Chat
from asgi_agents.guardrails.dialects.chat_parts import Calls
from asgi_agents.guardrails.dialects.gemini import Gemini
from asgi_agents.guardrails.dialects.known import of_stream
from asgi_agents.guardrails.dialects.ollama import Ollama
from asgi_agents.guardrails.dialects.responses import Responses
from asgi_agents.guardrails.dialects.ui_message import UIMessages
from asgi_agents.guardrails.dialects.unknown import Events
from asgi_agents.guardrails.held_call import MAX_CHARACTERS
from asgi_agents.guardrails.judges import Judge, Judges
from asgi_agents.guardrails.release import Release
from asgi_agents.guardrails.slots import KINDS, Decision, Redact, Window
from asgi_agents.guardrails.stream import Stream
from asgi_agents.guardrails.windows import WindowLimits
from tests.guardrails.detectors import CARD, EMAIL, HOLD, KEY, Detector, detector
from tests.guardrails.driving import Driver, limits, passed

SSE: Final = "text/event-stream"
_FINDER: Final = detector(EMAIL)
ENTITY: Final = "alice.smith@example.com"
_HALVES: Final = ("I am alice.smith@exam", "ple.com, hello")


_LIMITS: Final = WindowLimits(hold=HOLD, window=4 * HOLD)


def _driven(dialect: Dialect, events: Sequence[Any], judges: Mapping[Judge, Detector]) -> Driver:
    """A stream that has come to its end behind these judges."""
    checks = {judge.name: check for judge, check in judges.items()}
    driver = Driver(Stream([dialect], SSE, Judges(list(judges))), checks)
    for piece in _events(SSE, events):
        driver.feed(piece)
    driver.end()
    return driver


def _chat(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def _finished(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}


def _gemini(text: str, **more: Any) -> dict[str, Any]:
    return {"candidates": [{"index": 0, "content": {"parts": [{"text": text, **more}]}, "finishReason": "STOP"}]}


def _gemini_call(**call: Any) -> dict[str, Any]:
    return {"candidates": [{"index": 0, "content": {"parts": [{"functionCall": call}]}}]}


def _responses(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "output_index": 0, "content_index": 0, "item_id": "i", **more}


def _block(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": f"content_block_{kind}", "index": 0, **more}


def _said(text: str) -> dict[str, Any]:
    return _block("delta", delta={"type": "text_delta", "text": text})


_ONE, _TWO = _HALVES
#: Streams whose text goes on behind what seems to be its end.
GOING_ON: Final[dict[str, tuple[Dialect, str, list[Any]]]] = {
    "chat, in every event": (Chat(), SSE, [_finished(content=_ONE), _finished(content=_TWO)]),
    "chat, empty": (Chat(), SSE, [_chat(content=_ONE), _finished(), _chat(content=_TWO)]),
    "chat, done": (Chat(), SSE, [_chat(content=_ONE), "[DONE]", _chat(content=_TWO)]),
    "chat, reasoning": (Chat(), SSE, [_finished(reasoning=_ONE), _finished(reasoning=_TWO)]),
    "chat, a field of its own": (Chat(), SSE, [_finished(transcript=_ONE), _finished(transcript=_TWO)]),
    "chat, parts": (
        Chat(),
        SSE,
        [_finished(content=[{"type": "text", "text": text}]) for text in _HALVES],
    ),
    "completions": (
        Chat(),
        SSE,
        [{"choices": [{"index": 0, "text": text, "finish_reason": "length"}]} for text in _HALVES],
    ),
    "gemini, in every event": (Gemini(), SSE, [_gemini(_ONE), _gemini(_TWO)]),
    "gemini, thought": (Gemini(), SSE, [_gemini(_ONE, thought=True), _gemini(_TWO, thought=True)]),
    "responses, done": (
        Responses(),
        SSE,
        [
            _responses("output_text.delta", delta=_ONE),
            _responses("output_text.done", text=_ONE),
            _responses("output_text.delta", delta=_TWO),
        ],
    ),
    "responses, completed": (
        Responses(),
        SSE,
        [
            _responses("output_text.delta", delta=_ONE),
            {"type": "response.completed", "response": {"output": []}},
            _responses("output_text.delta", delta=_TWO),
        ],
    ),
    "anthropic, block": (
        Anthropic(),
        SSE,
        [_block("start", content_block={"type": "text", "text": ""}), _said(_ONE), _block("stop"), _said(_TWO)],
    ),
    "anthropic, message": (
        Anthropic(),
        SSE,
        [
            _block("start", content_block={"type": "text", "text": ""}),
            _said(_ONE),
            {"type": "message_stop"},
            _said(_TWO),
        ],
    ),
    "ollama, generate": (
        Ollama(),
        "application/x-ndjson",
        [{"model": "m", "response": text, "done": True} for text in _HALVES],
    ),
    "ollama, chat": (
        Ollama(),
        "application/x-ndjson",
        [{"model": "m", "message": {"role": "assistant", "content": text}, "done": True} for text in _HALVES],
    ),
    "ui message": (
        UIMessages(),
        SSE,
        [
            {"type": "text-start", "id": "0"},
            {"type": "text-delta", "id": "0", "delta": _ONE},
            {"type": "text-end", "id": "0"},
            {"type": "text-delta", "id": "0", "delta": _TWO},
        ],
    ),
    "ui message, finished": (
        UIMessages(),
        SSE,
        [
            {"type": "text-delta", "id": "0", "delta": _ONE},
            {"type": "finish"},
            {"type": "text-delta", "id": "0", "delta": _TWO},
        ],
    ),
    "responses, done of both": (
        Responses(),
        SSE,
        [
            _responses("output_text.delta", delta=_ONE),
            _responses("output_text.done", text=_ONE),
            _responses("output_text.delta", delta=_TWO),
            _responses("output_text.done", text=_TWO),
            _responses("output_text.done", text=_ONE + _TWO),
        ],
    ),
    "events, a string and text": (Events(), SSE, [json.dumps(_ONE), _TWO]),
    "events, done": (Events(), SSE, [{"t": _ONE}, "[DONE]", {"t": _TWO}]),
}


def _events(media_type: str, events: Sequence[Any]) -> list[bytes]:
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return [(f"data: {text}\n\n" if media_type == SSE else f"{text}\n").encode() for text in texts]


@pytest.mark.parametrize("case", GOING_ON.values(), ids=GOING_ON)
def test_text_behind_its_end_is_judged_with_what_precedes_it(case: tuple[Dialect, str, list[Any]]) -> None:
    dialect, media_type, events = case
    pieces = _events(media_type, events)
    for seed in range(20):
        sent = passed(dialect, media_type, pieces, _FINDER, random.Random(seed) if seed else None)  # noqa: S311
        assert b"ple.com" not in sent
        assert b", hello" in sent


@pytest.mark.parametrize("case", GOING_ON.values(), ids=GOING_ON)
def test_what_nobody_finds_anything_in_leaves_as_it_came(case: tuple[Dialect, str, list[Any]]) -> None:
    dialect, media_type, events = case
    pieces = _events(media_type, events)
    assert passed(dialect, media_type, pieces, lambda window: ()) == b"".join(pieces)


_TOOL: Final = {"index": 0, "id": "c", "type": "custom", "custom": {"name": "say", "input": _ONE}}
_MORE: Final = {"index": 0, "custom": {"input": _TWO}}
#: What leaves whole and goes on behind its end.
CALLS_GOING_ON: Final[dict[str, tuple[Dialect, list[Any]]]] = {
    "chat": (Chat(), [_finished(tool_calls=[_TOOL]), _finished(tool_calls=[_MORE])]),
    "responses": (
        Responses(),
        [
            _responses("output_item.added", item={"type": "custom_tool_call", "name": "say", "input": ""}),
            _responses("custom_tool_call_input.delta", delta=_ONE),
            _responses("custom_tool_call_input.done", input=_ONE),
            _responses("custom_tool_call_input.delta", delta=_TWO),
        ],
    ),
    "anthropic, signed": (
        Anthropic(),
        [
            _block("start", content_block={"type": "thinking", "thinking": ""}),
            _block("delta", delta={"type": "thinking_delta", "thinking": _ONE}),
            _block("stop"),
            _block("delta", delta={"type": "thinking_delta", "thinking": _TWO}),
        ],
    ),
}


@pytest.mark.parametrize("case", CALLS_GOING_ON.values(), ids=CALLS_GOING_ON)
def test_what_leaves_whole_does_not_go_on_behind_its_end(case: tuple[Dialect, list[Any]]) -> None:
    dialect, events = case
    driver = _driven(dialect, events, {Judge(name="local", limits=_LIMITS): _FINDER})
    assert driver.stream.ending is not None
    assert driver.stream.ending.stop.failure
    assert b"ple.com" not in driver.sent


#: Calls and blocks that follow each other under one index.
FOLLOWING: Final[dict[str, tuple[Dialect, list[Any]]]] = {
    "chat, without ids": (
        Chat(),
        [
            _chat(tool_calls=[{"index": 0, "id": "", "function": {"name": name, "arguments": '{"to": "bob"}'}}])
            for name in ("say", "say", "call")
        ],
    ),
    "chat, its name in every piece": (
        Chat(),
        [
            _chat(tool_calls=[{"index": 0, "function": {"name": "say", "arguments": piece}}])
            for piece in ('{"to": {}', ', "from": "bob"', "}", "", " ")
        ],
    ),
    "chat": (Chat(), [_finished(tool_calls=[{**_TOOL, "id": call}]) for call in ("a", "b")]),
    "responses": (
        Responses(),
        2
        * [
            _responses("output_item.added", item={"type": "custom_tool_call", "name": "say", "input": ""}),
            _responses("custom_tool_call_input.delta", delta=_ONE),
            _responses("custom_tool_call_input.done", input=_ONE),
        ],
    ),
    "anthropic": (
        Anthropic(),
        2
        * [
            _block("start", content_block={"type": "thinking", "thinking": ""}),
            _block("delta", delta={"type": "thinking_delta", "thinking": _ONE}),
            _block("stop"),
        ],
    ),
    "gemini, without a name": (
        Gemini(),
        2 * [_gemini_call(partialArgs=[{"jsonPath": "$.to", "stringValue": _ONE}])],
    ),
    "gemini": (
        Gemini(),
        2 * [_gemini_call(name="say", partialArgs=[{"jsonPath": "$.to", "stringValue": _ONE}])],
    ),
}


@pytest.mark.parametrize("case", FOLLOWING.values(), ids=FOLLOWING)
def test_a_call_that_takes_the_place_of_another_is_none_that_goes_on(case: tuple[Dialect, list[Any]]) -> None:
    dialect, events = case
    pieces = _events(SSE, events)
    assert passed(dialect, SSE, pieces, lambda window: ()) == b"".join(pieces)


def test_clients_join_blocks_of_one_index() -> None:
    start = _block("start", content_block={"type": "text", "text": ""})
    events = [start, _said("I am alice.smith@exam"), _block("stop"), start, _said("ple.com, hello")]
    assert b"ple.com" not in passed(Anthropic(), SSE, _events(SSE, events), _FINDER)


def test_a_text_that_begins_anew_is_another() -> None:
    events = [
        {"type": f"text-{what}", "id": "0", **more}
        for text in _HALVES
        for what, more in (("start", {}), ("delta", {"delta": text}), ("end", {}))
    ]
    assert b"ple.com" in passed(UIMessages(), SSE, _events(SSE, events), _FINDER)


#: A thought, and an answer under the key that it had.
OF_ANOTHER_KIND: Final[dict[str, tuple[Dialect, list[Any]]]] = {
    "anthropic": (
        Anthropic(),
        [
            _block("start", content_block={"type": "thinking", "thinking": ""}),
            _block("delta", delta={"type": "thinking_delta", "thinking": "hm"}),
            _block("stop"),
            _said(ENTITY),
        ],
    ),
    "responses": (
        Responses(),
        [
            _responses("reasoning_text.delta", delta="hm"),
            _responses("reasoning_text.done", text="hm"),
            _responses("output_text.delta", delta=ENTITY),
        ],
    ),
}


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("case", OF_ANOTHER_KIND.values(), ids=OF_ANOTHER_KIND)
def test_a_text_of_another_kind_has_its_own_judges(case: tuple[Dialect, list[Any]], ended: bool) -> None:
    dialect, events = case
    events = events if ended else [*events[:-2], events[-1]]
    flags = Judge(name="flags", on=frozenset(("reasoning",)), redacts=False, limits=_LIMITS)
    redacts = Judge(name="redacts", on=frozenset(("output",)), limits=_LIMITS)
    driver = _driven(dialect, events, {flags: lambda window: (), redacts: _FINDER})
    assert driver.stream.done
    assert ENTITY.encode() not in driver.sent


def test_what_repeats_a_text_agrees_with_that_of_its_kind() -> None:
    events = [
        _responses("reasoning_text.delta", delta=f"Hm, {ENTITY}"),
        _responses("output_text.delta", delta=f"Mail to {ENTITY}!"),
        _responses("output_text.done", text=f"Mail to {ENTITY}!"),
        _responses("reasoning_text.done", text=f"Hm, {ENTITY}"),
    ]
    limits = WindowLimits(hold=HOLD, window=4 * HOLD)
    judges = [Judge(name=kind, on=frozenset((kind,)), limits=limits) for kind in KINDS]
    stream = Stream([Responses()], SSE, Judges(judges))
    stream.feed(b"".join(_events(SSE, events)), 0.0)
    stream.end(0.0)
    # The verdict on the reasoning is the last.
    while inspections := stream.inspections():
        for inspection in sorted(inspections, key=lambda inspection: inspection.slot.kind):
            stream.verdict(inspection, _FINDER(inspection.window), 0.0)
    assert stream.done
    assert ENTITY.encode() not in stream.take()


def test_a_text_with_more_changes_than_are_remembered_is_judged_again_where_it_is_repeated() -> None:
    text = f"{ENTITY} "
    events = [_responses("output_text.delta", delta=text) for _ in range(4130)]
    events.append(_responses("output_text.done", text=text * 4130))
    judge = Judge(name="local", limits=WindowLimits(hold=HOLD, window=4 * HOLD, in_flight=1000))
    stream = Stream([Responses()], SSE, Judges([judge]))
    stream.feed(b"".join(_events(SSE, events)), 0.0)
    stream.end(0.0)
    while inspections := stream.inspections():
        for inspection in inspections:
            stream.verdict(inspection, _FINDER(inspection.window), 0.0)
    assert stream.done
    assert b"alice.smith" not in stream.take()


def _responses_of(text: str) -> list[Any]:
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    return [
        _responses("output_item.added", item={"type": "message", "role": "assistant", "content": []}),
        _responses("output_text.delta", delta=text),
        _responses("output_text.done", text=text),
        _responses("output_item.done", item=item),
        {"type": "response.completed", "response": {"output": [item]}},
    ]


@pytest.mark.parametrize("seed", range(40))
def test_what_repeats_a_text_agrees_with_it_where_another_has_its_key(seed: int) -> None:
    texts = [f"Mail {ENTITY} now.", "The weather is fine.", "", f"And {ENTITY}"]
    pieces = _events(SSE, [event for text in texts for event in _responses_of(text)])
    after = _events(SSE, [event for text in texts for event in _responses_of(text.replace(ENTITY, "[0]"))])
    sent = passed(Responses(), SSE, pieces, _FINDER, random.Random(seed) if seed else None)  # noqa: S311
    assert list(map(json.loads, re.findall(rb"data: (.*)", sent))) == [json.loads(event[6:]) for event in after]


# What is settled may be part of something that begins before what seemed to be the end.
_KEY_TAIL: Final = re.compile(r"(?:s|sk|sk-[a-z0-9]{0,16})\Z")


def _settled_but_for_keys(text: str) -> int:
    match = _KEY_TAIL.search(text)
    return len(text) if match is None else match.start()


@pytest.mark.parametrize("pieces", [("de", "fghij12345 bye"), ("d", "e", "fgh", "ij12345 bye"), ("defghij12345 bye",)])
def test_what_is_settled_depends_on_what_precedes_the_end(pieces: tuple[str, ...]) -> None:
    limits = WindowLimits(hold=40, window=160, eager=True, settled=_settled_but_for_keys)
    events = [_finished(content="my key is sk-abc"), *(_chat(content=piece) for piece in pieces)]
    driver = _driven(Chat(), events, {Judge(name="local", limits=limits): detector(KEY)})
    said = [json.loads(event)["choices"][0]["delta"]["content"] for event in re.findall(rb"data: (.*)", driver.sent)]
    assert "".join(said) == "my key is sk-abc[0] bye"


def test_what_is_put_in_at_an_end_is_put_in_once() -> None:
    def insert(window: Window) -> list[Decision]:
        return [Redact(match.end(), match.end(), "<") for match in re.compile(r"\.").finditer(window.text)]

    pieces = _events(SSE, [_finished(content=text) for text in ("One.", " Two.", " Three.")])
    sent = passed(Chat(), SSE, pieces, insert)
    said = [json.loads(event)["choices"][0]["delta"]["content"] for event in re.findall(rb"data: (.*)", sent)]
    assert said == ["One.<", " Two.<", " Three.<"]


def test_the_app_waits_where_texts_that_end_are_not_judged() -> None:
    judge = Judge(name="local", limits=WindowLimits(hold=80, window=400, in_flight=2))
    stream = Stream([Chat()], SSE, Judges([judge]))
    fed = 0
    while not stream.full and fed < 1000:
        stream.feed(_events(SSE, [_finished(content="x" * 100)])[0], 0.0)
        stream.inspections()
        fed += 1
    assert fed < 20


def test_text_with_blanks_before_it_may_be_json() -> None:
    events = [json.dumps({"t": f"I am {ENTITY}"}).replace("@", "\\u0040"), *map(json.dumps, map(_chat_of, _HALVES))]
    sent = passed(of_stream(Events(), SSE), SSE, [f"data:  {event}\n\n".encode() for event in events], _FINDER)
    assert b"0040" not in sent
    assert b"alice.smith" not in sent


def _chat_of(text: str) -> dict[str, Any]:
    return _chat(content=text)


def test_json_among_text_stays_json() -> None:
    data = {"id 4111111111111111": 4111111111111111, "a": [True, None, -1.5, 4111111111111111], "said": f"{ENTITY} "}
    event = json.dumps(data)
    pieces = [b"data: So be it: \n\n", f"data: {event}\n\n".encode(), f"data: {event}\n\n".encode()]
    sent = passed(of_stream(Events(), SSE), SSE, pieces, detector(EMAIL, CARD))
    assert b"4111111111111111" not in sent
    read = [json.loads(event) for event in re.findall(rb"data: (\{.*)", sent)]
    assert read == 2 * [{"id [1]": "[1]", "a": [True, None, -1.5, "[1]"], "said": "[0] "}]


def test_json_of_too_many_literals_among_text_is_one_text() -> None:
    data = [[number] for number in range(2000)] + [[4111111111111111]]
    pieces = [b"data: So be it: \n\n", f"data: {json.dumps(data)}\n\n".encode()]
    sent = passed(of_stream(Events(), SSE), SSE, pieces, detector(EMAIL, CARD))
    assert b"4111111111111111" not in sent
    assert sent.count(b"[1]") >= 1


def _call(**members: Any) -> dict[str, Any]:
    return _chat(tool_calls=[{"index": 0, "id": "c", **members}])


@pytest.mark.parametrize("custom", [{}, {"name": "say"}])
def test_a_function_beside_a_custom_tool_is_judged_in_one_piece(custom: dict[str, Any]) -> None:
    parts = ['{"to": "' + _ONE, _TWO + '"}']
    events = [_call(custom=custom, function={"name": "say", "arguments": part}) for part in parts]
    assert b"ple.com" not in passed(Chat(), SSE, _events(SSE, events), _FINDER)


@pytest.mark.parametrize("custom", ["", False, [], "abc"])
def test_a_custom_tool_that_is_none_is_not_read(custom: Any) -> None:
    stream = Stream([Chat()], SSE, Judges([Judge(name="local", limits=WindowLimits())]))
    stream.feed(_events(SSE, [_call(custom=custom, function={"name": "say", "arguments": "{}"})])[0], 0.0)
    assert stream.ending is not None
    assert stream.ending.stop.message.startswith("custom: expected an object")


def test_what_calls_without_ids_are_told_apart_by_is_bounded() -> None:
    calls = Calls()
    at = ("choices", 0, "tool_calls", 0)
    for _ in range(40):
        calls.key(at, None, "say", "x" * 100_000)
    assert sum(map(len, calls._latest[at]._arguments)) <= MAX_CHARACTERS


def test_texts_that_end_are_not_remembered_for_ever() -> None:
    stream = Stream([Chat()], SSE, Judges([Judge(name="local", limits=WindowLimits())]))
    driver = Driver(stream, {"local": lambda window: ()})
    for index in range(2000):
        event = {"choices": [{"index": index, "delta": {"content": "a"}, "finish_reason": "stop"}]}
        driver.feed(_events(SSE, [event])[0])
    release = stream._release
    assert isinstance(release, Release)
    assert len(release._ended) <= 256


# Events of text, and of JSON in which there may be text anywhere.

_PLANTED: Final = ("alice.smith@example.com", "bob@example.org")


def _mixed(rng: random.Random) -> list[str]:
    """The data of the events of one stream."""
    events: list[str] = ["So be it: "]
    for _ in range(rng.randrange(2, 12)):
        said = rng.choice((*_PLANTED, "hello", "nobody", "1.5"))
        events.append(
            rng.choice(
                (
                    f"I am {said} ",
                    json.dumps({"t": f"I am {said} "}),
                    json.dumps({said: 1}),
                    json.dumps({"t": "", "in": {said: [1, {"t": f"{said} "}]}}),
                    json.dumps({"t": f"{said} "}).replace("@", "\\u0040"),
                    json.dumps([f"{said} ", 1]),
                    f"{{ {said} }}",
                    "[1, 2]",
                )
            )
        )
    return events


@pytest.mark.parametrize("seed", range(300))
def test_json_among_text_is_judged_as_both(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    events = _mixed(rng)
    data = b"".join(f"data: {event}\n\n".encode() for event in events)
    cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(6)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    judge = Judge(name="local", limits=limits(rng))
    stream = Stream(of_stream(Events(), SSE), SSE, Judges([judge]))
    driver = Driver(stream, {"local": _FINDER}, rng)
    for piece in pieces:
        driver.feed(piece)
    driver.end()
    assert stream.done
    assert stream.ending is None
    assert (stream.held, stream.held_bytes) == (0, 0)
    sent = driver.sent
    for planted in _PLANTED:
        assert planted.encode() not in sent
        assert planted.replace("@", "\\u0040").encode() not in sent
    left = [unit[6:].decode() for unit in sent.split(b"\n\n") if unit]
    assert len(left) == len(events)
    for before, after in zip(events, left, strict=True):
        if not any(planted in before.replace("\\u0040", "@") for planted in _PLANTED):
            assert after == before


def test_events_of_json_alone_have_no_text_but_their_strings() -> None:
    data = b'data: {"alice.smith@example.com": 1}\n\n' * 3
    assert passed(of_stream(Events(), SSE), SSE, [data], _FINDER) == data
