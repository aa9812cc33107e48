"""Envoy's external authorization over gRPC: ``envoy.service.auth.v3.Authorization/Check``.

What Envoy's filter does with an answer is done here too, apart from what no agent may do: such answers are failures.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from ...errors import AgentError, AgentProtocolError, ConfigurationError, EventTooLargeError
from ...imports.extras import from_extra
from ...observability.trace_context import inject_trace_context
from ...protocol import AgentResponse, EventType, HeaderOp, Headers, RequestHeadersEvent
from ...protocol.headers import as_one_spelling, without_blanks
from ...protocol.target import NO_PATH
from ..authorization import (
    AUTHORIZED_EVENTS,
    HEADS,
    WORD_OF_A_PROXY,
    AuthorizationClient,
    Authorizer,
    bytes_of_text,
    denial,
    is_asked_about,
    is_text,
    refusal_of_input,
    text_of_bytes,
)
from .channel import Channels
from .settings import GrpcSettings

with from_extra("Envoy's protocols", "grpc", ConfigurationError):
    from envoy.config.core.v3.base_pb2 import HeaderValueOption
    from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, OkHttpResponse
    from google.protobuf.json_format import Error as JsonError
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError
    from google.protobuf.struct_pb2 import Struct

SERVICE: Final = "envoy.service.auth.v3.Authorization"
METHOD: Final = f"/{SERVICE}/Check"
#: Says whether the body that is shown is only the beginning.
PARTIAL_BODY: Final = "x-envoy-auth-partial-body"

_OK: Final = 0
# Of a content-length: int() refuses what is much longer, and the field is an int64.
_MAX_DIGITS: Final = 18


class ExtAuthzProtocol:
    """What is spoken with an external authorizer for Envoy."""

    # A configuration goes out with each question.
    carries = AUTHORIZED_EVENTS | {EventType.CONFIGURE}
    events: frozenset[EventType] | None = None
    default_events = HEADS
    learns_events = False
    several = False

    def bind(
        self,
        settings: GrpcSettings,
        agent_id: str,
        *,
        events: frozenset[EventType] | None,
        config: Any,
        max_concurrent_calls: int,
    ) -> AuthorizationClient:
        """A client for one agent. ``config`` is sent with each question, as its context extensions.

        :raises ConfigurationError: for a ``config`` that is no mapping of strings to strings.
        """
        where = f"AgentConfig({agent_id!r})"
        authorizer = GrpcAuthorizer(settings, _context_extensions(where, config))
        return ExtAuthzClient(where, authorizer, HEADS if events is None else events)


PROTOCOL: Final = ExtAuthzProtocol()


class GrpcAuthorizer(Authorizer):
    """An external authorizer.

    :param context_extensions: sent with each question.
    """

    kind = "grpc"
    remote = True

    def __init__(self, settings: GrpcSettings, context_extensions: Mapping[str, str]) -> None:
        self.context_extensions = context_extensions
        self._settings = settings
        self._channels = Channels(settings)

    @property
    def address(self) -> str:
        return self._settings.where

    async def check(
        self, head: RequestHeadersEvent, body: bytes | None, deadline: float = math.inf, *, more: bool = False
    ) -> AgentResponse:
        if not is_asked_about(head.uri):
            return refusal_of_input(NO_PATH)
        message = encode_check(
            head, body, scheme=self._settings.scheme, context_extensions=self.context_extensions, more=more
        )
        if len(message) > self._settings.max_event_bytes:
            raise EventTooLargeError(f"the question has more than max_event_bytes={self._settings.max_event_bytes}")
        trace_context: dict[str, str] = {}
        inject_trace_context(trace_context)
        channel = await self._channels.get()
        answer = await channel.unary(
            METHOD, message, deadline=deadline, metadata=(*self._settings.metadata.pairs, *trace_context.items())
        )
        return decode_check(answer, head)

    async def connect(self) -> None:
        channel = await self._channels.get()
        await channel.ready(time.monotonic() + self._settings.connect_timeout)

    async def aclose(self) -> None:
        await self._channels.aclose()

    async def retire(self) -> None:
        await self._channels.aclose_everywhere()


class ExtAuthzClient(AuthorizationClient):
    """Its configuration goes out with each question."""

    configures_itself = True

    def __init__(self, where: str, authorizer: GrpcAuthorizer, events: frozenset[EventType]) -> None:
        super().__init__(where, authorizer, events)
        self._where = where
        self._asked = authorizer

    async def push_config(self, config: Any) -> None:
        try:
            self._asked.context_extensions = _context_extensions(self._where, config)
        except ConfigurationError as exc:
            raise AgentError(str(exc)) from exc


def _context_extensions(where: str, config: object) -> Mapping[str, str]:
    if config is None:
        return {}
    if not isinstance(config, Mapping) or not all(isinstance(text, str) for item in config.items() for text in item):
        # Not the values: there may be secrets among them.
        raise ConfigurationError(f"{where}: config, expected strings by name, which are sent as context extensions")
    return dict(config)


def encode_check(
    head: RequestHeadersEvent,
    body: bytes | None,
    *,
    scheme: str | None,
    context_extensions: Mapping[str, str],
    more: bool = False,
) -> bytes:
    """A CheckRequest.

    The address of the server is left out: the agent protocol has none. The pseudo-headers are among the headers, as
    Envoy has them there. What only proxies say is not passed on from a client, such as its certificate in
    ``x-forwarded-client-cert``: Envoy takes the like out at the edge. Where it comes from, and how, are fields.

    A header whose bytes are no UTF-8 is there twice: as text for services that read nothing else, and in ``header_map``
    as it is.

    :param body: all of it; None: it is not shown.
    :param scheme: ``http`` or ``https``; None: as the event tells.
    :param more: there is a body, which another question has. Envoy says the same of one that it shows only the
        beginning of.
    """
    request = CheckRequest()
    attributes = request.attributes
    metadata = head.metadata
    if metadata.client_ip:
        address = attributes.source.address.socket_address
        address.address, address.port_value = metadata.client_ip, metadata.client_port
    try:
        attributes.request.time.FromDatetime(datetime.fromisoformat(metadata.timestamp))
    except ValueError:
        # An event that was made by hand may have any.
        attributes.request.ClearField("time")
    http = attributes.request.http
    http.id = metadata.request_id
    http.method = head.method
    http.path = text_of_bytes(head.uri)
    http.host = text_of_bytes(head.header("host") or metadata.server_name or "")
    http.scheme = scheme or ("http" if metadata.tls_version is None else "https")
    http.protocol = metadata.protocol
    http.size = _size(head) if body is None else len(body)
    for name, values in head.headers.items():
        if not name.startswith(":") and not WORD_OF_A_PROXY.match(as_one_spelling(name)):
            http.headers[text_of_bytes(name)] = text_of_bytes(", ".join(values))
            if not is_text(", ".join(values)):
                for value in values:
                    http.header_map.headers.add(key=name, raw_value=value.encode("latin-1"))
    http.headers[":method"] = http.method
    http.headers[":path"] = http.path
    http.headers[":authority"] = http.host
    http.headers[":scheme"] = http.scheme
    if more:
        http.headers[PARTIAL_BODY] = "true"
    if body is not None:
        http.headers[PARTIAL_BODY] = "false"
        try:
            http.body = body.decode()
        except UnicodeDecodeError:
            http.raw_body = body
    attributes.context_extensions.update(context_extensions)
    message: bytes = request.SerializeToString()
    return message


def _size(head: RequestHeadersEvent) -> int:
    """The size of the body as the head declares it; -1 where it is not known, as the field has it."""
    declared = head.header("content-length")
    if declared is not None and declared.isascii() and declared.isdigit() and len(declared) <= _MAX_DIGITS:
        return int(declared)
    return -1 if "transfer-encoding" in head.headers or not head.metadata.protocol.startswith("HTTP/1") else 0


def decode_check(message: bytes, head: RequestHeadersEvent) -> AgentResponse:
    """The answer in a CheckResponse to the question about ``head``.

    :raises AgentError: the service says that it has failed.
    :raises AgentProtocolError: for what is no CheckResponse, or has something that no agent may do; it names the field.
    """
    try:
        response = CheckResponse.FromString(message)
    except DecodeError as exc:
        raise AgentProtocolError("the answer is no envoy.service.auth.v3.CheckResponse") from exc
    kind = response.WhichOneof("http_response")
    if response.status.code == _OK:
        if kind not in (None, "ok_response"):
            # Envoy takes it for an allow. Whoever has written this has most likely forgotten the status.
            raise AgentProtocolError(f"{kind}: beside status OK, expected another status or ok_response")
        return _allowed(response, head.headers)
    if kind == "error_response":
        raise AgentError(f"the authorization service has failed: status {response.status.code}")
    denied = response.denied_response
    has_body = kind == "denied_response"
    answer = denial(
        denied.status.code or 403,
        denied.body if has_body else None,
        _of_denial(denied.headers),
    )
    try:
        metadata = _routing_metadata(response.dynamic_metadata)
    except AgentProtocolError:
        # It is a denial all the same.
        metadata = {}
    if not metadata:
        return answer
    return AgentResponse(decision=answer.decision, response_headers=answer.response_headers, routing_metadata=metadata)


def _allowed(response: CheckResponse, headers: Headers) -> AgentResponse:
    ok: OkHttpResponse = response.ok_response
    for field in ("query_parameters_to_set", "query_parameters_to_remove"):
        if getattr(ok, field):
            raise AgentProtocolError(f"ok_response.{field}: no agent may change the target of a request")
    request = list(_operations("ok_response.headers", ok.headers, headers))
    # Last, as Envoy does it. It ignores these too, without which there would be no request.
    request += [
        HeaderOp.remove(name) for name in ok.headers_to_remove if not name.startswith(":") and name.lower() != "host"
    ]
    return AgentResponse.allow(
        request_headers=request,
        response_headers=list(_operations("ok_response.response_headers_to_add", ok.response_headers_to_add, None)),
        # The older field overrules the other, as in Envoy.
        routing_metadata=_routing_metadata(
            ok.dynamic_metadata if ok.HasField("dynamic_metadata") else response.dynamic_metadata
        ),
    )


def _operations(field: str, options: Iterable[HeaderValueOption], headers: Headers | None) -> Iterator[HeaderOp]:
    """Changes to ``headers``; None: to headers that nobody knows yet.

    An option that does not say what to do replaces what is there, as the documentation of the service has it: nothing
    that a client has sent stays beside it. Further ones of its name are added to it. A header of a response is added.
    """
    replaced: set[str] = set()
    for option in options:
        name, value = option.header.key.lower(), _value(option)
        if name.startswith(":"):
            raise AgentProtocolError(f"{field}: no agent may change the pseudo-header {name!r:.40}")
        action = option.append_action
        if option.HasField("append"):
            adds = option.append.value
        elif action in _CONDITIONAL:
            if headers is None:
                named = HeaderValueOption.HeaderAppendAction.Name(action)
                raise AgentProtocolError(f"{field}: {named}, of headers that are not known yet")
            if (name in headers or name in replaced) is (action == HeaderValueOption.ADD_IF_ABSENT):
                continue
            adds = False
        elif action in (HeaderValueOption.APPEND_IF_EXISTS_OR_ADD, HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD):
            # The first action has the number 0, so that it can't be told from none.
            unsaid = action == HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
            adds = unsaid and (headers is None or name in replaced)
        else:
            raise AgentProtocolError(f"{field}: append_action {action} is not known")
        replaced.add(name)
        yield HeaderOp.add(name, value) if adds else HeaderOp.set(name, value)


_CONDITIONAL: Final = (HeaderValueOption.ADD_IF_ABSENT, HeaderValueOption.OVERWRITE_IF_EXISTS)


def _of_denial(options: Iterable[HeaderValueOption]) -> list[tuple[str, str]]:
    """Names and values of headers of a reply that has none before."""
    fields: list[tuple[str, str]] = []
    for option in options:
        name = option.header.key.lower()
        explicit = option.HasField("append")
        replaces = not option.append.value if explicit else option.append_action in _REPLACING
        if replaces:
            fields = [field for field in fields if field[0] != name]
        fields.append((name, _value(option)))
    return fields


_REPLACING: Final = (HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD, HeaderValueOption.OVERWRITE_IF_EXISTS)


def _value(option: HeaderValueOption) -> str:
    header = option.header
    return without_blanks(header.raw_value.decode("latin-1") if header.raw_value else bytes_of_text(header.value))


def _routing_metadata(metadata: Struct) -> dict[str, str]:
    """Texts as they are, everything else as JSON; raises :class:`AgentProtocolError` for what JSON does not have."""
    try:
        found: Mapping[str, Any] = MessageToDict(metadata)
    except (JsonError, ValueError) as exc:
        raise AgentProtocolError("dynamic_metadata: expected values as JSON has them") from exc
    return {
        name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for name, value in found.items()
    }
