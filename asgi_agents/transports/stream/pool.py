"""The connections to one agent on one event loop: made, kept, chosen among, and given up."""

import logging
import os
import ssl
import stat
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import anyio
from anyio import CancelScope
from msgspec import Struct

from ...errors import AgentConnectionError, AgentError, AgentTimeoutError, AgentUnavailableError
from ...protocol import Acknowledgement, ConfigureEvent, Encoding, EventType
from ...protocol.codec import decode_value
from ...protocol.stream import (
    AgentCapabilities,
    CancelReason,
    ConfigUpdateRequest,
    Framing,
    HealthState,
    HealthStatus,
    MessageType,
    MetricsReport,
)
from ..background import BackgroundTask
from ..wire import Address, connect
from .balancing import LoadBalancing, chooser
from .connection import Connection
from .endpoint import Endpoint
from .statistics import EndpointStatistics

logger = logging.getLogger("asgi_agents")

# Requests whose connection is remembered. Those whose end nobody tells of are forgotten, oldest first, beyond it.
_MAX_AFFINITIES: Final = 100_000
# Seconds an agent may take to digest its configuration.
_CONFIGURE_TIMEOUT: Final = 10.0


class Settings(Struct, frozen=True, kw_only=True):
    """What a :class:`~asgi_agents.StreamTransport` was made with."""

    addresses: Sequence[Address]
    framing: Framing
    encodings: tuple[Encoding, ...]
    connections: int
    load_balancing: LoadBalancing
    connect_timeout: float
    drain_timeout: float
    max_calls_per_connection: int
    ping_interval: float
    stall_timeout: float
    tls: ssl.SSLContext | None


class Peer(Protocol):
    """Whose connections these are."""

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        ...

    @property
    def events(self) -> frozenset[EventType] | None:
        """The events that the agent has to hear; None: whatever it says."""
        ...

    @property
    def config(self) -> Any:
        """What to configure new connections with."""
        ...

    @property
    def keeps_to_one_connection(self) -> bool:
        """Whether a request can have more than one event, which then go to one connection."""
        ...

    def pool_changed(self, pool: "StreamPool", *, came_up: bool) -> None:
        """Connections have come or gone, or the agent has said something new of itself.

        ``came_up``: it can be called again after it could not.
        """
        ...

    def metrics_reported(self, report: MetricsReport) -> None:
        """The agent has sent figures."""
        ...

    def config_update_requested(self, request: ConfigUpdateRequest) -> None:
        """The agent asks for another configuration."""
        ...


class _Waiter:
    """A call that waits for a place on a connection."""

    __slots__ = ("connection", "correlation_id", "fault", "served")

    def __init__(self, correlation_id: str) -> None:
        self.correlation_id = correlation_id
        self.served = anyio.Event()
        self.connection: Connection | None = None
        self.fault: AgentError | None = None


class StreamPool:
    """Keeps ``settings.connections`` connections to each endpoint, for as long as it is not closed.

    All events of one request go to one connection while that lives. The first to come is the first to get a place.
    """

    def __init__(self, settings: Settings, peer: Peer) -> None:
        self._settings = settings
        self._peer = peer
        self._choose = chooser(settings.load_balancing)
        self._endpoints = [Endpoint(address) for address in settings.addresses]
        self._where: dict[Connection, Endpoint] = {}
        self._rotation: list[Connection] = []
        self._affinities: dict[str, Connection] = {}
        # Those that any connection would do for, and those that want a certain one.
        self._waiting: dict[_Waiter, None] = {}
        self._waiting_for: dict[Connection, dict[_Waiter, None]] = {}
        self._closing = False
        self._was_up = False
        self._changed = anyio.Event()
        self._missing = {endpoint.address: anyio.Event() for endpoint in self._endpoints}
        self._keepers = [BackgroundTask(partial(self._keep, endpoint)) for endpoint in self._endpoints]

    # What there is

    @property
    def connections(self) -> Sequence[Connection]:
        """Those that are alive."""
        return list(self._where)

    @property
    def capabilities(self) -> Sequence[AgentCapabilities]:
        """What the instances of the agent have said of themselves, one for each endpoint that is up."""
        found = (
            next((connection.capabilities for connection in endpoint.connections if connection.capabilities), None)
            for endpoint in self._endpoints
        )
        return [capabilities for capabilities in found if capabilities is not None]

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return len(self._waiting) + sum(len(waiting) for waiting in self._waiting_for.values())

    @property
    def fault(self) -> str:
        """Why there are no connections; empty where there are, or may yet be."""
        if self._rotation:
            return ""
        return "; ".join(endpoint.fault for endpoint in self._endpoints) if self._all_down else ""

    @property
    def _all_down(self) -> bool:
        return all(endpoint.down for endpoint in self._endpoints)

    def statistics(self) -> Sequence[EndpointStatistics]:
        """How the endpoints are."""
        return [EndpointStatistics.of(endpoint) for endpoint in self._endpoints]

    def is_paused(self, correlation_id: str) -> bool:
        """Whether a call about ``correlation_id`` would have to wait because the agent wants it to."""
        connection = self._affinity(correlation_id)
        candidates = self._rotation if connection is None else [connection]
        return bool(candidates) and all(candidate.is_paused(correlation_id) for candidate in candidates)

    # A place for a call

    def reserve_now(self, correlation_id: str) -> Connection | None:
        """A connection with a place taken on it, or None where a call would have to wait."""
        connection = self._affinity(correlation_id)
        if connection is not None:
            if connection in self._waiting_for or not connection.has_room(correlation_id):
                return None
        elif self._waiting:
            return None
        else:
            connection = self._pick(correlation_id)
            if connection is None:
                return None
        connection.reserve()
        return connection

    async def reserve(self, correlation_id: str) -> Connection:
        """A connection with a place taken on it, as soon as there is one.

        :raises AgentConnectionError: the agent can't be reached.
        :raises AgentUnavailableError: it has said that it takes no calls.
        """
        connection = self.reserve_now(correlation_id)
        if connection is not None:
            return connection
        refusal = self._refusal(correlation_id)
        if refusal is not None:
            raise refusal
        waiter = _Waiter(correlation_id)
        connection = self._affinity(correlation_id)
        queue = self._waiting if connection is None else self._waiting_for.setdefault(connection, {})
        queue[waiter] = None
        try:
            await waiter.served.wait()
        except BaseException:
            self._leave(waiter)
            raise
        if waiter.fault is not None:
            raise waiter.fault
        assert waiter.connection is not None
        return waiter.connection

    def forget(self, correlation_id: str) -> None:
        """The request is over."""
        connection = self._affinities.pop(correlation_id, None)
        if connection is not None:
            connection.forget(correlation_id)
            if not connection.in_rotation:
                self._close_if_done(connection)

    def _affinity(self, correlation_id: str) -> Connection | None:
        connection = self._affinities.get(correlation_id)
        if connection is None:
            return None
        if connection.alive and connection.health is not HealthState.UNHEALTHY:
            return connection
        self.forget(correlation_id)
        return None

    def _pick(self, correlation_id: str) -> Connection | None:
        candidates = self._rotation
        if len(self._endpoints) > 1:
            # Better one that fails often than none.
            candidates = [c for c in candidates if not self._where[c].ejected] or candidates
        candidates = [connection for connection in candidates if connection.has_room(correlation_id)]
        if not candidates:
            return None
        connection = self._choose(candidates)
        if correlation_id and self._peer.keeps_to_one_connection:
            if len(self._affinities) >= _MAX_AFFINITIES:
                self.forget(next(iter(self._affinities)))
            self._affinities[correlation_id] = connection
            connection.requests += 1
        return connection

    def _refusal(self, correlation_id: str) -> AgentError | None:
        """Why it makes no sense to wait for a place; None where it does."""
        if self._closing:
            return AgentConnectionError("the connections are being closed")
        if self._rotation or self._affinity(correlation_id) is not None:
            return None
        if any(connection.health is HealthState.UNHEALTHY for connection in self._where):
            return AgentUnavailableError("it says that it is unhealthy")
        return AgentConnectionError(self.fault) if self._all_down else None

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.connection is not None:
            # The place came in the same moment as the cancellation: pass it on.
            waiter.connection.give_back()
            return
        self._waiting.pop(waiter, None)
        for connection, queue in tuple(self._waiting_for.items()):
            queue.pop(waiter, None)
            if not queue:
                del self._waiting_for[connection]

    def _serve(self, queue: dict[_Waiter, None], find: Callable[[str], Connection | None]) -> None:
        while queue:
            waiter = next(iter(queue))
            connection = find(waiter.correlation_id)
            if connection is None:
                return
            del queue[waiter]
            connection.reserve()
            waiter.connection = connection
            waiter.served.set()

    def _settle(self) -> None:
        """Places may have been made, or the last hope of any be gone."""
        self._serve(self._waiting, self._pick)
        if self._waiting and (refusal := self._refusal("")) is not None:
            for waiter in self._waiting:
                waiter.fault = refusal
                waiter.served.set()
            self._waiting.clear()
        self._changed.set()
        self._changed = anyio.Event()

    # What connections tell

    def room_made(self, connection: Connection) -> None:
        queue = self._waiting_for.get(connection)
        if queue is not None:

            def this_one(correlation_id: str) -> Connection | None:
                return connection if connection.has_room(correlation_id) else None

            self._serve(queue, this_one)
            if not queue:
                del self._waiting_for[connection]
        if self._waiting:
            self._serve(self._waiting, self._pick)
        if not connection.in_rotation:
            self._close_if_done(connection)

    def health_changed(self, connection: Connection, status: HealthStatus) -> None:
        # The agent speaks of itself, not of a connection. Those made later may already lead to its successor.
        endpoint = self._where.get(connection)
        affected = [connection] if endpoint is None else tuple(endpoint.connections)
        before = connection.health
        for each in affected:
            each.apply(status)
        if connection.health is not before:
            logger.log(
                logging.INFO if connection.health is HealthState.HEALTHY else logging.WARNING,
                "agent %r at %s says that it is %s",
                self._peer.agent_id,
                "?" if endpoint is None else endpoint.address,
                connection.health.name.lower(),
            )
        if endpoint is not None:
            for each in affected:
                self._close_if_done(each)
            self._missing[endpoint.address].set()
            self._note()
            self._settle()

    def rated(self, connection: Connection, *, answered: bool) -> None:
        endpoint = self._where.get(connection)
        if endpoint is not None:
            endpoint.rated(answered=answered)

    def lost(self, connection: Connection) -> None:
        endpoint = self._where.pop(connection, None)
        if endpoint is None:
            return
        endpoint.connections.remove(connection)
        if not endpoint.connections and not self._closing:
            logger.warning(
                "agent %r at %s: %s; connecting again", self._peer.agent_id, endpoint.address, connection.fault
            )
        # Any other will do now.
        self._waiting.update(self._waiting_for.pop(connection, {}))
        self._missing[endpoint.address].set()
        self._note()
        self._settle()

    def message_received(self, message_type: MessageType, payload: bytes, encoding: Encoding) -> None:
        if message_type is MessageType.METRICS_REPORT:
            self._peer.metrics_reported(decode_value(MetricsReport, payload, encoding, at="metrics_report"))
        else:
            self._peer.config_update_requested(
                decode_value(ConfigUpdateRequest, payload, encoding, at="config_update_request")
            )

    def _close_if_done(self, connection: Connection) -> None:
        """Close a connection that takes no new requests once those it has are over."""
        leaving = connection.retired or connection.health is HealthState.DRAINING
        if leaving and connection.alive and not connection.waited_for and not connection.requests:
            connection.close()

    def _note(self) -> None:
        self._rotation = [connection for connection in self._where if connection.in_rotation]
        is_up = bool(self._rotation)
        came_up, self._was_up = is_up and not self._was_up, is_up
        self._peer.pool_changed(self, came_up=came_up)

    # Keeping connections

    async def wait_connected(self) -> None:
        """Wait until there is a connection; raises :class:`AgentError` when none can be made for now."""
        while True:
            if self._rotation:
                return
            refusal = self._refusal("")
            if refusal is not None:
                raise refusal
            await self._changed.wait()

    async def _keep(self, endpoint: Endpoint) -> None:
        """Keep the connections to ``endpoint``."""
        missing = self._missing[endpoint.address]
        while True:
            if sum(not self._leaving(c) for c in endpoint.connections) >= self._settings.connections:
                with anyio.move_on_after(self._settings.ping_interval):
                    await missing.wait()
                missing = self._missing[endpoint.address] = anyio.Event()
                for connection in tuple(endpoint.connections):
                    connection.check(self._settings.stall_timeout)
                    if connection.retired:
                        self._note()
                        self._close_if_done(connection)
                continue
            try:
                connection = await self._connect(endpoint)
            except AgentError as exc:
                await anyio.sleep(self._not_connected(endpoint, f"{endpoint.address}: {exc}"))
            except Exception as exc:
                # Whatever it was, nobody else would ever try again.
                logger.exception("agent %r at %s", self._peer.agent_id, endpoint.address)
                await anyio.sleep(self._not_connected(endpoint, f"{endpoint.address}: {type(exc).__name__}"))
            else:
                self._connected(endpoint, connection)
                if self._leaving(connection):
                    # It has said so before it was asked anything: don't try that again at once.
                    await anyio.sleep(endpoint.not_connected(f"{endpoint.address}: it is draining"))

    @staticmethod
    def _leaving(connection: Connection) -> bool:
        return connection.retired or connection.health is HealthState.DRAINING

    def _connected(self, endpoint: Endpoint, connection: Connection) -> None:
        if endpoint.down or not endpoint.connections:
            logger.info("agent %r at %s: connected", self._peer.agent_id, endpoint.address)
        endpoint.connected()
        endpoint.connections.append(connection)
        self._where[connection] = endpoint
        self._note()
        self._settle()

    def _not_connected(self, endpoint: Endpoint, fault: str) -> float:
        if endpoint.fault != fault and not endpoint.connections:
            logger.warning("agent %r: %s; trying again", self._peer.agent_id, fault)
        backoff = endpoint.not_connected(fault)
        self._settle()
        return backoff

    async def _connect(self, endpoint: Endpoint) -> Connection:
        """Connect, shake hands and configure; raises :class:`AgentError`."""
        settings = self._settings
        connection = Connection(settings.framing, settings.encodings, self, max_calls=settings.max_calls_per_connection)
        try:
            with CancelScope(deadline=anyio.current_time() + settings.connect_timeout) as scope:
                wire = await _connect(endpoint.address, connection, settings.tls)
                await connection.shake_hands(wire, proxy_id=self._peer.agent_id, config=self._peer.config)
            if scope.cancelled_caught:
                raise AgentConnectionError(_no_handshake(settings))
            self._check_events(connection)
            await self._configure(connection)
        except BaseException:
            connection.fail("never used")
            raise
        return connection

    def _check_events(self, connection: Connection) -> None:
        lacking = (self._peer.events or frozenset()) - connection.events
        if lacking:
            supported = ", ".join(sorted(connection.events)) or "none"
            raise AgentConnectionError(
                f"it does not support {', '.join(sorted(lacking))}, which its events name; it supports {supported}"
            )

    async def _configure(self, connection: Connection) -> None:
        wanted = self._peer.events is None or EventType.CONFIGURE in self._peer.events or self._peer.config is not None
        if self._settings.framing is Framing.ENVELOPE:
            wanted = self._peer.config is not None or EventType.CONFIGURE in (self._peer.events or ())
        if wanted:
            await self._hand_over(connection, self._peer.config)

    async def _hand_over(self, connection: Connection, config: Any) -> None:
        connection.reserve()
        event = ConfigureEvent(agent_id=self._peer.agent_id, config=config)
        try:
            answer = await connection.call(event, time.monotonic() + _CONFIGURE_TIMEOUT)
        except AgentTimeoutError as exc:
            raise AgentError(f"it has not taken its configuration within {_CONFIGURE_TIMEOUT:g} s") from exc
        if isinstance(answer, Acknowledgement):
            if not answer.success:
                raise AgentError(f"it refused its configuration: {answer.error or 'no reason given'}")
        elif not getattr(answer, "is_allow", False):
            raise AgentError("it refused its configuration")

    async def push_config(self, config: Any) -> None:
        """Hand ``config`` to each instance of the agent; raises :class:`AgentError` when one doesn't take it."""
        told = False
        for endpoint in self._endpoints:
            connection = next((c for c in endpoint.connections if c.alive), None)
            if connection is None:
                continue
            if connection.capabilities is not None and EventType.CONFIGURE not in connection.events:
                raise AgentError(f"{endpoint.address}: it takes no configuration")
            try:
                await self._hand_over(connection, config)
            except AgentError as exc:
                raise AgentError(f"{endpoint.address}: {exc}") from exc
            told = True
        if not told:
            raise AgentConnectionError(self.fault or "there is no connection to it")

    # End

    async def aclose(self) -> None:
        """Make no more connections, wait for the calls under way as long as the settings say, and close."""
        self._closing = True
        for keeper in self._keepers:
            keeper.cancel()
        self._settle()
        try:
            with CancelScope(deadline=anyio.current_time() + self._settings.drain_timeout):
                while any(connection.waited_for for connection in self._where):  # noqa: ASYNC110 - only while closing
                    await anyio.sleep(0.01)
        finally:
            connections = tuple(self._where)
            for connection in connections:
                connection.cancel_all(CancelReason.SHUTDOWN)
                connection.close()
            with anyio.move_on_after(1.0, shield=True):
                for keeper in self._keepers:
                    await keeper.wait()
                for connection in connections:
                    await connection.wait_closed()
            for connection in connections:
                connection.fail("closed")
            with CancelScope(shield=True):
                for connection in connections:
                    await connection.wait_closed()


async def _connect(address: Address, connection: Connection, tls: ssl.SSLContext | None) -> Any:
    if address.path is not None:
        _check_socket(address.path)
    return await connect(address, connection, tls)


def _check_socket(path: str) -> None:
    """A clearer word than the system's on a path that leads to something else."""
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        raise AgentConnectionError(f"{type(exc).__name__}: {exc.strerror}") from exc
    if not stat.S_ISSOCK(mode):
        raise AgentConnectionError("is not a socket")


def _no_handshake(settings: Settings) -> str:
    fault = f"not connected within {settings.connect_timeout:g} s"
    if settings.framing is Framing.V2:
        fault += ", handshake included; an agent of the older kits needs framing='envelope'"
    return fault
