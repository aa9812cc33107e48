"""The agent that all requests go past: in the app's process, and in two others."""

import anyio
from anyio.lowlevel import checkpoint

from asgi_agents import (
    Agent,
    AgentResponse,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    WebSocketFrameEvent,
)
from asgi_agents.serve import agent_app

# Seconds: long enough for clients to go away meanwhile.
_LONG = 0.02


class Watches(Agent):
    """Does what a request's ``x-want`` says, and keeps nothing."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        match event.header("x-want"):
            case "block":
                return AgentResponse.block(403, "blocked")
            case "fail":
                raise RuntimeError("a failure")
            case "wait":
                await anyio.sleep(_LONG)
        return AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        return None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        return None

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        await checkpoint()
        return AgentResponse.websocket_close(1008, "evil") if event.data.startswith(b"evil") else None


#: For the agent behind HTTP.
app = agent_app(Watches())
