import threading
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_agents.breaker import BreakerState
from asgi_agents.config import AgentConfig
from asgi_agents.decision import Verdict
from asgi_agents.failures import Failure, FailureKind
from asgi_agents.manager import AgentManager, registry_of
from asgi_agents.observability import instruments as instruments
from asgi_agents.observability.instruments import (
    CALL_DURATION,
    HISTOGRAMS,
    HOLD_DURATION,
    METRICS,
    QUEUE_DURATION,
    Kind,
    collect,
    distributions,
)
from asgi_agents.observability.metrics import Tally
from asgi_agents.policy import CircuitBreakerConfig
from asgi_agents.protocol import AgentResponse, EventType

from .test_manager import REQUEST, Clock, Fake, answering, body, hang, raising, settle

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
BLOCK, ALLOW = AgentResponse.block(), AgentResponse.allow()


class Metered:
    """What is asked of an agent."""

    def __init__(
        self,
        tally: Tally | None = None,
        *,
        active: int = 0,
        queued: int = 0,
        breaker_state: BreakerState | None = BreakerState.CLOSED,
    ) -> None:
        self.tally = Tally("waf") if tally is None else tally
        self.active = active
        self.queued = queued
        self.breaker_state = breaker_state


def verdict(
    outcome: AgentResponse | FailureKind,
    *,
    closed: bool = True,
    enforced: bool = True,
    duration: float = 0.5,
    event: EventType = EventType.REQUEST_HEADERS,
) -> Verdict:
    response = outcome if isinstance(outcome, AgentResponse) else None
    failure = None if isinstance(outcome, AgentResponse) else Failure(outcome, "…")
    return Verdict("waf", event, response, failure, closed, enforced, duration)


def tally_of(*verdicts: Verdict) -> Tally:
    tally = Tally("waf")
    for number, each in enumerate(verdicts):
        tally.count(each, 0.0, correlation_id=str(number))
    return tally


def points(name: str, *agents: Metered) -> dict[frozenset[tuple[str, str]], float]:
    """Values by what describes them, without the agent's id and the package's name."""
    (metric,) = (metric for metric in METRICS if metric.name == f"asgi_agents.{name}")
    found = {}
    for point in collect(metric, agents):
        described = dict(point.attributes)
        assert described.pop("asgi_agents.agent.id") == "waf"
        key = frozenset((name.removeprefix("asgi_agents."), value) for name, value in described.items())
        assert key not in found
        found[key] = point.value
    return found


def by(**attributes: str) -> frozenset[tuple[str, str]]:
    names = {"breaker": "breaker.state", "error": "error.type"}
    return frozenset((names.get(name, name), value) for name, value in attributes.items())


# What there is


def test_these_metrics_are_exported() -> None:
    assert {(metric.name, metric.kind, metric.unit) for metric in METRICS} == {
        ("asgi_agents.call.active", Kind.UP_DOWN_COUNTER, "{call}"),
        ("asgi_agents.call.waiting", Kind.UP_DOWN_COUNTER, "{call}"),
        ("asgi_agents.decisions", Kind.COUNTER, "{decision}"),
        ("asgi_agents.failures", Kind.COUNTER, "{failure}"),
        ("asgi_agents.breaker.state", Kind.UP_DOWN_COUNTER, "{breaker}"),
        ("asgi_agents.breaker.transitions", Kind.COUNTER, "{transition}"),
        ("asgi_agents.inspected", Kind.COUNTER, "By"),
        ("asgi_agents.bodies.skipped", Kind.COUNTER, "{body}"),
        ("asgi_agents.shadow.denials", Kind.COUNTER, "{decision}"),
        ("asgi_agents.text.finds", Kind.COUNTER, "{find}"),
        ("asgi_agents.text.windows", Kind.UP_DOWN_COUNTER, "{window}"),
        ("asgi_agents.text.held", Kind.UP_DOWN_COUNTER, "{code_point}"),
    }
    assert {(metric.name, metric.unit) for metric in HISTOGRAMS} == {
        ("asgi_agents.call.duration", "s"),
        ("asgi_agents.call.queue.duration", "s"),
        ("asgi_agents.text.hold.duration", "s"),
    }


def test_each_name_is_there_once_and_each_metric_says_what_it_is() -> None:
    names = [metric.name for metric in (*METRICS, *HISTOGRAMS)]

    assert len(set(names)) == len(names)
    assert all(metric.description for metric in (*METRICS, *HISTOGRAMS))


# What they say


def test_an_agent_that_was_never_asked_has_only_what_is_of_the_moment() -> None:
    fresh = Metered(active=2, queued=3)

    assert points("call.active", fresh) == {by(): 2}
    assert points("call.waiting", fresh) == {by(): 3}
    for name in (
        "decisions",
        "failures",
        "breaker.transitions",
        "inspected",
        "bodies.skipped",
        "shadow.denials",
        "text.finds",
        "text.windows",
        "text.held",
    ):
        assert points(name, fresh) == {}
    assert distributions(HOLD_DURATION, [fresh]) == {}


@pytest.mark.parametrize("state", BreakerState)
def test_the_state_of_the_breaker_is_1_and_the_others_are_0(state: BreakerState) -> None:
    assert points("breaker.state", Metered(breaker_state=state)) == {
        by(breaker=each.value): int(each is state) for each in BreakerState
    }


def test_an_agent_without_a_breaker_has_no_state() -> None:
    assert points("breaker.state", Metered(breaker_state=None)) == {}


def test_decisions_are_by_event_outcome_and_weight() -> None:
    agent = Metered(
        tally_of(
            verdict(ALLOW),
            verdict(ALLOW, closed=False),
            verdict(BLOCK),
            verdict(BLOCK, enforced=False),
            verdict(AgentResponse.challenge("captcha"), event=EventType.RESPONSE_HEADERS),
            verdict(FailureKind.ERROR),
        )
    )

    assert points("decisions", agent) == {
        by(event="request_headers", decision="allow", enforced="true"): 2,
        by(event="request_headers", decision="block", enforced="true"): 1,
        by(event="request_headers", decision="block", enforced="false"): 1,
        by(event="response_headers", decision="challenge", enforced="true"): 1,
    }


def test_failures_are_by_kind_and_failure_mode() -> None:
    agent = Metered(
        tally_of(
            verdict(FailureKind.ERROR),
            verdict(FailureKind.ERROR),
            verdict(FailureKind.ERROR, closed=False),
            verdict(FailureKind.TIMEOUT, enforced=False),
            verdict(BLOCK),
        )
    )

    assert points("failures", agent) == {
        by(event="request_headers", error="error", failure_mode="closed", enforced="true"): 2,
        by(event="request_headers", error="error", failure_mode="open", enforced="true"): 1,
        by(event="request_headers", error="timeout", failure_mode="closed", enforced="false"): 1,
    }


def test_what_a_shadow_agent_would_have_stopped_is_counted() -> None:
    agent = Metered(
        tally_of(
            verdict(BLOCK, enforced=False),
            verdict(BLOCK, enforced=False, closed=False),
            verdict(FailureKind.ERROR, enforced=False),
            verdict(FailureKind.ERROR, enforced=False, closed=False),
            verdict(ALLOW, enforced=False),
            verdict(BLOCK),
            verdict(FailureKind.ERROR),
        )
    )

    assert points("shadow.denials", agent) == {
        by(event="request_headers", decision="block"): 2,
        by(event="request_headers", error="error"): 1,
    }


def test_skipped_bodies_are_counted_by_event() -> None:
    agent = Metered(
        tally_of(
            verdict(FailureKind.REQUEST_TOO_LARGE, closed=False, event=EventType.REQUEST_BODY_CHUNK),
            verdict(FailureKind.REQUEST_TOO_LARGE, enforced=False, event=EventType.REQUEST_BODY_CHUNK),
            verdict(FailureKind.REQUEST_TOO_LARGE, event=EventType.REQUEST_BODY_CHUNK),
            verdict(FailureKind.RESPONSE_TOO_LARGE, closed=False, event=EventType.RESPONSE_BODY_CHUNK),
        )
    )

    assert points("bodies.skipped", agent) == {by(event="request_body_chunk"): 2, by(event="response_body_chunk"): 1}


def test_durations_are_by_event_and_outcome() -> None:
    tally = tally_of(
        verdict(ALLOW, duration=0.1),
        verdict(ALLOW, closed=False, enforced=False, duration=0.3),
        verdict(FailureKind.TIMEOUT, duration=1.0),
    )

    found = distributions(CALL_DURATION, [Metered(tally)])

    assert {dict(attributes).get("asgi_agents.decision"): each.count for attributes, each in found.items()} == {
        "allow": 2,
        None: 1,
    }
    assert sum(each.total for each in found.values()) == pytest.approx(1.4)
    assert all(dict(attributes)["asgi_agents.agent.id"] == "waf" for attributes in found)


def test_queue_waits_are_there_from_the_start() -> None:
    ((attributes, distribution),) = distributions(QUEUE_DURATION, [Metered()]).items()

    assert attributes == (("asgi_agents.agent.id", "waf"),)
    assert distribution.count == 0


def test_queue_waits_make_sense_in_the_moment_between_the_wait_and_the_call_being_counted() -> None:
    tally = tally_of(verdict(ALLOW))
    # Another thread may look before the second call is counted, too.
    tally.queue_waits.add(0.2)
    tally.queue_waits.add(0.3)

    (distribution,) = distributions(QUEUE_DURATION, [Metered(tally)]).values()

    assert min(distribution.buckets) >= 0
    assert min(distribution.exported()) >= 0


# Of guardrails


def test_finds_are_by_what_was_done_and_the_kind_of_text() -> None:
    tally = Tally("waf")
    for what, kind in (("redact", "output"), ("redact", "output"), ("redact", "tool_call"), ("unreadable", "")):
        tally.text.count(what, kind)

    assert points("text.finds", Metered(tally)) == {
        by(what="redact", kind="output"): 2,
        by(what="redact", kind="tool_call"): 1,
        by(what="unreadable"): 1,
    }
    assert tally.summary(0, 0).finds == {"redact": 3, "unreadable": 1}


def test_windows_and_held_text_are_of_the_moment() -> None:
    tally = Tally("waf")
    tally.text.begin_window()
    tally.text.begin_window()
    tally.text.end_window()
    tally.text.hold(50)
    tally.text.hold(-20)

    assert (points("text.windows", Metered(tally)), points("text.held", Metered(tally))) == ({by(): 1}, {by(): 30})
    assert (tally.summary(0, 0).windows, tally.summary(0, 0).held) == (1, 30)
    tally.text.end_window()
    tally.text.hold(-30)
    assert (points("text.windows", Metered(tally)), points("text.held", Metered(tally))) == ({by(): 0}, {by(): 0})


def test_of_each_stream_the_longest_delay_is_counted() -> None:
    tally = Tally("waf")
    tally.text.hold(1)
    for seconds in (0.25, 3.0, 0.5):
        tally.text.add_delay(seconds)
    (distribution,) = distributions(HOLD_DURATION, [Metered(tally)]).values()

    assert (distribution.count, distribution.total) == (3, 3.75)
    assert tally.text.longest_delay == 3.0


# Of several agents


def test_agents_of_the_same_id_add_up() -> None:
    one = Metered(tally_of(verdict(BLOCK), verdict(ALLOW)), active=1, queued=2)
    other = Metered(tally_of(verdict(BLOCK)), active=3, queued=4, breaker_state=BreakerState.OPEN)

    assert points("call.active", one, other) == {by(): 4}
    assert points("call.waiting", one, other) == {by(): 6}
    assert points("decisions", one, other)[by(event="request_headers", decision="block", enforced="true")] == 2
    assert points("breaker.state", one, other) == {
        by(breaker="closed"): 1,
        by(breaker="open"): 1,
        by(breaker="half_open"): 0,
    }


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric.kind is Kind.COUNTER], ids=lambda m: m.name)
def test_nobody_has_nothing(metric: instruments.Metric) -> None:
    assert list(collect(metric, [])) == []


# The latest


def latest_of(name: str, *agents: Metered) -> dict[str, str]:
    """The correlation id of the latest call of each outcome."""
    (metric,) = (metric for metric in METRICS if metric.name == f"asgi_agents.{name}")
    found = {}
    for point in collect(metric, agents):
        described = dict(point.attributes)
        if point.latest is not None:
            found[described.get("error.type") or described["asgi_agents.decision"]] = point.latest.correlation_id
    return found


def test_denials_and_failures_know_their_latest_call_and_allow_does_not() -> None:
    agent = Metered(
        tally_of(verdict(BLOCK), verdict(ALLOW), verdict(FailureKind.ERROR), verdict(BLOCK), verdict(FailureKind.ERROR))
    )

    assert latest_of("decisions", agent) == {"block": "3"}
    assert latest_of("failures", agent) == {"error": "4"}


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two incidents happen at the same time."""
    now = 1_000_000.0

    def tick() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr("asgi_agents.observability.metrics.time.time", tick)


@pytest.mark.parametrize("modes", [(True, False, True), (False, True, False), (True, True, False)])
def test_the_latest_denial_is_the_latest_whatever_the_failure_mode_was(ticking: None, modes: tuple[bool, ...]) -> None:
    agent = Metered(tally_of(*(verdict(BLOCK, closed=closed) for closed in modes)))

    assert latest_of("decisions", agent) == {"block": "2"}


def test_the_latest_of_a_shadow_agent_is_the_latest_whatever_the_failure_mode_was(ticking: None) -> None:
    agent = Metered(tally_of(*(verdict(BLOCK, enforced=False, closed=closed) for closed in (True, False, True))))

    assert latest_of("shadow.denials", agent) == {"block": "2"}


def test_the_latest_of_two_agents_of_the_same_id_is_the_latest(ticking: None) -> None:
    older, newer = Metered(tally_of(verdict(BLOCK))), Metered(tally_of(verdict(BLOCK), verdict(BLOCK)))

    assert latest_of("decisions", older, newer) == latest_of("decisions", newer, older) == {"block": "1"}


# Of everything that can happen


OUTCOMES = st.one_of(
    st.sampled_from(FailureKind),
    st.sampled_from([ALLOW, BLOCK, AgentResponse.redirect("/"), AgentResponse.websocket_close()]),
)
VERDICTS = st.builds(
    verdict,
    OUTCOMES,
    closed=st.booleans(),
    enforced=st.booleans(),
    duration=st.floats(0.0, 100.0),
    event=st.sampled_from(EventType),
)


@steady
@given(st.lists(VERDICTS, max_size=30))
def test_every_call_is_a_decision_or_a_failure_and_has_a_duration(verdicts: list[Verdict]) -> None:
    tally = tally_of(*verdicts)
    agent = Metered(tally)
    summary = tally.summary(0, 0)

    decisions, failures = sum(points("decisions", agent).values()), sum(points("failures", agent).values())
    durations = distributions(CALL_DURATION, [agent])
    assert decisions == sum(each.failure is None for each in verdicts)
    assert failures == sum(each.failure is not None for each in verdicts)
    assert sum(each.count for each in durations.values()) == len(verdicts) == summary.calls
    assert sum(each.total for each in durations.values()) == pytest.approx(summary.duration)
    assert sum(points("shadow.denials", agent).values()) == sum(each.would_stop for each in verdicts)
    assert sum(points("bodies.skipped", agent).values()) == summary.skipped_bodies
    assert summary.passed_open == sum(each.passed_open for each in verdicts)


# Of agents as they run


def read(manager: AgentManager, name: str) -> dict[frozenset[tuple[str, str]], float]:
    return points(name, *registry_of(manager).metered)  # type: ignore[arg-type]


async def test_an_agent_that_runs_has_all_of_them() -> None:
    manager = AgentManager([AgentConfig("waf", Fake(answering(BLOCK)), max_concurrent_calls=1)])
    await manager.process_request_headers(REQUEST)
    await manager.process_request_body(body(b"12345"))

    assert read(manager, "inspected") == {by(event="request_body_chunk"): 5}
    assert sum(read(manager, "decisions").values()) == 2
    assert read(manager, "breaker.state")[by(breaker="closed")] == 1


async def test_calls_under_way_and_waiting_go_back_to_nothing() -> None:
    manager = AgentManager([AgentConfig("waf", Fake(hang), max_concurrent_calls=1, timeout=60.0)])
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(manager.process_request_headers, REQUEST)
        await settle()
        assert (read(manager, "call.active"), read(manager, "call.waiting")) == ({by(): 1}, {by(): 2})
        tasks.cancel_scope.cancel()

    assert (read(manager, "call.active"), read(manager, "call.waiting")) == ({by(): 0}, {by(): 0})


async def test_reading_the_state_of_a_breaker_does_not_change_it() -> None:
    clock = Clock()
    breaker = CircuitBreakerConfig(failure_threshold=1, reset_timeout=30.0)
    manager = AgentManager([AgentConfig("waf", Fake(raising(ValueError())), circuit_breaker=breaker)], clock=clock)
    await manager.process_request_headers(REQUEST)
    assert read(manager, "breaker.state")[by(breaker="open")] == 1

    clock.now += 31.0
    for _ in range(3):
        assert read(manager, "breaker.state")[by(breaker="half_open")] == 1
        assert read(manager, "breaker.transitions") == {by(breaker="open"): 1}
        assert manager.metrics["waf"].breaker_transitions == {"open": 1}

    await manager.process_request_headers(REQUEST)
    assert read(manager, "breaker.transitions") == {by(breaker="open"): 2, by(breaker="half_open"): 1}


def test_everything_can_be_read_while_another_thread_counts() -> None:
    tally = Tally("waf")
    agent = Metered(tally)
    done = threading.Event()
    faults: list[BaseException] = []

    def watched(work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as exc:
                faults.append(exc)

        return run

    def count() -> None:
        outcomes: Iterable[AgentResponse | FailureKind] = (BLOCK, ALLOW, *FailureKind)
        for _ in range(20):
            for event in EventType:
                for outcome in outcomes:
                    for closed in (True, False):
                        tally.count(verdict(outcome, closed=closed, event=event), 0.0, size=1)
                        tally.text.count(outcome if isinstance(outcome, str) else "redact", event.value)
                        tally.transitions[str(len(tally.failures))] += 1
        done.set()

    def export() -> None:
        while not done.is_set():
            for metric in METRICS:
                list(collect(metric, [agent]))
            for histogram in HISTOGRAMS:
                distributions(histogram, [agent])

    threads = [threading.Thread(target=watched(work)) for work in (count, export)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
