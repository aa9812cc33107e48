"""What a way to an agent is to the table: what of the agent it carries, and what comes of the rest."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from asgi_agents import AgentConfig, AgentMiddleware, AgentResponse, BodyMode, EventType
from asgi_agents.guardrails import Guardrail

from .app import app
from .case import Case, Kind, Outcome

#: Seconds; more than anything takes on a busy machine.
PATIENCE: Final = 60.0
#: How long an agent may take that never answers.
HURRY: Final = 0.1


def said_as_it_is(event_type: EventType, answer: AgentResponse) -> AgentResponse:
    """The way has words for all that agents say."""
    return answer


def as_it_is(case: Case, outcome: Outcome) -> Outcome:
    return outcome


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to reach agents.

    :ivar name: as the documentation has it.
    :ivar refusal: how the agent of a case is refused where it is set up: what the error says; empty: it is not.
    :ivar asked: the events that an agent of a kind is asked about.
    :ivar fails: whether the agent fails because of what the case is, before it is asked.
    :ivar said: an answer to an event, as it arrives; it raises an AgentError where there are no words for it.
    :ivar passes_pieces: the app has the beginning of a streamed request before the rest of it was judged.
    :ivar restated: what the documentation says that an outcome is here.
    """

    name: str
    refusal: Callable[[Case], str]
    asked: Callable[[Kind], frozenset[EventType]]
    passes_pieces: bool = False
    said: Callable[[EventType, AgentResponse], AgentResponse] = said_as_it_is
    fails: Callable[[Case], bool] = lambda case: False
    restated: Callable[[Case, Outcome], Outcome] = as_it_is


def check(way: Way, case: Case, found: Outcome, expected: Outcome) -> None:
    """The outcome is the one that is expected, and what the agent keeps back has reached nobody."""
    app = found.app
    if way.passes_pieces and case.mode == "stream" and expected.app is None and app is not None:
        assert app.body in case.content
        assert app.body != case.content
        expected = replace(expected, app=app)
    assert found == expected
    if case.never and expected == replace(way.restated(case, case.outcome), app=expected.app):
        assert case.never not in found.body
        assert app is None or case.never not in app.body


def config_of(case: Case, transport: Any, **more: Any) -> AgentConfig:
    """The configuration of the agent that judges the case."""
    mode = BodyMode(case.mode)
    settings: dict[str, Any] = {
        "failure_mode": "open" if case.opens else "closed",
        "timeout": HURRY if case.hurried else PATIENCE,
        "chunk_timeout": PATIENCE,
        "request_body_mode": mode,
        "response_body_mode": mode,
        "body_access": "write",
        "circuit_breaker": None,
    }
    return AgentConfig("agent", transport, **{**settings, **more})


def guarded(case: Case, config: AgentConfig) -> AgentMiddleware:
    """The app of the table behind one agent."""
    guardrails = (Guardrail("agent", on={"input", "output"}),) if case.kind is Kind.TEXTS else ()
    return AgentMiddleware(app, agents=[config], guardrails=guardrails)
