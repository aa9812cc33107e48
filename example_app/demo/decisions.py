"""What the agents decided, by ``x-request-id``."""

from threading import Condition

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import AgentContext, AgentDecision


class DecisionLog:
    """A middleware around :class:`~asgi_agents.AgentMiddleware` that remembers the decisions on requests with an id.

    They are complete when the app has returned, which the client's thread may have to wait for.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._decisions: dict[str, AgentDecision] = {}
        self._changed = Condition()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            if scope["type"] in ("http", "websocket"):
                self._remember(scope)

    def wait_for(self, request_id: str, timeout: float = 5.0) -> AgentDecision:
        """The decision on a request, as soon as it is complete."""
        with self._changed:
            if not self._changed.wait_for(lambda: request_id in self._decisions, timeout):
                raise TimeoutError(f"request {request_id} has not ended within {timeout:g} s")
            return self._decisions.pop(request_id)

    def _remember(self, scope: Scope) -> None:
        request_id = Headers(scope=scope).get("x-request-id")
        agents: AgentContext | None = scope.get("state", {}).get("agents")
        if request_id is not None:
            with self._changed:
                # A path that no agent guards has no context.
                self._decisions[request_id] = AgentDecision() if agents is None else agents.decision
                self._changed.notify_all()
