"""Answers as messages of agent.proto, and back. No I/O.

The wire has no field for a mutation of a body, a decision about a websocket message, routing metadata, or what a
guardrail has found. A peer would take an answer without these for one that never had them. So no such answer is
encoded. A refusal is one without them too, and is said without. ``skip_body`` and ``always`` are left out, as for every
other host of the protocol: the agent is shown more than it wants, and its headers are on fewer replies.

Nor has it a message for an agent that has failed. An answer without a decision is an allow to the published client. A
failure is therefore said as a block, with :data:`NO_VERDICT` in ``audit.custom``, by which this package recognises it.
"""

from typing import Any, Final

import msgspec

from ...errors import AgentError, AgentProtocolError
from ..responses import (
    ALLOW,
    AgentResponse,
    Allow,
    Answer,
    AuditMetadata,
    Block,
    Challenge,
    Decision,
    HeaderOp,
    Redirect,
)
from .messages import AgentToProxy

#: The key of ``audit.custom`` under which an answer without a verdict says why there is none.
NO_VERDICT: Final = "asgi_agents.no_verdict"
# What a peer that does not know this key answers to its client.
_NO_VERDICT_STATUS: Final = 503


def encode_answer(answer: Answer, correlation_id: str) -> bytes:
    """An ``AgentToProxy``; raises :class:`AgentProtocolError` for an answer that can't be said in one."""
    if not isinstance(answer, AgentResponse):
        raise AgentProtocolError(f"gRPC has no message for a {type(answer).__name__}")
    if answer.websocket_decision is not None:
        raise AgentProtocolError("websocket_decision: gRPC has no message for it")
    refuses = not answer.is_allow
    if not refuses:
        _require_sayable(answer)
    message = AgentToProxy()
    response = message.response
    try:
        response.correlation_id = correlation_id
        _put_decision(response, answer.decision)
        if answer is not ALLOW:
            for field in ("request_headers", "response_headers"):
                ops = getattr(response, field)
                for op in getattr(answer, field):
                    _put_op(ops.add(), op)
            if answer.audit is not ALLOW.audit:
                try:
                    _put_audit(response.audit, answer.audit)
                except (TypeError, ValueError):
                    if not refuses:
                        raise
                    response.ClearField("audit")
            response.needs_more = answer.needs_more
        encoded: bytes = message.SerializeToString()
    except (TypeError, ValueError) as exc:
        raise AgentProtocolError(f"the answer can't be encoded for gRPC: {type(exc).__name__}") from None
    return encoded


def _require_sayable(answer: AgentResponse) -> None:
    for field in ("request_body_mutation", "response_body_mutation"):
        mutation = getattr(answer, field)
        if mutation is not None and mutation.data is not None:
            raise AgentProtocolError(f"{field}: gRPC has no message for it")
    if answer.routing_metadata:
        raise AgentProtocolError("routing_metadata: gRPC has no message for it")


def encode_no_verdict(reason: str, correlation_id: str) -> bytes:
    """The answer of an agent that has failed, or was not asked."""
    audit = AuditMetadata(reason_codes=["no_verdict"], custom={NO_VERDICT: reason})
    return encode_answer(AgentResponse(decision=Block(_NO_VERDICT_STATUS), audit=audit), correlation_id)


def decode_answer(response: Any) -> AgentResponse:
    """What a ``Response`` says.

    :raises AgentProtocolError: it says nothing, or nothing that the protocol knows.
    :raises AgentError: the agent has failed.
    """
    kind = response.WhichOneof("decision")
    if kind is None:
        raise AgentProtocolError("decision: expected one of allow, block, redirect and challenge, got none of them")
    audit = response.audit
    if NO_VERDICT in audit.custom:
        raise AgentError(audit.custom[NO_VERDICT] or "the agent failed")
    if kind == "allow" and _is_plain(response):
        return ALLOW
    return AgentResponse(
        decision=_decision(kind, getattr(response, kind)),
        request_headers=_ops("request_headers", response.request_headers),
        response_headers=_ops("response_headers", response.response_headers),
        audit=AuditMetadata(
            tags=audit.tags,
            rule_ids=audit.rule_ids,
            # A float of 32 bits has seven digits; the others are none that the agent has written.
            confidence=float(f"{audit.confidence:.7g}") if audit.HasField("confidence") else None,
            reason_codes=audit.reason_codes,
            custom=dict(audit.custom),
        ),
        needs_more=response.needs_more,
    )


def _is_plain(response: Any) -> bool:
    """Whether an allow says nothing else, as most do."""
    audit = response.audit
    return not (
        response.request_headers
        or response.response_headers
        or response.needs_more
        or audit.tags
        or audit.rule_ids
        or audit.reason_codes
        or audit.custom
        or audit.HasField("confidence")
    )


def _put_decision(response: Any, decision: Decision) -> None:
    match decision:
        case Allow():
            response.allow.SetInParent()
        case Block(status, body, headers):
            block = response.block
            block.status = status
            if body is not None:
                block.body = body
            for name, value in (headers or {}).items():
                block.headers.add(name=name, value=value)
        case Redirect(url, status):
            response.redirect.url = url
            response.redirect.status = status
        case Challenge(challenge_type, params):
            response.challenge.challenge_type = challenge_type
            response.challenge.params.update(params)


def _put_op(operation: Any, op: HeaderOp) -> None:
    if op.kind == "remove":
        operation.remove = op.name
    else:
        field = operation.set if op.kind == "set" else operation.add
        field.name = op.name
        field.value = op.value


def _put_audit(audit: Any, given: AuditMetadata) -> None:
    audit.tags.extend(given.tags)
    audit.rule_ids.extend(given.rule_ids)
    audit.reason_codes.extend(given.reason_codes)
    if given.confidence is not None:
        audit.confidence = given.confidence
    for name, value in given.custom.items():
        # The published kits have JSON there, and here text is not quoted, for a reader.
        audit.custom[name] = value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _decision(kind: str, given: Any) -> Decision:
    match kind:
        case "block":
            headers = {field.name: field.value for field in given.headers}
            return Block(given.status, given.body if given.HasField("body") else None, headers or None)
        case "redirect":
            return Redirect(given.url, given.status)
        case "challenge":
            return Challenge(given.challenge_type, dict(given.params))
    return ALLOW.decision


def _ops(field: str, operations: Any) -> list[HeaderOp]:
    return [_op(f"{field}[{index}]", operation) for index, operation in enumerate(operations)]


def _op(where: str, operation: Any) -> HeaderOp:
    match operation.WhichOneof("operation"):
        case "set":
            return HeaderOp.set(operation.set.name, operation.set.value)
        case "add":
            return HeaderOp.add(operation.add.name, operation.add.value)
        case "remove":
            return HeaderOp.remove(operation.remove)
    raise AgentProtocolError(f"{where}: expected one of set, add and remove, got none of them")
