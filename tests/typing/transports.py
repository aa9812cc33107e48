"""A transport of one's own, and those for guardrail services."""

import httpx

from asgi_agents import (
    AgentConfig,
    AgentConnectionError,
    AgentResponse,
    Answer,
    Event,
    EventType,
    ForwardAuthStyle,
    ForwardAuthTransport,
    GrpcTransport,
    Transport,
)
from asgi_agents.guardrail_services import (
    AgentgatewayWebhook,
    GuardrailService,
    LiteLLMGuardrail,
    NeMoGuardrails,
    OpenAIModeration,
)


class Queue:
    """Carries events to agents behind some queue."""

    kind = "queue"
    remote = True
    carries = frozenset(EventType)

    def __init__(self, address: str, events: frozenset[EventType]) -> None:
        self.address = address
        self.events: frozenset[EventType] | None = events

    def may_suspend(self, event_type: EventType) -> bool:
        """Whether a call can suspend."""
        return True

    async def call(self, event: Event) -> Answer | None:
        """Deliver an event."""
        if self.address == "":
            raise AgentConnectionError("no address")
        return AgentResponse.block() if event.event_type is EventType.REQUEST_HEADERS else None

    async def aclose(self) -> None:
        """Close it."""


class Incomplete:
    """Says nothing of what it carries."""

    kind = "queue"

    async def call(self, event: Event) -> Answer | None:
        """Deliver an event."""
        return None


transport: Transport = Queue("amqp://broker", frozenset({EventType.REQUEST_HEADERS}))
AgentConfig("queue", transport)
AgentConfig("queue", Queue("amqp://broker", frozenset()))

AgentConfig("incomplete", Incomplete())  # type: ignore[arg-type]

service: Transport = LiteLLMGuardrail("http://masking.internal", api_key="k", parameters={"level": 3}, verify=True)
services: list[GuardrailService] = [
    AgentgatewayWebhook("http://webhook.internal", headers={"x-tenant": "acme"}, uds="/run/webhook.sock"),
    OpenAIModeration("k", thresholds={"violence": 0.3}, transport=httpx.AsyncHTTPTransport()),
    NeMoGuardrails("http://nemo.internal", config_id="safety", endpoint="guardrail/checks"),
]
AgentConfig("masking", service, timeout=2.0)
AgentConfig("masking", services[0])

OpenAIModeration()  # type: ignore[call-arg]
OpenAIModeration("k", timeout=3.0)  # type: ignore[call-arg]
NeMoGuardrails("http://nemo.internal", endpoint="chat")  # type: ignore[arg-type]

sso = ForwardAuthTransport(
    "http://127.0.0.1:4180/oauth2/auth",
    style="auth_request",
    upstream_headers={"X-Auth-Request-User"},
    client_headers=None,
    headers={"x-key": "s3cret"},
    scheme="https",
)
AgentConfig("sso", sso)
AgentConfig("opa", GrpcTransport("grpc://127.0.0.1:9191", protocol="ext_authz"))

style: ForwardAuthStyle = "ext_authz"
ForwardAuthTransport("http://127.0.0.1/", style=style)
ForwardAuthTransport("http://127.0.0.1/", style="traefik")  # type: ignore[arg-type]
ForwardAuthTransport("http://127.0.0.1/", upstream_headers=5)  # type: ignore[arg-type]
