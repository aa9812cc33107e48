"""What works without what Python doesn't have on Windows; see `sitecustomize.py` beside this."""

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from asgi_agents.protocol import Encoding, RequestBodyChunkEvent, encode_event
from tests.serve.client import connected

# They start processes, or import the package anew.
pytestmark = pytest.mark.slow

# Every case starts processes, of which each imports all there is. Of those that differ little one is quick enough.
SLOW = pytest.mark.slow
HERE = Path(__file__).parent
AGENT = """
import os
from asgi_agents import Agent, AgentResponse

class Waf(Agent):
    async def on_request_headers(self, event):
        return AgentResponse.block(403, "blocked")

    async def on_request_body_chunk(self, event):
        return AgentResponse.block(403, str(os.getpid()))
"""
CHUNK = RequestBodyChunkEvent(correlation_id="c-1", data=b"x", is_last=True)
UNIX = "expected TCP: Python has no Unix sockets on this platform (win32)"
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}"}


def run(code: str) -> str:
    """What ``code`` prints."""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Server:
    """``python -m asgi_agents.serve``"""

    def __init__(self, place: Path, *arguments: str) -> None:
        self.log = place / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "asgi_agents.serve", "house:Waf", *arguments],
                cwd=place,
                env=ENVIRONMENT,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def addresses(self, count: int) -> list[str]:
        deadline = time.monotonic() + 60
        while len(found := re.findall(r"INFO listening on (\S+)", self.log.read_text())) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return found


@pytest.fixture
def anyio_backend() -> str:
    """One will do: what is tested are other processes."""
    return "asyncio"


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agents-") as path:
        (Path(path) / "house.py").write_text(AGENT)
        yield Path(path)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


async def answer(address: str) -> str:
    async with connected(address) as client:
        await client.post(CHUNK)
        return str((await client.answer())[1].decision.body)  # type: ignore[union-attr]


async def eventually(address: str) -> str:
    """The answer, once a worker accepts."""
    with anyio.fail_after(60):
        while True:
            try:
                return await answer(address)
            except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                await anyio.sleep(0.02)


def post(url: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", "/", encode_event(CHUNK, Encoding.JSON), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_every_module_can_be_imported_but_the_one_for_unix_sockets() -> None:
    code = (
        "import importlib, pkgutil, asgi_agents\n"
        "for module in pkgutil.walk_packages(asgi_agents.__path__, 'asgi_agents.'):\n"
        # FastAPI and Presidio look for what a real Windows has, and this one has not.
        "    if module.name in ('asgi_agents.fastapi', 'asgi_agents.agents.presidio_recognizers'):\n"
        "        continue\n"
        "    try:\n"
        "        importlib.import_module(module.name)\n"
        "    except ImportError as exc:\n"
        # Ray is of an extra that need not be there.
        "        if exc.name != 'ray':\n"
        "            print(module.name, exc.name)"
    )
    assert run(code).splitlines() == ["asgi_agents.serve.lock fcntl"]


@pytest.mark.parametrize(
    "code",
    [
        "StreamTransport('unix:///run/agent.sock')",
        pytest.param("AgentConfig('waf', 'unix:///run/agent.sock')", marks=SLOW),
        pytest.param("AgentConfig('waf', ['tcp://127.0.0.1:9', 'unix:///run/agent.sock'])", marks=SLOW),
        "HttpTransport('http://agent/', uds='/run/agent.sock')",
        "anyio.run(serve_stream, Waf(), 'unix:///run/agent.sock')",
    ],
)
def test_a_unix_socket_is_a_configuration_error_that_says_so(code: str) -> None:
    printed = run(
        "import anyio\nfrom asgi_agents import *\nfrom asgi_agents.serve import serve_stream\n"
        "class Waf(Agent):\n    async def on_request_headers(self, event): ...\n"
        f"try:\n    {code}\nexcept ConfigurationError as exc:\n    print(exc)"
    )
    assert UNIX in printed
    assert "/run/agent.sock" in printed


def test_the_command_line_says_so_as_well(place: Path, servers: list[Server]) -> None:
    servers.append(Server(place, "--bind", "unix:///run/agent.sock"))
    assert servers[0].process.wait(60) == 2
    assert servers[0].log.read_text() == f"error: --bind: 'unix:///run/agent.sock', {UNIX}\n"


@pytest.mark.parametrize(
    ("workers", "stop"),
    [
        pytest.param(1, signal.SIGINT, id="1-Ctrl-C"),
        pytest.param(1, signal.SIGUSR1, id="1-Ctrl-Break", marks=SLOW),
        pytest.param(2, signal.SIGINT, id="2-Ctrl-C", marks=SLOW),
        pytest.param(2, signal.SIGUSR1, id="2-Ctrl-Break"),
    ],
)
async def test_an_agent_is_served_over_tcp_and_http(
    workers: int, stop: signal.Signals, place: Path, servers: list[Server]
) -> None:
    arguments = ("--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0", "--workers", str(workers))
    servers.append(server := Server(place, *arguments))
    stream, url = server.addresses(2)

    pid = int(await eventually(stream))
    assert (pid == server.process.pid) is (workers == 1)
    assert (await anyio.to_thread.run_sync(post, url))[0] == 200

    servers.append(second := Server(place, "--bind", stream))
    assert await anyio.to_thread.run_sync(second.process.wait, 60) == 2

    server.log.write_text("")
    server.process.send_signal(stop)
    assert await anyio.to_thread.run_sync(server.process.wait, 60) == 0
    assert "stopped" in server.log.read_text()
    assert "killed" not in server.log.read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_workers_end_with_a_parent_that_was_killed(place: Path, servers: list[Server]) -> None:
    servers.append(server := Server(place, "--bind", "tcp://127.0.0.1:0", "--workers", "2"))
    [address] = server.addresses(1)
    await eventually(address)
    server.process.kill()
    host, port = address.removeprefix("tcp://").split(":")
    with anyio.fail_after(60):
        while True:
            try:
                await (await anyio.connect_tcp(host, int(port))).aclose()
            except OSError:
                return


@pytest.mark.parametrize("option", ["--bind", pytest.param("--http", marks=SLOW)])
async def test_an_app_is_guarded_by_a_served_agent(option: str, place: Path, servers: list[Server]) -> None:
    address = {"--bind": "tcp://127.0.0.1:0", "--http": "127.0.0.1:0"}[option]
    servers.append(server := Server(place, option, address))
    [address] = server.addresses(1)
    code = f"""
import anyio
from asgi_agents import AgentConfig, AgentMiddleware, EventType

sent = []

async def receive():
    return {{"type": "http.request"}}

async def send(message):
    sent.append(message)

async def main():
    config = AgentConfig("waf", {address!r}, events={{EventType.REQUEST_HEADERS}}, timeout=30)
    scope = {{"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "client": None}}
    await AgentMiddleware(print, agents=[config])(scope, receive, send)

anyio.run(main)
print(sent[0]["status"], sent[1]["body"].decode())
"""
    assert await anyio.to_thread.run_sync(run, code) == "403 blocked\n"
