"""The messages of one direction of a websocket that guardrails judge, from and to ASGI."""

from starlette.types import Message

from ..concurrency.limiter import Limiter
from ..guardrails.dialects.realtime import knows_path
from ..guardrails.message import Payload
from ..guardrails.message_stream import MessageStream
from ..guardrails.slots import Kind
from .text_asking import Asking
from .text_stream import StreamedText


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


def payload_of(message: Message) -> Payload:
    """What a message has. Of two payloads, the bytes."""
    data = message.get("bytes")
    return (message.get("text") or "") if data is None else bytes(data)


def message_of(kind: str, payload: Payload) -> Message:
    """A message of that type."""
    return {"type": kind, "text" if isinstance(payload, str) else "bytes": payload}
