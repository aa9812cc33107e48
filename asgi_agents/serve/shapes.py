"""The shapes in which a served agent's answers go out. No I/O.

A client that names its calls is ours, and reads all shapes of the protocol. Any other may be as strict as the client of
the Rust kit: it decodes nothing but an AgentResponse, discards what it can't decode, and takes ``"decision": "allow"``
for an allow whatever else the answer says.
"""

from typing import Any, Final, NamedTuple

from ..protocol import ALLOW, AgentResponse, Answer, AuditMetadata, Encoding, EventType, GuardrailResponse
from ..protocol.codec import GUARDRAIL_KEY, NO_VERDICT, encode_value

# The status with which the Rust kit refuses a configuration.
_REFUSED: Final = 500


class Shaped(NamedTuple):
    """An answer, and the fields that are added to it if it is an AgentResponse."""

    answer: Answer
    fields: dict[str, Any] | None = None


def shape(answer: Answer, event_type: EventType | None, *, named: bool) -> Shaped:
    """The shape of an agent's answer to an ``event_type``. ``named``: to a client that names its calls."""
    if event_type is EventType.CONFIGURE and answer == ALLOW:
        return _acknowledgement(answer, None)
    if isinstance(answer, GuardrailResponse) and not named:
        return _guardrail(answer)
    return Shaped(answer)


def shape_refusal(event_type: EventType | None, reason: str, error: str) -> Shaped:
    """What an agent that has failed, or was not asked, answers. ``error`` is for configurations, ``reason`` else."""
    if event_type is EventType.CONFIGURE:
        return _acknowledgement(AgentResponse.block(_REFUSED, error), error)
    return no_verdict(reason)


def no_verdict(reason: str) -> Shaped:
    """An answer that no client can take for a verdict."""
    return Shaped(AgentResponse(version=0, audit=AuditMetadata(reason_codes=[reason])), {"decision": NO_VERDICT})


def _acknowledgement(answer: Answer, error: str | None) -> Shaped:
    """An AgentResponse and an acknowledgement in one."""
    return Shaped(answer, {"success": error is None, "error": error})


def _guardrail(verdict: GuardrailResponse) -> Shaped:
    """A guardrail verdict as an AgentResponse, which blocks what was detected: some clients ignore the JSON in it."""
    text = encode_value(verdict, Encoding.JSON, "answer").decode()
    metadata = {GUARDRAIL_KEY: text}
    if verdict.detected:
        return Shaped(AgentResponse(decision=AgentResponse.block().decision, routing_metadata=metadata))
    return Shaped(AgentResponse.allow(routing_metadata=metadata))
