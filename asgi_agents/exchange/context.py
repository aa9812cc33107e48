"""What a handler finds at ``request.state.asgi_agents``, and at ``request.state.agents``."""

from collections.abc import Mapping, Sequence
from typing import Final, Self

from msgspec import Struct
from starlette.requests import HTTPConnection

from ..decision import AgentDecision
from ..errors import NoAgentContextError, printable
from ..guardrails.slots import Kind
from ..observability import correlation
from ..protocol import AuditMetadata, GuardrailInspectEvent, GuardrailResponse
from .inspected_text import InspectedText
from .state import ExchangeState

#: Where the context of a connection is in ``scope["state"]``, whatever other name the middleware gives it there.
STATE_KEY: Final = correlation.STATE_KEY


class AgentContext(Struct, eq=False):
    """What the agents have decided on one connection so far, and how its handler asks a guardrail agent."""

    _state: ExchangeState

    def __repr__(self) -> str:
        return f"<AgentContext {self.correlation_id!r}>"

    @classmethod
    def of(cls, connection: HTTPConnection) -> Self:
        """The context of a request or a websocket.

        Raises :class:`~asgi_agents.NoAgentContextError` where no agents are asked about the path. There
        ``request.state.agents`` does not exist either.
        """
        context = (connection.scope.get("state") or {}).get(STATE_KEY)
        if isinstance(context, cls):
            return context
        raise NoAgentContextError(
            f"the handler of {printable(connection.scope['path'])!r} asks for its agents, and this path has none;"
            " expected protect(app, agents=[...]) or an AgentMiddleware around the app, and where that has routes, one"
            " that gives agents to this path, or default_agents"
        )

    @property
    def correlation_id(self) -> str:
        """Names the connection to agents, in logs and in traces.

        Where the client has not given one, it is made when it is asked for first, which often never happens.
        """
        return self._state.correlation_id

    @property
    def route(self) -> str | None:
        """The pattern of the matched :class:`~asgi_agents.AgentRoute`, or None."""
        return self._state.route

    @property
    def decision(self) -> AgentDecision:
        """The decision so far, with the verdicts behind it.

        Verdicts on body chunks and frames that said nothing are left out.
        """
        return self._state.decision

    @property
    def verdicts_forgotten(self) -> int:
        """How many verdicts are not among those of :attr:`decision` any more, or only with what was decided.

        The newest 1,000 are remembered, within 2 MiB, and of a mutation no more than its size.
        """
        return self._state.verdicts_forgotten

    @property
    def audit(self) -> Sequence[tuple[str, AuditMetadata]]:
        """Agent id and audit metadata of every agent that gave any, oldest first."""
        return self._state.audit

    @property
    def routing_metadata(self) -> Mapping[str, str]:
        """What the agents said for routing, later agents winning."""
        return self.decision.routing_metadata

    async def inspect(
        self, text: str, *, guardrail: str, kind: Kind = "input", model: str | None = None
    ) -> InspectedText:
        """Have a guardrail judge ``text``, all of it at once, as it judges text that passes by itself.

        What the :class:`~asgi_agents.guardrails.Guardrail` of this agent id says holds here too: its action, threshold,
        categories and severity; its agent's limits, breaker and failure mode, which is the route's. Its ``on`` and
        ``when`` don't: the handler has chosen. It is one of the route, or else of the middleware. Where several have
        the id, it is the first that is for text of this ``kind``. What it did is in the audit record and the metrics.

        :param model: told to the agent.
        :raises UnknownGuardrailError: for an id that none has. The message lists those that there are.
        :raises UnknownAgentError: for an agent that was removed.
        :raises GuardrailUnavailableError: if the agent gives no verdict and fails closed. It answers 503 or 504 if the
            handler lets it through, and 413 for a text of more than 16 Mi code points. In fail-open mode the text is as
            it was given.
        """
        # What judges text is imported where a guardrail is.
        from .handler_text import inspect_text

        return await inspect_text(self._state, text, guardrail, kind, model)

    async def inspect_guardrail(
        self,
        agent_id: str,
        content: str,
        *,
        inspection_type: str,
        model: str | None = None,
        categories: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> GuardrailResponse:
        """Ask a guardrail agent about ``content``, in the failure mode that the route gives the agent.

        A fail-closed agent that gives no verdict raises :class:`~asgi_agents.GuardrailUnavailableError`, which answers
        503 or 504 if the handler lets it through. Spans of detections are indices of ``content``. ``inspection_type``
        is one of :class:`~asgi_agents.InspectionType`, or another token that the agent knows; anything else raises
        ValueError.

        A task that outlives its connection may ask as well. Where another connection has taken the id by then, the
        question is asked under a new one.
        """
        if isinstance(categories, str):
            raise TypeError(f"categories={categories!r:.100}, expected a list: [{categories!r:.100}]")
        event = GuardrailInspectEvent(
            correlation_id=self._state.correlation_id,
            inspection_type=inspection_type,
            content=content,
            model=model,
            categories=tuple(categories),
            route_id=self._state.route,
            metadata=metadata or {},
        )
        return await self._state.inspect_guardrail(agent_id, event)


def state_of(found: object) -> ExchangeState | None:
    """What stands behind ``found``, if that is an :class:`AgentContext`; else None."""
    return found._state if isinstance(found, AgentContext) else None
