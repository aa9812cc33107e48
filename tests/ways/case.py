"""One row of the table: a request, what the agent says of it, what the app answers, and what comes of it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal

from asgi_agents import AgentResponse, EventType

#: What an agent says: an answer; an exception, which it raises; a function from the event to an answer.
Said = AgentResponse | None | Exception | Callable[[Any], AgentResponse | None] | Literal["never"]
#: The agent does not answer at all.
NEVER: Final = "never"
PLAIN: Final = "text/plain; charset=utf-8"
#: What the middleware answers for an agent that fails.
FAILED: Final = b"Agent unavailable"
LATE: Final = b"Gateway timeout"


class Kind(Enum):
    """What an agent receives. The value is the name of its class in :mod:`tests.ways.agents`."""

    HEADS = "Heads"
    BODIES = "Bodies"
    RESPONSES = "Responses"
    MESSAGES = "Messages"
    TEXTS = "Texts"


@dataclass(frozen=True)
class Seen:
    """What reached the app.

    :ivar headers: those of the client and of agents; several fields of a name are joined with ``, ``.
    :ivar body: of a websocket, the messages of the client, one a line.
    :ivar routing: what the agent says for routing.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    routing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What the client got, and the app.

    :ivar status: 101 where a websocket was accepted.
    :ivar body: of a websocket, the messages of the app, one a line.
    :ivar cut: the response was broken off. What of it came first is not compared: that is a matter of timing.
    :ivar close: the code and the reason with which a websocket was closed.
    :ivar app: None: it was not called.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    app: Seen | None
    cut: bool = False
    close: tuple[int, str] | None = None

    @property
    def failed(self) -> bool:
        """Whether it is what the middleware answers for an agent that fails."""
        return self.body in (FAILED, LATE)


@dataclass(frozen=True)
class Reply:
    """What the app answers: to a websocket, with ``echo: `` and each message, until it gets ``bye``.

    :ivar waits: the client has the first piece before the app sends the next.
    """

    pieces: Sequence[bytes] = (b"served",)
    status: int = 200
    headers: Sequence[tuple[str, str]] = (("content-type", PLAIN), ("x-app", "1"))
    waits: bool = False


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What comes of a case, told by what differs from what would come of it without an agent.

    :ivar status: None: the app's.
    :ivar body: None: the app's; likewise ``app_body``, which is the client's.
    :ivar headers: changes to the headers of the app, or of a plain text where the app does not answer; None: gone.
    :ivar request: changes to the headers of the client.
    :ivar called: whether the request reaches the app.
    """

    status: int | None = None
    body: bytes | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    request: Mapping[str, str | None] = field(default_factory=dict)
    app_body: bytes | None = None
    routing: Mapping[str, str] = field(default_factory=dict)
    called: bool = True
    cut: bool = False
    close: tuple[int, str] | None = None


#: What comes of a case is what would come of it without an agent.
AS_WITHOUT: Final = Expected()


@dataclass(frozen=True, kw_only=True)
class Case:
    """See above.

    :ivar name: what the agent does, in the words of the documentation.
    :ivar path: percent-encoded; behind the name of the case.
    :ivar body: a tuple: in so many pieces, without a length.
    :ivar messages: those of a websocket.
    :ivar answers: what the agent says to which event; to others nothing.
    :ivar mode: how it is shown bodies.
    :ivar opens: it fails open.
    :ivar hurried: it has a tenth of a second to answer.
    :ivar never: no byte of this may reach the app or the client.
    :ivar read: makes what is compared of the response's body, where its bytes are a matter of timing.
    """

    name: str
    kind: Kind
    method: str = "GET"
    path: str = ""
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | tuple[bytes, ...] | None = None
    messages: tuple[str | bytes, ...] | None = None
    answers: Mapping[EventType, Said] = field(default_factory=dict)
    reply: Reply = Reply()
    mode: Literal["buffer", "stream"] = "buffer"
    opens: bool = False
    hurried: bool = False
    never: bytes = b""
    read: Callable[[bytes], bytes] = bytes
    expected: Expected = AS_WITHOUT

    @property
    def slug(self) -> str:
        """The name, as the first segment of the path."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def target(self) -> str:
        return f"/{self.slug}{self.path}"

    @property
    def content(self) -> bytes:
        """All of the request's body."""
        return self.body if isinstance(self.body, bytes) else b"".join(self.body or ())

    @property
    def outcome(self) -> Outcome:
        """What comes of it."""
        expected, reply = self.expected, self.reply
        answered = expected.called and expected.body is None and expected.status in (None, reply.status)
        seen = None
        sent = b"\n".join(as_bytes(message) for message in self.messages or ()) or self.content
        if expected.called:
            seen = Seen(
                method=self.method,
                target=self.target,
                headers=_changed(joined(self.headers), expected.request),
                body=sent if expected.app_body is None else expected.app_body,
                routing=expected.routing,
            )
        body = expected.body
        if body is None:
            echoed = b"\n".join(b"echo: " + as_bytes(message) for message in self.messages or ())
            body = echoed if self.messages is not None else b"".join(reply.pieces)
        status = expected.status or (reply.status if self.messages is None else 101)
        headers = reply.headers if answered or (expected.called and not expected.status) else [("content-type", PLAIN)]
        if status == 101:
            headers = []
        return Outcome(
            status=status,
            headers=_changed(joined(headers), expected.headers),
            body=b"" if expected.cut else body,
            app=seen,
            cut=expected.cut,
            close=expected.close or ((1000, "") if status == 101 else None),
        )


def joined(fields: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Fields by name, as any recipient may join them (RFC 9110, section 5.3)."""
    found: dict[str, list[str]] = {}
    for name, value in fields:
        values = [value] if name in ("set-cookie", "cookie") else re.split(r"\s*,\s*", value)
        found.setdefault(name.lower(), []).extend(values)
    return {name: ", ".join(values) for name, values in found.items()}


def as_bytes(message: str | bytes) -> bytes:
    return message.encode() if isinstance(message, str) else message


def _changed(before: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {**before, **changes}.items() if value is not None}
