"""The pool of a stream transport: connections over Unix sockets and TCP."""

import os
import stat
from typing import TYPE_CHECKING

from ...errors import AgentConnectionError
from ...protocol.stream import Framing
from ..partial import MAX_PARTIAL_BYTES, PartialFrames
from ..wire import Wire, connect
from .connection import AgentConnection
from .endpoint import Endpoint
from .handshake import ENVELOPE_HINT
from .pool import AgentPool
from .settings import Settings

if TYPE_CHECKING:
    from .client import StreamClient


class StreamPool(AgentPool):
    """The connections to one agent on one event loop, with frames on them."""

    def __init__(self, settings: Settings, client: "StreamClient") -> None:
        self._stream_settings = settings
        self.partial_frames = PartialFrames(MAX_PARTIAL_BYTES)
        super().__init__(settings, client)

    @property
    def handshake_hint(self) -> str:
        return f", handshake included; {ENVELOPE_HINT}" if self._stream_settings.framing is Framing.V2 else ""

    def new_connection(self, endpoint: Endpoint) -> AgentConnection:
        settings = self._stream_settings
        return AgentConnection(
            settings.framing,
            settings.encodings,
            self,
            endpoint.capacity,
            max_calls=settings.max_calls_per_connection,
            address=str(endpoint.address),
            partial=self.partial_frames,
            span_unit=settings.span_unit,
        )

    async def open_wire(self, endpoint: Endpoint, connection: AgentConnection) -> Wire:
        address = endpoint.address
        if address.path is not None:
            _check_socket(address.path)
        return await connect(address, connection, self._stream_settings.tls)


def _check_socket(path: str) -> None:
    """Raise a clearer error than the system's for a path that is no socket."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as exc:
        fault = exc.strerror if isinstance(exc, OSError) else "not a path"
        raise AgentConnectionError(f"{type(exc).__name__}: {fault}") from exc
    if not stat.S_ISSOCK(mode):
        raise AgentConnectionError("is not a socket")
