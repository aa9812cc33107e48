"""What is said to be wrong with an agent."""

from typing import Any

import pytest

from asgi_agents.breaker import BreakerState
from asgi_agents.failures import RULES, FailureKind
from asgi_agents.observability.endpoints import EndpointState, EndpointStatistics
from asgi_agents.observability.history import SLOTS, TimeSlot
from asgi_agents.observability.metrics import Incident
from asgi_agents.status.trouble import is_serious, trouble_of

NOW = 1_000_000.0


def slots(*latest: tuple[int, int]) -> list[TimeSlot]:
    """Ten minutes, of which the last slots have so many calls and failures."""
    counts = [*[(0, 0)] * (SLOTS - len(latest)), *latest]
    return [TimeSlot(calls=calls, denials=0, failures=failed, p50=None, p99=None) for calls, failed in counts]


def failure(kind: str = "error", age: float = 1.0) -> Incident:
    return Incident(
        time=NOW - age,
        correlation_id="",
        route=None,
        event="request_headers",
        outcome=kind,
        failed=True,
        failure_mode="closed",
        enforced=True,
        duration=0.0,
        message="",
    )


def found(*states: EndpointState, **about: Any) -> list[str]:
    given: dict[str, Any] = {"configured": True, "breaker": BreakerState.CLOSED, "slots": slots(), "latest": None}
    endpoints = [EndpointStatistics(address="a", state=state, connections=0) for state in states]
    return list(trouble_of(endpoints=endpoints, now=NOW, **given | about))


@pytest.mark.parametrize("states", [(), ("up",), ("connecting",), ("paused",), ("degraded", "connecting")])
def test_all_is_well(states: tuple[EndpointState, ...]) -> None:
    assert found(*states) == []
    assert found(*states, breaker=None) == []


@pytest.mark.parametrize("states", [("down",), ("ejected", "down"), ("unhealthy",), ("draining",)])
def test_an_agent_none_of_whose_endpoints_answers_is_down(states: tuple[EndpointState, ...]) -> None:
    assert found(*states) == ["down"]


@pytest.mark.parametrize("states", [("down", "up"), ("ejected", "degraded"), ("unhealthy", "paused")])
def test_an_agent_some_of_whose_endpoints_answer_is_not_down(states: tuple[EndpointState, ...]) -> None:
    assert found(*states) == ["endpoint_down"]
    assert not is_serious({"endpoint_down": 1})


def test_what_is_not_configured_or_open_is_said() -> None:
    assert found("down", configured=False, breaker=BreakerState.OPEN) == ["down", "not_configured", "breaker_open"]
    assert found(breaker=BreakerState.HALF_OPEN) == ["breaker_half_open"]


def test_an_agent_all_of_whose_calls_fail_is_failing_with_and_without_a_breaker() -> None:
    for breaker in (None, BreakerState.CLOSED):
        # A minute is six slots and the current one.
        for minute in (slots((5, 0), (2, 2), *[(0, 0)] * 5, (1, 1)), slots((3, 3))):
            assert found(slots=minute, latest=failure(), breaker=breaker) == ["failing"]
        assert found(slots=slots((5, 0), *[(0, 0)] * 5, (3, 3)), latest=failure(), breaker=breaker) == []
    # That its breaker is open says it already.
    assert found(slots=slots((9, 9)), latest=failure(), breaker=BreakerState.OPEN) == ["breaker_open"]


@pytest.mark.parametrize("counts", [[(2, 2)], [(3, 2)], [(10, 9), (1, 1)]])
def test_few_calls_or_one_that_was_answered_are_not_enough(counts: list[tuple[int, int]]) -> None:
    assert found(slots=slots(*counts), latest=failure()) == []


@pytest.mark.parametrize("kind", FailureKind)
def test_only_what_the_agent_can_help_counts(kind: FailureKind) -> None:
    expected = ["failing"] if RULES[kind].logged else []
    assert found(slots=slots((5, 5)), latest=failure(kind.value)) == expected


def test_failures_of_more_than_a_minute_ago_are_over() -> None:
    assert found(slots=slots((5, 5)), latest=failure(age=61.0)) == []
    assert found(slots=slots((5, 5)), latest=None) == []


@pytest.mark.parametrize("kind", ["down", "not_configured", "breaker_open", "failing"])
def test_these_are_serious(kind: str) -> None:
    assert is_serious({kind: 1, "breaker_half_open": 2})
    assert not is_serious({"breaker_half_open": 2})
