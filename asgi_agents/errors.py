"""The exceptions of the package."""

from contextlib import suppress
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


class BadInput(AgentsError):  # noqa: N818 - the name says who is at fault
    """A hook raises it for input that is at fault. It is an answer of the agent, not a failure.

    It means the same as returning ``AgentResponse.block(status, message)`` with the reason code ``bad_input``. The
    circuit breaker counts no failure. In answer to a websocket message it is a close with 1008, in ``on_configure`` it
    refuses the configuration, and in ``on_guardrail_inspect`` it is one detection, ``bad_input``.

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
    """The agent has said that it accepts no calls now. The event was not sent to it."""


class EventTooLargeError(AgentError):
    """The event is longer than the agent accepts. The agent has received none of it."""


class UnknownAgentError(AgentsError, LookupError):
    """No agent has that id."""


class UnknownGuardrailError(AgentsError, LookupError):
    """A handler asked a guardrail that is configured neither on its route nor for the middleware."""


class NoAgentContextError(AgentsError, LookupError):
    """A handler asked for its :class:`~asgi_agents.AgentContext`, and no agents are asked about its path."""


class GuardrailUnavailableError(AgentError, HTTPException):
    """A fail-closed guardrail agent gave no verdict.

    It is also a :class:`starlette.exceptions.HTTPException` (503, or 504 for a timeout): a handler that does not catch
    it answers what the middleware would have answered.
    """

    def __init__(self, status_code: int, detail: str, message: str, headers: dict[str, str] | None = None) -> None:
        HTTPException.__init__(self, status_code, detail, headers)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ResponseAborted(AgentsError):  # noqa: N818 - the name says what happened, as ClientDisconnect does
    """An agent stopped a response that had already started.

    The middleware raises it to the server, which then breaks the connection off. So the client can't take the part that
    it has for the whole response.
    """


class ClosedByAgent(AgentsError, OSError):  # noqa: N818
    """The app has sent a message after an agent ended the connection.

    It is an OSError, which the ASGI specification asks for when an app sends after a disconnect.
    """


_MAX_PRINTED: Final = 300


def printable(text: str) -> str:
    """``text`` as it may be logged: one line of at most 300 characters of it, whatever it has in it."""
    return escaped(text[:_MAX_PRINTED])


def escaped(text: str) -> str:
    """``text`` as one line that does nothing to a terminal: with escapes in place of what can't be printed."""
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def text_of(exc: BaseException) -> str:
    """The text of ``exc``. If it has none, that of the first of its causes that has one."""
    cause: BaseException | None = exc
    while cause is not None and not str(cause):
        cause = cause.__cause__ or cause.__context__
    return str(cause or "")


def reworded(error: AgentError, text: str) -> AgentError:
    """An error of the same class that says ``text``: to be raised from ``error``.

    Classes of users may take other arguments than a text, or make another text of it. Then it is of the first of their
    base classes that does not.
    """
    for kind in type(error).__mro__:
        if issubclass(kind, AgentError):
            with suppress(Exception):
                made = kind(text)
                if str(made) == text:
                    return made
    return AgentError(text)


def caused_by_closing(exc: BaseException | None, *disconnects: type[BaseException]) -> bool:
    """Whether :class:`ClosedByAgent` is the reason for ``exc``; in a group, for all of its exceptions.

    :param disconnects: exceptions that frameworks raise when ``receive`` returns a disconnect. They count as well.
    """
    return _caused_by_closing(exc, (ClosedByAgent, *disconnects), set())


def _caused_by_closing(exc: BaseException | None, ends: tuple[type[BaseException], ...], seen: set[int]) -> bool:
    # A group can be the context of its own members: code may have caught it and raised one of them.
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
