"""Which calls may begin on a connection, without a connection."""

import math

import pytest

from asgi_agents.protocol.stream import AgentCapabilities, AgentFeatures, AgentLimits, FlowAction, FlowControl
from asgi_agents.transports.stream.flow_control import Capacity, Flow


def control(action: FlowAction | int, correlation_id: str | None = None, size: int | None = None) -> FlowControl:
    return FlowControl(action=action, correlation_id=correlation_id, buffer_available=size)


def flow(*controls: FlowControl) -> Flow:
    """After these messages, on a connection that has the requests a and b."""
    made = Flow(Capacity(), 10)
    for each in controls:
        made.apply(each, {"a", "b"})
    return made


def test_nothing_is_held_back_before_the_agent_has_asked_for_it() -> None:
    assert not flow().limited
    assert flow().admits("a", 10**9)
    assert not flow().is_paused("a")


def test_a_pause_holds_everything_back_until_it_ends() -> None:
    paused = flow(control(FlowAction.PAUSE))
    assert (paused.limited, paused.paused, paused.admits("a", 0), paused.is_paused("a")) == (True, True, False, True)

    paused.apply(control(FlowAction.RESUME), ())
    assert (paused.limited, paused.paused, paused.admits("a", 0), paused.is_paused("a")) == (False, False, True, False)


def test_a_pause_of_one_request_holds_back_that_one() -> None:
    paused = flow(control(FlowAction.PAUSE, "a"))

    assert paused.limited
    assert not paused.paused
    assert (paused.admits("a", 0), paused.admits("b", 0)) == (False, True)
    assert (paused.is_paused("a"), paused.is_paused("b")) == (True, False)


@pytest.mark.parametrize("over", ["resumed", "forgotten"])
def test_a_pause_of_one_request_ends_with_the_pause_or_the_request(over: str) -> None:
    paused = flow(control(FlowAction.PAUSE, "a"), control(FlowAction.PAUSE, "b"))

    if over == "resumed":
        paused.apply(control(FlowAction.RESUME, "a"), {"a", "b"})
    else:
        paused.forget("a")

    assert (paused.admits("a", 0), paused.admits("b", 0)) == (True, False)


def test_a_pause_of_a_request_that_is_not_on_the_connection_is_ignored() -> None:
    assert not flow(control(FlowAction.PAUSE, "c")).limited


@pytest.mark.parametrize(("sent", "admitted"), [(0, True), (99, True), (100, False), (101, False)])
def test_a_window_admits_a_call_while_any_of_it_is_left(sent: int, admitted: bool) -> None:
    limited = flow(control(FlowAction.UPDATE_CAPACITY, size=100))

    assert limited.limited
    assert limited.admits("a", sent) is admitted
    assert not limited.is_paused("a")


def test_a_window_admits_no_second_call_before_the_size_of_the_first_is_known() -> None:
    limited = flow(control(FlowAction.UPDATE_CAPACITY, size=100))
    limited.reserve()
    assert not limited.admits("a", 0)
    limited.give_back()
    assert limited.admits("a", 0)


@pytest.mark.parametrize("size", [0, -1])
def test_a_window_of_nothing_is_a_pause(size: int) -> None:
    assert flow(control(FlowAction.UPDATE_CAPACITY, size=size)).is_paused("a")


def test_a_window_without_a_size_is_none() -> None:
    freed = flow(control(FlowAction.UPDATE_CAPACITY, size=0), control(FlowAction.UPDATE_CAPACITY))
    assert (freed.window, freed.limited) == (None, False)


def test_actions_that_are_not_known_change_nothing() -> None:
    paused = flow(control(FlowAction.PAUSE), control(99), control(0, "a"))
    assert paused.paused
    paused.apply(control(FlowAction.RESUME), ())
    assert not paused.limited


def test_all_connections_to_an_instance_share_what_it_takes() -> None:
    capacity = Capacity()
    first, second = Flow(capacity, 10), Flow(capacity, 10)

    first.reserve()
    second.reserve()
    second.give_back()

    assert (capacity.taken, first.reserved, second.reserved) == (1, 1, 0)


@pytest.mark.parametrize(
    ("concurrent", "most", "expected"),
    [(0, 0, (10, math.inf)), (3, 7, (3, 7)), (50, 100, (10, 100)), (-1, -5, (10, math.inf))],
)
def test_it_keeps_to_the_numbers_that_the_agent_names(concurrent: int, most: int, expected: tuple[int, float]) -> None:
    agreed = flow()
    agreed.agree(
        AgentCapabilities(
            features=AgentFeatures(concurrent_requests=concurrent), limits=AgentLimits(max_concurrency=most)
        )
    )
    assert (agreed.max_calls, agreed.capacity.limit) == expected
