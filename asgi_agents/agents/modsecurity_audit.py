"""What the engine says of a request or response, as an answer, and what is recorded of the rules that matched."""

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from ..protocol import AgentResponse, AuditMetadata
from .modsecurity_rules import Rules

# Of a request that matches everything, the record has these many rules and tags.
_MOST: Final = 64
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def audit_of(rules: Rules, transaction: Any, reasons: tuple[str, ...] = ()) -> AuditMetadata:
    """Never what has matched: that is what the client sent. The engine fills it into messages and tags."""
    said = [(str(each.rule_id), rules.texts.get(each.rule_id), each) for each in transaction.get_rule_messages()]
    messages = {number: texts.message for number, texts, _ in said if texts and texts.message}
    return AuditMetadata(
        rule_ids=_first(number for number, _, _ in said),
        tags=_first(tag for _, texts, each in said if texts for tag in each.tags if tag in texts.tags),
        reason_codes=reasons,
        custom={"messages": dict(islice(messages.items(), _MOST))} if messages else {},
    )


def denial_of(rules: Rules, transaction: Any) -> AgentResponse | None:
    """What the engine has decided, unless it lets pass."""
    intervention = transaction.intervention()
    if intervention is None or not intervention.disruptive:
        return None
    audit = audit_of(rules, transaction, ("waf",))
    if intervention.url:
        status = intervention.status if intervention.status in _REDIRECTS else 302
        return AgentResponse.redirect(intervention.url, status, audit=audit)
    return AgentResponse.block(intervention.status if intervention.status >= 400 else 403, audit=audit)


def answer_of(rules: Rules, transaction: Any) -> AgentResponse:
    """The same, and what has matched of a request that may pass."""
    denied = denial_of(rules, transaction)
    if denied is not None:
        return denied
    audit = audit_of(rules, transaction)
    return AgentResponse.allow(audit=audit) if audit.rule_ids else AgentResponse.allow()


def _first(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))[:_MOST]
