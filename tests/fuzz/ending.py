"""What has to hold for every connection when it is over."""

import json
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from starlette.types import Message

from asgi_agents import AgentDecision, AuditRecord, FailureKind
from asgi_agents.protocol import EventType

from .agents import Hired, Shown
from .apps import ScriptedApp

_HEADS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class Over(Struct, kw_only=True):
    """A connection that is over: who took part, and how it ended."""

    correlation_id: str
    app: ScriptedApp
    agents: Sequence[Hired]
    decision: AgentDecision
    error: BaseException | None
    exposed: bool
    records: Sequence[AuditRecord]

    def agents_for(self, event_type: EventType) -> list[Hired]:
        """In route order."""
        return [hired for hired in self.agents if hired.hears(event_type)]

    def story(self) -> str:
        """What happened, for whoever has to find out why."""
        decision = self.decision
        lines = [
            f"app ({'legal' if self.app.script.legal else 'illegal'}): {list(self.app.script.steps)}",
            f"app got {self.app.headers}, {self.app.received}; sent {self.app.sent}; finished: {self.app.finished}",
            f"{self.error!r}; decided by {decision.decided_by}: {decision.decision}, {decision.websocket_decision}, "
            f"{decision.failure}",
        ]
        for hired in self.agents:
            lines.append(f"{hired.config.id}: {hired.failure_mode}, {hired.config}")
            lines += [f"    {shown}" for event in EventType for shown in hired.agent.of(self.correlation_id, event)]
        return "\n".join(lines)


def check_decider(exchange: Over) -> None:
    """Nobody stops a connection but an enforced agent that denied, or failed closed."""
    decision = exchange.decision
    if decision.is_allow:
        assert decision.decided_by is None
        return
    (decider,) = (hired for hired in exchange.agents if hired.config.id == decision.decided_by)
    assert decider.config.enforce, "a shadow agent has decided"
    shown = [shown for event in EventType for shown in decider.agent.of(exchange.correlation_id, event)]
    if decision.failure is not None:
        assert decider.closed, f"an agent that fails open has stopped it: {decision.failure}"
        if decision.failure.kind is FailureKind.NOT_APPLICABLE:
            assert any(each.done and each.reaction.kind in ("ops", "misfit") for each in shown), decision.failure
        return
    assert any(each.done and decider.outcome(each) in ("deny", "provisional") for each in shown), "nobody has denied it"


def let_pass(hired: Hired, shown: Shown, *, final: bool) -> bool:
    """Whether what was shown may pass as far as this agent is concerned."""
    if not hired.config.enforce:
        return True
    if not shown.done:
        # Cut off by its deadline, or because it didn't matter any more.
        return not hired.closed
    match hired.outcome(shown):
        case "allow":
            return True
        case "provisional":
            return not final
        case "deny":
            return False
        case _:
            return not hired.closed


def check_head(exchange: Over, event_type: EventType, *, body_follows: bool, what: str) -> None:
    """The head has passed: everybody whose say counts must have let it."""
    body_event = (
        EventType.REQUEST_BODY_CHUNK if event_type is EventType.REQUEST_HEADERS else EventType.RESPONSE_BODY_CHUNK
    )
    for hired in exchange.agents_for(event_type):
        shown = hired.agent.of(exchange.correlation_id, event_type)
        assert len(shown) <= 1, f"{what}: {hired.config.id} was asked twice"
        if not shown:
            assert not hired.closed, f"{what}: passed {hired.config.id}, which fails closed and was not asked"
            continue
        final = not (body_follows and hired.hears(body_event))
        assert let_pass(hired, shown[0], final=final), f"{what}: passed {hired.config.id}, which did not let it"


def check_accounts(over: Over, messages: Sequence[Message]) -> None:
    """What is told of it afterwards, and in its heads, is true."""
    for hired in over.agents_for(EventType.REQUEST_COMPLETE):
        assert len(hired.agent.of(over.correlation_id, EventType.REQUEST_COMPLETE)) <= 1
    (record,) = over.records
    assert record.decided_by == over.decision.decided_by
    assert record.error == (None if over.error is None else type(over.error).__name__)
    line = str(record)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["correlation_id"] == over.correlation_id
    for message in messages:
        if over.exposed and message["type"] in _HEADS:
            named = [value for name, value in message["headers"] if name.lower() == b"x-request-id"]
            assert named == [over.correlation_id.encode()], f"{named} is said to be the id of {over.correlation_id}"
