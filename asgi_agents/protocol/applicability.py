"""Which parts of an answer apply to which event.

An answer that allows an event may have only these parts:

=====================  ===============  ================  =====================  ======================  =========
event                  request_headers  response_headers  request_body_mutation  response_body_mutation  skip_body
=====================  ===============  ================  =====================  ======================  =========
request_headers        yes              yes               no                     no                      yes
request_body_chunk     until the app    until the head    yes                    no                      no
                       is called        is sent
response_headers       no               yes               no                     no                      yes
response_body_chunk    no               until the head    no                     yes                     no
                                        is sent
websocket_frame        no               no                of the client's        of the app's            no
configure              no               no                no                     no                      no
guardrail_inspect      no               no                no                     no                      no
request_complete       no               no                no                     no                      no
=====================  ===============  ================  =====================  ======================  =========

The exchange checks whether a head is gone when it applies the answer; this module checks the rest. A message of a
websocket has one direction, so one of the two mutations applies to it; its ``chunk_index`` is the message's
``frame_index``, and text stays text. A mutation whose
``data`` is None changes nothing, and is allowed in any answer. Answers that deny are not checked: nothing passes that
their other parts could change. Their ``response_headers`` are sent with the reply, if there is one.
"""

from collections.abc import Mapping
from typing import Final

from ..errors import AgentProtocolError, NotApplicableError
from .events import EventType, Opcode, WebSocketFrameEvent
from .responses import AgentResponse, BodyMutation, ForgottenMutation
from .validation import number_or_type

#: For each part of an answer, the events that it applies to.
APPLIES_TO: Final[Mapping[str, frozenset[EventType]]] = {
    "request_headers": frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK}),
    "response_headers": frozenset(
        {
            EventType.REQUEST_HEADERS,
            EventType.REQUEST_BODY_CHUNK,
            EventType.RESPONSE_HEADERS,
            EventType.RESPONSE_BODY_CHUNK,
        }
    ),
    "request_body_mutation": frozenset({EventType.REQUEST_BODY_CHUNK, EventType.WEBSOCKET_FRAME}),
    "response_body_mutation": frozenset({EventType.RESPONSE_BODY_CHUNK, EventType.WEBSOCKET_FRAME}),
    "skip_body": frozenset({EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS}),
}
_NAMES: Final[Mapping[str, str]] = {
    "request_body_mutation": "a mutation",
    "response_body_mutation": "a mutation",
    "skip_body": "it",
}
# For each event, the parts that don't apply to it: one look-up for most answers.
_HAS_NO_USE_FOR: Final[Mapping[EventType, tuple[str, ...]]] = {
    event_type: tuple(field for field, events in APPLIES_TO.items() if event_type not in events)
    for event_type in EventType
}


def check_applicable(event_type: EventType, response: AgentResponse) -> None:
    """Raise :class:`NotApplicableError` for a part of a validated answer that does not apply to its event."""
    if not response.is_allow:
        return
    for field in _HAS_NO_USE_FOR[event_type]:
        if changes_something(getattr(response, field)):
            what = _NAMES.get(field, "header operations")
            right = ", ".join(event.value for event in EventType if event in APPLIES_TO[field])
            raise NotApplicableError(
                f"{field} does not apply to {event_type.value}: {what} may only be in answers to {right}"
            )


def check_frame(event: WebSocketFrameEvent, response: AgentResponse) -> None:
    """Check the mutations in a validated answer to a message of a websocket.

    :raises NotApplicableError: for a mutation of a message in the other direction.
    :raises AgentProtocolError: for one of another message, or of text that would be no text any more.
    """
    if not response.is_allow:
        return
    right, wrong = "request_body_mutation", "response_body_mutation"
    if not event.client_to_server:
        right, wrong = wrong, right
    if changes_something(getattr(response, wrong)):
        sender = "client" if event.client_to_server else "app"
        raise NotApplicableError(f"{wrong} does not apply to a message of the {sender}, expected {right}")
    mutation: BodyMutation | None = getattr(response, right)
    if mutation is None or mutation.data is None:
        return
    if mutation.chunk_index != event.frame_index:
        raise AgentProtocolError(
            f"{right}.chunk_index: expected {event.frame_index}, the frame_index of the message, got"
            f" {number_or_type(mutation.chunk_index)}"
        )
    if event.opcode is Opcode.TEXT:
        try:
            mutation.data.decode()
        except UnicodeDecodeError as exc:
            raise AgentProtocolError(
                f"{right}.data: expected UTF-8 for a text message, got {exc.reason} at byte {exc.start}"
            ) from None


def changes_something(given: object) -> bool:
    """Whether a field of an answer asks for anything: header operations, a mutation, or a flag."""
    if isinstance(given, BodyMutation):
        return given.data is not None or isinstance(given, ForgottenMutation)
    return bool(given)
