"""The id of the connection that the running code serves, and those of all that are open."""

import logging
import os
from contextvars import ContextVar, Token
from typing import Final, Protocol

logger = logging.getLogger("asgi_agents")


#: Where the context of a connection is in ``scope["state"]``.
STATE_KEY: Final = "asgi_agents"


class Named(Protocol):
    """A connection that has a correlation id, which may be made only when it is first read."""

    @property
    def correlation_id(self) -> str:
        """Its correlation id."""
        ...

    @property
    def path(self) -> str:
        """The path that was asked for, as it was written; empty where it is not known."""
        ...


#: Correlation ids of all connections that are open in this process, of all managers together: agents keep state under
#: these ids, and one agent may belong to several managers.
live_ids: Final[set[str]] = set()
# A forked child has none of its parent's connections. Windows, where processes can't fork, has no such function.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=live_ids.clear)

_current: Final[ContextVar[Named | str]] = ContextVar("asgi_agents_correlation_id", default="")


#: The connection whose code is running, or its id; "" outside of any connection.
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
    """Make the connection current again that was so before :func:`set_current`."""
    try:
        _current.reset(token)
    except ValueError:
        # The garbage collector may close an abandoned coroutine in any context, where the token is not valid.
        logger.debug("left the correlation id of %r elsewhere", token.old_value)


class CorrelationFilter(logging.Filter):
    """Gives every log record a ``correlation_id``, for formats such as ``%(correlation_id)s %(message)s``.

    ::

        handler.addFilter(CorrelationFilter())
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id; never drops a record."""
        record.correlation_id = getattr(record, "correlation_id", None) or current_correlation_id() or "-"
        return True
