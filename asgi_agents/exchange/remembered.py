"""What is kept of an agent's answer once it was acted on, and how much of it. Pure."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import astuple, replace

from ..decision import Verdict
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
MAX_VERDICT_BYTES: Final = 1024 * 1024
#: How many bytes of header operations, given in answers to pieces of bodies, may wait for the head that they are for.
MAX_WAITING_OP_BYTES: Final = 64 * 1024

# What is remembered of a verdict beside what the agent has written: the objects themselves.
_VERDICT_BYTES: Final = 320
_OP_BYTES: Final = 128
# When there is too much, so much is kept: it is not counted anew for each verdict.
_KEPT: Final = MAX_VERDICT_BYTES * 3 // 4
_NO_AUDIT: Final = ALLOW.audit


def remembered(verdict: Verdict) -> tuple[Verdict, int, bool]:
    """What is kept of ``verdict``, about how many bytes that takes, and whether it is all but the mutated bytes.

    Of an answer that would take all the room alone only the decision is kept.
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
    parts: list[object] = [] if type(response.decision) is Allow else [response.decision]
    if response.audit is not _NO_AUDIT:
        parts.append(response.audit)
    fields = (response.websocket_decision, response.routing_metadata, response.request_headers, response.response_headers)
    parts += filter(None, fields)
    written = weigh(parts, _KEPT)
    if written + _VERDICT_BYTES <= _KEPT:
        return verdict, written + _VERDICT_BYTES, True
    return replace(verdict, response=_outline(response)), _VERDICT_BYTES, False


def newest(verdicts: Sequence[Verdict]) -> tuple[list[Verdict], int]:
    """The newest of ``verdicts``, all of which :func:`remembered` has given, and how many bytes they take."""
    kept = 0
    total = 0
    for verdict in reversed(verdicts):
        weight = remembered(verdict)[1]
        if kept == MAX_VERDICTS or total + weight > _KEPT:
            break
        kept += 1
        total += weight
    return list(verdicts[len(verdicts) - kept :]), total


def weigh(value: object, limit: int) -> int:
    """About how many bytes of memory ``value`` takes with all that is in it; no more is counted above ``limit``."""
    total = 0
    unseen: list[Any] = [value]
    # What leads back to itself ends at the limit.
    while unseen and total <= limit:
        each = unseen.pop()
        if each is None or isinstance(each, bool):
            total += 8
            continue
        total += sys.getsizeof(each)
        if isinstance(each, str | bytes | int | float):
            continue
        if isinstance(each, Struct):
            unseen += astuple(each)
        elif isinstance(each, Mapping):
            total += 16 * len(each)
            unseen += [part for item in each.items() for part in item] if len(each) <= limit else ()
        elif isinstance(each, list | tuple | set | frozenset):
            unseen += each if len(each) <= limit else ()
    return total


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


def _outline(response: AgentResponse) -> AgentResponse:
    """What an answer comes to, without anything that can be long."""
    decision: Decision = Allow()
    match response.decision:
        case Block(status):
            decision = Block(status)
        case Redirect(_, status):
            decision = Redirect("", status)
        case Challenge(kind):
            decision = Challenge(kind[:128])
        case _:
            pass
    close = response.websocket_decision
    return replace(
        response,
        decision=decision,
        websocket_decision=WebSocketClose(close.code) if isinstance(close, WebSocketClose) else close,
        request_headers=(),
        response_headers=(),
        routing_metadata={},
        audit=AuditMetadata(confidence=response.audit.confidence),
    )
