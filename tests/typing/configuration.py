"""Agents, wherever they are, and how they are configured."""

import ssl

import httpx

from asgi_agents import (
    AgentConfig,
    BodyMode,
    BodyModeName,
    CircuitBreakerConfig,
    ClientCertificate,
    Encoding,
    EventType,
    FailureMode,
    FailureModeName,
    Framing,
    HttpTransport,
    InProcessTransport,
    LoadBalancing,
    SpanUnit,
    StreamTransport,
    TransportFactory,
)

from .agents import Everything

AgentConfig("in-process", Everything())
AgentConfig("in-process", InProcessTransport(Everything()))
AgentConfig("http", "http://127.0.0.1:9000/", events={EventType.REQUEST_HEADERS})
AgentConfig("stream", "unix:///run/waf.sock")
AgentConfig("streams", ["tcp://waf-1:9000", "tcp://waf-2:9000"])
AgentConfig("url", HttpTransport("https://waf/", encoding="msgpack", verify="ca.pem"), events=[EventType.CONFIGURE])

fails: FailureModeName = "open"
mode: BodyModeName = "hybrid"
AgentConfig(
    id="all",
    transport=Everything(),
    events=[EventType.REQUEST_HEADERS],
    failure_mode=fails,
    timeout=0.5,
    chunk_timeout=1,
    max_concurrent_calls=10,
    circuit_breaker=CircuitBreakerConfig(failure_threshold=3, reset_timeout=2.5),
    request_body_mode=mode,
    response_body_mode="stream",
    max_request_body_bytes=1000,
    max_response_body_bytes=None,
    body_access="write",
    request_length="unknown",
    response_content_types={"application/json"},
    decode=True,
    hold_head=True,
    ranges=True,
    enforce=False,
    config={"rules": ["a"]},
    require_at_startup=True,
    may_set_host=True,
    after=["other"],
    sets={"x-user"},
)
AgentConfig("members", Everything(), failure_mode=FailureMode.OPEN, request_body_mode=BodyMode.BUFFER)
AgentConfig("no-breaker", Everything(), circuit_breaker=None)

cert: ClientCertificate = ("cert.pem", "key.pem")
unit: SpanUnit = "bytes"
StreamTransport(
    "tcp://waf:9000",
    framing="v2",
    encoding="msgpack",
    connections=4,
    load_balancing="least_connections",
    tls=True,
    verify=ssl.create_default_context(),
    cert=cert,
    span_unit=unit,
)
StreamTransport(
    ["unix:///run/a.sock"],
    framing=Framing.ENVELOPE,
    encoding=Encoding.JSON,
    load_balancing=LoadBalancing.RANDOM,
)


def carrier() -> httpx.AsyncBaseTransport:
    """What carries the requests of one event loop."""
    return httpx.AsyncHTTPTransport(retries=1)


factory: TransportFactory = carrier
HttpTransport("http://waf/", transport=factory, headers={"authorization": "Bearer x"}, uds="/run/waf.sock")
HttpTransport("http://waf/", max_answer_bytes=1000, span_unit="codepoints")

AgentConfig("typo", Everything(), failure_mode="fail-open")  # type: ignore[arg-type]
AgentConfig("typo", Everything(), request_body_mode="buffered")  # type: ignore[arg-type]
AgentConfig("typo", Everything(), body_access="rw")  # type: ignore[arg-type]
AgentConfig("typo", Everything(), timeout="1s")  # type: ignore[arg-type]
AgentConfig("typo", Everything(), timeouts=1)  # type: ignore[call-arg]
AgentConfig("a-class", Everything)  # type: ignore[arg-type]
AgentConfig("by-position", Everything(), {EventType.REQUEST_HEADERS})  # type: ignore[call-arg]
StreamTransport("tcp://waf:9000", load_balancing="fastest")  # type: ignore[arg-type]
