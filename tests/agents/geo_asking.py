"""Asking a GeoFilter about addresses."""

from asgi_agents import AgentResponse, Block
from asgi_agents.agents import GeoFilter
from asgi_agents.testing import request_headers_event, request_metadata

DENIED, UNKNOWN, PRIVATE = "place_denied", "place_unknown", "address_private"


async def answer_to(agent: GeoFilter, ip: str, **headers: str) -> AgentResponse | None:
    event = request_headers_event(metadata=request_metadata(client_ip=ip), headers=headers)
    return await agent.on_request_headers(event)


async def why(agent: GeoFilter, ip: str, **headers: str) -> str:
    """Why a request is denied; empty where it gets through."""
    answer = await answer_to(agent, ip, **headers)
    if answer is None:
        return ""
    assert isinstance(answer.decision, Block)
    assert answer.decision.status == 403
    [reason] = answer.audit.reason_codes
    return reason
