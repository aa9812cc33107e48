"""In which order answers are sent, without a connection."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from asgi_agents.protocol import EventType
from asgi_agents.protocol.stream import CallIds
from asgi_agents.serve.dispatch import ServedCall
from asgi_agents.serve.unanswered import Unanswered


def call(correlation_id: str, call_id: int | None = None) -> ServedCall:
    caller: Any = None
    ids = CallIds(correlation_id, UNSET if call_id is None else call_id)
    return ServedCall(caller, ids, EventType.REQUEST_HEADERS, None, True)


def filed(*calls: ServedCall) -> Unanswered:
    unanswered = Unanswered()
    for each in calls:
        unanswered.add(each)
    return unanswered


def answer(unanswered: Unanswered, answered: ServedCall) -> list[ServedCall]:
    answered.answer = b"answer"
    return unanswered.take_due(answered)


def test_answers_about_one_request_wait_for_those_to_earlier_events() -> None:
    first, second, third = call("a"), call("a"), call("a")
    unanswered = filed(first, second, third)

    assert answer(unanswered, second) == []
    assert answer(unanswered, first) == [first, second]
    assert answer(unanswered, third) == [third]
    assert len(unanswered) == 0


def test_answers_about_different_requests_do_not_wait_for_each_other() -> None:
    first, second = call("a"), call("b")
    unanswered = filed(first, second)
    assert answer(unanswered, second) == [second]
    assert answer(unanswered, first) == [first]


def test_an_answer_without_any_id_waits_until_it_is_that_to_the_oldest_event() -> None:
    first, nameless, later = call("a"), call(""), call("a")
    unanswered = filed(first, nameless, later)

    assert answer(unanswered, nameless) == []
    assert answer(unanswered, first) == [first, nameless]
    assert answer(unanswered, later) == [later]


def test_calls_that_are_named_hold_up_nobody() -> None:
    named, ordered = call("a", 1), call("a")
    unanswered = filed(named, ordered)

    assert answer(unanswered, ordered) == [ordered]
    assert list(unanswered) == [named]
    unanswered.remove(named)
    assert len(unanswered) == 0


@pytest.mark.parametrize(
    ("earlier", "later", "held_up"),
    [("a", "a", True), ("a", "b", False), ("a", "", True), ("", "a", False), ("", "", True)],
)
def test_a_call_is_held_up_by_an_earlier_one_that_its_answer_could_be_taken_for(
    earlier: str, later: str, held_up: bool
) -> None:
    assert filed(call(earlier)).holds_up(call(later)) is held_up
    assert not Unanswered().holds_up(call(later))


def test_the_calls_about_one_request_are_found() -> None:
    first, second, other = call("a", 1), call("a"), call("b", 2)
    unanswered = filed(first, other, second)
    assert list(unanswered.with_id("a")) == [first, second]
    assert list(unanswered.with_id("c")) == []
    unanswered.clear()
    assert (len(unanswered), list(unanswered)) == (0, [])


@given(names=st.lists(st.sampled_from(["", "a", "b"]), max_size=8), data=st.data())
def test_a_client_matches_every_answer_with_its_event(names: list[str], data: st.DataObject) -> None:
    calls = [call(name) for name in names]
    unanswered = filed(*calls)
    expected = list(calls)
    for finished in data.draw(st.permutations(calls)):
        for sent in answer(unanswered, finished):
            name = sent.ids.correlation_id
            # As the client does: the oldest with that id, or the oldest of all.
            assert sent is next(each for each in expected if not name or each.ids.correlation_id == name)
            expected.remove(sent)
    assert expected == []
    assert len(unanswered) == 0
