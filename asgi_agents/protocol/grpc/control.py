"""Everything but events and answers, as messages of agent.proto: handshake, health, flow control, figures. No I/O."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ...errors import AgentProtocolError
from ..responses import PROTOCOL_VERSION
from ..stream import (
    AgentCapabilities,
    AgentFeatures,
    AgentLimits,
    CancelReason,
    ConfigUpdateRequest,
    CounterMetric,
    FlowControl,
    GaugeMetric,
    HealthState,
    HealthStatus,
    HistogramBucket,
    HistogramMetric,
    MetricsReport,
    now_ms,
)
from .messages import AgentToProxy, ProxyToAgent

#: How a handshake says that there is no configuration.
NO_CONFIG: Final = "{}"
# What a feature is called on both sides; `call_ids` is no part of this wire.
_FEATURES: Final = tuple(name for name in AgentFeatures.__struct_fields__ if name != "call_ids")
_LIMITS: Final = AgentLimits.__struct_fields__


# From the client


def encode_handshake(proxy_id: str, proxy_version: str, config: object) -> bytes:
    """The first message of a stream. The configuration travels in it as JSON.

    :raises AgentProtocolError: for a configuration that JSON can't hold.
    """
    try:
        text = NO_CONFIG if config is None else msgspec.json.encode(config).decode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise AgentProtocolError(f"the configuration can't be encoded as JSON: {type(exc).__name__}") from None
    message = ProxyToAgent()
    handshake = message.handshake
    handshake.supported_versions.append(PROTOCOL_VERSION)
    handshake.proxy_id = proxy_id
    handshake.proxy_version = proxy_version
    handshake.config_json = text
    return _serialized(message)


def encode_ping(sequence: int) -> bytes:
    """Asks whether the agent is there."""
    message = ProxyToAgent()
    message.ping.sequence = sequence
    message.ping.timestamp_ms = now_ms()
    return _serialized(message)


def encode_cancel(correlation_id: str, reason: CancelReason) -> bytes:
    """Nobody waits any more for the answers about a request."""
    message = ProxyToAgent()
    message.cancel.correlation_id = correlation_id
    message.cancel.reason = int(reason)
    message.cancel.timestamp_ms = now_ms()
    return _serialized(message)


def decode_handshake_response(response: Any) -> AgentCapabilities:
    """What the agent says of itself.

    :raises AgentProtocolError: it refuses, speaks another version, or says nothing.
    """
    if not response.success:
        raise AgentProtocolError(f"refused the handshake: {response.error or 'no reason given'}")
    if response.protocol_version != PROTOCOL_VERSION:
        raise AgentProtocolError(
            f"speaks version {response.protocol_version} of the protocol, expected {PROTOCOL_VERSION}"
        )
    if not response.HasField("capabilities"):
        raise AgentProtocolError("says nothing of its capabilities in the handshake")
    said = response.capabilities
    limits = {name: getattr(said.limits, name) for name in _LIMITS} if said.HasField("limits") else {}
    return AgentCapabilities(
        agent_id=said.agent_id,
        name=said.name,
        version=said.version,
        supported_events=tuple(said.supported_events),
        features=AgentFeatures(**{name: getattr(said.features, name) for name in _FEATURES}),
        limits=AgentLimits(**limits),
    )


def decode_health(status: Any) -> HealthStatus:
    """The agent's health."""
    return HealthStatus(
        state=status.state,
        agent_id=status.agent_id,
        message=status.message if status.HasField("message") else None,
        timeout_multiplier=status.timeout_multiplier or 1.0,
        timestamp_ms=status.timestamp_ms,
    )


def decode_flow_control(control: Any) -> FlowControl:
    """What the agent asks of the flow of events."""
    return FlowControl(
        action=control.action,
        correlation_id=control.correlation_id if control.HasField("correlation_id") else None,
        buffer_available=control.buffer_available if control.HasField("buffer_available") else None,
        timestamp_ms=control.timestamp_ms,
    )


def decode_metrics(report: Any) -> MetricsReport:
    """Figures that the agent reports."""
    return MetricsReport(
        agent_id=report.agent_id,
        timestamp_ms=report.timestamp_ms,
        interval_ms=report.interval_ms,
        counters=[CounterMetric(value=each.value, **_named(each)) for each in report.counters],
        gauges=[GaugeMetric(value=each.value, **_named(each)) for each in report.gauges],
        histograms=[
            HistogramMetric(
                sum=each.sum,
                count=each.count,
                buckets=[HistogramBucket(bucket.le, bucket.count) for bucket in each.buckets],
                **_named(each),
            )
            for each in report.histograms
        ],
    )


def decode_config_update(update: Any) -> ConfigUpdateRequest:
    """The agent asks for a change of its configuration. ``update_type`` is spelled as over the other transports."""
    kind = update.WhichOneof("update_type")
    return ConfigUpdateRequest(
        request_id=update.request_id,
        update_type="request_reload" if kind in (None, "request_reload") else {kind: _plain(getattr(update, kind))},
        timestamp_ms=update.timestamp_ms,
    )


def _named(metric: Any) -> dict[str, Any]:
    return {
        "name": metric.name,
        "help": metric.help if metric.HasField("help") else None,
        "labels": dict(metric.labels),
    }


def _plain(message: Any) -> dict[str, Any]:
    """The fields of a message as plain values."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if isinstance(value, str | int | float | bool | bytes):
            found[field.name] = value if not field.has_presence or message.HasField(field.name) else None
        else:
            found[field.name] = [each if isinstance(each, str) else _plain(each) for each in value]
    return found


# From the agent


def encode_handshake_response(capabilities: AgentCapabilities, events: Sequence[int]) -> bytes:
    """The agent takes part. ``events`` are the numbers of those that it is to be asked about."""
    message = AgentToProxy()
    response = message.handshake
    response.protocol_version = PROTOCOL_VERSION
    response.success = True
    said = response.capabilities
    said.protocol_version = PROTOCOL_VERSION
    said.agent_id = capabilities.agent_id
    said.name = capabilities.name
    said.version = capabilities.version
    said.supported_events.extend(events)
    for name in _FEATURES:
        setattr(said.features, name, getattr(capabilities.features, name))
    for name in _LIMITS:
        setattr(said.limits, name, getattr(capabilities.limits, name))
    return _serialized(message)


def encode_refused_handshake(error: str) -> bytes:
    """The agent does not take part."""
    message = AgentToProxy()
    message.handshake.protocol_version = PROTOCOL_VERSION
    message.handshake.error = error
    return _serialized(message)


def encode_health(agent_id: str, state: HealthState) -> bytes:
    """The agent's health."""
    message = AgentToProxy()
    message.health.agent_id = agent_id
    message.health.state = int(state)
    message.health.timeout_multiplier = 1.0
    message.health.timestamp_ms = now_ms()
    return _serialized(message)


def encode_pong(ping: Any) -> bytes:
    """The answer to a ``Ping``."""
    message = AgentToProxy()
    message.pong.sequence = ping.sequence
    message.pong.ping_timestamp_ms = ping.timestamp_ms
    message.pong.timestamp_ms = now_ms()
    return _serialized(message)


def decode_config(text: str) -> object:
    """The configuration in a handshake; None where there is none.

    :raises AgentProtocolError: it is no JSON.
    """
    if text in ("", NO_CONFIG, "null"):
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise AgentProtocolError(f"config_json: not JSON: {exc}") from None


def _serialized(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded
