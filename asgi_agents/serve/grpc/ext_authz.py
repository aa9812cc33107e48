"""An agent as an external authorizer for Envoy, over gRPC."""

from collections.abc import Iterable
from typing import Final

from ...agent import Agent
from ...errors import AgentProtocolError, ConfigurationError
from ...exchange.scope import new_id
from ...imports.extras import from_extra
from ...protocol import HeaderOp, Headers, RequestHeadersEvent, RequestMetadata
from ...transports.authorization import bytes_of_text, is_text, text_of_bytes
from ...transports.grpc.ext_authz import PARTIAL_BODY, SERVICE
from ..authorization import Authorizations, Permission, ShownBody, final_headers
from ..held import MAX_HELD_BYTES
from ..hooks import NoAnswer, logger, require_positive
from .service import GrpcService, Rpc, StatusError, values_of

with from_extra("Envoy's protocols", "grpc", ConfigurationError):
    from envoy.config.core.v3.base_pb2 import HeaderValueOption
    from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
    from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
    from google.protobuf.message import DecodeError
    from google.protobuf.struct_pb2 import Struct

# google.rpc.Code.
_PERMISSION_DENIED: Final = 7
_UNAUTHENTICATED: Final = 16
_CALLER: Final = ("traceparent", "tracestate")


class ExtAuthzService(GrpcService):
    """``envoy.service.auth.v3.Authorization``, by an agent.

    Envoy shows it a request once, its body too where the filter has ``with_request_body``. Where the agent fails, or
    answers what Envoy can't be told, the call ends with an error, so that the filter's ``failure_mode_allow`` decides.

    :param max_concurrency: how many questions may be at work at a time; the rest wait.
    :param max_held_bytes: the bytes of questions without an answer. Beyond them, questions are refused.
    :raises ConfigurationError: for an agent that would never be asked.
    """

    name = SERVICE

    def __init__(self, agent: Agent, *, max_concurrency: int = 100, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        require_positive("ext_authz", "max_held_bytes", max_held_bytes)
        self._authorizations = Authorizations("ext_authz", agent, max_concurrency)
        self._max_held_bytes = max_held_bytes
        self._held = 0
        self.unary = {"Check": self._check}

    async def _check(self, message: bytes, rpc: Rpc) -> bytes:
        if self._held + len(message) > self._max_held_bytes:
            raise StatusError("RESOURCE_EXHAUSTED", "the agent has too many questions to answer")
        self._held += len(message)
        try:
            return await self._answer(message, rpc)
        finally:
            self._held -= len(message)

    async def _answer(self, message: bytes, rpc: Rpc) -> bytes:
        try:
            head, body = decode_question(message)
        except AgentProtocolError as exc:
            raise StatusError("INVALID_ARGUMENT", str(exc)) from exc
        try:
            permission = await self._authorizations.ask(head, body, values_of(rpc.metadata, _CALLER))
            return encode_permission(permission, head.headers)
        except AgentProtocolError as exc:
            logger.error("%s: the answer can't be sent: %s", self.name, exc)
            raise StatusError("INTERNAL", "the agent's answer can't be sent to Envoy") from exc
        except NoAnswer as exc:
            raise StatusError("INTERNAL", str(exc)) from exc


def decode_question(message: bytes) -> tuple[RequestHeadersEvent, ShownBody | None]:
    """The head and the body that a CheckRequest is about.

    :raises AgentProtocolError: it is no CheckRequest, or one that is about something else than an HTTP request.
    """
    try:
        attributes = CheckRequest.FromString(message).attributes
    except DecodeError as exc:
        raise AgentProtocolError(f"expected an {SERVICE.rpartition('.')[0]}.CheckRequest") from exc
    http = attributes.request.http
    if not http.method or not http.path:
        raise AgentProtocolError("expected attributes.request.http with a method and a path")
    headers = _headers_of(http)
    partial = any(value.strip().lower() != "false" for value in headers.get(PARTIAL_BODY, ()))
    data = http.raw_body or http.body.encode()
    body = ShownBody(data, partial) if data or PARTIAL_BODY in headers else None
    try:
        timestamp = attributes.request.time.ToJsonString()
    except ValueError as exc:
        raise AgentProtocolError("attributes.request.time: expected a moment of the years 1 to 9999") from exc
    peer = attributes.source.address.socket_address
    head = RequestHeadersEvent(
        metadata=RequestMetadata(
            correlation_id=new_id(),
            request_id=headers.first("x-request-id") or http.id,
            client_ip=peer.address,
            client_port=peer.port_value,
            server_name=bytes_of_text(http.host) or None,
            protocol=http.protocol or "HTTP/1.1",
            timestamp=timestamp,
            traceparent=headers.first("traceparent"),
        ),
        method=http.method,
        uri=bytes_of_text(http.path),
        headers=headers,
    )
    return head, body


def _headers_of(http: AttributeContext.HttpRequest) -> Headers:
    """The fields of a request, as HTTP/1.1 has them: the host is one of them, and the pseudo-headers are none."""
    fields: dict[str, list[str]] = {}
    for name, value in http.headers.items():
        fields.setdefault(bytes_of_text(name.lower()), []).append(bytes_of_text(value))
    raw: dict[str, list[str]] = {}
    for header in http.header_map.headers:
        value = header.raw_value.decode("latin-1") if header.raw_value else bytes_of_text(header.value)
        raw.setdefault(bytes_of_text(header.key.lower()), []).append(value)
    # Where one is there both as text and as it is, it is not another field.
    fields |= raw
    fields = {name: values for name, values in fields.items() if not name.startswith(":")}
    if http.host:
        # The authority says where a request goes, and a Host beside it does not (RFC 9113, section 8.3.1).
        fields["host"] = [bytes_of_text(http.host)]
    return Headers(fields)


def encode_permission(permission: Permission, headers: Headers) -> bytes:
    """A CheckResponse. ``headers`` are those of the request.

    :raises AgentProtocolError: for what Envoy can't be told.
    """
    response = CheckResponse()
    reply = permission.reply
    try:
        metadata = Struct()
        metadata.update(permission.routing_metadata)
        if permission.routing_metadata:
            response.dynamic_metadata.CopyFrom(metadata)
    except ValueError as exc:
        # A refusal is one without it too, and an error may let the request pass.
        if reply is None:
            raise AgentProtocolError("routing_metadata: expected texts that UTF-8 can carry") from exc
    if reply is not None:
        response.status.code = _UNAUTHENTICATED if reply.status == 401 else _PERMISSION_DENIED
        denied = response.denied_response
        denied.status.code = reply.status
        denied.body = reply.body.decode()
        for key, field in reply.headers:
            if key != b"content-length":
                option = _option(key.decode("latin-1"), field.decode("latin-1"))
                option.append_action = HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
                denied.headers.append(option)
        return _encoded(response)
    response.status.code = 0
    ok = response.ok_response
    for final in final_headers(permission.request_headers):
        if not final.values:
            ok.headers_to_remove.append(final.name)
        for index, value in enumerate(final.values):
            option = _exact("request_headers", final.name, value)
            # Envoy appends to headers only that are there.
            if index == 0 and (final.replaces or final.name not in headers):
                option.append_action = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
            else:
                option.append.value = True
            ok.headers.append(option)
    ok.response_headers_to_add.extend(_added(permission.response_headers))
    return _encoded(response)


def _encoded(response: CheckResponse) -> bytes:
    message: bytes = response.SerializeToString()
    return message


def _added(ops: Iterable[HeaderOp]) -> Iterable[HeaderValueOption]:
    for final in final_headers(ops):
        if not final.values:
            raise AgentProtocolError(f"response_headers: {final.name!r} removed, and Envoy only sets and adds")
        for index, value in enumerate(final.values):
            option = _exact("response_headers", final.name, value)
            replaces = index == 0 and final.replaces
            option.append_action = (
                HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD if replaces else HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
            )
            yield option


def _exact(field: str, name: str, value: str) -> HeaderValueOption:
    if not is_text(value):
        # Envoy sends UTF-8, and up to 1.40 takes no notice of `raw_value`.
        raise AgentProtocolError(f"{field}: the value of {name!r} is no UTF-8, and Envoy takes no other here")
    return _option(name, value)


def _option(name: str, value: str) -> HeaderValueOption:
    option = HeaderValueOption()
    option.header.key = name.lower()
    option.header.value = text_of_bytes(value)
    return option
