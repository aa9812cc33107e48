"""The settings of a stream transport."""

import ssl
from collections.abc import Sequence

from msgspec import Struct

from ...protocol import Encoding, SpanUnit
from ...protocol.stream import Framing
from ..wire import Address
from .balancing import LoadBalancing


class Settings(Struct, frozen=True, kw_only=True):
    """What a :class:`~asgi_agents.StreamTransport` was made with.

    ``on_demand``: ``connections`` to an endpoint are the most there may be, and all but the first are made when there
    are more requests than connections.
    """

    addresses: Sequence[Address]
    framing: Framing
    encodings: tuple[Encoding, ...]
    connections: int
    on_demand: bool
    load_balancing: LoadBalancing | None
    connect_timeout: float
    drain_timeout: float
    max_calls_per_connection: int
    ping_interval: float
    stall_timeout: float
    tls: ssl.SSLContext | None
    span_unit: SpanUnit = "codepoints"
    resolve_interval: float | None = None

    @property
    def encrypted(self) -> bool:
        """Whether the agent has to have a certificate for its name."""
        return self.tls is not None

    @property
    def where(self) -> str:
        """Where the agent is, for messages."""
        return " ".join(str(address) for address in self.addresses)
