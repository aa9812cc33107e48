"""The messages of one direction of a websocket that guardrails judge, from and to ASGI."""

from typing import Final

from starlette.types import Message

from ..concurrency.limiter import Limiter
from ..decision import AgentDecision
from ..evaluation.text_judges import RouteJudges
from ..guardrails.body import Parsed
from ..guardrails.dialect import Stop
from ..guardrails.dialects.realtime_kinds import knows_path
from ..guardrails.framing import UnreadableError
from ..guardrails.json_text import Loader
from ..guardrails.message import Payload, may_be_json, read
from ..guardrails.message_stream import MessageStream
from ..guardrails.slots import Kind
from ..guardrails.tool_listing import without_tools
from ..guardrails.tool_policy import TOOL_POLICY
from ..protocol import Block as DeniedBy
from .state import ExchangeState
from .text_asking import Asking, Stopped
from .text_stream import StreamedText
from .tool_gate import ToolGate

# Without these there is no list of tools in a message, in whatever encoding.
_MAY_LIST: Final = (b'"tools"', b"\\u", b"\0")


class JudgedMessages:
    """The messages of one direction.

    :ivar text: None where nobody judges them.
    """

    __slots__ = ("stream", "text", "turn")

    def __init__(self, asking: Asking, kinds: frozenset[Kind], *, from_client: bool, path: str) -> None:
        self.turn = Limiter(1)
        self.text: StreamedText[list[Payload]] | None = None
        judges = asking.judges.on(kinds)
        silence = max((judge.limits.max_hold for judge in judges), default=0.0)
        self.stream = MessageStream(
            asking.judges,
            from_client=from_client,
            strict=asking.judges.strict(kinds),
            speaks_realtime=knows_path(path),
            silence=silence,
        )


class PolicedMessages:
    """The calls of tools in a client's messages, the lists of them in an app's, and the policies of the route."""

    def __init__(self, judges: RouteJudges, state: ExchangeState) -> None:
        self._gate = ToolGate(judges, state)
        self._loader = Loader()

    @property
    def guards(self) -> bool:
        """Whether there is any policy."""
        return self._gate.guards

    def check(self, payload: Payload) -> Stopped | None:
        """Whether a message may pass to the app. Returns what the session is stopped with."""
        raw = payload.encode("utf-8", "surrogatepass") if isinstance(payload, str) else payload
        try:
            _, _, start = read(raw, self._loader)
            return None if start is None else self._gate.check(Parsed(raw[start:]), "websocket")
        except UnreadableError as exc:
            if not may_be_json(raw):
                return None
            # The app may read a call in it.
            return _stopped(Stop(str(exc), 400, malformed=True))

    def listed(self, payload: Payload) -> Payload:
        """A message of the app, without the tools that may not be called.

        :raises Stopped: where the client may read a list in it, and we don't.
        """
        raw = payload.encode("utf-8", "surrogatepass") if isinstance(payload, str) else payload
        if not any(sign in raw for sign in _MAY_LIST):
            return payload
        try:
            _, _, start = read(raw, self._loader)
            if start is None:
                return payload
            data, hidden = without_tools(raw[start:], self._gate.hides)
        except UnreadableError as exc:
            if not may_be_json(raw):
                return payload
            raise _stopped(Stop(f"a list of tools: {exc}", 503)) from None
        if not hidden:
            return payload
        self._gate.note_hidden(hidden)
        data = raw[:start] + data
        return data.decode("utf-8", "surrogatepass") if isinstance(payload, str) else data


def _stopped(stop: Stop) -> Stopped:
    return Stopped(stop, AgentDecision(decision=DeniedBy(stop.status, stop.message), decided_by=TOOL_POLICY))


def payload_of(message: Message) -> Payload:
    """What a message has. Of two payloads, the bytes."""
    data = message.get("bytes")
    return (message.get("text") or "") if data is None else bytes(data)


def message_of(kind: str, payload: Payload) -> Message:
    """A message of that type."""
    return {"type": kind, "text" if isinstance(payload, str) else "bytes": payload}
