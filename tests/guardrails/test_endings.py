"""A stream that is stopped at any event ends as its clients understand it."""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from asgi_agents.guardrails.dialect import Stop
from asgi_agents.guardrails.dialects.unknown import Lines
from asgi_agents.guardrails.judges import Judges
from asgi_agents.guardrails.slots import Block, Decision, Window
from asgi_agents.guardrails.stream import Stream
from tests.guardrails.driving import EVERYTHING, LOCAL, Driver
from tests.guardrails.samples import SAMPLES, Cut, Sample, events_of

REASON = "the policy says no"
_STOPPED = [sample for sample in SAMPLES if sample.name not in ("text", "events")]


def stopped(sample: Sample, how: str) -> Iterator[tuple[bytes, list[Any]]]:
    """What is sent when the stream is stopped after each of its events: the bytes, and the events in them."""
    texts = {name: '{"a": "b c"}' if "json" in name else "one two, three.\n" for name in sample.texts}
    events = sample.stream(texts, Cut(random.Random(3), longest=12))  # noqa: S311
    for count in range(len(events) + 1):
        stopping = False

        def check(window: Window) -> Sequence[Decision]:
            return [Block(REASON)] if stopping else EVERYTHING(window)  # noqa: B023

        stream = Stream([sample.dialect], sample.media_type, Judges([LOCAL]))
        driver = Driver(stream, {"local": check})
        for event in events[:count]:
            driver.feed(event)
        if how == "failed":
            stream.fail(Stop(REASON, 503))
        else:
            stopping = True
            for event in events[count:]:
                driver.feed(event)
        driver.end()
        if stream.ending is None or (how == "failed" and count == len(events)):
            continue
        sent = driver.sent
        if sample.media_type == "text/event-stream":
            assert sent.endswith((b"\n\n", b"\r\n\r\n"))
            yield sent, list(events_of(sent))
        elif sample.media_type == "application/json":
            yield sent, json.loads(sent)
        else:
            yield sent, [json.loads(line) for line in sent.split(b"\n")[:-1]]


@pytest.mark.parametrize("sample", _STOPPED, ids=lambda sample: sample.name)
def test_a_failure_is_an_error_with_its_reason(sample: Sample) -> None:
    for _, events in stopped(sample, "failed"):
        last = events[-1]
        # An end that has left is the last thing said.
        ended = last.get("type") in ("message_stop", "finish") or "finish" in str(events[-2:])
        assert REASON in json.dumps(last) or ended


@pytest.mark.parametrize("sample", _STOPPED, ids=lambda sample: sample.name)
def test_a_block_is_told_or_ends_as_filtered(sample: Sample) -> None:
    count = 0
    for sent, events in stopped(sample, "blocked"):
        count += 1
        told = REASON in json.dumps(events[-1]) or REASON in json.dumps(events[-2:])
        filtered = "content_filter" in json.dumps(events[-1])
        assert told or filtered, sent
    assert count


def test_blocks_of_anthropic_are_closed_and_come_in_order() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "anthropic")
    for how in ("blocked", "failed"):
        for _, events in stopped(sample, how):
            opened: list[int] = []
            for event in events:
                match event["type"]:
                    case "content_block_start":
                        assert event["index"] == len(opened)
                        opened.append(1)
                    case "content_block_stop":
                        assert opened[event["index"]] == 1
                        opened[event["index"]] = 0
            assert events[0]["type"] == "message_start" or how == "failed"
            if how == "blocked":
                assert not any(opened)
                assert [event["type"] for event in events].count("message_stop") == 1
                assert events[-2]["delta"]["stop_reason"] in ("refusal", "tool_use")


def test_parts_of_a_ui_message_are_closed() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "ui message")
    for sent, events in stopped(sample, "blocked"):
        started = [event["id"] for event in events if event["type"] in ("text-start", "reasoning-start")]
        ended = [event["id"] for event in events if event["type"] in ("text-end", "reasoning-end")]
        assert sorted(started) == sorted(ended)
        assert sent.endswith(b"data: [DONE]\n\n")


def test_lines_end_as_the_app_says() -> None:
    dialect = Lines(lambda stop: f"error: {stop.message}\n".encode())
    stream = Stream([dialect], "application/jsonl", Judges([LOCAL]))
    stream.fail(Stop("down", 503))
    assert stream.take() == b"error: down\n"


@pytest.mark.parametrize("name", ["chat", "anthropic", "responses"])
def test_no_tool_call_is_sent_in_part(name: str) -> None:
    sample = next(sample for sample in SAMPLES if sample.name == name)
    for how in ("blocked", "failed"):
        for sent, events in stopped(sample, how):
            if b'"send"' in sent:
                whole = [event for event in events if "error" not in event]
                read = sample.read(b"".join(b"data: " + json.dumps(event).encode() + b"\n" for event in whole))
                assert all(json.loads(text) for name, said in read.items() if "json" in name for text in said)
