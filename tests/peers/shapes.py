"""What the Rust kit can decode. A missing field, a field of another type or an unknown variant: it can't.

Unknown fields are ignored, an optional field may be missing.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

U16 = Annotated[int, Meta(ge=0, lt=2**16)]
U32 = Annotated[int, Meta(ge=0, lt=2**32)]
U64 = Annotated[int, Meta(ge=0)]
Headers = dict[str, list[str]]


class Variants(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One of several variants, each a field."""

    def __post_init__(self) -> None:
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not UNSET]
        if len(given) != 1:
            raise ValueError(f"expected one variant, got {given}")


# Handshakes


class HandshakeRequest(Struct):
    supported_versions: list[U32]
    proxy_id: str
    proxy_version: str
    config: Any = None
    supported_encodings: list[Literal["json", "msgpack"]] = []


class Features(Struct):
    streaming_body: bool
    websocket: bool
    guardrails: bool
    config_push: bool
    metrics_export: bool
    concurrent_requests: U32
    cancellation: bool
    flow_control: bool
    health_reporting: bool


class Limits(Struct):
    max_body_size: U64
    max_concurrency: U32
    preferred_chunk_size: U64


class Capabilities(Struct):
    agent_id: str
    name: str
    version: str
    supported_events: list[int]
    features: Features
    limits: Limits


class HandshakeResponse(Struct):
    protocol_version: U32
    capabilities: Capabilities
    success: bool
    error: str | None = None
    encoding: Literal["json", "msgpack"] = "json"


# Events


class Metadata(Struct):
    correlation_id: str
    request_id: str
    client_ip: str
    client_port: U16
    protocol: str
    timestamp: str
    server_name: str | None = None
    tls_version: str | None = None
    tls_cipher: str | None = None
    route_id: str | None = None
    upstream_id: str | None = None
    traceparent: str | None = None


class RequestHeaders(Struct):
    metadata: Metadata
    method: str
    uri: str
    headers: Headers


class RequestBodyChunk(Struct):
    correlation_id: str
    # Base64, in msgpack too.
    data: str
    is_last: bool
    total_size: U64 | None = None
    chunk_index: U32 = 0
    bytes_received: U64 = 0


class ResponseHeaders(Struct):
    correlation_id: str
    status: U16
    headers: Headers


class ResponseBodyChunk(Struct):
    correlation_id: str
    data: str
    is_last: bool
    total_size: U64 | None = None
    chunk_index: U32 = 0
    bytes_sent: U64 = 0


class RequestComplete(Struct):
    correlation_id: str
    status: U16
    duration_ms: U64
    request_body_size: U64
    response_body_size: U64
    upstream_attempts: U32
    error: str | None = None


class WebSocketFrame(Struct):
    correlation_id: str
    opcode: str
    data: str
    client_to_server: bool
    frame_index: U64
    fin: bool
    client_ip: str
    route_id: str | None = None


class Configure(Struct):
    correlation_id: str = ""
    agent_id: str = ""
    config: Any = None


EVENTS: dict[int, type[Any]] = {
    0x10: RequestHeaders,
    0x11: RequestBodyChunk,
    0x12: ResponseHeaders,
    0x13: ResponseBodyChunk,
    0x14: RequestComplete,
    0x15: WebSocketFrame,
    0x17: Configure,
}


class Cancel(Struct):
    correlation_id: str
    reason: int
    timestamp_ms: U64


class Ping(Struct):
    sequence: U64
    timestamp_ms: U64


# Answers


class Block(Struct):
    status: U16
    body: str | None = None
    headers: dict[str, str] | None = None


class Redirect(Struct):
    url: str
    status: U16


class Challenge(Struct):
    challenge_type: str
    params: dict[str, str]


class Decision(Variants):
    block: Block | UnsetType = UNSET
    redirect: Redirect | UnsetType = UNSET
    challenge: Challenge | UnsetType = UNSET


class Field(Struct):
    name: str
    value: str


class FieldName(Struct):
    name: str


class HeaderOp(Variants):
    set: Field | UnsetType = UNSET
    add: Field | UnsetType = UNSET
    remove: FieldName | UnsetType = UNSET


class Mutation(Struct):
    data: str | None = None
    chunk_index: U32 = 0


class Close(Struct):
    code: U16
    reason: str


class WebSocketDecision(Variants):
    close: Close | UnsetType = UNSET


class Audit(Struct):
    tags: list[str] = []
    rule_ids: list[str] = []
    confidence: float | None = None
    reason_codes: list[str] = []
    custom: dict[str, Any] = {}


class Answer(Struct):
    version: U32
    decision: Literal["allow"] | Decision
    request_headers: list[HeaderOp] = []
    response_headers: list[HeaderOp] = []
    routing_metadata: dict[str, str] = {}
    audit: Audit = msgspec.field(default_factory=Audit)
    needs_more: bool = False
    request_body_mutation: Mutation | None = None
    response_body_mutation: Mutation | None = None
    websocket_decision: Literal["allow", "drop"] | WebSocketDecision | None = None


class Detection(Struct):
    category: str
    description: str
    severity: Literal["low", "medium", "high", "critical"] = "medium"
    confidence: float | None = None
    span: dict[str, U64] | None = None


class Guardrail(Struct):
    detected: bool
    confidence: float = 0.0
    detections: list[Detection] = []
    redacted_content: str | None = None


def decode(kind: Any, payload: bytes, encoding: str) -> Any:
    """What it makes of ``payload``; raises :class:`msgspec.MsgspecError` where it makes nothing of it."""
    if encoding == "json":
        return msgspec.json.decode(payload, type=kind)
    return msgspec.msgpack.decode(payload, type=kind)


def encode(value: Any, encoding: str) -> bytes:
    """``value`` as it spells it."""
    return msgspec.json.encode(value) if encoding == "json" else msgspec.msgpack.encode(value)
