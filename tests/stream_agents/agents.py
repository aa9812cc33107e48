"""Agents that are written once, and run in the app's process or in one of their own."""

import os
import re

import anyio
from anyio.lowlevel import checkpoint

from asgi_agents import (
    Agent,
    AgentResponse,
    BodyMutation,
    Detection,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Severity,
    WebSocketFrameEvent,
)

_EMAIL = re.compile(rb"[\w.]+@[\w.]+")


class Signs(Agent):
    """Signs each response with its process id, after a moment, so that there are always calls under way."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        await anyio.sleep(0.02)
        return AgentResponse.allow(response_headers=[HeaderOp.set("x-agent", str(os.getpid()))])


class Repeats(Agent):
    """Says of which request it was asked."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        await checkpoint()
        return AgentResponse.allow(routing_metadata={"asked": event.correlation_id})


class Everything(Agent):
    """Hears every event, and does everything that an agent can do."""

    def __init__(self) -> None:
        self.completed: dict[str, int] = {}

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        match event.uri:
            case "/blocked":
                return AgentResponse.block(401, "missing api key", headers={"www-authenticate": "ApiKey"})
            case "/moved":
                return AgentResponse.redirect("https://example.org/elsewhere", 308)
            case "/challenged":
                return AgentResponse.challenge("bearer", {"realm": "api"})
        return AgentResponse.allow(
            request_headers=[
                HeaderOp.set("x-user", "alice"),
                HeaderOp.add("x-role", "admin"),
                HeaderOp.remove("x-forged"),
            ],
            response_headers=[HeaderOp.set("x-agent", "was here")],
        )

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        if b"evil" in event.data:
            return AgentResponse.block(422, "evil request")
        if b"secret" in event.data:
            return AgentResponse.allow(
                request_body_mutation=BodyMutation(event.data.replace(b"secret", b"[hidden]"), event.chunk_index)
            )
        return None

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        if event.header("x-leak") == "fatal":
            return AgentResponse.block(500, "a leak")
        return AgentResponse.allow(response_headers=[HeaderOp.remove("x-leak"), HeaderOp.set("x-checked", "yes")])

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        if b"evil" in event.data:
            return AgentResponse.block(502, "evil response")
        clean = _EMAIL.sub(b"[email]", event.data)
        if clean == event.data:
            return None
        return AgentResponse.allow(response_body_mutation=BodyMutation(clean, event.chunk_index))

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        await checkpoint()
        if event.data.startswith(b"spam"):
            return AgentResponse.websocket_drop()
        if event.data.startswith(b"evil"):
            side = "client" if event.client_to_server else "app"
            return AgentResponse.websocket_close(1008, f"the {side} is evil")
        return None

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        await checkpoint()
        if event.content.startswith("completed "):
            # How a test asks what only the agent knows.
            status = self.completed.get(event.content.removeprefix("completed "))
            return GuardrailResponse(detected=status is not None, redacted_content=str(status))
        if "ignore all" not in event.content:
            return GuardrailResponse(detected=False)
        return GuardrailResponse(
            detected=True,
            confidence=0.9,
            detections=(Detection(category="jailbreak", description="ignores all", severity=Severity.HIGH),),
            redacted_content=event.content.replace("ignore all", "…"),
        )

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        # The client's own id is the beginning of the name.
        self.completed[event.correlation_id.partition("~")[0]] = event.status
