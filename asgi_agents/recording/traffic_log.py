"""Recording: what the agents of an app are asked, and what they answer, as lines of a file."""

import logging
import os
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Final, Self
from weakref import WeakSet

import anyio.to_thread
from msgspec import UNSET, Raw, Struct
from starlette.types import ASGIApp

from ..audit import Redact
from ..config import AgentConfig
from ..decision import Verdict
from ..errors import ConfigurationError, UnknownAgentError
from ..guard import Guard
from ..guardrails.text_guardrail import WindowEvent, outside
from ..manager import AgentManager, registry_of
from ..memory.weighing import weigh
from ..messages.naming import named
from ..observability.redaction import redact_secrets
from ..policy import require_int
from ..protocol import (
    ALLOW,
    PROTOCOL_VERSION,
    Answer,
    Encoding,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
    encode_event,
)
from .cleaning import Cleaner
from .finding import managers_of
from .format import (
    CLOSED,
    MAX_LINE_BYTES,
    PLAIN_ALLOW,
    VERSION,
    AgentLine,
    EndLine,
    ExchangeLine,
    RecordingLine,
    compact_answer,
    encode_line,
    encode_plain,
    failure_line,
)
from .tapping import attach, detach
from .writing import MAX_WAITING_BYTES, Writer

logger: Final = logging.getLogger("asgi_agents")

#: The size of a file at most, unless ``max_bytes`` says otherwise.
DEFAULT_MAX_BYTES: Final = 256 * 1024 * 1024
_LEAST_MAX_BYTES: Final = 4096
_PLAIN: Final = encode_plain(PLAIN_ALLOW)


class _Entry(Struct):
    """A call that has ended, as the thread that writes is given it."""

    number: int
    config: AgentConfig
    kind: str
    hears: frozenset[EventType]
    event: Event
    answer: Answer | None
    verdict: Verdict | None
    started: float
    seconds: float
    chunk: bool
    window: bool
    route: str | None


class _Calls:
    """What the guards tell of their calls, as entries for ``put``."""

    def __init__(self, put: Callable[[_Entry], None]) -> None:
        self._put = put
        self._numbers = count(1)

    def begin(self) -> int:
        """A call begins."""
        return next(self._numbers)

    def end(
        self,
        number: int,
        guard: Guard,
        event: Event,
        verdict: Verdict | None,
        inspection: GuardrailResponse | None,
        *,
        started: float,
        seconds: float,
        chunk: bool,
        window: bool,
        route: str | None,
    ) -> None:
        """It has ended."""
        answer: Answer | None = None
        if verdict is not None and verdict.failure is None:
            answer = verdict.response if inspection is None else inspection
        self._put(
            _Entry(
                number,
                guard.config,
                guard.client.kind,
                guard.hears,
                event,
                answer,
                verdict,
                started,
                seconds,
                chunk,
                window,
                route,
            )
        )


class TrafficLog:
    """A recording, from ``with`` to the end of its block; see :func:`record`.

    :ivar path: the file.
    """

    def __init__(
        self,
        app: ASGIApp | AgentManager,
        path: str | os.PathLike[str],
        *,
        bodies: bool = False,
        agents: Iterable[str] | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        redact: Redact | None = redact_secrets,
    ) -> None:
        if not isinstance(bodies, bool):
            raise ConfigurationError(f"record: bodies={named(bodies)}, expected True or False")
        if redact is not None and not callable(redact):
            raise ConfigurationError(f"record: redact={named(redact)}, expected a function or None")
        if isinstance(agents, str):
            raise ConfigurationError(f"record: agents={agents!r}, expected a list: [{agents!r}]")
        require_int("record", "max_bytes", max_bytes, at_least=_LEAST_MAX_BYTES)
        self.path = Path(path)
        self._app = app
        self._agents = None if agents is None else frozenset(agents)
        self._max_bytes = max_bytes
        self._cleaner = Cleaner(bodies=bodies, redact=redact)
        self._calls = _Calls(self._put)
        self._began = 0.0
        self._writer: Writer[_Entry] | None = None
        self._managers: list[AgentManager] = []
        # Those that were replaced meanwhile are not kept.
        self._guards: WeakSet[Guard] = WeakSet()
        # Guards are made by any thread.
        self._lock = Lock()
        self._closed = False
        # The settings of each agent as the file has them.
        self._settings: dict[str, AgentLine] = {}

    def __repr__(self) -> str:
        return f"<TrafficLog {str(self.path)!r}: {self.exchanges} exchanges{', stopped' if self.stopped else ''}>"

    # How it is

    @property
    def exchanges(self) -> int:
        """How many exchanges are in the file. The newest of the last moments are not counted yet."""
        return 0 if self._writer is None else self._writer.written

    @property
    def dropped(self) -> int:
        """How many exchanges are not in the file: too many waited to be written, or the recording has stopped."""
        return 0 if self._writer is None else self._writer.dropped

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return 0 if self._writer is None else self._writer.size

    @property
    def stopped(self) -> str:
        """Why the recording has stopped before its end, in words; empty where it has not."""
        return "" if self._writer is None else self._writer.stopped

    # From begin to end

    def start(self) -> None:
        """Record from now on, as entering the block does.

        :raises OSError: the file can't be written.
        :raises ConfigurationError: there are no agents, it has been started before, or the file is being recorded to.
        :raises UnknownAgentError: there is no agent of an id in ``agents``.
        """
        if self._writer is not None or self._closed:
            raise ConfigurationError("record: it has been started before, expected a new record(...)")
        managers = managers_of("record", self._app)
        known = [agent_id for manager in managers for agent_id in manager.agent_ids]
        for agent_id in sorted((self._agents or frozenset()) - set(known)):
            raise UnknownAgentError(
                f"record: no agent has the id {agent_id!r}; there are: {', '.join(known) or 'none'}"
            )
        opening = RecordingLine(
            version=VERSION,
            protocol=PROTOCOL_VERSION,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            bodies=self._cleaner.bodies,
            redaction=self._cleaner.redaction,
        )
        self._began = time.monotonic()
        self._writer = Writer(self.path, encode_line(opening), self._lines, self._last_line, max_bytes=self._max_bytes)
        for manager in managers:
            registry = registry_of(manager)
            # Those first that are made from now on, so that none is missed in between.
            registry.on_guard.append(self._watch)
            for guard in registry.guards():
                self._watch(guard)
        self._managers = managers

    def close(self) -> None:
        """Record no more, write what is left and close the file. It takes milliseconds. A second call does nothing."""
        with self._lock:
            self._closed = True
            managers, self._managers = self._managers, []
            guards = list(self._guards)
            self._guards.clear()
        for manager in managers:
            registry_of(manager).on_guard.remove(self._watch)
        for guard in guards:
            detach(guard, self._calls)
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close)

    def _watch(self, guard: Guard) -> None:
        if self._agents is None or guard.config.id in self._agents:
            with self._lock:
                # Another thread may be about to tell of a guard while this one closes.
                if not self._closed:
                    self._guards.add(guard)
                    attach(guard, self._calls)

    def _put(self, entry: _Entry) -> None:
        assert self._writer is not None
        size = _size_of(entry.event)
        if entry.answer is not None and entry.answer is not ALLOW:
            size += weigh(entry.answer, MAX_WAITING_BYTES)
        self._writer.put(entry, size)

    # In the thread that writes

    def _lines(self, entry: _Entry) -> bytes:
        asked, given = entry.event, entry.answer
        if isinstance(asked, WindowEvent):
            # What a text guardrail in the process is shown, and what it says, is not of the protocol.
            asked, given = outside(asked, given if isinstance(given, GuardrailResponse) else None)
        event = self._cleaner.event(asked)
        failure = None if entry.verdict is None else entry.verdict.failure
        answer = None if given is None else self._cleaner.answer(given)
        encoded = UNSET if answer is None else _PLAIN
        if answer is not None and answer.value is not ALLOW:
            encoded = encode_plain(compact_answer(answer.value))
        line = encode_line(
            ExchangeLine(
                n=entry.number,
                agent=entry.config.id,
                at=round(entry.started - self._began, 6),
                seconds=round(entry.seconds, 7),
                event=Raw(encode_event(event.value, Encoding.JSON)),
                answer=encoded,
                failure=UNSET if failure is None else failure_line(failure, self._cleaner.text(failure.message)),
                given_up=entry.verdict is None,
                chunk=entry.chunk,
                window=entry.window,
                route=entry.route,
                left_out=event.left_out,
                answer_left_out={} if answer is None else answer.left_out,
                redacted=event.redacted,
                answer_redacted=False if answer is None else answer.redacted,
            )
        )
        if len(line) > MAX_LINE_BYTES:
            # Whoever reads the recording would refuse all of it.
            raise ValueError(f"a line of {len(line)} bytes, expected at most {MAX_LINE_BYTES}")
        return self._settings_line(entry) + line

    def _settings_line(self, entry: _Entry) -> bytes:
        """The settings of the agent, where the file does not have them."""
        config = entry.config
        settings = AgentLine(
            agent=config.id,
            transport=entry.kind,
            events=sorted(entry.hears),
            body_access=config.body_access,
            may_set_host=config.may_set_host,
            timeout=config.timeout,
            chunk_timeout=config.chunk_timeout,
        )
        if self._settings.get(config.id) == settings:
            return b""
        self._settings[config.id] = settings
        return encode_line(settings)

    def _last_line(self, writer: Writer[_Entry]) -> bytes:
        return encode_line(
            EndLine(exchanges=writer.written, dropped=writer.dropped, reason=writer.stopped[:200] or CLOSED)
        )


def record(
    app: ASGIApp | AgentManager,
    path: str | os.PathLike[str],
    *,
    bodies: bool = False,
    agents: Iterable[str] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    redact: Redact | None = redact_secrets,
) -> TrafficLog:
    """Record what agents are asked and what they answer, within a ``with`` or ``async with`` block.

    ::

        with record(app, "traffic.jsonl") as log:
            ...

    Each exchange is a line of JSON in the file: the event as the agent has received it, its answer or failure, and how
    long that took, the wait for a permit included. The lines are written by a thread of its own. Whatever happens to
    the file, no request waits or fails because of it: a full disk or a file of ``max_bytes`` ends the recording with
    one line in the log, and exchanges that can't be written in time are counted as ``dropped``.

    It may begin and end at any time, in any thread, before the app has started or while it runs, and several may run at
    a time. Agents that are added or replaced meanwhile are recorded too. What is left out: ``configure`` events, and
    whatever an agent is not shown, such as a body over its limit. Processes that are forked from this one record
    nothing; each worker needs a recording and a file of its own.

    :param app: the guarded app, its :class:`AgentMiddleware`, or its :class:`AgentManager`. It is looked for in mounted
        apps as well. Middlewares that the app would make with its first connection are made here: add none afterwards.
    :param path: the file. One that is there is removed, and a new one made. Only the user that the app runs as may read
        it. Neither a link nor the file of another user is taken. Who moves the file takes the recording along; where it
        is removed or cut meanwhile, the recording ends.
    :param bodies: record bodies, websocket messages and inspected texts, and what answers put in their places. Without
        them only their lengths are recorded, and their exchanges can't be replayed.
    :param agents: ids of the agents to record. None: all.
    :param max_bytes: how large the file becomes at most; at least 4,096.
    :param redact: what is done to every text. None: nothing at all. Otherwise the values of headers that carry
        credentials, such as ``authorization`` and ``cookie``, and of whatever else is named like one, are replaced too.
        Secrets are looked for in each event by itself: one that is cut between two pieces of a body is not found.
        Bodies that are compressed, and texts of more than 1 MiB, are left out.
    :raises ConfigurationError: for arguments that can't work. What entering the block raises is at
        :meth:`TrafficLog.start`.
    """
    return TrafficLog(app, path, bodies=bodies, agents=agents, max_bytes=max_bytes, redact=redact)


def _size_of(event: Event) -> int:
    """About how many bytes an event holds, of what can be long."""
    match event:
        case RequestHeadersEvent():
            return len(event.uri) + event.headers.size
        case ResponseHeadersEvent():
            return event.headers.size
        case RequestBodyChunkEvent() | ResponseBodyChunkEvent() | WebSocketFrameEvent():
            return len(event.data)
        case WindowEvent():
            return len(event.content) + len(event.window.text)
        case GuardrailInspectEvent():
            return len(event.content) + sum(map(len, event.metadata.values()))
        case _:
            return 0
