"""The short way for requests of which agents receive the head and nothing else, and which they mostly just allow.

Most requests are like that, and most of what the general way does is for others. What is left out here, and why the
outcome is the same:

- An exchange, an inbound and a response inspection. They carry out what is decided, and a plain allow decides nothing.
  Where an agent has answered anything else, or has failed, an exchange is given the decision, as on the general way.
- Spans, the audit record, a correlation id in the response, headers that are cleaned, another middleware's context, a
  target that is refused. Where there is any of these, :meth:`HeadPlan.serve` does nothing, and the general way begins.
  What decides that is looked up anew for each request, because all of it can change while an app runs.
- Merging verdicts, which for plain allows gives a plain allow.

Whether an agent can be called, and how, is the guard's business here as anywhere: breaker, limit, deadline and counts
are in :meth:`Guard.call` alone.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from opentelemetry.trace import INVALID_SPAN
from starlette.types import Receive, Scope, Send

from ..decision import Verdict, merge, unanimous
from ..evaluation.evaluate import evaluate
from ..evaluation.resolved_route import ResolvedRoute
from ..observability.correlation import live_ids, reset_current, set_current
from ..observability.trace_context import current_context
from ..protocol import ALLOW, Headers, RequestHeadersEvent
from ..protocol.target import NoPathError
from ..registry import AgentRegistry
from .attendance import Attendance, answer_departed
from .context import STATE_KEY, AgentContext
from .http import HttpExchange
from .rendering import Renderers
from .scope import App, request_headers_event
from .state import ExchangeState

#: The general way: with the resolved route, a scope, and the two channels.
General = Callable[[ResolvedRoute, Scope, Receive, Send], Awaitable[Any]]


def named_head_event(state: ExchangeState, scope: Scope) -> RequestHeadersEvent:
    """The event of a request for which the client has given an id. The id is reserved, unless this raises."""
    header = state.correlation_header
    try:
        event = request_headers_event(scope, state.find_name(), state.route, headers=state.headers, name=header)
    except BaseException:
        state.close()
        raise
    state.note_request_id(event.metadata.request_id)
    return event


class HeadPlan:
    """How a middleware serves such requests.

    :param alias: the second name of the context in ``scope["state"]``, if it has one.
    :param correlation_header: the name of the header in which clients name requests, in lower case, or empty.
    :param audited: whether audit records are written now.
    """

    def __init__(
        self,
        registry: AgentRegistry,
        general: General,
        *,
        alias: str | None,
        correlation_header: str,
        audited: Callable[[], bool],
        renderers: Renderers,
        stop_grace: float,
    ) -> None:
        self._registry = registry
        self._tracing = registry.telemetry.tracing
        self._general = general
        self._alias = alias
        self._correlation_name = correlation_header
        self._correlation_header = correlation_header.encode()
        self._audited = audited
        self._renderers = renderers
        self._stop_grace = stop_grace

    async def serve(self, app: App, resolved_route: ResolvedRoute, scope: Scope, receive: Receive, send: Send) -> Any:
        """Serve one request of a route that is ``planned``. Returns what the app returns."""
        raw = scope.get("headers")
        known: Any = scope.get("state")
        if known is None:
            known = scope["state"] = {}
        alias = self._alias
        if (
            type(raw) is not list
            or STATE_KEY in known
            or alias in known
            or current_context()
            or not self._tracing.idle
            or self._audited()
        ):
            return await self._general(resolved_route, scope, receive, send)
        headers = Headers.of_request(raw, whole=not resolved_route.headers_in_process_only)
        assert headers.firsts is not None
        if headers.cookies_joined:
            return await self._general(resolved_route, scope, receive, send)
        route = resolved_route.route
        try:
            if self._correlation_header in headers.firsts:
                state = ExchangeState(
                    self._registry, resolved_route, None, route, self._correlation_name, headers, INVALID_SPAN
                )
                # Proxies name each request.
                event = named_head_event(state, scope)
            else:
                event = request_headers_event(scope, None, route, headers=headers, name="")
                name = event.metadata.correlation_id
                state = ExchangeState(self._registry, resolved_route, name, route, "", headers, INVALID_SPAN)
                live_ids[name] = True
        except NoPathError:
            return await self._general(resolved_route, scope, receive, send)
        known[STATE_KEY] = context = AgentContext(state)
        if alias is not None:
            known[alias] = context
        resolved_route.begun += 1
        token = set_current(state)
        verdicts: Sequence[Verdict] | None
        try:
            agents = resolved_route.head_agents
            attendance = Attendance(receive, state, head=scope) if resolved_route.heads_may_wait else None
            if len(agents) == 1:
                agent = agents[0]
                asking = agent.guard.call(event, agent.failure_mode, False, route, True)
                verdict = await (asking if attendance is None else attendance.wait_for(asking))
                verdicts = None if verdict is None else (verdict,)
                plain = verdict is not None and verdict.response is ALLOW
            else:
                asking_all = evaluate(agents, event)
                verdicts = await (asking_all if attendance is None else attendance.wait_for(asking_all))
                plain = verdicts is not None and unanimous(verdicts)
            if verdicts is None:
                # The client has left.
                return await answer_departed(send)
            if attendance is not None:
                receive = attendance.remaining
            if plain:
                state.record_allow(verdicts)
                return await app(scope, receive, send)
            state.record(verdicts)
            exchange = HttpExchange(state, scope, receive, send, self._renderers, self._stop_grace)
            return await exchange.run(app, merge(verdicts))
        finally:
            resolved_route.ended += 1
            state.close()
            reset_current(token)
