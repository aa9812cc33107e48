"""What the service manager is told: sd_notify(3), by its environment variables."""

import logging
import os
import socket
import sys
from collections.abc import MutableMapping
from typing import Final

import anyio

logger: Final = logging.getLogger("asgi_agents.serve")

# Seconds that the manager may take to receive a message.
_PATIENCE: Final = 1.0
_MICROSECONDS: Final = 1_000_000
# Of an interval: int() refuses what is much longer.
_MAX_DIGITS: Final = 18


class Notifier:
    """Tells the service manager that the service is up, alive and stopping.

    :param address: a Unix datagram socket: a path, or ``@`` and an abstract name. None: nobody wants to be told.
    :param watchdog: seconds after which the manager takes a service for dead that has said nothing; None: it doesn't.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address
        self._watchdog = watchdog
        self._failed = False

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], pid: int) -> "Notifier":
        """As the manager asks for it. The variables are removed: processes that this one starts tell it nothing."""
        address = environ.pop("NOTIFY_SOCKET", None)
        interval, for_whom = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(pid))
        if not address or sys.platform == "win32":
            return cls()
        if address[0] not in "/@":
            logger.warning("NOTIFY_SOCKET: expected a path or @name; the service manager is told nothing")
            return cls()
        sane = interval.isascii() and interval.isdecimal() and len(interval) <= _MAX_DIGITS
        watched = sane and for_whom == str(pid) and int(interval) > 0
        return cls(address, int(interval) / _MICROSECONDS if watched else None)

    @property
    def wanted(self) -> bool:
        """Whether anybody is told."""
        return self._address is not None

    def ready(self) -> None:
        """The service answers."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The service has begun to stop."""
        self._send("STOPPING=1")

    async def keep_alive(self) -> None:
        """Say that the event loop turns, as often as the manager wants it; for ever, where it does."""
        while self._watchdog is not None:
            self._send("WATCHDOG=1")
            await anyio.sleep(self._watchdog / 2)

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        address = os.fsencode(self._address)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_PATIENCE)
                sock.sendto(message.encode(), b"\0" + address[1:] if address[:1] == b"@" else address)
        except OSError as exc:
            if not self._failed:
                logger.warning("the service manager can't be told %s: %s", message, exc.strerror or exc)
            self._failed = True
