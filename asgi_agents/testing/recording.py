"""What the agents have decided about each connection of a test, and which response belongs to it.

While an app is recorded, the middleware that a connection comes to first puts a header into its response. The header
says which record is that of the response. Nothing else can: two responses to the same request may be equal, and come
in any order. Apps that are not recorded send no such header.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Lock
from typing import Final
from uuid import uuid4
from weakref import WeakKeyDictionary

from starlette.types import Message, Scope, Send

from ..audit import Audit, Auditor, AuditRecord
from ..exchange.state import ExchangeState
from ..manager import registry_of
from ..middleware import AgentMiddleware, replace_auditor
from ..registry import AgentRegistry

#: The header of a response that was recorded.
HEADER: Final = "x-asgi-agents-recorded"
_HEADS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
# So many connections are remembered: those of a test, and of some before it.
_MOST: Final = 1000


class RecordedConnection:
    """One connection, as one middleware has seen it."""

    def __init__(self, audit: Audit, agent_ids: Sequence[str]) -> None:
        self._audit: Audit | None = audit
        self._record: AuditRecord | None = None
        #: The agents that the middleware has.
        self.agent_ids = agent_ids

    @property
    def record(self) -> AuditRecord:
        """Its record; of one that has not ended, as it is now."""
        # Another thread may end it meanwhile.
        audit = self._audit
        if audit is not None:
            return audit.record()
        assert self._record is not None
        return self._record

    def end(self, record: AuditRecord) -> None:
        """The connection is over. Nothing but its record is kept."""
        self._record, self._audit = record, None


class Recording:
    """What the agents have decided while an app is recorded."""

    def __init__(self) -> None:
        self._connections: list[RecordedConnection] = []

    @property
    def records(self) -> Sequence[AuditRecord]:
        """One for each connection that had agents, in the order in which they began.

        Where several middlewares guard a connection, each has a record of its own. The record of a connection that has
        not ended says how it is now.
        """
        return [connection.record for connection in tuple(self._connections)]

    def add(self, connection: RecordedConnection) -> None:
        """Take note of a connection that begins."""
        self._connections.append(connection)


class _Records:
    """All connections that were recorded, and all that is being recorded. Apps may be served in several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_token: OrderedDict[str, list[RecordedConnection]] = OrderedDict()
        # Of connections that are open, by correlation id.
        self._open: dict[str, str] = {}
        self._recordings: WeakKeyDictionary[AgentMiddleware, list[Recording]] = WeakKeyDictionary()
        self._put_back: WeakKeyDictionary[AgentMiddleware, Callable[[], None]] = WeakKeyDictionary()

    def find(self, token: str) -> Sequence[RecordedConnection]:
        """What the middlewares have seen of the connection of a response, the outermost first."""
        return tuple(self._by_token.get(token, ()))

    def start(self, recording: Recording, middlewares: Iterable[AgentMiddleware]) -> None:
        """Record what these middlewares guard, until :meth:`stop`."""
        with self._lock:
            for middleware in middlewares:
                recordings = self._recordings.setdefault(middleware, [])
                if not recordings:
                    recorder = partial(_Recorder, recordings=recordings, registry=registry_of(middleware.manager))
                    self._put_back[middleware] = replace_auditor(middleware, recorder)
                recordings.append(recording)

    def stop(self, recording: Recording, middlewares: Iterable[AgentMiddleware]) -> None:
        """The opposite of :meth:`start`."""
        with self._lock:
            for middleware in middlewares:
                recordings = self._recordings[middleware]
                recordings.remove(recording)
                if not recordings:
                    self._put_back.pop(middleware)()

    def begin(self, connection: RecordedConnection, state: ExchangeState) -> str | None:
        """Remember a connection. Returns its token where no middleware around has seen it before."""
        name = state.correlation_id
        with self._lock:
            token = self._open.get(name) if state.joined else None
            if token is not None and token in self._by_token:
                self._by_token[token].append(connection)
                return None
            token = self._open[name] = uuid4().hex
            self._by_token[token] = [connection]
            while len(self._by_token) > _MOST:
                self._by_token.popitem(last=False)
            return token

    def end(self, state: ExchangeState, token: str | None) -> None:
        """A connection is over."""
        with self._lock:
            if token is not None and self._open.get(state.correlation_id) == token:
                del self._open[state.correlation_id]


RECORDS: Final = _Records()


class _Recorder(Auditor):
    """Records all connections of a middleware, and writes the records where its own auditor would."""

    def __init__(self, own: Auditor, recordings: Sequence[Recording], registry: AgentRegistry) -> None:
        vars(self).update(vars(own))
        self._recordings = recordings
        self._registry = registry
        self.wanted = lambda: True

    def begin(self, scope: Scope, state: ExchangeState) -> Audit:
        audit = _RecordedAudit(self, scope, state)
        connection = RecordedConnection(audit, self._registry.agent_ids)
        for recording in tuple(self._recordings):
            recording.add(connection)
        audit.recorded_as(connection, RECORDS.begin(connection, state))
        return audit


class _RecordedAudit(Audit):
    """The record of a connection that a test may ask for."""

    def __init__(self, auditor: Auditor, scope: Scope, state: ExchangeState) -> None:
        super().__init__(auditor, scope, state)
        self._exchange = state

    def recorded_as(self, connection: RecordedConnection, token: str | None) -> None:
        """Where the record goes. ``token``: what the response is to carry."""
        self._connection = connection
        self._token = token

    def around(self, send: Send) -> Send:
        if self._token is None:
            return send
        header = (HEADER.encode(), self._token.encode())

        async def marked(message: Message) -> None:
            if message["type"] in _HEADS:
                message = {**message, "headers": [*(message.get("headers") or ()), header]}
            await send(message)

        return marked

    def end(self, error: str | None) -> AuditRecord | None:
        RECORDS.end(self._exchange, self._token)
        record = super().end(error)
        if record is not None:
            self._connection.end(record)
        return record
