"""One transport for several event loops in threads: each follows its name by itself, and stops when it ends."""

import gc
import socket
import threading
import time

import anyio
import pytest

from asgi_agents import AgentConfig, AgentManager, EventType, HttpTransport, StreamTransport
from tests.support.listening import serving
from tests.support.names import free_port, resolving
from tests.support.sample_events import head
from tests.test_event_loops import pair as pair
from tests.test_event_loops import together
from tests.transports.stream.instances import Instance
from tests.transports.stream.peer import Received
from tests.transports.test_http import RawAgent, allow_everything

FIRST, SECOND = "127.0.0.1", "127.0.0.2"
EVENTS = frozenset({EventType.REQUEST_HEADERS})


@pytest.mark.parametrize("scheme", ["tcp", "http"])
def test_every_event_loop_follows_the_name(scheme: str, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=[FIRST])
    port = free_port((FIRST, SECOND))
    url = f"{scheme}://waf.test:{port}"
    transport = (StreamTransport if scheme == "tcp" else HttpTransport)(url, resolve_interval=0.05)
    manager = AgentManager([AgentConfig("waf", transport, events=EVENTS)])
    there, ended = threading.Event(), threading.Barrier(2)
    called = {FIRST: 0, SECOND: 0}

    async def serve(tasks: anyio.abc.TaskGroup, host: str) -> None:
        if scheme == "tcp":

            async def behave(event: Received) -> None:
                called[host] += 1
                await event.answer()

            instance = Instance(host, port, behaviour=behave)
            await tasks.start(_listen, instance)
        else:

            async def answer(stream: anyio.abc.ByteStream) -> None:
                called[host] += 1
                await allow_everything(stream)

            await tasks.start(_listen_http, RawAgent(answer), host, port)

    async def first() -> None:
        async with anyio.create_task_group() as tasks:
            await serve(tasks, FIRST)
            await serve(tasks, SECOND)
            there.set()
            await use()
            # The other event loop may still call.
            await anyio.to_thread.run_sync(ended.wait)
            tasks.cancel_scope.cancel()

    async def second() -> None:
        await anyio.to_thread.run_sync(there.wait)
        await use()
        await anyio.to_thread.run_sync(ended.wait)

    async def use() -> None:
        decision = await manager.process_request_headers(head("a"))
        assert decision.is_allow
        names.answers["waf.test"] = [SECOND]
        while not called[SECOND]:
            await manager.process_request_headers(head(str(time.monotonic())))
            await anyio.sleep(0.005)
        await manager.shutdown()

    together(pair, first, second)
    lookups = len(names.lookups)
    time.sleep(0.15)
    assert len(names.lookups) == lookups
    assert called[FIRST] > 0
    assert called[SECOND] > 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("scheme", ["tcp", "http"])
def test_an_event_loop_can_end_while_a_lookup_hangs(backend: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a TestClient outside ``with`` does, which nobody closes."""
    asked, go_on = threading.Event(), threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        asked.set()
        go_on.wait(60)
        return []

    async def main() -> None:
        transport = (StreamTransport if scheme == "tcp" else HttpTransport)(f"{scheme}://waf.test:9")
        manager = AgentManager([AgentConfig("waf", transport, events=EVENTS, timeout=0.02, circuit_breaker=None)])
        with anyio.fail_after(60):
            # On a busy machine the time of a call may be over before a thread has begun to look.
            while not asked.is_set():
                decision = await manager.process_request_headers(head("a"))
                assert not decision.is_allow

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    # Of the construction, which asks nobody.
    monkeypatch.setattr("asgi_agents.transports.http_origin.has_to_be_looked_up", lambda host: True)
    monkeypatch.setattr("asgi_agents.transports.stream.endpoints.has_to_be_looked_up", lambda host: True)
    try:
        anyio.run(main, backend=backend)
        assert asked.is_set()
    finally:
        go_on.set()
    gc.collect()


async def _listen(instance: Instance, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    async with instance.listening():
        task_status.started()
        await anyio.sleep_forever()


async def _listen_http(agent: RawAgent, host: str, port: int, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
    async with serving(listener, agent.connection):
        task_status.started()
        await anyio.sleep_forever()
