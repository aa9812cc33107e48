"""Guardrails around the app: the text of a request before the app runs, that of the answer before it leaves.

They stand nearest to the app. The agents of the route see requests before them, and answers as they leave here.

::

    TextExchange.run     reads and judges the request, and runs the app
      ├─> TextRequest    reads it; RequestText has its text judged
      ├─> Asking         asks the agents: evaluation.text_judges says which
      ├─> ToolGate       denies calls of tools by the policies of the route
      ├─> TextAnswer     the app's `send`: holds an answer until it was judged, or streams what may leave
      ├─> Overlap        before that `send`, where a request is judged while the app runs
      ├─> ShadowText     before both: copies for shadow agents
      └─> ToolLists      before all of them, where tools may be listed: leaves out those that can't be called
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from ..errors import caused_by_closing
from ..evaluation.text_judges import JudgeSet
from ..failures import FailureKind
from ..guardrails.body import Body, Parsed
from ..guardrails.dialect import Binding, Dialect, Stop, bound, is_bound
from ..guardrails.dialects.known import checked_dialects
from ..guardrails.dialects.mcp import MCP
from ..guardrails.dialects.unknown import Events
from ..guardrails.framing import UnreadableError
from ..guardrails.json_text import JSON
from ..guardrails.slots import Call, Kind
from ..guardrails.tool_policy import TOOL_POLICY
from . import request_form
from .attendance import Attendance
from .headers import codings_of, media_type, with_length, without_body_claims, without_headers
from .inbound import Inbound
from .overlap import Overlap
from .rendering import Renderers
from .request_form import REQUEST_KINDS, BodyForm
from .response import without_bypasses
from .scope import App, OwnScope, certainly_bodiless, declared_length, headers_of
from .shadow_text import PASSED, ShadowAnswer, ShadowText
from .state import ExchangeState
from .text_answer import TextAnswer
from .text_asking import Asking, Stopped, failed_with, refused
from .text_request import MAX_REQUEST_BYTES, RequestText, TextRequest
from .text_websocket import TextSession
from .tool_gate import ToolGate
from .tool_lists import ToolLists

_INPUT: Final[frozenset[Kind]] = frozenset({"input"})
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
            lambda: self._receive(),  # it has another one where messages were read ahead
            screen=self._note_message,
            judge=_never,
            may_suspend=lambda: False,
            wakeable=True,
            on_noticed=self._app_noticed,
        )
        self._app_scope: anyio.CancelScope | None = None
        self._request = TextRequest(receive)
        self._overlap: Overlap | None = None
        self._shadows: ShadowText | None = None
        self._disconnected = False
        self._made_answer: TextAnswer | None = None
        self._gate = ToolGate(self._judges, state)
        # Where the answer may be a list of tools.
        self._lists: Callable[..., ToolLists] | None = None

    async def run(self, app: App) -> Any:
        """The whole exchange. Returns what the app returns."""
        path = self._scope["path"]
        dialect: Dialect = next((known for known in self._dialects if known.knows_path(path)), _UNKNOWN)
        by_path = dialect is not _UNKNOWN
        judges, gate = self._judges, self._gate
        request = self._request
        judged = judges.judge_any(REQUEST_KINDS) or gate.guards
        forms = self._forms(by_path, judged=judged)
        asking: Asking | None = None
        text: RequestText | None = None
        overlapping: Sequence[Body] = ()
        known: Parsed | None = None
        changed: bytes | None = None
        try:
            if forms and not certainly_bodiless(self._scope):
                if not await request.read():
                    # The client has left. The part of its request that is there can't be judged.
                    return None
                if request.data:
                    await request.decode(codings_of(headers_of(self._scope)))
                if request.too_large:
                    dialect = self._by_headers(dialect)
                    asking = self._asking(dialect)
                    self._check_size(asking)
                elif request.data and (readable := request_form.readable(forms, request.data, path, self._dialects)):
                    chosen = next((found for found in readable if found.form.operations is None), readable[0])
                    known = chosen.parsed
                    dialect = bound(chosen.dialect, known.value)
                    call = self._call(dialect, known.value)
                    asking = Asking(self._state, self._judges.of(call), call)
                    for found in readable:
                        self._check_tools(found.parsed, dialect)
                    text = RequestText(request.data, readable, by_path=by_path)
                    if not asking.may_wait(asking.judges.before_app):
                        overlapping = await self._judge_request(text, asking)
                    else:
                        attendance = Attendance(self._receive, self._state, complete=True)
                        left_to_judge = await attendance.wait_for(self._judge_request(text, asking))
                        if left_to_judge is None:
                            return None
                        overlapping = left_to_judge
                        self._receive = attendance.remaining
                    changed = text.changed
                    if changed is not None and gate.guards:
                        for found in request_form.readable(forms, changed, path, self._dialects):
                            self._check_tools(found.parsed, dialect)
        except UnreadableError as exc:
            # Where nobody judges requests, the app may make of it what it can.
            if judged:
                dialect = self._by_headers(dialect)
                asking = asking or self._asking(dialect)
                fault = self._fault(exc, forms)
                if gate.guards or judges.judge_any(REQUEST_KINDS, enforced=True):
                    asking.note_unreadable(asking.judges.on(REQUEST_KINDS), fault)
                    await self._answer(dialect, asking).stop(refused(Stop(fault, 400, malformed=True)))
                    return None
                asking.note_unreadable(asking.judges.on(REQUEST_KINDS), fault, PASSED)
                text = None
        except Stopped as stopped:
            assert asking is not None
            if stopped.decision.decided_by == TOOL_POLICY and known is not None and not is_bound(dialect):
                # Who calls a tool reads JSON-RPC, whatever else the request looks like.
                dialect = MCP().bind(known.value)
            changed = dialect.in_place_of_request(stopped.stop) if isinstance(dialect, Binding) else None
            if changed is None:
                await self._answer(dialect, asking).stop(stopped)
                return None
            self._state.decide(stopped.decision)
            text, overlapping = None, ()
        asking = asking or self._asking(dialect)
        answer = self._answer(dialect, asking)
        if overlapping:
            self._overlap = Overlap(asking, overlapping, answer, self._inbound)
        if asking.judges.shadows:
            bodies = None if text is None else partial(text.bodies, as_it_came=True)
            self._shadows = ShadowText(asking, partial(self._shadow_answer, dialect), bodies)
        if gate.may_list(self._scope, None if known is None else known.value, known=known is not None):
            listed_in = dialect if is_bound(dialect) else MCP()
            self._lists = partial(ToolLists, gate, listed_in, known is not None, on_stop=self._stop_app)
        # The app may run for long.
        text, known, overlapping, readable = None, None, (), ()
        return await self._run_app(app, answer, changed)

    def _check_tools(self, parsed: Parsed, dialect: Dialect) -> None:
        stopped = self._gate.check(parsed, dialect.name)
        if stopped is not None:
            raise stopped

    def _by_headers(self, dialect: Dialect) -> Dialect:
        """The dialect of a request whose body says nothing of it."""
        if dialect is not _UNKNOWN:
            return dialect
        given = headers_of(self._scope)
        return next((one for one in self._dialects if isinstance(one, Binding) and one.knows_headers(given)), dialect)

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
            asking.judges.enforced,
            dialect,
            self._dialects,
            self._renderers,
            self._scope,
            self._send,
            on_stop=self._stop_app,
            on_noticed=self._app_noticed,
        )
        return self._made_answer

    def _shadow_answer(self, dialect: Dialect, asking: Asking, judges: JudgeSet) -> ShadowAnswer:
        return ShadowAnswer(
            self._state,
            asking,
            judges,
            dialect,
            self._dialects,
            self._renderers,
            self._scope,
            _nowhere,
            on_stop=lambda cut_off: None,
            on_noticed=lambda: None,
        )

    # The request

    def _fault(self, exc: UnreadableError, forms: Sequence[BodyForm]) -> str:
        fault = f"The request body can't be read: {exc}"
        given = media_type(headers_of(self._scope))
        if given is not None and "json" not in given and forms[0].required_json:
            return f"{fault} (its content-type is {given}, and this path is for JSON)"
        return fault

    def _forms(self, by_path: bool, *, judged: bool) -> Sequence[BodyForm]:
        """The forms in which the body is read. None: nobody needs to know what is in it."""
        judges, headers = self._judges, headers_of(self._scope)
        if not judged and not judges.depend_on_calls and codings_of(headers):
            return ()
        return request_form.forms_of(headers, by_path=by_path, judged=judged, judges_input=judges.judge_any(_INPUT))

    def _check_size(self, asking: Asking) -> None:
        judges = asking.judges.on(REQUEST_KINDS)
        fault = f"a request body of more than {MAX_REQUEST_BYTES} bytes"
        verdict = asking.not_shown(judges, FailureKind.REQUEST_TOO_LARGE, fault)
        if verdict is not None:
            raise failed_with(verdict)
        encoded = bool(codings_of(headers_of(self._scope)))
        stopped = self._gate.check_size(self._request.messages, MAX_REQUEST_BYTES, asking.call.dialect, encoded=encoded)
        if stopped is not None:
            raise stopped

    async def _judge_request(self, text: RequestText, asking: Asking) -> Sequence[Body]:
        """Judge the text of the request before the app runs. Returns what is to be judged beside it."""
        judges = asking.judges
        await text.judge(asking, judges.before_app)
        bodies = text.bodies(judges.beside_app)
        if bodies and not asking.may_wait(judges.beside_app):
            # There is nothing to gain by letting the app begin.
            for body in bodies:
                await asking.judge_body(body, may_change=False)
            return ()
        return bodies

    # The app

    async def _run_app(self, app: App, answer: TextAnswer, changed: bytes | None) -> Any:
        judges = self._judges
        needs_content = self._gate.guards or judges.depend_on_calls or judges.judge_any(REQUEST_KINDS, enforced=True)
        if changed is None and self._request.decoded and needs_content:
            # Another reader could make something else of what came. Shadow agents change nothing.
            changed = self._request.data
        changes = self._changes(answer, changed)
        own = OwnScope(self._scope, changes) if changes else None
        scope = self._scope
        if own is not None:
            scope = own.scope
            answer.use(own.sending(self._send))
        if changed is not None:
            self._inbound.deliver({"type": "http.request", "body": changed, "more_body": False})
        else:
            for message in self._request.messages:
                self._inbound.deliver(message)
        self._request.release()
        result: Any = None
        try:
            try:
                with anyio.CancelScope() as self._app_scope:
                    result = await self._inbound.run_app(
                        partial(self._call_app, app, scope, answer),
                        beside=answer.may_judge or self._overlap is not None or self._shadows is not None,
                    )
            except Exception as exc:
                # On trio, the scope takes its cancellation out of a group of the app's.
                if not (answer.stopped and caused_by_closing(exc, ClientDisconnect)):
                    raise
            if answer.error is not None and not self._disconnected:
                await answer.send_abort_marker()
                raise answer.error
            return result
        finally:
            answer.close()
            if self._shadows is not None:
                self._shadows.close()
            if own is not None:
                own.hand_back()

    async def _call_app(self, app: App, scope: Scope, answer: TextAnswer) -> Any:
        tasks = answer.tasks = self._inbound.tasks
        overlap, shadows = self._overlap, self._shadows
        send: Send = answer.send if overlap is None else overlap.send
        if shadows is not None:
            assert tasks is not None
            send = shadows.copying(send)
            shadows.begin(tasks)
        if self._lists is not None:
            send = self._lists(send=send).send
        if overlap is not None:
            assert tasks is not None
            result = await overlap.run(partial(app, scope, self._inbound.receive, send), tasks)
        else:
            result = await app(scope, self._inbound.receive, send)
        if shadows is not None and answer.error is None:
            await shadows.finish()
        return result

    def _changes(self, answer: TextAnswer, changed: bytes | None) -> dict[str, Any]:
        """What is different in the scope of the app."""
        changes: dict[str, Any] = {}
        given = headers_of(self._scope)
        headers = given
        judged = answer.may_judge or (self._shadows is not None and self._shadows.judge_answers)
        if judged or self._lists is not None:
            # What the app would answer to these could not be judged.
            if any(name.lower() in _RESHAPING for name, _ in headers):
                headers = without_headers(headers, _RESHAPING)
            changes |= without_bypasses(self._scope)
        if changed is not None:
            headers = without_body_claims(headers, len(changed), decoded=self._request.decoded)
        elif self._request.decoded:
            # It is passed on as it came.
            pass
        elif self._request.complete and declared_length(headers) not in (None, len(self._request.data)):
            # An app that goes by its content-length would take another body than the one that was judged.
            headers = with_length(headers, len(self._request.data))
        if headers is not given:
            changes["headers"] = headers
        return changes

    def _note_message(self, message: Message) -> bool:
        """All that the app receives behind the request is as it came."""
        if message["type"] == "http.disconnect":
            self._disconnected = True
            self._app_noticed()
            if self._overlap is not None:
                self._overlap.note_disconnect()
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


async def _nowhere(message: Message) -> None:
    """Where the answers of shadow agents go."""
