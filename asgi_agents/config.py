"""Configuration values: frozen, and checked when they are made."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, Literal

from .agent import Agent
from .errors import ConfigurationError
from .messages.naming import named
from .policy import (
    BodyMode,
    BodyModeName,
    CircuitBreakerConfig,
    FailureMode,
    FailureModeName,
    as_body_mode,
    as_failure_mode,
    require_int,
    require_member,
    require_seconds,
)
from .protocol import TOKEN, EventType
from .protocol.headers import as_one_spelling
from .protocol.validation import is_untouchable
from .transports.base import Transport
from .transports.resolve import (
    agent_of,
    default_events,
    learns_events,
    replaces_of,
    resolve_transport,
    sets_of,
    takes_whole_bodies,
)

DEFAULT_MAX_BODY_BYTES: Final = 1024 * 1024
_MAX_ID_LENGTH = 128
_BODY_MODES: Final = {
    "request_body_mode": EventType.REQUEST_BODY_CHUNK,
    "response_body_mode": EventType.RESPONSE_BODY_CHUNK,
}


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One agent: how to reach it, which events it receives, what its failures mean. Durations are seconds, sizes bytes.

    :param id: unique in its manager; up to 128 token characters. It appears in metrics, logs and routes.
    :param transport: an :class:`Agent`, a URL (``http://``, ``https://``, ``unix:///path`` or ``tcp://host:port``), a
        list of ``unix://`` and ``tcp://`` URLs of the same agent, or any :class:`Transport`. Packages may add schemes
        of URLs.
    :param events: those that the agent receives. None: those whose hooks it has, or that it names in the handshake of
        the stream transport, or the heads of requests for authorization services; for other remote agents they have to
        be given. They overrule the handshake.
    :param failure_mode: what a failed call means, unless a route says otherwise.
    :param timeout: one deadline for a call: queue wait, connect, send, answer.
    :param chunk_timeout: the same for the body chunks of stream and hybrid mode.
    :param max_concurrent_calls: further calls wait, within their deadline.
    :param circuit_breaker: None switches it off.
    :param request_body_mode: how the agent receives request bodies; ``response_body_mode`` likewise.
    :param max_request_body_bytes: the largest request body the agent is to inspect, in any mode. None: 1 MiB for a body
        that has to be kept, no limit for one that passes as it comes. ``max_response_body_bytes`` likewise.
    :param response_content_types: the types of response bodies that the agent receives: ``type/subtype`` or ``type/*``.
        None: all. The agent also receives a response whose type is missing or can't be read. It receives requests
        whatever their type, which is only what the client says.
    :param decode: show the agent the content of bodies with a ``content-encoding`` (``gzip``, ``deflate``; ``br`` and
        ``zstd`` where a library for them is installed), and let it change that. Its size limits count decoded bytes.
        What can't be decoded, or grows to more than 100 times its size, goes by the failure mode; but where a writer
        has begun to stream the content, it always ends the body. A body that was changed, or streamed through a writer,
        goes on without the encoding.
    :param hold_head: keep the head of a streamed response back until the agent has judged the first piece of its body,
        so that a block there can still be answered with a status. Without it that is so where the head declares a
        length; the head of a stream without a length leaves at once, as its clients expect.
    :param ranges: let clients ask for parts of responses whose bodies the agent receives. False: the app sees no
        ``range`` header and answers with whole bodies; where ``response_content_types`` leaves ranges to other types, a
        partial response of a type that the agent receives is answered with 416. Shadow agents change nothing of that.
    :param request_length: of an agent that may change streamed request bodies. ``"known"``: the app is started when all
        of the body was judged, and told its length, without which many frameworks take it for empty. Until then the
        body is kept, up to ``max_request_body_bytes``: 1 MiB of it in memory, the rest in a temporary file.
        ``"unknown"``: the app is started at once, without a ``content-length``.
    :param body_access: ``"write"`` agents may send mutations of bodies and of websocket messages.
    :param enforce: False makes it a shadow agent: it receives its events and its answers are recorded, but none of them
        is applied, and none of its failures count for the connection.
    :param config: handed to the agent in ``configure`` when it connects; plain data for remote agents.
    :param require_at_startup: fail the app's startup when the agent can't be configured then.
    :param may_set_host: lets the agent change the ``host`` request header.
    :param after: ids of agents that the heads of requests and websocket handshakes are shown to before this one. It is
        asked once they have answered, under its own deadline from then on, and shown the head with their changes and
        those of the agents that they come after. It is not asked where one of the agents asked before it has stopped
        the request. Where one has failed open, it is asked without that one's changes. Agents that are not on the route
        are ignored; everything else stays parallel, and the order of the route still decides whose answer counts.
    :param sets: names of request headers that this agent sets and clients may not, such as ``{"x-user"}``. They are
        taken out of the client's request before any agent or the app sees it, in any case and with underscores too
        (``X_User``), wherever the agent is on the route and receives request heads or bodies; also when it fails open.
        On a route without this agent the client's header stays. Other agents may set it as well. Not for a shadow
        agent, which sets nothing. A transport that copies headers to requests, such as
        :class:`~asgi_agents.ForwardAuthTransport`, adds its own, and so does an agent in this process, by
        :attr:`Agent.own_headers`.
    :param replaces: as ``sets``, for headers that the agent has to see of the client, such as ``{"authorization"}`` of
        one that exchanges tokens. Agents see what the client has sent; the app, and agents that come ``after`` this
        one, see in these headers what agents have set and nothing else, also when this agent fails open. Transports and
        agents in this process add their own, by :attr:`Agent.replaced_headers`.
    """

    id: str
    transport: Agent | Transport | str | Sequence[str]
    _: KW_ONLY
    events: Iterable[EventType] | None = None
    failure_mode: FailureMode | FailureModeName = FailureMode.CLOSED
    timeout: float = 1.0
    chunk_timeout: float = 5.0
    max_concurrent_calls: int = 100
    circuit_breaker: CircuitBreakerConfig | None = field(default_factory=CircuitBreakerConfig)
    request_body_mode: BodyMode | BodyModeName = BodyMode.BUFFER
    response_body_mode: BodyMode | BodyModeName = BodyMode.BUFFER
    max_request_body_bytes: int | None = None
    max_response_body_bytes: int | None = None
    body_access: Literal["read", "write"] = "read"
    request_length: Literal["known", "unknown"] = "known"
    response_content_types: Iterable[str] | None = None
    decode: bool = False
    hold_head: bool = False
    ranges: bool = False
    enforce: bool = True
    config: Any = field(default=None, repr=False)
    require_at_startup: bool = False
    may_set_host: bool = False
    after: Iterable[str] = ()
    sets: Iterable[str] = frozenset()
    replaces: Iterable[str] = frozenset()

    def __post_init__(self) -> None:
        if not is_agent_id(self.id):
            raise ConfigurationError(
                f"AgentConfig: id={self.id!r}, expected 1 to {_MAX_ID_LENGTH} letters, digits or any of !#$%&'*+-.^_`|~"
            )
        where = f"AgentConfig({self.id!r})"
        object.__setattr__(self, "transport", resolve_transport(where, self.transport))
        object.__setattr__(self, "events", _resolve_events(where, self.resolved_transport, self.events))
        if self.config is not None and EventType.CONFIGURE not in self.resolved_transport.carries:
            raise ConfigurationError(f"{where}: config is given, which its transport can't carry; expected none")
        prefix = f"{where}: failure_mode={named(self.failure_mode)}"
        object.__setattr__(self, "failure_mode", as_failure_mode(prefix, self.failure_mode))
        require_seconds(where, "timeout", self.timeout)
        require_seconds(where, "chunk_timeout", self.chunk_timeout)
        require_int(where, "max_concurrent_calls", self.max_concurrent_calls, at_least=1)
        if not isinstance(self.circuit_breaker, CircuitBreakerConfig | None):
            raise ConfigurationError(
                f"{where}: circuit_breaker={self.circuit_breaker!r}, expected a CircuitBreakerConfig or None"
            )
        for name, event_type in _BODY_MODES.items():
            mode = as_body_mode(where, name, getattr(self, name))
            object.__setattr__(self, name, mode)
            if mode.name != BodyMode.BUFFER.name and event_type in (self.hears or ()):
                _require_pieces(where, self.resolved_transport, name, mode)
        for name in ("max_request_body_bytes", "max_response_body_bytes"):
            if getattr(self, name) is not None:
                require_int(where, name, getattr(self, name), at_least=1)
        if self.body_access not in ("read", "write"):
            raise ConfigurationError(f"{where}: body_access={self.body_access!r}, expected 'read' or 'write'")
        if self.request_length not in ("known", "unknown"):
            raise ConfigurationError(f"{where}: request_length={self.request_length!r}, expected 'known' or 'unknown'")
        object.__setattr__(self, "response_content_types", _resolve_types(where, self.response_content_types))
        for name in ("decode", "hold_head", "ranges", "enforce", "require_at_startup", "may_set_host"):
            require_member(where, name, getattr(self, name), bool)
        object.__setattr__(self, "after", _resolve_after(where, self.id, self.after))
        for name, names_of in (("sets", sets_of), ("replaces", replaces_of)):
            given, known = (
                _resolve_headers(where, name, names, may_set_host=self.may_set_host)
                for names in (getattr(self, name), names_of(self.resolved_transport))
            )
            object.__setattr__(self, name, given | known)
        _require_read_headers(where, agent_of(self.resolved_transport))

    @property
    def fails(self) -> FailureMode:
        """The failure mode, resolved from what was given."""
        assert isinstance(self.failure_mode, FailureMode)
        return self.failure_mode

    @property
    def request_bodies(self) -> BodyMode:
        """How the agent receives request bodies, resolved from what was given."""
        assert isinstance(self.request_body_mode, BodyMode)
        return self.request_body_mode

    @property
    def response_bodies(self) -> BodyMode:
        """How the agent receives response bodies, resolved from what was given."""
        assert isinstance(self.response_body_mode, BodyMode)
        return self.response_body_mode

    @property
    def resolved_transport(self) -> Transport:
        """The transport, resolved from what was given."""
        assert isinstance(self.transport, Transport)
        return self.transport

    def hears_response_type(self, media_type: str | None) -> bool:
        """Whether the agent receives response bodies of that type, in lower case. None: missing or unreadable."""
        types = self.response_content_types
        if types is None or media_type is None:
            return True
        assert isinstance(types, frozenset)
        return media_type in types or f"{media_type.partition('/')[0]}/*" in types

    @property
    def hears(self) -> frozenset[EventType] | None:
        """The events, resolved from what was given and what the agent says itself; None: it will say."""
        assert isinstance(self.events, frozenset | None)
        return self.events


def _require_pieces(where: str, transport: Transport, field: str, mode: BodyMode) -> None:
    if takes_whole_bodies(transport):
        raise ConfigurationError(f"{where}: {field}={mode.name!r}, expected 'buffer': its transport takes whole bodies")


def is_agent_id(given: object) -> bool:
    """Whether it can be the id of an agent."""
    return isinstance(given, str) and len(given) <= _MAX_ID_LENGTH and TOKEN.match(given) is not None


def _resolve_types(where: str, given: object) -> frozenset[str] | None:
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}: response_content_types={given!r}, expected a set such as {{'text/*'}}")
    types = set()
    for item in given:
        main, slash, sub = item.lower().partition("/") if isinstance(item, str) else ("", "", "")
        if not slash or not TOKEN.match(main) or main == "*" or not TOKEN.match(sub):
            raise ConfigurationError(
                f"{where}: response_content_types contains {item!r}, expected type/subtype or type/*"
            )
        types.add(f"{main}/{sub}")
    if not types:
        raise ConfigurationError(f"{where}: response_content_types={given!r}, expected at least one, or None for all")
    return frozenset(types)


def _resolve_after(where: str, own_id: str, given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}: after={given!r}, expected a list of ids of agents")
    ids: list[str] = []
    for agent_id in given:
        if not isinstance(agent_id, str):
            raise ConfigurationError(f"{where}: after contains {agent_id!r}, expected ids of agents")
        if agent_id == own_id:
            raise ConfigurationError(f"{where}: after contains {agent_id!r}, expected other agents than itself")
        ids.append(agent_id)
    return tuple(ids)


def _resolve_headers(where: str, field: str, given: object, *, may_set_host: bool) -> frozenset[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}: {field}={given!r}, expected a set of header names")
    names = set()
    for name in given:
        if not isinstance(name, str) or not TOKEN.match(name):
            raise ConfigurationError(f"{where}: {field} contains {name!r}, expected names of headers such as 'x-user'")
        normalized = as_one_spelling(name)
        if is_untouchable(normalized):
            raise ConfigurationError(
                f"{where}: {field} contains {name!r}, which belongs to the server, expected others"
            )
        if normalized == "host" and not may_set_host:
            raise ConfigurationError(f"{where}: {field} contains {name!r}, expected may_set_host=True beside it")
        names.add(normalized)
    return frozenset(names)


def _require_read_headers(where: str, agent: Agent | None) -> None:
    for attribute in ("read_headers", "trusted_headers"):
        given = getattr(agent, attribute, ())
        what = f"{where}: {type(agent).__name__}.{attribute}"
        if isinstance(given, str) or not isinstance(given, Collection):
            raise ConfigurationError(f"{what}={given!r}, expected a set of header names")
        for name in given:
            if not isinstance(name, str) or not TOKEN.match(name):
                raise ConfigurationError(f"{what} contains {name!r}, expected names of headers such as 'x-user'")


def _resolve_events(where: str, transport: Transport, given: object) -> frozenset[EventType] | None:
    heard = None if transport.events is None else frozenset(transport.events)
    if given is None:
        if learns_events(transport):
            return None
        heard = default_events(transport) if heard is None else heard
        if heard is None:
            raise ConfigurationError(
                f"{where}: events=None, but a remote agent can't be asked; expected a set such as "
                "{EventType.REQUEST_HEADERS}"
            )
        given = heard
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}: events={given!r}, expected a set of EventType")
    events = set()
    for item in given:
        try:
            events.add(EventType(item))
        except ValueError:
            known = ", ".join(EventType)
            raise ConfigurationError(f"{where}: events contains {item!r}, expected any of {known}") from None
    if not events <= transport.carries:
        names = ", ".join(sorted(events - transport.carries))
        raise ConfigurationError(f"{where}: events contains {names}, which its transport can't carry")
    if heard is not None and not events <= heard:
        names = ", ".join(sorted(events - heard))
        raise ConfigurationError(f"{where}: events contains {names}, which the agent has no hook for")
    return frozenset(events)
