"""What comes of a case where a way does not carry all of it: the same agent in the process, within those limits."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import Any

from asgi_agents import Agent, AgentError, AgentResponse, Event, EventType

from .agents import Judge, Texts, agent_of
from .case import NEVER, Case, Outcome
from .direct import outcome_of
from .way import Way, config_of, guarded

Said = Callable[[EventType, AgentResponse], AgentResponse]
_runs = count()
_known: dict[tuple[str, frozenset[EventType], Said, bool], tuple[Outcome, frozenset[EventType], bool]] = {}


class State(StrEnum):
    """What comes of a case by a way."""

    WORKS = "works"
    FAILS = "fails"
    LEFT_OUT = "left out"
    NOT_ASKED = "not asked"
    REFUSED = "refused"


@dataclass(frozen=True)
class Limits:
    """What came of a case within the limits of a way.

    :ivar state: what the documentation says of it.
    :ivar heard: the events that the agent has received.
    :ivar failed: the agent has failed in any way.
    """

    state: State
    outcome: Outcome
    heard: frozenset[EventType]
    failed: bool


async def within(way: Way, case: Case) -> Limits:
    """Run the case in the process, with an agent that receives and says no more than it does by that way."""
    key = case.slug, way.asked(case.kind), way.said, way.fails(case)
    if key not in _known:
        _known[key] = await _run(case, *key[1:])
    outcome, heard, failed = _known[key]
    raises = any(said == NEVER or isinstance(said, Exception) for said in case.answers.values())
    return Limits(_state(way, case, outcome, failed), way.restated(case, outcome), heard, failed or raises)


def _state(way: Way, case: Case, outcome: Outcome, failed: bool) -> State:
    if way.fails(case):
        return State.FAILS
    if not case.answers.keys() <= way.asked(case.kind):
        return State.NOT_ASKED
    if outcome == case.outcome:
        return State.WORKS
    return State.FAILS if failed else State.LEFT_OUT


async def _run(
    case: Case, asked: frozenset[EventType], said: Said, fails: bool
) -> tuple[Outcome, frozenset[EventType], bool]:
    judge = agent_of(case.kind)
    agent = judge if isinstance(judge, Texts) else _Limited(judge, asked, said, fails)
    middleware = guarded(case, config_of(case, agent))
    run = f"limited-{next(_runs)}"
    async with middleware.manager:
        outcome = await outcome_of(case, middleware, run)
    return outcome, frozenset(judge.heard[run]), isinstance(agent, _Limited) and agent.failed


class _Limited(Agent):
    """An agent that is asked about some events, and fails where it says what can't be said."""

    def __init__(self, agent: Judge, asked: frozenset[EventType], said: Said, fails: bool) -> None:
        self._fails = fails
        self.failed = False
        self._agent = agent
        self._asked = asked
        self._said = said

    @property
    def events(self) -> frozenset[EventType]:
        return self._agent.events & self._asked

    async def _ask(self, event: Any) -> AgentResponse | None:
        known: Event = event
        if self._fails:
            self.failed = True
            raise ValueError("it can't judge this")
        answer = await getattr(self._agent, f"on_{known.event_type.value}")(known)
        if answer is None:
            return None
        try:
            return self._said(known.event_type, answer)
        except AgentError:
            self.failed = True
            raise

    on_request_headers = _ask
    on_request_body_chunk = _ask
    on_response_headers = _ask
    on_response_body_chunk = _ask
    on_request_complete = _ask
    on_websocket_frame = _ask
