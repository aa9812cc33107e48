"""Replies that the app's author makes of denials, failures and challenges."""

import inspect
import logging
from collections.abc import Callable
from typing import Any, Literal

from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from ..errors import ConfigurationError
from ..failures import FailureKind
from ..messages.places import raised_by
from ..messages.throttle import Throttle
from ..protocol import Challenge, Headers
from ..protocol.redacted_repr import RedactedRepr, redacted_repr, size_of
from ..protocol.validation import is_sendable, is_untouchable
from .scope import RawHeaders

logger = logging.getLogger("asgi_agents")


class ErrorInfo(RedactedRepr, frozen=True, kw_only=True):
    """A denial or a failure that is about to be answered in the app's place.

    :ivar status: the status of the reply.
    :ivar detail: what the agent says to the client, or the standard text for the status or the failure. Of a problem
        document (RFC 9457) it is the ``detail`` in it.
    :ivar body: the text that the agent gives as the body, whole; None where it gives none.
    :ivar kind: ``block``, or what went wrong with the agent.
    :ivar agent_id: the agent that has denied or failed; None where it was none of them.
    :ivar headers: those that agents give to this reply, such as ``retry-after``. They are put on the response
        afterwards, apart from ``content-type`` and ``content-encoding``, which are about the body that the agent meant.
    """

    status: int
    detail: str
    kind: Literal["block"] | FailureKind
    agent_id: str | None
    headers: Headers
    body: str | None = None

    def __repr__(self) -> str:
        return redacted_repr(self, detail=size_of(self.detail), body=size_of(self.body))


ChallengeRenderer = Callable[[Challenge, Scope], Response]
ErrorRenderer = Callable[[ErrorInfo, Scope], Response]


def fastapi_error(error: ErrorInfo, scope: Scope) -> Response:
    """``{"detail": ...}``, as FastAPI answers an ``HTTPException``: ``AgentMiddleware(render_error=fastapi_error)``.

    A body for which the agent gives a ``content-type`` stays as it is.
    """
    content_type = error.headers.first("content-type")
    if content_type is not None:
        body = error.detail if error.body is None else error.body
        return Response(body, error.status, headers={"content-type": content_type})
    return JSONResponse({"detail": error.detail}, error.status)


class Renderers:
    """The renderers of one middleware.

    Raises :class:`ConfigurationError` for what can't be one.
    """

    def __init__(self, challenge: ChallengeRenderer | None = None, error: ErrorRenderer | None = None) -> None:
        if challenge is not None and not callable(challenge):
            raise ConfigurationError(f"AgentMiddleware: challenge_renderer={challenge!r}, expected a callable")
        if error is not None and (not callable(error) or inspect.iscoroutinefunction(error)):
            raise ConfigurationError(
                f"AgentMiddleware: render_error={error!r}, expected a function that is no coroutine, such as"
                " asgi_agents.fastapi_error"
            )
        self.challenge = challenge
        self._error = error
        self._complaints = Throttle()

    @property
    def renders_errors(self) -> bool:
        """Whether :meth:`error` can come to anything."""
        return self._error is not None

    def error(self, info: ErrorInfo, scope: Scope) -> tuple[int, RawHeaders, bytes] | None:
        """Status, headers and body as ``render_error`` makes them.

        None where it fails, which is logged once a minute.
        """
        assert self._error is not None
        try:
            return _usable(self._error(info, scope), info.status)
        except _Unusable as exc:
            self._complain(str(exc))
        except Exception as exc:
            # Not what it says, which may be anything of the request.
            self._complain(f"it {raised_by(exc, self._error)}")
        return None

    def _complain(self, fault: str) -> None:
        if self._complaints.due("render_error"):
            logger.error("render_error failed, and the built-in reply was sent: %s (logged once a minute)", fault)


class _Unusable(Exception):  # noqa: N818 - says what the renderer's response is
    """Why nothing can be made of what a renderer has returned."""


def _usable(response: Any, status: int) -> tuple[int, RawHeaders, bytes]:
    """The parts of a response, with headers and a status that can be sent; raises :class:`_Unusable`."""
    if inspect.iscoroutine(response):
        # Or Python warns that it was never awaited.
        response.close()
    if not isinstance(response, Response):
        raise _Unusable(f"it returned {type(response).__name__}, expected a starlette Response")
    body = getattr(response, "body", None)
    if not isinstance(body, bytes | memoryview):
        raise _Unusable(f"it returned {type(response).__name__}, expected one that has its body in memory")
    given = response.status_code
    if not isinstance(given, int) or not 100 <= given <= 599:
        raise _Unusable("it returned a status that is none, expected 400 to 599")
    headers: RawHeaders = []
    for name, value in response.raw_headers:
        if not is_sendable(name.decode("latin-1"), value.decode("latin-1")):
            raise _Unusable("it returned a header that can't be sent")
        if not is_untouchable(name.decode("latin-1").lower()):
            headers.append((name.lower(), value))
    headers.append((b"content-length", b"%d" % len(body)))
    # A response without an explicit status is a 200, which a denial must not be.
    return int(given) if given >= 400 else status, headers, bytes(body)
