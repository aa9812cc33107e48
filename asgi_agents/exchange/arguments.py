"""What :class:`~asgi_agents.AgentMiddleware` may be given: its arguments, checked."""

from collections.abc import Iterable
from keyword import iskeyword

from starlette.requests import HTTPConnection

from ..errors import ConfigurationError
from ..guardrails import Guardrail, ToolPolicy
from ..messages.naming import named
from ..policy import MAX_SECONDS
from ..protocol import TOKEN
from ..protocol.validation import is_untouchable
from ..routing.routes import AgentRoute
from .context import STATE_KEY


def check_call(app: object, others: tuple[object, ...]) -> None:
    """Raise :class:`ConfigurationError` where the middleware was called as something else than its class."""
    if isinstance(app, HTTPConnection):
        raise ConfigurationError(
            'AgentMiddleware: it was called with a request, as @app.middleware("http") does with a function;'
            " expected protect(app, agents=[...]) or app.add_middleware(AgentMiddleware, agents=[...])"
        )
    if others:
        raise ConfigurationError(
            f"AgentMiddleware: {named(others[0])} beside the app, expected arguments by name: agents=[AgentConfig(...)]"
        )
    if not callable(app):
        raise ConfigurationError(f"AgentMiddleware: app is {named(app)}, expected an ASGI app")


def checked_alias(name: object) -> str | None:
    """The second name of the context; None where there is none."""
    if name is None or name == STATE_KEY:
        return None
    if not isinstance(name, str) or not name.isidentifier() or iskeyword(name):
        raise ConfigurationError(
            f"AgentMiddleware: state_key={name!r}, expected an identifier such as 'agents', or None for no second name"
        )
    return name


def has_policy(guardrails: Iterable[Guardrail | ToolPolicy], routes: object) -> bool:
    """Whether there is a tool policy, which needs no agent."""
    known = routes if isinstance(routes, list | tuple) else ()
    of_routes = [route.guardrails or () for route in known if isinstance(route, AgentRoute)]
    return any(isinstance(one, ToolPolicy) for those in (guardrails, *of_routes) for one in those)


def checked_grace(seconds: object) -> float:
    # No NaN, and nothing that an event loop's clock could not count to.
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
        raise ConfigurationError(
            f"AgentMiddleware: stop_grace={seconds!r}, expected a number of seconds from 0 to {MAX_SECONDS}"
        )
    return float(seconds)


def checked_header(name: object) -> str:
    """The name in lower case; empty for None."""
    if name is None:
        return ""
    if not isinstance(name, str) or not TOKEN.match(name):
        raise ConfigurationError(f"AgentMiddleware: correlation_header={name!r}, expected the name of a header or None")
    if is_untouchable(name.lower()):
        raise ConfigurationError(f"AgentMiddleware: correlation_header={name!r}, expected one that is not the server's")
    return name.lower()
