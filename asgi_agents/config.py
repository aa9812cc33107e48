"""Configuration values: frozen, and checked when they are made."""

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Final, Literal

from .agent import Agent, check_agent
from .errors import ConfigurationError
from .naming import named
from .protocol import TOKEN, EventType
from .protocol.headers import as_one_spelling
from .protocol.stream import Framing
from .protocol.validation import is_untouchable
from .redaction import redact_secrets
from .transports import InProcessTransport, StreamTransport, Transport
from .transports.wire import nearest_address

DEFAULT_MAX_BODY_BYTES: Final = 1024 * 1024
_MAX_ID_LENGTH = 128
_STREAM_SCHEMES = ("unix://", "tcp://")
MAX_SECONDS = 366 * 24 * 3600
#: The shortest window of a failure rate, in seconds: a tenth of it is still more than a clock's resolution.
MIN_WINDOW: Final = 0.001


def _require_seconds(where: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SECONDS:
        raise ConfigurationError(f"{where}: {name}={value!r}, expected a number of seconds above 0")


def _require_int(where: str, name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigurationError(f"{where}: {name}={value!r}, expected a whole number of at least {at_least}")


def _require_rate(where: str, name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1):
        raise ConfigurationError(
            f"{where}: {name}={value!r}, expected a share above 0 and up to 1, such as 0.5, or None to open on "
            "failures in a row alone"
        )


def _require_window(where: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not MIN_WINDOW <= value <= MAX_SECONDS:
        raise ConfigurationError(
            f"{where}: {name}={value!r}, expected a number of seconds from {MIN_WINDOW} to {MAX_SECONDS}"
        )


def _require_member(where: str, name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigurationError(f"{where}: {name}={value!r}, expected a {kind.__name__}")


class FailureMode(StrEnum):
    """What a failed call means for the connection: CLOSED stops it, OPEN lets it go on without the agent.

    Wherever one is expected, its name does as well: ``"closed"`` or ``"open"``.
    """

    CLOSED = "closed"
    OPEN = "open"


FailureModeName = Literal["closed", "open"]
BodyModeName = Literal["buffer", "stream", "hybrid"]


def as_failure_mode(shown: str, given: object) -> FailureMode:
    """The failure mode, given as such or by its name.

    ``shown`` begins the message of the :class:`ConfigurationError` for anything else: what was given, and where.
    """
    try:
        return FailureMode(given)  # type: ignore[arg-type]
    except ValueError:
        raise ConfigurationError(f"{shown}, expected the failure mode 'closed' or 'open'") from None


@dataclass(frozen=True, slots=True)
class BodyMode:
    """How an agent is shown a body.

    ``BUFFER``: all of it at once, before anything of it is passed on. ``STREAM``: piece by piece as it comes.
    ``BodyMode.hybrid(threshold)``: buffered up to ``threshold`` bytes, the rest piece by piece.

    ``AgentConfig`` takes the names as well: ``"buffer"``, ``"stream"``, and ``"hybrid"`` for the default threshold.
    """

    name: BodyModeName
    threshold: int = 0

    BUFFER: ClassVar["BodyMode"]
    STREAM: ClassVar["BodyMode"]

    def __post_init__(self) -> None:
        if self.name not in ("buffer", "stream", "hybrid"):
            raise ConfigurationError(f"BodyMode: name={self.name!r}, expected 'buffer', 'stream' or 'hybrid'")
        if self.name == "hybrid":
            _require_int("BodyMode.hybrid", "threshold", self.threshold, at_least=1)
        elif self.threshold != 0:
            raise ConfigurationError(f"BodyMode: threshold={self.threshold!r}, expected one in hybrid mode only")

    @classmethod
    def hybrid(cls, threshold: int = 65536) -> "BodyMode":
        """Buffer ``threshold`` bytes, then stream."""
        return cls("hybrid", threshold)


BodyMode.BUFFER = BodyMode("buffer")
BodyMode.STREAM = BodyMode("stream")


def _as_body_mode(where: str, name: str, given: object) -> BodyMode:
    match given:
        case BodyMode():
            return given
        case "hybrid":
            return BodyMode.hybrid()
        case "buffer" | "stream":
            return BodyMode(given)
    raise ConfigurationError(
        f"{where}: {name}={named(given)}, expected 'buffer', 'stream', 'hybrid' or BodyMode.hybrid(threshold=...)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """When to stop calling an agent that keeps failing, and how to find out that it is back.

    ``failure_threshold`` failures in a row open the breaker. Failures of calls that overlap in time count once in a
    row, and the failure of a call that began before the latest success doesn't count in it.

    A failure rate opens it besides, which finds outages in which overlapping calls fail: of the calls that ended within
    the last ``window`` seconds, ``minimum_calls`` or more in number, at least the share ``failure_rate`` has failed.
    There each failure counts. ``failure_rate=None`` switches it off.

    ``reset_timeout`` seconds after it has opened, at most ``half_open_max_calls`` calls at a time are let through on
    trial; ``success_threshold`` successes close it, one failure opens it again.

    :param failure_rate: above 0, up to 1; or None.
    :param window: seconds, at least 0.001. Counted in tenths: a call leaves the window when it is between nine tenths
        of it and the whole of it old.
    """

    failure_threshold: int = 5
    success_threshold: int = 2
    reset_timeout: float = 30.0
    half_open_max_calls: int = 1
    failure_rate: float | None = 0.5
    minimum_calls: int = 20
    window: float = 10.0

    def __post_init__(self) -> None:
        where = "CircuitBreakerConfig"
        _require_int(where, "failure_threshold", self.failure_threshold, at_least=1)
        _require_int(where, "success_threshold", self.success_threshold, at_least=1)
        _require_seconds(where, "reset_timeout", self.reset_timeout)
        _require_int(where, "half_open_max_calls", self.half_open_max_calls, at_least=1)
        _require_rate(where, "failure_rate", self.failure_rate)
        _require_int(where, "minimum_calls", self.minimum_calls, at_least=1)
        _require_window(where, "window", self.window)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One agent: how to reach it, what it hears, and what its failures mean. Durations are seconds, sizes bytes.

    :param id: unique in its manager; up to 128 token characters. It appears in metrics, logs and routes.
    :param transport: an :class:`Agent`, a URL (``http://``, ``https://``, ``unix:///path`` or ``tcp://host:port``), a
        list of ``unix://`` and ``tcp://`` URLs of the same agent, a :class:`StreamTransport`, or any
        :class:`Transport`.
    :param events: what the agent is to hear. None: what it says itself, in process or in the handshake of the stream
        transport; other remote agents must be told. What is named here overrules the handshake.
    :param failure_mode: what a failed call means, unless a route says otherwise.
    :param timeout: one deadline for a call: queue wait, connect, send, answer.
    :param chunk_timeout: the same for the body chunks of stream and hybrid mode.
    :param max_concurrent_calls: further calls wait, within their deadline.
    :param circuit_breaker: None switches it off.
    :param request_body_mode: how the agent is shown request bodies; ``response_body_mode`` likewise.
    :param max_request_body_bytes: the largest request body the agent is to inspect, in any mode. None: 1 MiB for a body
        that has to be kept, no limit for one that passes as it comes. ``max_response_body_bytes`` likewise.
    :param response_content_types: the types of response bodies that the agent hears: ``type/subtype`` or ``type/*``.
        None: all. A response whose type is missing or can't be read is heard. Requests are heard whatever their type,
        which is only what the client says.
    :param decode: show the agent the content of bodies with a ``content-encoding`` (``gzip``, ``deflate``; ``br`` and
        ``zstd`` where a library for them is installed), and let it change that. Its size limits count decoded bytes.
        What can't be decoded, or grows to more than 100 times its size, goes by the failure mode; but where a writer
        has begun to stream the content, it always ends the body. A body that was changed, or streamed through a writer,
        goes on without the encoding.
    :param hold_head: keep the head of a streamed response back until the agent has judged the first piece of its body,
        so that a block there can still be answered with a status. Without it that is so where the head declares a
        length; the head of a stream without a length leaves at once, as its clients expect.
    :param ranges: let clients ask for parts of responses whose bodies the agent hears. False: the app sees no ``range``
        header and answers with whole bodies; where ``response_content_types`` leaves ranges to other types, a partial
        response of a type that the agent hears is answered with 416. Shadow agents change nothing of that.
    :param request_length: of an agent that may change streamed request bodies. ``"known"``: the app is started when all
        of the body was judged, and told its length, without which many frameworks take it for empty. Until then the
        body is kept, up to ``max_request_body_bytes``: 1 MiB of it in memory, the rest in a temporary file.
        ``"unknown"``: the app is started at once, without a ``content-length``.
    :param body_access: ``"write"`` agents may send body mutations.
    :param enforce: False makes it a shadow agent: it hears everything and is recorded, but nothing that it answers is
        applied, and none of its failures count for the connection.
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
        (``X_User``), wherever the agent is on the route and hears request heads or request bodies; also when it fails
        open. On a route without this agent the client's header stays. Other agents may set it as well. Not for a shadow
        agent, which sets nothing.
    """

    id: str
    transport: Agent | Transport | StreamTransport | str | Sequence[str]
    _: KW_ONLY
    events: Iterable[EventType] | None = None
    failure_mode: FailureMode | FailureModeName = FailureMode.CLOSED
    timeout: float = 1.0
    chunk_timeout: float = 5.0
    max_concurrent_calls: int = 100
    circuit_breaker: CircuitBreakerConfig | None = CircuitBreakerConfig()
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

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not TOKEN.match(self.id) or len(self.id) > _MAX_ID_LENGTH:
            raise ConfigurationError(
                f"AgentConfig: id={self.id!r}, expected 1 to {_MAX_ID_LENGTH} letters, digits or any of !#$%&'*+-.^_`|~"
            )
        where = f"AgentConfig({self.id!r})"
        object.__setattr__(self, "transport", _resolve_transport(where, self.transport))
        object.__setattr__(self, "events", _resolve_events(where, self.reach, self.events))
        shown = f"{where}: failure_mode={named(self.failure_mode)}"
        object.__setattr__(self, "failure_mode", as_failure_mode(shown, self.failure_mode))
        _require_seconds(where, "timeout", self.timeout)
        _require_seconds(where, "chunk_timeout", self.chunk_timeout)
        _require_int(where, "max_concurrent_calls", self.max_concurrent_calls, at_least=1)
        if not isinstance(self.circuit_breaker, CircuitBreakerConfig | None):
            raise ConfigurationError(
                f"{where}: circuit_breaker={self.circuit_breaker!r}, expected a CircuitBreakerConfig or None"
            )
        for name in ("request_body_mode", "response_body_mode"):
            object.__setattr__(self, name, _as_body_mode(where, name, getattr(self, name)))
        for name in ("max_request_body_bytes", "max_response_body_bytes"):
            if getattr(self, name) is not None:
                _require_int(where, name, getattr(self, name), at_least=1)
        if self.body_access not in ("read", "write"):
            raise ConfigurationError(f"{where}: body_access={self.body_access!r}, expected 'read' or 'write'")
        if self.request_length not in ("known", "unknown"):
            raise ConfigurationError(f"{where}: request_length={self.request_length!r}, expected 'known' or 'unknown'")
        object.__setattr__(self, "response_content_types", _resolve_types(where, self.response_content_types))
        for name in ("decode", "hold_head", "ranges", "enforce", "require_at_startup", "may_set_host"):
            _require_member(where, name, getattr(self, name), bool)
        object.__setattr__(self, "after", _resolve_after(where, self.id, self.after))
        object.__setattr__(self, "sets", _resolve_sets(where, self.sets, may_set_host=self.may_set_host))

    @property
    def fails(self) -> FailureMode:
        """The failure mode, resolved from what was given."""
        assert isinstance(self.failure_mode, FailureMode)
        return self.failure_mode

    @property
    def request_bodies(self) -> BodyMode:
        """How request bodies are shown, resolved from what was given."""
        assert isinstance(self.request_body_mode, BodyMode)
        return self.request_body_mode

    @property
    def response_bodies(self) -> BodyMode:
        """How response bodies are shown, resolved from what was given."""
        assert isinstance(self.response_body_mode, BodyMode)
        return self.response_body_mode

    @property
    def reach(self) -> Transport | StreamTransport:
        """The transport, resolved from what was given."""
        assert isinstance(self.transport, Transport | StreamTransport)
        return self.transport

    def hears_response_type(self, media_type: str | None) -> bool:
        """Whether the agent hears response bodies of that type, in lower case. None: missing or unreadable."""
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


def _resolve_transport(where: str, given: object) -> Transport | StreamTransport:
    if isinstance(given, Agent):
        check_agent(where, given)
        return InProcessTransport(given)
    if isinstance(given, str):
        if given.startswith(("http://", "https://")):
            # Imported here because httpx, which comes with it, takes long to import.
            from .transports.http import HttpTransport

            return HttpTransport(given)
        if not given.startswith(_STREAM_SCHEMES):
            right = nearest_address(given, or_http=True) or (
                "an http://, https://, unix:// or tcp:// URL, an Agent or a Transport"
            )
            raise ConfigurationError(f"{where}: transport={redact_secrets(given)!r}, expected {right}")
        return _stream_transport(where, given)
    if isinstance(given, list | tuple):
        if not all(isinstance(item, str) and item.startswith(_STREAM_SCHEMES) for item in given):
            raise ConfigurationError(
                f"{where}: transport={redact_secrets(repr(given))}, expected several unix:// or tcp:// URLs"
            )
        return _stream_transport(where, given)
    if isinstance(given, type) and issubclass(given, Agent):
        raise ConfigurationError(f"{where}: transport={given.__name__}, expected an instance: {given.__name__}()")
    if not isinstance(given, Transport | StreamTransport):
        raise ConfigurationError(f"{where}: transport={named(given)}, expected an Agent, a URL or a Transport")
    return given


def _stream_transport(where: str, endpoints: str | Sequence[str]) -> StreamTransport:
    try:
        return StreamTransport(endpoints)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{where}: {exc}") from exc


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


def _resolve_sets(where: str, given: object, *, may_set_host: bool) -> frozenset[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}: sets={given!r}, expected a set of header names")
    names = set()
    for name in given:
        if not isinstance(name, str) or not TOKEN.match(name):
            raise ConfigurationError(f"{where}: sets contains {name!r}, expected names of headers such as 'x-user'")
        spelt = as_one_spelling(name)
        if is_untouchable(spelt):
            raise ConfigurationError(f"{where}: sets contains {name!r}, which belongs to the server, expected others")
        if spelt == "host" and not may_set_host:
            raise ConfigurationError(f"{where}: sets contains {name!r}, expected may_set_host=True beside it")
        names.add(spelt)
    return frozenset(names)


def _resolve_events(where: str, transport: Transport | StreamTransport, given: object) -> frozenset[EventType] | None:
    heard = None if transport.events is None else frozenset(transport.events)
    if given is None:
        if isinstance(transport, StreamTransport) and transport.framing is Framing.V2:
            return None
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
