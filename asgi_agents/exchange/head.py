"""Asking agents about the head of a request, a handshake or a response, and telling them how a connection has ended."""

from collections.abc import Sequence

import anyio
from msgspec.structs import replace
from starlette.types import Scope

from ..decision import AgentDecision, Verdict, merge
from ..evaluation.evaluate import evaluate, evaluate_head
from ..evaluation.route_agent import RouteAgent
from ..observability.trace_context import current_traceparent, traceparent_of
from ..protocol import RequestCompleteEvent, RequestHeadersEvent, ResponseHeadersEvent
from .scope import request_headers_event
from .state import ExchangeState


def head_event(state: ExchangeState, scope: Scope) -> RequestHeadersEvent:
    """The event of a request or a handshake."""
    span = state.server_span
    traceparent = current_traceparent() if span is None else traceparent_of(span)
    event = request_headers_event(
        scope,
        state.find_name(),  # one call less than its property, which asks it where there is no name yet
        state.route,
        headers=state.headers,
        name=state.correlation_header,
        traceparent=traceparent,
        request_id=state.request_id,
    )
    if state.correlation_header:
        # The client has named the connection: a middleware further in must not make up another id for the request.
        state.note_request_id(event.metadata.request_id)
    return event


async def judge_head(
    state: ExchangeState,
    event: RequestHeadersEvent | ResponseHeadersEvent,
    *,
    body_agents: Sequence[RouteAgent] = (),
) -> tuple[AgentDecision, dict[str, Verdict]]:
    """The decision on a head, and its provisional denials by agent, which only the answers to the body can take back.

    An answer with ``needs_more`` is provisional only if its agent is one of ``body_agents``, which receive the body
    that follows, if one does. From any other agent it is final.
    """
    resolved_route = state.resolved_route
    body_agent_ids = {agent.guard.config.id for agent in body_agents}
    if isinstance(event, ResponseHeadersEvent) and (state.closed or resolved_route.keeping_requests):
        verdicts = await state.evaluate_with_reserved_id(
            resolved_route.agents_for(event.event_type), event, final=not body_agent_ids
        )
    elif resolved_route.head_order is not None and isinstance(event, RequestHeadersEvent):
        verdicts = await evaluate_head(resolved_route, event, body_agent_ids=body_agent_ids)
    else:
        verdicts = await evaluate(resolved_route.agents_for(event.event_type), event, final=not body_agent_ids)
    if not body_agent_ids:
        state.record(verdicts)
        return merge(verdicts), {}
    if any(verdict.provisional for verdict in verdicts):
        verdicts = [_final(verdict) if verdict.agent_id not in body_agent_ids else verdict for verdict in verdicts]
    state.record(verdicts)
    decision = merge(verdicts, final=False)
    return decision, {verdict.agent_id: verdict for verdict in verdicts if verdict.provisional and verdict.denies}


def skipping_body(decision: AgentDecision) -> set[str]:
    """The agents that want to be shown nothing of the body behind the head that ``decision`` is about."""
    return {
        verdict.agent_id for verdict in decision.verdicts if verdict.response is not None and verdict.response.skip_body
    }


def _final(verdict: Verdict) -> Verdict:
    """``verdict`` without ``needs_more``."""
    if verdict.response is None or not verdict.response.needs_more:
        return verdict
    return replace(verdict, response=replace(verdict.response, needs_more=False))


async def report_completion(state: ExchangeState, event: RequestCompleteEvent) -> None:
    """Tell the agents how the connection ended, also when it ended by cancellation; their deadlines bound it."""
    with anyio.CancelScope(shield=True):
        verdicts = await evaluate(state.resolved_route.agents_for(event.event_type), event, everyone=True)
    state.record(verdicts, every=False)
