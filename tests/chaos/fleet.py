"""The agents' processes, with proxies in front of most, and the app's."""

import asyncio
import contextlib
import json
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from tests.stream_agents.processes import PythonProcess

from .agents import AGENT, SECRET
from .app import STATISTICS
from .corruption import Speech
from .http_client import Ending, HttpConnection
from .proxy import Proxy

_PATIENCE: Final = 40.0

#: Which process is an instance of which agent, and what its proxy speaks; None where there is no proxy.
INSTANCES: Final[Mapping[str, tuple[str, Speech | None]]] = {
    "pool-1": ("pool", Speech.V2),
    "pool-2": ("pool", Speech.V2),
    "pool-3": ("pool", Speech.V2),
    "lone": ("lone", None),
    "line": ("line", Speech.ENVELOPE),
    "post": ("post", Speech.HTTP),
    "rpc": ("rpc", Speech.HTTP2),
}
# Whose proxies are reached over TCP.
_TCP = ("pool-3", "post")


class Instance(NamedTuple):
    """A process of an agent, and where it listens. Whoever does something to it has the ``turn``."""

    process: PythonProcess
    path: str
    proxy: Proxy | None
    turn: asyncio.Lock

    async def up(self) -> None:
        """Wait until it takes connections."""
        await until(self._accepts, lambda: self.process.said)

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(self.path)
        except OSError:
            return False
        writer.transport.abort()
        return True


class Fleet(NamedTuple):
    """All that runs, and where the app listens."""

    instances: Mapping[str, Instance]
    app: PythonProcess
    port: int

    async def statistics(self) -> Any:
        """What the app tells of itself."""
        connection = HttpConnection(self.port, _PATIENCE)
        got = await connection.request("GET", STATISTICS, [("x-request-id", f"statistics-{time.monotonic()}")])
        connection.close()
        assert got.ending is Ending.COMPLETE, got
        return json.loads(got.body)


async def until(condition: Callable[[], Any], told: Callable[[], object], patience: float = _PATIENCE) -> None:
    """Wait until ``condition`` is true; ``told`` is what to say if it never is."""
    deadline = time.monotonic() + patience
    while not await condition():
        assert time.monotonic() < deadline, told()
        await asyncio.sleep(0.05)


@asynccontextmanager
async def fleet(secret: bytes, seed: int) -> AsyncIterator[Fleet]:
    """Everything is up, until the end of the block, however it ends."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    async with contextlib.AsyncExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="chaos-")))
        instances: dict[str, Instance] = {}
        addresses: dict[str, list[str]] = {}
        for name, (agent, speech) in INSTANCES.items():
            path = str(place / name)
            environment = {AGENT: agent, SECRET: secret.hex()}
            process = PythonProcess(place / f"{name}.log", _module(path, speech), environment)
            stack.callback(process.end)
            process.start()
            proxy, address = None, f"unix://{path}"
            if speech is not None:
                listen = None if name in _TCP else f"{path}.proxy"
                proxy = Proxy(path, speech, listen, random.Random(chance.random()))  # noqa: S311
                address = await proxy.start()
                stack.push_async_callback(proxy.stop)
            if speech is Speech.HTTP2:
                address = f"grpc+{address}"
            addresses.setdefault(agent, []).append(address)
            instances[name] = Instance(process, path, proxy, asyncio.Lock())
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            fd, port = listener.fileno(), listener.getsockname()[1]
            app = PythonProcess(place / "app.log", [f"{__package__}.app", str(fd), json.dumps(addresses)])
            stack.callback(app.end)
            for instance in instances.values():
                await instance.up()
            app.start(pass_fds=(fd,))
        running = Fleet(instances, app, port)
        await running.statistics()
        yield running


def _module(path: str, speech: Speech | None) -> list[str]:
    if speech is Speech.HTTP:
        # It leaves its file behind when it is killed, and replaces it.
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--timeout-graceful-shutdown", "2"]
        return ["uvicorn", f"{__package__}.agents:app", "--uds", path, *options]
    if speech is Speech.HTTP2:
        return [
            *("asgi_agents.serve", f"{__package__}.agents:Reader", "--grpc", f"unix://{path}"),
            *("--drain-timeout", "2", "--log-level", "warning"),
        ]
    framing = str(speech or Speech.V2)
    return [
        *("asgi_agents.serve", f"{__package__}.agents:Inspector", "--bind", f"unix://{path}"),
        *("--framing", framing, "--drain-timeout", "2", "--log-level", "warning"),
    ]


#: What makes an agent slow, and what makes it quick again.
SLOW, QUICK = signal.SIGUSR1, signal.SIGUSR2
