"""Names that a real DNS server answers, asked by the system's resolver, under load and in real time."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.names import LOOPBACK

from .scenario import HTTP_PORT, STREAM_PORT, TIME_TO_LIVE
from .server import DnsServer

ROOT = Path(__file__).parents[2]
# Of users, of mounts and of networks. Nobody has to be root for that.
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "--net")


@cache
def _has_namespaces() -> bool:
    return (
        sys.platform == "linux"
        and shutil.which("unshare") is not None
        and subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_three_addresses_become_five_become_two_under_load(backend: str) -> None:
    if not _has_namespaces():
        pytest.skip("this machine lets nobody make namespaces: unshare(1) fails")
    ran = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.dns.scenario", backend],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)

    # Nothing is lost.
    assert list(seen["statuses"]) == ["200"]
    assert seen["statuses"]["200"] > 1000
    # Once for each agent and lookup, and no more often.
    assert seen["queries"] >= 8
    for phase, addresses in zip(seen["phases"], (LOOPBACK[:3], LOOPBACK, LOOPBACK[3:]), strict=True):
        assert phase["addresses"] == list(addresses)
        # All that there are have calls, and no others.
        assert phase["called"] == {"stream": list(addresses), "http": list(addresses)}
        assert phase["endpoints"] == {
            "stream": [[f"tcp://{address}:{STREAM_PORT}", "up"] for address in addresses],
            "http": [[f"http://{address}:{HTTP_PORT}", "up"] for address in addresses],
        }
    # No call a second after its time to live.
    assert 0 < seen["phases"][-1]["last_call_to_what_has_left"] < TIME_TO_LIVE + 1


def test_the_server_answers_what_it_knows() -> None:
    with DnsServer("waf.agents.test", ["10.0.0.1", "10.0.0.2"], time_to_live=5, at=("127.0.0.1", 0)) as server:
        question = b"\3waf\6agents\4test\0"
        header = b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0"
        answer = server.answer(header + question.upper() + b"\0\1\0\1")
        assert answer[:12] == b"\x12\x34\x85\x80\0\1\0\2\0\0\0\0"
        assert answer.endswith(b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4\x0a\0\0\2")
        # It has no IPv6 address, and there is no other name.
        assert server.answer(header + question + b"\0\x1c\0\1")[2:8] == b"\x85\x80\0\1\0\0"
        assert server.answer(header + b"\3waf\0\0\1\0\1")[2:8] == b"\x85\x83\0\1\0\0"
