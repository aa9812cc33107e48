"""The figures of several processes as those of one."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from asgi_agents import AgentManager, CircuitBreakerConfig
from asgi_agents.decision import Verdict
from asgi_agents.failures import Failure, FailureKind
from asgi_agents.guard import Guard
from asgi_agents.manager import registry_of
from asgi_agents.observability.endpoints import EndpointStatistics
from asgi_agents.observability.metrics import Tally
from asgi_agents.protocol import AgentResponse, AuditMetadata, EventType
from asgi_agents.status.merging import merge
from asgi_agents.status.model import AgentStatus, WorkerShare
from asgi_agents.status.snapshot import take_share, take_snapshot

from .world import scripted

NOW = 50_003.0
AT = 1_700_000_000.0
ALLOW, BLOCK = AgentResponse.allow(), AgentResponse.block(403, audit=AuditMetadata(rule_ids=("R",)))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is at one moment."""
    monkeypatch.setattr("time.monotonic", lambda: NOW)
    monkeypatch.setattr("time.time", lambda: AT)


Call = tuple[float, AgentResponse | None, float]


def count(tally: Tally, calls: Sequence[Call]) -> None:
    for when, answer, seconds in calls:
        failure = None if answer is not None else Failure(FailureKind.ERROR, "down")
        verdict = Verdict("waf", EventType.REQUEST_HEADERS, answer, failure, True, True, seconds)
        tally.count(verdict, when)


def share_of(manager: AgentManager, pid: int, **about: Any) -> WorkerShare:
    """What a process says, as the others read it."""
    registry = registry_of(manager)
    status = take_snapshot(registry)
    worker = replace(status.worker, pid=pid, **about)
    share = take_share(registry, replace(status, worker=worker, workers=[worker]))
    return msgspec.json.decode(msgspec.json.encode(share), type=WorkerShare)


def guard_of(manager: AgentManager) -> Guard:
    return registry_of(manager).guard("waf")


def worker(*calls: Call, pid: int = 1, **options: Any) -> WorkerShare:
    manager = AgentManager([scripted("waf", **options)], clock=lambda: NOW)
    count(guard_of(manager).tally, calls)
    return share_of(manager, pid)


def agent_in(share: WorkerShare, **changes: Any) -> WorkerShare:
    """The share with something else about its agent."""
    agents = [replace(agent, **changes) for agent in share.status.agents]
    return replace(share, status=replace(share.status, agents=agents))


def merged(*shares: WorkerShare) -> AgentStatus:
    (agent,) = merge(shares).agents
    return agent


CALLS: list[Call] = [
    (NOW - 500, ALLOW, 0.001),
    (NOW - 300, BLOCK, 0.1),
    (NOW - 299, None, 5.0),
    (NOW - 12, ALLOW, 0.02),
    (NOW - 11, ALLOW, 0.03),
    (NOW - 2, BLOCK, 0.7),
    (NOW - 1, ALLOW, 0.002),
]


def test_several_are_as_one_that_has_had_all_their_calls() -> None:
    one = worker(*CALLS)
    parts = [worker(*CALLS[each::3], pid=each + 1) for each in range(3)]
    expected, found = merged(one), merged(*parts)
    for name in ("calls", "outcomes", "latency", "slots"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.rates.denied == expected.rates.denied == 2 / 7
    assert found.rates.failed == 1 / 7
    assert (found.in_flight, found.max_in_flight) == (0, 300)


def test_a_single_one_is_as_it_says_itself_but_for_whose_incidents_it_has() -> None:
    share = worker(*CALLS, pid=7)
    found = merge([share])
    (agent,) = found.agents
    (own,) = share.status.agents
    assert {incident.worker for incident in (*agent.denials, *agent.failures)} == {7}
    assert msgspec.to_builtins(replace(agent, denials=(), failures=())) == msgspec.to_builtins(
        replace(own, denials=(), failures=())
    )
    assert found.workers == (share.status.worker,)


@pytest.mark.parametrize("later", [1, 30, 59, 60, 1000])
def test_older_figures_are_put_where_they_belong(later: int) -> None:
    old = worker((NOW - 1, ALLOW, 0.5), pid=2)
    status = replace(old.status, time=AT - later * 10)
    old = replace(old, status=status, slot=old.slot - later)
    slots = merged(worker(), old).slots
    assert [index for index, slot in enumerate(slots) if slot.calls] == ([59 - later] if later < 60 else [])
    assert len(slots) == 60


def test_slots_of_another_machine_are_placed_by_its_clock() -> None:
    other = worker((NOW - 1, ALLOW, 0.5), pid=2)
    other = replace(other, slot=3, status=replace(other.status, time=AT - 100))
    slots = merged(worker(), other).slots
    assert [index for index, slot in enumerate(slots) if slot.calls] == [49]


def test_the_worst_breaker_is_shown_and_how_many_have_it() -> None:
    closed, opened = worker(pid=1), worker(pid=2)
    opened = agent_in(opened, breaker="open", retry_after=12.0, trouble={"breaker_open": 1})
    half = agent_in(worker(pid=3), breaker="half_open", trouble={"breaker_half_open": 1})
    found = merged(closed, opened, half, opened)
    assert (found.breaker, found.retry_after) == ("open", 12.0)
    assert found.trouble == {"breaker_open": 2, "breaker_half_open": 1}
    assert merged(closed, half).breaker == "half_open"
    assert merged(worker(circuit_breaker=None), worker(circuit_breaker=None)).breaker is None
    assert merged(worker(circuit_breaker=CircuitBreakerConfig()), worker(circuit_breaker=None)).breaker == "closed"


def test_configured_is_who_is_configured_everywhere() -> None:
    assert not merged(worker(), agent_in(worker(), configured=False, trouble={"not_configured": 1})).configured


def test_endpoints_are_shown_once_in_their_worst_state() -> None:
    def at(address: str, state: Any, connections: int, fault: str = "") -> EndpointStatistics:
        return EndpointStatistics(address=address, state=state, connections=connections, in_flight=1, fault=fault)

    one = agent_in(worker(), endpoints=[at("a", "up", 4), at("b", "up", 4)])
    other = agent_in(worker(), endpoints=[at("a", "down", 0, "refused"), at("b", "degraded", 2)])
    for shares in ([one, other], [other, one]):
        a, b = sorted(merged(*shares).endpoints, key=lambda endpoint: endpoint.address)
        assert (a.state, a.connections, a.in_flight, a.fault) == ("down", 4, 2, "refused")
        assert (b.state, b.connections) == ("degraded", 6)


def test_the_newest_incidents_of_all_are_kept() -> None:
    shares = [worker(*[(NOW - 1, BLOCK, 0.1)] * 40, *[(NOW - 1, None, 0.1)] * 40, pid=pid) for pid in (1, 2)]
    older = [replace(each, time=AT - 100) for each in shares[0].status.agents[0].denials]
    found = merged(agent_in(shares[0], denials=older), shares[1])
    assert (len(found.denials), len(found.failures)) == (50, 50)
    assert [incident.worker for incident in found.denials] == [2] * 40 + [1] * 10
    assert found.denials[0].rule_ids == ["R"]


def test_what_guardrails_have_found_and_held_is_added_up() -> None:
    def judging(pid: int, delays: list[float]) -> WorkerShare:
        manager = AgentManager([scripted("waf")])
        text = guard_of(manager).tally.text
        for delay in delays:
            text.add_delay(delay)
        text.count("redact", "output")
        text.hold(10)
        return share_of(manager, pid)

    found, expected = merged(judging(1, [0.1, 0.2]), judging(2, [0.9]), worker()), merged(judging(3, [0.1, 0.2, 0.9]))
    assert found.text is not None
    assert expected.text is not None
    assert found.text.finds == {"redact": {"output": 2}}
    assert (found.text.held, found.text.streams) == (20, 3)
    assert found.text.hold == expected.text.hold
    assert merged(worker(), worker()).text is None


def test_agents_that_not_all_have_are_shown_too() -> None:
    other = share_of(AgentManager([scripted("new"), scripted("waf")]), 2)
    assert [agent.id for agent in merge([worker(), other]).agents] == ["waf", "new"]


def test_connections_are_added_up_and_silent_workers_are_only_listed() -> None:
    one, other, silent = worker(*CALLS, pid=1), worker(*CALLS, pid=2), worker(*CALLS, pid=3)
    for share in (one, other):
        share.status.slots[-1] = replace(share.status.slots[-1], calls=4, denials=1)  # type: ignore[index]
    one, other = (
        replace(share, status=replace(share.status, connections=4, rates=replace(share.status.rates, per_second=0.5)))
        for share in (one, other)
    )
    gone = replace(silent.status.worker, silent=True)
    found = merge([one, other], [gone])
    assert (found.connections, found.rates.per_second, found.rates.denied) == (8, 1.0, 0.25)
    assert [(each.pid, each.silent) for each in found.workers] == [(1, False), (2, False), (3, True)]
    assert found.agents[0].calls == 2 * len(CALLS)
    assert found.worker.pid == 1
