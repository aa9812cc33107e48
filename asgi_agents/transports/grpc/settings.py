"""The settings of a gRPC transport, and what gRPC's own library is told."""

from typing import Any, Final, Literal

from ..._version import __version__
from ..stream.settings import PoolSettings
from ..tls import PemFiles
from ..wire import Address

#: How an external processor is shown bodies, as Envoy names it.
BodySendMode = Literal["streamed", "buffered", "full_duplex_streamed"]

# Milliseconds. Who uses a channel decides when to connect again; the channel only must not refuse to.
_BACKOFF: Final = 100
# Seconds for the answer to a keepalive ping.
_KEEPALIVE_TIMEOUT: Final = 10.0


class GrpcSettings(PoolSettings, frozen=True, kw_only=True):
    """What a :class:`~asgi_agents.GrpcTransport` was made with. ``tls``: None for connections that aren't encrypted."""

    tls: PemFiles | None
    keepalive: float | None
    max_event_bytes: int
    max_answer_bytes: int
    scheme: str | None = None
    body_mode: BodySendMode = "streamed"

    @property
    def encrypted(self) -> bool:
        return self.tls is not None

    @property
    def options(self) -> list[tuple[str, Any]]:
        """The arguments of a channel, as gRPC's core library names them (``grpc/impl/channel_arg_names.h``)."""
        options: list[tuple[str, Any]] = [
            ("grpc.primary_user_agent", f"asgi-agents/{__version__}"),
            # Agents are no proxies' business, and a call is never repeated.
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            # Or else channels to one address share a connection, which outlives each of them.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", _BACKOFF),
            ("grpc.max_reconnect_backoff_ms", _BACKOFF),
            # How long an attempt to connect may take.
            ("grpc.min_reconnect_backoff_ms", int(self.connect_timeout * 1000)),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", self.max_answer_bytes),
        ]
        if self.keepalive is not None:
            options += [
                ("grpc.keepalive_time_ms", int(self.keepalive * 1000)),
                ("grpc.keepalive_timeout_ms", int(_KEEPALIVE_TIMEOUT * 1000)),
            ]
        return options

    def in_the_name_of(self, authority: str) -> list[tuple[str, Any]]:
        """Further arguments, for a channel to one of the addresses of a name."""
        if not authority:
            return []
        # Only the channel's own argument for tests has the certificate compared with another name than the target.
        override = [("grpc.ssl_target_name_override", authority.rpartition(":")[0])] if self.encrypted else []
        return [("grpc.default_authority", authority), *override]


def target_of(address: Address) -> str:
    """How gRPC names an address (gRPC Name Resolution, https://grpc.github.io/grpc/core/md_doc_naming.html)."""
    if address.path is not None:
        return f"unix:{address.path}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"dns:///{host}:{address.port}"
