"""Who may see the status page and the metrics."""

import inspect
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ..errors import ConfigurationError
from ..messages.naming import named

#: Says whether a request may be answered: True, False (403), or the response that refuses it.
Authorize = Callable[[Request], bool | Response | Awaitable[bool | Response]]


def require_authorize(where: str, authorize: object) -> None:
    """Raise :class:`ConfigurationError` if ``given`` can't be called with a request."""
    if authorize is not None and not callable(authorize):
        raise ConfigurationError(f"{where}: authorize={named(authorize)}, expected a callable that takes a request")


async def refusal(authorize: Authorize | None, request: Request) -> Response | None:
    """The response that refuses ``request``, or None if it may be answered. Exceptions of ``authorize`` propagate."""
    if authorize is None:
        return None
    answer = authorize(request)
    if inspect.isawaitable(answer):
        answer = await answer
    if isinstance(answer, Response):
        return answer
    # Nothing but True lets anyone in: a function that forgets to return something must not.
    return None if answer is True else PlainTextResponse("Forbidden", 403)
