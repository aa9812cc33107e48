"""The dialect of the Gradio recipe: over streams as Gradio cuts them, and with Gradio itself."""

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest

from asgi_agents.guardrails.judges import Judges
from asgi_agents.guardrails.slots import Block, Decision, Window
from asgi_agents.guardrails.stream import Stream
from tests.guardrails.detectors import redacted
from tests.guardrails.driving import EVERYTHING, LOCAL, Driver, passed
from tests.guardrails.samples import Cut

from .recipes import Recipe, written
from .sse import read_events
from .stage import PATIENCE

ENTITIES = ("alice@example.com", "4111 1111 1111 1111")
WORDS = ("Write", " to ", "the ", ", ", "é", " 17 ", "now. ", *ENTITIES)
MEDIA_TYPE = "text/event-stream"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    with written("gradio", tmp_path_factory.mktemp("gradio")) as recipe:
        yield recipe


@pytest.fixture
def dialect(recipe: Recipe) -> Any:
    return recipe.module("gradio_dialect").Gradio()


DELETES: Any = {"event_id": "e", "output": {"data": [[["delete", [0], None]]]}}


def edits_of(old: Any, new: Any, at: tuple[Any, ...] = ()) -> list[list[Any]]:
    """How Gradio says that a value has grown."""
    if old == new:
        return []
    if isinstance(old, str) and isinstance(new, str) and new.startswith(old):
        return [["append", [*at], new[len(old) :]]]
    if isinstance(old, list) and isinstance(new, list) and len(old) <= len(new):
        added = [["add", [*at, index], new[index]] for index in range(len(old), len(new))]
        pairs = enumerate(zip(old, new, strict=False))
        return [edit for index, pair in pairs for edit in edits_of(*pair, (*at, index))] + added
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [edit for key in old for edit in edits_of(old[key], new[key], (*at, key))]
    return [["replace", [*at], new]]


def edited(value: Any, edits: Sequence[Any]) -> Any:
    """What Gradio's clients make of edits."""
    whole = [copy.deepcopy(value)]
    for action, at, new in edits:
        inner: Any = whole
        keys = [0, *at]
        for key in keys[:-1]:
            inner = inner[key]
        last = keys[-1]
        if action == "add" and isinstance(inner, list):
            inner.insert(last, new)
        else:
            inner[last] = inner[last] + new if action == "append" else new
    return whole[0]


def events_of(event_id: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    """The events about a function that yields ``values``."""
    said: list[dict[str, Any]] = [{"msg": "process_starts", "event_id": event_id}]
    for number, value in enumerate(values):
        data = [None, value] if number == 0 else [[], edits_of(values[number - 1], value)]
        said.append({"msg": "process_generating", "event_id": event_id, "output": {"data": data}, "success": True})
    ended = {"output": {"data": [None, values[-1]]}, "success": True}
    return [*said, {"msg": "process_completed", "event_id": event_id, **ended}]


def written_out(events: Sequence[Any]) -> bytes:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in (*events, {"msg": "close_stream"})).encode()


def seen(data: bytes, event_id: str) -> list[Any]:
    """The values that a client sees of one event."""
    values: list[Any] = []
    for event in (read.json() for read in read_events(data.decode())):
        if event.get("event_id") == event_id and "output" in event:
            output = event["output"]["data"][1]
            generating = event["msg"] == "process_generating"
            values.append(edited(values[-1], output) if values and generating else output)
    return values


def messages(question: str, answer: str) -> list[Any]:
    """The value of a chatbot."""
    said = (("user", question), ("assistant", answer))
    return [{"role": role, "content": [{"text": text, "type": "text"}], "options": None} for role, text in said]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("shape", ["text", "chatbot"])
def test_clients_see_what_redacting_the_whole_text_gives_however_it_is_cut(dialect: Any, shape: str, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    cut = Cut(rng)
    answers = ["".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 12))) for _ in range(2)]
    question = f"by {rng.choice(ENTITIES)}"
    streams = []
    for number, answer in enumerate(answers):
        parts = cut(answer)
        grown = ["".join(parts[: end + 1]) for end in range(len(parts))]
        values: list[Any] = grown if shape == "text" else [messages(question, text) for text in grown]
        streams.append(events_of(f"e{number}", values))
    stream = written_out(list(cut.mixed(*streams)))
    sent = passed(dialect, MEDIA_TYPE, cut.bytes(stream), EVERYTHING, rng)
    for number, answer in enumerate(answers):
        clean = redacted(answer, EVERYTHING)
        *before, last_of_stream, repeated = seen(sent, f"e{number}")
        expected: Any = clean if shape == "text" else messages(redacted(question, EVERYTHING), clean)
        assert last_of_stream == repeated == expected
        for value in before:
            text = value if shape == "text" else value[1]["content"][0]["text"]
            assert clean.startswith(text)


@pytest.mark.parametrize("seed", range(10))
def test_a_text_that_is_rewritten_is_another_text(dialect: Any, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    values = ["thinking of alice@ex", "thinking of alice@example.com", "", "Write to bob@", "Write to bob@example.org."]
    sent = passed(dialect, MEDIA_TYPE, Cut(rng).bytes(written_out(events_of("e", values))), EVERYTHING, rng)
    views = seen(sent, "e")
    assert views[-2:] == ["Write to [0].", "Write to [0]."]
    assert "thinking of [0]" in views
    assert all("@" not in view for view in views)


def test_a_message_that_is_added_ends_the_one_before(dialect: Any) -> None:
    first = messages("hello", "one alice@example.com")
    values = [first, [*first, messages("", "two bob@example")[1]], [*first, messages("", "two bob@example.org")[1]]]
    sent = passed(dialect, MEDIA_TYPE, [written_out(events_of("e", values))], EVERYTHING)
    assert [message["content"][0]["text"] for message in seen(sent, "e")[-1]] == ["hello", "one [0]", "two [0]"]


def test_a_stream_that_is_stopped_completes_each_event_with_the_reason(dialect: Any) -> None:
    def check(window: Window) -> Sequence[Decision]:
        return [Block("not here")] if "bad" in window.text else []

    driver = Driver(Stream([dialect], MEDIA_TYPE, Judges([LOCAL])), {"local": check})
    good, bad = events_of("good", ["fine. ", "fine. too."]), events_of("bad", ["fine. ", "fine. b", "fine. bad"])
    ended = events_of("ended", ["fine."])
    for event in (*ended, *good[:2], *bad):
        driver.feed(written_out([event])[: -len(written_out([]))])
    events = [read.json() for read in read_events(driver.sent.decode())]
    *told, closed = [event for event in events if not event.get("success", True) or event["msg"] == "close_stream"]
    assert [event["event_id"] for event in told] == ["good", "bad"]
    assert {event["output"]["error"] for event in told} == {"not here"}
    assert closed == {"msg": "close_stream"}


@pytest.mark.parametrize(
    "stream",
    [
        b'event: generating\ndata: ["Write to ali"]\n\n',
        written_out([*events_of("e", ["a"])[:2], {**DELETES, "msg": "process_generating"}]),
    ],
    ids=["all of the text again", "texts that move"],
)
def test_what_cannot_be_read_is_stopped(dialect: Any, stream: bytes) -> None:
    driver = Driver(Stream([dialect], MEDIA_TYPE, Judges([LOCAL])), {"local": EVERYTHING})
    driver.feed(stream)
    assert driver.stream.ending is not None
    assert b"ali" not in driver.sent


def test_heartbeats_wait_for_nothing(dialect: Any) -> None:
    driver = Driver(Stream([dialect], MEDIA_TYPE, Judges([LOCAL])), {"local": EVERYTHING})
    driver.feed(written_out(events_of("e", ["Write to ali", "Write to alice"])[:3])[: -len(written_out([]))])
    held = len(driver.sent)
    driver.feed(b'data: {"msg": "heartbeat"}\n\n')
    assert driver.sent[held:] == b'data: {"msg": "heartbeat"}\n\n'


@pytest.mark.filterwarnings("ignore")
def test_the_page_sees_the_answer_grow_and_is_told_of_a_block(recipe: Recipe) -> None:
    """What Gradio's page sends and reads, with Gradio itself."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install '.[compat]'")
    base = f"{recipe.served('main')}/chat"
    with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
        names = {step["api_name"]: step["id"] for step in client.get(f"{base}/config").json()["dependencies"]}

        def asked(name: str, *data: Any) -> list[Any]:
            body = {"data": data, "fn_index": names[name], "trigger_id": None, "session_hash": "s"}
            joined = client.post(f"{base}/gradio_api/queue/join", json=body)
            assert joined.status_code == 200, joined.text
            data_url = f"{base}/gradio_api/queue/data"
            events = read_events(client.get(data_url, params={"session_hash": "s"}).text)
            return [event.json() for event in events]

        for question in ("I am bob@example.com", "What are your plans?"):
            asked("_clear_and_save_textbox", question)
            asked("_append_message_to_history", None, [])
            events = asked("_submit_fn", None, None)
            views = [view[-1]["content"][0]["text"] for view in seen_by_page(events)]
            if "plans" in question:
                assert views == ["We plan "]
                assert events[-2]["output"]["error"] == "The merger is no topic here"
            else:
                assert views[0] == "You "
                assert views[-1] == "You wrote: I am [email]. Write to [email] today."
            assert all("@" not in json.dumps(event) for event in events)


@pytest.mark.filterwarnings("ignore")
def test_no_endpoint_takes_what_is_blocked_and_none_says_what_is_redacted(recipe: Recipe) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install '.[compat]'")
    api = f"{recipe.served('main')}/chat/gradio_api"
    with httpx.Client(timeout=PATIENCE, trust_env=False) as client:

        def asked(path: str, text: str) -> httpx.Response:
            listed = {"data": [text, None], "fn_index": 6, "session_hash": "s2"}
            return client.post(f"{api}/{path}", json={"message": text} if "v2" in path else listed)

        for path in ("queue/join", "call/answer", "call/v2/answer", "run/answer", "api/answer"):
            refused = asked(path, "What of the merger?")
            assert (refused.status_code, refused.json()) == (400, {"detail": "The merger is no topic here"}), path
        for path in ("call/answer", "call/v2/answer"):
            event_id = asked(path, "I am bob@example.com").json()["event_id"]
            said = client.get(f"{api}/call/answer/{event_id}").text
            # All of the text again with each event: nobody can redact half an address.
            assert "close_stream" in said
            assert "@" not in said
            assert "Write" not in said
        # One with a stream of its own, which says only that it is there.
        with client.stream("GET", f"{api}/heartbeat/s2") as beats:
            assert "ALIVE" in next(beats.iter_text())


def seen_by_page(events: Sequence[Any]) -> list[Any]:
    (event_id,) = {event["event_id"] for event in events if event.get("event_id")}
    return seen(written_out([event for event in events if "error" not in event.get("output", {})]), event_id)
