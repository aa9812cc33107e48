"""An agent as the TypeScript kit serves it on a Unix socket."""

import json
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
from anyio.abc import SocketStream, TaskGroup
from anyio.lowlevel import checkpoint

from tests.peers.wire import ENDS, Wire
from tests.support.listening import listening


class TypeScriptKit:
    """The older framing. It reads on while it judges, answers what is judged first, and says of no answer which event
    it is to.

    It blocks what has "bad" in its URI, and remembers a request where it has seen its head: on that connection. Of the
    rest it lets everything through. Like the published agents it refuses to be configured with nothing.
    """

    def __init__(self) -> None:
        self.path = f"{tempfile.mkdtemp()}/typescript.sock"
        self.url = f"unix://{self.path}"
        self.events: list[tuple[str, Any]] = []
        self.configurations: list[Any] = []
        self.lost: list[str] = []
        self.most_at_a_time = 0
        self._random = random.Random(7)  # noqa: S311 - no secret

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        """Accept connections within."""
        async with listening(self.path, self._serve):
            yield self

    async def _serve(self, stream: SocketStream) -> None:
        async with stream, anyio.create_task_group() as judging:
            await self._read(Wire(stream, typed=False), judging)

    async def _read(self, wire: Wire, judging: TaskGroup) -> None:
        seen: set[str] = set()
        at_work: list[str] = []
        try:
            while True:
                _, content = await wire.receive()
                envelope = json.loads(content)
                assert envelope["version"] == 2
                at_work.append(envelope["event_type"])
                self.most_at_a_time = max(self.most_at_a_time, len(at_work))
                judging.start_soon(self._judge, wire, envelope["event_type"], envelope["payload"], seen, at_work)
        except ENDS:
            judging.cancel_scope.cancel()

    async def _judge(self, wire: Wire, event_type: str, payload: Any, seen: set[str], at_work: list[str]) -> None:
        for _ in range(self._random.randrange(20)):
            await checkpoint()
        at_work.remove(event_type)
        answer: dict[str, Any] = {"version": 2, "decision": "allow", "request_headers": [], "audit": {"tags": []}}
        refused = False
        if event_type == "configure":
            self.configurations.append(payload)
            refused = payload["config"] is None
        else:
            self.events.append((event_type, payload))
            if event_type == "request_headers":
                seen.add(payload["metadata"]["correlation_id"])
                refused = "bad" in payload["uri"]
            elif payload["correlation_id"] not in seen:
                self.lost.append(payload["correlation_id"])
        if refused:
            answer["decision"] = {"block": {"status": 403, "body": payload.get("uri", "no configuration")}}
        await wire.send(json.dumps(answer).encode())
