"""Served agents whose sockets a service manager holds, while their processes are stopped, killed and started again."""

import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import anyio
import httpx
import pytest

from asgi_agents import AgentConfig, StreamTransport
from asgi_agents.protocol.stream import MessageType
from asgi_agents.serve.sockets import describe
from asgi_agents.serve.stream import QUIET
from tests.serve.client import connected
from tests.support.asgi import App, Client, body, guarded, start
from tests.support.sample_events import head
from tests.support.service_manager import Service, ServiceManager, service_manager

# They start processes.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="descriptors are not handed over on Windows"),
]

T = TypeVar("T")

# What matters here is on the other side of the sockets.
asyncio_alone = pytest.mark.parametrize("anyio_backend", ["asyncio"])
both_signals = pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])

AGENTS: Final = """
import os
import time
from pathlib import Path

import anyio
from asgi_agents import Agent, AgentResponse


class Waf(Agent):
    async def on_request_headers(self, event):
        if event.uri == "/held":
            Path("held").touch()
            while not Path("proceed").exists():
                await anyio.sleep(0.01)
        if event.uri == "/frozen":
            Path("frozen").touch()
            time.sleep(600)
        if event.uri == "/environment":
            told = [name for name in os.environ if name.startswith(("LISTEN", "NOTIFY", "WATCHDOG"))]
            return AgentResponse.block(403, " ".join(told))
        return AgentResponse.block(403, str(os.getpid()))


def broken():
    raise LookupError("no such luck")
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with agents in it, short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="agents-") as path:
        (Path(path) / "house.py").write_text(AGENTS)
        yield Path(path)


def listening(kind: str, place: Path) -> socket.socket:
    if kind == "tcp":
        return socket.create_server(("127.0.0.1", 0), backlog=512)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(place / "waf.sock"))
    (place / "waf.sock").chmod(0o660)
    sock.listen(512)
    return sock


def command(*arguments: str, agent: str = "house:Waf") -> list[str]:
    return [sys.executable, "-m", "asgi_agents.serve", agent, *arguments]


async def answered(address: str, uri: str = "/") -> str:
    """What the agent answers on a new connection."""
    async with connected(address) as client:
        await client.send(client.spell(head(uri=uri), call_id=1))
        while True:
            kind, payload = await client.message()
            # Before it, the agent may say that it drains.
            if kind != MessageType.HEALTH_STATUS:
                assert kind == MessageType.AGENT_RESPONSE
                return str(payload["decision"]["block"]["body"])


async def answered_once_it_listens(address: str) -> str:
    """The same, where the file of the socket may be there already and nobody listens yet."""
    with anyio.fail_after(60):
        while True:
            with suppress(ConnectionRefusedError):
                return await answered(address)
            await anyio.sleep(0.02)


async def existence(path: Path) -> None:
    """Wait until there is such a file."""
    with anyio.fail_after(60):
        while not await anyio.Path(path).exists():  # noqa: ASYNC110 - another process makes it
            await anyio.sleep(0.02)


async def in_thread(function: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(function)


async def restarted(manager: ServiceManager, service: Service, signum: signal.Signals) -> Service:
    service.process.send_signal(signum)
    assert await in_thread(service.ended) == (0 if signum == signal.SIGTERM else -signum)
    # As long as nobody serves: what comes now waits.
    await anyio.sleep(0.2)
    return await in_thread(manager.start)


async def under_load(
    clients: int, call: Callable[[], Awaitable[str]], during: Callable[[], Awaitable[None]]
) -> Counter[str]:
    """What ``clients`` of them have got, while something happened."""
    found: Counter[str] = Counter()
    done = False

    async def repeat() -> None:
        while not done:
            found[await call()] += 1
            await anyio.sleep(0.005)

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            for _ in range(clients):
                tasks.start_soon(repeat)
            await anyio.sleep(0.3)
            await during()
            await anyio.sleep(0.3)
            done = True
    return found


# Of an agent's health.
DRAINING: Final = 3
ROUNDS: Final = 2
CLIENTS: Final = 8


@asyncio_alone
@both_signals
@pytest.mark.parametrize(("kind", "workers"), [("unix", 1), ("tcp", 1), ("unix", 2)])
async def test_restarts_refuse_no_connection(place: Path, kind: str, workers: int, signum: signal.Signals) -> None:
    sock = listening(kind, place)
    address = describe(sock)
    arguments = command("--bind", "systemd:waf", "--workers", str(workers))

    async def call() -> str:
        began = anyio.current_time()
        try:
            await answered(address)
        except OSError as exc:
            # To connect is what may never fail.
            return f"not connected: {exc}"
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            # An agent that stops gives its clients a moment to say what they came for. This one did not use it.
            return "lost" if anyio.current_time() - began < QUIET else "late"
        return "answered"

    with service_manager(place, arguments, [("waf", sock)]) as manager:
        service = [await in_thread(manager.start)]

        async def restart() -> None:
            for _ in range(ROUNDS):
                service[0] = await restarted(manager, service[0], signum)

        found = await under_load(CLIENTS, call, restart)
        assert await in_thread(service[0].stop) == 0
    # What a killed process had accepted is lost, and nothing else is.
    assert set(found) <= ({"answered", "late"} if signum == signal.SIGTERM else {"answered", "late", "lost"}), found
    assert found["lost"] <= ROUNDS * CLIENTS
    assert found["answered"] > ROUNDS * CLIENTS


@both_signals
async def test_an_app_whose_agent_is_restarted(place: Path, signum: signal.Signals) -> None:
    sock = listening("unix", place)
    # A connection that waits for the next process is not given up before that has started, however long it takes.
    transport = StreamTransport(f"unix://{place}/waf.sock", connections=2, connect_timeout=60.0)
    app = guarded(App(start(200), body(b"ok")), AgentConfig("waf", transport, timeout=60.0))

    async def call() -> str:
        client = Client()
        await client.call(app)
        return str(client.status)

    with service_manager(place, command("--bind", "systemd:waf"), [("waf", sock)]) as manager:
        service = [await in_thread(manager.start)]

        async def restart() -> None:
            for _ in range(ROUNDS):
                service[0] = await restarted(manager, service[0], signum)
                with anyio.fail_after(60):
                    while await call() != "403":  # noqa: ASYNC110 - somebody has to ask
                        await anyio.sleep(0.02)

        async with app.manager:
            found = await under_load(CLIENTS, call, restart)
        await in_thread(service[0].stop)
    # An agent that drains has its calls wait for the next process. One that is lost fails closed until it is back.
    assert set(found) == ({"403"} if signum == signal.SIGTERM else {"403", "503"})


@asyncio_alone
async def test_a_call_under_way_is_answered_and_who_comes_meanwhile_waits(place: Path) -> None:
    sock = listening("unix", place)
    before = (place / "waf.sock").stat()
    with service_manager(place, command("--bind", "systemd:waf"), [("waf", sock)]) as manager:
        first = await in_thread(manager.start)
        address = f"unix://{place}/waf.sock"
        async with anyio.create_task_group() as tasks, connected(address) as client:
            await client.send(client.spell(head(uri="/held"), call_id=1))
            await existence(place / "held")
            first.process.terminate()
            await in_thread(lambda: manager.hear("STOPPING=1", first))
            # It says so once it listens no more. The manager does: who comes now waits for the next process.
            assert (await client.message())[1]["state"] == DRAINING
            answers: list[str] = []

            async def ask() -> None:
                answers.append(await answered(address))

            tasks.start_soon(ask)
            await anyio.sleep(0.5)
            (place / "proceed").touch()
            kind, payload = await client.message()
            assert (kind, payload["decision"]["block"]["body"]) == (MessageType.AGENT_RESPONSE, str(first.process.pid))
            assert await in_thread(first.ended) == 0
            assert answers == []
            second = await in_thread(manager.start)
        assert answers == [str(second.process.pid)]
        await in_thread(second.stop)
    # The file is the manager's.
    after = (place / "waf.sock").stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert stat.S_IMODE(after.st_mode) == 0o660
    assert not (place / "waf.sock.lock").exists()


@asyncio_alone
@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("workers", [1, 2])
async def test_http_is_served_on_a_socket_of_its_own(place: Path, kind: str, workers: int) -> None:
    stream, http = listening("tcp", place), listening(kind, place)
    arguments = command("--bind", "systemd:waf", "--http", "systemd:web", "--workers", str(workers))
    url = "http://waf/" if kind == "unix" else describe(http).replace("tcp:", "http:") + "/"
    transport = httpx.AsyncHTTPTransport(uds=f"{place}/waf.sock") if kind == "unix" else None

    async def call() -> str:
        async with httpx.AsyncClient(transport=transport, timeout=60) as client:
            return str((await client.get(url)).json()["agent"])

    with service_manager(place, arguments, [("web", http), ("waf", stream)]) as manager:
        service = await in_thread(manager.start)
        assert await call() == "Waf"
        assert (await answered(describe(stream))).isdecimal()
        transport = httpx.AsyncHTTPTransport(uds=f"{place}/waf.sock") if kind == "unix" else None
        service = await restarted(manager, service, signal.SIGTERM)
        assert await call() == "Waf"
        assert await in_thread(service.stop) == 0
    assert kind == "tcp" or (place / "waf.sock").exists()


@asyncio_alone
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_the_manager_hears(place: Path, workers: str) -> None:
    sock = listening("unix", place)
    arguments = command("--bind", "systemd:waf", "--workers", workers)
    with service_manager(place, arguments, [("waf", sock)], watchdog=0.2) as manager:
        service = await in_thread(manager.start)
        await in_thread(lambda: manager.hear("WATCHDOG=1", service))
        # What is for the process alone, those that it starts do not see.
        assert await answered(f"unix://{place}/waf.sock", "/environment") == ""
        service.process.terminate()
        await in_thread(lambda: manager.hear("STOPPING=1", service))
        assert await in_thread(service.ended) == 0
        assert set(manager.heard()) <= {"WATCHDOG=1"}


@asyncio_alone
async def test_an_event_loop_that_stands_still_says_nothing(place: Path) -> None:
    sock = listening("unix", place)
    with service_manager(place, command("--bind", "systemd:waf"), [("waf", sock)], watchdog=0.2) as manager:
        service = await in_thread(manager.start)
        async with connected(f"unix://{place}/waf.sock") as client:
            await client.send(client.spell(head(uri="/frozen"), call_id=1))
            await existence(place / "frozen")
            manager.heard()
            await anyio.sleep(1)
            assert manager.heard() == []
            # As the manager does it, after WatchdogSec=.
            service.process.send_signal(signal.SIGABRT)
            assert await in_thread(service.ended) == -signal.SIGABRT


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_agent_that_cannot_be_made_is_never_ready(place: Path, workers: str) -> None:
    sock = listening("unix", place)
    arguments = command("--bind", "systemd:waf", "--workers", workers, agent="house:broken")
    with service_manager(place, arguments, [("waf", sock)]) as manager:
        service = manager.start(ready=False)
        assert service.ended() == 2
        assert manager.heard() == []
        assert "can't be called: LookupError: no such luck" in service.log.read_text()


def test_a_socket_that_no_option_takes_is_one_line_and_exit_code_2(place: Path) -> None:
    with service_manager(place, command("--bind", "tcp://127.0.0.1:0"), [("waf", listening("unix", place))]) as manager:
        service = manager.start(ready=False)
        assert service.ended() == 2
        [line] = service.log.read_text().splitlines()
        assert line.startswith("error: the socket waf (descriptor 3): no option takes it, expected --bind systemd:waf")


@asyncio_alone
async def test_systemds_own_tool_hands_a_socket_over(place: Path) -> None:
    program = shutil.which("systemd-socket-activate")
    if program is None:
        pytest.skip("systemd-socket-activate is not installed: apt-get install systemd")
    path = place / "waf.sock"
    with (place / "log").open("wb") as log:
        process = await anyio.open_process(
            [program, "--listen", str(path), "--fdname", "waf", *command("--bind", "systemd:waf")],
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=None,
            stderr=log,
        )
    try:
        await existence(path)
        assert await answered_once_it_listens(f"unix://{path}") == str(process.pid)
        process.terminate()
        assert await process.wait() == 0
    finally:
        # A process that is closed is waited for: after a failure, for ever.
        with suppress(ProcessLookupError):
            process.kill()
        await process.aclose()
