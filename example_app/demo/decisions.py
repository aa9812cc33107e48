"""What the agents decided, by ``x-request-id``."""

from collections.abc import Sequence
from threading import Condition
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import AgentContext, AgentDecision, AuditGuardrail, AuditRecord


class Decided(NamedTuple):
    """What all agents decided on a request, and what each guardrail did to its texts."""

    decision: AgentDecision = AgentDecision()
    guardrails: Sequence[AuditGuardrail] = ()


class DecisionLog:
    """Remembers the decisions on requests with an id.

    They are complete when the app has returned, which the client's thread may have to wait for.
    """

    def __init__(self) -> None:
        self._decisions: dict[str, Decided] = {}
        self._guardrails: dict[str, Sequence[AuditGuardrail]] = {}
        self._changed = Condition()

    def around(self, app: ASGIApp) -> ASGIApp:
        """A middleware, to stand around :class:`~asgi_agents.AgentMiddleware`."""

        async def remembering(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            finally:
                if scope["type"] in ("http", "websocket"):
                    self._remember(scope)

        return remembering

    def note(self, record: AuditRecord) -> None:
        """Take note of an audit record. It comes before the app has returned."""
        if record.guardrails:
            self._guardrails[record.correlation_id] = record.guardrails

    def wait_for(self, request_id: str, timeout: float = 5.0) -> Decided:
        """The decision on a request, as soon as it is complete."""
        with self._changed:
            if not self._changed.wait_for(lambda: request_id in self._decisions, timeout):
                raise TimeoutError(f"request {request_id} has not ended within {timeout:g} s")
            return self._decisions.pop(request_id)

    def _remember(self, scope: Scope) -> None:
        request_id = Headers(scope=scope).get("x-request-id")
        agents: AgentContext | None = scope.get("state", {}).get("agents")
        # A path that no agent guards has no context.
        decided = (
            Decided() if agents is None else Decided(agents.decision, self._guardrails.pop(agents.correlation_id, ()))
        )
        if request_id is not None:
            with self._changed:
                self._decisions[request_id] = decided
                self._changed.notify_all()
