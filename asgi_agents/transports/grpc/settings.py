"""The settings of a gRPC transport, and what gRPC's own library is told."""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from ..._version import __version__
from ...errors import ConfigurationError
from ...policy import wrong
from ...protocol.redacted_repr import RedactedRepr, names_of, redacted_repr
from ..stream.settings import PoolSettings
from ..tls import PemFiles
from ..wire import Address

#: How an external processor is shown bodies, as Envoy names it.
BodySendMode = Literal["streamed", "buffered", "full_duplex_streamed"]

_METADATA_NAME: Final = re.compile(r"(?!.*-bin$)[0-9a-z_.-]+")
_METADATA_VALUE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_OWNED_METADATA: Final = frozenset({"content-type", "session_id", "te", "traceparent", "tracestate", "user-agent"})

# Milliseconds. Who uses a channel decides when to connect again; the channel only must not refuse to.
_BACKOFF: Final = 100
# Seconds for the answer to a keepalive ping.
_KEEPALIVE_TIMEOUT: Final = 10.0


class SentMetadata(RedactedRepr, frozen=True):
    """What is sent with each call, beside what the protocol itself sends."""

    pairs: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return redacted_repr(self, pairs=names_of(dict(self.pairs)))


def checked_metadata(where: str, given: object) -> SentMetadata:
    """The metadata that a user gives: names in lower case, and text as values.

    :raises ConfigurationError: for what gRPC can't send (gRPC over HTTP/2, Custom-Metadata), or is its own or ours. It
        has no values in it, which may be secrets.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{where}: metadata is a {type(given).__name__}, expected names mapped to values")
    pairs = []
    for name, value in given.items():
        if not isinstance(name, str) or not _METADATA_NAME.fullmatch(name):
            raise wrong(where, "metadata", name, "names of lower-case letters, digits and _-., without -bin at the end")
        if name.startswith("grpc-") or name in _OWNED_METADATA:
            raise wrong(where, "metadata", name, "none of those that gRPC or the transport sets itself")
        if not isinstance(value, str) or not _METADATA_VALUE.fullmatch(value):
            raise ConfigurationError(
                f"{where}: metadata[{name!r}], expected visible ASCII characters, with blanks only between them"
            )
        pairs.append((name, value))
    return SentMetadata(tuple(pairs))


class GrpcSettings(PoolSettings, frozen=True, kw_only=True):
    """What a :class:`~asgi_agents.GrpcTransport` was made with. ``tls``: None for connections that aren't encrypted."""

    tls: PemFiles | None
    keepalive: float | None
    max_event_bytes: int
    max_answer_bytes: int
    scheme: str | None = None
    body_mode: BodySendMode = "streamed"
    metadata: SentMetadata = SentMetadata()

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
