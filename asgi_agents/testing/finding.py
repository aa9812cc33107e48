"""From an app to the middlewares that guard it, and parts of it."""

from collections.abc import Iterator
from typing import Final

from starlette.applications import Starlette

from ..middleware import AgentMiddleware
from ..placement import protection_of
from ..routing.app_chain import attribute

# Where apps, routers and routes keep what they wrap, and FastAPI what it has included.
_WITHIN: Final = ("app", "middleware_stack", "router", "original_router")
# No app has so many parts. A mock object has any number.
_MOST: Final = 100_000


def middlewares_of(app: object) -> list[AgentMiddleware]:
    """All that guard ``app`` or what is mounted in it, outermost first.

    An app that has not started has no middlewares yet. It makes them here, as it would with its first connection.
    """
    found: list[AgentMiddleware] = []
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
            found.append(part)
        waiting.extend(_within(part))
    return found


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
