"""Verdicts on heads: which are final, and which wait for a body."""

from typing import Any

import pytest

from asgi_agents import AgentConfig, AgentManager, AgentResponse, EventType, ResponseHeadersEvent
from asgi_agents.exchange.head import judge_head, report_completion
from asgi_agents.exchange.state import ExchangeState
from asgi_agents.manager import registry_of
from asgi_agents.protocol import Headers, RequestCompleteEvent, RequestHeadersEvent
from tests.support.asgi import Held, Probe, SlowProbe
from tests.support.sample_events import head

PROVISIONAL = AgentResponse.block(403, "undecided", needs_more=True)
REQUEST = head("id")
RESPONSE = ResponseHeadersEvent(correlation_id="id", status=200, headers=Headers())
EVENTS: dict[str, RequestHeadersEvent | ResponseHeadersEvent] = {"request": REQUEST, "response": RESPONSE}
each_way = pytest.mark.parametrize("way", EVENTS)


async def judge(way: str, *agents: AgentConfig, body_follows: bool = True) -> tuple[Any, Any, ExchangeState]:
    manager = AgentManager(agents)
    registry = registry_of(manager)
    context = ExchangeState(registry, registry.resolved_route(None), "id", None)
    hearing = (
        registry_of(manager)
        .resolved_route(None)
        .agents_for(EventType.REQUEST_BODY_CHUNK if way == "request" else EventType.RESPONSE_BODY_CHUNK)
    )
    decision, provisional = await judge_head(context, EVENTS[way], body_agents=hearing if body_follows else ())
    return decision, provisional, context


@each_way
async def test_without_objections_a_head_passes(way: str, probe: type[Probe]) -> None:
    agents = [AgentConfig(f"a{i}", probe(**{f"{way}_headers": None})) for i in range(3)]
    decision, provisional, context = await judge(way, *agents)
    assert decision.is_allow
    assert provisional == {}
    assert [verdict.agent_id for verdict in context.decision.verdicts] == ["a0", "a1", "a2"]


@each_way
async def test_a_denial_that_only_the_body_can_turn_is_kept_for_it(way: str, probe: type[Probe]) -> None:
    agent = probe(**{f"{way}_headers": PROVISIONAL, f"{way}_body": None})
    decision, provisional, _ = await judge(way, AgentConfig("a", agent))
    assert decision.is_allow
    assert provisional["a"].response is PROVISIONAL


@each_way
async def test_it_is_final_if_no_body_follows(way: str, probe: type[Probe]) -> None:
    agent = probe(**{f"{way}_headers": PROVISIONAL, f"{way}_body": None})
    decision, provisional, _ = await judge(way, AgentConfig("a", agent), body_follows=False)
    assert decision.decided_by == "a"
    assert provisional == {}


@each_way
async def test_it_is_final_if_its_agent_hears_no_bodies(way: str, probe: type[Probe]) -> None:
    silent = probe(**{f"{way}_headers": PROVISIONAL})
    listening = probe(**{f"{way}_headers": None, f"{way}_body": None})
    decision, _, _ = await judge(way, AgentConfig("silent", silent), AgentConfig("listening", listening))
    assert decision.decided_by == "silent"


@each_way
async def test_it_is_final_if_its_agent_hears_only_bodies_of_the_other_direction(way: str) -> None:
    other = "response" if way == "request" else "request"
    agent = Probe(**{f"{way}_headers": PROVISIONAL, f"{other}_body": None})
    decision, _, _ = await judge(way, AgentConfig("a", agent))
    assert decision.decided_by == "a"


@each_way
async def test_each_agent_that_waits_for_the_body_is_kept(way: str) -> None:
    agents = [AgentConfig(f"a{i}", Probe(**{f"{way}_headers": PROVISIONAL, f"{way}_body": None})) for i in range(2)]
    _, provisional, _ = await judge(way, *agents)
    assert set(provisional) == {"a0", "a1"}


@each_way
async def test_a_final_denial_decides_whatever_waits_for_the_body(way: str, probe: type[Probe]) -> None:
    waiting = probe(**{f"{way}_headers": PROVISIONAL, f"{way}_body": None})
    denying = probe(**{f"{way}_headers": AgentResponse.block(451)})
    decision, _, context = await judge(way, AgentConfig("waiting", waiting), AgentConfig("denying", denying))
    assert decision.decided_by == "denying"
    assert [verdict.outcome for verdict in context.decision.verdicts] == ["block", "block"]


@each_way
async def test_a_provisional_allow_is_an_allow(way: str) -> None:
    agent = Probe(**{f"{way}_headers": AgentResponse.allow(needs_more=True), f"{way}_body": None})
    decision, provisional, _ = await judge(way, AgentConfig("a", agent))
    assert decision.is_allow
    assert provisional == {}


@each_way
async def test_a_provisional_denial_of_a_shadow_agent_counts_for_nothing(way: str) -> None:
    agent = Probe(**{f"{way}_headers": PROVISIONAL, f"{way}_body": None})
    for body_follows in (True, False):
        decision, provisional, _ = await judge(way, AgentConfig("a", agent, enforce=False), body_follows=body_follows)
        assert decision.is_allow
        assert provisional == {}


@each_way
async def test_a_failure_beside_a_provisional_denial_decides(way: str) -> None:
    def fail(event: Any) -> AgentResponse:
        raise ValueError

    waiting = Probe(**{f"{way}_headers": PROVISIONAL, f"{way}_body": None})
    decision, _, _ = await judge(
        way, AgentConfig("waiting", waiting), AgentConfig("b", Probe(**{f"{way}_headers": fail}))
    )
    assert decision.decided_by == "b"
    assert decision.decision.status == 503


@each_way
async def test_agents_after_a_provisional_denial_are_still_asked(way: str, probe: type[Probe]) -> None:
    first = probe(**{f"{way}_headers": PROVISIONAL, f"{way}_body": None})
    second = probe(**{f"{way}_headers": None})
    await judge(way, AgentConfig("a", first), AgentConfig("b", second))
    assert len(second.heard) == 1


async def test_the_end_is_told_to_everyone_even_when_one_denies_and_one_fails() -> None:
    def fail(event: Any) -> AgentResponse:
        raise ValueError

    agents = [
        SlowProbe(complete=AgentResponse.block()),
        Probe(complete=fail),
        SlowProbe(complete=Held()),
        Probe(complete=None),
    ]
    manager = AgentManager(
        AgentConfig(f"a{i}", agent, timeout=0.01 if i == 2 else 5.0) for i, agent in enumerate(agents)
    )
    registry = registry_of(manager)
    context = ExchangeState(registry, registry.resolved_route(None), "id", None)
    event = RequestCompleteEvent(
        correlation_id="id",
        status=200,
        duration_ms=1,
        request_body_size=0,
        response_body_size=0,
        upstream_attempts=1,
    )
    await report_completion(context, event)
    assert [len(agent.heard) for agent in agents] == [1, 1, 1, 1]
    assert [verdict.outcome for verdict in context.decision.verdicts] == ["block", "error", "timeout"]
    assert all(verdict.event_type is EventType.REQUEST_COMPLETE for verdict in context.decision.verdicts)
