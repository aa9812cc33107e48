"""One request and its response, as ModSecurity judges them. Its methods block, one thread at a time."""

from threading import Lock
from typing import Any

from msgspec.structs import replace

from ..protocol import AgentResponse, RequestHeadersEvent, ResponseHeadersEvent
from .modsecurity_alone import alone
from .modsecurity_arguments import MAX_ARGUMENTS, Arguments
from .modsecurity_audit import answer_of, denial_of
from .modsecurity_bodies import Check, check_of, why_not_given
from .modsecurity_fields import may_have_body
from .modsecurity_head import begin
from .modsecurity_json import Json, is_json, may_be_json
from .modsecurity_messages import drop_messages
from .modsecurity_multipart import Multipart
from .modsecurity_own_rules import NOT_GIVEN, PORT_WITH_BODY, PORT_WITH_FORM, PORT_WITH_JSON
from .modsecurity_response import ShownResponse, done
from .modsecurity_rules import Rules
from .modsecurity_types import APPS_MAY_READ_JSON, kind_of


class Transaction:
    """A request is judged by all rules as soon as its head is there, as if it had no body.

    Whether a body comes is not known before: a length may be a lie, and an empty body is no event. Where one comes, a
    second transaction of the engine judges head and body together, and takes back what the first one has denied.
    """

    def __init__(self, rules: Rules, event: RequestHeadersEvent, max_arguments: int = MAX_ARGUMENTS) -> None:
        #: That of the engine is not made for two threads.
        self.lock = Lock()
        self._rules = rules
        self._event = event
        self._engine: Any = None
        self._denied_without_body: AgentResponse | None = None
        # Tells the rules what there is of a body, and with which of these the next piece begins to be judged.
        self._port = 0
        self._begin: int | None = PORT_WITH_BODY
        self._arguments = Arguments(max_arguments)
        self._is_bare = False
        self._kind = kind_of(types := event.headers.get("content-type", ()))
        self._check = check_of(self._kind, self._arguments, types)
        # What comes of a body that may be JSON, although nobody says so, until that is known.
        self._held = bytearray() if self._kind in APPS_MAY_READ_JSON else None
        self._response = ShownResponse(event.metadata.protocol)

    @alone
    def request_head(self) -> AgentResponse:
        if not may_have_body(self._event):
            self._response.forget()
        if not self._arguments.add_head(self._event):
            self._is_bare, self._begin, self._held = True, None, None
            return self._not_given()
        if denied := self._head():
            return denied
        answer = self._request_is_complete()
        if answer.is_allow or not may_have_body(self._event):
            return answer
        self._denied_without_body = replace(answer, needs_more=True)
        return self._denied_without_body

    @alone
    def request_body(self, data: bytes, is_last: bool) -> AgentResponse:
        answer = self._request_body(data, is_last)
        if is_last:
            self._response.forget()
        return answer

    def _request_body(self, data: bytes, is_last: bool) -> AgentResponse:
        if self._held is None:
            answer = self._judged(data, is_last)
            form = self._check.as_form() if is_last and isinstance(self._check, Multipart) else None
            return answer if form is None else self._also(answer, PORT_WITH_FORM, None, form)
        self._held += data
        begins = may_be_json(self._held, is_last=is_last)
        if begins is not False and not is_last:
            return self._so_far()
        data, self._held = bytes(self._held), None
        if not begins or not is_json(data):
            return self._judged(data, is_last)
        self._begin, self._check = PORT_WITH_JSON, Json(self._arguments)
        answer = self._judged(data, is_last)
        # It may be a form as well, for other apps.
        check = check_of(self._kind, self._arguments)
        return answer if check is None else self._also(answer, PORT_WITH_BODY, check, data)

    def _also(self, answer: AgentResponse, port: int, check: Check | None, data: bytes) -> AgentResponse:
        """Judged in another way, unless it was denied already."""
        if not answer.is_allow:
            return answer
        self._begin, self._check = port, check
        other = self._judged(data, True)
        return answer if other.is_allow and not other.audit.rule_ids else other

    def _judged(self, data: bytes, is_last: bool) -> AgentResponse:
        if self._port in NOT_GIVEN:
            return self._answer()
        if self._begin is not None:
            if self._response.is_lost:
                return self._not_given()
            self._port, self._begin = self._begin, None
            if denied := self._head():
                return denied
        given = data if self._check is None else self._check.read(data, is_last=is_last)
        if given is None:
            return self._not_given()
        done(self._engine.append_request_body(given))
        # The engine may say that it is too long.
        return self._request_is_complete() if is_last else self._so_far()

    def _not_given(self) -> AgentResponse:
        """So that the rules say what is done about it."""
        self._port = why_not_given(self._arguments, self._check)
        return self._head() or self._answer()

    def _so_far(self) -> AgentResponse:
        return denial_of(self._rules, self._engine) or self._denied_without_body or self._answer()

    @alone
    def response_head(self, event: ResponseHeadersEvent) -> AgentResponse:
        self._response.head(self._engine, event)
        return self._answer()

    @alone
    def response_body(self, data: bytes, is_last: bool) -> AgentResponse:
        self._response.body(self._engine, data, is_last)
        return self._answer()

    @alone
    def end(self) -> None:
        """The last phase, in which the engine writes its audit log, if the rules want one."""
        if self._engine is not None:
            done(self._engine.process_logging())
            self._engine = None

    def _head(self) -> AgentResponse | None:
        self._engine = begin(self._rules, self._event, self._port, is_bare=self._is_bare)
        self._response.again(self._engine)
        return denial_of(self._rules, self._engine)

    def _request_is_complete(self) -> AgentResponse:
        drop_messages()
        done(self._engine.process_request_body())
        return self._answer()

    def _answer(self) -> AgentResponse:
        return answer_of(self._rules, self._engine)
