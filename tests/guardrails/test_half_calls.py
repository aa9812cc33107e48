"""Arguments of tool calls that break off in a websocket session, and nothing says so."""

import json
from typing import Any, Final

import pytest

from asgi_agents.guardrails.framing import UnreadableError
from asgi_agents.guardrails.held_call import MAX_CHARACTERS, HeldCall
from asgi_agents.guardrails.message import Payload
from asgi_agents.guardrails.slots import Slot
from tests.guardrails.test_message_stream import driving, event

KIND: Final = "response.function_call_arguments"
AT: Final = {"response_id": "r", "item_id": "i", "output_index": 0}
ITEM: Final = {"id": "i", "type": "function_call", "name": "mail", "call_id": "c", "arguments": ""}


def session(arguments: str, size: int, end: str) -> list[str]:
    """The events of a call whose arguments come in pieces, and then what ends it."""
    full = {**ITEM, "arguments": arguments, "status": "completed"}
    added = [event("response.output_item.added", response_id="r", output_index=0, item=ITEM)]
    deltas = [event(f"{KIND}.delta", **AT, delta=arguments[n : n + size]) for n in range(0, len(arguments), size)]
    ends: dict[str, list[str]] = {
        "its end": [event(f"{KIND}.done", **AT, arguments="")],
        "its end, with all of it": [
            event(f"{KIND}.done", **AT, arguments=arguments),
            event("response.output_item.done", response_id="r", output_index=0, item=full),
        ],
        "its item": [event("response.output_item.done", response_id="r", output_index=0, item=full)],
        "its response": [event("response.done", response={"id": "r", "status": "completed", "output": []})],
        "its response, with all of it": [
            event("response.done", response={"id": "r", "status": "completed", "output": [full]})
        ],
        "the end of the session": [],
    }  # fmt: skip
    return [*added, *deltas, *ends[end]]


ENDS: Final = (
    *("its end", "its end, with all of it", "its item", "its response", "its response, with all of it"),
    "the end of the session",
)
#: What breaks off, and what it leaves as. None: it can't be read.
HALVES: Final[dict[str, tuple[str, str | None]]] = {
    "in a string": ('{"to": "alice@example.com', '{"to": "[0]"'),
    "behind a string": ('{"to": "alice@example.com"', '{"to": "[0]"'),
    "in an escape": ('{"to": "alice\\u0040example.com\\u00', None),
    "in a list": ('{"to": ["bob", "alice@example.com", ', '{"to": ["bob", "[0]", '),
    "without a find": ('{"to": "nobo', '{"to": "nobo'),
    "none of JSON": ("{to: alice@example.com}", None),
    "more than JSON": ('{"to": "alice@example.com"}}', None),
}


def arguments_in(messages: list[Payload]) -> tuple[str, list[str]]:
    """What deltas say together, and what is said again."""
    events = [json.loads(message) for message in messages]
    deltas = "".join(each["delta"] for each in events if each["type"].endswith(".delta"))
    items = [each["item"] for each in events if "item" in each]
    items += [item for each in events if "response" in each for item in each["response"]["output"]]
    again = [each.get("arguments") for each in [*events, *items]]
    return deltas, [text for text in again if text]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("size", [1, 9, 100])
@pytest.mark.parametrize("name", HALVES)
def test_in_fail_open_mode_they_are_judged_as_far_as_they_go(name: str, size: int, end: str) -> None:
    given, left = HALVES[name]
    driver = driving(strict=False)
    messages = [*session(given, size, end), event("error", error={"message": "mail bob@example.com"})]
    driver.feed(*messages)
    out = driver.end()

    assert driver.stream.ending is None
    assert len(out) == len(messages)
    deltas, again = arguments_in(out)
    if left is not None:
        assert deltas == left
        assert all("alice" not in text for text in again)
    if name == "none of JSON":
        assert deltas == given
        assert driver.stream.unreadable >= 1
    # What follows is judged.
    assert json.loads(str(out[-1]))["error"]["message"] == "mail [0]"
    assert driver.stream.held == driver.stream.waiting == 0


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", HALVES)
def test_in_fail_closed_mode_they_close_the_session(name: str, end: str) -> None:
    driver = driving()
    driver.feed(*session(HALVES[name][0], 9, end))
    out = driver.end()
    assert driver.stream.ending is not None
    assert driver.stream.ending.stop.status == 503
    assert "alice" not in "".join(map(str, out))


@pytest.mark.parametrize("strict", [True, False])
def test_a_call_that_is_too_long_follows_the_failure_mode(strict: bool) -> None:
    parts = ['{"to": "', "x" * MAX_CHARACTERS, " alice@example.com", '"}']
    driver = driving(strict=strict)
    given: list[Any] = [event(f"{KIND}.delta", **AT, delta=part) for part in parts]
    driver.feed(*given)
    out = driver.end()
    if strict:
        assert driver.stream.ending is not None
        assert out == []
    else:
        assert out == given
        assert driver.stream.unreadable == 1


@pytest.mark.parametrize("text", ["{", "[1, 2", '{"a": tru', "x" * (MAX_CHARACTERS + 1), "}", "no JSON"])
def test_every_piece_is_released_once(text: str) -> None:
    released: list[str | None] = []
    call = HeldCall(Slot(("c",), "tool_call"), "json", lambda slot, given, done: done(given), strict=False)
    call.add("", released.append)
    call.add(text, released.append)
    call.add("", released.append)
    call.finish()
    assert released == ["", text, ""]

    strict = HeldCall(Slot(("c",), "tool_call"), "json", lambda slot, given, done: done(given))

    def all_of_it() -> None:
        strict.add(text, released.append)
        strict.finish()

    with pytest.raises(UnreadableError):
        all_of_it()
