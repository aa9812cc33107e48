"""The app and the two agents that have processes of their own."""

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import msgspec

from tests.stream_agents.processes import PythonProcess, until

from .app import SAMPLE
from .samples import ALLOCATOR, Sample

# Seconds for what clients have left behind to be noticed, and between two looks.
_SETTLED: Final = 30.0
_LOOK: Final = 0.05
# Lasting connections to the agent on the stream.
_CONNECTIONS: Final = 4


class World(NamedTuple):
    """All that runs, and where the app listens."""

    agents: tuple[PythonProcess, ...]
    sockets: tuple[Path, ...]
    port: int

    async def sample(self, requests: int) -> Sample:
        """The app at rest: as soon as it is the same twice, nothing is under way, and its agent is connected.

        A leak is never at rest: after some seconds it is taken as it is.
        """
        deadline = time.monotonic() + _SETTLED
        last: Sample | None = None
        while True:
            told = await asyncio.to_thread(self._ask)
            sample = msgspec.convert(told["sample"] | {"requests": requests}, Sample)
            same = last is not None and sample.descriptors == last.descriptors and sample.tasks == last.tasks
            rests = sample.permits == sample.correlation_ids == 0 and told["connections"] == _CONNECTIONS
            if (same and rests) or time.monotonic() > deadline:
                return sample
            last = sample
            await asyncio.sleep(_LOOK)

    async def restart_agents(self) -> None:
        """Kill both, and start them again after a moment."""
        for agent in self.agents:
            agent.kill()
        await asyncio.sleep(0.3)
        for agent in self.agents:
            agent.start()

    def _ask(self) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", SAMPLE)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def world() -> Iterator[World]:
    """Everything is up, until the end of the block, however it ends."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="soak-")))
        stream, post = place / "stream", place / "post"
        serving = ["asgi_agents.serve", f"{__package__}.agents:Watches", "--bind", f"unix://{stream}"]
        posting = ["uvicorn", f"{__package__}.agents:app", "--uds", str(post), "--loop", "uvloop"]
        agents = (
            PythonProcess(place / "stream.log", [*serving, "--log-level", "error"]),
            PythonProcess(place / "post.log", [*posting, "--http", "httptools", "--log-level", "error"]),
        )
        for agent in agents:
            stack.callback(agent.end)
            agent.start()
        for path, agent in zip((stream, post), agents, strict=True):
            until(path.exists, told=lambda agent=agent: agent.said)  # type: ignore[misc]
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            fd, port = listener.fileno(), listener.getsockname()[1]
            app = PythonProcess(place / "app.log", [f"{__package__}.app", str(fd), str(stream), str(post)], ALLOCATOR)
            stack.callback(app.end)
            app.start(pass_fds=(fd,))
        yield World(agents, (stream, post), port)
