"""Takes from Python what it doesn't have on Windows. A process with this folder in its PYTHONPATH begins with it.

It can't show that the package works there, but that it uses nothing that isn't there.
"""

import asyncio
import functools
import importlib.machinery
import os
import signal
import socket
import ssl
import subprocess
import sys
from typing import Any, NoReturn

# What looks at `sys.platform` once, as it is imported, has to have been imported before.
import anyio._backends._asyncio
import anyio.streams.memory  # noqa: F401
import httpcore  # noqa: F401
import httpx  # noqa: F401
import msgspec  # noqa: F401
import opentelemetry.metrics
import opentelemetry.trace.propagation.tracecontext  # noqa: F401
import starlette.applications
import starlette.websockets  # noqa: F401
import uvicorn.lifespan.on
import uvicorn.protocols.http.auto
import uvicorn.protocols.websockets.auto  # noqa: F401

# Modules

MODULES = {
    "crypt",
    "fcntl",
    "grp",
    "nis",
    "posix",
    "pty",
    "pwd",
    "resource",
    "spwd",
    "syslog",
    "termios",
    "tty",
    "uvloop",
}


class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        return None if fullname in MODULES else super().find_spec(fullname, path, target)


class BuiltinFinder(importlib.machinery.BuiltinImporter):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        return None if fullname in MODULES else super().find_spec(fullname, path, target)


for finder, substitute in (
    (importlib.machinery.PathFinder, Finder),
    (importlib.machinery.BuiltinImporter, BuiltinFinder),
):
    sys.meta_path[sys.meta_path.index(finder)] = substitute
for name in MODULES:
    sys.modules.pop(name, None)

# Names

_socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)
for module, names in (
    (
        os,
        "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK chown fchmod fchown fork forkpty getegid geteuid getgid getpgid "
        "getuid initgroups killpg lchown mkfifo mknod openpty register_at_fork sched_getaffinity setgid setsid setuid "
        "sysconf uname wait3 wait4",
    ),
    (socket, "AF_UNIX SO_REUSEPORT SCM_RIGHTS CMSG_LEN CMSG_SPACE send_fds recv_fds"),
    (signal, "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 alarm setitimer pthread_sigmask"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

# What Windows has instead


def have(module: Any, name: str, value: object) -> None:
    setattr(module, name, value)


have(socket, "socketpair", _socketpair)
have(socket, "SO_EXCLUSIVEADDRUSE", ~socket.SO_REUSEADDR)
# Ctrl-Break, which tests send as SIGUSR1.
have(signal, "SIGBREAK", signal.Signals(10))
have(os, "set_handle_inheritable", os.set_inheritable)
have(ssl, "enum_certificates", lambda store: [])


class StartupInfo:
    def __init__(self, *, lpAttributeList: dict[str, list[int]]) -> None:  # noqa: N803
        self.handles = lpAttributeList["handle_list"]


class Popen(subprocess.Popen[bytes]):
    def __init__(
        self, *args: Any, pass_fds: Any = (), startupinfo: Any = None, creationflags: int = 0, **options: Any
    ) -> None:
        if pass_fds:
            raise ValueError("pass_fds not supported on Windows.")
        options["start_new_session"] = bool(creationflags & 0x200)
        super().__init__(*args, pass_fds=startupinfo.handles if startupinfo else (), **options)  # type: ignore[call-overload]

    def send_signal(self, sig: int) -> None:
        # There are no others: this is TerminateProcess, whatever the number.
        os.kill(self.pid, 9)

    def terminate(self) -> None:
        self.send_signal(0)

    kill = terminate


have(subprocess, "STARTUPINFO", StartupInfo)
have(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200)
have(subprocess, "Popen", Popen)

# Sockets: SO_REUSEADDR lets any process have the same port, and without SO_EXCLUSIVEADDRUSE any other can take it

_setsockopt, _bind = socket.socket.setsockopt, socket.socket.bind
_exclusive: set[int] = set()


def setsockopt(self: socket.socket, *arguments: Any) -> None:
    if arguments[:2] == (socket.SOL_SOCKET, socket.SO_REUSEADDR):
        raise OSError("this shares the port with everybody")
    if arguments[:2] == (socket.SOL_SOCKET, ~socket.SO_REUSEADDR):
        _exclusive.add(self.fileno())
        return
    _setsockopt(self, *arguments)


def bind(self: socket.socket, address: Any) -> None:
    if self.type == socket.SOCK_STREAM and self.fileno() not in _exclusive:
        raise OSError("this leaves the port to everybody")
    _bind(self, address)


have(socket.socket, "setsockopt", setsockopt)
have(socket.socket, "bind", bind)

# Event loops


def absent(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError


for name in (
    "add_reader",
    "add_signal_handler",
    "add_writer",
    "create_unix_connection",
    "create_unix_server",
    "remove_signal_handler",
):
    setattr(asyncio.SelectorEventLoop, name, absent)

have(sys, "platform", "win32")
