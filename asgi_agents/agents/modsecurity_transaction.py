"""One request and its response, as ModSecurity judges them. Its methods block, and are called one after the other."""

import re
from collections.abc import Iterable
from typing import Any, Final
from xml.parsers import expat

from libmodsecurity import RulesSet
from libmodsecurity import Transaction as EngineTransaction
from msgspec.structs import replace

from ..protocol import AgentResponse, AuditMetadata, Headers, RequestHeadersEvent, ResponseHeadersEvent
from .modsecurity_rules import PORT_WITH_BODY, engine

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_XML: Final = re.compile(r"[a-z]+/(?:[a-z0-9._-]+\+)?xml", re.IGNORECASE)
_UNREADABLE: Final = AgentResponse.block(400, audit=AuditMetadata(reason_codes=("waf", "unreadable_xml")))
# Of a request that matches everything, the record has these many rules and tags.
_MOST: Final = 64


class Transaction:
    """A request is judged by all rules as soon as its head is there, as if it had no body.

    Whether a body comes is not known before: a length may be a lie, and an empty body is no event. Where one comes, a
    second transaction of the engine judges head and body together, and takes back what the first one has denied.
    """

    def __init__(self, rules: RulesSet, event: RequestHeadersEvent) -> None:
        self._rules = rules
        self._event = event
        self._protocol = event.metadata.protocol
        # The type checker knows the texts that the engine takes. It takes bytes as well, which are what was sent.
        self._engine: Any = None
        self._denied_without_body: AgentResponse | None = None
        self._has_body = False
        # The engine writes what is wrong in XML to standard error, with the line of it: it is given no such XML.
        is_xml = any(map(_XML.match, event.headers.get("content-type", ())))
        self._xml = expat.ParserCreate(namespace_separator=" ") if is_xml else None

    def request_head(self) -> AgentResponse:
        denied = self._head()
        if denied is not None:
            return denied
        answer = self._request_is_complete()
        if answer.is_allow or not _may_have_body(self._event):
            return answer
        self._denied_without_body = replace(answer, needs_more=True)
        return self._denied_without_body

    def request_body(self, data: bytes, is_last: bool) -> AgentResponse:
        if not self._has_body:
            self._has_body = True
            denied = self._head()
            if denied is not None:
                return denied
        if self._xml is not None and not _continues(self._xml, data, is_last):
            return _UNREADABLE
        _done(self._engine.append_request_body(data))
        if is_last:
            return self._request_is_complete()
        # The engine may say that it is too long.
        return self._denied() or self._denied_without_body or self._allowed()

    def response_head(self, event: ResponseHeadersEvent) -> AgentResponse:
        for name, value in _fields(event.headers):
            _done(self._engine.add_response_header(name, value))
        _done(self._engine.process_response_headers(event.status, self._protocol))
        return self._denied() or self._allowed()

    def response_body(self, data: bytes, is_last: bool) -> AgentResponse:
        _done(self._engine.append_response_body(data))
        if is_last:
            _done(self._engine.process_response_body())
        return self._denied() or self._allowed()

    def end(self) -> None:
        """The last phase, in which the engine writes its audit log, if the rules want one."""
        if self._engine is not None:
            _done(self._engine.process_logging())
            self._engine = None

    def _head(self) -> AgentResponse | None:
        about = self._event.metadata
        self._engine = EngineTransaction(engine(), self._rules, about.correlation_id)
        version = self._protocol.removeprefix("HTTP/")
        port = PORT_WITH_BODY if self._has_body else 0
        # Over a Unix socket there is no address: this is nobody's, which no rule takes for one that it knows.
        _done(self._engine.process_connection(about.client_ip or "0.0.0.0", about.client_port, "127.0.0.1", port))  # noqa: S104
        _done(self._engine.process_uri(self._event.uri.encode("latin-1"), self._event.method, version))
        for name, value in _fields(self._event.headers):
            _done(self._engine.add_request_header(name, value))
        _done(self._engine.process_request_headers())
        return self._denied()

    def _request_is_complete(self) -> AgentResponse:
        _done(self._engine.process_request_body())
        return self._denied() or self._allowed()

    def _denied(self) -> AgentResponse | None:
        intervention = self._engine.intervention()
        if intervention is None or not intervention.disruptive:
            return None
        audit = self._audit(("waf",))
        if intervention.url:
            status = intervention.status if intervention.status in _REDIRECTS else 302
            return AgentResponse.redirect(intervention.url, status, audit=audit)
        return AgentResponse.block(intervention.status if intervention.status >= 400 else 403, audit=audit)

    def _allowed(self) -> AgentResponse:
        audit = self._audit(())
        return AgentResponse.allow(audit=audit) if audit.rule_ids else AgentResponse.allow()

    def _audit(self, reasons: tuple[str, ...]) -> AuditMetadata:
        """Never what has matched: that is what the client sent."""
        matched = self._engine.get_rule_messages()
        return AuditMetadata(
            rule_ids=_first(str(message.rule_id) for message in matched),
            tags=_first(tag for message in matched for tag in message.tags),
            reason_codes=reasons,
        )


def _continues(parser: expat.XMLParserType, data: bytes, is_last: bool) -> bool:
    try:
        parser.Parse(data, is_last)
    except expat.ExpatError:
        return False
    return True


def _may_have_body(event: RequestHeadersEvent) -> bool:
    """HTTP/1 says so in the head, other versions need not."""
    if not event.metadata.protocol.startswith("HTTP/1") or "transfer-encoding" in event.headers:
        return True
    return event.header("content-length") not in (None, "0")


def _first(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))[:_MOST]


def _fields(headers: Headers) -> Iterable[tuple[bytes, bytes]]:
    for name, values in headers.items():
        for value in values:
            yield name.encode("latin-1"), value.encode("latin-1")


def _done(result: int) -> None:
    if not result:
        raise RuntimeError("ModSecurity has failed")
