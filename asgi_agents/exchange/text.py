"""Guardrails around the app: the text of a request before the app runs, that of the answer before it leaves.

They stand nearest to the app. The agents of the route see requests before them, and answers as they leave here.

::

    TextExchange.run     reads and judges the request, and runs the app
      ├─> Asking         asks the agents: evaluation.text_judges says which
      └─> TextAnswer     the app's `send`: holds an answer until it was judged, or streams what may leave
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from ..errors import caused_by_closing
from ..failures import FailureKind
from ..guardrails.body import Body, Parsed
from ..guardrails.dialect import Dialect, Stop
from ..guardrails.dialects.known import checked_dialects
from ..guardrails.dialects.unknown import Events
from ..guardrails.framing import UnreadableError
from ..guardrails.json_text import JSON
from ..guardrails.slots import Call, Kind
from . import request_form
from .headers import media_type, with_length, without_body_claims, without_headers
from .inbound import Inbound
from .rendering import Renderers
from .request_form import Readable
from .response import without_bypasses
from .scope import App, OwnScope, certainly_bodiless, declared_length, headers_of
from .state import ExchangeState
from .text_answer import TextAnswer
from .text_asking import Asking, Stopped, failed_with
from .text_websocket import TextSession

REQUEST_KINDS: Final[frozenset[Kind]] = frozenset({"input", "tool_call", "tool_result", "reasoning"})
_INPUT: Final[frozenset[Kind]] = frozenset({"input"})
# How many bytes of a request are held.
MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
# How many pieces of it are kept apart. Each takes hundreds of bytes, however small its client has cut it.
_MAX_MESSAGES: Final = 1024
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}
_RESHAPING: Final = frozenset({b"accept-encoding", b"range", b"if-range"})
_UNKNOWN: Final = Events()


class TextGuardrails:
    """Puts the guardrails of a connection's route around an app.

    :param dialects: users' own, which are tried before the built-in ones.
    :raises ConfigurationError: for what are no dialects.
    """

    def __init__(self, dialects: Sequence[Dialect] | None, renderers: Renderers, stop_grace: float) -> None:
        self._dialects = checked_dialects("AgentMiddleware: dialects", dialects)
        self._renderers = renderers
        self._stop_grace = stop_grace

    def around(self, app: App, state: ExchangeState) -> App:
        """``app`` behind the guardrails of the connection."""

        async def judged(scope: Scope, receive: Receive, send: Send) -> Any:
            exchange = TextExchange(state, self._dialects, self._renderers, self._stop_grace, scope, receive, send)
            return await exchange.run(app)

        return judged

    def around_websocket(self, app: App, state: ExchangeState) -> App:
        """``app``, which serves a websocket session, behind the guardrails of the connection."""

        async def judged(scope: Scope, receive: Receive, send: Send) -> Any:
            return await TextSession(state, self._stop_grace, scope, receive, send).run(app)

        return judged


class TextExchange:
    """One request and its answer, on their way through guardrails."""

    def __init__(
        self,
        state: ExchangeState,
        dialects: Sequence[Dialect],
        renderers: Renderers,
        stop_grace: float,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        assert state.resolved_route.judges is not None
        self._state = state
        self._judges = state.resolved_route.judges
        self._dialects = dialects
        self._renderers = renderers
        self._stop_grace = stop_grace
        self._scope = scope
        self._receive = receive
        self._send = send
        self._inbound = Inbound(
            receive,
            screen=self._note_message,
            judge=_never,
            may_suspend=lambda: False,
            wakeable=True,
            on_noticed=self._app_noticed,
        )
        self._app_scope: anyio.CancelScope | None = None
        # The messages of the request that were read and are for the app.
        self._messages: list[Message] = []
        self._data = b""
        self._too_large = False
        # Whether all of the body was read.
        self._complete = False
        self._disconnected = False
        self._made_answer: TextAnswer | None = None

    async def run(self, app: App) -> Any:
        """The whole exchange. Returns what the app returns."""
        path = self._scope["path"]
        dialect: Dialect = next((known for known in self._dialects if known.knows_path(path)), _UNKNOWN)
        by_path = dialect is not _UNKNOWN
        judges = self._judges
        forms = request_form.forms_of(
            headers_of(self._scope),
            by_path=by_path,
            judged=judges.judge_any(REQUEST_KINDS),
            judges_input=judges.judge_any(_INPUT),
        )
        asking: Asking | None = None
        changed: bytes | None = None
        try:
            if forms and not certainly_bodiless(self._scope):
                if not await self._read():
                    # The client has left. The part of its request that is there can't be judged.
                    return None
                if self._too_large:
                    asking = self._asking(dialect)
                    self._check_size(asking)
                elif self._data and (readable := request_form.readable(forms, self._data, path, self._dialects)):
                    chosen = next((found for found in readable if found.form.operations is None), readable[0])
                    dialect = chosen.dialect
                    call = self._call(dialect, chosen.parsed.value)
                    asking = Asking(self._state, self._judges.of(call), call)
                    changed = await self._judge_request(readable, asking, by_path)
        except UnreadableError as exc:
            # Where nobody judges requests, the app may make of it what it can.
            if self._judges.judge_any(REQUEST_KINDS):
                asking = asking or self._asking(dialect)
                fault = f"The request body can't be read: {exc}"
                given = media_type(headers_of(self._scope))
                if given is not None and "json" not in given and forms[0].required_json:
                    fault = f"{fault} (its content-type is {given}, and this path is for JSON)"
                asking.note_refused(asking.judges.on(REQUEST_KINDS), fault)
                await self._answer(dialect, asking).refuse(Stop(fault, 400, malformed=True))
                return None
        except Stopped as stopped:
            assert asking is not None
            await self._answer(dialect, asking).stop(stopped)
            return None
        return await self._run_app(app, self._answer(dialect, asking or self._asking(dialect)), changed)

    def _asking(self, dialect: Dialect) -> Asking:
        """For a call of whose request nothing is known but its head."""
        call = Call(dialect=dialect.name, scope=self._scope)
        return Asking(self._state, self._judges.of(call), call)

    def _call(self, dialect: Dialect, value: JSON) -> Call:
        call = dialect.call(value, self._scope["path"])
        return Call(
            dialect=call.dialect,
            model=call.model,
            user=call.user,
            stream=call.stream,
            tools=call.tools,
            scope=self._scope,
        )

    def _answer(self, dialect: Dialect, asking: Asking) -> TextAnswer:
        self._made_answer = TextAnswer(
            self._state,
            asking,
            dialect,
            self._dialects,
            self._renderers,
            self._scope,
            self._send,
            on_stop=self._stop_app,
            on_noticed=self._app_noticed,
        )
        return self._made_answer

    # The request

    async def _read(self) -> bool:
        """Read the body. Returns False if the client has left. Of one that is too large, only the beginning is read."""
        joined = bytearray()
        pieces: list[bytes] = []
        size = 0
        more = True
        while more and not self._too_large:
            message = await self._receive()
            if message["type"] != "http.request":
                return False
            if len(self._messages) <= _MAX_MESSAGES:
                self._messages.append(message)
            pieces.append(bytes(message.get("body", b"")))
            if len(pieces) > _MAX_MESSAGES:
                joined += b"".join(pieces)
                pieces.clear()
            size += len(message.get("body", b""))
            self._too_large = size > MAX_REQUEST_BYTES
            more = message.get("more_body", False)
        data = b"".join((joined, *pieces)) if joined else b"".join(pieces)
        if len(self._messages) > _MAX_MESSAGES:
            self._messages = [{"type": "http.request", "body": data, "more_body": more}]
        if not self._too_large:
            self._data = data
            self._complete = True
        return True

    def _check_size(self, asking: Asking) -> None:
        judges = asking.judges.on(REQUEST_KINDS)
        fault = f"a request body of more than {MAX_REQUEST_BYTES} bytes"
        verdict = asking.not_shown(judges, FailureKind.REQUEST_TOO_LARGE, fault)
        if verdict is not None:
            raise failed_with(verdict)

    async def _judge_request(self, readable: Sequence[Readable], asking: Asking, by_path: bool) -> bytes | None:
        """Judge the text of the request. Returns the body in which it is changed; None: it is not."""
        judges = asking.judges
        if not judges.on(REQUEST_KINDS):
            return None
        data = self._data
        for found in readable:
            form, given, parsed = found.form, found.given, found.parsed
            if data is not self._data:
                # It was changed in another form.
                given = form.to_json(data)
                parsed = Parsed(given)
            operations = form.operations or request_form.operations_of(found.dialect, by_path)
            body = Body(given, operations, judges, kind="input", parsed=parsed)
            await asking.judge_body(body)
            assert body.data is not None
            if body.data != given:
                data = form.from_json(body.data, data)
        return None if data == self._data else data

    # The app

    async def _run_app(self, app: App, answer: TextAnswer, changed: bytes | None) -> Any:
        changes = self._changes(answer, changed)
        own = OwnScope(self._scope, changes) if changes else None
        scope = self._scope
        if own is not None:
            scope = own.scope
            answer.use(own.sending(self._send))
        if changed is not None:
            self._inbound.deliver({"type": "http.request", "body": changed, "more_body": False})
        else:
            for message in self._messages:
                self._inbound.deliver(message)
        self._messages.clear()
        self._data = b""
        result: Any = None
        try:
            with anyio.CancelScope() as self._app_scope:
                try:
                    result = await self._inbound.run_app(
                        partial(self._call_app, app, scope, answer), beside=answer.may_judge
                    )
                except Exception as exc:
                    if not (answer.stopped and caused_by_closing(exc, ClientDisconnect)):
                        raise
            if answer.error is not None and not self._disconnected:
                await answer.send_abort_marker()
                raise answer.error
            return result
        finally:
            answer.close()
            if own is not None:
                own.hand_back()

    async def _call_app(self, app: App, scope: Scope, answer: TextAnswer) -> Any:
        answer.tasks = self._inbound.tasks
        return await app(scope, self._inbound.receive, answer.send)

    def _changes(self, answer: TextAnswer, changed: bytes | None) -> dict[str, Any]:
        """What is different in the scope of the app."""
        changes: dict[str, Any] = {}
        given = headers_of(self._scope)
        headers = given
        if answer.may_judge:
            # What the app would answer to these could not be judged.
            if any(name.lower() in _RESHAPING for name, _ in headers):
                headers = without_headers(headers, _RESHAPING)
            changes |= without_bypasses(self._scope)
        if changed is not None:
            headers = with_length(without_body_claims(headers, None), len(changed))
        elif self._complete and declared_length(headers) not in (None, len(self._data)):
            # An app that goes by its content-length would take another body than the one that was judged.
            headers = with_length(headers, len(self._data))
        if headers is not given:
            changes["headers"] = headers
        return changes

    def _note_message(self, message: Message) -> bool:
        """All that the app receives behind the request is as it came."""
        if message["type"] == "http.disconnect":
            self._disconnected = True
            self._app_noticed()
        return True

    def _stop_app(self, cut_off: bool) -> None:
        """The client has its answer, or is to have no more of it: the app finds its client gone."""
        scope = self._app_scope
        # The app may know it from the server already, which has had the end of the answer.
        noticed = self._disconnected and self._made_answer is not None and self._made_answer.error is None
        if cut_off and scope is not None and not noticed:
            if self._stop_grace:
                scope.deadline = anyio.current_time() + self._stop_grace
            else:
                scope.cancel()
        self._inbound.end(_DISCONNECT)

    def _app_noticed(self) -> None:
        # Not where its answer is broken off: the server breaks the connection off when the app has ended.
        if self._app_scope is not None and (self._made_answer is None or self._made_answer.error is None):
            self._app_scope.deadline = math.inf


async def _never(message: Message) -> None:
    """Of the request nothing is judged any more once the app runs."""
