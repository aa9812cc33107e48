"""Ways in which an agent can fail to judge, and what each of them means: the one table of it.

A new kind is a member of :class:`FailureKind` and its rule in :data:`RULES`; README.md has the same table for users.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from .errors import (
    AgentConnectionError,
    AgentError,
    AgentUnavailableError,
    EventTooLargeError,
    NotApplicableError,
    printable,
)
from .messages.places import raised_by
from .protocol import Block, EventType


class FailureKind(StrEnum):
    """Ways in which an agent can fail to judge."""

    BREAKER_OPEN = "breaker_open"
    QUEUE_TIMEOUT = "queue_timeout"
    UNAVAILABLE = "unavailable"
    ERROR = "error"
    TIMEOUT = "timeout"
    REQUEST_TOO_LARGE = "request_too_large"
    RESPONSE_TOO_LARGE = "response_too_large"
    REQUEST_UNREADABLE = "request_unreadable"
    RESPONSE_UNREADABLE = "response_unreadable"
    NOT_APPLICABLE = "not_applicable"


class FailureRule(Struct, frozen=True, kw_only=True):
    """What a kind of failure means.

    :ivar status: that of the reply to a client, where the agent fails closed; ``message`` is its text.
    :ivar close_reason: the reason of the websocket close (1011) in its place.
    :ivar counts_for_breaker: whether it is the agent's fault. Failures of which it is not, though their kind says so,
        are recognised by :func:`failure_of`.
    :ivar logged: whether the log says that the agent fails. Of others there is nothing to be done about the agent.
    :ivar counts_as_call: whether the agent was called, or waited for, on behalf of a connection.
    :ivar body_skipped: whether the agent was not shown the body, or not all of it, because of what the body is.
    """

    status: int
    message: str
    close_reason: str
    counts_for_breaker: bool = False
    logged: bool = False
    counts_as_call: bool = True
    body_skipped: bool = False


def _body(status: int, message: str) -> FailureRule:
    return FailureRule(status=status, message=message, close_reason=message, counts_as_call=False, body_skipped=True)


_UNAVAILABLE: Final = "Service unavailable"
_TIMEOUT: Final = "Gateway timeout"

RULES: Final[Mapping[FailureKind, FailureRule]] = {
    FailureKind.BREAKER_OPEN: FailureRule(
        status=503, message=_UNAVAILABLE, close_reason=_UNAVAILABLE, counts_as_call=False
    ),
    FailureKind.QUEUE_TIMEOUT: FailureRule(status=503, message=_UNAVAILABLE, close_reason=_UNAVAILABLE, logged=True),
    FailureKind.UNAVAILABLE: FailureRule(status=503, message=_UNAVAILABLE, close_reason=_UNAVAILABLE, logged=True),
    FailureKind.ERROR: FailureRule(
        status=503, message="Agent unavailable", close_reason="Agent error", counts_for_breaker=True, logged=True
    ),
    FailureKind.TIMEOUT: FailureRule(
        status=504, message=_TIMEOUT, close_reason=_TIMEOUT, counts_for_breaker=True, logged=True
    ),
    FailureKind.REQUEST_TOO_LARGE: _body(413, "Payload too large for security inspection"),
    FailureKind.RESPONSE_TOO_LARGE: _body(500, "Response too large for security inspection"),
    FailureKind.REQUEST_UNREADABLE: _body(415, "Payload unreadable for security inspection"),
    FailureKind.RESPONSE_UNREADABLE: _body(500, "Response unreadable for security inspection"),
    # When an answer is not applicable depends on the request: a client could open the breaker with a few large bodies.
    FailureKind.NOT_APPLICABLE: FailureRule(
        status=503, message="Agent unavailable", close_reason="Agent error", logged=True
    ),
}


class Failure(Struct, frozen=True):
    """A call that brought no verdict. ``message`` names agent, event and fault; ``retry_after`` is seconds.

    ``counts_for_breaker`` is whether the call was let through by the agent's breaker and counts there as a failure.
    """

    kind: FailureKind
    message: str
    retry_after: float | None = None
    counts_for_breaker: bool = False

    @property
    def block(self) -> Block:
        """The reply to a client whose connection a fail-closed agent's failure stops."""
        headers = None
        if self.retry_after is not None:
            # Whole seconds (RFC 9110, section 10.2.3), rounded up so that the client doesn't come too early.
            headers = {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        rule = RULES[self.kind]
        return Block(rule.status, rule.message, headers)


class CallFailure(Exception):  # noqa: N818 - it becomes a Failure
    """The guard's own reasons for a failure; nothing that an agent could raise."""

    def __init__(self, kind: FailureKind, fault: str, retry_after: float | None = None) -> None:
        super().__init__(fault)
        self.kind = kind
        self.retry_after = retry_after


class MissingConfigKeyError(AgentError, KeyError):
    """The agent asked its configuration for a key that is not there. The message names it, and those that are.

    The log has that message only where it was raised in ``on_configure``. Later an agent may look up what a client has
    sent, such as an API key among those that it is configured with.
    """

    def __str__(self) -> str:
        return str(self.args[0])


_TOO_LARGE: Final = {
    EventType.REQUEST_BODY_CHUNK: FailureKind.REQUEST_TOO_LARGE,
    EventType.RESPONSE_BODY_CHUNK: FailureKind.RESPONSE_TOO_LARGE,
}


def too_large(event_type: EventType) -> FailureKind:
    """The kind of failure where an agent can't be shown such an event because of its length."""
    return _TOO_LARGE.get(event_type, FailureKind.ERROR)


def unreadable(event_type: EventType) -> FailureKind:
    """The kind of failure where an agent can't be shown what is in such a body."""
    return (
        FailureKind.REQUEST_UNREADABLE
        if event_type is EventType.REQUEST_BODY_CHUNK
        else FailureKind.RESPONSE_UNREADABLE
    )


#: Of an agent that needs a configuration and has none.
NO_CONFIG: Final = "its AgentConfig has no config, expected AgentConfig(..., config={...})"


def failure_of(
    exc: Exception,
    event_type: EventType,
    *,
    agent_id: str,
    function: object,
    configured: bool = True,
    others_left: bool = False,
    given_up: bool = False,
) -> Failure:
    """What a call has come to that ended with ``exc``.

    :param function: what was called, for the place where it has raised.
    :param configured: whether the agent has a configuration, so that the message need not ask for one.
    :param others_left: whether there are more connections to the agent than the one that was lost, if one was: an
        instance of the agent is gone, but not the agent.
    :param given_up: whether the call was cancelled before it ended. It may have failed because of that.
    """
    kind, fault, retry_after, counts = FailureKind.ERROR, str(exc), None, True
    match exc:
        case CallFailure():
            kind, retry_after = exc.kind, exc.retry_after
        case AgentUnavailableError():
            kind = FailureKind.UNAVAILABLE
        case EventTooLargeError():
            # The client decides how large its bodies and headers are: with them it could open the breaker.
            kind, counts = too_large(event_type), False
        case NotApplicableError():
            kind = FailureKind.NOT_APPLICABLE
        case AgentConnectionError():
            counts = not others_left
        case AgentError() if event_type is EventType.CONFIGURE or not isinstance(exc, MissingConfigKeyError):
            # Once the agent is configured, a key may be what a client has sent.
            pass
        case _:
            # Not str(exc): an agent's own exception may carry the data that it choked on.
            fault = raised_by(exc, function)
            if event_type is EventType.CONFIGURE and not configured and isinstance(exc, TypeError):
                fault += f"; {NO_CONFIG}"
    counts = counts and RULES[kind].counts_for_breaker and not given_up
    return Failure(kind, describe(agent_id, event_type, fault), retry_after, counts)


def describe(agent_id: str, event_type: EventType, fault: str) -> str:
    """``fault`` with the agent and the event in front. It may quote what the agent sent."""
    return f"agent {agent_id!r}, {event_type.value}: {printable(fault)}"
