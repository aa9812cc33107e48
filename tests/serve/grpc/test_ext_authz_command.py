"""The command line serves an external authorizer for Envoy."""

import re
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

pytest.importorskip("envoy.service.auth.v3", reason="xds-protos is not installed: pip install '.[grpc]'")

from asgi_agents.protocol import Allow, Block
from tests.transports.grpc.test_ext_authz import bound
from tests.transports.test_forward_auth import head

# It starts processes.
pytestmark = pytest.mark.slow

_AGENTS = """
from asgi_agents import Agent, AgentResponse


class Waf(Agent):
    async def on_request_headers(self, event):
        return AgentResponse.block(403, "no") if event.uri == "/no" else None


class Responses(Agent):
    async def on_response_headers(self, event): ...
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "asgi_agents.serve", *arguments]


async def ask(url: str) -> list[object]:
    client = bound(url)
    found = [(await client.call(head(uri=uri))).decision for uri in ("/yes", "/no")]
    await client.aclose()
    return found


def test_an_agent_is_served_and_drained(tmp_path: Path) -> None:
    (tmp_path / "house.py").write_text(_AGENTS)
    log = tmp_path / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command("house:Waf", "--ext-authz", "127.0.0.1:0"), cwd=tmp_path, stderr=out, stdin=subprocess.DEVNULL
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"listening on (\S+)", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert anyio.run(ask, found[1]) == [Allow(), Block(403, "no")]
        server.terminate()
        assert server.wait(60) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def test_an_agent_that_would_not_be_asked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "house.py").write_text(_AGENTS)
    done = subprocess.run(
        command("house:Responses", "--ext-authz", "127.0.0.1:0"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ext_authz: Responses receives neither request_headers nor")
