"""One stream: what leaves when, and what is never sent."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from asgi_agents.errors import AgentProtocolError
from asgi_agents.guardrails.dialect import Dialect, Stop
from asgi_agents.guardrails.dialects.anthropic import Anthropic
from asgi_agents.guardrails.dialects.chat import Chat
from asgi_agents.guardrails.dialects.gemini import Gemini
from asgi_agents.guardrails.dialects.known import BUILT_IN, of_stream
from asgi_agents.guardrails.dialects.ollama import Ollama
from asgi_agents.guardrails.dialects.unknown import Events, PlainText
from asgi_agents.guardrails.judges import Judge, Judges
from asgi_agents.guardrails.release import MAX_HELD_BYTES, Release
from asgi_agents.guardrails.slots import Block, Decision, Flag, Redact, Window
from asgi_agents.guardrails.stream import Stream
from asgi_agents.guardrails.windows import WindowLimits
from tests.guardrails.detectors import CARD, EMAIL, detector
from tests.guardrails.driving import EVERYTHING, LOCAL, Driver, limits, passed
from tests.guardrails.samples import AnthropicSample, Cut

SSE = "text/event-stream"


def chunk(delta: Any, finish: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c1", "model": "m", "created": 1, "choices": [choice]}).encode() + b"\n\n"


def said(text: str) -> bytes:
    return chunk({"content": text})


def driver(*judges: Judge, dialect: Dialect | None = None, **checks: Any) -> Driver:
    return Driver(Stream([dialect or Chat()], SSE, Judges(judges or [LOCAL])), checks or {"local": EVERYTHING})


def test_the_first_token_waits_for_one_word_at_most() -> None:
    drive = driver()
    role = chunk({"role": "assistant", "content": ""})
    drive.feed(role)
    assert drive.sent == role
    drive.feed(said("Hello,"))
    drive.feed(said("\nyou"))
    assert drive.sent == role + said("Hello,")


def test_a_value_that_is_cut_over_events_leaves_with_none_of_them() -> None:
    drive = driver()
    for text in ("mail ", "ali", "ce@exa", "mple.com", ", bye.\n"):
        drive.feed(said(text))
    drive.feed(chunk({}, "stop"))
    assert drive.sent == said("mail ") + said("[0]") + said("") + said("") + said(", bye.\n") + chunk({}, "stop")


def test_comments_and_pings_overtake_held_events() -> None:
    drive = driver()
    drive.feed(said("alice@"))
    drive.feed(b": keep-alive\n\n")
    assert drive.sent == b": keep-alive\n\n"
    drive = driver(dialect=Anthropic())
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "alice@"}}
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    held = b"data: " + json.dumps(delta).encode() + b"\n\n"
    opening = b"data: " + json.dumps(start).encode() + b"\n\n"
    drive.feed(opening + held + ping)
    assert drive.sent == opening + ping
    drive.end()
    assert drive.sent == opening + ping + held


def test_an_event_with_an_id_overtakes_nothing() -> None:
    drive = driver()
    drive.feed(said("alice@") + b"id: 7\n\n")
    assert drive.sent == b""
    drive.end()
    assert drive.sent == said("alice@") + b"id: 7\n\n"


def test_no_byte_of_a_tool_call_leaves_before_its_verdict() -> None:
    stream = Stream([Chat()], SSE, Judges([LOCAL]))
    events = [
        chunk(
            {
                "tool_calls": [
                    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "send", "arguments": ""}}
                ]
            }
        ),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"to": "alice\\u0'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '040example.com"}'}}]}),
        chunk({}, "tool_calls"),
    ]
    for event in events:
        stream.feed(event, 0.0)
        assert stream.take() == b""
    (inspection,) = stream.inspections()
    assert inspection.window == Window("alice@example.com")
    assert (inspection.slot.kind, inspection.slot.tool) == ("tool_call", "send")
    stream.verdict(inspection, [Redact(0, 17, '"')], 0.0)
    sent = stream.take()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in sent.decode().split("\n") if line]
    arguments = "".join(delta["tool_calls"][0]["function"]["arguments"] for delta in deltas[:3])
    assert json.loads(arguments) == {"to": '"'}
    assert sent.startswith(events[0])


def test_a_refused_tool_call_never_reaches_the_client() -> None:
    drive = driver(local=lambda window: [Block("no")])
    drive.feed(
        chunk({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "send", "arguments": '{"a": "b"}'}}]})
    )
    drive.feed(chunk({}, "tool_calls"))
    assert b"call_1" not in drive.sent
    assert b"send" not in drive.sent
    assert json.loads(drive.sent.split(b"\n\n")[0][6:])["choices"][0]["finish_reason"] == "content_filter"
    assert drive.sent.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("arguments", ['{"a": "b"', "{'a': 1}", '{"a": 1} x'])
def test_arguments_that_never_become_json_stop_the_stream(arguments: str) -> None:
    for strict in (True, False):
        stream = Stream([Chat()], SSE, Judges([LOCAL]), strict=strict)
        drive = Driver(stream, {"local": EVERYTHING})
        drive.feed(chunk({"tool_calls": [{"index": 0, "id": "1", "function": {"name": "x", "arguments": arguments}}]}))
        drive.feed(chunk({}, "tool_calls"))
        assert stream.ending is not None
        assert stream.ending.stop.failure
        assert b'"error"' in drive.sent
        assert b"arguments" in drive.sent


def test_a_tool_call_without_arguments_passes() -> None:
    events = [
        chunk({"tool_calls": [{"index": 0, "id": "1", "function": {"name": "now", "arguments": ""}}]}),
        chunk({}, "tool_calls"),
    ]
    assert passed(Chat(), SSE, events) == b"".join(events)


def test_a_tool_call_over_a_mebibyte_is_a_failure() -> None:
    drive = driver()
    piece = chunk({"tool_calls": [{"index": 0, "function": {"arguments": "x" * 100_000}}]})
    for _ in range(11):
        drive.feed(piece)
    assert drive.stream.ending is not None
    assert "1048576" in drive.stream.ending.stop.message


def test_guardrails_in_a_row_see_the_output_of_those_before_them() -> None:
    for seed in range(20):
        rng = random.Random(seed)  # noqa: S311
        first = Judge(name="first", limits=limits(rng))
        second = Judge(name="second", limits=limits(rng))
        beside = Judge(name="beside", limits=limits(rng), redacts=False)
        seen: list[str] = []

        def watch(window: Window) -> Sequence[Decision]:
            seen.append(window.text[window.fresh :])  # noqa: B023
            return [Flag(match.start(), match.end(), "email") for match in EMAIL.finditer(window.text, window.fresh)]

        def brackets(window: Window) -> Sequence[Decision]:
            finds = detector(CARD)(window)
            at = window.text.find("[0]", window.fresh)
            return [*finds, Redact(at, at + 3, "<gone>")] if at >= 0 else finds

        drive = Driver(
            Stream([Chat()], SSE, Judges([first, beside, second])),
            {"first": detector(EMAIL), "second": brackets, "beside": watch},
            rng,
        )
        text = "to alice@example.com, paid with 4111 1111 1111 1111\n"
        for part in Cut(rng)(text):
            drive.feed(said(part))
        drive.feed(chunk({}, "stop"))
        drive.end()
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in drive.sent.decode().split("\n") if line]
        assert "".join(delta.get("content", "") for delta in deltas) == "to <gone>, paid with [0]\n"
        assert "alice@example.com" in "".join(seen)
        flags = [found for found in drive.stream.findings if found.found.category]
        assert [(found.judge.name, found.found.start, found.found.end) for found in flags] == [("beside", 3, 20)]


def test_a_block_ends_every_choice_that_is_open() -> None:
    def check(window: Window) -> Sequence[Decision]:
        return [Block("no")] if "bad" in window.text else ()

    drive = driver(local=check)
    drive.feed(chunk({"content": "one\n"}, index=0) + chunk({"content": "two\n"}, index=1) + chunk({}, "stop", index=2))
    drive.feed(chunk({"content": "bad\n"}, index=1))
    drive.feed(said("more\n"))
    last, done, rest = drive.sent.split(b"\n\n")[-3:]
    assert json.loads(last[6:])["choices"] == [
        {"index": 0, "delta": {}, "finish_reason": "content_filter"},
        {"index": 1, "delta": {}, "finish_reason": "content_filter"},
    ]
    assert (done, rest) == (b"data: [DONE]", b"")
    assert drive.stream.ending is not None
    assert drive.stream.ending.blocked is not None
    assert drive.stream.ending.blocked.slot.key == ("choices", 1, "content")


def test_what_may_leave_leaves_before_the_ending() -> None:
    drive = driver()
    usage = b'data: {"choices": [], "usage": {"total_tokens": 7}}\n\n'
    drive.feed(usage + b"data: no json\n\n" + said("never\n"))
    assert drive.sent.startswith(usage + b'data: {"error":')
    assert b"never" not in drive.sent


def test_white_space_around_the_end_of_a_stream_does_no_harm() -> None:
    end = b"data:  [DONE]\r\n\r\n"
    assert passed(Chat(), SSE, [said("x"), end]) == said("x") + end


def test_usage_that_was_known_is_told_where_a_stream_is_blocked() -> None:
    drive = driver(local=lambda window: [Block("no")])
    drive.feed(b'data: {"id": "c1", "choices": [], "usage": {"total_tokens": 7}}\n\n')
    drive.feed(said("bad\n"))
    assert b'"usage":{"total_tokens":7}' in drive.sent


def test_text_is_cut_off() -> None:
    stream = Stream([PlainText()], "text/plain", Judges([LOCAL]))
    drive = Driver(stream, {"local": lambda window: [Block("no")] if "bad" in window.text else ()})
    drive.feed("good \u00fc\n".encode()[:-2])
    drive.feed("\u00fc\n".encode()[1:])
    assert drive.sent.decode() == "good \u00fc\n"
    drive.feed(b"bad\n")
    assert drive.stream.ending is not None
    assert drive.stream.ending.cut_off
    assert drive.sent.decode() == "good \u00fc\n"


@pytest.mark.parametrize(
    ("dialect", "media_type", "event"),
    [
        (Chat(), SSE, b"data: {'no': json}\n\n"),
        (Chat(), SSE, b'data: {"a": "\xff"}\n\n'),
        (Chat(), SSE, b"data: [1]\n\n"),
        (Chat(), SSE, b'data: {"choices": 7}\n\n'),
        (Ollama(), "application/x-ndjson", b"no json\n"),
        (Gemini(), "application/json", b'[{"candidates": "x"}'),
    ],
)
def test_what_can_not_be_read_stops_the_stream_or_passes_and_is_counted(
    dialect: Dialect, media_type: str, event: bytes
) -> None:
    for strict in (True, False):
        stream = Stream([dialect], media_type, Judges([LOCAL]), strict=strict)
        stream.feed(event, 0.0)
        stream.end(0.0)
        assert stream.unreadable == 1
        assert (stream.ending is not None) is strict
        assert (event not in stream.take()) is strict


def test_an_event_that_never_ends_stops_the_stream_or_passes() -> None:
    data = b"data: " + b"x" * (1024 * 1024) + b"\n\n"
    for strict in (True, False):
        stream = Stream([Chat()], SSE, Judges([LOCAL]), strict=strict)
        for start in range(0, len(data), 65536):
            stream.feed(data[start : start + 65536], 0.0)
        stream.end(0.0)
        assert (stream.ending is not None) is strict
        assert (stream.take() == data) is not strict


def test_strings_under_keys_that_are_there_twice_are_judged() -> None:
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "a@example.com", "content": "fine\\n"}}]}\n\n'
    assert passed(Chat(), SSE, [event], EVERYTHING) == event.replace(b"a@example.com", b"[0]")


def test_unknown_fields_of_a_known_dialect_are_judged() -> None:
    delta = {"note": "a@example.com", "more": [{"x": "b@example.com"}]}
    event = b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}], "y": "c@example.com"}).encode() + b"\n\n"
    assert EMAIL.findall(passed(Chat(), SSE, [event], EVERYTHING).decode()) == []


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (b'data: {"choices": [], "object": "chat.completion.chunk"}\n\n', "openai.chat"),
        (b'data: {"type": "response.created", "response": {}}\n\n', "openai.responses"),
        (b'event: message_start\ndata: {"type": "message_start", "message": {}}\n\n', "anthropic.messages"),
        (b'data: {"candidates": [{"content": {}}]}\n\n', "gemini"),
        (b'data: {"type": "start"}\n\n', "ai-sdk.ui"),
        (b'data: {"token": "x"}\n\n', "unknown"),
        (b"data: hello\n\n", "unknown"),
    ],
)
def test_the_first_event_tells_the_dialect(first: bytes, name: str) -> None:
    stream = Stream(of_stream(Events(), SSE), SSE, Judges([LOCAL]))
    stream.feed(b": hi\n\n" + first, 0.0)
    assert stream.dialect is not None
    assert stream.dialect.name == name


def test_a_stream_of_unknown_shape_is_judged() -> None:
    events = [
        b'data: {"token": "al',
        b'ice@exa"}\n\n',
        b'data: {"token": "mple.com"}\n\n',
        b'data: {"token": " x\\n"}\n\n',
    ]
    sent = passed(of_stream(Chat(), SSE), SSE, events, EVERYTHING)
    assert [json.loads(line[6:])["token"] for line in sent.decode().split("\n") if line] == ["[0]", "", " x\n"]


def test_only_streams_of_text_have_a_dialect() -> None:
    assert of_stream(Chat(), "image/png") == []
    assert [dialect.name for dialect in of_stream(Ollama(), "application/x-ndjson")] == ["ollama", "ndjson"]
    assert [dialect.name for dialect in of_stream(Gemini(), "application/json")] == ["gemini"]
    assert [dialect.name for dialect in of_stream(Chat(), "text/html")] == ["text"]


def test_a_timer_releases_what_a_slow_stream_has_settled() -> None:
    judge = Judge(name="remote", limits=WindowLimits(hold=10, window=1000, max_hold=0.5))
    stream = Stream([Chat()], SSE, Judges([judge]))
    for _ in range(10):
        stream.feed(said("four"), 1.0)
    assert stream.inspections() == []
    assert stream.wake_at() == 1.5
    stream.tick(1.5)
    (inspection,) = stream.inspections()
    stream.verdict(inspection, (), 1.6)
    assert stream.take() == said("four") * 7
    assert stream.longest_delay == pytest.approx(0.6)
    assert stream.held == 12
    assert stream.wake_at() is None


def test_text_is_held_until_it_may_leave_also_where_its_slot_has_ended() -> None:
    stream = Stream([Chat()], SSE, Judges([Judge(name="remote", limits=WindowLimits(hold=10, window=1000))]))
    stream.feed(said("four"), 0.0)
    stream.feed(said("three"), 0.0)
    assert stream.held == 9
    stream.feed(chunk({}, "stop"), 0.0)
    assert stream.held == 9
    (inspection,) = stream.inspections()
    stream.verdict(inspection, [Redact(0, 4, "[redacted]")], 0.0)
    assert stream.held == 0


def test_what_is_held_of_a_tool_call_is_all_of_it() -> None:
    drive = driver(local=lambda window: [Redact(0, 1)])
    for arguments in ('{"a": "x', 'y"}'):
        drive.feed(chunk({"tool_calls": [{"index": 0, "function": {"name": "send", "arguments": arguments}}]}))
    held = drive.stream.held
    drive.feed(chunk({}, "tool_calls"))
    assert held == len('{"a": "xy"}')
    assert drive.stream.held == 0


def test_a_stream_that_was_stopped_holds_nothing() -> None:
    stream = Stream([Chat()], SSE, Judges([LOCAL]))
    stream.feed(said("word"), 0.0)
    assert stream.held == 4
    stream.fail(Stop("no", 503))
    assert stream.held == 0


def test_the_app_waits_while_there_is_more_than_the_windows_take() -> None:
    judge = Judge(name="remote", limits=WindowLimits(hold=10, window=40, in_flight=2))
    stream = Stream([Chat()], SSE, Judges([judge]))
    fed = 0
    while not stream.full:
        stream.feed(said("word"), 0.0)
        fed += 1
    assert fed < 40
    for inspection in stream.inspections():
        stream.verdict(inspection, (), 0.0)
    assert not stream.full


def test_a_verdict_that_comes_after_the_end_is_ignored() -> None:
    stream = Stream([Chat()], SSE, Judges([LOCAL]))
    stream.feed(said("word\n"), 0.0)
    (inspection,) = stream.inspections()
    stream.fail(Stop("down", 503))
    stream.verdict(inspection, (), 0.0)
    stream.feed(said("more"), 0.0)
    stream.end(0.0)
    assert said("word\n") not in stream.take()
    assert stream.take() == b""
    assert stream.done


def test_too_many_bytes_of_waiting_events_are_a_failure() -> None:
    drive = driver()
    drive.feed(said("alice@"))
    filler = b'data: {"choices": [], "id": "' + b"x" * 500_000 + b'"}\n\n'
    for _ in range(MAX_HELD_BYTES // len(filler) + 1):
        drive.feed(filler)
    assert drive.stream.ending is not None
    assert drive.stream.ending.stop.failure


def test_an_end_of_anthropic_is_the_last_thing_said() -> None:
    drive = driver(dialect=Anthropic())
    for event in AnthropicSample().stream(dict.fromkeys(AnthropicSample.texts, "{}"), Cut(random.Random(1))):  # noqa: S311
        drive.feed(event)
    sent = drive.sent
    drive.stream.fail(Stop("down", 503))
    assert drive.stream.take() == b""
    assert b"message_stop" in sent


def test_memory_is_bounded_by_windows() -> None:
    drive = driver()
    for number in range(20_000):
        drive.feed(said(f"word {number}\n"))
        drive.out.clear()
    assert drive.stream.held_bytes < 1000
    release = drive.stream._release
    assert isinstance(release, Release)
    assert len(release.outcome.in_flight) == 0
    assert len(release._records) == 0


def test_interleaved_choices_do_not_disturb_each_other() -> None:
    rng = random.Random(2)  # noqa: S311
    cut = Cut(rng, longest=3)
    streams = [
        [chunk({"content": part}, index=index) for part in cut("to alice@example.com\n" * 3)] for index in range(4)
    ]
    sent = passed(Chat(), SSE, list(cut.mixed(*streams)), EVERYTHING, rng)
    joined = dict.fromkeys(range(4), "")
    for line in sent.decode().split("\n"):
        if line:
            choice = json.loads(line[6:])["choices"][0]
            joined[choice["index"]] += choice["delta"]["content"]
    assert set(joined.values()) == {"to [0]\n" * 3}


@pytest.mark.parametrize(
    ("dialect", "media_type", "rest", "between"),
    [
        (Chat(), SSE, said("x").rstrip(b"\n"), b"\n\n"),
        (Chat(), SSE, said("x")[:-2] + b"\r\n\r", b""),
        (Ollama(), "application/x-ndjson", b'{"done": false, "message": {"content": "x"}}', b"\n"),
    ],
)
def test_an_ending_is_an_event_of_its_own(dialect: Dialect, media_type: str, rest: bytes, between: bytes) -> None:
    stream = Stream([dialect], media_type, Judges([Judge(name="x", on=frozenset({"input"}))]))
    stream.feed(rest, 0.0)
    stream.end(0.0)
    assert stream.take() == rest
    stream.fail(Stop("down", 503))
    last = stream.take()
    assert last.startswith(between + (b"data: " if media_type == SSE else b"{"))


@pytest.mark.parametrize("answer", [-1, 5, 1.0, None])
def test_a_settled_that_fails_is_told_once_and_the_text_is_held(answer: Any) -> None:
    def odd(text: str) -> int:
        if answer is None:
            raise KeyError(text)
        return answer  # type: ignore[no-any-return]

    limits = WindowLimits(hold=10, window=100, eager=True, settled=odd)
    stream = Stream([Chat()], SSE, Judges([Judge(name="x", limits=limits)]))
    for _ in range(3):
        stream.feed(said("four"), 0.0)
    (failure,) = stream.failures
    assert isinstance(failure.error, KeyError if answer is None else AgentProtocolError)
    (inspection,) = stream.inspections()
    stream.verdict(inspection, (), 0.0)
    assert stream.held == 12


def test_the_answer_does_not_wait_for_reasoning_that_may_go_on() -> None:
    drive = driver()
    drive.feed(chunk({"reasoning_content": "hm alice"}))
    drive.feed(said("Hello,\n"))
    assert drive.sent == chunk({"reasoning_content": "hm alice"}) + said("Hello,\n")


def test_reasoning_that_goes_on_is_judged_with_what_it_had_said() -> None:
    for seed in range(20):
        rng = random.Random(seed) if seed else None  # noqa: S311
        drive = Driver(Stream([Chat()], SSE, Judges([LOCAL])), {"local": EVERYTHING}, rng)
        for part in ("pay 4111 1111 ", "1111 1111.\n and ", "\n"):
            drive.feed(chunk({"reasoning_content": part}))
            drive.feed(said("x"))
        drive.end()
        assert drive.sent == b"".join(
            chunk({"reasoning_content": part}) + said("x") for part in ("pay 4111 1111 ", "[1].\n and ", "\n")
        )


def call(field: str, text: Any, kind: str = "function", **more: Any) -> Any:
    return {"tool_calls": [{kind: {"name": "x", field: text}, **more}]}


@pytest.mark.parametrize(
    ("deltas", "arguments"),
    [
        # The same index for another call, as some servers send calls side by side.
        (
            [
                call("arguments", '{"to": "a@example.com"}', index=0, id="a"),
                call("arguments", '{"to": "b@example.com"}', index=0, id="b"),
            ],
            ['{"to": "[0]"}', '{"to": "[0]"}'],
        ),
        # No index at all, and arguments that are an object.
        ([call("arguments", {"to": "a@example.com"}, id="a")], [{"to": "[0]"}]),
        # Calls of functions as they were before there were tools.
        (
            [
                {"function_call": {"name": "x", "arguments": '{"to": "a@exa'}},
                {"function_call": {"arguments": 'mple.com"}'}},
            ],
            ['{"to": "[0]"', "}"],
        ),
        # Input that is no JSON.
        (
            [call("input", "a@exa", "custom", index=0, id="a"), call("input", "mple.com", "custom", index=0)],
            ["[0]", ""],
        ),
    ],
)
def test_tool_calls_as_servers_write_them(deltas: list[Any], arguments: list[Any]) -> None:
    sent = passed(Chat(), SSE, [*map(chunk, deltas), chunk({}, "tool_calls")], EVERYTHING)
    found: list[Any] = []
    for line in sent.decode().split("\n"):
        if line:
            delta = json.loads(line[6:])["choices"][0]["delta"]
            for call in delta.get("tool_calls", [delta] if delta else []):
                holder = call.get("function") or call.get("function_call") or call["custom"]
                found.append(holder.get("arguments", holder.get("input")))
    assert found == arguments


def test_tokens_that_do_not_say_what_the_text_does_are_judged_as_well() -> None:
    def event(text: str, token: str) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "logprobs": {"content": [{"token": token}]}}
        return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

    events = [event("", "a@exa"), event("", "mple.com"), event("fine,\n", "fine,\n")]
    sent = passed(Chat(), SSE, events, EVERYTHING)
    assert sent == (event("", "a@exa") + event("", "mple.com")).replace(
        b'{"content": [{"token": "a@exa"}]}', b"null"
    ).replace(b'{"content": [{"token": "mple.com"}]}', b"null") + event("fine,\n", "fine,\n")


@pytest.mark.parametrize("text", ["fine,\n", "a@example.com\n"])
def test_annotations_are_left_out_behind_a_changed_text(text: str) -> None:
    events = [said(text), chunk({"annotations": [{"type": "url_citation", "url_citation": {"end_index": 4}}]})]
    sent = passed(Chat(), SSE, events, EVERYTHING)
    assert (b'"annotations": []' in sent) is ("@" in text)


def test_json_over_several_lines_of_data_keeps_its_lines() -> None:
    lines = (b'data: {"choices": [', b'data:  {"index": 0, "delta":', b"id: 4", b'data:{"content": "a@example.com"}}]}')
    event = b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n\r\n"
    assert passed(Chat(), SSE, [event], EVERYTHING) == event.replace(b"a@example.com", b"[0]")


def test_a_stream_has_not_started_while_everything_in_it_was_left_out() -> None:
    stream = Stream([Anthropic()], SSE, Judges([LOCAL]))
    drive = Driver(stream, {"local": EVERYTHING})
    for event in (
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "a@example.com"}},
        {"type": "content_block_stop", "index": 0},
    ):
        drive.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert drive.sent == b""
    assert not stream.started


def test_every_built_in_dialect_has_a_name_of_its_own() -> None:
    assert len({dialect.name for dialect in BUILT_IN}) == len(BUILT_IN)
