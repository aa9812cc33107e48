"""Playing the script."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

from asgi_agents import AgentDecision, AuditGuardrail

from .client import Client
from .decisions import Decided, DecisionLog
from .script import STEPS, Step


class Outcome(NamedTuple):
    """What a step came to."""

    step: Step
    got: str
    decision: AgentDecision
    guardrails: Sequence[AuditGuardrail] = ()

    @property
    def shadow(self) -> str | None:
        """The first shadow agent that would have stopped it."""
        for verdict in self.decision.verdicts:
            if not verdict.enforced and verdict.outcome != "allow":
                return verdict.agent_id
        return None

    @property
    def right(self) -> bool:
        """Whether it is what the script expects."""
        step = self.step
        return (self.got, self.decision.decided_by, self.shadow) == (step.expected, step.decided_by, step.shadow)


def play(url: str, decisions: DecisionLog) -> Iterator[Outcome]:
    """Play the script against the server at ``url``."""
    with closing(Client(url)) as client:
        for number, step in enumerate(STEPS, 1):
            request_id = f"script-{number}"
            try:
                got = step.play(client, request_id)
                decided = decisions.wait_for(request_id)
            except Exception as exc:
                # One step that breaks is a cross in the table, and no reason not to play the others.
                got, decided = f"{type(exc).__name__}: {' '.join(str(exc).split())}", Decided()
            yield Outcome(step, got, *decided)
