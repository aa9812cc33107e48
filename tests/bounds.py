"""How far memory grows under a load that could make it grow without end. Linux only.

``python -m tests.bounds writer 1024`` streams a response of 1,024 MiB through an agent that changes it,
``python -m tests.bounds flood 1024`` sends as much to a served agent that answers nothing, and
``python -m tests.bounds partial 12`` begins as many frames of 15 MiB on as many connections and leaves them,
``python -m tests.bounds events 1000000`` streams as many events of a chat past guardrails, and
``python -m tests.bounds streams 1000`` has as many such streams wait at once for guardrails that say nothing.
Each prints by how many bytes the resident memory of its process has grown at most.
"""

import socket
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    BodyMutation,
    RequestBodyChunkEvent,
    ResponseBodyChunkEvent,
)
from asgi_agents.guardrails import Decision, TextGuardrail, Window
from asgi_agents.guardrails.windows import WindowLimits
from asgi_agents.protocol import Encoding
from asgi_agents.protocol.stream import CallIds, MessageType, encode_event_frame, encode_frame
from asgi_agents.serve import serve_stream

from .benchmarks.chat import ASKED, CHAT, DONE, Settled, Unsettled, chunk, guarded, text, tokens_of

MIB: Final = 1024 * 1024
_CHUNK: Final = 64 * 1024
_GREETING: Final = encode_frame(MessageType.HANDSHAKE_REQUEST, b'{"supported_versions":[2]}')


class Peak:
    """The most resident memory since it was made, above what there was then."""

    def __init__(self) -> None:
        # Sets the high water mark back (proc(5)).
        Path("/proc/self/clear_refs").write_text("5")
        self._start = _high_water()

    @property
    def growth(self) -> int:
        return _high_water() - self._start


def _high_water() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class Stamps(Agent):
    """Changes each piece of a response, and has something to say of it."""

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse:
        return AgentResponse.allow(response_body_mutation=BodyMutation(event.data[:-1] + b"!"))


class Silent(Agent):
    """Never answers."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        await anyio.sleep_forever()
        raise AssertionError


async def writer(mib: int) -> int:
    """A response of so many MiB past an agent that changes it."""
    received = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for left in reversed(range(mib * MIB // _CHUNK)):
            await send({"type": "http.response.body", "body": bytes(_CHUNK), "more_body": left > 0})

    async def send(message: Message) -> None:
        nonlocal received
        received += len(message.get("body", b""))

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    config = AgentConfig("stamps", Stamps(), body_access="write", response_body_mode=BodyMode.STREAM)
    middleware = AgentMiddleware(app, agents=[config])
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    peak = Peak()
    await middleware(scope, receive, send)
    assert received == mib * MIB
    return peak.growth


async def flood(mib: int, event_bytes: int = MIB) -> int:
    """So many MiB of events to a served agent, from one client that reads nothing."""
    chunk = RequestBodyChunkEvent(correlation_id="c", data=bytes(event_bytes), is_last=True)
    frame = encode_event_frame(chunk, Encoding.JSON, CallIds("c"))

    def client(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(path)
            stream.sendall(_GREETING)
            # Not read from is not sent.
            stream.settimeout(0.5)
            with suppress(OSError):
                for _ in range(mib * MIB // event_bytes):
                    stream.sendall(frame)

    return await _served(client)


async def partial(connections: int) -> int:
    """So many frames of 15 MiB that stop after 14, before and after handshakes."""
    begun = (15 * MIB).to_bytes(4, "big") + bytes([MessageType.REQUEST_BODY_CHUNK]) + bytes(14 * MIB)

    def client(path: str) -> None:
        streams = [socket.socket(socket.AF_UNIX) for _ in range(connections)]
        for number, stream in enumerate(streams):
            stream.connect(path)
            stream.settimeout(0.2)
            with suppress(OSError):
                stream.sendall((_GREETING if number % 4 else b"") + begun)
        for stream in streams:
            stream.close()

    return await _served(client)


async def events(count: int) -> int:
    """So many events of a chat in one stream, past two guardrails, one of which says what is settled."""
    # What there is once anything has passed is not what a stream takes.
    await _chat(1000, Settled(), Unsettled())
    peak = Peak()
    await _chat(count, Settled(), Unsettled())
    return peak.growth


async def streams(count: int) -> int:
    """So many streams at once, each of which has sent as much as it can while its guardrail says nothing.

    :raises RuntimeError: if one has been able to send more than the windows that are judged and the next one.
    """
    judge = Silence()
    apps = [_Chat(2000) for _ in range(count)]
    peak = Peak()
    async with anyio.create_task_group() as tasks:
        for app in apps:
            tasks.start_soon(_receive_chat, guarded(app, judge), 2000)
        await anyio.wait_all_tasks_blocked()
        growth = peak.growth
        tasks.cancel_scope.cancel()
    most = max(app.sent for app in apps)
    limits = WindowLimits()
    if most > (limits.in_flight + 1) * limits.window:
        raise RuntimeError(f"{most} code points are held")
    return growth


class Silence(Unsettled):
    """Never says anything."""

    async def check(self, window: Window) -> Sequence[Decision]:
        await anyio.sleep_forever()
        raise AssertionError


class _Chat:
    """An app that sends so many events, each of which it makes anew.

    :ivar sent: code points of all of them so far.
    """

    def __init__(self, length: int) -> None:
        self.sent = 0
        self._length = length
        self._tokens = tokens_of(text(1000))
        self._before, self._after = chunk("...").split(b"...")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(self._length):
            token = self._tokens[number % len(self._tokens)]
            event = self._before + token.encode() + self._after
            self.sent += len(token)
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": DONE, "more_body": False})


async def _chat(count: int, *agents: TextGuardrail) -> None:
    await _receive_chat(guarded(_Chat(count), *agents), count)


async def _receive_chat(app: ASGIApp, count: int) -> None:
    received = 0
    asked = iter(ASKED)

    async def receive() -> Message:
        for message in asked:
            return message
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal received
        received += message.get("body", b"").count(b"\n\n")

    await app({**CHAT, "headers": [*CHAT["headers"]], "state": {}}, receive, send)
    assert received == count + 1


async def _served(client: Callable[[str], None]) -> int:
    with tempfile.TemporaryDirectory(prefix="agents-") as directory:
        path = f"{directory}/a.sock"
        async with anyio.create_task_group() as tasks:

            async def run(*, task_status: Any) -> None:
                await serve_stream(Silent(), f"unix://{path}", task_status=task_status)

            await tasks.start(run)
            peak = Peak()
            await anyio.to_thread.run_sync(client, path)
            growth = peak.growth
            tasks.cancel_scope.cancel()
    return growth


LOADS: Final[dict[str, Callable[[int], Awaitable[int]]]] = {
    "writer": writer,
    "flood": flood,
    "partial": partial,
    "events": events,
    "streams": streams,
}


def main(load: str, amount: str, backend: str = "asyncio") -> None:
    # A thread costs memory of its own: this one is there before anything is measured.
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    print(anyio.run(LOADS[load], int(amount), backend=backend))


if __name__ == "__main__":
    main(*sys.argv[1:])
