"""What an endpoint says itself about its agents."""

from msgspec import Struct

from ..guardrails import Guardrail, ToolPolicy
from ..policy import FailureMode
from .resolved_route import ResolvedRoute
from .route_agent import AgentReference


class EndpointPolicy(Struct, frozen=True):
    """The agents of an endpoint, in their order, and its guardrails.

    :ivar guardrails: those that judge the text of its requests and answers. None: those of the middleware.
    """

    agents: tuple[AgentReference, ...]
    guardrails: tuple[Guardrail | ToolPolicy, ...] | None = None

    def __str__(self) -> str:
        """As it is written on an endpoint."""
        return "@unguarded" if not self.agents and not self.guardrails else self.written("@guarded_by")

    def written(self, function: str) -> str:
        """As it is written with ``function``, which takes a router first if it is ``guard_router``."""
        shown = [repr(agent) if isinstance(agent, str) else f"({agent[0]!r}, '{agent[1]}')" for agent in self.agents]
        if function == "guard_router":
            shown.insert(0, "...")
        return f"{function}({', '.join(shown)})"

    def holds_on(self, resolved_route: ResolvedRoute) -> bool:
        """Whether all that it asks for is done on connections with this route.

        That is so where it was resolved from this policy, or where it has all agents of the policy, in failure modes
        that are no weaker. A policy with guardrails of its own holds only where the route was resolved from it, and one
        with those of the middleware only where the route has all of them.
        """
        if resolved_route.policy is self:
            return True
        if resolved_route.refusal is not None:
            return False
        if resolved_route.policy is not None and resolved_route.policy == self:
            return True
        if self.guardrails or (self.guardrails is None and resolved_route.lacks_guardrails):
            return False
        there = {agent.guard.config.id: agent for agent in resolved_route.agents}
        for reference in self.agents:
            agent_id, given = (reference, None) if isinstance(reference, str) else reference
            agent = there.get(agent_id)
            if agent is None:
                return False
            mode = agent.guard.config.fails if given is None else FailureMode(given)
            if mode is FailureMode.CLOSED and agent.failure_mode is not FailureMode.CLOSED:
                return False
        return True
