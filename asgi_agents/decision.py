"""What one agent said, and what it all comes to."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from .failures import RULES, Failure
from .protocol import (
    ALLOW,
    AgentResponse,
    Allow,
    AuditMetadata,
    Block,
    BodyMutation,
    Decision,
    EventType,
    HeaderOp,
    Redirect,
    WebSocketClose,
    WebSocketDecision,
)


class Verdict(Struct, frozen=True):
    """The outcome of showing one event to one agent: exactly one of ``response`` and ``failure`` is set.

    ``fail_closed`` is the failure mode that held for this call, ``enforced`` is False for shadow agents, ``duration``
    is seconds including the wait for a permit, ``detected`` whether an inspection found something, ``window`` whether
    it was of text that passes, for a guardrail; other inspections are questions of a handler.
    """

    agent_id: str
    event_type: EventType
    response: AgentResponse | None
    failure: Failure | None
    fail_closed: bool
    enforced: bool
    duration: float
    detected: bool = False
    window: bool = False

    @property
    def outcome(self) -> str:
        """What it comes to in a word.

        ``allow``, ``block``, ``redirect``, ``challenge``, ``drop``, ``close``, ``detected``, or a failure's kind.
        """
        if self.failure is not None:
            return self.failure.kind.value
        if self.detected:
            return "detected"
        assert self.response is not None
        if self.response.websocket_decision is not None:
            return "close" if isinstance(self.response.websocket_decision, WebSocketClose) else "drop"
        return type(self.response.decision).__name__.lower()

    @property
    def metric_outcome(self) -> str:
        """:attr:`outcome` for metrics and spans: a denial that is provisional is ``needs_more``."""
        return "needs_more" if self.provisional and self.outcome != "allow" else self.outcome

    @property
    def provisional(self) -> bool:
        """Whether the agent wants to see more before its answer counts."""
        return self.response is not None and self.response.needs_more

    @property
    def denies(self) -> bool:
        """Whether the agent said, in so many words, that this must not pass; provisional or not."""
        return self.enforced and self.response is not None and not self.response.is_allow

    @property
    def failure_mode(self) -> str:
        """:attr:`fail_closed` in a word: ``closed`` or ``open``."""
        return "closed" if self.fail_closed else "open"

    @property
    def passed_open(self) -> bool:
        """Whether the agent failed, and its failure mode let that through."""
        return self.failure is not None and not self.fail_closed

    @property
    def would_stop(self) -> bool:
        """Whether a shadow agent would have stopped this, had it a say."""
        if self.enforced or self.provisional or self.event_type is EventType.REQUEST_COMPLETE:
            return False
        return self.fail_closed if self.response is None else self.detected or not self.response.is_allow

    @property
    def fails_closed(self) -> bool:
        """Whether the agent's failure stops the connection."""
        return self.enforced and self.failure is not None and self.fail_closed


class AgentDecision(Struct, frozen=True, kw_only=True):
    """What all the agents that were asked come to.

    ``decided_by`` names the agent that stopped it, ``failure`` is set when it did so by failing. Where nothing stopped
    it, header operations and mutations are those of all agents in route order; where something did, only the decider's
    ``response_headers`` are kept, for the reply, and as ``always_headers`` those with ``always`` of all others that
    answered. ``verdicts`` has every agent that answered, shadow agents too.
    """

    decision: Decision = Allow()
    websocket_decision: WebSocketDecision | None = None
    decided_by: str | None = None
    failure: Failure | None = None
    request_headers: Sequence[HeaderOp] = ()
    response_headers: Sequence[HeaderOp] = ()
    always_headers: Sequence[HeaderOp] = ()
    routing_metadata: Mapping[str, str] = {}
    request_body_mutation: BodyMutation | None = None
    response_body_mutation: BodyMutation | None = None
    needs_more: bool = False
    verdicts: Sequence[Verdict] = ()

    @property
    def is_allow(self) -> bool:
        """Whether the event may pass."""
        return type(self.decision) is Allow and self.websocket_decision is None

    @property
    def audit(self) -> Sequence[tuple[str, AuditMetadata]]:
        """Agent id and audit metadata of every agent that gave any."""
        return [
            (verdict.agent_id, verdict.response.audit)
            for verdict in self.verdicts
            if verdict.response is not None and verdict.response.audit != _NO_AUDIT
        ]

    def mutation(self, event_type: EventType) -> BodyMutation | None:
        """The mutation of such a body."""
        if event_type is EventType.REQUEST_BODY_CHUNK:
            return self.request_body_mutation
        return self.response_body_mutation

    @property
    def close(self) -> WebSocketClose:
        """This decision as a websocket close.

        Policy violation (1008) for a denial, 1011 for a failure (RFC 6455, section 7.4.1).
        """
        if self.failure is not None:
            return WebSocketClose(1011, RULES[self.failure.kind].close_reason)
        if isinstance(self.websocket_decision, WebSocketClose):
            return self.websocket_decision
        match self.decision:
            case Block(_, body, _) if body:
                return WebSocketClose(1008, body)
            case Redirect():
                return WebSocketClose(1008, "Redirected")
            case _:
                return WebSocketClose(1008, "Blocked")


_NO_AUDIT = AuditMetadata()
ALLOWED: Final = AgentDecision()


def is_denied(verdicts: Iterable[Verdict | None], *, final: bool) -> bool:
    """Whether it is decided that this must not pass, whatever those say that have not answered yet (None).

    True once an agent has denied and all before it in route order have answered. ``final``: no more is coming, so that
    provisional answers count.
    """
    for verdict in verdicts:
        if verdict is None:
            return False
        if verdict.denies and (final or not verdict.provisional):
            return True
    return False


def unanimous(verdicts: Iterable[Verdict]) -> bool:
    """Whether all of them simply allow, as most do."""
    for verdict in verdicts:  # noqa: SIM110 - all() and a generator take longer than a handful of verdicts
        if verdict.response is not ALLOW:
            return False
    return True


def merge(verdicts: Iterable[Verdict], *, final: bool = True) -> AgentDecision:
    """All verdicts, in route order, as one decision.

    Explicit denials beat failures, failures beat allow; among equals the first in route order decides. While ``final``
    is False, provisional (``needs_more``) answers decide nothing.
    """
    verdicts = tuple(verdicts)
    if unanimous(verdicts):
        return AgentDecision(verdicts=verdicts)
    denial: Verdict | None = None
    breakdown: Verdict | None = None
    for verdict in verdicts:
        if denial is None and verdict.denies and (final or not verdict.provisional):
            denial = verdict
        if breakdown is None and verdict.fails_closed:
            breakdown = verdict
    if denial is not None:
        assert denial.response is not None
        return AgentDecision(
            decision=denial.response.decision,
            websocket_decision=denial.response.websocket_decision,
            decided_by=denial.agent_id,
            response_headers=denial.response.response_headers,
            always_headers=_always_headers(verdicts, denial),
            routing_metadata=denial.response.routing_metadata,
            verdicts=verdicts,
        )
    if breakdown is not None:
        assert breakdown.failure is not None
        return AgentDecision(
            decision=breakdown.failure.block,
            decided_by=breakdown.agent_id,
            failure=breakdown.failure,
            always_headers=_always_headers(verdicts, breakdown),
            verdicts=verdicts,
        )
    return _merge_allowing(verdicts)


def _always_headers(verdicts: Iterable[Verdict], decider: Verdict) -> Sequence[HeaderOp]:
    """The header operations for every response of all but the decider, in route order."""
    return tuple(
        op
        for verdict in verdicts
        if verdict is not decider and verdict.enforced and verdict.response is not None
        for op in verdict.response.response_headers
        if op.always
    )


def _merge_allowing(verdicts: tuple[Verdict, ...]) -> AgentDecision:
    request_headers: list[HeaderOp] = []
    response_headers: list[HeaderOp] = []
    routing_metadata: dict[str, str] = {}
    request_mutation: BodyMutation | None = None
    response_mutation: BodyMutation | None = None
    needs_more = False
    for verdict in verdicts:
        response = verdict.response
        if response is None or not verdict.enforced:
            continue
        request_headers += response.request_headers
        response_headers += response.response_headers
        routing_metadata.update(response.routing_metadata)
        # Each writer saw the output of those before it, so the last mutation is the whole change.
        request_mutation = _changes(response.request_body_mutation) or request_mutation
        response_mutation = _changes(response.response_body_mutation) or response_mutation
        needs_more = needs_more or response.needs_more
    return AgentDecision(
        request_headers=tuple(request_headers),
        response_headers=tuple(response_headers),
        routing_metadata=routing_metadata,
        request_body_mutation=request_mutation,
        response_body_mutation=response_mutation,
        needs_more=needs_more,
        verdicts=verdicts,
    )


def _changes(mutation: BodyMutation | None) -> BodyMutation | None:
    return None if mutation is None or mutation.data is None else mutation
