"""A manager, used by itself, and what shows how agents do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import assert_type

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from asgi_agents import (
    AgentCapabilities,
    AgentConfig,
    AgentDecision,
    AgentError,
    AgentManager,
    AgentMetrics,
    AgentStatistics,
    Authorize,
    BreakerState,
    ConfigUpdateCallback,
    ConfigUpdateRequest,
    EndpointState,
    EventType,
    FailureMode,
    GuardrailInspectEvent,
    GuardrailResponse,
    Headers,
    MetricsCallback,
    MetricsReport,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    UnknownAgentError,
    WebSocketFrameEvent,
    status_app,
)
from asgi_agents.prometheus import PrometheusCollector, metrics_app

from .agents import Everything


def reported(agent_id: str, report: MetricsReport) -> None:
    """What an agent reports of itself."""


def asked(agent_id: str, request: ConfigUpdateRequest) -> None:
    """What an agent asks for."""


on_metrics_report: MetricsCallback = reported
on_config_update: ConfigUpdateCallback = asked
manager = AgentManager(
    [AgentConfig("waf", Everything())],
    on_metrics_report=on_metrics_report,
    on_config_update=on_config_update,
    tracer_provider=TracerProvider(),
    meter_provider=MeterProvider(),
    debug=True,
)


async def use(
    head: RequestHeadersEvent,
    body: RequestBodyChunkEvent,
    answer: ResponseHeadersEvent,
    piece: ResponseBodyChunkEvent,
    frame: WebSocketFrameEvent,
    complete: RequestCompleteEvent,
    question: GuardrailInspectEvent,
) -> None:
    """Every method."""
    async with manager as entered:
        assert_type(entered, AgentManager)
    async with manager.running() as leave:
        await leave()
    await manager.initialize()
    await manager.shutdown()

    assert_type(await manager.process_request_headers(head), AgentDecision)
    assert_type(await manager.process_request_headers(head, ["waf", ("waf", "open")]), AgentDecision)
    assert_type(await manager.process_request_body(body, agents=[("waf", FailureMode.OPEN)]), AgentDecision)
    assert_type(await manager.process_request_body_streaming(body), AgentDecision)
    assert_type(await manager.process_response_headers(answer), AgentDecision)
    assert_type(await manager.process_response_body_streaming(piece), AgentDecision)
    assert_type(await manager.process_websocket_frame(frame), AgentDecision)
    assert_type(await manager.process_request_complete(complete), AgentDecision)
    assert_type(await manager.call_guardrail_agent("waf", question, "closed"), GuardrailResponse)
    manager.forget_request("waf", head.correlation_id)

    assert_type(manager.agent_ids, Sequence[str])
    assert_type(manager.metrics, Mapping[str, AgentMetrics])
    assert_type(manager.statistics(), Mapping[str, AgentStatistics])
    assert_type(manager.agent_capabilities("waf"), AgentCapabilities | None)
    assert_type(manager.get_agents_for_event(EventType.REQUEST_HEADERS), Sequence[str])
    assert_type(manager.any_agent_handles_event(None, EventType.CONFIGURE), bool)
    assert_type(manager.export_prometheus(), str)

    try:
        await manager.add_agent(AgentConfig("more", "unix:///run/more.sock"))
        await manager.replace_agent(AgentConfig("more", Everything()), drain_timeout=5)
        await manager.push_config("more", {"rules": []})
        await manager.remove_agent("more", drain_timeout=0)
    except UnknownAgentError:
        pass
    except AgentError:
        pass


def states(statistics: AgentStatistics) -> list[EndpointState]:
    """The states of an agent's endpoints."""
    assert_type(statistics.breaker, BreakerState | None)
    return [endpoint.state for endpoint in statistics.endpoints]


async def is_operator(request: Request) -> bool | Response:
    """Who may see the pages."""
    return "operator" in request.headers or RedirectResponse("/login")


authorize: Authorize = is_operator
app = Starlette()
app.mount("/-/agents", status_app(manager, authorize=authorize, interval=0.5, directory=Path("/run/shop/status")))
app.mount("/-/metrics", metrics_app(manager, authorize=lambda request: True))
REGISTRY.register(PrometheusCollector(manager))

RequestHeadersEvent(
    metadata=RequestMetadata(
        correlation_id="c",
        request_id="r",
        client_ip="127.0.0.1",
        client_port=1,
        protocol="HTTP/1.1",
        timestamp="2026-01-01T00:00:00Z",
    ),
    method="GET",
    uri="/",
    headers=Headers({"host": ["a"]}),
)

AgentManager("waf")  # type: ignore[arg-type]
AgentManager([Everything()])  # type: ignore[list-item]
AgentManager(on_metrics_report=asked)  # type: ignore[arg-type]
manager.guard("waf")  # type: ignore[attr-defined]
manager.get_agents_for_event("request_headers")  # type: ignore[arg-type]
status_app(app)  # type: ignore[arg-type]
metrics_app(app)  # type: ignore[arg-type]
