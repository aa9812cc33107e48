"""Text of answers and streams that stands where its dialect has none, or where events have no text."""

import json
from typing import Any, Final

import pytest

from asgi_agents import FailureMode
from tests.guardrails.samples import SAMPLES, Cut
from tests.guardrails.wired.exchanging import CHAT, ENTITY, Finder, Sending, SlowFinder, asking, one, seeded
from tests.guardrails.wired.test_endings import event

pytestmark = pytest.mark.anyio

_OUTPUT: Final = {"output"}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"message": {"role": "assistant", "content": ENTITY}}).encode() + b"\n",
        f"{ENTITY}\n\n".encode(),
        f"data: {{}}\nnote: {ENTITY}\n\n".encode(),
    ],
)
async def test_what_is_no_field_of_an_event_is_stopped_in_fail_closed_mode(body: bytes) -> None:
    app = Sending([body], "text/event-stream")
    client = asking(CHAT, b"{}")
    try:
        await one(app, Finder(), _OUTPUT, failure_mode=FailureMode.CLOSED).call(client)
    except Exception:
        assert not client.complete
    assert ENTITY.encode() not in client.body


async def test_an_array_of_gemini_is_known_by_its_shape() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "gemini array")
    texts = {"thought": "x", "text 0": f"mail {ENTITY} now", "text 1": "", "json call": "{}"}
    app = Sending(sample.stream(texts, Cut(seeded(1), longest=3)), "application/json")
    client = await one(app, Finder()).call(asking("/proxy", b'{"contents": []}'))
    assert sample.read(client.body)["text 0"] == {"mail [0] now"}


async def test_a_line_end_that_is_cut_in_two_stays_with_its_event() -> None:
    lines = [each.replace(b"\n", b"\r\n") for each in (event("some "), event("words"))]
    app = Sending([lines[0][:-1], lines[0][-1:], lines[1][:-1], lines[1][-1:]])
    client = await one(app, SlowFinder(), _OUTPUT).call(asking(CHAT, b"{}"))
    assert client.body == b"".join(lines)


@pytest.mark.parametrize(
    "body",
    [
        {"type": "message", "text": ENTITY},
        {"candidates": [], "answer": ENTITY},
        {"object": "response", "answer": ENTITY},
        {"usageMetadata": {}, "text": ENTITY},
    ],
)
async def test_unknown_text_of_an_answer_is_judged(body: Any) -> None:
    app = Sending([json.dumps(body).encode()], "application/json", length=True)
    client = await one(app, Finder(), _OUTPUT).call(asking("/ask", b"{}"))
    assert ENTITY.encode() not in client.body


@pytest.mark.parametrize(
    "value",
    [
        {"type": "ping", "text": ENTITY},
        {"type": "text-delta", "text": ENTITY},
        {"type": "response.created", "text": ENTITY},
        {"type": "response.output_text.delta", "text": ENTITY},
        {"candidates": [], "text": ENTITY},
    ],
)
async def test_unknown_text_of_an_event_is_judged(value: Any) -> None:
    app = Sending([b"data: " + json.dumps(value).encode() + b"\n\n"])
    client = await one(app, Finder(), _OUTPUT).call(asking("/ask", b"{}"))
    assert ENTITY.encode() not in client.body


@pytest.mark.parametrize("kind", ["message", "text-delta", "error"])
async def test_text_of_events_of_an_apps_own_is_joined_whatever_their_type(kind: str) -> None:
    parts = ("I am alice.smith@", "example.com", ", hello.")
    app = Sending([b"data: " + json.dumps({"type": kind, "text": part}).encode() + b"\n\n" for part in parts])
    client = await one(app, Finder(), _OUTPUT).call(asking("/ask", b"{}"))
    assert b"alice.smith@" not in client.body
