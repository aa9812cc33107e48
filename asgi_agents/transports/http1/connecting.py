"""Opens connections to one address."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any, Final

from .connection import Http1Connection

#: Seconds that the next address of a host waits for the one before it (RFC 8305, section 5).
ATTEMPT_DELAY: Final = 0.25


class Http1Connector:
    """Where to connect to, and how.

    :param host: a name or an IP address; with TLS, whom the certificate has to name as well.
    :param tls: None for plain connections.
    :param uds: the path of a Unix socket to connect to instead.
    :param address: which of the host's addresses to connect to; empty: to any that answers.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, uds: str | None, address: str = "") -> None:
        self._server_name = host if tls else None
        self._host = address or host
        self._port = port
        self._tls = tls
        self._uds = uds
        if tls is not None:
            tls.set_alpn_protocols(["http/1.1"])

    async def connect(self, make: Callable[[], Http1Connection]) -> Http1Connection:
        """Open a connection. Nothing stays open where this is cancelled.

        :raises OSError: nobody answers there, or TLS fails.
        """
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"ssl": self._tls, "server_hostname": self._server_name}
        if self._uds is not None:
            opening = loop.create_unix_connection(make, self._uds, **options)
        elif _is_ip_address(self._host):
            opening = loop.create_connection(make, self._host, self._port, **options)
        else:
            connected = await _connect_socket(loop, self._host, self._port)
            opening = loop.create_connection(make, sock=connected, **options)
        return (await opening)[1]


def _is_ip_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return True
    return False


async def _connect_socket(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A socket that is connected to one of a host's addresses (RFC 8305).

    asyncio would wait for one address after the other, which takes minutes where one of them does not answer; what it
    can do about that, uvloop can't.
    """
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    attempts: dict[asyncio.Task[socket.socket], None] = {}
    waiting = _in_turns(found)
    faults: list[BaseException] = []
    winner: socket.socket | None = None
    try:
        while waiting or attempts:
            if waiting:
                attempts[loop.create_task(_attempt(loop, waiting.pop(0)))] = None
            done, _ = await asyncio.wait(
                attempts, timeout=ATTEMPT_DELAY if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                fault = task.exception()
                if fault is None:
                    winner = task.result()
                    attempts.pop(task)
                    return winner
                faults.append(fault)
                attempts.pop(task)
    finally:
        for task in attempts:
            task.cancel()
            # It may have succeeded already, or be about to.
            task.add_done_callback(_close_result)
    raise faults[0] if len({str(fault) for fault in faults}) == 1 else OSError("; ".join(map(str, faults)))


async def _attempt(loop: asyncio.AbstractEventLoop, found: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = found
    attempt = socket.socket(family, kind, protocol)
    try:
        attempt.setblocking(False)
        await loop.sock_connect(attempt, address)
    except BaseException:
        attempt.close()
        raise
    return attempt


def _close_result(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _in_turns(found: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The family of the first address and the others in turns (RFC 8305, section 4)."""
    first = [each for each in found if each[0] == found[0][0]]
    others = [each for each in found if each[0] != found[0][0]]
    return [each for each in chain.from_iterable(zip_longest(first, others)) if each is not None]
