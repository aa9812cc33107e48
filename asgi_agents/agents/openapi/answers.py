"""What is answered to what does not conform."""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

from ...errors import ConfigurationError
from ...messages.naming import named
from ...protocol import AgentResponse, AuditMetadata, RequestHeadersEvent

_ACTIONS: Final = ("block", "report", "off")
_UNDOCUMENTED: Final = ("pass", "block")
_HEADERS: Final = {"content-type": "application/problem+json"}
_REQUEST: Final = "The request does not conform to the description of the API"
_RESPONSE: Final = "The response does not conform to the description of the API"
# Some versions of Python have older names.
_TITLES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}


class Violation(NamedTuple):
    """Where a request or response does not conform. It has nothing of what was sent.

    :ivar place: ``path``, ``query``, ``header``, ``cookie``, ``body``, or another reason code.
    :ivar at: the name of a parameter, or a JSON pointer into the body, of names that the schema has and of indices.
    :ivar problem: ``missing`` or ``invalid``, or what else is wrong.
    :ivar rule: the pointer to what it breaks in the description.
    :ivar keyword: the keyword of JSON Schema in that; empty where it is not clear.
    :ivar expected: the media types that there may be.
    """

    place: str
    at: str
    problem: str
    rule: str = ""
    status: int = 422
    keyword: str = ""
    expected: Sequence[str] = ()


#: The agent need not be shown the body.
SKIP: Final = AgentResponse.allow(skip_body=True)
#: Not all of a body is there: it waits.
HOLD: Final = AgentResponse.block(422, needs_more=True)
UNDOCUMENTED: Final = Violation("undocumented", "", "undocumented", status=404)
UNREADABLE_PATH: Final = Violation("path", "", "unreadable", status=400)
#: Something that is not described, where that may run.
PASSED: Final = AgentResponse.allow(skip_body=True, audit=AuditMetadata(tags=("openapi", "undocumented")))


def check_actions(requests: object, responses: object, undocumented: object) -> None:
    """Raise :class:`ConfigurationError` for an option that there is not, and where nothing would be judged."""
    given = (("requests", requests, _ACTIONS), ("responses", responses, _ACTIONS))
    for name, value, known in (*given, ("undocumented", undocumented, _UNDOCUMENTED)):
        if value not in known:
            raise ConfigurationError(f"OpenApiValidation: {name}={named(value)}, expected one of {', '.join(known)}")
    if requests == responses == "off":
        raise ConfigurationError("OpenApiValidation: requests and responses are 'off', expected 'block' or 'report'")
    if requests == "off" and undocumented == "block":
        raise ConfigurationError("OpenApiValidation: undocumented='block' with requests='off', expected 'block'")


def announces_body(event: RequestHeadersEvent) -> bool:
    """Whether the head says that a body follows. HTTP/2 need not say so."""
    return "transfer-encoding" in event.headers or event.header("content-length") not in (None, "0")


def may_have_body(event: RequestHeadersEvent) -> bool:
    """Whether a body may follow the head, also one of HTTP/2 that is not announced."""
    return event.method not in ("GET", "HEAD") or announces_body(event)


def refusal(found: Sequence[Violation], action: str, *, skip_body: bool = False) -> AgentResponse | None:
    """Of a request: says what is wrong where, and nothing of what was sent (RFC 9457)."""
    if not found or action != "block":
        return _allowed(found, skip_body)
    return _refusal(found, needs_more=False, audit=_record(found))


def refusal_without_body(found: Sequence[Violation], action: str, *, announced: bool) -> AgentResponse | None:
    """Of a request that needs a body: what comes of it takes this back.

    Of a body that is announced nothing is recorded, or the records of all requests would say that it is missing.
    """
    if action == "block":
        return _refusal(found, needs_more=True, audit=AuditMetadata() if announced else _record(found))
    return _allowed(() if announced else found, skip_body=False)


def refusal_of_response(found: Sequence[Violation], action: str, *, skip_body: bool = False) -> AgentResponse | None:
    """Of a response. What is wrong is in the audit record: it is nothing that a client can change."""
    if not found or action != "block":
        return _allowed(found, skip_body)
    return AgentResponse.block(500, _problem(500, _RESPONSE), headers=_HEADERS, audit=_record(found))


def _refusal(found: Sequence[Violation], *, needs_more: bool, audit: AuditMetadata) -> AgentResponse:
    status = found[0].status
    body = _problem(status, _REQUEST, errors=[_error(one) for one in found])
    return AgentResponse.block(status, body, headers=_HEADERS, audit=audit, needs_more=needs_more)


def _error(one: Violation) -> dict[str, object]:
    error: dict[str, object] = {"in": one.place, "at": one.at, "problem": one.problem}
    if one.keyword:
        error["rule"] = one.keyword
    if one.expected:
        error["expected"] = list(one.expected)
    return error


def _allowed(found: Sequence[Violation], skip_body: bool) -> AgentResponse | None:
    if not found:
        return SKIP if skip_body else None
    return AgentResponse.allow(audit=_record(found), skip_body=skip_body)


def _record(found: Sequence[Violation]) -> AuditMetadata:
    return AuditMetadata(
        tags=("openapi",),
        reason_codes=list(dict.fromkeys(one.place for one in found)),
        rule_ids=list(dict.fromkeys(one.rule for one in found if one.rule)),
    )


def _problem(status: int, detail: str, **more: object) -> str:
    title = _TITLES.get(status) or HTTPStatus(status).phrase
    return json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail, **more})
