"""An agent at the other end of a stream, which does only what a test tells it to."""

import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Self

import anyio
import msgspec
from anyio.abc import SocketStream

from asgi_agents import AgentResponse, EventType
from asgi_agents.protocol import ALLOW, Answer, Encoding, encode_answer
from asgi_agents.protocol.stream import (
    EVENT_NUMBERS,
    EVENT_OF_MESSAGE,
    CallIds,
    Cancel,
    FlowControl,
    FrameReader,
    Framing,
    HealthStatus,
    MessageType,
    encode_answer_frame,
    encode_envelope_frame,
    encode_frame,
    encode_message,
)
from tests.support.listening import listening

ALL_EVENTS = frozenset(EventType) - {EventType.CONFIGURE}


def handshake(
    *,
    events: frozenset[EventType] = ALL_EVENTS,
    encoding: str = "json",
    features: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    **changes: Any,
) -> bytes:
    """A handshake response's frame."""
    response = {
        "protocol_version": 2,
        "success": True,
        "encoding": encoding,
        "capabilities": {
            "agent_id": "peer",
            "name": "peer",
            "version": "1.0",
            "supported_events": sorted(EVENT_NUMBERS[event] for event in events),
            "features": features or {},
            "limits": limits or {"max_body_size": 10485760, "max_concurrency": 1000, "preferred_chunk_size": 65536},
        },
        **changes,
    }
    return encode_frame(MessageType.HANDSHAKE_RESPONSE, msgspec.json.encode(response))


class Link:
    """The peer's end of one connection."""

    def __init__(self, peer: "Peer", stream: SocketStream, number: int) -> None:
        self.peer = peer
        self.number = number
        self.stream = stream
        self.closed = anyio.Event()
        self.scope = anyio.CancelScope()
        self._sending = anyio.Lock()

    async def send(self, data: bytes, *, piece: int | None = None) -> None:
        """Send ``data``, in pieces of so many bytes if wanted."""
        async with self._sending:
            for start in range(0, len(data), piece or len(data) or 1):
                await self.stream.send(data[start : start + (piece or len(data))])

    async def say(self, health: int, **fields: Any) -> None:
        """Send a health status."""
        status = HealthStatus(state=health, **fields)
        await self.send(encode_message(MessageType.HEALTH_STATUS, status, self.peer.encoding))

    async def flow(self, action: int, **fields: Any) -> None:
        """Send a flow control message."""
        control = FlowControl(action=action, **fields)
        await self.send(encode_message(MessageType.FLOW_CONTROL, control, self.peer.encoding))

    async def aclose(self) -> None:
        """Close this connection."""
        # Not the stream itself: anyio minds when that is being read from at the same time.
        self.scope.cancel()
        await self.closed.wait()


class Received:
    """One message that the peer got."""

    def __init__(self, link: Link, message_type: int, payload: dict[str, Any]) -> None:
        self.link = link
        self.type = message_type
        self.payload = payload
        self.event_type = EVENT_OF_MESSAGE.get(message_type)

    def __repr__(self) -> str:
        return f"<{self.type:#04x} {self.payload.get('correlation_id')} on {self.link.number}>"

    @property
    def correlation_id(self) -> str:
        found = self.payload.get("correlation_id") or self.payload.get("metadata", {}).get("correlation_id", "")
        return str(found)

    @property
    def ids(self) -> CallIds:
        call_id = self.payload.get("call_id")
        return CallIds(self.correlation_id) if call_id is None else CallIds(self.correlation_id, call_id)

    def frame(self, answer: Answer = ALLOW, *, ids: CallIds | None = None) -> bytes:
        """The answer's frame; with empty ``ids`` it names no call."""
        if self.link.peer.framing is Framing.ENVELOPE:
            return encode_envelope_frame(encode_answer(answer, self.link.peer.encoding))
        if ids == CallIds():
            return encode_frame(MessageType.AGENT_RESPONSE, encode_answer(answer, self.link.peer.encoding))
        return encode_answer_frame(answer, self.link.peer.encoding, self.ids if ids is None else ids)

    async def answer(self, answer: Answer = ALLOW, *, ids: CallIds | None = None, piece: int | None = None) -> None:
        """Answer it."""
        await self.link.send(self.frame(answer, ids=ids), piece=piece)

    async def echo(self) -> None:
        """Answer with a block whose body names the event, to see whose answer it is."""
        await self.answer(AgentResponse.block(403, self.name))

    @property
    def name(self) -> str:
        """Tells events of one correlation id apart."""
        return f"{self.correlation_id}/{self.type:#04x}/{self.payload.get('chunk_index', 0)}"


class Peer:
    """Listens on a Unix socket.

    :param greeting: the handshake response's frame; None: silence.
    :param behaviour: called with each event; by default they wait in :meth:`next`.
    """

    def __init__(
        self,
        greeting: bytes | None = None,
        *,
        framing: Framing | str = Framing.V2,
        encoding: Encoding | str = Encoding.JSON,
        path: str | None = None,
        silent: bool = False,
        behaviour: Callable[[Received], Any] | None = None,
    ) -> None:
        self.encoding = Encoding(encoding)
        self.framing = Framing(framing)
        self.greeting = None if silent else greeting or handshake(encoding=self.encoding)
        self.path = path or f"{tempfile.mkdtemp()}/peer.sock"
        self.url = f"unix://{self.path}"
        self.links: list[Link] = []
        self.accepted = 0
        self.cancels: list[Cancel] = []
        self.pings = 0
        self.pong = True
        self.handshakes: list[dict[str, Any]] = []
        self.behaviour = behaviour
        self._numbers = count()
        self._events: deque[Received] = deque()
        self._came = anyio.Event()

    async def next(self) -> Received:
        """The next event, in the order they came."""
        with anyio.fail_after(5):
            while not self._events:
                await self._came.wait()
            return self._events.popleft()

    @property
    def unread(self) -> int:
        """Events that :meth:`next` has not returned yet."""
        return len(self._events)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        """Accept connections within; all are closed afterwards."""
        async with listening(self.path, self._serve):
            yield self

    async def _serve(self, stream: SocketStream) -> None:
        self.accepted += 1
        link = Link(self, stream, next(self._numbers))
        reader = FrameReader(self.framing)
        if self.framing is Framing.ENVELOPE:
            self.links.append(link)
        try:
            with link.scope:
                async with stream:
                    while True:
                        for frame in reader.feed(await stream.receive()):
                            await self._frame(link, frame)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            pass
        finally:
            link.closed.set()
            if link in self.links:
                self.links.remove(link)

    async def _frame(self, link: Link, frame: bytes) -> None:
        decode: Callable[[bytes], Any] = (
            msgspec.json.decode if self.encoding is Encoding.JSON else msgspec.msgpack.decode
        )
        if self.framing is Framing.ENVELOPE:
            envelope = decode(frame)
            message_type = int(MessageType[envelope["event_type"].upper()])
            return await self._event(Received(link, message_type, envelope["payload"]))
        message_type, payload = frame[0], frame[1:]
        if message_type == MessageType.HANDSHAKE_REQUEST:
            self.handshakes.append(msgspec.json.decode(payload))
            if self.greeting is not None:
                self.links.append(link)
                await link.send(self.greeting)
        elif message_type == MessageType.PING:
            self.pings += 1
            if self.pong:
                await link.send(encode_frame(MessageType.PONG, payload))
        elif message_type == MessageType.CANCEL:
            # In JSON, whatever the encoding.
            self.cancels.append(msgspec.json.decode(payload, type=Cancel))
        else:
            await self._event(Received(link, message_type, decode(payload)))
        return None

    async def _event(self, event: Received) -> None:
        if self.behaviour is None:
            self._events.append(event)
            self._came.set()
            self._came = anyio.Event()
        else:
            await self.behaviour(event)
