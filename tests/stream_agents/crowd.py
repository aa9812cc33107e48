"""Calls about many requests at once, and what memory they leave taken."""

import ctypes
import gc
import os
import sys
from pathlib import Path

import anyio

from asgi_agents import AgentConfig, AgentManager, StreamTransport
from asgi_agents.observability.correlation import outside_name
from tests.support.sample_events import head

CALLS = 10_000
CONNECTIONS = 4
#: One that can be told to give back what is free.
ALLOCATOR = {"PYTHONMALLOC": "malloc"}


def configured(address: str) -> AgentConfig:
    """An agent of which nothing on our side limits the calls."""
    transport = StreamTransport(address, connections=CONNECTIONS, max_calls_per_connection=CALLS // CONNECTIONS)
    return AgentConfig("agent", transport, max_concurrent_calls=CALLS, timeout=60.0)


async def call_all(manager: AgentManager, calls: int = CALLS) -> int:
    """Ask about so many requests at once; returns how many got the answer that was theirs."""
    answered = 0

    async def call(correlation_id: str) -> None:
        nonlocal answered
        decision = await manager.process_request_headers(head(correlation_id))
        answered += decision.routing_metadata == {"asked": outside_name(correlation_id)}

    async with anyio.create_task_group() as tasks:
        for number in range(calls):
            tasks.start_soon(call, f"c-{number}")
    return answered


def _resident() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _main(address: str, rounds: int) -> None:
    async with AgentManager([configured(address)]) as manager:
        for _ in range(rounds):
            print(await call_all(manager), _resident())


if __name__ == "__main__":
    # With the address of an agent, and how often: tells how many calls were answered, and the bytes that are taken.
    anyio.run(_main, sys.argv[1], int(sys.argv[2]))
