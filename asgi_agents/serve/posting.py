"""An ASGI app to which questions are posted, whatever their format."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from anyio import CancelScope, create_task_group
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from ..concurrency.shared_limiter import SharedLimiter
from ..errors import AgentProtocolError

# Of a content-length: int() refuses what is much longer.
_MAX_DIGITS: Final = 18

#: Gives the reply to a question, and says whether it may suspend.
Replier = tuple[Callable[[], Awaitable[Response]], bool]


class HttpApp(ABC):
    """An ASGI app that speaks HTTP alone: it closes websockets, and has nothing to start or stop."""

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

    @abstractmethod
    async def _http(self, scope: Scope, receive: Receive) -> Response | None:
        """The reply, or None where nobody is left to have it."""


class PostingApp(HttpApp):
    """Reads what is posted, within bounds, and stops working on it when the caller hangs up.

    :param about: what ``GET`` is answered with, for health checks.
    :param max_bytes: of a question.
    :param limiter: for hooks at work; see :meth:`in_turn`.
    """

    def __init__(self, about: Mapping[str, Any], max_bytes: int, limiter: SharedLimiter | None) -> None:
        self._about = about
        self._max_bytes = max_bytes
        self._limiter = limiter

    @abstractmethod
    def reader(self, path: str, headers: Headers) -> Callable[[bytes], Replier]:
        """What reads the body of a request with this path and these headers.

        It raises AgentProtocolError for a body that is no question.

        :raises HTTPException: such a request is refused whatever its body is.
        """

    async def in_turn(self, reply: Callable[[], Awaitable[Any]]) -> Any:
        """Do what may suspend, when fewer are at work than may be at a time."""
        if self._limiter is None:
            return await reply()
        await self._limiter.acquire()
        try:
            return await reply()
        finally:
            self._limiter.release()

    async def _http(self, scope: Scope, receive: Receive) -> Response | None:
        if scope["method"] in ("GET", "HEAD"):
            return JSONResponse(self._about)
        if scope["method"] != "POST":
            return JSONResponse({"error": "events are posted"}, 405, {"allow": "GET, HEAD, POST"})
        headers = Headers(scope=scope)
        try:
            read = self.reader(scope["path"], headers)
            reply, suspends = read(await self._body(headers, receive))
        except HTTPException as exc:
            return JSONResponse({"error": exc.detail}, exc.status_code)
        except AgentProtocolError as exc:
            return JSONResponse({"error": str(exc)}, 400)
        except ClientDisconnect:
            return None
        if suspends:
            return await unless_disconnected(reply, receive)
        return await reply()

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        too_long = HTTPException(413, f"the event is longer than {self._max_bytes} bytes")
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > _MAX_DIGITS or int(length) > self._max_bytes):
            raise too_long
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise too_long
            more = message.get("more_body", False)
        return bytes(body)


def caller_of(headers: Headers) -> Mapping[str, list[str]]:
    """The trace context with which a question came."""
    return {name: headers.getlist(name) for name in ("traceparent", "tracestate")}


def media_type_of(headers: Headers) -> str:
    """The type of a body, in lower case; empty for one that is encoded."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        return ""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def unless_disconnected(reply: Callable[[], Awaitable[Response]], receive: Receive) -> Response | None:
    """Await ``reply()``, which is cancelled when the caller hangs up."""
    response = None
    async with create_task_group() as group:
        group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
        # In this task, not a child: the hook sees the context variables of whatever is around the app.
        response = await reply()
        group.cancel_scope.cancel()
    return response


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
