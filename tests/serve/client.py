"""A client of the stream transport, as raw as can be."""

import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import ByteStream
from msgspec import UNSET, UnsetType

from asgi_agents.errors import AgentError
from asgi_agents.protocol import AgentResponse, Answer, AuditMetadata, Encoding, Event, EventType, decode_answer
from asgi_agents.protocol.codec import NO_VERDICT
from asgi_agents.protocol.stream import (
    CallIds,
    FrameReader,
    Framing,
    HandshakeRequest,
    MessageType,
    correlation_id_of,
    decode_answer_ids,
    encode_event_frame,
    encode_message,
)
from asgi_agents.transports.wire import parse_address


class RawClient:
    """Sends frames, and gives those that come, one at a time."""

    def __init__(self, stream: ByteStream, framing: Framing = Framing.V2) -> None:
        self.stream = stream
        self.encoding = Encoding.JSON
        self._reader = FrameReader(framing)
        self._frames: deque[bytes] = deque()

    async def send(self, *frames: bytes) -> None:
        await self.stream.send(b"".join(frames))

    async def frame(self) -> bytes:
        """The next frame; raises EndOfStream at the end."""
        with anyio.fail_after(60):
            while not self._frames:
                try:
                    self._frames.extend(self._reader.feed(await self.stream.receive()))
                except anyio.BrokenResourceError as exc:
                    raise anyio.EndOfStream from exc
        return self._frames.popleft()

    async def message(self) -> tuple[int, Any]:
        """The type of the next frame, and its payload as plain values."""
        frame = await self.frame()
        encoding = Encoding.JSON if frame[0] < 0x10 else self.encoding
        decode = msgspec.json.decode if encoding is Encoding.JSON else msgspec.msgpack.decode
        return frame[0], decode(frame[1:])

    async def handshake(self, *encodings: str, versions: Iterable[int] = (2,)) -> Any:
        """The answer to the handshake; the health that follows is read as well."""
        request = HandshakeRequest(supported_versions=list(versions), supported_encodings=encodings)
        await self.send(encode_message(MessageType.HANDSHAKE_REQUEST, request))
        message_type, response = await self.message()
        assert message_type == MessageType.HANDSHAKE_RESPONSE
        if response["success"]:
            self.encoding = Encoding(response["encoding"])
            assert (await self.message())[0] == MessageType.HEALTH_STATUS
        return response

    def spell(self, event: Event, call_id: int | UnsetType = UNSET) -> bytes:
        return encode_event_frame(event, self.encoding, CallIds(correlation_id_of(event), call_id))

    async def post(self, *events: Event) -> None:
        """Send events without call ids."""
        await self.send(*(self.spell(event) for event in events))

    async def answer(self, event_type: EventType = EventType.REQUEST_BODY_CHUNK) -> tuple[CallIds, Answer]:
        """The ids of the next answer, and what it says; of version 0 where there is no verdict."""
        frame = await self.frame()
        assert frame[0] == MessageType.AGENT_RESPONSE
        ids = decode_answer_ids(frame[1:], self.encoding)
        decode = msgspec.json.decode if self.encoding is Encoding.JSON else msgspec.msgpack.decode
        raw = decode(frame[1:])
        if raw.get("version") == 0:
            assert raw["decision"] == NO_VERDICT
            reasons = raw["audit"]["reason_codes"]
            with pytest.raises(AgentError, match=f"^{re.escape('; '.join(reasons))}$"):
                decode_answer(frame[1:], self.encoding, event_type)
            return ids, AgentResponse(version=0, audit=AuditMetadata(reason_codes=reasons))
        return ids, decode_answer(frame[1:], self.encoding, event_type)

    async def closed(self) -> bool:
        """Whether the server has closed the connection, and sent nothing more."""
        try:
            await self.frame()
        except anyio.EndOfStream:
            return True
        return False


@asynccontextmanager
async def connected(
    address: str,
    *,
    framing: Framing = Framing.V2,
    handshake: bool = True,
    encoding: str = "json",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[RawClient]:
    """A client that has introduced itself, unless told otherwise."""
    where = parse_address("test", address)
    stream: ByteStream
    if where.path is not None:
        stream = await anyio.connect_unix(where.path)
    elif tls is None:
        stream = await anyio.connect_tcp(where.host, where.port)
    else:
        stream = await anyio.connect_tcp(where.host, where.port, ssl_context=tls, tls_standard_compatible=False)
    async with stream:
        client = RawClient(stream, framing)
        if handshake and framing is Framing.V2:
            assert (await client.handshake(encoding))["success"]
        yield client
