"""The id of the connection that the running code serves."""

import logging
from contextvars import ContextVar, Token
from typing import Final

logger = logging.getLogger("asgi_agents")

_current: Final[ContextVar[str]] = ContextVar("asgi_agents_correlation_id", default="")


#: The current id, without a call of Python's.
current = _current.get


def current_correlation_id() -> str:
    """The id of the guarded connection that the running code serves; empty where it serves none.

    In the app, in in-process agents, and in agents that ``asgi_agents.serve`` runs.
    """
    return _current.get()


#: Make an id the current one; returns the token for :func:`leave`.
enter = _current.set


def leave(token: Token[str]) -> None:
    """Back to what was before."""
    try:
        _current.reset(token)
    except ValueError:
        # A coroutine that is thrown away may be closed from anywhere, where the token means nothing.
        logger.debug("left the correlation id of %r elsewhere", token.old_value)


class CorrelationFilter(logging.Filter):
    """Gives every log record a ``correlation_id``, for formats such as ``%(correlation_id)s %(message)s``.

    ::

        handler.addFilter(CorrelationFilter())
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets everything through."""
        record.correlation_id = getattr(record, "correlation_id", None) or _current.get() or "-"
        return True
