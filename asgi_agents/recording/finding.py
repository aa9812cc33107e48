"""From an app to the managers of the agents that guard it, and parts of it."""

from collections.abc import Iterator
from typing import Final

from starlette.applications import Starlette

from ..errors import ConfigurationError
from ..manager import AgentManager
from ..messages.naming import named
from ..middleware import AgentMiddleware
from ..placement import protection_of
from ..routing.app_chain import attribute

# Where apps, routers and routes keep what they wrap, and FastAPI what it has included.
_WITHIN: Final = ("app", "middleware_stack", "router", "original_router")
# No app has so many parts. A mock object has any number.
_MOST: Final = 100_000


def managers_of(where: str, app: object) -> list[AgentManager]:
    """The managers of all agents in front of ``app`` or of what is mounted in it, or the manager that ``app`` is.

    An app that has not started has no middlewares yet. It makes them here, as it would with its first connection.

    :raises ConfigurationError: there are none; the message begins with ``where``.
    """
    if isinstance(app, AgentManager):
        return [app]
    found: dict[AgentManager, None] = {}
    # The parts are kept, so that the id of one is not given to another.
    seen: dict[int, object] = {}
    waiting: list[object] = [app]
    while waiting and len(seen) < _MOST:
        part = waiting.pop(0)
        part = getattr(part, "__self__", part)  # a router gives its own method to its middlewares
        if part is None or id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, AgentMiddleware):
            found[part.manager] = None
        waiting.extend(_within(part))
    if not found:
        raise ConfigurationError(
            f"{where}: app={named(app)}, in which there are no agents; expected a guarded app, its AgentMiddleware or"
            " its AgentManager"
        )
    return list(found)


def _within(part: object) -> Iterator[object]:
    outermost = protection_of(part)
    if outermost is not None:
        yield outermost
    elif isinstance(part, Starlette) and part.middleware_stack is None and part.user_middleware:
        part.middleware_stack = part.build_middleware_stack()
    for name in _WITHIN:
        yield attribute(part, name)
    routes = attribute(part, "routes")
    if isinstance(routes, list | tuple):
        yield from routes
