"""Agents behind gRPC: how to reach them, as the user configures it."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final, Literal, Protocol, get_args

from ...errors import ConfigurationError
from ...imports.extras import from_extra
from ...observability.redaction import redact_secrets
from ...policy import as_member, require_int, require_seconds, wrong
from ...protocol import EventType
from ..base import AgentClient
from ..discovery import RESOLVE_INTERVAL
from ..stream.balancing import LoadBalancing
from ..tls import ClientCertificate, pem_files
from ..wire import Address, parse_address
from .settings import BodySendMode, GrpcSettings, checked_metadata

_CONNECTIONS: Final = 16
_CALLS: Final = 100
#: What any server takes that was not told otherwise.
MAX_EVENT_BYTES: Final = 4 * 1024 * 1024
MAX_ANSWER_BYTES: Final = 10 * 1024 * 1024
#: The schemes, and how the other transports write the same address.
SCHEMES: Final = {"grpc": "tcp", "grpcs": "tcp", "grpc+unix": "unix"}

_wrong: Final = partial(wrong, "GrpcTransport")
_EXPECTED: Final = "grpc://host:port, grpcs://host:port or grpc+unix:///path"
# Each has an object `PROTOCOL`. They are imported once one of them is used: grpc and protobuf come with them.
_MODULES: Final = {"agent": ".agent", "ext_proc": ".ext_proc", "ext_authz": ".ext_authz", "ray": ".ray"}


class GrpcProtocol(Protocol):
    """What is spoken over gRPC.

    :ivar carries: the events that it can deliver.
    :ivar learns_events: whether the agent says itself which events it receives.
    :ivar events: those that any agent of the protocol receives; None: the agent or the configuration says so.
    :ivar several: whether there may be several addresses.
    """

    carries: frozenset[EventType]
    learns_events: bool
    events: frozenset[EventType] | None
    several: bool

    def bind(
        self,
        settings: GrpcSettings,
        agent_id: str,
        *,
        events: frozenset[EventType] | None,
        config: Any,
        max_concurrent_calls: int,
    ) -> AgentClient:
        """A client for one agent, as :meth:`~asgi_agents.transports.BindableTransport.bind` makes it."""
        ...


class GrpcTransport:
    """An agent behind gRPC. Needs the ``grpc`` extra.

    Connections are made when the app starts, or before the first call, and again whenever they are lost, for as long as
    the app lives. A call is never repeated.

    :param target: ``grpc://host:port``, ``grpcs://host:port`` for TLS, or ``grpc+unix:///path``. With
        ``protocol="agent"`` several of them, all of the same agent: one that fails is left out until it works again.
    :param protocol: ``"agent"``: the agent protocol of the Rust proxy, ``zentinel.agent.v2.AgentServiceV2``.
        ``"ext_proc"``: any external processor for Envoy. ``"ext_authz"``: any external authorizer for Envoy.
        ``"ray"``: a deployment of :func:`asgi_agents.ray.agent_deployment`, through Ray Serve's gRPC proxy.
    :param metadata: sent with each call: names in lower case, values in ASCII. ``"ray"``: ``application`` has the name
        of the one that the deployment is in.
    :param connections: ``"agent"``: how many streams, to each address.
    :param load_balancing: ``"agent"``: how requests are spread over them; see :class:`StreamTransport`.
    :param connect_timeout: seconds to connect, handshake included.
    :param drain_timeout: seconds that calls under way get when the connections are closed.
    :param max_calls_per_connection: ``"agent"``: further calls wait, within their deadline. A call that was given up
        counts until its answer has come.
    :param ping_interval: ``"agent"``: seconds between pings of the protocol.
    :param resolve_interval: ``"agent"``: seconds between two lookups of a host name; see :class:`StreamTransport`.
    :param stall_timeout: ``"agent"``: a stream on which the agent owes a pong, or the answer to a call that was given
        up, and has said nothing at all for so many seconds, is ended.
    :param keepalive: seconds between pings of HTTP/2, while calls are under way. One that isn't answered within 10 s
        ends the connection. None: none. gRPC's library sends no more than two while there is nothing else to send,
        because servers refuse clients that send many.
    :param max_event_bytes: a longer message is not sent, which is as if the agent refused it: 413. 4 MiB is what
        servers take that were not told otherwise.
    :param max_answer_bytes: a longer answer is an agent error.
    :param scheme: ``"ext_authz"``: of the app's URLs. None: ``https`` where the server tells of TLS, which few do, else
        ``http``.
    :param body_mode: ``"ext_proc"``: the mode of Envoy's in which the processor is shown bodies. ``"streamed"``: piece
        by piece, or as a whole where the agent's body mode is ``buffer``; each piece has one answer. ``"buffered"``: as
        a whole, so that headers may be changed in answer to the body; the agent's body mode has to be ``buffer``.
        ``"full_duplex_streamed"``: for processors that hold back what they are shown and release it later. Their agent
        needs ``body_access="write"``, and fails closed while they have something that they have not released.
    :param verify: whom to trust for ``grpcs://``. True: the authorities that httpx trusts; a path (a PEM file, or a
        directory of them): only those.
    :param cert: a client certificate for ``grpcs://``: the path of a PEM file, or a tuple of certificate and key. The
        key has no password.
    :raises ConfigurationError: for arguments that can't work, and without the ``grpc`` extra.
    """

    kind = "grpc"
    remote = True

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        protocol: Literal["agent", "ext_proc", "ext_authz", "ray"] = "agent",
        metadata: Mapping[str, str] | None = None,
        connections: int = _CONNECTIONS,
        load_balancing: LoadBalancing
        | Literal["round_robin", "least_connections", "health_based", "random", "power_of_two"]
        | None = None,
        connect_timeout: float = 5.0,
        drain_timeout: float = 30.0,
        max_calls_per_connection: int = _CALLS,
        ping_interval: float = 10.0,
        stall_timeout: float = 20.0,
        resolve_interval: float | None = RESOLVE_INTERVAL,
        keepalive: float | None = 30.0,
        max_event_bytes: int = MAX_EVENT_BYTES,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        scheme: Literal["http", "https"] | None = None,
        body_mode: Literal["streamed", "buffered", "full_duplex_streamed"] = "streamed",
        verify: Any = True,
        cert: ClientCertificate | None = None,
    ) -> None:
        self._protocol = _load(protocol)
        addresses, secure = _parse_targets(target, several=self._protocol.several)
        for name, value in (
            ("connect_timeout", connect_timeout),
            ("drain_timeout", drain_timeout),
            ("ping_interval", ping_interval),
            ("stall_timeout", stall_timeout),
            ("resolve_interval", RESOLVE_INTERVAL if resolve_interval is None else resolve_interval),
            ("keepalive", 1.0 if keepalive is None else keepalive),
        ):
            require_seconds("GrpcTransport", name, value)
        for name, number in (
            ("connections", connections),
            ("max_calls_per_connection", max_calls_per_connection),
            ("max_event_bytes", max_event_bytes),
            ("max_answer_bytes", max_answer_bytes),
        ):
            require_int("GrpcTransport", name, number, at_least=1)
        if body_mode not in get_args(BodySendMode) or (body_mode != "streamed" and protocol != "ext_proc"):
            known = " or ".join(map(repr, get_args(BodySendMode)))
            raise _wrong("body_mode", body_mode, f"{known}, and that with protocol='ext_proc' alone")
        if not secure and (verify is not True or cert is not None):
            raise _wrong_target(target, "grpcs://, for that is what verify and cert are about")
        balancing = None
        if load_balancing is not None:
            balancing = as_member("GrpcTransport", "load_balancing", load_balancing, LoadBalancing)
        if scheme not in (None, "http", "https"):
            raise _wrong("scheme", scheme, "'http', 'https' or None")
        self.carries = self._protocol.carries
        self.default_events: frozenset[EventType] | None = getattr(self._protocol, "default_events", None)
        self.learns_events = self._protocol.learns_events
        self.whole_bodies = protocol == "ext_authz" or body_mode == "buffered"
        self.events = self._protocol.events
        self._settings = GrpcSettings(
            addresses=addresses,
            metadata=checked_metadata("GrpcTransport", {} if metadata is None else metadata),
            tls=pem_files("GrpcTransport", verify, cert) if secure else None,
            connections=connections,
            load_balancing=balancing,
            connect_timeout=float(connect_timeout),
            drain_timeout=float(drain_timeout),
            max_calls_per_connection=max_calls_per_connection,
            ping_interval=float(ping_interval),
            stall_timeout=float(stall_timeout),
            resolve_interval=None if resolve_interval is None else float(resolve_interval),
            keepalive=None if keepalive is None else float(keepalive),
            max_event_bytes=max_event_bytes,
            max_answer_bytes=max_answer_bytes,
            scheme=scheme,
            body_mode=body_mode,
        )

    @property
    def address(self) -> str:
        """Where the agent is, for messages."""
        return self._settings.where

    def __repr__(self) -> str:
        return f"<GrpcTransport {self.address}>"

    def bind(
        self,
        agent_id: str,
        *,
        events: frozenset[EventType] | None = None,
        config: Any = None,
        max_concurrent_calls: int = _CALLS,
    ) -> AgentClient:
        """A client for one agent.

        ``events``: those that it receives, None for those that it names; ``config``: what to configure it with;
        ``max_concurrent_calls``: how many calls there are at a time at most.
        """
        return self._protocol.bind(
            self._settings, agent_id, events=events, config=config, max_concurrent_calls=max_concurrent_calls
        )


def _load(name: object) -> GrpcProtocol:
    module = _MODULES.get(name) if isinstance(name, str) else None
    if module is None:
        raise _wrong("protocol", name, " or ".join(map(repr, _MODULES)))
    with from_extra(f"GrpcTransport: protocol={name!r}", "grpc", ConfigurationError):
        protocol: GrpcProtocol = import_module(module, __package__).PROTOCOL
    return protocol


def _wrong_target(given: object, expected: str) -> ConfigurationError:
    return ConfigurationError(f"GrpcTransport: target={redact_secrets(repr(given))}, expected {expected}")


def _parse_targets(given: object, *, several: bool) -> tuple[list[Address], bool]:
    targets = [given] if isinstance(given, str) else given
    if "@" in str(given):
        # The message must not show it: the credentials may be real.
        raise ConfigurationError(f"GrpcTransport: there are credentials in the target, expected {_EXPECTED}")
    if not isinstance(targets, Sequence) or not targets or (len(targets) > 1 and not several):
        raise _wrong_target(given, f"{_EXPECTED}, or a list of them" if several else _EXPECTED)
    schemes = {target.partition("://")[0] if isinstance(target, str) else "" for target in targets}
    if not schemes <= SCHEMES.keys():
        raise _wrong_target(given, _EXPECTED)
    secure = "grpcs" in schemes
    if secure and len(schemes) > 1:
        raise _wrong_target(given, "all of them to be grpcs://, or none")
    addresses = [_parse_target(target) for target in targets]
    if any(address.path is None and address.port == 0 for address in addresses):
        raise _wrong_target(given, "a port above 0")
    if len(set(addresses)) < len(addresses):
        raise _wrong_target(given, "each to be there once")
    return addresses, secure


def _parse_target(target: str) -> Address:
    scheme, _, rest = target.partition("://")
    other = SCHEMES[scheme]
    try:
        address = parse_address("GrpcTransport: target", f"{other}://{rest}")
    except ConfigurationError as exc:
        raise ConfigurationError(str(exc).replace(f"{other}://", f"{scheme}://")) from None
    return Address(target, address.path, address.host, address.port)
