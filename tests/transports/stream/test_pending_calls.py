import itertools
import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UnsetType

from asgi_agents.concurrency.background import Signal
from asgi_agents.protocol.stream import CallIds
from asgi_agents.transports.stream.pending_calls import PendingCall, PendingCalls

NOTHING = CallIds()
NO_SUCH_CALL = 2**62

reproducible = settings(deadline=None, derandomize=True, database=None)


def sent(correlation_id: str, deadline: float = math.inf) -> PendingCall:
    """A call that nothing but its line knows of."""
    return PendingCall(correlation_id, deadline, Signal(None))


def of(call: PendingCall) -> CallIds:
    """An answer that names the call by both ids."""
    return CallIds(call.correlation_id, call.number)


def about(call: PendingCall) -> CallIds:
    """An answer that names the correlation id alone."""
    return CallIds(call.correlation_id)


def line_of(*correlation_ids: str) -> tuple[PendingCalls, list[PendingCall]]:
    line = PendingCalls()
    calls = [sent(correlation_id) for correlation_id in correlation_ids]
    for call in calls:
        line.add(call)
    return line, calls


def test_an_answer_that_names_nothing_is_for_the_oldest_call() -> None:
    line, calls = line_of("a", "b", "a")

    assert [line.match(NOTHING) for _ in range(4)] == [*calls, None]


def test_an_answer_that_names_a_correlation_id_is_for_the_oldest_call_with_it() -> None:
    line, (first_a, first_b, second_a) = line_of("a", "b", "a")

    assert line.match(CallIds("b")) is first_b
    assert line.match(CallIds("b")) is None
    assert line.match(CallIds("a")) is first_a
    assert line.match(CallIds("a")) is second_a


def test_an_answer_that_names_a_call_is_for_that_call() -> None:
    line, calls = line_of("a", "a", "a")

    assert [line.match(of(call)) for call in reversed(calls)] == calls[::-1]


def test_a_call_can_be_named_without_its_correlation_id() -> None:
    line, (_, second) = line_of("a", "a")

    assert line.match(CallIds(call_id=second.number)) is second


def test_a_call_and_the_correlation_id_of_another_name_nobody() -> None:
    line, (a, b) = line_of("a", "b")

    assert line.match(CallIds("b", a.number)) is None
    assert line.match(CallIds("a", b.number)) is None
    assert len(line) == 2


def test_an_unknown_call_of_a_known_request_is_nobody() -> None:
    line, _ = line_of("a")

    assert line.match(CallIds("a", NO_SUCH_CALL)) is None
    assert len(line) == 1


def test_a_call_that_was_given_up_keeps_its_turn() -> None:
    for ids in (NOTHING, CallIds("a")):
        line, (given_up, waiting) = line_of("a", "a")
        line.abandon(given_up)

        assert line.match(ids) is given_up
        assert line.match(ids) is waiting


def test_a_call_that_is_given_up_twice_counts_once() -> None:
    line, (given_up, _) = line_of("a", "b")

    line.abandon(given_up)
    line.abandon(given_up)

    assert (len(line), line.waited_for) == (2, 1)


def test_a_call_that_was_answered_cannot_be_given_up_any_more() -> None:
    line, (answered, _) = line_of("a", "b")
    line.match(of(answered))

    line.abandon(answered)

    assert not answered.abandoned
    assert (len(line), line.waited_for) == (1, 1)


def test_a_call_that_was_never_sent_cannot_be_given_up() -> None:
    line, _ = line_of("a")
    unsent = sent("a")

    line.abandon(unsent)

    assert not unsent.abandoned
    assert (len(line), line.waited_for) == (1, 1)


def test_clearing_returns_those_that_somebody_waits_for_in_order() -> None:
    line, (first, second, third, fourth) = line_of("a", "b", "a", "")
    line.abandon(second)
    line.match(of(third))

    assert line.clear() == [first, fourth]
    assert (len(line), line.waited_for, line.oldest) == (0, 0, None)
    assert line.match(NOTHING) is None
    assert line.match(CallIds("a")) is None


def test_a_call_that_was_cleared_away_can_be_given_up_without_harm() -> None:
    line, (call,) = line_of("a")
    line.clear()

    line.abandon(call)

    assert line.waited_for == 0


def test_calls_have_numbers_of_their_own_on_all_lines() -> None:
    _, first = line_of("a", "a")
    _, second = line_of("a", "a")

    assert len({call.number for call in (*first, *second)}) == 4


def test_an_empty_line_knows_no_call() -> None:
    line = PendingCalls()

    assert [line.match(ids) for ids in (NOTHING, CallIds("a"), CallIds("a", 1), CallIds(call_id=1))] == [None] * 4
    assert (len(line), line.waited_for, line.oldest, line.clear()) == (0, 0, None, [])


def test_a_call_whose_deadline_has_passed_keeps_its_turn() -> None:
    line, calls = PendingCalls(), [sent("a", 10), sent("a", 30), sent("a", 20), sent("a")]
    for call in calls:
        line.add(call)

    assert line.expire(9.9) == ([], 10)
    assert line.expire(10) == ([calls[0]], 20)
    assert line.expire(10) == ([], 20)
    assert (len(line), line.waited_for) == (4, 3)
    assert line.expire(100) == ([calls[1], calls[2]], math.inf)
    assert line.expire(math.inf) == ([calls[3]], None)
    assert line.waited_for == 0
    assert [line.match(CallIds("a")) for _ in calls] == calls


def test_what_was_given_up_has_no_deadline_any_more() -> None:
    line, (given_up, answered) = PendingCalls(), (sent("a", 10), sent("b", 10))
    line.add(given_up)
    line.add(answered)
    line.abandon(given_up)
    line.match(of(answered))

    assert line.expire(100) == ([], None)
    assert line.waited_for == 0


class Model:
    """The rules of the line, read off the protocol's page with no thought of speed."""

    def __init__(self) -> None:
        self.owed: list[PendingCall] = []
        self.given_up: list[PendingCall] = []

    def match(self, correlation_id: str, call_id: int | UnsetType) -> PendingCall | None:
        for call in self.owed:
            if isinstance(call_id, int) and call.number != call_id:
                continue
            if correlation_id and call.correlation_id != correlation_id:
                continue
            self.owed.remove(call)
            return call
        return None

    @property
    def waiting(self) -> list[PendingCall]:
        return [call for call in self.owed if call not in self.given_up]


class Both:
    """A line and the model of one, which are told the same."""

    def __init__(self) -> None:
        self.line = PendingCalls()
        self.model = Model()
        self.calls: list[PendingCall] = []

    def do(self, step: tuple[str, int]) -> None:
        what, number = step
        known = number < len(self.calls)
        match what:
            case "add":
                call = sent("ab"[number % 2], number)
                self.calls.append(call)
                self.line.add(call)
                self.model.owed.append(call)
            case "abandon" if known:
                call = self.calls[number]
                self.line.abandon(call)
                if call in self.model.owed and call not in self.model.given_up:
                    self.model.given_up.append(call)
            case "expire":
                late = [call for call in self.model.waiting if call.deadline <= number]
                self.model.given_up += late
                deadlines = [call.deadline for call in self.model.waiting]
                assert self.line.expire(number) == (late, min(deadlines, default=None))
            case "named":
                self.match(CallIds(call_id=self.calls[number].number if known else NO_SUCH_CALL))
            case "named with its request" if known:
                self.match(of(self.calls[number]))
            case "named with another request" if known:
                self.match(CallIds("elsewhere", self.calls[number].number))
            case "request":
                self.match(CallIds(("a", "b", "nobody")[number % 3]))
            case "nothing":
                self.match(NOTHING)
        self.compare()

    def match(self, ids: CallIds) -> None:
        assert self.line.match(ids) is self.model.match(ids.correlation_id, ids.call_id), ids

    def compare(self) -> None:
        owed, waiting = self.model.owed, self.model.waiting
        assert len(self.line) == len(owed)
        assert self.line.oldest is (owed[0] if owed else None)
        assert self.line.waited_for == len(waiting)
        assert [call for call in self.calls if call.abandoned] == [
            call for call in self.calls if call in self.model.given_up
        ]

    def finish(self) -> None:
        waiting = self.model.waiting
        assert self.line.clear() == waiting
        assert (len(self.line), self.line.waited_for) == (0, 0)


SHORT_STEPS = [
    ("add", 0),
    ("add", 1),
    ("abandon", 0),
    ("abandon", 1),
    ("expire", 0),
    ("named", 1),
    ("named with its request", 0),
    ("named with another request", 0),
    ("request", 0),
    ("request", 1),
    ("nothing", 0),
]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_every_short_history_goes_by_the_rules(length: int) -> None:
    # It takes calls to have a history: all begin with those of two requests.
    for steps in itertools.product(SHORT_STEPS, repeat=length):
        both = Both()
        for step in (("add", 0), ("add", 1), ("add", 0), *steps):
            both.do(step)
        both.finish()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["add"] * 3
                + ["abandon", "expire", "named", "named with its request", "named with another request"]
                + ["request", "nothing"]
            ),
            st.integers(0, 12),
        ),
        max_size=60,
    )
)
@reproducible
def test_every_history_goes_by_the_rules(steps: list[tuple[str, int]]) -> None:
    both = Both()
    for step in steps:
        both.do(step)
    both.finish()


def turns(choices: list[int]) -> Iterator[int]:
    """The choices, and zeros when they run out."""
    yield from choices
    while True:
        yield 0


HISTORIES = st.lists(st.sampled_from(["call a", "call b", "give up", "answer", "again", "unknown"]), max_size=40)
CHOICES = st.lists(st.integers(0, 20), max_size=80)


@given(HISTORIES, CHOICES)
@reproducible
def test_an_agent_that_answers_in_order_may_name_as_much_or_as_little_as_it_likes(
    history: list[str], choices: list[int]
) -> None:
    line, owed, choice = PendingCalls(), [], turns(choices)
    for step in [*history, *["answer"] * len(history)]:
        if step.startswith("call"):
            owed.append(sent(step[-1]))
            line.add(owed[-1])
        elif step == "give up" and owed:
            line.abandon(owed[next(choice) % len(owed)])
        elif step == "answer" and owed:
            call = owed.pop(0)
            ids = (NOTHING, about(call), of(call), CallIds(call_id=call.number))[next(choice) % 4]
            assert line.match(ids) is call
        elif step == "unknown":
            assert line.match((CallIds("nobody"), CallIds("a", NO_SUCH_CALL))[next(choice) % 2]) is None
    assert len(line) == 0


@given(HISTORIES, CHOICES)
@reproducible
def test_an_agent_that_names_requests_may_answer_them_in_any_order(history: list[str], choices: list[int]) -> None:
    line, choice = PendingCalls(), turns(choices)
    owed: list[PendingCall] = []
    answered: list[PendingCall] = []
    for step in [*history, *["answer"] * len(history)]:
        if step.startswith("call"):
            owed.append(sent(step[-1]))
            line.add(owed[-1])
        elif step == "give up" and owed:
            line.abandon(owed[next(choice) % len(owed)])
        elif step == "answer" and owed:
            request = owed[next(choice) % len(owed)].correlation_id
            call = next(call for call in owed if call.correlation_id == request)
            owed.remove(call)
            answered.append(call)
            assert line.match(about(call)) is call
        elif step == "again":
            # Where another call of the request is owed an answer, there is no telling.
            for call in answered:
                if all(other.correlation_id != call.correlation_id for other in owed):
                    assert line.match(about(call)) is None
        elif step == "unknown":
            assert line.match(CallIds("nobody")) is None
    assert len(line) == 0


@given(HISTORIES, CHOICES)
@reproducible
def test_an_agent_that_names_calls_may_answer_in_any_order_and_as_often_as_it_likes(
    history: list[str], choices: list[int]
) -> None:
    line, choice = PendingCalls(), turns(choices)
    owed: list[PendingCall] = []
    answered: list[PendingCall] = []
    for step in [*history, *["answer"] * len(history)]:
        if step.startswith("call"):
            owed.append(sent(step[-1]))
            line.add(owed[-1])
        elif step == "give up" and owed:
            line.abandon(owed[next(choice) % len(owed)])
        elif step == "answer" and owed:
            call = owed.pop(next(choice) % len(owed))
            answered.append(call)
            assert line.match((of(call), CallIds(call_id=call.number))[next(choice) % 2]) is call
        elif step == "again" and answered:
            assert line.match(of(answered[next(choice) % len(answered)])) is None
        elif step == "unknown":
            assert line.match(CallIds("a", NO_SUCH_CALL)) is None
    assert len(line) == 0


@given(HISTORIES, CHOICES)
@reproducible
def test_only_what_was_not_given_up_is_waited_for(history: list[str], choices: list[int]) -> None:
    line, choice = PendingCalls(), turns(choices)
    waiting: list[PendingCall] = []
    calls: list[PendingCall] = []
    for step in history:
        if step.startswith("call"):
            calls.append(sent(step[-1]))
            waiting.append(calls[-1])
            line.add(calls[-1])
        elif step == "give up" and calls:
            call = calls[next(choice) % len(calls)]
            line.abandon(call)
            if call in waiting:
                waiting.remove(call)
        elif step == "answer" and calls:
            found = line.match(NOTHING)
            if found in waiting:
                assert found is not None
                waiting.remove(found)
        assert line.waited_for == len(waiting)
    assert line.clear() == waiting
