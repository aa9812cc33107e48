"""Assertions about who has stopped a request, with messages that say what happened instead."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from ..audit import AuditAnswer, AuditRecord
from ..failures import FailureKind
from ..messages.naming import named
from .recording import HEADER, RECORDS, RecordedConnection

_FAILURES: Final = frozenset(kind.value for kind in FailureKind)


class RecordedResponse(Protocol):
    """A response of whichever client: what has headers."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers. Names are found in lower case."""
        ...


#: A response, or a record of :class:`Recording`.
Recorded = RecordedResponse | AuditRecord


def assert_blocked_by(response: Recorded, agent_id: str) -> AuditRecord:
    """Assert that this agent has stopped the request by an answer of its own, not by failing.

    An answer that stops a request is a block, a redirect or a challenge, and that stops a session also a close. A
    message that is dropped stops nothing.

    :param response: a response that has come while the app was recorded (:func:`override_agents`), or one of
        :attr:`Recording.records`, such as that of a websocket.
    :return: the record, which says more of the answers.
    :raises AssertionError: for anything else. The message says what happened.
    """
    __tracebackhide__ = True
    records = _records(response, agent_id)
    for record in records:
        if record.decided_by == agent_id and not _failed(record):
            return record
    raise AssertionError(_message(records, agent_id, "was not blocked by"))


def assert_failed_open(response: Recorded, agent_id: str) -> AuditRecord:
    """Assert that this agent has failed, or its breaker was open, and the request went on without it.

    Parameters, result and exception are those of :func:`assert_blocked_by`.
    """
    __tracebackhide__ = True
    records = _records(response, agent_id)
    for record in records:
        if agent_id in record.passed_open:
            return record
    raise AssertionError(_message(records, agent_id, "did not pass a failure of"))


def assert_failed_closed(response: Recorded, agent_id: str) -> AuditRecord:
    """Assert that this agent has stopped the request by failing, or because its breaker was open.

    Parameters, result and exception are those of :func:`assert_blocked_by`.
    """
    __tracebackhide__ = True
    records = _records(response, agent_id)
    for record in records:
        if record.decided_by == agent_id and _failed(record):
            return record
    raise AssertionError(_message(records, agent_id, "was not stopped by a failure of"))


def _records(response: Recorded, agent_id: str) -> Sequence[AuditRecord]:
    """What the middlewares have recorded, the outermost first."""
    __tracebackhide__ = True
    if isinstance(response, AuditRecord):
        return (response,)
    token = _token(response)
    connections = () if token is None else RECORDS.find(token)
    if not connections:
        raise AssertionError(
            "there is no record of this response: expected one that a guarded app has given within `with"
            " override_agents(app):`, to a request that has agents"
            if token is None
            else "there is no record of this response any more: only the last 1,000 are kept"
        )
    known = _unique(each for connection in connections for each in connection.agent_ids)
    if agent_id not in known and not any(_concerns(connection, agent_id) for connection in connections):
        raise AssertionError(f"no agent has the id {agent_id!r}; there are: {', '.join(known)}")
    return [connection.record for connection in connections]


def _token(response: RecordedResponse) -> str | None:
    try:
        headers = response.headers
        return headers.get(HEADER)
    except AttributeError:
        raise TypeError(f"expected a response or an AuditRecord, got {named(response)}") from None


def _concerns(connection: RecordedConnection, agent_id: str) -> bool:
    # An agent may have been removed since.
    return any(agent.agent == agent_id for agent in connection.record.agents)


def _failed(record: AuditRecord) -> bool:
    """Whether it was a failure of an agent that has stopped the request."""
    return record.decision in _FAILURES


def _message(records: Sequence[AuditRecord], agent_id: str, what: str) -> str:
    """``GET /orders was not blocked by 'waf': ...``, and what the agents have said."""
    first = records[0]
    head = f"{first.method} {first.path}" if first.type == "http" else f"the websocket {first.path}"
    lines = [f"{head} {what} {agent_id!r}: {'; '.join(_unique(map(_outcome, _telling(records))))}"]
    for record in records:
        lines += _said_in(record)
    if not any(line.startswith(f"  {agent_id}: ") for line in lines[1:]):
        lines.append(f"  {agent_id}: no answer; it was not asked, or another has stopped the request before")
    return "\n".join(lines)


def _telling(records: Sequence[AuditRecord]) -> Sequence[AuditRecord]:
    """Those in which an agent has stopped the request; else the outermost, which has the status of the response."""
    return [record for record in records if record.decided_by is not None] or records[:1]


def _outcome(record: AuditRecord) -> str:
    status = "no response" if record.status is None else f"status {record.status}"
    if record.close_code is not None:
        status += f", closed with {record.close_code}"
    if record.decided_by is None:
        return f"no agent has stopped it ({status})"
    if _failed(record):
        return f"{record.decided_by!r} has stopped it by failing: {record.decision} ({status})"
    return f"{record.decided_by!r} has stopped it: {record.decision} ({status})"


def _said_in(record: AuditRecord) -> list[str]:
    said = [f"  {answer.agent}: {_said(answer)}" for answer in record.answers]
    for report in record.guardrails:
        counts = ", ".join(f"{what} {count}" for what, count in report.counts.items()) or "nothing found"
        said.append(f"  {report.agent}: as a guardrail: {counts}")
    # Plain consent to messages and pieces of bodies is not among the answers.
    silent = [agent for agent in record.agents if not any(line.startswith(f"  {agent.agent}: ") for line in said)]
    return [*said, *(f"  {agent.agent}: allow, {agent.calls} times" for agent in silent)]


def _said(answer: AuditAnswer) -> str:
    said = f"{answer.event}: "
    if answer.failure is not None:
        said += f"failed ({answer.failure}), fail-{answer.failure_mode}"
    else:
        said += answer.decision or "no answer"
    reasons = [f"reason {code}" for code in answer.reason_codes] + [f"rule {rule}" for rule in answer.rule_ids]
    if reasons:
        said += f" ({', '.join(reasons)})"
    return said if answer.enforced else f"{said}, as a shadow agent (enforce=False)"


def _unique(given: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(given))
