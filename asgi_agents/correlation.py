"""The id of the connection that the running code serves."""

import logging
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Final

_current: Final[ContextVar[str]] = ContextVar("asgi_agents_correlation_id", default="")


def current_correlation_id() -> str:
    """The id of the guarded connection that the running code serves; empty where it serves none.

    In the app, in in-process agents, and in agents that ``asgi_agents.serve`` runs.
    """
    return _current.get()


def enter(correlation_id: str) -> Token[str]:
    """Make ``correlation_id`` the current one, until :func:`leave`."""
    return _current.set(correlation_id)


def leave(token: Token[str]) -> None:
    """Back to what was before."""
    # A coroutine that is thrown away may be closed from anywhere.
    with suppress(ValueError):
        _current.reset(token)


class CorrelationFilter(logging.Filter):
    """Gives every log record a ``correlation_id``, for formats such as ``%(correlation_id)s %(message)s``.

    ::

        handler.addFilter(CorrelationFilter())
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets everything through."""
        record.correlation_id = getattr(record, "correlation_id", None) or _current.get() or "-"
        return True
