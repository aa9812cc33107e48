"""ASGI middleware that puts external and in-process agents in front of any FastAPI or Starlette app."""

from typing import TYPE_CHECKING

from ._version import __version__
from .agent import Agent
from .audit import AuditAgent, AuditAnswer, AuditHook, AuditRecord
from .breaker import BreakerState
from .config import AgentConfig
from .decision import AgentDecision, Verdict
from .errors import (
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    AgentsError,
    AgentTimeoutError,
    AgentUnavailableError,
    BadInput,
    ClosedByAgent,
    ConfigurationError,
    EventTooLargeError,
    GuardrailUnavailableError,
    NoAgentContextError,
    NotApplicableError,
    ResponseAborted,
    UnknownAgentError,
)
from .exchange import AgentContext, ErrorInfo, ErrorRenderer, fastapi_error
from .failures import Failure, FailureKind
from .manager import AgentManager
from .middleware import AgentMiddleware
from .observability.authorization import Authorize
from .observability.correlation import CorrelationFilter, current_correlation_id
from .observability.endpoints import EndpointStatistics
from .observability.metrics import AgentMetrics, AgentStatistics, Incident
from .observability.redaction import redact_secrets
from .placement import protect
from .policy import BodyMode, CircuitBreakerConfig, FailureMode
from .protocol import (
    PROTOCOL_VERSION,
    AgentResponse,
    Allow,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    ConfigureEvent,
    Detection,
    Encoding,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    Headers,
    InspectionType,
    Opcode,
    Redirect,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Severity,
    TextSpan,
    WebSocketClose,
    WebSocketDrop,
    WebSocketFrameEvent,
)
from .protocol.stream import (
    AgentCapabilities,
    AgentFeatures,
    AgentLimits,
    ConfigUpdateRequest,
    CounterMetric,
    Framing,
    GaugeMetric,
    HistogramBucket,
    HistogramMetric,
    MetricsReport,
)
from .routing.routes import Route
from .transports import InProcessTransport, LoadBalancing, StreamTransport, Transport

if TYPE_CHECKING:
    from .status import status_app
    from .transports import HttpTransport
else:
    # What only some need is imported when it is asked for (PEP 562): httpx alone takes as long as all the rest.
    _LAZY = {"HttpTransport": "transports", "status_app": "status"}

    def __getattr__(name: str) -> object:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "PROTOCOL_VERSION",
    "Agent",
    "AgentCapabilities",
    "AgentConfig",
    "AgentConnectionError",
    "AgentContext",
    "AgentDecision",
    "AgentError",
    "AgentFeatures",
    "AgentLimits",
    "AgentManager",
    "AgentMetrics",
    "AgentMiddleware",
    "AgentProtocolError",
    "AgentResponse",
    "AgentStatistics",
    "AgentTimeoutError",
    "AgentUnavailableError",
    "AgentsError",
    "Allow",
    "AuditAgent",
    "AuditAnswer",
    "AuditHook",
    "AuditMetadata",
    "AuditRecord",
    "Authorize",
    "BadInput",
    "Block",
    "BodyMode",
    "BodyMutation",
    "BreakerState",
    "Challenge",
    "CircuitBreakerConfig",
    "ClosedByAgent",
    "ConfigUpdateRequest",
    "ConfigurationError",
    "ConfigureEvent",
    "CorrelationFilter",
    "CounterMetric",
    "Detection",
    "Encoding",
    "EndpointStatistics",
    "ErrorInfo",
    "ErrorRenderer",
    "Event",
    "EventTooLargeError",
    "EventType",
    "Failure",
    "FailureKind",
    "FailureMode",
    "Framing",
    "GaugeMetric",
    "GuardrailInspectEvent",
    "GuardrailResponse",
    "GuardrailUnavailableError",
    "HeaderOp",
    "Headers",
    "HistogramBucket",
    "HistogramMetric",
    "HttpTransport",
    "InProcessTransport",
    "Incident",
    "InspectionType",
    "LoadBalancing",
    "MetricsReport",
    "NoAgentContextError",
    "NotApplicableError",
    "Opcode",
    "Redirect",
    "RequestBodyChunkEvent",
    "RequestCompleteEvent",
    "RequestHeadersEvent",
    "RequestMetadata",
    "ResponseAborted",
    "ResponseBodyChunkEvent",
    "ResponseHeadersEvent",
    "Route",
    "Severity",
    "StreamTransport",
    "TextSpan",
    "Transport",
    "UnknownAgentError",
    "Verdict",
    "WebSocketClose",
    "WebSocketDrop",
    "WebSocketFrameEvent",
    "__version__",
    "current_correlation_id",
    "fastapi_error",
    "protect",
    "redact_secrets",
    "status_app",
]
