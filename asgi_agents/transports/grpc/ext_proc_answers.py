"""Events as an Envoy external processor is shown them, and its answers as those of an agent. No I/O.

A processor can say things that an agent can't, and that only a proxy can do: replace ``:path`` or ``:status``, or the
body in answer to the head. These are errors. What Envoy ignores if it was not told otherwise is ignored here too:
changes of ``:method``, ``:scheme``, ``:authority``, ``host``, and of all that begin with ``x-envoy``; and trailers of
gRPC. ``content-length`` is the middleware's own.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from ...errors import AgentProtocolError, NotApplicableError, printable
from ...protocol import (
    AgentResponse,
    AuditMetadata,
    BodyMutation,
    Event,
    EventType,
    HeaderOp,
    Headers,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
)
from ...protocol.validation import REDIRECT_STATUSES, is_redirect_url, is_sendable, is_untouchable
from ..authorization import OF_THE_BODY
from .ext_proc_messages import (
    ATTRIBUTES,
    AUDIT,
    PROTOCOL,
    ROUTING,
    SOURCE_ADDRESS,
    SOURCE_PORT,
    TLS_VERSION,
    HeaderValueOption,
    ProcessingMode,
    Side,
    audit_of_metadata,
    header_map,
    messages,
    plain,
    struct,
)
from .settings import BodySendMode

#: What it can be shown.
CARRIES: Final = frozenset(
    {
        EventType.REQUEST_HEADERS,
        EventType.REQUEST_BODY_CHUNK,
        EventType.RESPONSE_HEADERS,
        EventType.RESPONSE_BODY_CHUNK,
    }
)
ShownEvent = RequestHeadersEvent | RequestBodyChunkEvent | ResponseHeadersEvent | ResponseBodyChunkEvent

_IGNORED: Final = frozenset({":authority", ":method", ":scheme", "content-length", "host"})
_INTERNAL: Final = "x-envoy"
_WITHOUT_BODY: Final = frozenset({204, 205, 304})
# What Envoy sends where the processor names no status, or none that there is (ext_proc.cc).
_DEFAULT_STATUS: Final = 200
_LAST_STATUS: Final = 599
_FORBIDDEN: Final = 403


def side_of_event(event: Event) -> Side:
    """Which half of the exchange it is about."""
    return Side.REQUEST if isinstance(event, RequestHeadersEvent | RequestBodyChunkEvent) else Side.RESPONSE


# Events


def request_of(
    event: ShownEvent, *, begins: frozenset[EventType] | None = None, mode: BodySendMode = "streamed"
) -> Any:
    """The ``ProcessingRequest`` for an event.

    :param begins: it is the first of its stream: the events that are shown, which say what is configured. None: it is
        not the first.
    :param mode: how bodies are sent.
    """
    match event:
        case RequestHeadersEvent():
            request = messages.ProcessingRequest(request_headers=_request_head(event))
        case ResponseHeadersEvent():
            status = (":status", str(event.status).encode())
            head = messages.HttpHeaders(
                headers=header_map([status, *_pairs(event.headers)]), end_of_stream=not announces_body(event)
            )
            request = messages.ProcessingRequest(response_headers=head)
        case RequestBodyChunkEvent():
            body = messages.HttpBody(body=event.data, end_of_stream=event.is_last)
            request = messages.ProcessingRequest(request_body=body)
        case _:
            body = messages.HttpBody(body=event.data, end_of_stream=event.is_last)
            request = messages.ProcessingRequest(response_body=body)
    if begins is not None:
        chosen = ProcessingMode.BodySendMode.Value(mode.upper())
        if EventType.REQUEST_BODY_CHUNK in begins:
            request.protocol_config.request_body_mode = chosen
        if EventType.RESPONSE_BODY_CHUNK in begins:
            request.protocol_config.response_body_mode = chosen
        # Also where there are none, so that the server need not guess.
        request.protocol_config.SetInParent()
    return request


def announces_body(event: RequestHeadersEvent | ResponseHeadersEvent) -> bool:
    """Whether a body may follow the head, as far as that says."""
    length = event.header("content-length")
    if isinstance(event, ResponseHeadersEvent):
        return event.status not in _WITHOUT_BODY and length != "0"
    if length is not None:
        return length != "0"
    return event.header("transfer-encoding") is not None or not event.metadata.protocol.startswith("HTTP/1")


def expects_body(event: RequestHeadersEvent | ResponseHeadersEvent, method: str) -> bool:
    """Whether a body most likely follows the head, so that an answer may wait for it. ``method`` is the request's."""
    if isinstance(event, RequestHeadersEvent) and event.header("content-length") is None:
        # In HTTP/2 a head need not declare anything. Of these methods few requests have a body.
        return announces_body(event) and method not in ("GET", "HEAD", "DELETE", "OPTIONS", "TRACE")
    return announces_body(event) and method != "HEAD"


def _request_head(event: RequestHeadersEvent) -> Any:
    metadata = event.metadata
    pseudo = [
        (":method", event.method.encode()),
        (":scheme", b"http" if metadata.tls_version is None else b"https"),
        (":authority", (event.header("host") or metadata.server_name or "").encode("latin-1", "replace")),
        (":path", event.uri.encode("latin-1", "replace")),
    ]
    fields = [pair for pair in _pairs(event.headers) if pair[0] != "host"]
    return messages.HttpHeaders(headers=header_map([*pseudo, *fields]), end_of_stream=not announces_body(event))


def attributes_of(event: RequestHeadersEvent) -> Any:
    """The attributes of a request, as Envoy has them."""
    metadata = event.metadata
    address = f"[{metadata.client_ip}]" if ":" in metadata.client_ip else metadata.client_ip
    values: dict[str, Any] = {
        PROTOCOL: metadata.protocol,
        SOURCE_ADDRESS: f"{address}:{metadata.client_port}" if address else None,
        SOURCE_PORT: metadata.client_port,
        TLS_VERSION: metadata.tls_version,
        "request.id": metadata.request_id,
    }
    return {ATTRIBUTES: struct({name: value for name, value in values.items() if value})}


def _pairs(headers: Headers) -> Iterable[tuple[str, bytes]]:
    return [(name, value.encode("latin-1", "replace")) for name, values in headers.items() for value in values]


# Answers


class Heads:
    """The names of the fields in the heads of one exchange: some mutations depend on what is there."""

    def __init__(self) -> None:
        self._names: dict[Side, set[str]] = {side: set() for side in Side}

    def note(self, event: RequestHeadersEvent | ResponseHeadersEvent) -> None:
        """This is the head."""
        self._names[side_of_event(event)] = set(event.headers)

    def ops(self, mutation: Any, side: Side) -> tuple[HeaderOp, ...]:
        """A HeaderMutation as operations; raises :class:`AgentProtocolError` for what no agent may change.

        As Envoy does it, fields are removed first.
        """
        there, ops = self._names[side], []
        for given in mutation.remove_headers:
            name = given.lower()
            if _is_ours(name):
                there.discard(name)
                ops.append(HeaderOp.remove(name))
        for option in mutation.set_headers:
            name = option.header.key.lower()
            if not _is_ours(name):
                continue
            kind = _kind(option, name in there)
            if kind is not None:
                value = (option.header.raw_value or option.header.value.encode()).decode("latin-1")
                ops.append(HeaderOp(kind, name, value))
                there.add(name)
        return tuple(ops)


def _is_ours(name: str) -> bool:
    if name in _IGNORED or name.startswith(_INTERNAL):
        return False
    if name.startswith(":"):
        raise AgentProtocolError(f"it changes {printable(name)!r}, which only a proxy can")
    return True


def _kind(option: Any, there: bool) -> Any:
    """``set`` or ``add``; None where nothing is to be done."""
    match option.append_action:
        case HeaderValueOption.ADD_IF_ABSENT:
            return None if there else "set"
        case HeaderValueOption.OVERWRITE_IF_EXISTS:
            return "set" if there else None
        case HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD:
            return "set"
        case _:
            # It is also what a message means that has no action; before it had one, the flag said what to do.
            return "add" if option.append.value else "set"


def common_answer(response: Any, common: Any, side: Side, heads: Heads, *, with_headers: bool = True) -> AgentResponse:
    """What a ``CommonResponse`` says of one message, beside what comes of the body.

    :param with_headers: whether headers may be changed. Envoy takes no notice where they may not.
    """
    ops = heads.ops(common.header_mutation, side) if with_headers else ()
    routing, audit = metadata_of(response)
    return AgentResponse.allow(
        request_headers=ops if side is Side.REQUEST else (),
        response_headers=ops if side is Side.RESPONSE else (),
        routing_metadata=routing,
        audit=audit,
    )


def replaces_message(common: Any) -> bool:
    """Whether an answer to a head is the last about its message.

    :raises NotApplicableError: it has another body.
    """
    if common.status != messages.CommonResponse.CONTINUE_AND_REPLACE:
        return False
    if common.HasField("body_mutation"):
        raise NotApplicableError("CONTINUE_AND_REPLACE: a body can only be replaced in answer to the body")
    return True


def mutation_of(common: Any) -> BodyMutation | None:
    """What becomes of the part of a body that was shown. None: it stays."""
    kind = common.body_mutation.WhichOneof("mutation")
    match kind:
        case "body":
            return BodyMutation(common.body_mutation.body)
        case "clear_body":
            return BodyMutation(b"") if common.body_mutation.clear_body else None
        case None:
            return None
        case _:
            raise AgentProtocolError(f"body_mutation.{kind}: expected body or clear_body, for the mode is STREAMED")


def streamed_of(common: Any) -> tuple[bytes, bool]:
    """A part of a body that may leave, and whether it is the last."""
    kind = common.body_mutation.WhichOneof("mutation")
    if kind != "streamed_response":
        raise AgentProtocolError(
            f"body_mutation.{kind}: expected streamed_response, for the mode is FULL_DUPLEX_STREAMED"
        )
    streamed = common.body_mutation.streamed_response
    return streamed.body, streamed.end_of_stream


def refusal_of(response: Any) -> AgentResponse:
    """An ``immediate_response`` as a block or a redirect."""
    immediate = response.immediate_response
    pairs = [
        (option.header.key.lower(), (option.header.raw_value or option.header.value.encode()).decode("latin-1"))
        for option in immediate.headers.set_headers
    ]
    return refusal(immediate.status.code, pairs, immediate.body, response, details=immediate.details)


def refusal(
    status: int, pairs: Iterable[tuple[str, str]], body: bytes, response: Any, *, details: str = ""
) -> AgentResponse:
    """A reply in the app's place. What of it can't be sent is left out, as is a body that is no text.

    A denial is never turned into a failure, which a fail-open agent would let pass.
    """
    if status < _DEFAULT_STATUS:
        status = _DEFAULT_STATUS
    elif status > _LAST_STATUS:
        status = _FORBIDDEN
    audit = audit_of(response)
    if details and not audit.reason_codes:
        audit = msgspec.structs.replace(audit, reason_codes=(printable(details),))
    headers: dict[str, str] = {}
    others: list[HeaderOp] = []
    for name, value in pairs:
        if not is_sendable(name, value) or is_untouchable(name) or name == "host":
            continue
        if name in headers:
            others.append(HeaderOp.add(name, value))
        else:
            headers[name] = value
    location = headers.get("location")
    if status in REDIRECT_STATUSES and location:
        del headers["location"]
        if not is_redirect_url(location):
            return _without_body(_FORBIDDEN, headers, others, audit)
        ops = [*(HeaderOp.set(name, value) for name, value in headers.items()), *others]
        return AgentResponse.redirect(location, status, response_headers=ops, audit=audit)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return _without_body(status, headers, others, audit)
    if text:
        # It is what the processor has written, and not a message to be put into words for a client.
        headers.setdefault("content-type", "text/plain")
    return AgentResponse.block(status, text, headers=headers, response_headers=others, audit=audit)


def _without_body(
    status: int, headers: Mapping[str, str], others: Iterable[HeaderOp], audit: AuditMetadata
) -> AgentResponse:
    """A denial whose body, which can't be sent, is left out with what describes it."""
    kept = {name: value for name, value in headers.items() if name not in OF_THE_BODY}
    ops = [op for op in others if op.name not in OF_THE_BODY]
    return AgentResponse.block(status, headers=kept, response_headers=ops, audit=audit)


def metadata_of(response: Any) -> tuple[dict[str, str], AuditMetadata]:
    """Dynamic metadata as routing metadata and audit.

    A served agent's own are as they were. All others are named ``namespace.key``; what is no text is JSON.
    """
    if not response.HasField("dynamic_metadata"):
        return {}, AuditMetadata()
    said = plain(response.dynamic_metadata)
    audit = audit_of_metadata(said.pop(AUDIT, None))
    routing: dict[str, str] = {}
    for namespace, values in said.items():
        if isinstance(values, dict):
            prefix = "" if namespace == ROUTING else f"{namespace}."
            routing |= {f"{prefix}{name}": _text(value) for name, value in values.items()}
        else:
            routing[namespace] = _text(values)
    return routing, audit


def audit_of(response: Any) -> AuditMetadata:
    """What a served agent wants recorded."""
    fields = response.dynamic_metadata.fields
    return audit_of_metadata(plain(fields[AUDIT])) if AUDIT in fields else AuditMetadata()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
