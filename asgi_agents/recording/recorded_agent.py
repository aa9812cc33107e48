"""An agent that answers as a recording says, in the place of the one that was recorded."""

import os
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from threading import Lock
from typing import Any, Final, NoReturn
from urllib.parse import quote_plus

from msgspec import Struct

from ..audit import Redact
from ..errors import AgentError, ConfigurationError
from ..failures import CallFailure
from ..guardrails.text_guardrail import FINAL, KIND, ROLE, START, TOOL
from ..messages.naming import named
from ..observability.redaction import REDACTED, redact_secrets
from ..protocol import (
    Answer,
    ConfigureEvent,
    Encoding,
    Event,
    EventType,
    GuardrailInspectEvent,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
    decode_answer,
)
from ..protocol.stream import correlation_id_of
from .cleaning import applied_parts, cleaner_of
from .format import FailureLine, RecordingError
from .reading import RecordedExchange, Traffic

#: So many connections are remembered, and with each the exchanges that are left of it.
MAX_CONNECTIONS: Final = 1000

# What two events have in common that are taken for the same.
_Key = tuple[object, ...]


class _Outcome(Struct):
    """What came of an event, and whether it has been given again."""

    key: _Key
    event_type: EventType
    answer: bytes
    failure: FailureLine | None
    #: Why the answer can't be given again, in words; empty where it can.
    lacks: str
    used: bool = False


class RecordedAgent:
    """A transport that answers from a recording, so that an app is tested without the agent that was recorded.

    ::

        AgentConfig("waf", RecordedAgent("traffic.jsonl"), circuit_breaker=None)

    A connection is recognised by its first event: a request by method, target and the headers named by ``headers``. The
    head of a request is always the first. The k-th connection with such a first event is answered as the k-th that was
    recorded. The other events of a connection are recognised by their type, by what is in them, and by their order. Of
    contents that were not recorded the length has to be the same. Secrets are taken out before anything is compared.

    Recorded failures fail again; without a circuit breaker, they are the only ones. An answer is not given again, but
    a failure, where the app would do with it what the agent has not said: a part that was not recorded, or in which a
    secret was replaced.

    What was not recorded is a failure of the agent, to which its failure mode applies. The log says what was asked.
    It may be used on several event loops and threads, but whose request comes first is then nobody's to say.

    :param path: the recording. All exchanges of the agent are kept in memory, without bodies.
    :param agent: the agent's id in it; None: that of the only one.
    :param headers: names of request headers that have to be the same as well.
    :param repeat: begin again with the first connection, where as many have come as were recorded.
    :param redact: what :func:`record` was given, where that was a function.
    :raises OSError: the file can't be opened.
    :raises RecordingError: it can't be read, or has other agents.
    """

    kind = "recorded"
    remote = False
    address = ""
    carries = frozenset(EventType)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        agent: str | None = None,
        headers: Iterable[str] = (),
        repeat: bool = False,
        redact: Redact | None = redact_secrets,
    ) -> None:
        names = tuple(headers) if isinstance(headers, Iterable) and not isinstance(headers, str) else (headers,)
        if isinstance(headers, str) or not all(isinstance(name, str) for name in names):
            raise ConfigurationError(f"RecordedAgent: headers={named(headers)}, expected a list of header names")
        if not isinstance(repeat, bool):
            raise ConfigurationError(f"RecordedAgent: repeat={named(repeat)}, expected True or False")
        self._headers = tuple(sorted({name.lower() for name in names}))
        self._repeat = repeat
        self._lock = Lock()
        self._path = os.fspath(path)
        # By the first event of each: the connections that were recorded, in order.
        self._recorded: dict[_Key, list[list[_Outcome]]] = {}
        self._begun: Counter[_Key] = Counter()
        # By correlation id: what is left of the connections that have begun here.
        self._open: dict[str, list[_Outcome]] = {}
        with Traffic(path) as traffic:
            self._cleaner = cleaner_of(traffic.opening, redact)
            self._load(traffic, agent)
            events = [line.events for line in traffic.agents.values() if agent in (None, line.agent)]
        self.events: frozenset[EventType] | None = frozenset(event for given in events for event in given)

    def may_suspend(self, event_type: EventType) -> bool:
        """Never."""
        return False

    async def call(self, event: Event) -> Answer | None:
        """What the recording says of such an event. Raises what it has for a failure, and for what it does not have."""
        if isinstance(event, ConfigureEvent):
            return None
        with self._lock:
            outcome = self._find(event)
            outcome.used = True
        if outcome.failure is not None:
            failure = outcome.failure
            raise CallFailure(failure.kind, f"as it was recorded: {failure.message}", failure.retry_after)
        if outcome.lacks:
            self._refuse(event, f"its answer was recorded {outcome.lacks}")
        return decode_answer(outcome.answer, Encoding.JSON, event.event_type)

    async def aclose(self) -> None:
        """There is nothing to close."""

    def _load(self, traffic: Traffic, agent: str | None) -> None:
        connections: dict[str, list[_Outcome]] = {}
        ids: set[str] = set()
        for exchange in traffic.exchanges():
            if agent not in (None, exchange.about.agent):
                continue
            ids.add(exchange.about.agent)
            if exchange.about.given_up:
                # Nobody has waited for its answer.
                continue
            name = correlation_id_of(exchange.event)
            outcome = self._outcome(exchange)
            known = connections.get(name)
            if known is None or isinstance(exchange.event, RequestHeadersEvent):
                # A client may give each of its requests the same id.
                known = connections[name] = []
                self._recorded.setdefault(outcome.key, []).append(known)
            known.append(outcome)
        if agent is None and len(ids) > 1:
            raise RecordingError(
                f"{self._path}: expected the id of one of its agents; there are:"
                f" {', '.join(sorted(ids))}; name one with agent"
            )
        if agent is not None and agent not in traffic.agents:
            known_ids = ", ".join(traffic.agents) or "none"
            raise RecordingError(f"{self._path}: no agent has the id {agent!r}; there are: {known_ids}")

    def _outcome(self, exchange: RecordedExchange) -> _Outcome:
        sizes = exchange.about.left_out
        return _Outcome(
            key=self._key(exchange.event, lambda name, data: sizes.get(name, data)),
            event_type=exchange.event.event_type,
            answer=exchange.encoded_answer,
            failure=exchange.failure,
            lacks=self._lacking(exchange),
        )

    def _lacking(self, exchange: RecordedExchange) -> str:
        """What of an answer was not recorded, without which an app would do something else."""
        for part in applied_parts(exchange.about.answer_left_out):
            return f"without {part}; record with bodies=True"
        if exchange.about.answer_redacted:
            for part in _redacted_parts(exchange.answer or {}, custom=self._cleaner.redaction == "custom"):
                return f"with a secret replaced in {part}; record with redact=None"
        return ""

    def _find(self, event: Event) -> _Outcome:
        cleaned = self._cleaner.event(event)
        key = self._key(cleaned.value, lambda name, data: cleaned.left_out.get(name, data))
        name = correlation_id_of(event)
        outcomes = None if isinstance(event, RequestHeadersEvent) else self._open.get(name)
        if outcomes is None:
            outcomes = self._begin(event, key)
            # Those that have begun last are at the end.
            self._open.pop(name, None)
            if len(self._open) >= MAX_CONNECTIONS:
                del self._open[next(iter(self._open))]
            self._open[name] = outcomes
        for outcome in outcomes:
            if not outcome.used and outcome.key == key:
                return outcome
        left = [outcome for outcome in outcomes if not outcome.used and outcome.event_type is event.event_type]
        what = "with other content" if left else "no more of them"
        self._refuse(event, f"in this connection the recording has {what}")

    def _begin(self, event: Event, key: _Key) -> list[_Outcome]:
        connections = self._recorded.get(key)
        if connections is None:
            self._refuse(event, "no connection in the recording begins so")
        index = self._begun[key]
        self._begun[key] += 1
        if index >= len(connections):
            if not self._repeat:
                self._refuse(event, f"{len(connections)} connections in the recording begin so, and this is one more")
            index %= len(connections)
        # Of its own, because a connection may be repeated.
        return [_Outcome(one.key, one.event_type, one.answer, one.failure, one.lacks) for one in connections[index]]

    def _refuse(self, event: Event, why: str) -> NoReturn:
        what = self._cleaner.url(_description(event))
        raise AgentError(f"{what} is not in {self._path}: {why}")

    def _key(self, event: Event, content: Callable[[str, Any], object]) -> _Key:
        """What has to be the same. ``content`` gives what is known of a content: itself, or its length."""
        kind = event.event_type
        match event:
            case RequestHeadersEvent():
                return (kind, event.method, event.uri, *(event.headers.get(name) for name in self._headers))
            case ResponseHeadersEvent():
                return kind, event.status
            case RequestBodyChunkEvent() | ResponseBodyChunkEvent():
                return kind, event.chunk_index, event.is_last, _digest(content("data", event.data))
            case WebSocketFrameEvent():
                return kind, event.client_to_server, event.frame_index, _digest(content("data", event.data))
            case GuardrailInspectEvent():
                # Windows that differ in what precedes them are not the same question.
                windows = (event.metadata.get(name) for name in (START, FINAL, KIND, ROLE, TOOL))
                return kind, event.inspection_type, _digest(content("content", event.content)), *windows
            case _:
                return (kind,)


# What an app does with an answer depends on these.
_APPLIED: Final = (
    *("decision", "request_headers", "response_headers", "routing_metadata", "websocket_decision", "redacted_content"),
    *("request_body_mutation", "response_body_mutation", "detections"),
)
_REDACTED: Final = (REDACTED, quote_plus(REDACTED))


def _redacted_parts(answer: Mapping[str, Any], *, custom: bool) -> Iterator[str]:
    """The parts of an answer that would be applied with something else in them than the agent has said.

    :param custom: a function of the application's own has replaced it, by nobody knows what.
    """
    for name in _APPLIED:
        if any(custom or any(mark in text for mark in _REDACTED) for text in _applied_texts(name, answer.get(name))):
            yield name


def _applied_texts(name: str, value: Any) -> Iterator[str]:
    match value:
        case str() if name.endswith("_mutation"):
            # Of a text in UTF-16, too.
            yield b64decode(value).replace(b"\0", b"").decode("latin-1")
        case str() if name not in ("decision", "websocket_decision"):
            yield value
        case list() if name == "detections":
            # A category takes the place of what was found, where there is nothing else.
            for detection in value:
                yield from filter(None, (detection.get("category"), detection.get("replacement")))
        case dict() if name == "decision" and "block" in value:
            block = value["block"]
            yield from _applied_texts("", [block.get("body"), block.get("headers")])
        case dict():
            for item in value.values():
                yield from _applied_texts(name.removesuffix("decision"), item)
        case list():
            for item in value:
                yield from _applied_texts(name, item)


def _digest(content: object) -> object:
    """Instead of a long content. Its length is a number, and stays one."""
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    return blake2b(content, digest_size=16).digest() if isinstance(content, bytes) else content


def _description(event: Event) -> str:
    if isinstance(event, RequestHeadersEvent):
        return f"{event.method} {event.uri}"
    index = getattr(event, "chunk_index", getattr(event, "frame_index", None))
    return event.event_type.value if index is None else f"{event.event_type.value} {index}"
