"""What the middleware knows of a connection, and its events don't say. An agent in another process knows none of it."""

from ...exchange.state import ExchangeState
from ...observability.correlation import current
from ...protocol import RequestHeadersEvent
from ...protocol.headers import as_one_spelling


def connection() -> ExchangeState | None:
    """The connection that the running code serves, where its middleware is in this process."""
    found = current()
    return found if isinstance(found, ExchangeState) else None


def left_to_agents(event: RequestHeadersEvent) -> frozenset[str]:
    """The headers that a client is not held to: other agents set them for the app, and none has set them yet.

    What the client itself has sent in such a header does not reach the app. The names are as
    :func:`~asgi_agents.protocol.headers.as_one_spelling` returns them.
    """
    known = connection()
    if known is None:
        return frozenset()
    names = known.resolved_route.sets | known.resolved_route.replaces
    if not names:
        return names
    sent = known.headers
    changed = (name for name, values in event.headers.items() if sent is None or sent.get(name) != values)
    return names.difference(map(as_one_spelling, changed))
