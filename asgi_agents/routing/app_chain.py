"""An app, the app that it wraps, and so on: middlewares keep what they wrap in an attribute named ``app``."""

from collections.abc import Iterator
from inspect import ismethod
from typing import Any, Final

# No app has so many middlewares. An app may be in a circle of them, and a mock object has any number.
_MAX_LENGTH: Final = 64
#: Where a protected app keeps its guard.
GUARD: Final = "_asgi_agents_guard"


class AsksAgents:
    """A base of what asks agents about the app that it wraps."""


def app_chain(app: object) -> Iterator[object]:
    """``app``, and what it wraps, outermost first."""
    for _ in range(_MAX_LENGTH):
        if ismethod(app):
            # A router gives its own method to its middlewares.
            app = app.__self__
        if app is None:
            return
        yield app
        app = attribute(app, "app")


def attribute(thing: object, name: str) -> Any:
    """An attribute of an object that may be of any kind; None where there is none, or reading it fails."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None
