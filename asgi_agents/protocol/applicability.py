"""Which parts of an answer apply to which event.

An answer that allows may carry only what its event has a use for:

=====================  ===============  ================  =====================  ======================  =========
event                  request_headers  response_headers  request_body_mutation  response_body_mutation  skip_body
=====================  ===============  ================  =====================  ======================  =========
request_headers        yes              yes               no                     no                      yes
request_body_chunk     until the app    until the head    yes                    no                      no
                       is called        is sent
response_headers       no               yes               no                     no                      yes
response_body_chunk    no               until the head    no                     yes                     no
                                        is sent
websocket_frame        no               no                no                     no                      no
configure              no               no                no                     no                      no
guardrail_inspect      no               no                no                     no                      no
request_complete       no               no                no                     no                      no
=====================  ===============  ================  =====================  ======================  =========

Whether a head is gone is for the exchange to find out when it applies the answer; the rest is checked here. A mutation
whose ``data`` is None changes nothing, and is fine anywhere. An answer that denies is carried out as it is: nothing
passes that its other fields could change, and its ``response_headers`` go out with the reply where there is one.
"""

from collections.abc import Mapping
from typing import Final

from ..errors import NotApplicableError
from .events import EventType
from .responses import AgentResponse, BodyMutation, ForgottenMutation

#: The events whose allowing answers may have the field.
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
    "request_body_mutation": frozenset({EventType.REQUEST_BODY_CHUNK}),
    "response_body_mutation": frozenset({EventType.RESPONSE_BODY_CHUNK}),
    "skip_body": frozenset({EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS}),
}
_NAMES: Final[Mapping[str, str]] = {
    "request_body_mutation": "a mutation",
    "response_body_mutation": "a mutation",
    "skip_body": "it",
}
# The other way round, so that most answers need one look-up.
_HAS_NO_USE_FOR: Final[Mapping[EventType, tuple[str, ...]]] = {
    event_type: tuple(field for field, events in APPLIES_TO.items() if event_type not in events)
    for event_type in EventType
}


def check_applicable(event_type: EventType, response: AgentResponse) -> None:
    """Raise :class:`NotApplicableError` for a part of a checked answer that its event has no use for."""
    if not response.is_allow:
        return
    for field in _HAS_NO_USE_FOR[event_type]:
        if changes_something(getattr(response, field)):
            what = _NAMES.get(field, "header operations")
            right = ", ".join(event.value for event in EventType if event in APPLIES_TO[field])
            raise NotApplicableError(
                f"{field} does not apply to {event_type.value}: {what} may only be in answers to {right}"
            )


def changes_something(given: object) -> bool:
    """Whether a field of an answer asks for anything: header operations, a mutation, or a flag."""
    if isinstance(given, BodyMutation):
        return given.data is not None or isinstance(given, ForgottenMutation)
    return bool(given)
