"""Which paths of Unix sockets are refused when they are configured."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator

import pytest

from asgi_agents import ConfigurationError, HttpTransport, StreamTransport
from asgi_agents.transports import wire
from asgi_agents.transports.wire import parse_address

TAKERS: dict[str, Callable[[str], object]] = {
    "stream": lambda path: StreamTransport(f"unix://{path}"),
    "bind": lambda path: parse_address("--bind", f"unix://{path}"),
    "http": lambda path: HttpTransport("http://agent/", uds=path),
}
each_taker = pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)


@pytest.fixture
def directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="agents-") as path:
        yield path


def of_length(directory: str, size: int) -> str:
    return f"{directory}/".ljust(size, "s")


def can_bind(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.bind(path)
        except OSError:
            return False
    os.unlink(path)
    return True


@each_taker
def test_the_longest_path_is_the_longest_that_the_operating_system_takes(
    take: Callable[[str], object], directory: str
) -> None:
    for size in range(95, 115):
        path = of_length(directory, size)
        if can_bind(path):
            take(path)
        else:
            with pytest.raises(ConfigurationError, match=r"expected a path of \d+ bytes at most"):
                take(path)


@each_taker
def test_where_a_path_has_103_bytes_at_most_a_longer_one_says_so(
    take: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS. Bytes, not characters."""
    monkeypatch.setattr(wire, "_MAX_PATH_BYTES", 103)
    take("/" + "s" * 102)
    take("/" + "ö" * 51)
    for path in ("/" + "s" * 103, "/s" + "ö" * 51):
        with pytest.raises(ConfigurationError, match="expected a path of 103 bytes at most") as caught:
            take(path)
        assert path in str(caught.value)


@each_taker
def test_a_path_that_is_no_text_is_a_configuration_error(take: Callable[[str], object]) -> None:
    with pytest.raises(ConfigurationError, match="expected the absolute path of a socket"):
        take("/run/\ud800.sock")


@each_taker
def test_where_there_are_no_unix_sockets_the_error_says_so(
    take: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HAS_UNIX_SOCKETS", False)
    with pytest.raises(ConfigurationError, match="expected TCP: Python has no Unix sockets on this platform"):
        take("/run/agent.sock")
