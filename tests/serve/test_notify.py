"""What the service manager hears, on the socket that it names."""

import logging
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Final

import anyio
import pytest

from asgi_agents.serve.notify import Notifier
from tests.support.asgi import VIRTUAL_TIME

if sys.platform == "win32":
    pytest.skip("there are no Unix datagram sockets on Windows", allow_module_level=True)

PID: Final = 4711


class Manager:
    """The end that listens."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.address = address
        self._sock = sock
        sock.settimeout(10)

    def heard(self) -> str:
        """The next message."""
        return self._sock.recv(4096).decode()

    def all_heard(self) -> list[str]:
        """All that have come and were not read."""
        self._sock.setblocking(False)
        found: list[str] = []
        while True:
            try:
                found.append(self.heard())
            except BlockingIOError:
                return found


KINDS: Final = ["path", *(["abstract"] if sys.platform == "linux" else [])]


@pytest.fixture(params=KINDS)
def manager(request: pytest.FixtureRequest) -> Iterator[Manager]:
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            sock.bind(f"{place}/notify")
            yield Manager(sock, f"{place}/notify")
        else:
            # Bound without a name, the system gives it one that is abstract.
            sock.bind("")
            yield Manager(sock, "@" + sock.getsockname()[1:].decode())


def test_it_says_that_it_is_ready_and_that_it_stops(manager: Manager) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "PATH": "/bin"}
    notifier = Notifier.from_environment(environ, PID)
    assert notifier.wanted
    notifier.ready()
    notifier.stopping()
    assert [manager.heard(), manager.heard()] == ["READY=1", "STOPPING=1"]
    # Processes that this one starts are not to answer for it.
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME])
@pytest.mark.parametrize("whom", [{}, {"WATCHDOG_PID": str(PID)}])
async def test_it_says_twice_in_the_watchdogs_time_that_it_lives(whom: dict[str, str], manager: Manager) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000", **whom}
    notifier = Notifier.from_environment(environ, PID)
    with anyio.move_on_after(75):
        await notifier.keep_alive()
    assert manager.all_heard() == ["WATCHDOG=1"] * 5
    assert environ == {}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "9" * 400},
        {"WATCHDOG_USEC": "9" * 5000},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "12"},
    ],
)
async def test_without_a_watchdog_it_does_not(environ: dict[str, str], manager: Manager) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address, **environ}, PID)
    with anyio.fail_after(10):
        await notifier.keep_alive()
    assert manager.all_heard() == []


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "30000000"}])
async def test_where_nobody_asks_nothing_is_said(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environ, PID)
    assert not notifier.wanted
    notifier.ready()
    notifier.stopping()
    await notifier.keep_alive()


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative/path"])
def test_an_address_of_another_kind_is_told_in_the_log(address: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier.from_environment({"NOTIFY_SOCKET": address}, PID).wanted
    assert "NOTIFY_SOCKET: expected a path or @name" in caplog.text


@pytest.mark.parametrize("address", ["/nowhere/notify", "/" + "a" * 200])
def test_a_manager_that_cannot_be_told_is_one_line_and_no_error(address: str, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address}, PID)
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.stopping()
    [line] = caplog.messages
    assert line.startswith("the service manager can't be told READY=1: ")
