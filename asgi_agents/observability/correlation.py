"""The id of the connection that the running code serves, and those of all that are open."""

import logging
import os
from contextvars import ContextVar, Token
from typing import Final, Protocol

logger = logging.getLogger("asgi_agents")


class Named(Protocol):
    """A connection, which may get its name only when somebody asks for it."""

    @property
    def correlation_id(self) -> str:
        """Its name."""
        ...


#: Ids of the connections that are open in this process, whichever manager's agents are asked about them: agents keep
#: state under them, and an agent may be known to several managers.
live_ids: Final[set[str]] = set()
# The connections are the parent's. Where processes can't fork (Windows), there is no such function.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=live_ids.clear)

_current: Final[ContextVar[Named | str]] = ContextVar("asgi_agents_correlation_id", default="")


#: Whose code is running, or "".
current = _current.get


def current_correlation_id() -> str:
    """The id of the guarded connection that the running code serves; empty where it serves none.

    In the app, in in-process agents, and in agents that ``asgi_agents.serve`` runs.
    """
    found = _current.get()
    return found if isinstance(found, str) else found.correlation_id


#: Make a connection, or an id, the current one; returns the token for :func:`reset_current`.
set_current = _current.set


def reset_current(token: Token[Named | str]) -> None:
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
        record.correlation_id = getattr(record, "correlation_id", None) or current_correlation_id() or "-"
        return True
