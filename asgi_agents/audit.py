"""One record for each guarded connection: what every agent said, and what came of it."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.types import Message, Scope, Send

from .decision import AgentDecision, Verdict
from .errors import ConfigurationError
from .exchange.guardrail_report import GuardrailReport
from .exchange.scope import client_ip, headers_of
from .exchange.state import ExchangeState
from .messages.json_escapes import escape_unprintable
from .messages.throttle import Throttle
from .observability.redaction import REDACTED, redact_secrets
from .observability.secret_names import is_secret_name
from .observability.tracing import current_trace_id
from .protocol import TOKEN, AgentResponse, EventType
from .protocol.applicability import APPLIES_TO, changes_something

logger = logging.getLogger("asgi_agents.audit")
operational = logging.getLogger("asgi_agents")

Redact = Callable[[str], str]
AuditHook = Callable[["AuditRecord"], object]

# A session of days has its newest answers in its record.
_MAX_ANSWERS: Final = 100
_MAX_VALUE_LENGTH: Final = 1024
# What agents say of an answer, and what all of it comes to in a record: to look for secrets in it takes time.
_MAX_TAGS: Final = 16
_MAX_TAG_LENGTH: Final = 128
_MAX_TAG_LENGTHS: Final = 32 * 1024
# What a guardrail did takes no more bytes than that: spans are left out that don't fit in.
_MAX_GUARDRAIL_BYTES: Final = 1024
_MAX_DIALECT_LENGTH: Final = 32
_MAX_CATEGORY_LENGTH: Final = 32


class AuditAnswer(Struct, frozen=True, kw_only=True):
    """What an agent said to one event, or how it failed.

    ``decision`` is ``allow``, ``block``, ``redirect``, ``challenge``, ``drop``, ``close``, ``detected`` or None,
    ``failure`` the kind of a failure or None. ``enforced`` is False for a shadow agent: that is what it would have
    done. ``changed`` names what the answer changes: ``request_headers``, ``response_headers``, ``request_body``,
    ``response_body``. ``seconds`` is the duration of the call. Plain consent to single websocket messages and body
    chunks is left out.
    """

    agent: str
    event: str
    decision: str | None
    failure: str | None
    failure_mode: str
    enforced: bool
    seconds: float
    changed: Sequence[str] = ()
    tags: Sequence[str] = ()
    rule_ids: Sequence[str] = ()
    reason_codes: Sequence[str] = ()
    confidence: float | None = None


class AuditAgent(Struct, frozen=True, kw_only=True):
    """How often an agent was asked about the connection, and how many seconds that took."""

    agent: str
    calls: int
    seconds: float


class AuditGuardrail(Struct, frozen=True, kw_only=True):
    """What a guardrail did. In the line of the log it takes at most 1,024 bytes.

    :ivar dialect: in which the request was.
    :ivar counts: how often it did what: ``redact``, ``block``, ``flag``; ``failure`` for calls that failed, and
        ``unreadable`` for what could not be shown to it, ``dropped`` for what a shadow agent was too slow for.
    :ivar found: the kinds of text that it has found something in, with the number of finds.
    :ivar spans: the first 20 redactions and flags, or as many as there is room for: the kind of text, start and end in
        code points from its beginning, and the category of a flag. Never the text.
    :ivar held: how many code points waited at most.
    :ivar delay: seconds; how long an event of the answer waited at most.
    """

    agent: str
    dialect: str
    counts: Mapping[str, int]
    found: Mapping[str, int]
    spans: Sequence[tuple[str, int, int, str]]
    held: int
    delay: float


class AuditRecord(Struct, frozen=True, kw_only=True):
    """One connection. ``str()`` gives it as a line of JSON.

    :ivar time: when it began, RFC 3339 in UTC.
    :ivar trace_id: 32 hex digits, where it is traced.
    :ivar type: ``http`` or ``websocket``.
    :ivar path: without the query.
    :ivar route: the pattern of the matched :class:`AgentRoute`, or None.
    :ivar status: what was sent to the client from here, None if nothing: of an app that raises (``error``) the server
        makes a 500. 101 for a websocket that was accepted.
    :ivar close_code: with which the app or an agent closed the websocket.
    :ivar complete: whether the response was sent to its end; for websockets, whether it was closed from this side.
    :ivar decision: ``allow``, ``block``, ``redirect``, ``challenge``, ``drop``, ``close``, or the kind of the failure
        that stopped it.
    :ivar decided_by: the agent that stopped it, or None.
    :ivar would_stop: the shadow agents that would have stopped it.
    :ivar passed_open: the agents that failed and were gone on without.
    :ivar shown_encoded: the agents that were shown a body with a ``content-encoding`` as it was, and so could not read
        it.
    :ivar agents: all that were asked, in the order of their first answers.
    :ivar guardrails: what each guardrail did.
    :ivar answers_left_out: how many there were before those in ``answers``.
    :ivar headers: the request headers that ``audit_headers`` names.
    :ivar error: the type of the exception that the app raised.
    """

    time: str
    correlation_id: str
    trace_id: str | None
    type: str
    method: str
    path: str
    route: str | None
    client: str
    status: int | None
    close_code: int | None
    complete: bool
    seconds: float
    decision: str
    decided_by: str | None
    would_stop: Sequence[str]
    passed_open: Sequence[str]
    shown_encoded: Sequence[str] = ()
    agents: Sequence[AuditAgent]
    answers: Sequence[AuditAnswer]
    answers_left_out: int
    guardrails: Sequence[AuditGuardrail] = ()
    headers: Mapping[str, str]
    error: str | None

    def __str__(self) -> str:
        return _line(self)


class Auditor:
    """Writes the records of a middleware.

    :param headers: names of request headers whose values are recorded. Those of credentials are redacted all the same.
    :param hook: called with each record, on the event loop: it must not block. What it raises is logged.
    :param redact: what is done to every text that comes from a client or an agent. None: nothing at all.
    """

    def __init__(
        self,
        *,
        headers: Iterable[str] = (),
        hook: AuditHook | None = None,
        redact: Redact | None = redact_secrets,
    ) -> None:
        if isinstance(headers, str) or not isinstance(headers, Iterable):
            raise ConfigurationError(f"AgentMiddleware: audit_headers={headers!r}, expected a list of header names")
        self.headers = frozenset(_header_name(name) for name in headers)
        for name, function in (("on_audit", hook), ("audit_redact", redact)):
            if function is not None and (not callable(function) or iscoroutinefunction(function)):
                raise ConfigurationError(
                    f"AgentMiddleware: {name}={function!r}, expected a function that is no coroutine"
                )
        self._hook = hook
        #: Whether records are written anywhere now.
        self.wanted: Callable[[], bool] = (
            partial(logger.isEnabledFor, logging.INFO) if hook is None else partial(bool, hook is not None)
        )
        self._redact = redact
        self._complaints = Throttle()

    @classmethod
    def none(cls, **settings: Any) -> "Auditor":
        """One that records nothing, whatever the log takes."""
        made = cls(**settings)
        made.wanted = lambda: False
        return made

    def begin(self, scope: Scope, state: ExchangeState) -> "Audit":
        """What collects the record of a connection that begins."""
        return Audit(self, scope, state)

    def write(self, record: AuditRecord) -> None:
        """To the log and to the hook. Neither harms the connection by failing."""
        if logger.isEnabledFor(logging.INFO):
            try:
                logger.handle(_log_record(record))
            except Exception:
                self._complain("the audit record could not be logged")
        if self._hook is not None:
            try:
                self._hook(record)
            except Exception:
                self._complain("the audit hook failed")

    def clean(self, given: str, length: int = _MAX_VALUE_LENGTH) -> str:
        """What may be written down of a text from outside, of which that ``length`` is kept."""
        # Cut before secrets are looked for, and after. Lone surrogates can't be written at all.
        text = given[: 2 * length].encode("utf-8", "replace").decode()
        if self._redact is not None:
            try:
                text = self._redact(text)
                if not isinstance(text, str):
                    raise TypeError(f"audit_redact returned {type(text).__name__}, expected str")
            except Exception:
                self._complain("audit_redact failed; what it was given is left out")
                return REDACTED
        return text if len(text) <= length else text[:length] + "…"

    def _complain(self, fault: str) -> None:
        """With the traceback, once a minute: what fails at one connection fails at the next."""
        if self._complaints.due(fault):
            operational.exception("%s (logged once a minute)", fault)

    def chosen_headers(self, scope: Scope) -> Mapping[str, str]:
        """The headers to record; several of one name are joined."""
        chosen: dict[str, str] = {}
        for raw_name, raw_value in headers_of(scope) if self.headers else ():
            name = raw_name.decode("latin-1").lower()
            if name in self.headers:
                secret = self._redact is not None and is_secret_name(name)
                value = REDACTED if secret else self.clean(raw_value.decode("latin-1"))
                chosen[name] = f"{chosen[name]}, {value}"[: _MAX_VALUE_LENGTH + 1] if name in chosen else value
        return chosen


class Audit:
    """Collects what happens to one connection, and writes its record at the end."""

    def __init__(self, auditor: Auditor, scope: Scope, state: ExchangeState) -> None:
        self._auditor = auditor
        self._state = state
        self._calls = state.count_calls()
        self._began = time.time()
        self._started = time.monotonic()
        self._trace_id = current_trace_id()
        # Now, while they are what the client has sent.
        self._type = scope["type"]
        self._method = auditor.clean(str(scope.get("method", "GET")))
        self._path = auditor.clean(scope["path"])
        self._client = auditor.clean(client_ip(scope))
        self._headers = auditor.chosen_headers(scope)
        # What is left of it, while a record is made.
        self._room_for_tags = _MAX_TAG_LENGTHS
        self._status: int | None = None
        self._close_code: int | None = None
        self._complete = False
        self._trailers = False

    def around(self, send: Send) -> Send:
        """What sends the messages of the connection to the client, before :meth:`sent` takes note of them."""
        return send

    def sent(self, message: Message) -> None:
        """Take note of a message to the client."""
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start":
                self._status = message["status"]
                self._trailers = message.get("trailers", False)
            case "http.response.body" | "websocket.http.response.body" | "http.response.zerocopysend":
                self._complete = not (self._trailers or message.get("more_body", False))
            case "http.response.pathsend":
                self._complete = not self._trailers
            case "http.response.trailers":
                self._complete = not message.get("more_trailers", False)
            case "websocket.accept":
                self._status = 101
            case "websocket.close":
                if self._status is None:
                    self._status = 403  # what servers make of a close before accept
                self._close_code = message.get("code", 1000)
                self._complete = True

    def end(self, error: str | None) -> AuditRecord | None:
        """The connection is over: write its record. ``error`` is the type of the exception that ended it.

        Returns the record, or None where there is none. Raises nothing.
        """
        try:
            record = self.record(error)
        except Exception:
            operational.exception("there is no audit record of %s", self._state.correlation_id)
            return None
        self._auditor.write(record)
        return record

    def record(self, error: str | None = None) -> AuditRecord:
        """The record as it is now."""
        self._room_for_tags = _MAX_TAG_LENGTHS
        decision = self._state.decision
        verdicts = decision.verdicts
        return AuditRecord(
            time=datetime.fromtimestamp(self._began, UTC).isoformat(timespec="milliseconds"),
            correlation_id=self._state.correlation_id,
            trace_id=self._trace_id,
            type=self._type,
            method=self._method,
            path=self._path,
            route=self._state.route,
            client=self._client,
            status=self._status,
            close_code=self._close_code,
            complete=self._complete,
            seconds=round(time.monotonic() - self._started, 6),
            decision=_summary(decision),
            decided_by=decision.decided_by,
            would_stop=[agent_id for agent_id, count in self._calls.items() if count.would_stop],
            passed_open=[agent_id for agent_id, count in self._calls.items() if count.passed_open],
            shown_encoded=self._state.shown_encoded,
            agents=[
                AuditAgent(agent=agent_id, calls=count.calls, seconds=round(count.seconds, 6))
                for agent_id, count in self._calls.items()
            ],
            answers=[self._answer(verdict) for verdict in verdicts[-_MAX_ANSWERS:]],
            answers_left_out=self._state.verdicts_recorded - min(len(verdicts), _MAX_ANSWERS),
            guardrails=[self._guardrail(report) for report in self._state.guardrails],
            headers=self._headers,
            error=error,
        )

    def _guardrail(self, report: GuardrailReport) -> AuditGuardrail:
        clean = self._auditor.clean
        entry = AuditGuardrail(
            agent=report.agent_id,
            dialect=clean(report.dialect, _MAX_DIALECT_LENGTH),
            counts=dict(report.counts),
            found=dict(report.found),
            spans=[
                (span.kind, span.start, span.end, clean(span.what, _MAX_CATEGORY_LENGTH) if span.what else "")
                for span in report.spans
            ],
            held=report.held,
            delay=round(report.delay, 6),
        )
        excess = _size(entry) - _MAX_GUARDRAIL_BYTES
        if excess <= 0:
            return entry
        spans = list(entry.spans)
        while spans and excess > 0:
            excess -= _size(spans.pop()) + 1  # and the comma
        return replace(entry, spans=spans)

    def _texts(self, given: Sequence[str]) -> Sequence[str]:
        texts: list[str] = []
        for text in given[:_MAX_TAGS]:
            if self._room_for_tags <= 0:
                break
            texts.append(self._auditor.clean(text, _MAX_TAG_LENGTH))
            self._room_for_tags -= min(len(text), _MAX_TAG_LENGTH)
        return texts

    def _answer(self, verdict: Verdict) -> AuditAnswer:
        failed = verdict.failure is not None
        said: dict[str, Any] = {}
        if verdict.response is not None:
            audit = verdict.response.audit
            said = {
                "changed": _changed(verdict.event_type, verdict.response),
                "tags": self._texts(audit.tags),
                "rule_ids": self._texts(audit.rule_ids),
                "reason_codes": self._texts(audit.reason_codes),
                # Perhaps one of numpy's.
                "confidence": None if audit.confidence is None else float(audit.confidence),
            }
        return AuditAnswer(
            agent=verdict.agent_id,
            event=verdict.event_type.value,
            decision=None if failed else verdict.outcome,
            failure=verdict.outcome if failed else None,
            failure_mode=verdict.failure_mode,
            enforced=verdict.enforced,
            seconds=round(verdict.duration, 6),
            **said,
        )


def _line(value: Any) -> str:
    """As JSON, without what ends a line for some readers, or does something to a terminal."""
    return escape_unprintable(msgspec.json.encode(value).decode())


def _size(value: Any) -> int:
    return len(_line(value).encode())


def _changed(event_type: EventType, response: AgentResponse) -> Sequence[str]:
    # A denial changes nothing but the headers of its reply.
    fields = APPLIES_TO if response.is_allow else ("response_headers",)
    return [
        field.removesuffix("_mutation")
        for field in fields
        if event_type in APPLIES_TO[field] and changes_something(getattr(response, field))
    ]


def _summary(decision: AgentDecision) -> str:
    if decision.failure is not None:
        return decision.failure.kind.value
    if decision.websocket_decision is not None:
        return type(decision.websocket_decision).__name__.removeprefix("WebSocket").lower()
    return type(decision.decision).__name__.lower()


def _log_record(record: AuditRecord) -> logging.LogRecord:
    entry = logger.makeRecord(logger.name, logging.INFO, __file__, 0, "%s", (record,), None, "write")
    # Not as `extra`, which raises where a record factory of the application has put the same.
    entry.audit = record
    entry.correlation_id = record.correlation_id
    return entry


def _header_name(name: object) -> str:
    if not isinstance(name, str) or not TOKEN.match(name):
        raise ConfigurationError(f"AgentMiddleware: audit_headers contains {name!r}, expected names of headers")
    return name.lower()


# Where the headers of a response are.
_HEADS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


def watched(send: Send, audit: Audit | None, exposed_as: bytes | None, exchange: ExchangeState) -> Send:
    """``send`` that puts the correlation id into the head of the response, and shows all messages to the audit."""

    async def watching(message: Message) -> None:
        if exposed_as is not None and message["type"] in _HEADS:
            headers = [(name, value) for name, value in message.get("headers") or () if name.lower() != exposed_as]
            message = {**message, "headers": [*headers, (exposed_as, exchange.correlation_id.encode())]}
        await send(message)
        if audit is not None:
            audit.sent(message)

    return watching
