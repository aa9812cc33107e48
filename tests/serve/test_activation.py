"""Sockets that a service manager hands over. The manager is played by real sockets and descriptors."""

import os
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from asgi_agents.serve import activation
from asgi_agents.serve.activation import take_sockets
from asgi_agents.serve.options import check, make_parser
from asgi_agents.terminal.loading import MistakeError

if sys.platform == "win32":
    pytest.skip("descriptors are not handed over on Windows", allow_module_level=True)

# Where there is room for as many descriptors as a test hands over. The manager's begin at 3, which is taken here.
FIRST: Final = 700
PID: Final = 4711


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="agents-") as path:
        yield Path(path)


def unix(place: Path, name: str = "a.sock", kind: int = socket.SOCK_STREAM, *, listening: bool = True) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(place / name))
    if listening:
        sock.listen()
    return sock


def tcp(place: Path) -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


Hand = Callable[..., dict[str, str]]


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    """Hands descriptors over; gives the environment that says so."""
    monkeypatch.setattr(activation, "_FIRST", FIRST)
    given: list[Any] = []

    def hand(*everything: Any, names: str | None = None) -> dict[str, str]:
        for number, each in enumerate(everything):
            given.append(each)
            os.dup2(each if isinstance(each, int) else each.fileno(), FIRST + number)
            if not isinstance(each, int):
                each.close()
        told = {"LISTEN_FDS": str(len(everything)), "LISTEN_PID": str(PID), "LISTEN_PIDFDID": "12", "PATH": "/bin"}
        return told if names is None else told | {"LISTEN_FDNAMES": names}

    yield hand
    for number, each in enumerate(given):
        for fd in [FIRST + number, *([each] if isinstance(each, int) else [])]:
            try:
                os.close(fd)
            except OSError:
                # The socket that was made of it has been closed.
                continue


def test_each_option_takes_the_sockets_of_its_name(hand: Hand, place: Path) -> None:
    environ = hand(unix(place), tcp(place), unix(place, "b.sock"), names="waf:web:waf")
    taken = take_sockets(environ, PID, ["tcp://127.0.0.1:1", "systemd:waf"], "systemd:web")
    assert [sock.getsockname() for sock in taken.streams] == [f"{place}/a.sock", f"{place}/b.sock"]
    assert [sock.family for sock in taken.http] == [socket.AF_INET]
    # Neither the variables nor the sockets are for processes that this one starts.
    assert environ == {"PATH": "/bin"}
    assert not any(sock.get_inheritable() for sock in (*taken.streams, *taken.http))
    for sock in (*taken.streams, *taken.http):
        sock.close()
    assert sorted(path.name for path in place.iterdir()) == ["a.sock", "b.sock"]


@pytest.mark.parametrize("http", ["systemd:web", "systemd"])
def test_without_a_name_an_option_takes_the_rest(hand: Hand, place: Path, http: str) -> None:
    binds = ["systemd"] if http == "systemd:web" else ["systemd:one", "systemd:two"]
    taken = take_sockets(hand(unix(place), tcp(place), tcp(place), names="one:web:two"), PID, binds, http)
    assert (len(taken.streams), [sock.family for sock in taken.http]) == (2, [socket.AF_INET])
    for sock in (*taken.streams, *taken.http):
        sock.close()


def test_sockets_without_names_are_taken(hand: Hand, place: Path) -> None:
    [sock] = take_sockets(hand(unix(place)), PID, ["systemd"], None).streams
    sock.close()


@pytest.mark.parametrize("environ", [{}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "1"}])
def test_what_is_not_asked_for_and_for_others_is_left_alone(environ: dict[str, str]) -> None:
    assert take_sockets(environ, PID, ["unix:///run/a.sock"], "127.0.0.1:0") == ([], [])


NAMED: Final = {"LISTEN_FDS": "1", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": "waf"}
VARIABLES: Final = [
    ({}, "--bind systemd:waf: no sockets are handed over, expected a .socket unit"),
    ({"LISTEN_FDS": "0", "LISTEN_PID": str(PID)}, "--bind systemd:waf: no sockets are handed over"),
    ({"LISTEN_FDS": "1"}, "--bind systemd:waf: no sockets are handed over"),
    (NAMED | {"LISTEN_PID": "12"}, "LISTEN_PID=12, but this is process 4711: the sockets are for another process"),
    (NAMED | {"LISTEN_PID": ""}, "LISTEN_PID=, but this is process 4711"),
    (NAMED | {"LISTEN_FDS": "two"}, "LISTEN_FDS=two, expected a number of sockets"),
    (NAMED | {"LISTEN_FDS": "-1"}, "LISTEN_FDS=-1, expected a number of sockets"),
    (NAMED | {"LISTEN_FDS": "\u0663"}, "expected a number of sockets"),
    (NAMED | {"LISTEN_FDS": "4000000000"}, "expected a number of sockets"),
    (NAMED | {"LISTEN_FDS": "9" * 5000}, "expected a number of sockets"),
    (NAMED | {"LISTEN_FDS": "2"}, "LISTEN_FDNAMES has 1 names, expected as many as LISTEN_FDS=2"),
    (NAMED, f"the socket waf (descriptor {FIRST}): Bad file descriptor, expected an open socket"),
]


@pytest.mark.parametrize(("environ", "told"), VARIABLES)
def test_variables_that_cannot_be(environ: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "_FIRST", FIRST)
    with pytest.raises(MistakeError) as caught:
        take_sockets(dict(environ), PID, ["systemd:waf"], None)
    assert told in str(caught.value)


def a_file(place: Path) -> int:
    return os.open(place / "file", os.O_CREAT | os.O_RDWR)


def a_fifo(place: Path) -> int:
    os.mkfifo(place / "fifo")
    return os.open(place / "fifo", os.O_RDWR)


def a_connection(place: Path) -> socket.socket:
    one, other = socket.socketpair()
    other.close()
    return one


def abstract(place: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    # Bound without a name, the system gives it one that is abstract.
    sock.bind("")
    sock.listen()
    return sock


UNUSABLE: Final = [
    (a_file, "it is no socket, expected ListenStream="),
    (a_fifo, "it is no socket, expected ListenStream="),
    (a_connection, "it does not listen, expected a listening socket: Accept=no"),
    (lambda place: unix(place, listening=False), "it does not listen"),
    (lambda place: unix(place, kind=socket.SOCK_DGRAM, listening=False), "expected a stream: ListenStream="),
    (lambda place: unix(place, kind=socket.SOCK_SEQPACKET), "expected a stream: ListenStream="),
    (lambda place: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "expected a stream: ListenStream="),
    pytest.param(
        lambda place: socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM),
        "expected a Unix socket or TCP",
        marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux has netlink"),
    ),
    pytest.param(
        abstract,
        "it has no path, expected ListenStream=/path",
        marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets"),
    ),
]


@pytest.mark.parametrize("option", ["bind", "http"])
@pytest.mark.parametrize(("make", "told"), UNUSABLE)
def test_what_cannot_be_served(make: Callable[[Path], Any], told: str, option: str, hand: Hand, place: Path) -> None:
    environ = hand(make(place), names="waf")
    with pytest.raises(MistakeError) as caught:
        take_sockets(environ, PID, *((["systemd:waf"], None) if option == "bind" else ([], "systemd:waf")))
    assert str(caught.value).startswith(f"the socket waf (descriptor {FIRST}): ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("binds", "http", "told"),
    [
        (
            ["systemd:other"],
            None,
            "--bind systemd:other: there is no such socket; those that no other option takes: waf",
        ),
        (["systemd:waf"], None, "the socket web (descriptor 701): no option takes it, expected --bind systemd:web or"),
        ([], None, "the socket waf (descriptor 700): no option takes it"),
        (["unix:///run/a.sock"], None, "the socket waf (descriptor 700): no option takes it"),
        (
            ["systemd"],
            "systemd",
            "--http systemd: --bind systemd takes it already; those that no other option takes: none",
        ),
        (
            ["systemd:waf", "systemd:waf"],
            None,
            "--bind systemd:waf: --bind systemd:waf takes it already; those that no other option takes: web",
        ),
        (
            ["systemd:waf"],
            "systemd:waf",
            "--http systemd:waf: --bind systemd:waf takes it already; those that no other option takes: web",
        ),
        (["systemd:waf"], "systemd:other", "--http systemd:other: there is no such socket; those that no other option"),
    ],
)
def test_every_socket_is_taken_once(binds: list[str], http: str | None, told: str, hand: Hand, place: Path) -> None:
    environ = hand(unix(place), tcp(place), names="waf:web")
    with pytest.raises(MistakeError) as caught:
        take_sockets(environ, PID, binds, http)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("option", ["--grpc", "--ext-proc", "--ext-authz"])
@pytest.mark.parametrize("name", ["systemd", "systemd:waf"])
def test_grpc_takes_no_socket_that_is_handed_over(option: str, name: str) -> None:
    with pytest.raises(MistakeError, match=rf"{option}: '{name}', expected unix:///path or host:port: gRPC's library"):
        check(make_parser().parse_args(["house:waf", option, name]))


def test_the_file_of_a_socket_stays_as_it_is(hand: Hand, place: Path) -> None:
    sock = unix(place)
    (place / "a.sock").chmod(0o600)
    before = (place / "a.sock").stat()
    [taken] = take_sockets(hand(sock, names="waf"), PID, ["systemd:waf"], None).streams
    taken.close()
    after = (place / "a.sock").stat()
    assert (stat.S_IMODE(after.st_mode), after.st_ino, after.st_uid) == (0o600, before.st_ino, before.st_uid)
