"""Ten thousand calls at a time from one process, over four connections."""

import gc
import os
import platform
import subprocess
import sys

import pytest

from asgi_agents import AgentManager

from .crowd import ALLOCATOR, CALLS, CONNECTIONS, call_all, configured
from .processes import PATIENCE, ROOT, agent_process

# Ten thousand calls take ten seconds. test_pending_calls and test_flow_control have the same with fewer.
pytestmark = pytest.mark.slow


async def test_ten_thousand_concurrent_calls_are_answered_by_an_agent_that_takes_a_hundred_at_a_time() -> None:
    with agent_process("Repeats", "--bind", "unix://{place}/agent") as agent:
        async with AgentManager([configured(agent.addresses[0])]) as manager:
            assert await call_all(manager, 100) == 100
            gc.collect()
            blocks = sys.getallocatedblocks()
            assert await call_all(manager) == CALLS
            gc.collect()
            # A single object for each call would be ten thousand.
            assert sys.getallocatedblocks() - blocks < CALLS / 5
            statistics = manager.statistics()["agent"]
            assert (statistics.in_flight, statistics.waiting, statistics.connections) == (0, 0, CONNECTIONS)
            assert [endpoint.in_flight for endpoint in statistics.endpoints] == [0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs malloc_trim")
def test_ten_thousand_calls_that_an_agent_has_at_once_leave_no_memory_taken() -> None:
    with agent_process("Repeats", "--bind", "unix://{place}/agent", "--max-concurrency", str(CALLS)) as agent:
        told = subprocess.run(
            [sys.executable, "-m", f"{__package__}.crowd", agent.addresses[0], "4"],
            cwd=ROOT,
            env=os.environ | ALLOCATOR,
            stdout=subprocess.PIPE,
            check=True,
            timeout=3 * PATIENCE,
        ).stdout
    answered, taken = zip(*(map(int, line.split()) for line in told.splitlines()), strict=True)
    assert set(answered) == {CALLS}
    # What is made once is there after the first two rounds.
    assert max(taken[2:]) < 1.05 * taken[1]
