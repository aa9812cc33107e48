"""Guardrail answers: what an inspection comes to beside all other answers, and the other way round."""

from ..protocol import ALLOW, AgentResponse, AuditMetadata, Block, Detection, GuardrailResponse


def response_of(answer: GuardrailResponse) -> AgentResponse:
    """What an inspection found, for the record. What comes of it is the handler's to say."""
    if not answer.detected:
        return ALLOW
    categories = tuple(dict.fromkeys(detection.category for detection in answer.detections))
    return AgentResponse(audit=AuditMetadata(tags=categories, confidence=answer.confidence))


def inspection_of(response: AgentResponse) -> GuardrailResponse:
    """The inspection by an agent that answered in the general shape: a denial is a detection."""
    if response.is_allow:
        return GuardrailResponse(detected=False, confidence=response.audit.confidence or 0.0)
    body = response.decision.body if isinstance(response.decision, Block) else None
    return GuardrailResponse(
        detected=True,
        confidence=1.0 if response.audit.confidence is None else response.audit.confidence,
        detections=tuple(
            Detection(category=category, description=body or "blocked by the agent")
            for category in response.audit.reason_codes or response.audit.tags or ("blocked",)
        ),
    )
