"""What names look like, and that what does not is judged, whatever its key."""

import json
from typing import Any, Final

import pytest

from asgi_agents.guardrails.dialects.anthropic import Anthropic
from asgi_agents.guardrails.dialects.chat import Chat
from asgi_agents.guardrails.dialects.gemini import Gemini
from asgi_agents.guardrails.dialects.realtime import _NAMES as NAMES_OF_REALTIME
from asgi_agents.guardrails.dialects.responses import Responses
from asgi_agents.guardrails.naming import is_id, is_time, is_word
from asgi_agents.guardrails.uncovered import _NAMES as NAMES_OF_ANSWERS
from asgi_agents.guardrails.uncovered import uncovered
from tests.guardrails.detectors import redacted
from tests.guardrails.driving import EVERYTHING, passed
from tests.guardrails.test_message_stream import delta, driving, event

CARDS: Final = ("4111111111111111", "4111-1111-1111-1111", "5500-0000-0000-0004", "4111.1111:1111_1111")
#: Under these keys there is what nobody can read.
_ENCODED: Final = {"obfuscation", "encrypted_content", "signature", "thoughtSignature", "thought_signature"} | {
    "encrypted_index",
    "reasoningEncryptedContent",
}


@pytest.mark.parametrize(
    ("text", "word", "id_"),
    [
        *((text, True, True) for text in ("a", "auto", "gpt-4o-realtime-preview-2024-12-17", "gpt-4.1-2025-04-14")),
        *((text, True, True) for text in ("claude-3-5-sonnet-20241022", "audio/pcm", "image/svg+xml", "$.to[0]")),
        *((text, False, True) for text in ("chatcmpl-7b1c0c52b9d04a1e8f3c2d1e0f9a8b7c", "0", "123456")),
        *((text, False, True) for text in ("41111111-1111-4111-8111-1111a1111111", "411111111111411181111111a1111111")),
        *((text, True, True) for text in ("call_12345678901", "x" * 128)),
        *((text, False, False) for text in ("", "two words", "a@b.co", "x" * 129, "\u0664\u0662", "a\n", "{}", '"')),
        *((text, False, False) for text in ("1234567", "555-867-5309", "123-45-6789", *CARDS)),
        *((text, False, False) for text in (f"evt_{card}" for card in CARDS[:3])),
        # A card between hyphens at the places of a UUID's.
        ("00004111-1111-1111-1111-000000000000", False, False),
    ],
)
def test_the_form_of_names(text: str, word: bool, id_: bool) -> None:
    assert (is_word(text), is_id(text)) == (word, id_)


def test_the_form_of_times() -> None:
    given = ("2025-01-12", "2025-01-12T15:00Z", "2025-01-12T15:00:58.123456789+01:00", "2025-01-12T15:00:58Z")
    assert all(map(is_time, given))
    assert not any(map(is_time, ("", "2025", "today", "4111-11-11 1111", "2025-01-12T15:00:58.4111111111111111Z")))


_ITEM: Final = {"id": "item_1", "type": "message", "role": "user"}
#: Events of the Realtime API, and where in them something is put.
EVENTS: Final[dict[str, tuple[bool, Any]]] = {
    "of a client": (True, lambda more: {"type": "session.update", "session": {"type": "realtime"}, **more}),
    "of a client, in settings": (True, lambda more: {"type": "session.update", "session": more}),
    "of a client, deep in settings": (
        True,
        lambda more: {"type": "session.update", "session": {"audio": {"output": more}}},
    ),
    "of a client, in a response": (True, lambda more: {"type": "response.create", "response": more}),
    "of a client, in an item": (True, lambda more: {"type": "conversation.item.create", "item": {**_ITEM, "x": more}}),
    "of a client, in audio": (True, lambda more: {"type": "input_audio_buffer.append", "audio": "UklG", **more}),
    "of an app": (False, lambda more: {"type": "session.created", "session": {"type": "realtime"}, **more}),
    "of an app, in settings": (False, lambda more: {"type": "session.updated", "session": {"audio": {"output": more}}}),
    "of an app, in an item": (False, lambda more: {"type": "conversation.item.added", "item": {**_ITEM, "x": more}}),
    "of an app, in a response": (False, lambda more: {"type": "response.done", "response": {"id": "r", "x": more}}),
    "of an app, beside a delta": (False, lambda more: {**json.loads(delta("hello ", 1)), **more}),
}


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("card", CARDS[:2])
def test_numbers_are_no_names_in_events_of_the_realtime_api(name: str, card: str) -> None:
    from_client, around = EVENTS[name]
    # Those by which an event is told from others make another one of it, which is judged as such.
    for key in NAMES_OF_REALTIME - {"type"} - _ENCODED:
        driver = driving(from_client=from_client)
        driver.feed(json.dumps(around({key: card})))
        assert card not in str(driver.end()), key
        driver = driving(from_client=from_client)
        driver.feed(json.dumps(around({key: [card]})))
        assert card not in str(driver.end()), key


def test_names_of_the_realtime_api_pass_unchanged() -> None:
    session = {
        "type": "realtime",
        "id": "sess_C9CiUVUzUzYIssh3ELY1d",
        "model": "gpt-4o-realtime-preview-2024-12-17",
        "voice": "marin",
        "tool_choice": "auto",
        "include": ["item.input_audio_transcription.logprobs"],
        "audio": {"input": {"format": {"type": "audio/pcm"}, "turn_detection": {"eagerness": "low"}}},
    }
    shown: list[str] = []

    def check(window: Any) -> Any:
        shown.append(window.text)
        return ()

    for from_client, kind in ((True, "session.update"), (False, "session.created")):
        driver = driving(check, from_client=from_client)
        driver.feed(event(kind, session=session))
        driver.end()
    assert shown == []


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        (Chat(), {"id": "c", "choices": [{"index": 0, "delta": {"content": "hello "}}]}),
        (Responses(), {"type": "response.output_text.delta", "item_id": "i", "content_index": 0, "delta": "hello "}),
        (Anthropic(), {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello "}}),
        (Gemini(), {"candidates": [{"content": {"parts": [{"text": "hello "}]}}]}),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
def test_numbers_are_no_names_in_answers_either(dialect: Any, answer: Any) -> None:
    card = CARDS[0]
    for key in NAMES_OF_ANSWERS - {"type", "event"} - _ENCODED:
        data = f"data: {json.dumps({**answer, 'more': {key: card, 'in': [{key: [card]}]}})}\n\n".encode()
        sent = passed(dialect, "text/event-stream", [data], EVERYTHING)
        assert card.encode() not in sent, key


def test_what_a_client_calls_an_id_is_judged_in_requests() -> None:
    request: Any = {"messages": [{"role": "user", "content": "x", "id": CARDS[0]}], "more": {"id": CARDS[1]}}
    texts = {getattr(operation, "text", None) for operation in uncovered(request, Chat().request(request))}
    assert set(CARDS[:2]) <= texts
    assert redacted(CARDS[0], EVERYTHING) == "[1]"
