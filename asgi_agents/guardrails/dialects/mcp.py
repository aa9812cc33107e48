"""MCP: JSON-RPC 2.0 over streamable HTTP. An answer is one JSON document, or a stream of server-sent events.

A dialect that is bound to a request knows whose answers these are. One that is not, as in a GET, goes by their shape.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, cast

from ..dialect import Form, Stop, StopReply
from ..framing import Framer, Unit, UnreadableError
from ..json_text import JSON, Path, pointer
from ..operations import End, Mark, Operation, Passed, Text
from ..slots import Call, Slot
from ..sse import SSEFramer
from ..uncovered import Uncovered
from .base import Mapped, sse
from .json_rpc import (
    Asked,
    AskedBody,
    Id,
    asking_of,
    checked,
    error,
    id_of,
    in_place_of,
    is_message,
    messages_in,
    reply,
)
from .mcp_text import METHODS, named_strings, texts_of

# The headers that clients of streamable HTTP send, once they have a session or a version.
_HEADERS: Final = frozenset({b"mcp-session-id", b"mcp-protocol-version", b"mcp-method"})
# The id of an event, as far as that is no text (sse.py).
_EVENT_ID: Final = re.compile(rb"^id: ?([\w./:|+=-]{1,128})\r?$", re.MULTILINE)


class MCP:
    """The dialect.

    :param asking: what the request asks that it is bound to. None: it is bound to none.
    """

    name = "mcp"
    form: Form = "json"
    repeats = False

    def __init__(self, asking: AskedBody | None = None) -> None:
        self._asking = asking

    @property
    def is_bound(self) -> bool:
        return self._asking is not None

    def bind(self, value: JSON) -> "MCP":
        return MCP(asking_of(value))

    def knows_path(self, path: str) -> bool:
        return False

    def knows_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        for name, value in headers:
            name = name.lower()
            if name in _HEADERS:
                return True
            # As each request has to, the first one too.
            if name == b"accept" and b"application/json" in value and b"text/event-stream" in value:
                return True
        return False

    def knows(self, value: JSON) -> bool:
        return any(_is_known(message) for _, message in messages_in(value))

    def call(self, value: JSON, path: str) -> Call:
        tools = [
            params["name"]
            for _, message in messages_in(value)
            if isinstance(message, dict) and message.get("method") == "tools/call"
            if isinstance(params := message.get("params"), dict) and isinstance(params.get("name"), str)
        ]
        return Call(dialect=self.name, tools=tuple(map(str, tools)))

    def request(self, value: JSON) -> list[Operation]:
        if value == []:
            raise UnreadableError("expected messages in a batch, got none")
        operations: list[Operation] = []
        for at, message in messages_in(value):
            operations += texts_of(checked(message), at, "client", None, None)
        return operations

    def answer(self, value: JSON) -> list[Operation]:
        operations: list[Operation] = []
        for at, message in messages_in(value):
            asked = _asked(self._asking, message)
            method, tool = (asked.method, asked.tool) if asked is not None else (None, None)
            operations += texts_of(checked(message), at, "server", method, tool)
        return operations

    def framer(self, media_type: str) -> Framer:
        return SSEFramer()

    def reader(self, media_type: str) -> "MCPReader":
        return MCPReader(self._asking)

    def reply(self, stop: Stop) -> StopReply:
        return reply(self._asking, stop)

    def in_place_of_request(self, stop: Stop) -> bytes | None:
        return None if self._asking is None else in_place_of(self._asking, stop)


class MCPReader:
    """Reads one stream: of answers to the requests of a body, or of whatever the server has to say."""

    __slots__ = ("_asking", "_events", "_joined", "_next", "_open", "_uncovered")

    def __init__(self, asking: AskedBody | None) -> None:
        self._asking = asking
        # What was asked and not answered yet.
        self._open: dict[Id, JSON] = {}
        if asking is not None:
            self._open = {name: asked.id for name, asked in asking.requests.items()}
        # The events that were read and have not left: the ids of the answers in each, and its own.
        self._events: dict[int, tuple[dict[Id, JSON], bytes | None]] = {}
        self._next = 0
        # Slots of answers that come in parts.
        self._joined: dict[str, None] = {}
        self._uncovered = Uncovered()

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation] | None:
        messages = messages_in(value)
        if not messages or not all(is_message(message) for _, message in messages):
            # An app's own. All there is in it is text.
            return self._uncovered.joined(unit, cast(Mapped, value))
        operations: list[Operation] = []
        answers: dict[Id, JSON] = {}
        joins = False
        for at, given in messages:
            message = checked(given)
            asked = _asked(self._asking, message)
            if "method" not in message:
                answers[id_of(message.get("id"))] = message.get("id")
            if asked is not None and asked.method not in METHODS and "result" in message:
                joins = True
                operations += self._parts(message, at)
            else:
                method, tool = (asked.method, asked.tool) if asked is not None else (None, None)
                operations += texts_of(message, at, "server", method, tool)
        if self._joined and not joins:
            # What the server asks now may be what it needs to go on: nothing waits in front of it.
            operations = [*(End(("joined", name)) for name in self._joined), *operations]
            self._joined.clear()
        ids = _EVENT_ID.findall(unit.raw)
        self._events[self._next] = (answers, ids[-1] if ids else None)
        operations = [*self._uncovered.beside(cast(Mapped, value), operations), Mark((self._next,))]
        self._next += 1
        return operations

    def _parts(self, message: Mapped, at: Path) -> list[Operation]:
        """An answer of a protocol that is not known here: there may be several to one request, parts of one text."""
        operations: list[Operation] = []
        for path, text, passes in named_strings(message, at):
            if passes:
                operations.append(Passed(path))
                continue
            name = pointer(path)
            self._joined[name] = None
            operations.append(Text(Slot(("joined", name), "output"), path, text))
        return operations

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        match mark:
            case (int(number),) if number in self._events:
                for name in self._events.pop(number)[0]:
                    self._open.pop(name, None)
        return {}

    def ending(self, stop: Stop) -> bytes:
        told = dict(self._open)
        if self._asking is None or not self._asking.requests:
            for answers, _ in self._events.values():
                told.update(answers)
            told = told or {id_of(None): None}
        elif not told:
            # Its client has all of its answers, and reads no more.
            return b""
        out = [sse(error(request_id, stop), "message") for request_id in told.values()]
        ids = [event_id for _, event_id in self._events.values() if event_id is not None]
        if ids and not stop.failure:
            # A client that takes the stream up again goes on behind what was blocked, and not in front of it for ever.
            out.insert(len(out) - 1, b"id: " + ids[0] + b"\n")
        return b"".join(out)


def _is_known(message: JSON) -> bool:
    """Whether it is a message. Servers may be lenient about the version."""
    if not isinstance(message, dict):
        return False
    method = message.get("method")
    return message.get("jsonrpc") == "2.0" or (isinstance(method, str) and "/" in method and method in METHODS)


def _asked(asking: AskedBody | None, message: JSON) -> Asked | None:
    """What a message answers."""
    if asking is None or not isinstance(message, dict) or "method" in message:
        return None
    return asking.requests.get(id_of(message.get("id")))
