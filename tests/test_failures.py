"""The table of failures: every kind has a rule, and README.md says the same."""

import re
from pathlib import Path
from typing import Any

import pytest

from asgi_agents import (
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    AgentUnavailableError,
    EventTooLargeError,
    EventType,
    NotApplicableError,
)
from asgi_agents.failures import (
    RULES,
    CallFailure,
    Failure,
    FailureKind,
    MissingConfigKeyError,
    failure_of,
    too_large,
    unreadable,
)

README = Path(__file__).parents[1] / "README.md"
_CELL = re.compile(r"`([^`]+)`")


def rows() -> dict[str, list[str]]:
    """The rows of the table in README.md, by kind: counts, http, websocket, fail-open."""
    table = README.read_text().partition("| what went wrong |")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]
    return {row[1].strip("`"): row[2:] for row in cells}


def failure(exc: Exception, event_type: EventType = EventType.REQUEST_HEADERS, **options: Any) -> Failure:
    return failure_of(exc, event_type, agent_id="waf", function=failure, **options)


def test_every_kind_has_a_rule() -> None:
    assert list(RULES) == list(FailureKind)


def test_every_kind_is_in_the_table_of_the_readme() -> None:
    assert list(rows()) == [kind.value for kind in FailureKind]


@pytest.mark.parametrize("kind", FailureKind)
def test_the_readme_says_what_the_rule_is(kind: FailureKind) -> None:
    rule = RULES[kind]
    counts, http, websocket, _ = rows()[kind.value]
    status, text = http.split(" ", 1)

    assert counts.split(",")[0] == ("yes" if rule.counts_for_breaker else "no")
    assert (int(status), _CELL.findall(text)[0]) == (rule.status, rule.message)
    # Only what has to do with bodies can't happen to a websocket.
    assert bool(websocket) is not rule.body_skipped
    if websocket:
        assert websocket == f"close 1011 `{rule.close_reason}`"


@pytest.mark.parametrize("kind", FailureKind)
def test_the_reply_is_that_of_the_rule(kind: FailureKind) -> None:
    block = Failure(kind, "agent 'waf': 10.0.0.7 refused the connection", 0.2).block

    assert (block.status, block.body) == (RULES[kind].status, RULES[kind].message)
    assert block.headers == {"retry-after": "1"}


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.001, "2"), (29.2, "30"), (30.0, "30"), (3600.5, "3601")],
)
def test_retry_after_is_whole_seconds_and_never_too_early(seconds: float, header: str) -> None:
    assert Failure(FailureKind.BREAKER_OPEN, "open", seconds).block.headers == {"retry-after": header}


# What an exception comes to


@pytest.mark.parametrize(
    ("exc", "kind", "counts"),
    [
        (AgentError("broken"), FailureKind.ERROR, True),
        (AgentProtocolError("no answer"), FailureKind.ERROR, True),
        (AgentConnectionError("gone"), FailureKind.ERROR, True),
        (ValueError("data"), FailureKind.ERROR, True),
        (ExceptionGroup("several", [ValueError("data")]), FailureKind.ERROR, True),
        (AgentUnavailableError("paused"), FailureKind.UNAVAILABLE, False),
        (NotApplicableError("too late"), FailureKind.NOT_APPLICABLE, False),
        (EventTooLargeError("long"), FailureKind.ERROR, False),
        *((CallFailure(kind, "why"), kind, rule.counts_for_breaker) for kind, rule in RULES.items()),
    ],
    ids=repr,
)
def test_an_exception_becomes_a_failure(exc: Exception, kind: FailureKind, counts: bool) -> None:
    told = failure(exc)

    assert (told.kind, told.counts_for_breaker) == (kind, counts)
    assert told.message.startswith("agent 'waf', request_headers: ")


def test_a_connection_that_was_lost_does_not_count_while_there_are_others() -> None:
    assert not failure(AgentConnectionError("gone"), others_left=True).counts_for_breaker
    assert failure(AgentProtocolError("nonsense"), others_left=True).counts_for_breaker


@pytest.mark.parametrize("exc", [ValueError(), CallFailure(FailureKind.TIMEOUT, "no answer")], ids=repr)
def test_a_call_that_was_given_up_does_not_count(exc: Exception) -> None:
    assert not failure(exc, given_up=True).counts_for_breaker


def test_what_an_agent_raises_is_not_repeated() -> None:
    assert "secret" not in failure(ValueError("secret")).message
    assert "secret" not in failure(MissingConfigKeyError("secret")).message
    assert "no 'rate'" in failure(MissingConfigKeyError("no 'rate'"), EventType.CONFIGURE).message


def test_a_type_error_of_an_agent_without_configuration_says_so() -> None:
    hint = "its AgentConfig has no config"

    assert hint in failure(TypeError(), EventType.CONFIGURE, configured=False).message
    assert hint not in failure(TypeError(), EventType.CONFIGURE).message
    assert hint not in failure(TypeError(), configured=False).message


def test_a_message_is_one_short_line() -> None:
    message = failure(AgentError("a\nb" * 1000)).message

    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("event_type", "large", "garbled"),
    [
        (EventType.REQUEST_BODY_CHUNK, FailureKind.REQUEST_TOO_LARGE, FailureKind.REQUEST_UNREADABLE),
        (EventType.RESPONSE_BODY_CHUNK, FailureKind.RESPONSE_TOO_LARGE, FailureKind.RESPONSE_UNREADABLE),
    ],
)
def test_a_body_has_kinds_of_its_own(event_type: EventType, large: FailureKind, garbled: FailureKind) -> None:
    assert (too_large(event_type), unreadable(event_type)) == (large, garbled)
    told = failure(EventTooLargeError("long"), event_type)
    assert (told.kind, told.counts_for_breaker) == (large, False)
