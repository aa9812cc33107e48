"""Sockets that listen, and the files of those that are Unix sockets."""

import errno
import logging
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio
from anyio import getaddrinfo

from ..errors import ConfigurationError
from ..transports.wire import HAS_UNIX_SOCKETS, Address

if TYPE_CHECKING:
    from .lock import Lock

logger: Final = logging.getLogger("asgi_agents.serve")

BACKLOG: Final = 2048

# Owner and group may connect, nobody else.
_MODE: Final = 0o660
# On POSIX systems SO_REUSEADDR lets a server start while connections of the one before it linger. On Windows it would
# let any process bind a port that is in use; SO_EXCLUSIVEADDRUSE keeps others from it.
_BIND_OPTION: Final = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
# Seconds between the two attempts that show that nobody listens.
_SECOND_LOOK: Final = 0.1


class Listening:
    """A socket that listens, and what was made for it."""

    def __init__(self, sock: socket.socket, path: str | None = None, lock: "Lock | None" = None) -> None:
        self.sock = sock
        self._path = path
        self._lock = lock
        self._file = None if path is None else identity(path)

    @property
    def address(self) -> str:
        """Where clients reach it, as they spell it."""
        return describe(self.sock)

    @property
    def descriptors(self) -> list[int]:
        """What a process inherits that is to serve this socket: the socket, and the lock on its path."""
        return [self.sock.fileno(), *([] if self._lock is None else [self._lock.fileno()])]

    def unlink(self) -> None:
        """Remove the socket's file, unless it is another server's by now, and let others have the path.

        It raises nothing. Who may not remove the file, such as a server that has given up its privileges, says so.
        """
        if self._path is not None:
            remove(self._path, self._file)
        self._path = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def close(self) -> None:
        """Stop listening, and leave nothing behind."""
        self.unlink()
        self.sock.close()


def is_unix(sock: socket.socket) -> bool:
    """Whether it is a Unix socket."""
    return HAS_UNIX_SOCKETS and sock.family == socket.AF_UNIX


def describe(sock: socket.socket) -> str:
    """The address of a listening socket."""
    name = sock.getsockname()
    if is_unix(sock):
        return f"unix://{os.fsdecode(name)}"
    host, port = name[:2]
    return f"tcp://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"tcp://{host}:{port}"


async def listen(address: Address) -> Sequence[Listening]:
    """Listen on ``address``: on one socket, or one for each of the host's addresses, all with the same port.

    A Unix socket that nobody listens on any more is replaced. A lock on its path, held until :meth:`Listening.unlink`,
    keeps other servers from replacing this one's: a connection that is refused does not show that nobody listens, since
    macOS refuses connections also while a server has as many waiting as it takes.

    Raises :class:`ConfigurationError` for a path that holds anything else than a socket, and OSError for an address
    that is in use or can't be had.
    """
    with explained(address):
        return [await _listen_unix(address)] if address.path is not None else await _listen_tcp(address)


@contextmanager
def explained(address: Address) -> Iterator[None]:
    """The errors of listening on ``address``, in words that say what to do."""
    try:
        yield
    except OSError as exc:
        if exc.errno is None:
            # A path or host that Python itself refuses: too long, say.
            raise ConfigurationError(f"{address}: {exc}") from exc
        if exc.errno == errno.EADDRINUSE:
            told = "in use: somebody listens there"
        elif exc.errno == errno.ENOENT and address.path is not None:
            told = f"there is no directory {os.path.dirname(address.path)!r}, expected it to be made before"
        else:
            told = exc.strerror or str(exc)
        raise OSError(exc.errno, f"{address}: {told}") from exc


async def claim(address: Address) -> "Lock":
    """Lock the path of a Unix socket, and remove a socket there that nobody listens on any more.

    Raises what :func:`listen` does.
    """
    # Imported here because it needs fcntl, which Windows does not have.
    from .lock import Lock

    path = address.path
    assert path is not None
    # Looked at first, so that no lock file is left beside what is no socket.
    _refuse_all_but_sockets(address, path)
    lock = Lock(path)
    try:
        await _remove_stale(address, path)
    except BaseException:
        lock.release()
        raise
    return lock


async def _listen_unix(address: Address) -> Listening:
    path = address.path
    assert path is not None
    lock = await claim(address)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind(path)
            listening = Listening(sock, path, lock)
            try:
                # Before it listens, so that nobody connects by the mode that the umask has left.
                os.chmod(path, _MODE)
                sock.listen(BACKLOG)
            except BaseException:
                listening.unlink()
                raise
        except BaseException:
            sock.close()
            raise
    except BaseException:
        lock.release()
        raise
    return listening


def _refuse_all_but_sockets(address: Address, path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        kind = "symlink" if stat.S_ISLNK(mode) else "directory" if stat.S_ISDIR(mode) else "file"
        raise ConfigurationError(f"{address}: there is a {kind} that is no socket, and it stays")


async def _remove_stale(address: Address, path: str) -> None:
    _refuse_all_but_sockets(address, path)
    found = identity(path)
    if found is None:
        return
    for attempt in range(2):
        if attempt:
            # It may have been bound a moment ago, by somebody who is about to listen.
            await anyio.sleep(_SECOND_LOOK)
        if _listens(path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    if identity(path) == found:
        os.unlink(path)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            # More clients than it accepts: very much alive.
            return True
        return True


def identity(path: str) -> tuple[int, int] | None:
    """Which file it is; None where there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def remove(path: str, made: tuple[int, int] | None) -> None:
    """Remove the file ``made``, if it is still the one at ``path``. That it can't be removed is logged."""
    try:
        if made is not None and identity(path) == made:
            os.unlink(path)
    except OSError as exc:
        # The next server replaces it.
        logger.warning("%s: can't be removed, and stays: %s", path, exc.strerror)


async def _listen_tcp(address: Address) -> Sequence[Listening]:
    resolved = await getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    port = address.port
    listening: list[Listening] = []
    try:
        for family, _, _, _, name in dict.fromkeys(resolved):
            sock = socket.socket(family, socket.SOCK_STREAM)
            listening.append(Listening(sock))
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, _BIND_OPTION, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((name[0], port, *name[2:]))
            port = sock.getsockname()[1]
            sock.listen(BACKLOG)
    except BaseException:
        for made in listening:
            made.sock.close()
        raise
    return listening


def reserve(address: Address) -> socket.socket:
    """Take a port, on which other processes may listen that are told to share it. Nobody listens yet.

    :raises OSError: it is in use, or ports can't be shared on this platform.
    """
    with explained(address):
        if not hasattr(socket, "SO_REUSEPORT"):  # pragma: no cover - Windows
            raise OSError(errno.ENOPROTOOPT, "ports can't be shared on this platform")
        family, _, _, _, name = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(name)
        except BaseException:
            sock.close()
            raise
        return sock
