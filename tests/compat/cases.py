"""What agents do, and what a client must see of it, whatever the framework between them."""

from collections.abc import Iterator
from enum import StrEnum
from itertools import product
from typing import Any, Final, NamedTuple

from anyio.lowlevel import checkpoint

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentResponse,
    BodyMode,
    BodyMutation,
    EventType,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    WebSocketFrameEvent,
)

#: What every body is made of. Agents act on a word of it.
WORDS: Final = ("one", "two", "three", "four")
TEXT: Final = " ".join(WORDS)
STOPPED: Final = "stopped by policy"
UNAVAILABLE: Final = "Agent unavailable"
# The default type that Starlette's clients and ours send for event streams.
EVENT_STREAM: Final = "text/event-stream"


class Act(StrEnum):
    """What an agent does."""

    ALLOW = "allow"
    CHANGE = "change"
    BEFORE = "blocks-before"
    MIDWAY = "blocks-midway"
    END = "blocks-at-the-end"
    FAIL = "fails-midway"


class Seen(NamedTuple):
    """What a client sees: the words of a stream, and the message of the error that ends it, if one does.

    ``whole`` is False where the connection is broken off.
    """

    status: int
    words: tuple[str, ...]
    error: str | None = None
    whole: bool = True


CHANGED: Final = tuple("twenty-two" if word == "two" else word for word in WORDS)
_REFUSED: Final = Seen(403, (), STOPPED)
_FAILED: Final = Seen(503, (), UNAVAILABLE)

#: Bodies that are judged before anything of them, or of the reply to them, has left.
WHOLE: Final = {
    Act.ALLOW: Seen(200, WORDS),
    Act.CHANGE: Seen(200, CHANGED),
    Act.BEFORE: _REFUSED,
    Act.MIDWAY: _REFUSED,
    Act.END: _REFUSED,
    Act.FAIL: _FAILED,
}
#: Event streams, in all modes.
EVENTS: Final = {
    Act.ALLOW: Seen(200, WORDS),
    Act.CHANGE: Seen(200, CHANGED),
    Act.BEFORE: _REFUSED,
    Act.MIDWAY: Seen(200, WORDS[:2], STOPPED),
    Act.END: Seen(200, WORDS[:3], STOPPED),
    Act.FAIL: Seen(200, WORDS[:2], UNAVAILABLE),
}
#: Streams of another type whose length nobody has declared, where they aren't buffered.
PIECES: Final = EVENTS | {
    Act.MIDWAY: Seen(200, WORDS[:2], whole=False),
    Act.END: Seen(200, WORDS[:3], whole=False),
    Act.FAIL: Seen(200, WORDS[:2], whole=False),
}
#: Messages of a websocket: ``status`` is the code of the close, of a handshake that is denied that of the response.
MESSAGES: Final = {
    Act.ALLOW: Seen(1000, WORDS),
    Act.CHANGE: Seen(1000, tuple(word for word in WORDS if word != "two")),
    Act.BEFORE: _REFUSED,
    Act.MIDWAY: Seen(4003, WORDS[:2], STOPPED),
    Act.END: Seen(4003, WORDS[:3], STOPPED),
    Act.FAIL: Seen(1011, WORDS[:2], "Agent error"),
}


class Case(NamedTuple):
    """One line of the table. Agents whose hooks suspend take other ways through the package than those that don't."""

    act: Act
    mode: BodyMode
    suspends: bool

    def __str__(self) -> str:
        return f"{self.mode.name}-{self.act}-{'slow' if self.suspends else 'prompt'}"

    def agent(self, *events: EventType, **options: Any) -> AgentConfig:
        """An agent that hears ``events`` and acts; ``options`` are further ones of :class:`AgentConfig`."""
        kind = SlowJudge if self.suspends else Judge
        return config(
            kind(self.act),
            events={EventType.REQUEST_HEADERS, *events},
            request_body_mode=self.mode,
            response_body_mode=self.mode,
            body_access="write" if self.act is Act.CHANGE else "read",
            **options,
        )


MODES: Final = (BodyMode.BUFFER, BodyMode.STREAM, BodyMode.hybrid(6))
CASES: Final = tuple(Case(*line) for line in product(Act, MODES, (False, True)))
#: For what has no modes.
FRAMES: Final = tuple(case for case in CASES if case.mode is BodyMode.BUFFER)


def config(agent: Agent, **options: Any) -> AgentConfig:
    """With deadlines that no machine is too slow for, and without a breaker that would remember another test."""
    return AgentConfig("judge", agent, **{"timeout": 30.0, "chunk_timeout": 30.0, "circuit_breaker": None} | options)


class Judge(Agent):
    """Acts on the words of a body, whichever piece they come in. Its hooks never suspend."""

    def __init__(self, act: Act) -> None:
        self.act = act

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return self.judge_head()

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        mutation = self.judge(event.data)
        return AgentResponse.allow(request_body_mutation=mutation) if isinstance(mutation, BodyMutation) else mutation

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        mutation = self.judge(event.data)
        return AgentResponse.allow(response_body_mutation=mutation) if isinstance(mutation, BodyMutation) else mutation

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        if event.client_to_server:
            return None
        match self.judge(event.data):
            case AgentResponse():
                return AgentResponse.websocket_close(4003, STOPPED)
            case BodyMutation():
                # A message can't be changed, only dropped.
                return AgentResponse.websocket_drop()
        return None

    def judge_head(self) -> AgentResponse | None:
        return AgentResponse.block(403, STOPPED) if self.act is Act.BEFORE else None

    def judge(self, data: bytes) -> AgentResponse | BodyMutation | None:
        match self.act:
            case Act.MIDWAY if b"three" in data:
                return AgentResponse.block(403, STOPPED)
            case Act.END if b"four" in data:
                return AgentResponse.block(403, STOPPED)
            case Act.FAIL if b"three" in data:
                raise RuntimeError("the agent is broken")
            case Act.CHANGE if b"two" in data:
                return BodyMutation(data.replace(b"two", b"twenty-two"))
        return None


class SlowJudge(Judge):
    """Its hooks suspend."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        await checkpoint()
        return await super().on_request_headers(event)

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        return await super().on_request_body_chunk(event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        return await super().on_response_body_chunk(event)

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        await checkpoint()
        return await super().on_websocket_frame(event)


def pieces() -> Iterator[bytes]:
    """:data:`TEXT`, a word at a time."""
    for word in WORDS:
        yield f"{word} ".encode() if word != WORDS[-1] else word.encode()
