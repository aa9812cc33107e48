"""The id of the connection that the running code serves, those of all that are open, and their names elsewhere.

Within a process no two open connections have the same id. Agents in other processes are asked by several processes,
and a client may give one ``x-request-id`` to any number of them. So what an agent elsewhere is told is
:func:`outside_name`, which no two processes ever use for connections of theirs.
"""

import base64
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
#: these ids, and one agent may belong to several managers. True for an id that was made in this process, and that is
#: no other's for that reason; False for one that the client has given.
live_ids: Final[dict[str, bool]] = {}

# What begins the suffix is a character that tokens may have (RFC 9110, section 5.6.2), and that few ids have.
_SEPARATOR: Final = "~"
# 60 random bits.
_SUFFIX_LENGTH: Final = 12
_suffix = ""


def _draw_suffix() -> None:
    global _suffix
    _suffix = _SEPARATOR + base64.b32encode(os.urandom(_SUFFIX_LENGTH)).decode().lower()[:_SUFFIX_LENGTH]


_draw_suffix()


def _begin_in_child() -> None:
    live_ids.clear()
    _draw_suffix()


# A forked child has none of its parent's connections, and is another process to agents. Windows, where processes can't
# fork, has no such function.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


def outside_name(correlation_id: str) -> str:
    """The name of a connection for agents in other processes; no other process has it for a connection of its own.

    An id that was made here for an open connection is its own name. Any other gets a suffix that this process has drawn
    at random: ids that clients have given, and those that the application has chosen for calls of its own. It is added
    to whatever is there, also to the suffix of another process or of this one: different ids have different names.

    The longest id of a client, of 128 characters, becomes one of 141. Empty stays empty.
    """
    if not correlation_id or live_ids.get(correlation_id):
        return correlation_id
    return correlation_id + _suffix


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
