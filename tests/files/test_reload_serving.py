"""With a real server and under load: a file is taken again and again, and no request is lost or unjudged."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest

from asgi_agents import Agent, AgentResponse, HeaderOp, RequestHeadersEvent, protect
from asgi_agents.manager import registry_of
from asgi_agents.serve import serve_stream
from tests.support.servers import serve

from .marking import MODULE, File, marked_app, marker, marks

CLIENTS = 50
FILES = 20


class Remote(Agent):
    """An agent in another process, as far as the app can see."""

    def __init__(self) -> None:
        self.asked = 0

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        self.asked += 1
        return AgentResponse.allow(request_headers=[HeaderOp.add("x-mark", "remote")])


@contextmanager
def serving(agent: Agent, path: Path) -> Iterator[str]:
    """Serve ``agent`` in a thread; gives its address."""
    started, address = Event(), f"unix://{path}"
    stop: list[Any] = []

    async def main() -> None:
        stopped = asyncio.Event()
        stop.append((asyncio.get_running_loop(), stopped))
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_stream, agent, address)
            started.set()
            await stopped.wait()
            tasks.cancel_scope.cancel()

    thread = Thread(target=asyncio.run, args=(main(),))
    thread.start()
    started.wait()
    try:
        yield address
    finally:
        loop, stopped = stop[0]
        loop.call_soon_threadsafe(stopped.set)
        thread.join()


def generation(number: int, address: str) -> tuple[dict[str, Any], str]:
    """A file, and what its requests get: the remote agent stays the same, all others have the number of the file."""
    remote = {"id": "remote", "transport": address, "events": ["request_headers"], "timeout": 20}
    if number % 2:
        routes = [{"path": "/{rest:path}", "agents": ["c", "remote"]}]
        return marks(remote, marker("c", number, delay=0.05, timeout=20), routes=routes), f"{number} remote"
    agents = [marker("a", number, timeout=20), remote, marker("b", number, delay=0.1, timeout=20)]
    return marks(*agents, default_agents=["a", "b", "remote"]), f"{number} {number} remote"


class Load:
    """Clients that ask one request after the other, each over a connection of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self.seen: Counter[str] = Counter()
        self.over = False

    async def client(self, number: int) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        while not self.over:
            writer.write(f"GET /{number} HTTP/1.1\r\nhost: app\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            [length] = [line[16:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: ")]
            self.seen[f"{head[9:12].decode()}: {(await reader.readexactly(int(length))).decode()}"] += 1
        writer.close()


@pytest.mark.slow
def test_no_request_is_lost_or_unjudged_under_fifty_clients_for_a_minute(tmp_path: Path) -> None:
    remote = Remote()
    with serving(remote, tmp_path / "agent.sock") as address:
        file = File(tmp_path, generation(0, address)[0])
        app = marked_app()
        middleware = protect(app, config=file.path, imports=[MODULE], reload="on-change")
        guard = registry_of(middleware.manager).guard("remote")
        with serve(app) as url:
            load = Load(url)

            async def main() -> None:
                async with asyncio.TaskGroup() as tasks:
                    for number in range(CLIENTS):
                        tasks.create_task(load.client(number))
                    began = time.monotonic()
                    for number in range(1, FILES + 1):
                        await asyncio.sleep(max(0.0, began + 60 / (FILES + 1) * number - time.monotonic()))
                        file.write(generation(number, address)[0])
                        wanted = f"200: {generation(number, address)[1]}"
                        while not load.seen[wanted]:  # noqa: ASYNC110 - nothing else tells
                            await asyncio.sleep(0.05)
                    await asyncio.sleep(max(0.0, began + 60 - time.monotonic()))
                    load.over = True

            asyncio.run(main())
        assert set(load.seen) == {f"200: {generation(number, address)[1]}" for number in range(FILES + 1)}
        # The agent that was the same in all files was asked about all requests, by the same guard.
        assert remote.asked == sum(load.seen.values()) == middleware.manager.metrics["remote"].calls
        assert registry_of(middleware.manager).guard("remote") is guard
        print(f"{sum(load.seen.values())} requests")


@pytest.mark.slow
def test_servers_of_several_threads_change_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that one thread is looking up while another puts a file in place gets all of one file."""
    monkeypatch.setattr("asgi_agents.files.watch.INTERVAL", 0.02)
    with serving(Remote(), tmp_path / "agent.sock") as address:
        file = File(tmp_path, generation(0, address)[0])
        app = marked_app()
        protect(app, config=file.path, imports=[MODULE], reload="on-change")
        with serve(app) as first, serve(app) as second:
            loads = [Load(first), Load(second)]

            async def main() -> None:
                async with asyncio.TaskGroup() as tasks:
                    for load in loads:
                        for number in range(8):
                            tasks.create_task(load.client(number))
                    for number in range(1, FILES + 1):
                        file.write(generation(number, address)[0])
                        wanted = f"200: {generation(number, address)[1]}"
                        while not all(load.seen[wanted] for load in loads):  # noqa: ASYNC110 - nothing else tells
                            await asyncio.sleep(0.01)
                    for load in loads:
                        load.over = True

            asyncio.run(main())
        for load in loads:
            assert set(load.seen) == {f"200: {generation(number, address)[1]}" for number in range(FILES + 1)}


SERVED = textwrap.dedent(
    """
    from asgi_agents import protect
    from tests.files.marking import MODULE, marked_app

    app = marked_app()
    protect(app, config={path!r}, imports=[MODULE], reload="on-sighup")
    """
)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_served_app_takes_its_file_on_sighup(tmp_path: Path, loop: str) -> None:
    file = File(tmp_path, marks(marker("a", "a1")))
    (tmp_path / "served.py").write_text(SERVED.format(path=str(file.path)))
    command = [sys.executable, "-m", "uvicorn", "served:app", "--loop", loop, "--uds", str(tmp_path / "app.sock")]
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    process = subprocess.Popen([*command, "--log-level", "warning"], env=environ)
    try:
        _wait_for(tmp_path / "app.sock")
        transport = httpx.HTTPTransport(uds=str(tmp_path / "app.sock"))
        with httpx.Client(transport=transport, base_url="http://app") as client:
            assert client.get("/").text == "a1"
            for mark in ("a2", "a3"):
                file.write(marks(marker("a", mark)))
                process.send_signal(signal.SIGHUP)
                deadline = time.monotonic() + 30
                while client.get("/").text != mark:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
    finally:
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)


def _wait_for(path: Path) -> None:
    """Wait until a server listens there."""
    deadline = time.monotonic() + 30
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(str(path)) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)
