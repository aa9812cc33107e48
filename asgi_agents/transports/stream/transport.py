"""Agents behind a Unix socket or TCP: how to reach them, as the user configures it."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Literal

from msgspec.structs import replace

from ...policy import as_member, require_seconds, wrong
from ...protocol import Encoding, EventType, SpanUnit
from ...protocol.stream import Framing
from ..discovery import RESOLVE_INTERVAL
from ..tls import ClientCertificate, client_context
from ..wire import parse_address
from .balancing import LoadBalancing
from .client import StreamClient
from .settings import Settings
from .stream_pool import StreamPool

_WHERE: Final = "StreamTransport"
_wrong: Final = partial(wrong, _WHERE)

_CONNECTIONS = 4
_CALLS = 100
# To each endpoint. The published kits have no limit of their own, and each connection costs both sides a descriptor.
_MOST_ON_DEMAND = 32


class StreamTransport:
    """Many calls at a time over a few lasting connections.

    Connections are made when the app starts, or before the first call, and again whenever they are lost, for as long as
    the app lives. All events of a request go to one connection while that lives.

    :param endpoints: ``unix:///path`` or ``tcp://host:port``, or several of them, all of the same agent. One that fails
        is left out until it works again.
    :param framing: ``"v2"``, or ``"envelope"`` for agents of the older kits, which need ``AgentConfig.events``.
    :param encoding: what to speak, if the agent does: ``"json"`` or ``"msgpack"`` (maps with names, raw bytes).
    :param connections: how many, to each endpoint. None: 4. With ``"envelope"`` it is the most there may be: one is
        made at the start, others when there are more requests than connections. None is then the agent's
        ``max_concurrent_calls``, but at most 32.
    :param load_balancing: how requests are spread over them; see :class:`LoadBalancing`. None: ``power_of_two`` while a
        name leads to several addresses, else ``round_robin``.
    :param connect_timeout: seconds to connect, handshake included.
    :param drain_timeout: seconds that calls under way get when the connections are closed.
    :param max_calls_per_connection: further calls wait, within their deadline. None: 100. With ``"envelope"`` it is
        always 1: these agents may answer as they finish, and no answer says which event it is to. A call that was given
        up counts until its answer has come.
    :param ping_interval: seconds between pings.
    :param stall_timeout: a connection on which the agent owes a pong, or the answer to a call that was given up, and
        has said nothing at all for so many seconds, is closed.
    :param resolve_interval: seconds between two lookups of a host name, at most. Each address that it leads to is an
        endpoint of its own, for as long as the name leads there; one that it leads to no more gets no new requests, and
        those that it has get ``drain_timeout``. None: a name is one endpoint, and looked up when a connection is made.
    :param span_unit: what the agent counts in the spans of its detections: ``"codepoints"`` of the content, as the
        protocol has it, or ``"bytes"`` of its UTF-8, as agents written in Rust or Go may. Handlers get code points.
    :param tls: encrypt; ``tcp://`` only.
    :param verify: whom to trust. True: the authorities that httpx trusts; a path (a PEM file, or a directory of them):
        only those; an ``ssl.SSLContext`` is used as it is; False: anyone.
    :param cert: a client certificate: the path of a PEM file, or a tuple of certificate, key and, where the key has
        one, its password.
    :raises ConfigurationError: for arguments that can't work.
    """

    kind = "stream"
    remote = True
    carries = frozenset(EventType)
    #: The agent says it in the handshake, or the configuration has to.
    events: frozenset[EventType] | None = None

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        framing: Framing | Literal["v2", "envelope"] = Framing.V2,
        encoding: Encoding | Literal["json", "msgpack"] = Encoding.JSON,
        connections: int | None = None,
        load_balancing: LoadBalancing
        | Literal["round_robin", "least_connections", "health_based", "random", "power_of_two"]
        | None = None,
        connect_timeout: float = 5.0,
        drain_timeout: float = 30.0,
        max_calls_per_connection: int | None = None,
        ping_interval: float = 10.0,
        stall_timeout: float = 20.0,
        resolve_interval: float | None = RESOLVE_INTERVAL,
        span_unit: SpanUnit = "codepoints",
        tls: bool = False,
        verify: Any = True,
        cert: ClientCertificate | None = None,
    ) -> None:
        given = [endpoints] if isinstance(endpoints, str) else endpoints
        if not isinstance(given, Sequence) or not given:
            raise _wrong("endpoints", endpoints, "unix:///path or tcp://host:port, or a list of them")
        addresses = [parse_address("StreamTransport: endpoints", endpoint) for endpoint in given]
        if any(address.path is None and address.port == 0 for address in addresses):
            raise _wrong("endpoints", endpoints, "a port above 0")
        if len(set(addresses)) < len(addresses):
            raise _wrong("endpoints", endpoints, "each to be there once")
        self.framing = as_member(_WHERE, "framing", framing, Framing)
        preferred = as_member(_WHERE, "encoding", encoding, Encoding)
        for name, value in (
            ("connect_timeout", connect_timeout),
            ("drain_timeout", drain_timeout),
            ("ping_interval", ping_interval),
            ("stall_timeout", stall_timeout),
            ("resolve_interval", RESOLVE_INTERVAL if resolve_interval is None else resolve_interval),
        ):
            require_seconds("StreamTransport", name, value)
        for name, number in (("connections", connections), ("max_calls_per_connection", max_calls_per_connection)):
            if number is not None and (type(number) is not int or number < 1):
                raise _wrong(name, number, "a whole number of at least 1, or None")
        if span_unit not in ("codepoints", "bytes"):
            raise _wrong("span_unit", span_unit, "'codepoints' or 'bytes'")
        on_demand = self.framing is Framing.ENVELOPE
        if on_demand and max_calls_per_connection not in (None, 1):
            raise _wrong(
                "max_calls_per_connection",
                max_calls_per_connection,
                "1 with framing='envelope', whose answers don't say which event they are to; "
                "connections= says how many calls there may be at a time",
            )
        self._connections = connections
        if type(tls) is not bool:
            raise _wrong("tls", tls, "True or False")
        if tls and any(address.path is not None for address in addresses):
            raise _wrong("tls", tls, "False for Unix sockets")
        if not tls and (verify is not True or cert is not None):
            raise _wrong("tls", tls, "True, for that is what verify and cert are about")
        balancing = None
        if load_balancing is not None:
            balancing = as_member(_WHERE, "load_balancing", load_balancing, LoadBalancing)
        encodings: tuple[Encoding, ...] = (preferred,)
        if self.framing is Framing.V2 and preferred is not Encoding.JSON:
            # Every agent speaks that.
            encodings = (preferred, Encoding.JSON)
        self._settings = Settings(
            addresses=addresses,
            framing=self.framing,
            encodings=encodings,
            connections=connections or (_MOST_ON_DEMAND if on_demand else _CONNECTIONS),
            on_demand=on_demand,
            load_balancing=balancing,
            connect_timeout=float(connect_timeout),
            drain_timeout=float(drain_timeout),
            max_calls_per_connection=1 if on_demand else max_calls_per_connection or _CALLS,
            ping_interval=float(ping_interval),
            stall_timeout=float(stall_timeout),
            span_unit=span_unit,
            resolve_interval=None if resolve_interval is None else float(resolve_interval),
            tls=client_context("StreamTransport", verify, cert) if tls else None,
        )

    @property
    def learns_events(self) -> bool:
        """Whether the agent says in the handshake which events it receives."""
        return self.framing is Framing.V2

    @property
    def address(self) -> str:
        """Where the agent is, for messages."""
        return self._settings.where

    def __repr__(self) -> str:
        return f"<StreamTransport {self.address}>"

    def bind(
        self,
        agent_id: str,
        *,
        events: frozenset[EventType] | None = None,
        config: Any = None,
        max_concurrent_calls: int = _MOST_ON_DEMAND,
    ) -> StreamClient:
        """The connections of one agent.

        ``events``: those that it receives, None for those that it names; ``config``: what to configure it with;
        ``max_concurrent_calls``: how many calls there are at a time at most.
        """
        settings = self._settings
        if settings.on_demand and self._connections is None:
            settings = replace(settings, connections=min(max_concurrent_calls, _MOST_ON_DEMAND))
        return StreamClient(partial(StreamPool, settings), settings.where, agent_id, events, config)
