"""How an agent is, by what it says and does, without a connection."""

import logging
import math

import pytest

from asgi_agents.concurrency.background import Signal
from asgi_agents.protocol.stream import HealthState, HealthStatus
from asgi_agents.transports.stream.health import Health, HealthLog
from asgi_agents.transports.stream.pending_calls import PendingCall

from .pools import Clock

TIMEOUT = 20.0


def owed(sent_at: float, *, abandoned: bool = True) -> PendingCall:
    """A call that is not answered yet."""
    call = PendingCall("a", math.inf, Signal(None))
    call.sent_at, call.abandoned = sent_at, abandoned
    return call


@pytest.mark.parametrize(
    ("state", "multiplier", "expected"),
    [
        (HealthState.HEALTHY, 5.0, 1.0),
        (HealthState.DEGRADED, 5.0, 5.0),
        (HealthState.DEGRADED, 0.1, 1.0),
        (HealthState.DEGRADED, math.inf, 10.0),
        (HealthState.UNHEALTHY, 5.0, 1.0),
    ],
)
def test_only_a_degraded_agent_gets_more_time_and_not_any_amount(
    state: HealthState, multiplier: float, expected: float
) -> None:
    health = Health(0.0)
    health.apply(HealthStatus(state=state, timeout_multiplier=multiplier))
    assert (health.state, health.timeout_multiplier) == (state, expected)


def test_a_state_that_is_not_known_changes_nothing() -> None:
    health = Health(0.0)
    health.apply(HealthStatus(state=HealthState.DEGRADED, timeout_multiplier=2.0))
    health.apply(HealthStatus(state=99, timeout_multiplier=7.0))
    assert (health.state, health.timeout_multiplier) == (HealthState.DEGRADED, 2.0)


def test_an_agent_leaves_when_it_drains_or_forgets_to_answer() -> None:
    health = Health(0.0)
    assert not health.leaving
    health.retire("it does not answer")
    assert (health.leaving, health.why_leaving) == (True, "it does not answer")
    health.apply(HealthStatus(state=HealthState.DRAINING))
    assert (health.leaving, health.why_leaving) == (True, "it is draining")


def test_the_score_falls_with_failures_and_recovers() -> None:
    health = Health(0.0)
    health.rate(answered=False)
    assert health.score == pytest.approx(0.9)
    for _ in range(50):
        health.rate(answered=True)
    assert health.score == 1.0


def test_an_idle_agent_that_was_never_pinged_is_not_gone() -> None:
    assert not Health(0.0).is_gone(None, 1000.0, TIMEOUT)


def test_an_agent_that_does_not_answer_a_ping_is_gone() -> None:
    health = Health(0.0)
    ping = health.next_ping(10.0)
    assert ping is not None
    assert ping.sequence == 1
    # There is one ping at a time.
    assert health.next_ping(12.0) is None

    assert not health.is_gone(None, 10.0 + TIMEOUT - 0.1, TIMEOUT)
    assert health.is_gone(None, 10.0 + TIMEOUT, TIMEOUT)


def test_whatever_it_sends_answers_a_ping() -> None:
    health = Health(0.0)
    health.next_ping(10.0)
    health.heard_at = 11.0

    assert not health.is_gone(None, 1000.0, TIMEOUT)
    ping = health.next_ping(1000.0)
    assert ping is not None
    assert ping.sequence == 2


def test_an_agent_that_owes_an_answer_that_nobody_waits_for_is_gone_if_it_is_silent() -> None:
    assert Health(0.0).is_gone(owed(10.0), 10.0 + TIMEOUT, TIMEOUT)
    # Somebody waits for this one, until its deadline.
    assert not Health(0.0).is_gone(owed(10.0, abandoned=False), 1000.0, TIMEOUT)


def test_an_agent_that_goes_on_without_answering_a_call_is_retired() -> None:
    health = Health(0.0)
    health.heard_at = 25.0

    assert not health.is_gone(owed(10.0), 10.0 + TIMEOUT - 0.1, TIMEOUT)
    assert not health.retired
    assert not health.is_gone(owed(10.0), 10.0 + TIMEOUT, TIMEOUT)
    assert health.retired


def test_each_change_is_logged_once_and_not_without_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    caplog.set_level(logging.INFO, "asgi_agents")
    log, endpoint = HealthLog("waf"), Clock()

    log.note(endpoint, "unix:///a", HealthState.HEALTHY)
    assert not caplog.records
    for _ in range(2):
        log.note(endpoint, "unix:///a", HealthState.UNHEALTHY)
    assert caplog.messages == ["agent 'waf' at unix:///a says that it is unhealthy"]

    for _ in range(50):
        log.note(endpoint, "unix:///a", HealthState.HEALTHY)
        log.note(endpoint, "unix:///a", HealthState.DRAINING)
    assert len(caplog.records) == 6
    clock.now += 61.0
    log.note(endpoint, "unix:///a", HealthState.UNHEALTHY)
    assert len(caplog.records) == 7
