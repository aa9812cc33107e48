"""Who may see what an operator sees."""

import inspect
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from .errors import ConfigurationError
from .naming import named

#: Says whether a request may be answered: True, False (403), or the response that refuses it.
Authorise = Callable[[Request], bool | Response | Awaitable[bool | Response]]


def require_authorise(where: str, authorise: object) -> None:
    """Raise :class:`ConfigurationError` for what can't be asked."""
    if authorise is not None and not callable(authorise):
        raise ConfigurationError(f"{where}: authorise={named(authorise)}, expected a callable that takes a request")


async def refusal(authorise: Authorise | None, request: Request) -> Response | None:
    """The response that refuses ``request``, or None where it may be answered. What ``authorise`` raises is raised."""
    if authorise is None:
        return None
    answer = authorise(request)
    if inspect.isawaitable(answer):
        answer = await answer
    if isinstance(answer, Response):
        return answer
    # Nothing but True lets anyone in: a function that forgets to return something must not.
    return None if answer is True else PlainTextResponse("Forbidden", 403)
