"""What both ends of Envoy's external processing make of its messages (``envoy.service.ext_proc.v3``). No I/O.

The stubs take long to import: import this where an external processor is reached or served, and nowhere else.
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final

from ...errors import AgentProtocolError, ConfigurationError
from ...imports.extras import from_extra
from ...protocol import AuditMetadata

with from_extra("Envoy's protocols", "grpc", ConfigurationError):
    from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, HeaderValueOption
    from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
    from envoy.service.ext_proc.v3 import external_processor_pb2 as messages
    from google.protobuf.empty_pb2 import Empty
    from google.protobuf.message import DecodeError, EncodeError
    from google.protobuf.struct_pb2 import Struct
    from google.protobuf.unknown_fields import UnknownFieldSet

__all__ = [
    "HeaderMap",
    "HeaderValue",
    "HeaderValueOption",
    "ProcessingMode",
    "Struct",
    "messages",
]

METHOD: Final = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"

#: The namespaces of the dynamic metadata in which a served agent's routing metadata and audit are. The attributes of a
#: request are in the one that Envoy's filter has for them.
ROUTING: Final = "asgi_agents"
AUDIT: Final = "asgi_agents.audit"
ATTRIBUTES: Final = "envoy.filters.http.ext_proc"

#: Envoy sends the attributes of a request that its configuration names in ``request_attributes``. These are those that
#: a served agent makes something of, and that a client sends (https://www.envoyproxy.io/docs/envoy/latest/
#: intro/arch_overview/advanced/attributes).
SOURCE_ADDRESS: Final = "source.address"
SOURCE_PORT: Final = "source.port"
PROTOCOL: Final = "request.protocol"
TLS_VERSION: Final = "connection.tls_version"

RawHeaders = list[tuple[bytes, bytes]]


class Side(Enum):
    """The two halves of an exchange: messages of each are in order, and those of one don't wait for the other's."""

    REQUEST = "request"
    RESPONSE = "response"

    @property
    def other(self) -> "Side":
        """The other one."""
        return Side.RESPONSE if self is Side.REQUEST else Side.REQUEST


_SIDES: Final[Mapping[str | None, Side]] = {
    f"{side.value}_{part}": side for side in Side for part in ("headers", "body", "trailers")
}


def side_of(kind: str | None) -> Side | None:
    """The side that a message of that kind is about; None where it is about neither, or of no known kind."""
    return _SIDES.get(kind)


def decode(kind: Any, message: bytes) -> Any:
    """A message from the wire; raises :class:`AgentProtocolError` for what is none."""
    try:
        return kind.FromString(message)
    except DecodeError:
        raise AgentProtocolError(f"a message is no {kind.DESCRIPTOR.name}") from None


# A reply that comes in pieces. Its field is newer than the stubs of xds-protos up to 1.85 (external_processor.proto).
_STREAMED_REPLY: Final = 11
# Beyond it a float has gaps between whole numbers, and most encoders of JSON take no such int.
_MOST_EXACT: Final = 2**53
_LENGTH_DELIMITED: Final = 2
_PARTS_OF_REPLY: Final[Mapping[int, Any]] = {
    1: messages.HttpHeaders,
    2: messages.StreamedBodyResponse,
    3: HeaderMap,
}


def streamed_reply(response: Any) -> Any | None:
    """The head, a part of the body or the trailers of a ``streamed_immediate_response``; None where it is none."""
    whole = Empty.FromString(response.SerializeToString())
    for number, data in _fields(whole):
        if number == _STREAMED_REPLY:
            for part, inner in _fields(decode(Empty, data)):
                if part in _PARTS_OF_REPLY:
                    return decode(_PARTS_OF_REPLY[part], inner)
    return None


def make_streamed_reply(part: Any) -> Any:
    """The reverse."""
    number = next(number for number, kind in _PARTS_OF_REPLY.items() if isinstance(part, kind))
    inner = _field(number, part.SerializeToString())
    return messages.ProcessingResponse.FromString(_field(_STREAMED_REPLY, inner))


def _fields(message: Any) -> Iterable[tuple[int, bytes]]:
    """The fields of a message whose descriptor has none, as far as they are bytes or messages."""
    unknown = UnknownFieldSet(message)
    fields = [unknown[index] for index in range(len(unknown))]
    return [(field.field_number, field.data) for field in fields if field.wire_type == _LENGTH_DELIMITED]


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes on the wire (https://protobuf.dev/programming-guides/encoding)."""
    size = bytearray()
    rest = len(data)
    while rest > 0x7F:
        size.append(rest & 0x7F | 0x80)
        rest >>= 7
    size.append(rest)
    return bytes((number << 3 | _LENGTH_DELIMITED,)) + size + data


# Headers


def pairs_of(headers: Any) -> RawHeaders:
    """The fields of a HeaderMap. Envoy writes a value as bytes, or as text where ``send_header_raw_value`` is off."""
    return [
        (field.key.lower().encode("utf-8", "surrogatepass"), field.raw_value or field.value.encode())
        for field in headers.headers
    ]


def are_raw(headers: Any) -> bool:
    """Whether the values of a HeaderMap are written as bytes, as far as any is written."""
    for field in headers.headers:
        if field.value:
            return False
        if field.raw_value:
            # It writes all of them in the same way.
            return True
    return True


def header_map(pairs: Iterable[tuple[str, bytes]]) -> Any:
    """A HeaderMap, as Envoy writes it."""
    return HeaderMap(headers=[HeaderValue(key=name, raw_value=value) for name, value in pairs])


def first(pairs: RawHeaders, name: bytes) -> str:
    """The first value of a field, or an empty str."""
    return next((value.decode("latin-1") for key, value in pairs if key == name), "")


# Metadata


def struct(values: Mapping[str, Any]) -> Any:
    """A protobuf Struct; what JSON could not carry raises :class:`AgentProtocolError`."""
    made = Struct()
    try:
        made.update(values)
        made.SerializeToString()
    except (ValueError, TypeError, AttributeError, EncodeError, RecursionError) as exc:
        raise AgentProtocolError(f"metadata: {type(exc).__name__}, expected values as JSON has them") from None
    return made


def plain(value: Any) -> Any:
    """A Struct, or a value in one, in Python's own types. Whole numbers are ints, as they were before."""
    if isinstance(value, Struct):
        return {name: plain(item) for name, item in value.fields.items()}
    match value.WhichOneof("kind"):
        case "struct_value":
            return plain(value.struct_value)
        case "list_value":
            return [plain(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _MOST_EXACT else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def metadata_of_audit(audit: AuditMetadata) -> dict[str, Any]:
    """What an agent wants recorded, for the dynamic metadata: Envoy's access log can write it."""
    said: dict[str, Any] = {}
    for name in ("tags", "rule_ids", "reason_codes"):
        values = getattr(audit, name)
        if values:
            said[name] = list(values)
    if audit.confidence is not None:
        said["confidence"] = audit.confidence
    if audit.custom:
        said["custom"] = dict(audit.custom)
    return said


def audit_of_metadata(said: Any) -> AuditMetadata:
    """The reverse. What is of another shape is left out: it is nobody's verdict."""
    if not isinstance(said, dict):
        return AuditMetadata()

    def texts(name: str) -> tuple[str, ...]:
        values = said.get(name)
        return tuple(item for item in values if isinstance(item, str)) if isinstance(values, list) else ()

    confidence, custom = said.get("confidence"), said.get("custom")
    return AuditMetadata(
        tags=texts("tags"),
        rule_ids=texts("rule_ids"),
        reason_codes=texts("reason_codes"),
        confidence=confidence if type(confidence) in (int, float) else None,
        custom=custom if isinstance(custom, dict) else {},
    )
