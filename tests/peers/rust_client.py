"""A host of the protocol as the client of the Rust kit (protocol 0.6.45) is one."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import anyio
import msgspec

from tests.peers import shapes
from tests.peers.wire import Wire


class RustClient:
    """Names no calls. It decodes full AgentResponses only, and ignores their version, health and flow control.

    What it can't decode it discards: the call then ends by its timeout, and the host's failure mode applies.
    """

    def __init__(self, wire: Wire, *, binary: bool) -> None:
        self._wire = wire
        self._offered = ["msgpack", "json"] if binary else ["json"]
        self._numbers = count(1)
        self.encoding = "json"
        self.discarded: list[bytes] = []
        self.unmatched: list[shapes.Answer] = []
        self.pongs: list[bytes] = []

    async def greet(self) -> shapes.HandshakeResponse:
        request = {
            "supported_versions": [2],
            "proxy_id": "rust-proxy",
            "proxy_version": "0.6.45",
            "config": None,
            "supported_encodings": self._offered,
        }
        await self._wire.send(shapes.encode(request, "json"), 0x01)
        message_type, payload = await self._wire.receive()
        assert message_type == 0x02
        response: shapes.HandshakeResponse = shapes.decode(shapes.HandshakeResponse, payload, "json")
        self.encoding = response.encoding
        return response

    async def ask(self, message_type: int, **payload: Any) -> shapes.Answer | None:
        """The answer to an event; None where it would wait until it gives up."""
        return await self.outcome(await self.send(message_type, **payload))

    async def send(self, message_type: int, **payload: Any) -> str:
        """Send an event; returns its correlation id. ``data`` goes out as base64."""
        correlation_id: str = payload.setdefault("correlation_id", f"rust-{next(self._numbers)}")
        if isinstance(payload.get("data"), bytes):
            payload["data"] = base64.b64encode(payload["data"]).decode()
        await self._wire.send(shapes.encode(payload, self.encoding), message_type)
        return correlation_id

    async def outcome(self, correlation_id: str) -> shapes.Answer | None:
        """What comes of an event that was sent."""
        discarded = len(self.discarded)
        with anyio.fail_after(10):
            while len(self.discarded) == discarded:
                answer = await self._received()
                if answer is None:
                    continue
                if answer.audit.custom.get("correlation_id") == correlation_id:
                    return answer
                self.unmatched.append(answer)
        return None

    async def ping(self) -> None:
        """Ping, and wait for the pong."""
        ping = shapes.encode({"sequence": 7, "timestamp_ms": 5}, "json")
        await self._wire.send(ping, 0x41)
        with anyio.fail_after(10):
            while not self.pongs:
                await self._received()
        assert self.pongs == [ping]
        self.pongs.clear()

    async def cancel(self, correlation_id: str) -> None:
        cancel = {"correlation_id": correlation_id, "reason": 1, "timestamp_ms": 5}
        await self._wire.send(shapes.encode(cancel, "json"), 0x40)

    async def _received(self) -> shapes.Answer | None:
        message_type, payload = await self._wire.receive()
        if message_type == 0x42:
            self.pongs.append(payload)
        elif message_type == 0x20:
            try:
                answer: shapes.Answer = shapes.decode(shapes.Answer, payload, self.encoding)
            except msgspec.MsgspecError:
                self.discarded.append(payload)
            else:
                return answer
        return None


@asynccontextmanager
async def rust_client(path: str, *, binary: bool = False) -> AsyncIterator[RustClient]:
    """A client that has introduced itself to the agent on the Unix socket at ``path``."""
    async with await anyio.connect_unix(path) as stream:
        client = RustClient(Wire(stream), binary=binary)
        response = await client.greet()
        assert response.success
        assert client.encoding == ("msgpack" if binary else "json")
        yield client
