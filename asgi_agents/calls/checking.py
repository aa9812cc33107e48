"""What an agent may answer: by the protocol, and by its configuration."""

from typing import Final

from ..config import AgentConfig
from ..errors import AgentError
from ..protocol import (
    ALLOW,
    Acknowledgement,
    AgentResponse,
    Answer,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    WebSocketFrameEvent,
    check_acknowledgement,
    check_inspection,
    check_response,
)
from ..protocol.applicability import check_applicable, check_frame

_ACKNOWLEDGED: Final = frozenset({EventType.CONFIGURE, EventType.REQUEST_COMPLETE})


def check_answer(config: AgentConfig, event: Event, answer: Answer) -> AgentResponse | GuardrailResponse:
    """The answer to ``event``; raises :class:`AgentError` for one that is not allowed."""
    if isinstance(answer, GuardrailResponse) and isinstance(event, GuardrailInspectEvent):
        return check_inspection(answer, event.content)
    return check_general(config, event, answer)


def check_general(config: AgentConfig, event: Event, answer: Answer | None) -> AgentResponse:
    """As :func:`check_answer`, where an answer in the shape of a guardrail's is not allowed."""
    if isinstance(answer, Acknowledgement) and event.event_type in _ACKNOWLEDGED:
        if not check_acknowledgement(answer).success:
            raise AgentError(f"refused: {answer.error or 'no reason given'}")
        return ALLOW
    response = check_response(answer, may_mutate=config.body_access == "write", may_set_host=config.may_set_host)
    if response is not ALLOW:
        check_applicable(event.event_type, response)
        if isinstance(event, WebSocketFrameEvent):
            check_frame(event, response)
    return response
