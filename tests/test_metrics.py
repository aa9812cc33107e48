import pytest

from asgi_agents.decision import Failure, FailureKind, Verdict
from asgi_agents.metrics import AgentMetrics, Tally
from asgi_agents.protocol import AgentResponse, EventType

NOTHING = AgentMetrics(
    calls=0,
    outcomes={},
    shadowed=0,
    passed_open=0,
    skipped_bodies=0,
    in_flight=0,
    waiting=0,
    duration=0.0,
    queued=0.0,
    inspected={},
    breaker_transitions={},
)


def answered(response: AgentResponse, *, enforced: bool = True, duration: float = 0.5) -> Verdict:
    return Verdict("waf", EventType.REQUEST_HEADERS, response, None, True, enforced, duration)


def failed(kind: FailureKind, *, closed: bool = True, enforced: bool = True) -> Verdict:
    return Verdict("waf", EventType.REQUEST_HEADERS, None, Failure(kind, "…"), closed, enforced, 0.25)


def test_nothing_is_counted_at_first() -> None:
    tally = Tally()

    assert tally.summary(0, 0) == NOTHING


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (AgentResponse.allow(), "allow"),
        (AgentResponse.allow(needs_more=True), "allow"),
        (AgentResponse.block(), "block"),
        (AgentResponse.redirect("/"), "redirect"),
        (AgentResponse.challenge("captcha"), "challenge"),
        (AgentResponse.websocket_drop(), "drop"),
        (AgentResponse.websocket_close(), "close"),
    ],
)
def test_answers_are_counted_by_outcome(response: AgentResponse, outcome: str) -> None:
    tally = Tally()
    tally.count(answered(response), 0.0)
    tally.count(answered(response), 0.0)

    assert tally.summary(0, 0).outcomes == {outcome: 2}
    assert tally.summary(0, 0).duration == 1.0
    assert (tally.summary(0, 0).shadowed, tally.summary(0, 0).passed_open) == (0, 0)


@pytest.mark.parametrize("kind", FailureKind)
def test_failures_are_counted_by_kind(kind: FailureKind) -> None:
    tally = Tally()
    tally.count(failed(kind), 0.0)

    assert tally.summary(0, 0).outcomes == {kind.value: 1}
    assert (tally.summary(0, 0).shadowed, tally.summary(0, 0).passed_open) == (0, 0)


@pytest.mark.parametrize("kind", FailureKind)
def test_failures_that_were_let_through_are_counted_as_such(kind: FailureKind) -> None:
    tally = Tally()
    tally.count(failed(kind, closed=False), 0.0)

    assert tally.summary(0, 0).outcomes == {kind.value: 1}
    assert (tally.summary(0, 0).shadowed, tally.summary(0, 0).passed_open) == (0, 1)


def test_what_a_shadow_agent_would_have_stopped_is_counted_as_such() -> None:
    tally = Tally()
    tally.count(answered(AgentResponse.allow(), enforced=False), 0.0)
    tally.count(answered(AgentResponse.block(), enforced=False), 0.0)
    tally.count(answered(AgentResponse.websocket_drop(), enforced=False), 0.0)
    tally.count(failed(FailureKind.ERROR, enforced=False), 0.0)
    tally.count(failed(FailureKind.ERROR, enforced=False, closed=False), 0.0)

    assert tally.summary(0, 0).outcomes == {"allow": 1, "block": 1, "drop": 1, "error": 2}
    assert tally.summary(0, 0).shadowed == 3


def test_metrics_are_frozen() -> None:
    with pytest.raises(AttributeError):
        NOTHING.calls = 1  # type: ignore[misc]
