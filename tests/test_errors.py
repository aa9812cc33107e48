from collections.abc import Iterator
from typing import Any

import pytest
from starlette.exceptions import HTTPException

import asgi_agents
from asgi_agents import errors
from asgi_agents.errors import (
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    AgentsError,
    ClosedByAgent,
    ConfigurationError,
    GuardrailUnavailableError,
    ResponseAborted,
    UnknownAgentError,
    caused_by_closing,
    reworded,
)


def exceptions() -> Iterator[type[Any]]:
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__:
            yield value


def test_every_exception_is_public_and_has_the_one_base() -> None:
    for kind in exceptions():
        assert issubclass(kind, AgentsError)
        assert getattr(asgi_agents, kind.__name__) is kind


@pytest.mark.parametrize(
    "kind",
    [
        AgentConnectionError,
        AgentProtocolError,
        GuardrailUnavailableError,
    ],
)
def test_what_goes_wrong_with_an_agent_is_an_agent_error(kind: type[Exception]) -> None:
    assert issubclass(kind, AgentError)


@pytest.mark.parametrize(
    ("kind", "base"),
    [(ConfigurationError, ValueError), (UnknownAgentError, LookupError), (ClosedByAgent, OSError)],
)
def test_errors_are_also_what_python_calls_them(kind: type[Exception], base: type[Exception]) -> None:
    assert issubclass(kind, base)
    assert not issubclass(kind, AgentError)


def test_an_unavailable_guardrail_is_an_http_answer_and_says_what_was_wrong() -> None:
    error = GuardrailUnavailableError(503, "Agent unavailable", "agent 'pii', …: refused", {"retry-after": "1"})

    assert isinstance(error, HTTPException)
    assert (error.status_code, error.detail, error.headers) == (503, "Agent unavailable", {"retry-after": "1"})
    assert str(error) == error.message == "agent 'pii', …: refused"


def from_cause(cause: Exception) -> Exception:
    try:
        raise RuntimeError from cause
    except RuntimeError as caught:
        return caught


def in_handler(exc: Exception, *, suppressed: bool = False) -> Exception:
    try:
        try:
            raise exc
        except Exception:
            if suppressed:
                raise RuntimeError from None
            raise RuntimeError  # noqa: B904
    except RuntimeError as caught:
        return caught


CLOSED = ClosedByAgent("an agent has closed this websocket")


@pytest.mark.parametrize(
    "exc",
    [
        CLOSED,
        from_cause(CLOSED),
        from_cause(from_cause(CLOSED)),
        in_handler(CLOSED),
        in_handler(in_handler(CLOSED)),
        in_handler(CLOSED, suppressed=True),
        from_cause(in_handler(CLOSED)),
    ],
)
def test_an_error_is_traced_back_to_the_agent_that_closed(exc: BaseException) -> None:
    assert caused_by_closing(exc)


@pytest.mark.parametrize(
    "exc", [None, ValueError(), OSError(), ResponseAborted(), from_cause(OSError()), in_handler(ValueError())]
)
def test_any_other_error_is_the_apps_own(exc: BaseException | None) -> None:
    assert not caused_by_closing(exc)


def test_a_group_of_which_every_member_is_due_to_closing_is_due_to_closing() -> None:
    # An app that sends from a task group raises one.
    assert caused_by_closing(ExceptionGroup("", [CLOSED]))
    assert caused_by_closing(ExceptionGroup("", [CLOSED, ExceptionGroup("", [from_cause(CLOSED)])]))
    assert not caused_by_closing(ExceptionGroup("", [CLOSED, ValueError()]))


class CircularError(Exception):
    """Its own cause, as after ``raise exc from exc``; gives up where a real one would go on for ever."""

    def __init__(self) -> None:
        self.asked = 0

    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        self.asked += 1
        assert self.asked < 100, "endless"
        return self


def test_an_error_that_is_its_own_cause_is_no_endless_loop() -> None:
    assert not caused_by_closing(CircularError())


def test_a_group_that_is_the_context_of_its_own_member_is_no_endless_loop() -> None:
    member = ValueError()
    group = ExceptionGroup("", [member])
    member.__context__ = group

    assert not caused_by_closing(member)
    assert not caused_by_closing(group)


class PlainError(AgentConnectionError):
    pass


class WithTwoParametersError(AgentConnectionError):
    def __init__(self, host: str, why: str) -> None:
        super().__init__(f"{host}: {why}")


class WithACodeError(AgentError):
    def __init__(self, code: object) -> None:
        super().__init__(f"code {code}")


class OfSuchAnError(PlainError, WithACodeError):
    pass


class WithoutTextError(AgentError):
    def __str__(self) -> str:
        raise ValueError


class WithAKeywordError(AgentError):
    def __init__(self, *, why: str) -> None:
        super().__init__(why)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AgentError("down"), AgentError),
        (AgentConnectionError("down"), AgentConnectionError),
        (PlainError("down"), PlainError),
        (WithTwoParametersError("h", "down"), AgentConnectionError),
        (WithACodeError(3), AgentError),
        (OfSuchAnError("down"), PlainError),
        (WithoutTextError("down"), AgentError),
        (WithAKeywordError(why="down"), AgentError),
        (GuardrailUnavailableError(503, "Agent unavailable", "down"), AgentError),
    ],
    ids=lambda given: given.__name__ if isinstance(given, type) else type(given).__name__,
)
def test_an_error_of_any_class_can_be_given_another_text(error: AgentError, kind: type[AgentError]) -> None:
    made = reworded(error, "agent 'a': down")
    assert type(made) is kind
    assert str(made) == "agent 'a': down"
