"""Sockets that the service manager listens on and hands over: sd_listen_fds(3), by its environment variables.

They stay the manager's. It keeps them while this process is started again, so that no connection is refused meanwhile.
Nothing here changes their files, owners or modes.
"""

import os
import socket
import stat
from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple

from ..errors import printable
from ..terminal.loading import MistakeError
from .sockets import is_unix

_SCHEME: Final = "systemd"
_FIRST: Final = 3
# All of them are for this process alone, and would mislead the processes that it starts.
_VARIABLES: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_MOST: Final = 1000
# The name of a socket that the manager gives none.
_NAMELESS: Final = "unknown"
_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", socket.AF_INET)})


class _Handed(NamedTuple):
    """A descriptor, and its ``FileDescriptorName=``. Several may have one name."""

    name: str
    fd: int


def is_activated(given: str) -> bool:
    """Whether an option names sockets that are handed over: ``systemd`` or ``systemd:NAME``."""
    return given.partition(":")[0] == _SCHEME


class TakenSockets(NamedTuple):
    """The listening sockets that options take, of those that were handed over."""

    streams: list[socket.socket]
    http: list[socket.socket]


def take_sockets(environ: MutableMapping[str, str], pid: int, binds: Sequence[str], http: str | None) -> TakenSockets:
    """What ``--bind`` and ``--http`` name, of the sockets that are handed to the process ``pid``.

    ``systemd:NAME`` takes those of that name, ``systemd`` all that no other option names. The variables are removed,
    and processes that this one starts inherit none of the sockets.

    :raises MistakeError: nothing is handed over to this process; or no socket of that name; or one that can't be
        served; or one that no option takes: clients would connect to it, and get no answer.
    """
    options = [("--bind", bind) for bind in binds if is_activated(bind)]
    options += [("--http", http)] if http is not None and is_activated(http) else []
    variables = [environ.pop(name, None) for name in _VARIABLES]
    if not options and variables[1] != str(pid):
        return TakenSockets([], [])
    handed = _handed(variables, pid)
    if not handed and options:
        raise MistakeError(
            f"{' '.join(options[0])}: no sockets are handed over, expected a .socket unit of this service"
        )
    chosen: list[tuple[str, str, _Handed]] = []
    left = dict.fromkeys(handed)
    # Those without a name last: they take the rest.
    for option, given in sorted(options, key=lambda each: not each[1].partition(":")[2]):
        name = given.partition(":")[2]
        found = [each for each in left if name in ("", each.name)]
        if not found:
            there = ", ".join(printable(each.name) for each in left) or "none"
            takers = [f"{taker} {wanted}" for taker, wanted, each in chosen if name in ("", each.name)]
            fault = f"{takers[0]} takes it already" if takers else "there is no such socket"
            raise MistakeError(f"{option} {given}: {fault}; those that no other option takes: {there}")
        for each in found:
            del left[each]
            chosen.append((option, given, each))
    for each in left:
        wanted = f"{_SCHEME}:{printable(each.name)}"
        raise MistakeError(f"{_told(each)}: no option takes it, expected --bind {wanted} or --http {wanted}")
    with ExitStack() as unfinished:
        taken = TakenSockets([], [])
        for option, _, each in chosen:
            sock = _listening(each)
            unfinished.callback(sock.close)
            (taken.streams if option == "--bind" else taken.http).append(sock)
        unfinished.pop_all()
    return taken


def _handed(variables: Sequence[str | None], pid: int) -> Sequence[_Handed]:
    count, wanted, names, _ = variables
    if count is None or wanted is None:
        return []
    if not (count.isascii() and count.isdecimal() and len(count) <= 4 and int(count) <= _MOST):
        raise MistakeError(f"LISTEN_FDS={printable(count)}, expected a number of sockets")
    if wanted != str(pid):
        raise MistakeError(
            f"LISTEN_PID={printable(wanted)}, but this is process {pid}: the sockets are for another process, expected "
            "this one to be started without a shell or another program around it"
        )
    fds = range(_FIRST, _FIRST + int(count))
    named = [_NAMELESS] * len(fds) if names is None else names.split(":") if fds else []
    if len(named) != len(fds):
        raise MistakeError(f"LISTEN_FDNAMES has {len(named)} names, expected as many as LISTEN_FDS={count}")
    handed = [_Handed(name, fd) for fd, name in zip(fds, named, strict=True)]
    for each in handed:
        try:
            os.set_inheritable(each.fd, False)
        except OSError as exc:
            raise MistakeError(f"{_told(each)}: {exc.strerror}, expected an open socket") from None
    return handed


def _listening(handed: _Handed) -> socket.socket:
    """The socket, which is known to be one that can be served."""
    if not stat.S_ISSOCK(os.fstat(handed.fd).st_mode):
        raise MistakeError(f"{_told(handed)}: it is no socket, expected ListenStream= in the .socket unit")
    sock = socket.socket(fileno=handed.fd)
    fault = _fault_of(sock)
    if fault is not None:
        # It is not this object's to close.
        sock.detach()
        raise MistakeError(f"{_told(handed)}: {fault}")
    return sock


def _fault_of(sock: socket.socket) -> str | None:
    if sock.family not in _FAMILIES:
        return f"its address family is {sock.family!r}, expected a Unix socket or TCP"
    if sock.type != socket.SOCK_STREAM:
        return f"it is of {sock.type!r}, expected a stream: ListenStream="
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "it does not listen, expected a listening socket: Accept=no"
    if is_unix(sock) and not os.fsencode(sock.getsockname()).startswith(b"/"):
        return "it has no path, expected ListenStream=/path: whoever is on the machine may connect to any other"
    return None


def _told(handed: _Handed) -> str:
    return f"the socket {printable(handed.name)} (descriptor {handed.fd})"
