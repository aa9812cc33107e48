"""The first screen: a few requests, who decided on each, what the client got, and where to look next."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from asgi_agents import AuditAnswer, AuditGuardrail, AuditRecord, Verdict

from .run import Outcome
from .table import BOLD, GREEN, RED, Style

_COLUMNS = (25, 25, 26)
_GAP = "  "


class Said(NamedTuple):
    """What an agent said to one event, or did as a guardrail.

    ``outcome`` is as :attr:`asgi_agents.Verdict.outcome` has it, or a word of ``counts`` of a guardrail's record.
    """

    agent: str
    outcome: str
    rule_ids: Sequence[str] = ()
    changes_body: bool = False
    enforced: bool = True
    passed_open: bool = False

    @property
    def words(self) -> str | None:
        """The same for a reader; None for an agent that simply allowed it."""
        if not self.enforced:
            return None if self.outcome == "allow" else f"{self.agent}: would {self.outcome}"
        if self.outcome == "allow":
            return f"{self.agent}: changes body" if self.changes_body else None
        return " ".join((f"{self.agent}: {self.outcome}", *self.rule_ids)) + (", open" if self.passed_open else "")


def opening(url: str, waf_url: str | None, agents: int) -> Iterator[str]:
    """What is where."""
    yield f"A shop behind {agents} agents, at {url}. A script sends it requests:"
    if waf_url is not None:
        yield f"(Its firewall is in a process of its own, at {waf_url}.)"


def headings(style: Style) -> str:
    """The first line of the rows."""
    return style.paint(_line("request", "decided by", "answer"), BOLD)


def row_of(outcome: Outcome) -> str:
    """What came of a step of the script."""
    decision = outcome.decision
    said = [*map(_said_in, decision.verdicts), *map(_done_by, outcome.guardrails)]
    return _line(outcome.step.request, _decider(decision.decided_by, said), outcome.got)


def summary(outcomes: Sequence[Outcome], style: Style) -> Iterator[str]:
    """What came of all of it; a row for each step that did not come out as expected."""
    wrong = [outcome for outcome in outcomes if not outcome.right]
    if not wrong:
        right = f"All {len(outcomes)} steps of the script came out as expected."
        yield f"{style.paint(right, GREEN)} --verbose shows each."
        return
    for outcome in wrong:
        step = outcome.step
        yield style.paint(f"{row_of(outcome)} {style.wrong}", RED)
        decider = step.decided_by or (f"{step.shadow}, a shadow agent" if step.shadow else "")
        yield _line("", decider, f"{step.expected} was expected")
    yield style.paint(f"{len(wrong)} of {len(outcomes)} steps did not come out as expected.", RED)


def where_to_look(url: str) -> Iterator[str]:
    """What to do next."""
    yield f"Look   {url}/chat        a chat whose answers are judged"
    yield f"       {url}/-/agents/   status page: the agents, live"
    yield f"       {url}/docs        the endpoints, to try out"
    yield "       docs/pages/guide/example.md        the code of each agent"
    yield f"Try    curl -i {url}/api/orders -H 'x-api-key: key-of-alice'"
    yield "Stop   Ctrl-C"


class AuditRow(logging.Formatter):
    """Makes a row of an audit record."""

    def format(self, record: logging.LogRecord) -> str:
        audit: AuditRecord = record.__dict__["audit"]
        # The path is the client's: nothing in it may do something to a terminal.
        request = f"{'WS' if audit.type == 'websocket' else audit.method} {audit.path}"
        decider = _decider(audit.decided_by, [*map(_said_by, audit.answers), *map(_done_by, audit.guardrails)])
        answer = f"closed {audit.close_code}" if audit.close_code else str(audit.status or audit.error)
        return _line(ascii(request)[1:-1], decider, answer)


def _decider(decided_by: str | None, said: Sequence[Said]) -> str:
    """The agent that stopped it, and how. Where none did: a failure that was let through, a shadow agent, a change."""
    telling = [(one, words) for one in said if (words := one.words) is not None]
    for one, words in reversed(telling):
        if one.agent == decided_by:
            return words
    telling.sort(key=lambda pair: (pair[0].passed_open, not pair[0].enforced))
    if telling:
        return telling[-1][1]
    return decided_by or ("all allow" if said else "none was asked")


def _said_in(verdict: Verdict) -> Said:
    response = verdict.response
    return Said(
        verdict.agent_id,
        verdict.outcome,
        () if response is None else response.audit.rule_ids,
        response is not None and bool(response.request_body_mutation or response.response_body_mutation),
        verdict.enforced,
        verdict.passed_open,
    )


def _said_by(answer: AuditAnswer) -> Said:
    return Said(
        answer.agent,
        answer.decision or answer.failure or "",
        answer.rule_ids,
        any(changed.endswith("_body") for changed in answer.changed),
        answer.enforced,
        answer.failure is not None and answer.failure_mode == "open",
    )


def _done_by(guardrail: AuditGuardrail) -> Said:
    done = next((word for word in ("block", "failure", "redact", "flag") if word in guardrail.counts), "allow")
    return Said(guardrail.agent, done)


def _line(*cells: str) -> str:
    return _GAP.join(cell.ljust(width) for cell, width in zip(cells, _COLUMNS, strict=True)).rstrip()
