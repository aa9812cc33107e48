"""ASGI middleware that puts external and in-process agents in front of any FastAPI or Starlette app."""

from typing import TYPE_CHECKING

from ._version import __version__
from .agent import Agent
from .audit import AuditAgent, AuditAnswer, AuditGuardrail, AuditHook, AuditRecord, Redact
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
    UnknownGuardrailError,
)
from .evaluation.route_agent import AgentReference
from .exchange import AgentContext, ChallengeRenderer, ErrorInfo, ErrorRenderer, InspectedText, fastapi_error
from .failures import Failure, FailureKind
from .imports.lazy import lazy_names
from .manager import AgentManager
from .middleware import AgentMiddleware
from .observability.authorization import Authorize
from .observability.correlation import CorrelationFilter, current_correlation_id
from .observability.endpoints import EndpointState, EndpointStatistics
from .observability.metrics import AgentMetrics, AgentStatistics, Incident
from .observability.redaction import redact_secrets
from .placement import protect
from .policy import BodyMode, BodyModeName, CircuitBreakerConfig, FailureMode, FailureModeName
from .protocol import (
    PROTOCOL_VERSION,
    Acknowledgement,
    AgentResponse,
    Allow,
    Answer,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    ConfigureEvent,
    Decision,
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
    WebSocketDecision,
    WebSocketDrop,
    WebSocketFrameEvent,
)
from .protocol.inspection import SpanUnit
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
from .routing.guarding import guard_router, guarded_by, unguarded
from .routing.routes import AgentRoute, Route
from .transports import InProcessTransport, LoadBalancing, StreamTransport, Transport
from .transports.base import ConfigUpdateCallback, MetricsCallback
from .transports.tls import ClientCertificate

if TYPE_CHECKING:
    from .files import Configuration, load
    from .status import status_app
    from .transports import ForwardAuthTransport, GrpcTransport, HttpTransport
    from .transports.forward_auth import ForwardAuthStyle
    from .transports.http_origin import TransportFactory
else:
    # What only some need is imported when it is asked for (PEP 562): httpx alone takes as long as all the rest.
    _LAZY = {
        "Configuration": "files",
        "ForwardAuthStyle": "transports.forward_auth",
        "ForwardAuthTransport": "transports",
        "GrpcTransport": "transports",
        "HttpTransport": "transports",
        "TransportFactory": "transports.http_origin",
        "load": "files",
        "status_app": "status",
    }

    __getattr__, __dir__ = lazy_names(
        globals(), _LAZY, beside=tuple(f"{__name__}.{each}" for each in ("agents", "guardrails", "testing", "serve"))
    )


__all__ = [
    "PROTOCOL_VERSION",
    "Acknowledgement",
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
    "AgentReference",
    "AgentResponse",
    "AgentRoute",
    "AgentStatistics",
    "AgentTimeoutError",
    "AgentUnavailableError",
    "AgentsError",
    "Allow",
    "Answer",
    "AuditAgent",
    "AuditAnswer",
    "AuditGuardrail",
    "AuditHook",
    "AuditMetadata",
    "AuditRecord",
    "Authorize",
    "BadInput",
    "Block",
    "BodyMode",
    "BodyModeName",
    "BodyMutation",
    "BreakerState",
    "Challenge",
    "ChallengeRenderer",
    "CircuitBreakerConfig",
    "ClientCertificate",
    "ClosedByAgent",
    "ConfigUpdateCallback",
    "ConfigUpdateRequest",
    "Configuration",
    "ConfigurationError",
    "ConfigureEvent",
    "CorrelationFilter",
    "CounterMetric",
    "Decision",
    "Detection",
    "Encoding",
    "EndpointState",
    "EndpointStatistics",
    "ErrorInfo",
    "ErrorRenderer",
    "Event",
    "EventTooLargeError",
    "EventType",
    "Failure",
    "FailureKind",
    "FailureMode",
    "FailureModeName",
    "ForwardAuthStyle",
    "ForwardAuthTransport",
    "Framing",
    "GaugeMetric",
    "GrpcTransport",
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
    "InspectedText",
    "InspectionType",
    "LoadBalancing",
    "MetricsCallback",
    "MetricsReport",
    "NoAgentContextError",
    "NotApplicableError",
    "Opcode",
    "Redact",
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
    "SpanUnit",
    "StreamTransport",
    "TextSpan",
    "Transport",
    "TransportFactory",
    "UnknownAgentError",
    "UnknownGuardrailError",
    "Verdict",
    "WebSocketClose",
    "WebSocketDecision",
    "WebSocketDrop",
    "WebSocketFrameEvent",
    "__version__",
    "current_correlation_id",
    "fastapi_error",
    "guard_router",
    "guarded_by",
    "load",
    "protect",
    "redact_secrets",
    "status_app",
    "unguarded",
]
