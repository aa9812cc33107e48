"""An agent as an ASGI app that speaks the HTTP transport, or answers reverse proxies."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, Literal, get_args

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from ..agent import Agent
from ..concurrency.shared_limiter import SharedLimiter
from ..errors import ConfigurationError
from ..messages.naming import named
from ..protocol import PROTOCOL_VERSION, Encoding, Event, decode_event, encode_answer
from .forward_auth import ForwardAuthApi, ForwardAuthApp
from .hooks import Hooks, NoAnswer, require_agent, require_positive
from .posting import PostingApp, Replier, caller_of, media_type_of

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
_ENCODINGS: Final = {encoding.content_type: encoding for encoding in Encoding}


def agent_app(
    agent: Agent,
    *,
    api: Literal["agent"] | ForwardAuthApi = "agent",
    max_event_bytes: int = MAX_EVENT_BYTES,
    max_concurrency: int | None = None,
) -> ASGIApp:
    """An ASGI app that any ASGI server can run.

    With ``api="agent"`` it is reached with an ``http://`` or ``https://`` URL: ``POST`` to any path takes an event and
    answers it, in JSON or msgpack, whichever the event came in. ``GET`` tells what the agent is, for health checks.

    The others make it an authorization service for reverse proxies, whose every request is a question about another
    one: ``"forward_auth"`` for Traefik and Caddy, which say in ``X-Forwarded-Method``, ``-Uri`` and ``-Host`` what they
    ask about; ``"auth_request"`` for nginx, with ``X-Original-Method`` and ``-URL``; ``"ext_authz"`` for Envoy with an
    HTTP service, whose question is the request itself. Headers of requests that the agent sets are in the answer. What
    a proxy can't be told is answered 500, and logged.

    A hook that is still at work when the caller hangs up, because its deadline has passed, is cancelled. Nothing here
    authenticates the caller: bind it where only the middleware or the proxy gets at it, or put an authenticating
    middleware around it.

    :param max_event_bytes: a longer event is refused with 413.
    :param max_concurrency: how many hooks may be at work at a time, the rest wait; None: as many as there are requests.
    :raises ConfigurationError: for arguments that can't work.
    """
    require_agent("agent_app", agent)
    require_positive("agent_app", "max_event_bytes", max_event_bytes)
    if max_concurrency is not None:
        require_positive("agent_app", "max_concurrency", max_concurrency)
    match api:
        case "agent":
            limiter = None if max_concurrency is None else SharedLimiter(max_concurrency)
            return _AgentApp(agent, max_event_bytes, limiter)
        case "forward_auth" | "auth_request" | "ext_authz":
            return ForwardAuthApp(agent, api, max_concurrency)
        case _:
            known = " or ".join(map(repr, ("agent", *get_args(ForwardAuthApi))))
            raise ConfigurationError(f"agent_app: api={named(api)}, expected {known}")


class _AgentApp(PostingApp):
    def __init__(self, agent: Agent, max_event_bytes: int, limiter: SharedLimiter | None) -> None:
        self._hooks = Hooks(agent)
        about = {
            "agent": self._hooks.name,
            "protocol_version": PROTOCOL_VERSION,
            "events": sorted(self._hooks.events),
        }
        super().__init__(about, max_event_bytes, limiter)

    def reader(self, path: str, headers: Headers) -> Callable[[bytes], Replier]:
        encoding = _ENCODINGS.get(media_type_of(headers))
        if encoding is None:
            raise HTTPException(415, f"expected {' or '.join(_ENCODINGS)} without content-encoding")
        return partial(self._read, encoding, caller_of(headers))

    def _read(self, encoding: Encoding, caller: Mapping[str, list[str]], body: bytes) -> Replier:
        event = decode_event(body, encoding)
        reply: Callable[[], Awaitable[Response]] = partial(self._reply, event, encoding, caller)
        if self._hooks.may_suspend(event.event_type):
            return partial(self.in_turn, reply), True
        return reply, False

    async def _reply(self, event: Event, encoding: Encoding, caller: Mapping[str, list[str]]) -> Response:
        try:
            body = await self._hooks.answer(event, partial(encode_answer, encoding=encoding), caller)
        except NoAnswer as exc:
            return JSONResponse({"error": str(exc)}, 500)
        return Response(body, media_type=encoding.content_type)
