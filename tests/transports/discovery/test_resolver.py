"""Which hosts have to be looked up, and what the system's resolver says of them."""

import socket
import threading
from typing import Any

import anyio
import pytest

from asgi_agents.transports.discovery import has_to_be_looked_up
from asgi_agents.transports.discovery.resolver import look_up


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.1.2.3",
        "::1",
        "fd00::1",
        "fe80::1%1",
        # Whatever the system takes for an address.
        "127.1",
        "localhost",
        "LocalHost.",
        "waf.localhost",
    ],
)
def test_addresses_and_this_machine_need_no_lookup(host: str) -> None:
    assert not has_to_be_looked_up(host)


@pytest.mark.parametrize("host", ["waf", "waf.internal", "waf.internal.", "localhost.example", "1.2.3.4.example"])
def test_names_have_to_be_looked_up(host: str) -> None:
    assert has_to_be_looked_up(host)


@pytest.mark.parametrize("host", ["a" * 300, "a..b", "a\0b"])
def test_what_no_host_can_be_called_fails_when_it_is_looked_up(host: str) -> None:
    assert has_to_be_looked_up(host)


async def test_the_systems_resolver_is_asked() -> None:
    found = await look_up("localhost", 9000)
    assert set(found) & {"127.0.0.1", "::1"}


async def test_a_name_without_addresses_is_an_error() -> None:
    with pytest.raises(socket.gaierror):
        await look_up("agent.invalid", 9000)


@pytest.mark.parametrize("host", ["a" * 300, "a..b", "a\0b"])
async def test_what_no_host_can_be_called_is_an_error(host: str) -> None:
    with pytest.raises((OSError, ValueError)):
        await look_up(host, 9000)


async def test_addresses_of_a_link_name_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        stream = socket.SOCK_STREAM
        return [
            (socket.AF_INET6, stream, 6, "", ("fe80::1", 9000, 0, 2)),
            (socket.AF_INET6, stream, 6, "", ("fe80::2%eth0", 9000, 0, 2)),
            (socket.AF_INET6, stream, 6, "", ("fd00::1", 9000, 0, 0)),
            (socket.AF_INET, stream, 6, "", ("10.0.0.1", 9000)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await look_up("waf.test", 9000) == ["fe80::1%2", "fe80::2%eth0", "fd00::1", "10.0.0.1"]


async def test_a_resolver_that_hangs_holds_up_neither_the_event_loop_nor_other_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        go_on.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        async with anyio.create_task_group() as tasks:
            # As many as there are threads for handlers that are no coroutine functions.
            for _ in range(int(anyio.to_thread.current_default_thread_limiter().total_tokens)):
                tasks.start_soon(look_up, "waf.test", 9000)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(60):
                assert await anyio.to_thread.run_sync(lambda: "done") == "done"
            # A lookup that nobody waits for any more doesn't hold up those who have waited.
            tasks.cancel_scope.cancel()
    finally:
        go_on.set()
