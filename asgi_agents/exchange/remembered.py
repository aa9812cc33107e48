"""What is kept of an agent's answer once it was acted on, and how much of it. Pure."""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from ..decision import Verdict
from ..memory.weighing import weigh
from ..protocol import (
    ALLOW,
    AgentResponse,
    Allow,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    Decision,
    ForgottenMutation,
    HeaderOp,
    Redirect,
    WebSocketClose,
)

#: How many verdicts of a connection are remembered, and how many bytes of memory these may take together.
MAX_VERDICTS: Final = 1000
MAX_VERDICT_BYTES: Final = 2 * 1024 * 1024
#: How many bytes of header operations, given in answers to pieces of bodies, may wait for the head that they are for.
MAX_WAITING_OP_BYTES: Final = 64 * 1024

# What is remembered of a verdict beside what the agent has written: the objects themselves.
_VERDICT_BYTES: Final = 320
_OP_BYTES: Final = 128
# When there is too much, this much is kept: less than the limit, so that not every verdict after it is one too many.
_KEPT: Final = MAX_VERDICT_BYTES * 3 // 4
# Above this size an answer is long. It is shortened to so many texts of so many characters, as in an audit record.
_LONG: Final = 12 * 1024
_TEXTS: Final = 16
_TEXT_LENGTH: Final = 129
_NO_AUDIT: Final = ALLOW.audit


def remembered(verdict: Verdict) -> tuple[Verdict, int, bool]:
    """What is kept of ``verdict``, about how many bytes that takes, and whether it is all but the mutated bytes.

    An answer that would take all the room alone is shortened.
    """
    response = verdict.response
    if response is None or response is ALLOW:
        return verdict, _VERDICT_BYTES, True
    if response.request_body_mutation is not None or response.response_body_mutation is not None:
        response = replace(
            response,
            request_body_mutation=_without_bytes(response.request_body_mutation),
            response_body_mutation=_without_bytes(response.response_body_mutation),
        )
        verdict = replace(verdict, response=response)
    size = _weigh_response(response)
    if size <= _KEPT:
        return verdict, size, True
    return *_shortened(verdict), False


def newest(verdicts: Sequence[Verdict]) -> tuple[list[Verdict], int, int]:
    """The newest of ``verdicts``, about how many bytes they take, and how many were forgotten or shortened.

    :func:`remembered` has given all of them. Long ones are shortened before others are forgotten.
    """
    kept: list[Verdict] = []
    total = lost = 0
    for verdict in reversed(verdicts):
        size = _VERDICT_BYTES if verdict.response is None else _weigh_response(verdict.response)
        if size > _LONG and total + size > _KEPT // 4:
            verdict, size = _shortened(verdict)
            lost += 1
        if len(kept) == MAX_VERDICTS or total + size > _KEPT:
            break
        kept.append(verdict)
        total += size
    kept.reverse()
    return kept, total, lost + len(verdicts) - len(kept)


def _weigh_response(response: AgentResponse) -> int:
    if response is ALLOW:
        return _VERDICT_BYTES
    parts: list[object] = [] if type(response.decision) is Allow else [response.decision]
    if response.audit is not _NO_AUDIT:
        parts.append(response.audit)
    parts += (response.websocket_decision, response.routing_metadata)
    parts += (response.request_headers, response.response_headers)
    return _VERDICT_BYTES + weigh([part for part in parts if part], _KEPT)


def weigh_ops(ops: Sequence[HeaderOp]) -> int:
    """About how many bytes header operations take."""
    return sum(_OP_BYTES + len(op.name) + len(op.value) for op in ops)


def compacted(ops: Sequence[HeaderOp]) -> list[HeaderOp]:
    """The same changes with fewer operations: what a later one undoes is left out.

    One that is also made to denials and failures (``always``) is undone by its like alone.
    """
    undone: set[tuple[str, bool]] = set()
    kept: list[HeaderOp] = []
    for op in reversed(ops):
        name = op.name.lower()
        if (name, True) in undone or (not op.always and (name, False) in undone):
            continue
        kept.append(op)
        if op.kind != "add":
            undone.add((name, op.always))
    kept.reverse()
    return kept


def _without_bytes(mutation: BodyMutation | None) -> BodyMutation | None:
    if mutation is None or mutation.data is None:
        return mutation
    return ForgottenMutation(None, mutation.chunk_index, len(mutation.data))


def _shortened(verdict: Verdict) -> tuple[Verdict, int]:
    """What an answer comes to, and the beginning of what the agent wants remembered of it; and its size."""
    response = verdict.response
    assert response is not None
    decision: Decision = response.decision
    match decision:
        case Block(status):
            decision = Block(status)
        case Redirect(_, status):
            decision = Redirect("", status)
        case Challenge(kind):
            decision = Challenge(kind[:_TEXT_LENGTH])
        case _:
            pass
    close = response.websocket_decision
    audit = response.audit
    response = replace(
        response,
        decision=decision,
        websocket_decision=WebSocketClose(close.code) if isinstance(close, WebSocketClose) else close,
        request_headers=(),
        response_headers=(),
        routing_metadata={},
        audit=AuditMetadata(
            tags=_beginning(audit.tags),
            rule_ids=_beginning(audit.rule_ids),
            reason_codes=_beginning(audit.reason_codes),
            confidence=audit.confidence,
        ),
    )
    return replace(verdict, response=response), _weigh_response(response)


def _beginning(texts: Sequence[str]) -> Sequence[str]:
    return [text[:_TEXT_LENGTH] for text in texts[:_TEXTS]]
