"""An agent as the Rust kit (protocol 0.6.45) serves it on a Unix socket."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import msgspec
from anyio.abc import SocketStream

from tests.peers import shapes
from tests.peers.wire import ENDS, Wire
from tests.support.listening import listening

ALLOW: dict[str, Any] = {"version": 2, "decision": "allow"}

Judge = Callable[[Any], Awaitable[dict[str, Any]]]


async def allow(event: Any) -> dict[str, Any]:
    return dict(ALLOW)


def block(status: int, body: str) -> dict[str, Any]:
    return {"version": 2, "decision": {"block": {"status": status, "body": body, "headers": None}}}


class RustKit:
    """Answers the events of a connection one after the other, with the correlation id, and no guardrail event at all.

    Its handshake names request heads only, whatever the agent implements. What it can't decode it lets through.

    :param binary: built with ``binary-uds``: speaks msgpack with whoever offers that first.
    :param judge: the agent: the answer to an event. It refuses to be configured with nothing, as the published agents.
    """

    def __init__(self, *, binary: bool = False, judge: Judge = allow, supported_events: tuple[int, ...] = (1,)) -> None:
        self.path = f"{tempfile.mkdtemp()}/rust.sock"
        self.url = f"unix://{self.path}"
        self.encodings = ("json", "msgpack") if binary else ("json",)
        self.judge = judge
        self.supported_events = supported_events
        self.spoken: list[str] = []
        self.events: list[Any] = []
        self.configurations: list[shapes.Configure] = []
        self.questions: list[dict[str, Any]] = []
        self.cancels: list[shapes.Cancel] = []
        self.pings: list[shapes.Ping] = []
        self.undecodable: list[bytes] = []
        self.accepted = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        """Accept connections within."""
        async with listening(self.path, self._serve):
            yield self

    async def _serve(self, stream: SocketStream) -> None:
        self.accepted += 1
        try:
            async with stream:
                wire = Wire(stream)
                encoding = await self._greet(wire)
                while True:
                    await self._message(wire, encoding, *await wire.receive())
        except ENDS:
            pass

    async def _greet(self, wire: Wire) -> str:
        message_type, payload = await wire.receive()
        assert message_type == 0x01
        request = shapes.decode(shapes.HandshakeRequest, payload, "json")
        encoding: str = next((each for each in request.supported_encodings if each in self.encodings), "json")
        self.spoken.append(encoding)
        features = dict.fromkeys(shapes.Features.__struct_fields__, False) | {
            "cancellation": True,
            "concurrent_requests": 100,
        }
        response = {
            "protocol_version": 2,
            "capabilities": {
                "agent_id": "rust",
                "name": "rust",
                "version": "0.3.0",
                "supported_events": self.supported_events,
                "features": features,
                "limits": {"max_body_size": 10485760, "max_concurrency": 100, "preferred_chunk_size": 65536},
            },
            "success": True,
            "error": None,
            "encoding": encoding,
        }
        await wire.send(shapes.encode(response, "json"), 0x02)
        return encoding

    async def _message(self, wire: Wire, encoding: str, message_type: int, payload: bytes) -> None:
        match message_type:
            case 0x40:
                # In JSON, whatever the encoding, and so are pings.
                self._note(self.cancels, shapes.Cancel, payload)
            case 0x41:
                self._note(self.pings, shapes.Ping, payload)
                await wire.send(payload, 0x42)
            case 0x16:
                # It knows no such event.
                self.questions.append(shapes.decode(dict[str, Any], payload, encoding))
            case _:
                await self._event(wire, encoding, message_type, payload)

    async def _event(self, wire: Wire, encoding: str, message_type: int, payload: bytes) -> None:
        try:
            event = shapes.decode(shapes.EVENTS[message_type], payload, encoding)
        except msgspec.MsgspecError:
            self.undecodable.append(payload)
            ids = shapes.decode(dict[str, Any], payload, encoding)
            correlation_id, answer = str(ids.get("correlation_id", "")), dict(ALLOW)
        else:
            correlation_id = event.metadata.correlation_id if message_type == 0x10 else event.correlation_id
            answer = await self._answer(event)
        audit = answer.get("audit", {})
        answer["audit"] = audit | {"custom": {**audit.get("custom", {}), "correlation_id": correlation_id}}
        await wire.send(shapes.encode(answer, encoding), 0x20)

    async def _answer(self, event: Any) -> dict[str, Any]:
        if isinstance(event, shapes.Configure):
            self.configurations.append(event)
            return block(500, "Configuration rejected") if event.config is None else dict(ALLOW)
        self.events.append(event)
        return await self.judge(event)

    def _note(self, where: list[Any], kind: Any, payload: bytes) -> None:
        try:
            where.append(shapes.decode(kind, payload, "json"))
        except msgspec.MsgspecError:
            self.undecodable.append(payload)
