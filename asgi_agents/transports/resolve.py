"""From what ``AgentConfig.transport`` is given to a transport, and from that to the client of one agent.

A URL belongs to the transport of its scheme: ``http``, ``https``, ``unix``, ``tcp``, ``grpc``, ``grpcs`` and
``grpc+unix`` are built in. Packages add others as entry points of the group ``asgi_agents.transports``, whose name is
the scheme::

    [project.entry-points."asgi_agents.transports"]
    nats = "my_package:NatsTransport"

The object is called with the URL, or with a list of URLs where ``AgentConfig`` was given one, and returns a
:class:`Transport`. It raises :class:`ConfigurationError` for what it can't use. Entry points are looked up where a
scheme is not built in, and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from ..agent import Agent, check_agent
from ..errors import ConfigurationError
from ..messages.naming import named
from ..observability.redaction import redact_secrets
from ..protocol import EventType
from .base import AgentClient, BindableTransport, PlainTransport, Transport
from .in_process import InProcessTransport
from .plain import PlainClient
from .wire import nearest_address

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_GROUP: Final = "asgi_agents.transports"

_Factory = Callable[[Any], Transport]


def resolve_transport(where: str, given: object) -> Transport:
    """The transport that is meant by an agent, a URL, a list of URLs or a transport.

    :raises ConfigurationError: for anything else, beginning with ``where``.
    """
    if isinstance(given, Agent):
        check_agent(where, given)
        return InProcessTransport(given)
    if isinstance(given, str):
        return _factory_of(where, given, _scheme_of(given))(given)
    if isinstance(given, list | tuple):
        return _of_several(where, given)
    if isinstance(given, type) and issubclass(given, Agent):
        raise ConfigurationError(f"{where}: transport={given.__name__}, expected an instance: {given.__name__}()")
    if not _is_transport(given):
        raise ConfigurationError(f"{where}: transport={named(given)}, expected an Agent, a URL or a Transport")
    return given


def transport_of_url(
    where: str, url: str, *, framing: str, encoding: str, connect_timeout: float, connections: int | None
) -> Transport:
    """The transport of a URL, with settings of the built-in ones, as far as it has them.

    :raises ConfigurationError: for a URL, or a setting, that can't work, beginning with ``where``.
    """
    scheme = _scheme_of(url)
    if scheme in _STREAM_SCHEMES:
        return _stream(
            where,
            url,
            framing=framing,
            encoding=encoding,
            connect_timeout=connect_timeout,
            connections=connections,
        )
    if scheme in _HTTP_SCHEMES:
        return _http(where, url, encoding=encoding)
    if scheme in _GRPC_SCHEMES:
        given = {} if connections is None else {"connections": connections}
        return _grpc(where, url, connect_timeout=connect_timeout, **given)
    return resolve_transport(where, url)


def bind(
    transport: Transport,
    agent_id: str,
    *,
    events: frozenset[EventType] | None,
    config: Any,
    max_concurrent_calls: int,
) -> AgentClient:
    """A client for one agent: the transport's own, or one that calls the transport.

    :raises ConfigurationError: ``bind`` of the transport has returned something else.
    """
    if isinstance(transport, BindableTransport):
        client: object = transport.bind(
            agent_id, events=events, config=config, max_concurrent_calls=max_concurrent_calls
        )
        if not isinstance(client, AgentClient):
            where = f"AgentConfig({agent_id!r}): bind of {type(transport).__name__}"
            raise ConfigurationError(f"{where} has returned {named(client)}, expected an AgentClient")
        return client
    assert isinstance(transport, PlainTransport)
    assert events is not None
    return PlainClient(transport, events)


def transport_class(parameter: str) -> Any:
    """The class of transports that is made with ``parameter`` first.

    ``url``, ``address``, ``target`` or ``endpoints``.
    """
    if parameter == "url":
        from .http import HttpTransport

        return HttpTransport
    if parameter == "address":
        from .forward_auth import ForwardAuthTransport

        return ForwardAuthTransport
    if parameter == "target":
        from .grpc import GrpcTransport

        return GrpcTransport
    from .stream import StreamTransport

    return StreamTransport


def learns_events(transport: Transport) -> bool:
    """Whether the agent says itself which events it receives, once it is connected."""
    return bool(getattr(transport, "learns_events", False))


def default_events(transport: Transport) -> frozenset[EventType] | None:
    """The events that the agent receives where the configuration names none; None: it has to."""
    return getattr(transport, "default_events", None)


def takes_whole_bodies(transport: Transport) -> bool:
    """Whether it delivers bodies as a whole, and no pieces of them."""
    return bool(getattr(transport, "whole_bodies", False))


def sets_of(transport: Transport) -> object:
    """The names of request headers that the agent sets and clients may not, as the transport knows."""
    return getattr(transport, "sets", frozenset())


def replaces_of(transport: Transport) -> object:
    """The names of those that it reads of the client besides."""
    return getattr(transport, "replaces", frozenset())


def agent_of(transport: Transport) -> Agent | None:
    """The agent that the transport calls directly; None where there is none in this process."""
    agent = getattr(transport, "agent", None)
    return agent if isinstance(agent, Agent) else None


def _is_transport(given: object) -> TypeGuard[Transport]:
    # A class has the members of its instances.
    return isinstance(given, BindableTransport | PlainTransport) and not isinstance(given, type)


def _scheme_of(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    return scheme if separator else ""


def _factory_of(where: str, given: str, scheme: str) -> _Factory:
    """What makes a transport of a URL of ``scheme``, or of several; ``given`` is the URL, for messages."""
    built_in = _BUILT_IN.get(scheme)
    if built_in is not None:
        return partial(built_in, where)
    # Imported here because it takes long to import, and hardly anybody needs it.
    from importlib import metadata

    found = metadata.entry_points(group=_GROUP)
    # The same package may be found twice, where it is installed in two places of the path: the first is imported.
    for entry_point in found.select(name=scheme) if scheme else ():
        return partial(_from_entry_point, where, entry_point)
    right = nearest_address(given, or_http=True)
    if right is None:
        known = [f"{name}://" for name in dict.fromkeys((*_BUILT_IN, *sorted(found.names)))]
        right = f"an {', '.join(known[:-1])} or {known[-1]} URL, an Agent or a Transport"
    raise ConfigurationError(f"{where}: transport={redact_secrets(given)!r}, expected {right}")


def _of_several(where: str, given: Sequence[object]) -> Transport:
    schemes = {_scheme_of(item) if isinstance(item, str) else "" for item in given}
    if schemes <= _STREAM_SCHEMES:
        return _stream(where, given)
    if schemes <= _GRPC_SCHEMES:
        return _grpc(where, given)
    if len(schemes) == 1 and schemes.isdisjoint(("", *_BUILT_IN)):
        return _factory_of(where, str(given[0]), schemes.pop())(given)
    raise ConfigurationError(
        f"{where}: transport={redact_secrets(repr(given))}, expected several unix:// or tcp:// URLs, or several of grpc://"
    )


def _http(where: str, url: str, **settings: Any) -> Transport:
    # Imported here because httpx, which comes with it, takes long to import.
    from .http import HttpTransport

    return HttpTransport(url, **settings)


def _stream(where: str, endpoints: Any, **settings: Any) -> Transport:
    from .stream import StreamTransport

    try:
        return StreamTransport(endpoints, **settings)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{where}: {exc}") from exc


def _ray(where: str, url: Any) -> Transport:
    # Imported here because Ray, which it needs, is optional.
    from .ray_serve import RayTransport

    try:
        return RayTransport(url)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{where}: {exc}") from exc


def _grpc(where: str, target: Any, **settings: Any) -> Transport:
    from .grpc import GrpcTransport

    try:
        return GrpcTransport(target, **settings)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{where}: {exc}") from exc


_HTTP_SCHEMES: Final = frozenset({"http", "https"})
_STREAM_SCHEMES: Final = frozenset({"unix", "tcp"})
_GRPC_SCHEMES: Final = frozenset({"grpc", "grpcs", "grpc+unix"})
_BUILT_IN: Final[Mapping[str, Callable[[str, Any], Transport]]] = {
    "http": _http,
    "https": _http,
    "unix": _stream,
    "tcp": _stream,
    "grpc": _grpc,
    "grpcs": _grpc,
    "grpc+unix": _grpc,
    "ray": _ray,
}


def _from_entry_point(where: str, entry_point: "EntryPoint", given: Any) -> Transport:
    shown = redact_secrets(repr(given))
    what = f"{where}: transport={shown}: {entry_point.value} of the entry point {entry_point.name!r}"
    try:
        factory = entry_point.load()
    except Exception as exc:
        raise ConfigurationError(f"{what} can't be imported: {type(exc).__name__}: {exc}") from exc
    try:
        transport: object = factory(given)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{where}: {exc}") from exc
    if not _is_transport(transport):
        raise ConfigurationError(f"{what} has returned {named(transport)}, expected a Transport")
    return transport
