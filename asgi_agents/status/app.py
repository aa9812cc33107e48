"""The status page as an ASGI app: HTML, JSON, and server-sent events."""

import os
import time
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ConfigurationError
from ..manager import AgentManager, registry_of, require_manager
from ..observability.authorization import Authorize, refusal, require_authorize
from ..observability.worker_directory import directory_of
from ..registry import AgentRegistry
from ..routing.routes import path_below_root
from .cleaning import IncidentCleaner
from .snapshot import take_snapshot

if TYPE_CHECKING:
    from .sharing import SharedStatus

# A stream that never ends would keep a server that shuts down gracefully waiting for the viewer. The page comes back.
_STREAM_SECONDS: Final = 5.0
_MAX_INTERVAL: Final = 20.0
# Seconds within which a viewer has to take what it is sent.
_SEND_TIMEOUT: Final = 10.0
# Milliseconds after which the page asks for a new stream.
_RETRY: Final = b"retry: 250\n\n"

_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
# By path: the file, and what it is.
_ASSETS: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/parts.js": ("parts.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def status_app(
    manager: AgentManager,
    *,
    authorize: Authorize | None = None,
    interval: float = 1.0,
    directory: str | os.PathLike[str] | None = None,
) -> ASGIApp:
    """An ASGI app that shows the agents of ``manager``, to be mounted.

    ::

        app.mount("/-/agents", status_app(manager))

    The page is at the mount's ``/``; what it shows is in ``status.json`` (a :class:`Status`), and comes anew every
    ``interval`` seconds from ``events``. There are correlation ids, routes, paths, the messages of failures and the
    reasons of denials in it, but no queries, no header values and no bodies.

    :param authorize: asked about each request. It takes the request and returns, or is a coroutine function that
        returns, True, False (403), or the response that refuses it.
    :param directory: in which the workers of an app tell one another how they are, so that the page of each shows all
        of them. It is made if need be; nobody but the user as whom the app runs may write to it. Each worker has one
        file there, of at most 4 MiB, which it writes again while somebody looks at the page. A first look waits for
        what the others say, for 2 seconds at most; who says nothing by then is ``silent``. It takes an app that runs
        its lifespan, and this call before that begins: otherwise the others don't hear of this worker, and its page
        says so.
    :raises ConfigurationError: for arguments that can't work.
    """
    require_manager("status_app: manager=", manager)
    require_authorize("status_app", authorize)
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not 0.05 <= interval <= _MAX_INTERVAL:
        raise ConfigurationError(f"status_app: interval={interval!r}, expected seconds from 0.05 to {_MAX_INTERVAL:g}")
    return _StatusApp(registry_of(manager), authorize, interval, directory_of("status_app", directory))


def _shared(directory: Path, registry: AgentRegistry, interval: float, cleaner: IncidentCleaner) -> "SharedStatus":
    # It needs what there is on POSIX alone.
    from .sharing import SharedStatus

    # However many pages show a manager: each of them would count as another worker.
    make = partial(SharedStatus, directory, registry, interval, cleaner)
    return registry.lifecycle.companion(SharedStatus, directory, make)


class _StatusApp:
    def __init__(
        self, registry: AgentRegistry, authorize: Authorize | None, interval: float, directory: Path | None
    ) -> None:
        self._registry = registry
        self._authorize = authorize
        self._interval = interval
        self._files = {name: (files(__package__) / "page" / name).read_bytes() for name, _ in _ASSETS.values()}
        self._encoded = b""
        self._encoded_at = float("-inf")
        self._cleaner = IncidentCleaner()
        self._shared = None if directory is None else _shared(directory, registry, interval, self._cleaner)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await refusal(self._authorize, request)
        if response is None:
            path = _path_of(scope)
            if request.method not in ("GET", "HEAD"):
                response = PlainTextResponse("Method Not Allowed", 405, {"allow": "GET, HEAD"})
            elif path == "/events" and request.method == "GET":
                await self._stream(receive, send)
                return
            else:
                response = await self._respond(path, scope)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        await response(scope, receive, send)

    async def _respond(self, path: str, scope: Scope) -> Response:
        match path:
            case "":
                # Else the page's links would lead elsewhere.
                return RedirectResponse(f"{quote(scope['path'].rpartition('/')[2])}/")
            case "/status.json":
                return Response(await self._status(min(0.5, self._interval / 2)), media_type="application/json")
            case "/events":
                return Response(media_type="text/event-stream")
        asset = _ASSETS.get(path)
        if asset is None:
            return PlainTextResponse("Not Found", 404)
        name, content_type = asset
        return Response(self._files[name], headers={"content-type": content_type})

    async def _status(self, max_age: float) -> bytes:
        """What many viewers see at the same time is made once."""
        if self._shared is not None:
            return await self._shared.encoded(max_age)
        now = time.monotonic()
        if now - self._encoded_at > max_age:
            self._encoded = msgspec.json.encode(take_snapshot(self._registry, self._interval, self._cleaner))
            self._encoded_at = now
        return self._encoded

    async def _stream(self, receive: Receive, send: Send) -> None:
        error: Exception | None = None
        async with anyio.create_task_group() as tasks:

            async def push() -> None:
                nonlocal error
                try:
                    await self._push(send)
                except OSError:  # a timeout is one, too
                    pass  # the viewer is gone, or doesn't read
                except Exception as exc:
                    # Out of the task group, which would wrap it.
                    error = exc
                tasks.cancel_scope.cancel()

            tasks.start_soon(push)
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()
        if error is not None:
            raise error

    async def _push(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            with anyio.fail_after(_SEND_TIMEOUT):
                await send(message)

        headers = {**_HEADERS, "content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send_in_time({"type": "http.response.start", "status": 200, "headers": raw_headers})
        ends = time.monotonic() + max(_STREAM_SECONDS, self._interval)
        data = _RETRY
        while (left := ends - time.monotonic()) > 0:
            data += b"data: %b\n\n" % await self._status(self._interval * 0.95)
            await send_in_time({"type": "http.response.body", "body": data, "more_body": True})
            data = b""
            await anyio.sleep(min(self._interval, left))
        await send_in_time({"type": "http.response.body", "body": b""})


def _path_of(scope: Scope) -> str:
    """The path below the mount."""
    path, root = scope["path"], scope.get("root_path", "")
    below: str = path_below_root(path, root)
    if below == path and root:
        # Behind a proxy that has taken the app's own root away already.
        below = path_below_root(path, root.removeprefix(scope.get("app_root_path", "")))
    return below
