"""Every exception of the package."""

from typing import Final

from starlette.exceptions import HTTPException


class AgentsError(Exception):
    """Base of everything the package raises on purpose."""


class ConfigurationError(AgentsError, ValueError):
    """The configuration can't work.

    Raised at construction; the message names the field, the value and what would be right.
    """


class AgentError(AgentsError):
    """A call to an agent failed. Transports raise it; the guard turns it into the agent's failure mode."""


class AgentConnectionError(AgentError):
    """The agent could not be reached, or the connection broke before it answered."""


class AgentProtocolError(AgentError):
    """The agent answered with something that the protocol does not allow. The message names the field at fault."""


class NotApplicableError(AgentProtocolError):
    """The agent's answer has a field that does not apply to its event, or does not apply any more."""


class BadInput(AgentsError):  # noqa: N818 - says whose fault it is
    """What the client sent is at fault: raised by the hook of an agent, it is an answer and no error.

    It is the same as to return ``AgentResponse.block(status, message)`` with the reason code ``bad_input``. The agent
    has done its work, so its circuit breaker counts no failure. A websocket message is answered with a close, 1008; a
    configuration is refused; content that a handler asks about has one detection, ``bad_input``.

    :param message: the body of the reply to the client. None: the status' standard phrase.
    :param status: 400 to 499.
    :raises AgentProtocolError: for a status or a message that can't be sent.
    """

    def __init__(self, message: str | None = None, *, status: int = 400) -> None:
        if not isinstance(message, str | None):
            raise AgentProtocolError(f"BadInput: message is of type {type(message).__name__}, expected a str or None")
        if not isinstance(status, int) or not 400 <= status <= 499:
            raise AgentProtocolError(f"BadInput: status={status!r:.40}, expected 400 to 499")
        super().__init__(message or "")
        self.message = message
        self.status = int(status)


class AgentTimeoutError(AgentError):
    """The agent has not answered within the deadline of the call."""


class AgentUnavailableError(AgentError):
    """The agent has said that it takes no calls now. Nothing was sent to it."""


class EventTooLargeError(AgentError):
    """The event is longer than the agent takes. It has seen nothing of it."""


class UnknownAgentError(AgentsError, LookupError):
    """No agent has that id."""


class NoAgentContextError(AgentsError, LookupError):
    """A handler asked for its :class:`~asgi_agents.AgentContext`, and no agents are asked about its path."""


class GuardrailUnavailableError(AgentError, HTTPException):
    """A fail-closed guardrail agent gave no verdict.

    Also an :class:`starlette.exceptions.HTTPException` (503, or 504 for a timeout), so a handler that lets it through
    answers as the middleware itself would have.
    """

    def __init__(self, status_code: int, detail: str, message: str, headers: dict[str, str] | None = None) -> None:
        HTTPException.__init__(self, status_code, detail, headers)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ResponseAborted(AgentsError):  # noqa: N818 - says what happened, as ClientDisconnect does
    """An agent stopped a response that had already started.

    Raised out of the middleware because that is what makes a server break the connection off, so that the client can't
    take the part it has for the whole.
    """


class ClosedByAgent(AgentsError, OSError):  # noqa: N818
    """The app sent to a client that an agent had cut it off from.

    An OSError, as the ASGI spec asks of sends after a disconnect.
    """


_MAX_PRINTED: Final = 300


def printable(text: str) -> str:
    """``text`` for a message that may end up in a log: one line, and not too long, whoever wrote it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:_MAX_PRINTED])


def told_by(exc: BaseException) -> str:
    """What ``exc`` says, or else the first of those behind it that says anything: some leave it to their cause."""
    told: BaseException | None = exc
    while told is not None and not str(told):
        told = told.__cause__ or told.__context__
    return str(told or "")


def caused_by_closing(exc: BaseException | None, *disconnects: type[BaseException]) -> bool:
    """Whether ``exc`` is the app's way of saying that it met :class:`ClosedByAgent`; of a group, all of it.

    :param disconnects: what frameworks raise when ``receive`` gives a disconnect. It counts as well.
    """
    return _caused_by_closing(exc, (ClosedByAgent, *disconnects), set())


def _caused_by_closing(exc: BaseException | None, ends: tuple[type[BaseException], ...], seen: set[int]) -> bool:
    # A group can be the context of its own members, where somebody has taken one out of it and raised that.
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        if isinstance(exc, ends):
            return True
        if isinstance(exc, BaseExceptionGroup) and all(
            _caused_by_closing(inner, ends, set(seen)) for inner in exc.exceptions
        ):
            return True
        exc = exc.__cause__ or exc.__context__
    return False
