"""``python -m asgi_agents.serve --grpc``, in processes of its own."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from asgi_agents.serve.__main__ import main
from tests.serve.test_main import Server
from tests.serve.test_main import place as place
from tests.support.wire_fields import read

from .client import HANDSHAKE, PROCESS, chunk

# They start processes.
pytestmark = pytest.mark.slow


def blocked_by(target: str) -> str:
    """The process that answers a chunk of a body, on a connection of its own."""

    def requests() -> Iterator[bytes]:
        yield HANDSHAKE
        yield chunk()

    channel: Any
    with grpc.insecure_channel(target) as channel:
        for data in channel.stream_stream(PROCESS)(requests(), timeout=60):
            [(kind, [value])] = read(data).items()
            if kind == 2:
                body: bytes = read(read(value)[3][0])[2][0]
                return body.decode()
    raise AssertionError


def test_an_agent_is_served_at_several_addresses_and_drained(place: Path) -> None:
    server = Server(place, "house:Waf", "--grpc", f"unix://{place}/s", "--grpc", "127.0.0.1:0", "--drain-timeout", "2")
    try:
        unix, tcp = server.addresses(2)
        assert unix == f"unix://{place}/s"
        assert tcp.startswith("grpc://127.0.0.1:")
        for target in (f"unix:{place}/s", tcp.removeprefix("grpc://")):
            assert blocked_by(target) == str(server.process.pid)
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
    finally:
        server.process.kill()
        server.process.wait()
    assert not (place / "s").exists()
    said = server.log.read_text()
    assert said.splitlines()[-1].endswith("stopped")
    assert "goaway" not in said


def test_several_processes_share_a_port(place: Path) -> None:
    server = Server(place, "house:Waf", "--grpc", "127.0.0.1:0", "--workers", "2", "--drain-timeout", "1")
    try:
        [address] = server.addresses()
        target = address.removeprefix("grpc://")
        found: set[str] = set()
        server.until(lambda: _listens(target))

        def both_have_answered() -> bool:
            found.add(blocked_by(target))
            return len(found) == 2

        server.until(both_have_answered)
        assert str(server.process.pid) not in found
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
    finally:
        server.process.kill()
        server.process.wait()


def _listens(target: str) -> bool:
    try:
        blocked_by(target)
    except grpc.RpcError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--grpc", "9000"], "--grpc: '9000', expected unix:///path or host:port, such as 127.0.0.1:9000"),
        (
            ["--grpc", "unix:///s", "--workers", "2"],
            "--grpc: unix:///s, expected host:port where there are several workers",
        ),
        ([], "nothing to bind: give --bind, --http, --grpc, --ext-proc or --ext-authz, or several"),
    ],
)
def test_what_cant_work_is_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["house:Waf", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
