"""The settings of a stream transport, and what others share with it."""

import ssl
from collections.abc import Sequence

from msgspec import Struct

from ...protocol import Encoding, SpanUnit
from ...protocol.stream import Framing
from ..wire import Address
from .balancing import LoadBalancing


class PoolSettings(Struct, frozen=True, kw_only=True):
    """The settings of a pool, whatever its connections speak.

    ``on_demand``: ``connections`` to an endpoint are the most there may be, and all but the first are made when there
    are more requests than connections.
    """

    addresses: Sequence[Address]
    connections: int
    load_balancing: LoadBalancing
    connect_timeout: float
    drain_timeout: float
    max_calls_per_connection: int
    ping_interval: float
    stall_timeout: float
    on_demand: bool = False

    @property
    def where(self) -> str:
        """Where the agent is, for messages."""
        return " ".join(str(address) for address in self.addresses)


class Settings(PoolSettings, frozen=True, kw_only=True):
    """What a :class:`~asgi_agents.StreamTransport` was made with."""

    framing: Framing
    encodings: tuple[Encoding, ...]
    tls: ssl.SSLContext | None
    span_unit: SpanUnit = "codepoints"
