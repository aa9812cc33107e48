"""What runs in the namespaces: ``python -m tests.dns.scenario BACKEND``. It prints what was seen as JSON.

BACKEND is asyncio, uvloop or trio.

Three addresses of a name become five and then two, while clients ask two agents behind it without a pause: one over a
stream, one over HTTP. Of the two the other three stop a second after their time to live has passed.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    EventType,
    RequestHeadersEvent,
    StreamTransport,
)
from asgi_agents.serve import agent_app, serve_stream
from tests.support.names import LOOPBACK
from tests.support.servers import serve
from tests.transports.stream.pools import get

from .server import DnsServer

NAME: Final = "waf.agents.test"
DNS: Final = ("127.0.0.53", 53)
#: Seconds: of the records, which is how often a name is looked up as well.
TIME_TO_LIVE: Final = 5
STREAM_PORT, HTTP_PORT = 9000, 9001
CLIENTS: Final = 10
_RESOLVER: Final = {
    "/etc/resolv.conf": f"nameserver {DNS[0]}\noptions timeout:1 attempts:2\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
}
_SIOCSIFFLAGS, _UP_AND_RUNNING = 0x8914, 0x41


def settle_in() -> None:
    """Bring the loopback interface up, and have the system's resolver ask our server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))
    place = Path(tempfile.mkdtemp())
    for path, content in _RESOLVER.items():
        mine = place / os.path.basename(path)
        mine.write_text(content)
        if os.path.exists(path):
            subprocess.run(["mount", "--bind", mine, os.path.realpath(path)], check=True)  # noqa: S607 - its own


class Instance(Agent):
    """One of five."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.calls: list[float] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self.calls.append(time.monotonic())
        await anyio.sleep(0.005)


class Running:
    """An instance that listens, until :meth:`stop`."""

    def __init__(self, instance: Instance, kind: str, stack: ExitStack) -> None:
        self.instance = instance
        self.kind = kind
        self._stack = stack

    def stop(self) -> None:
        """Listen no more, and close all connections."""
        self._stack.close()


def start(host: str, kind: str) -> Running:
    """An instance in a thread of its own."""
    instance, stack = Instance(host), ExitStack()
    if kind == "http":
        stack.enter_context(serve(agent_app(instance), at=(host, HTTP_PORT)))
    else:
        stack.enter_context(_streaming(instance))
    return Running(instance, kind, stack)


@contextmanager
def _streaming(instance: Instance) -> Iterator[None]:
    there = threading.Event()
    stopping: list[Any] = []

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(serve_stream, instance, f"tcp://{instance.host}:{STREAM_PORT}"))
            stopping.extend((anyio.lowlevel.current_token(), tasks.cancel_scope.cancel))
            there.set()

    thread = threading.Thread(target=partial(anyio.run, run))
    thread.start()
    there.wait()
    token, cancel = stopping
    try:
        yield
    finally:
        anyio.from_thread.run_sync(cancel, token=token)
        thread.join()


class Clients:
    """They send one request after the other to an app behind both agents."""

    def __init__(self, manager: AgentManager) -> None:
        self._app = AgentMiddleware(_hello, manager=manager)
        self.statuses: Counter[int] = Counter()
        self.stopping = False

    async def ask(self) -> None:
        while not self.stopping:
            status, _ = await get(self._app)
            self.statuses[status] += 1
            await anyio.sleep(0.01)


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


async def scenario(dns: DnsServer) -> dict[str, Any]:
    """What was seen."""
    running = [start(host, kind) for kind in ("stream", "http") for host in LOOPBACK]
    stream = StreamTransport(f"tcp://{NAME}:{STREAM_PORT}", drain_timeout=2.0)
    agents = [
        AgentConfig("stream", stream, timeout=10.0),
        AgentConfig("http", f"http://{NAME}:{HTTP_PORT}/", events={EventType.REQUEST_HEADERS}, timeout=10.0),
    ]
    phases: list[dict[str, Any]] = []

    def called(since: float) -> dict[str, list[str]]:
        return {
            kind: [
                each.instance.host
                for each in running
                if each.kind == kind and max(each.instance.calls, default=0) > since
            ]
            for kind in ("stream", "http")
        }

    async def become(addresses: Sequence[str]) -> None:
        dns.addresses = addresses
        changed = time.monotonic()
        await anyio.sleep(TIME_TO_LIVE + 1)
        gone = [each for each in running if each.instance.host not in addresses]
        # Nobody may call these now.
        await anyio.sleep(1.5)
        last = max((call for each in gone for call in each.instance.calls), default=0.0)
        phases.append(
            {
                "addresses": list(addresses),
                "called": called(changed + TIME_TO_LIVE + 1),
                "last_call_to_what_has_left": last - changed,
                "endpoints": {
                    agent: [(each.address, each.state) for each in statistics.endpoints]
                    for agent, statistics in manager.statistics().items()
                },
            }
        )

    try:
        async with AgentManager(agents) as manager:
            clients = Clients(manager)
            async with anyio.create_task_group() as tasks:
                for _ in range(CLIENTS):
                    tasks.start_soon(clients.ask)
                await become(LOOPBACK[:3])
                await become(LOOPBACK)
                await become(LOOPBACK[3:])
                for each in running:
                    if each.instance.host not in LOOPBACK[3:]:
                        await anyio.to_thread.run_sync(each.stop)
                await anyio.sleep(0.5)
                clients.stopping = True
    finally:
        for each in running:
            await anyio.to_thread.run_sync(each.stop)
    return {"statuses": clients.statuses, "phases": phases, "queries": dns.queries}


def main(backend: str) -> None:
    settle_in()
    with DnsServer(NAME, LOOPBACK[:3], time_to_live=TIME_TO_LIVE, at=DNS) as dns:
        options = {"use_uvloop": True} if backend == "uvloop" else {}
        name = "asyncio" if backend == "uvloop" else backend
        print(json.dumps(anyio.run(scenario, dns, backend=name, backend_options=options)))


if __name__ == "__main__":
    main(sys.argv[1])
