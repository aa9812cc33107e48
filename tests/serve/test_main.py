import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from asgi_agents.protocol import ConfigureEvent, Encoding, EventType, RequestBodyChunkEvent, encode_event
from asgi_agents.protocol.stream import Framing, MessageType, encode_envelope_frame
from asgi_agents.serve.__main__ import main
from asgi_agents.serve.workers import WorkerMistake, Workers
from tests.serve.client import RawClient, connected

# They start processes.
pytestmark = pytest.mark.slow

AGENTS = """
import os
from pathlib import Path

import anyio
from asgi_agents import Agent, AgentResponse
from asgi_agents.guardrails import Redact, TextGuardrail


class Waf(Agent):
    async def on_request_body_chunk(self, event):
        return AgentResponse.block(403, str(os.getpid()))

    async def on_response_body_chunk(self, event):
        Path("entered").touch()
        while not Path("proceed").exists():
            await anyio.sleep(0.01)
        return AgentResponse.block(403, "proceeded")


class Emails(TextGuardrail):
    async def check(self, window):
        return [Redact(0, len(window.text), "[email]")] if "@" in window.text else []


class Misspelt(Agent):
    async def on_request_header(self, event):
        return AgentResponse.block(403)


class Demanding(Agent):
    def __init__(self, level):
        pass


waf = Waf()
words = "words"


def make():
    return Waf()


def fail():
    raise LookupError("no such luck")


def dictionary():
    return {}
"""
NOTHING = "nothing to bind: give --bind, --http, --grpc, --ext-proc or --ext-authz, or several of them"
CHUNK = RequestBodyChunkEvent(correlation_id="c-1", data=b"x", is_last=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with agents in it, short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="agents-") as path:
        (Path(path) / "house.py").write_text(AGENTS)
        (Path(path) / "broken.py").write_text("import json\n\n1 / 0\n")
        (Path(path) / "unreadable.py").write_text("def\n")
        yield Path(path)


class Server:
    """The command line, in a process of its own."""

    def __init__(self, place: Path, *arguments: str) -> None:
        self.log = place / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "asgi_agents.serve", *arguments], cwd=place, stderr=log, stdin=subprocess.DEVNULL
            )

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def addresses(self, count: int = 1) -> list[str]:
        """Where it listens, once it does."""
        self.until(lambda: len(self._listening()) == count or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return self._listening()

    def _listening(self) -> list[str]:
        return re.findall(r"listening on (\S+)", self.log.read_text())

    def ended(self) -> int:
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.log.read_text()) from None


@contextmanager
def running(place: Path, *arguments: str) -> Iterator[Server]:
    server = Server(place, *arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            try:
                server.process.wait(60)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()


async def pid_of(address: str) -> int:
    """The process that answers a new connection; waits for one that does."""
    with anyio.fail_after(60):
        while True:
            try:
                async with connected(address) as client:
                    return await _pid(client)
            except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                await anyio.sleep(0.02)


async def _pid(client: RawClient) -> int:
    await client.post(CHUNK)
    answer = (await client.answer())[1]
    return int(answer.decision.body)  # type: ignore[union-attr, arg-type]


async def slow_call(client: RawClient, place: Path, server: Server) -> None:
    """Send an event whose hook waits for the file ``proceed``, and wait until it's at work."""
    await client.send(client.spell(CHUNK).replace(b"\x11{", b"\x13{", 1))
    await anyio.to_thread.run_sync(server.until, (place / "entered").exists)


@pytest.mark.parametrize("agent", ["house:waf", "house:Waf", "house:make"])
async def test_an_agent_a_class_and_a_function_are_served(agent: str, place: Path) -> None:
    with running(place, agent, "--bind", f"unix://{place}/a.sock", "--bind", "tcp://127.0.0.1:0") as server:
        for address in server.addresses(2):
            assert await pid_of(address) == server.process.pid
        server.process.terminate()
        assert server.ended() == 0
        assert server.log.read_text().strip().endswith("INFO stopped")
    assert not (place / "a.sock").exists()


async def test_sigterm_drains_a_call_under_way(place: Path) -> None:
    with running(place, "house:waf", "--bind", f"unix://{place}/a.sock") as server:
        [address] = server.addresses()
        async with connected(address) as client:
            await slow_call(client, place, server)
            server.process.terminate()
            message_type, health = await client.message()
            assert (message_type, health["state"]) == (MessageType.HEALTH_STATUS, 3)
            assert not (place / "a.sock").exists()
            (place / "proceed").touch()
            answer = (await client.answer(EventType.RESPONSE_BODY_CHUNK))[1]
            assert answer.decision.body == "proceeded"  # type: ignore[union-attr]
        assert server.ended() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_second_signal_ends_it_at_once(workers: str, place: Path) -> None:
    with running(place, "house:waf", "--bind", f"unix://{place}/a.sock", "--workers", workers) as server:
        [address] = server.addresses()
        async with connected(address) as client:
            await slow_call(client, place, server)
            server.process.send_signal(signal.SIGINT)
            assert (await client.message())[1]["state"] == 3
            server.process.send_signal(signal.SIGINT)
            assert server.ended() == 128 + signal.SIGINT
            assert await client.closed()


async def test_the_drain_timeout_ends_what_does_not_end(place: Path) -> None:
    arguments = ("house:waf", "--bind", f"unix://{place}/a.sock", "--drain-timeout", "0.05")
    with running(place, *arguments) as server:
        [address] = server.addresses()
        async with connected(address) as client:
            await slow_call(client, place, server)
            server.process.terminate()
            assert (await client.message())[1]["state"] == 3
            assert await client.closed()
        assert server.ended() == 0


async def test_http_is_served_beside_it(place: Path) -> None:
    arguments = ("house:waf", "--http", "127.0.0.1:0", "--bind", f"unix://{place}/a.sock")
    with running(place, *arguments) as server:
        stream, url = server.addresses(2)
        assert await pid_of(stream) == server.process.pid
        assert (await anyio.to_thread.run_sync(_post, url))[0] == 200
        server.process.terminate()
        assert server.ended() == 0


def _post(url: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", "/", encode_event(CHUNK, Encoding.JSON), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_text_guardrail_is_served_to_gateways(place: Path, workers: int) -> None:
    arguments = ["house:Emails", "--http", "127.0.0.1:0", "--api", "litellm", "--no-mask-responses"]
    with running(place, *arguments, "--workers", str(workers)) as server:
        [address] = server.addresses()
        host = address.removeprefix("http://").rstrip("/")
        for input_type, action in (("request", "GUARDRAIL_INTERVENED"), ("response", "BLOCKED")):
            connection = http.client.HTTPConnection(host, timeout=60)
            body = json.dumps({"input_type": input_type, "texts": ["a@b"]})
            connection.request("POST", "/beta/litellm_basic_guardrail_api", body, {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            connection.close()
            assert answer["action"] == action


async def test_the_older_framing_is_served(place: Path) -> None:
    with running(place, "house:waf", "--bind", "tcp://127.0.0.1:0", "--framing", "envelope") as server:
        [address] = server.addresses()
        async with connected(address, framing=Framing.ENVELOPE) as client:
            await client.send(encode_envelope_frame(encode_event(ConfigureEvent(agent_id="a"), Encoding.JSON)))
            assert b'"version":2' in await client.frame()


async def test_a_worker_that_is_killed_is_replaced_and_the_others_serve_on(place: Path) -> None:
    arguments = ("house:waf", "--bind", f"unix://{place}/a.sock", "--http", "127.0.0.1:0", "--workers", "2")
    with running(place, *arguments) as server:
        address, url = server.addresses(2)
        first = await pid_of(address)
        assert first != server.process.pid
        os.kill(first, signal.SIGKILL)
        second = await pid_of(address)
        assert second not in (first, server.process.pid)
        await anyio.to_thread.run_sync(server.until, lambda: "ended with SIGKILL" in server.log.read_text())
        # Then kill the one that is left: only a replacement can answer.
        os.kill(second, signal.SIGKILL)
        assert await pid_of(address) not in (first, second, server.process.pid)
        assert (await anyio.to_thread.run_sync(_post, url))[0] == 200
        server.process.terminate()
        assert server.ended() == 0
    assert not (place / "a.sock").exists()


async def test_workers_drain_a_call_under_way(place: Path) -> None:
    with running(place, "house:waf", "--bind", f"unix://{place}/a.sock", "--workers", "2") as server:
        [address] = server.addresses()
        async with connected(address) as client:
            await slow_call(client, place, server)
            server.process.terminate()
            assert (await client.message())[1]["state"] == 3
            (place / "proceed").touch()
            answer = (await client.answer(EventType.RESPONSE_BODY_CHUNK))[1]
            assert answer.decision.body == "proceeded"  # type: ignore[union-attr]
        assert server.ended() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes a process has started")
async def test_workers_drain_when_a_service_manager_stops_every_process(place: Path) -> None:
    with running(place, "house:waf", "--bind", f"unix://{place}/a.sock", "--workers", "2") as server:
        [address] = server.addresses()
        async with connected(address) as client:
            await slow_call(client, place, server)
            pid = server.process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()  # noqa: ASYNC240 - no file on a disk
            workers = [int(each) for each in children.split()]
            assert len(workers) == 2
            for each in [*workers, pid]:
                os.kill(each, signal.SIGTERM)
            assert (await client.message())[1]["state"] == 3
            (place / "proceed").touch()
            answer = (await client.answer(EventType.RESPONSE_BODY_CHUNK))[1]
            assert answer.decision.body == "proceeded"  # type: ignore[union-attr]
        assert server.ended() == 0


async def test_workers_end_with_their_parent(place: Path) -> None:
    with running(place, "house:waf", "--bind", f"unix://{place}/a.sock", "--workers", "2") as server:
        [address] = server.addresses()
        async with connected(address) as client:
            await _pid(client)
            server.process.kill()
            assert (await client.message())[1]["state"] == 3


async def test_a_socket_in_use_is_one_line(place: Path) -> None:
    with running(place, "house:waf", "--bind", f"unix://{place}/a.sock") as server:
        [address] = server.addresses()
        done = await anyio.run_process(
            [sys.executable, "-m", "asgi_agents.serve", "house:waf", "--bind", address],
            cwd=place,
            check=False,
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert b"in use: somebody listens there" in done.stderr
        assert await pid_of(address) == server.process.pid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("house:waf", NOTHING),
        ("house", "'house', expected module:name"),
        ("nowhere:waf", "can't import 'nowhere': ModuleNotFoundError: No module named 'nowhere'"),
        ("broken:waf", "can't import 'broken': ZeroDivisionError: division by zero (PLACE/broken.py:3)"),
        ("unreadable:waf", "can't import 'unreadable': SyntaxError: invalid syntax (unreadable.py, line 1)"),
        ("house:wave", "'house' has no 'wave'"),
        ("house:words", "'house:words' is a str, expected an Agent"),
        ("house:dictionary", "'house:dictionary' is a dict, expected an Agent"),
        ("house:Misspelt", "'house:Misspelt': Misspelt.on_request_header is no hook, expected on_request_headers"),
        ("house:Demanding", "'house:Demanding' can't be called: TypeError: "),
        ("house:fail", "'house:fail' can't be called: LookupError: no such luck (PLACE/house.py:"),
        ("house:waf --bind http://a", "--bind: 'http://a', expected unix:///path, tcp://host:port or systemd:NAME"),
        (
            "house:waf --bind systemd/waf",
            "--bind: 'systemd/waf', expected unix:///path, tcp://host:port or systemd:NAME",
        ),
        (
            "house:waf --http systemd/waf",
            "--http: 'systemd/waf', expected host:port, such as 127.0.0.1:9000, or systemd:NAME",
        ),
        ("house:waf --http 9000", "--http: '9000', expected 127.0.0.1:9000"),
        ("house:Emails --api litellm", "--api litellm is what --http serves: give --http"),
        ("house:Emails --http 127.0.0.1:0 --no-mask-responses", "--no-mask-responses is for gateways"),
        ("house:waf --http 127.0.0.1:0 --api litellm", "api='litellm' with a Waf, expected a TextGuardrail"),
        ("house:waf --bind unix://PLACE/house.py", "there is a file that is no socket, and it stays"),
        ("house:waf --bind unix:///nowhere/a.sock", "unix:///nowhere/a.sock: there is no directory '/nowhere'"),
        (
            "house:waf --workers 2 --bind unix:///nowhere/a.sock",
            "unix:///nowhere/a.sock: there is no directory '/nowhere'",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: str,
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    given = arguments.replace("PLACE", str(place)).split()
    if "--bind" not in given and message != NOTHING and "--http" not in given:
        given += ["--bind", "tcp://127.0.0.1:0"]
    try:
        assert main(given) == 2
    finally:
        for name in {"house", "broken", "unreadable"} & (set(sys.modules) - before):
            del sys.modules[name]
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith("error: ")
    assert message.replace("PLACE", str(place)) in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a:b", "--workers", "0"],
        ["a:b", "--workers", "x"],
        ["a:b", "--framing", "v1"],
        ["a:b", "--api", "openai"],
        ["a:b", "--drain-timeout=-1"],
        ["a:b", "--max-held-bytes=0"],
    ],
)
def test_options_that_cannot_be_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_http_without_uvicorn_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("asgi_agents.serve.options.find_spec", lambda name: None)
    assert main(["house:waf", "--http", "127.0.0.1:0"]) == 2
    assert capsys.readouterr().err == (
        "error: --http: needs uvicorn, which is not installed; expected pip install 'asgi-agents[serve]'\n"
    )


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_workers_that_fail_at_the_same_moment_are_one_mistake(
    failing: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    async def run(self: Workers, count: int) -> None:
        raise ExceptionGroup("", [WorkerMistake("a worker could not begin")] * failing)

    monkeypatch.setattr(Workers, "run", run)
    arguments = ["tests.serve.test_main:Path", "--bind", f"unix://{place}/a.sock", "--workers", "2"]
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith("error: a worker could not begin\n")


def test_an_agent_that_cannot_be_made_ends_the_workers(place: Path) -> None:
    with running(place, "house:fail", "--bind", f"unix://{place}/a.sock", "--workers", "2") as server:
        assert server.ended() == 2
        assert "can't be called: LookupError" in server.log.read_text()
    assert not (place / "a.sock").exists()
