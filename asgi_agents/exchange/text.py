"""Guardrails around the app: the text of a request before the app runs, that of the answer before it leaves.

They stand nearest to the app. The agents of the route see requests before them, and answers as they leave here.

::

    TextExchange.run     reads and judges the request, and runs the app
      ├─> Asking         asks the agents: evaluation.text_judges says which
      └─> TextAnswer     the app's `send`: holds an answer until it was judged, or streams what may leave
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote_plus, unquote_to_bytes

import anyio
from msgspec import Struct
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from ..errors import caused_by_closing
from ..failures import FailureKind
from ..guardrails.body import Body
from ..guardrails.dialect import Dialect, Stop
from ..guardrails.dialects.known import checked_dialects, is_ours, of_request
from ..guardrails.dialects.unknown import Events, PlainText
from ..guardrails.framing import TooComplexError, UnreadableError
from ..guardrails.json_text import JSON, loads
from ..guardrails.operations import Operation, Whole
from ..guardrails.slots import Call, Kind, Slot
from ..guardrails.uncovered import uncovered
from .headers import codings_of, in_utf_8, media_type, with_length, without_body_claims, without_headers
from .inbound import Inbound
from .rendering import Renderers
from .response import BODY_BYPASSES
from .scope import App, OwnScope, certainly_bodiless, declared_length, headers_of
from .state import ExchangeState
from .text_answer import TextAnswer
from .text_asking import Asking, Stopped, failed_with

REQUEST_KINDS: Final[frozenset[Kind]] = frozenset({"input", "tool_call", "tool_result", "reasoning"})
_INPUT: Final[frozenset[Kind]] = frozenset({"input"})
# How many bytes of a request are held.
MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
# How many pieces of it are kept apart. Each takes hundreds of bytes, however small its client has cut it.
_MAX_MESSAGES: Final = 1024
_FORM_TYPE: Final = "application/x-www-form-urlencoded"
# In whatever encoding, with whatever marks in front (RFC 8259, section 8.1).
_LOOKS_LIKE_JSON: Final = re.compile(rb"[\x00\s\xef\xbb\xbf\xff\xfe]*[{\[\"]")
_FIELD_NAME: Final = re.compile(r"[\w.\[\]-]{1,64}")
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
        forms = self._forms(dialect)
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
                elif self._data and (readable := _readable(forms, self._data, path, self._dialects)):
                    _, dialect, value = next((found for found in readable if found[0].operations is None), readable[0])
                    call = self._call(dialect, value)
                    asking = Asking(self._state, self._judges.of(call), call)
                    changed = await self._judge_request(readable, asking)
        except UnreadableError as exc:
            # Where nobody judges requests, the app may make of it what it can.
            if self._judges.judge_any(REQUEST_KINDS):
                asking = asking or self._asking(dialect)
                fault = f"The request body can't be read: {exc}"
                given = media_type(headers_of(self._scope))
                if given is not None and "json" not in given and forms[0] is _JSON:
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

    def _forms(self, by_path: Dialect) -> "Sequence[_BodyForm]":
        """The forms in which an app may read the body. None: it passes unread."""
        headers = headers_of(self._scope)
        given = media_type(headers)
        judged = self._judges.judge_any(REQUEST_KINDS)
        if codings_of(headers):
            return (_ENCODED,) if judged else ()
        if judged and sum(name.lower() == b"content-type" for name, _ in headers) > 1:
            return (_SEVERAL,)
        if judged and not in_utf_8(headers) and not (given or "").startswith("multipart/"):
            return (_CHARSET,)
        if given == "application/json" or (given or "").endswith("+json") or by_path is not _UNKNOWN:
            # Apps that speak a dialect read JSON whatever its type is said to be.
            return (_JSON,)
        if not judged:
            return (_MAYBE_JSON,) if given is None else ()
        if given is None:
            return (_MAYBE_JSON, _OTHERWISE_PLAIN)
        if given == _FORM_TYPE:
            return (_FIELDS, _MAYBE_JSON)
        if given.startswith("text/"):
            return (_PLAIN, _MAYBE_JSON)
        # Some apps read JSON whatever its type is said to be.
        return (_OTHER,) if self._judges.judge_any(_INPUT) else (_MAYBE_JSON,)

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

    async def _judge_request(self, readable: "Sequence[_Readable]", asking: Asking) -> bytes | None:
        """Judge the text of the request. Returns the body in which it is changed; None: it is not."""
        judges = asking.judges
        if not judges.on(REQUEST_KINDS):
            return None
        data = self._data
        by_path = any(dialect.knows_path(self._scope["path"]) for dialect in self._dialects)
        for form, dialect, _ in readable:
            given = form.to_json(data)
            body = Body(given, form.operations or _request_of(dialect, by_path), judges, kind="input")
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
            extensions = self._scope.get("extensions")
            if extensions and not BODY_BYPASSES.isdisjoint(extensions):
                changes["extensions"] = {name: it for name, it in extensions.items() if name not in BODY_BYPASSES}
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


class _BodyForm(Struct, frozen=True):
    """A form that request bodies have: how one becomes JSON, for its strings to be judged, and back.

    :ivar from_json: takes the changed JSON, and the body as it was.
    :ivar dialect: None: known by path and shape.
    :ivar operations: None: those of the dialect.
    :ivar optional: whether a body need not have this form.
    :ivar fallback: it is for bodies that have no other.
    """

    to_json: Callable[[bytes], bytes]
    from_json: Callable[[bytes, bytes], bytes]
    dialect: Dialect | None = None
    operations: Callable[[JSON], list[Operation]] | None = None
    optional: bool = False
    fallback: bool = False


#: A form in which a body can be read, the dialect that it is in, and what it says.
_Readable = tuple[_BodyForm, Dialect, JSON]


def _readable(forms: Sequence[_BodyForm], data: bytes, path: str, dialects: Sequence[Dialect]) -> Sequence[_Readable]:
    """The forms in which ``data`` can be read. Raises UnreadableError if it is not of one that it has to be of."""
    readable: list[_Readable] = []
    for form in forms:
        if form.fallback and readable:
            continue
        if form.optional and not _LOOKS_LIKE_JSON.match(data):
            continue
        if form.optional:
            _refuse_other_encodings(data)
        try:
            value, _ = loads(_decoded(form.to_json(data)))
        except UnreadableError as exc:
            # An app may read what is over our limits.
            if form.optional and not isinstance(exc, TooComplexError):
                continue
            raise
        readable.append((form, form.dialect or of_request(path, value, dialects), value))
    return readable


def _refuse_other_encodings(data: bytes) -> None:
    """Apps that read JSON whatever its type is said to be read it in UTF-16 and UTF-32 too, and so past the judges."""
    encoding = json.detect_encoding(data)
    if encoding != "utf-8":
        raise UnreadableError(f"expected UTF-8, got {encoding}")


def _request_of(dialect: Dialect, by_path: bool) -> Callable[[JSON], list[Operation]]:
    """All text of a request: what its dialect finds, and what it does not know."""

    if not is_ours(dialect):
        # Its user has said where text is.
        return dialect.request

    def operations(value: JSON) -> list[Operation]:
        found = dialect.request(value)
        return [*found, *uncovered(value, found, by_path=by_path)]

    return operations


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise UnreadableError(f"expected UTF-8: {exc.reason} at byte {exc.start}") from None


def _as_it_is(data: bytes) -> bytes:
    return data


def _changed(changed: bytes, data: bytes) -> bytes:
    return changed


def _text_to_json(data: bytes) -> bytes:
    return json.dumps(_decoded(data)).encode()


def _json_to_text(changed: bytes, data: bytes) -> bytes:
    text: str = json.loads(changed)
    return text.encode()


def _fields_to_json(data: bytes) -> bytes:
    """The names and values of all fields, in turns, decoded."""
    texts: list[str] = []
    for field in data.split(b"&"):
        name, _, value = field.partition(b"=")
        texts += (_unquoted(name), _unquoted(value))
    return json.dumps(texts).encode()


def _json_to_fields(changed: bytes, data: bytes) -> bytes:
    """``data`` with what was changed in it. Fields that were not stay as they are."""
    texts: list[str] = json.loads(changed)
    fields = data.split(b"&")
    for index, field in enumerate(fields):
        name, equals, value = field.partition(b"=")
        new_name, new_value = texts[2 * index : 2 * index + 2]
        if new_name != _unquoted(name):
            name = quote_plus(new_name).encode()
        if new_value != _unquoted(value):
            value = quote_plus(new_value).encode()
        fields[index] = name + equals + value
    return b"&".join(fields)


def _unquoted(given: bytes) -> str:
    return _decoded(unquote_to_bytes(given.replace(b"+", b" ")))


def _field_texts(value: JSON) -> list[Operation]:
    """Names are no text, as the keys of JSON are none. But apps that read the body as it is may be sent a text."""
    assert isinstance(value, list)
    return [
        Whole(Slot(("field", index), "input"), (index,), text)
        for index, text in enumerate(value)
        if isinstance(text, str) and text and (index % 2 or not _FIELD_NAME.fullmatch(text))
    ]


def _refused(fault: str) -> Callable[[bytes], bytes]:
    def refuse(data: bytes) -> bytes:
        raise UnreadableError(fault)

    return refuse


_JSON: Final = _BodyForm(_as_it_is, _changed)
_MAYBE_JSON: Final = _BodyForm(_as_it_is, _changed, optional=True)
_PLAIN: Final = _BodyForm(_text_to_json, _json_to_text, PlainText(), PlainText().request)
_OTHERWISE_PLAIN: Final = _BodyForm(_text_to_json, _json_to_text, PlainText(), PlainText().request, fallback=True)
_FIELDS: Final = _BodyForm(_fields_to_json, _json_to_fields, _UNKNOWN, _field_texts)
_ENCODED: Final = _BodyForm(_refused("it has a content-encoding, expected none"), _changed)
_SEVERAL: Final = _BodyForm(_refused("it has several content-types, expected one"), _changed)
_CHARSET: Final = _BodyForm(_refused("expected UTF-8 as its charset"), _changed)
_OTHER: Final = _BodyForm(_refused("expected JSON, text or an encoded form as its content-type"), _changed)


async def _never(message: Message) -> None:
    """Of the request nothing is judged any more once the app runs."""
