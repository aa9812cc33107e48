"""Opens connections to one address."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from ..racing import connect_socket, is_ip_address
from .connection import Http1Connection


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
        elif is_ip_address(self._host):
            opening = loop.create_connection(make, self._host, self._port, **options)
        else:
            connected = await connect_socket(loop, self._host, self._port)
            opening = loop.create_connection(make, sock=connected, **options)
        return (await opening)[1]
