"""The names of the attributes of spans and metrics, as OpenTelemetry writes attribute names."""

from typing import Final

AGENT_ID: Final = "asgi_agents.agent.id"
BREAKER_STATE: Final = "asgi_agents.breaker.state"
CANCELLED: Final = "asgi_agents.cancelled"
CORRELATION_ID: Final = "asgi_agents.correlation_id"
DECISION: Final = "asgi_agents.decision"
ENFORCED: Final = "asgi_agents.enforced"
ERROR_TYPE: Final = "error.type"
EVENT: Final = "asgi_agents.event"
EVENTS: Final = "asgi_agents.events"
FAILURE_MODE: Final = "asgi_agents.failure_mode"
KIND: Final = "asgi_agents.kind"
OUTCOME: Final = "asgi_agents.outcome"
ROUTE: Final = "asgi_agents.route"
WHAT: Final = "asgi_agents.what"
