"""Agents that do a little: they look at what they are shown, have nothing against it, and don't suspend."""

from typing import Final

from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentResponse,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    WebSocketFrameEvent,
)
from asgi_agents.serve import agent_app

# Looking for a single byte goes through all of the data and takes next to no time.
_FORBIDDEN: Final = b"\0"


class Allow(Agent):
    """Hears request headers."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        event.header("x-blocked")


class SayAllow(Agent):
    """The same, and answers in so many words."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        event.header("x-blocked")
        return AgentResponse.allow()


class AllowAnswers(Agent):
    """Hears response bodies."""

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
        _FORBIDDEN in event.data  # noqa: B015


class AllowBody(Agent):
    """Hears request bodies."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        _FORBIDDEN in event.data  # noqa: B015


class AllowFrames(Agent):
    """Hears websocket messages."""

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
        _FORBIDDEN in event.data  # noqa: B015


allow = Allow()
http_allow = agent_app(allow)


async def check(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI app: the same for whoever asks with the request itself, such as Envoy's ext_authz."""
    if scope["type"] != "http":
        raise RuntimeError(f"{scope['type']!r}, expected http")
    any(name == b"x-blocked" for name, _ in scope["headers"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
