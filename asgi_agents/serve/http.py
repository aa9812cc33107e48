"""An agent as an ASGI app that speaks the HTTP transport."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, Literal, get_args

from anyio import CancelScope, create_task_group
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..agent import Agent
from ..concurrency.shared_limiter import SharedLimiter
from ..errors import AgentProtocolError, ConfigurationError
from ..protocol import PROTOCOL_VERSION, Encoding, Event, RequestHeadersEvent, decode_event, encode_answer
from ..transports.authorization import HEADS
from .authorization import Authorizations
from .forward_auth import ForwardAuthApi, answer_of, question_of
from .hooks import Hooks, NoAnswer, logger, require_agent, require_positive

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
# Of a content-length: int() refuses what is much longer.
_MAX_DIGITS: Final = 18
_ENCODINGS: Final = {encoding.content_type: encoding for encoding in Encoding}


def agent_app(
    agent: Agent,
    *,
    api: Literal["agent"] | ForwardAuthApi = "agent",
    max_event_bytes: int = MAX_EVENT_BYTES,
    max_concurrency: int | None = None,
) -> ASGIApp:
    """An ASGI app that any ASGI server can run, to be reached with an ``http://`` or ``https://`` URL.

    ``POST`` to any path takes an event and answers it, in JSON or msgpack, whichever the event came in. A hook that is
    still at work when the caller hangs up, because its deadline has passed, is cancelled. ``GET`` tells what the agent
    is, for health checks. Nothing here authenticates the caller: bind it where only the middleware gets at it, or put
    an authenticating middleware around it.

    :param api: ``"agent"``: as above. The others make it an authorization service for reverse proxies, whose every
        request is a question: ``"forward_auth"`` for Traefik and Caddy (``X-Forwarded-Method``, ``-Uri``, ``-Host``),
        ``"auth_request"`` for nginx (``X-Original-Method``, ``-URL``), ``"ext_authz"`` for an HTTP service of Envoy's.
        Only the proxy may reach it. What the agent sets in request headers is in the headers of the answer. What a
        proxy can't be told is answered 500, and logged.
    :param max_event_bytes: a longer event is refused with 413.
    :param max_concurrency: how many hooks may be at work at a time, the rest wait; None: as many as there are requests.
    :raises ConfigurationError: for arguments that can't work.
    """
    require_agent("agent_app", agent)
    require_positive("agent_app", "max_event_bytes", max_event_bytes)
    if max_concurrency is not None:
        require_positive("agent_app", "max_concurrency", max_concurrency)
    if api != "agent":
        if api not in get_args(ForwardAuthApi):
            known = " or ".join(map(repr, ("agent", *get_args(ForwardAuthApi))))
            raise ConfigurationError(f"agent_app: api={api!r}, expected {known}")
        return _ForwardAuthApp(agent, api, max_concurrency)
    return _AgentApp(agent, max_event_bytes, None if max_concurrency is None else SharedLimiter(max_concurrency))


class _AgentApp:
    def __init__(self, agent: Agent, max_event_bytes: int, limiter: SharedLimiter | None) -> None:
        self._hooks = Hooks(agent)
        self._max_event_bytes = max_event_bytes
        self._limiter = limiter
        self._about = {
            "agent": self._hooks.name,
            "protocol_version": PROTOCOL_VERSION,
            "events": sorted(self._hooks.events),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                reply = await self._http(scope, receive)
                if reply is not None:
                    await reply(scope, receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close"})
            case "lifespan":
                await _lifespan(receive, send)
            case unknown:
                raise ValueError(f"unknown scope type {unknown!r}")

    async def _http(self, scope: Scope, receive: Receive) -> Response | None:
        """The reply, or None where nobody is left to have it."""
        if scope["method"] in ("GET", "HEAD"):
            return JSONResponse(self._about)
        if scope["method"] != "POST":
            return JSONResponse({"error": "events are posted"}, 405, {"allow": "GET, HEAD, POST"})
        headers = Headers(scope=scope)
        try:
            encoding = _encoding(headers)
            event = decode_event(await self._body(headers, receive), encoding)
        except HTTPException as exc:
            return JSONResponse({"error": exc.detail}, exc.status_code)
        except AgentProtocolError as exc:
            return JSONResponse({"error": str(exc)}, 400)
        except ClientDisconnect:
            return None
        reply = partial(
            self._reply, event, encoding, {name: headers.getlist(name) for name in ("traceparent", "tracestate")}
        )
        if self._hooks.may_suspend(event.event_type):
            return await self._unless_disconnected(reply, receive)
        return await reply()

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        too_long = HTTPException(413, f"the event is longer than {self._max_event_bytes} bytes")
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > _MAX_DIGITS or int(length) > self._max_event_bytes):
            raise too_long
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if len(body) > self._max_event_bytes:
                raise too_long
            more = message.get("more_body", False)
        return bytes(body)

    async def _unless_disconnected(self, reply: Callable[[], Awaitable[Response]], receive: Receive) -> Response | None:
        response = None
        async with create_task_group() as group:
            group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
            # In this task, not a child: the hook sees the context variables of whatever is around the app.
            response = await self._in_turn(reply)
            group.cancel_scope.cancel()
        return response

    async def _in_turn(self, reply: Callable[[], Awaitable[Response]]) -> Response:
        if self._limiter is None:
            return await reply()
        await self._limiter.acquire()
        try:
            return await reply()
        finally:
            self._limiter.release()

    async def _reply(self, event: Event, encoding: Encoding, caller: Mapping[str, list[str]]) -> Response:
        try:
            body = await self._hooks.answer(event, partial(encode_answer, encoding=encoding), caller)
        except NoAnswer as exc:
            return JSONResponse({"error": str(exc)}, 500)
        return Response(body, media_type=encoding.content_type)


class _ForwardAuthApp(_AgentApp):
    """Answers questions of a reverse proxy."""

    def __init__(self, agent: Agent, api: ForwardAuthApi, max_concurrency: int | None) -> None:
        super().__init__(agent, MAX_EVENT_BYTES, None)
        self._api = api
        self._authorizations = Authorizations(f"agent_app(api={api!r})", agent, max_concurrency, carries=HEADS)

    async def _http(self, scope: Scope, receive: Receive) -> Response | None:
        try:
            head = question_of(scope, self._api)
        except HTTPException as exc:
            return JSONResponse({"error": exc.detail}, exc.status_code)
        return await self._unless_disconnected(partial(self._ask, head), receive)

    async def _ask(self, head: RequestHeadersEvent) -> Response:
        caller = {name: list(head.headers.get(name, ())) for name in ("traceparent", "tracestate")}
        try:
            return answer_of(await self._authorizations.ask(head, None, caller), self._api)
        except NoAnswer as exc:
            return JSONResponse({"error": str(exc)}, 500)
        except AgentProtocolError as exc:
            logger.error("%s: the answer can't be sent: %s", self._hooks.name, exc)
            return JSONResponse({"error": "the agent's answer can't be sent to a proxy"}, 500)


def _encoding(headers: Headers) -> Encoding:
    content_encoding = headers.get("content-encoding", "identity")
    encoding = _ENCODINGS.get(headers.get("content-type", "").partition(";")[0].strip().lower())
    if encoding is None or content_encoding.strip().lower() != "identity":
        raise HTTPException(415, f"expected {' or '.join(_ENCODINGS)} without content-encoding")
    return encoding


async def _cancel_on_disconnect(receive: Receive, scope: CancelScope) -> None:
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()
    scope.cancel()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
