"""What an agent says by raising an exception instead of returning an answer.

==========================================  ==================================================================
raised                                      means
==========================================  ==================================================================
:class:`BadInput`                           a block with its status and message, reason code ``bad_input``
``HTTPException``, 400 to 499               a block with that status, and the detail and headers of the exception
``HTTPException``, 3xx with ``location``    a redirect; its other headers go out with it
``WebSocketException``                      in answers to websocket messages and request heads: a close
anything else                               an error of the agent
==========================================  ==================================================================

In answer to a websocket message each of them is a close, 1008 unless it is a ``WebSocketException``. An
``HTTPException`` or ``WebSocketException`` in answer to ``configure``, ``guardrail_inspect`` or ``request_complete`` is
an error: nobody is there to be sent a response. :class:`BadInput` means there what a block means there: the
configuration is refused, something was detected, and at the end of a request it is recorded and changes nothing.

Only the exception that leaves the hook counts, not what has caused it. Of an exception group the first of these
exceptions counts: a denial beats an error, as it does among agents. The answer is checked like one that was returned.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from starlette.exceptions import HTTPException, WebSocketException

from ..errors import AgentError, AgentProtocolError, AgentsError, BadInput
from ..messages.places import raised_by
from ..protocol import AgentResponse, AuditMetadata, Encoding, EventType, HeaderOp
from ..protocol.codec import encode_value
from ..protocol.validation import number_or_type

_BAD_INPUT: Final = AuditMetadata(reason_codes=("bad_input",))
# A client waits for a response, or for the next message.
_CLIENT_WAITS: Final = frozenset(
    {
        EventType.REQUEST_HEADERS,
        EventType.REQUEST_BODY_CHUNK,
        EventType.RESPONSE_HEADERS,
        EventType.RESPONSE_BODY_CHUNK,
        EventType.WEBSOCKET_FRAME,
    }
)
# There may be a websocket to close: the head of a request can be a handshake.
_MAY_CLOSE_WEBSOCKET: Final = frozenset({EventType.REQUEST_HEADERS, EventType.WEBSOCKET_FRAME})
_POLICY_VIOLATION: Final = 1008


def answer_raised(exc: Exception, event_type: EventType, hook: object) -> AgentResponse | None:
    """The answer that ``hook`` has given by raising ``exc``, or None where that is an error like any other.

    :raises AgentError: for one of the exceptions that can be answers, where this one can't be. The message says why.
    """
    if not isinstance(exc, BadInput | HTTPException | WebSocketException | ExceptionGroup):
        return None
    fault: str | None = None
    for leaf in _leaves(exc):
        answer = _answer(leaf, event_type)
        if isinstance(answer, AgentResponse):
            return answer
        if answer is not None and fault is None:
            fault = f"{raised_by(leaf, hook)}{answer}"
    if fault is not None:
        raise AgentError(fault) from exc
    return None


def _leaves(exc: Exception) -> Iterator[Exception]:
    waiting = [exc]
    while waiting:
        leaf = waiting.pop()
        if isinstance(leaf, ExceptionGroup):
            waiting += reversed(leaf.exceptions)
        else:
            yield leaf


def _answer(exc: Exception, event_type: EventType) -> AgentResponse | str | None:
    """An answer, or what is wrong with one, to be said behind what was raised where."""
    match exc:
        case BadInput(message=message, status=status):
            if event_type is EventType.WEBSOCKET_FRAME:
                return AgentResponse.websocket_close(_POLICY_VIOLATION, message or "Bad input", audit=_BAD_INPUT)
            return AgentResponse.block(status, message, audit=_BAD_INPUT)
        case AgentsError():
            # Such as GuardrailUnavailableError, which is an HTTPException too: that another agent has failed.
            return None
        case HTTPException():
            return _answer_of_http(exc, event_type)
        case WebSocketException():
            if event_type not in _MAY_CLOSE_WEBSOCKET:
                return f", which is no answer to {event_type.value}"
            return AgentResponse.websocket_close(exc.code, exc.reason)
        case _:
            return None


def _answer_of_http(exc: HTTPException, event_type: EventType) -> AgentResponse | str:
    status: object = exc.status_code
    headers: object = {} if exc.headers is None else exc.headers
    if event_type not in _CLIENT_WAITS:
        return f", which is no answer to {event_type.value}"
    # Also a member of http.HTTPStatus.
    status = int(status) if isinstance(status, int) else status
    if not isinstance(status, int) or not 300 <= status <= 499:
        got = number_or_type(status)
        return f" with status {got}; 4xx is an answer, and 3xx with a location header"
    if not isinstance(headers, Mapping) or not all(isinstance(text, str) for item in headers.items() for text in item):
        return " whose headers are no mapping of strings to strings"
    if status < 400:
        return _redirect(exc, status, headers, event_type)
    if event_type is EventType.WEBSOCKET_FRAME:
        reason = exc.detail if isinstance(exc.detail, str) else ""
        return AgentResponse.websocket_close(_POLICY_VIOLATION, reason or "Blocked")
    return _block(exc, status, headers)


def _redirect(
    exc: HTTPException, status: int, headers: Mapping[str, str], event_type: EventType
) -> AgentResponse | str:
    location = next((value for name, value in headers.items() if name.lower() == "location"), None)
    if location is None:
        return f" with status {status} and no location header, expected one"
    if event_type is EventType.WEBSOCKET_FRAME:
        return AgentResponse.websocket_close(_POLICY_VIOLATION, "Redirected")
    others = [HeaderOp.set(name, value) for name, value in headers.items() if name.lower() != "location"]
    return AgentResponse.redirect(location, status, response_headers=others)


def _block(exc: HTTPException, status: int, headers: Mapping[str, str]) -> AgentResponse | str:
    detail: object = exc.detail
    if isinstance(detail, str | None):
        return AgentResponse.block(status, detail, headers=dict(headers))
    # As FastAPI answers it.
    try:
        body = encode_value({"detail": detail}, Encoding.JSON, "detail").decode()
    except AgentProtocolError as fault:
        return f": {fault}"
    if not any(name.lower() == "content-type" for name in headers):
        headers = {"content-type": "application/json", **headers}
    return AgentResponse.block(status, body, headers=dict(headers))
