"""What the failure of a call means for the connection, in words for the log."""

from typing import Final

from ..decision import Verdict
from ..protocol import EventType

_CLOSED: Final = {
    EventType.REQUEST_HEADERS: "the request is refused",
    EventType.REQUEST_BODY_CHUNK: "the request is refused",
    EventType.RESPONSE_HEADERS: "the response is withheld",
    EventType.RESPONSE_BODY_CHUNK: "the response is withheld or broken off",
    EventType.WEBSOCKET_FRAME: "the websocket is closed",
    EventType.GUARDRAIL_INSPECT: "the text is stopped, or the handler that asks gets a GuardrailUnavailableError",
}
_OPEN: Final = {
    EventType.RESPONSE_HEADERS: "the response goes on without it",
    EventType.RESPONSE_BODY_CHUNK: "the response goes on without it",
    EventType.WEBSOCKET_FRAME: "the message goes on without it",
    EventType.GUARDRAIL_INSPECT: "nothing counts as detected",
}
# Where a guardrail has asked, about text that passes.
_WINDOW_CLOSED: Final = "the call is stopped"
_WINDOW_OPEN: Final = "the text goes on unjudged"


def consequence_of(verdict: Verdict) -> str:
    """What comes of a ``verdict`` that is a failure."""
    event_type = verdict.event_type
    if event_type is EventType.REQUEST_COMPLETE:
        return "nothing depends on it"
    if not verdict.enforced:
        return "nothing changes, because this is a shadow agent"
    if verdict.fails_closed:
        closed = _WINDOW_CLOSED if verdict.window else _CLOSED.get(event_type, "the request is refused")
        return f"{closed}, because the agent fails closed"
    opened = _WINDOW_OPEN if verdict.window else _OPEN.get(event_type, "the request goes on without it")
    return f"{opened}, because the agent fails open"
