"""Header operations that come too late, or of which too many wait, in answers to pieces of a body."""

from collections.abc import Sequence

from ..decision import Verdict
from ..evaluation.route_agent import RouteAgent
from .remembered import MAX_WAITING_OP_BYTES
from .state import ExchangeState


def applicable(state: ExchangeState, agents: Sequence[RouteAgent], verdicts: Sequence[Verdict]) -> Sequence[Verdict]:
    """The verdicts of ``agents`` on a piece of a body, as they can be applied now.

    An agent has failed that allows the piece with operations on headers that were sent already, or adds to operations
    of which too many wait already.
    """
    if not (state.request_head_gone or state.response_head_gone or state.op_bytes > MAX_WAITING_OP_BYTES):
        return verdicts
    return [_in_time(state, agents, verdict) for verdict in verdicts]


def _in_time(state: ExchangeState, agents: Sequence[RouteAgent], verdict: Verdict) -> Verdict:
    response = verdict.response
    if response is None or not response.is_allow:
        return verdict
    if response.request_headers and state.request_head_gone:
        field, until = "request_headers", "the app is called"
    elif response.response_headers and state.response_head_gone:
        field, until = "response_headers", "the head of the response is sent"
    elif state.op_bytes > MAX_WAITING_OP_BYTES and (response.request_headers or response.response_headers):
        field = "request_headers" if response.request_headers else "response_headers"
        until = f"more than {MAX_WAITING_OP_BYTES} bytes of them wait for a head"
    else:
        return verdict
    (agent,) = (agent for agent in agents if agent.guard.config.id == verdict.agent_id)
    event = verdict.event_type.value
    fault = f"{field} does not apply to this {event}: header operations may only be in answers before {until}"
    return agent.not_applicable(verdict, state.correlation_id, fault)
