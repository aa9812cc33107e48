"""Makes the connections to one endpoint, makes them again when they are lost, and checks that the agent is there."""

import logging
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import CancelScope

from ...concurrency.background import BackgroundTask
from ...errors import AgentConnectionError, AgentError, AgentTimeoutError, printable
from ...protocol import (
    Acknowledgement,
    AgentResponse,
    ConfigureEvent,
    EventType,
    check_response,
    reason_of,
)
from ...protocol.stream import MAX_HANDSHAKE_REQUEST_BYTES
from ..wire import Wire
from .connection import AgentConnection
from .endpoint import Endpoint
from .settings import PoolSettings

if TYPE_CHECKING:
    from .client import StreamClient
    from .pool import AgentPool

logger = logging.getLogger("asgi_agents")

# Seconds that an agent may take to answer its configuration.
_CONFIGURE_TIMEOUT: Final = 10.0
# Seconds between two lines that say, in different words, that an endpoint can't be reached.
_LOG_INTERVAL: Final = 60.0


class Connector:
    """Keeps ``settings.connections`` connections to ``endpoint`` until it is cancelled; on demand up to as many.

    Connections that were made on demand are kept.
    """

    def __init__(self, endpoint: Endpoint, settings: PoolSettings, client: "StreamClient", pool: "AgentPool") -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._client = client
        self._pool = pool
        self._wake = anyio.Event()
        self._failed_early = ""
        self._retired = False
        # What the log said last: None nothing yet, "" that it is connected, else why it isn't.
        self._logged: str | None = None
        self._quiet_until = 0.0
        self._tasks: tuple[BackgroundTask, ...] = (BackgroundTask(self._keep), BackgroundTask(self._check))

    def cancel(self) -> None:
        """Make no more connections."""
        for task in self._tasks:
            task.cancel()

    async def wait(self) -> None:
        """Wait until it has ended."""
        for task in self._tasks:
            await task.wait()

    def retire(self) -> None:
        """Make no more connections, and let go of those that there are when ``settings.drain_timeout`` has passed."""
        self._retired = True
        self._tasks[0].cancel()
        self._tasks = (*self._tasks, BackgroundTask(self._let_go))

    async def _let_go(self) -> None:
        await anyio.sleep(self._settings.drain_timeout)
        self._pool.endpoints.let_go(self._endpoint)

    def lost(self, connection: AgentConnection) -> None:
        """A connection is gone, or takes no new requests: another has to be made."""
        if self._endpoint.lost() and not self._failed_early:
            self._failed_early = connection.fault or connection.health.why_leaving
        if not self._endpoint.connections:
            self._log_down(f"{self._endpoint.address}: {connection.fault}")
        self._wake.set()

    def wanted(self) -> None:
        """There are more requests than connections."""
        self._wake.set()

    async def make_another(self) -> None:
        """Make a connection now, however many there are; raises :class:`AgentError`."""
        await self._made(await self._connect())

    def confirmed(self) -> None:
        """A call was answered."""
        self._log_up()

    async def _keep(self) -> None:
        endpoint = self._endpoint
        while not self._pool.closing:
            if self._failed_early:
                fault, self._failed_early = self._failed_early, ""
                await self._back_off(fault)
            elif self._has_enough():
                # An attempt on demand may have come to nothing, but there are connections.
                endpoint.fault = ""
                await self._wake.wait()
                self._wake = anyio.Event()
            else:
                await self._make_one(endpoint)

    def _has_enough(self) -> bool:
        settings = self._settings
        wanted = settings.connections
        if settings.on_demand and not self._pool.short_of_connections:
            wanted = 1
        return sum(not connection.health.leaving for connection in self._endpoint.connections) >= wanted

    async def _make_one(self, endpoint: Endpoint) -> None:
        try:
            connection = await self._connect()
        except AgentError as exc:
            await self._back_off(printable(str(exc)))
        except Exception as exc:
            # Go on whatever it was: nothing else connects to this endpoint.
            if self._logged is None or self._logged == "":
                logger.exception("agent %r at %s", self._client.agent_id, endpoint.address)
            await self._back_off(type(exc).__name__)
        else:
            await self._made(connection)

    async def _made(self, connection: AgentConnection) -> None:
        if self._pool.closing:
            # Its handshake has ended in the moment in which this task was cancelled, and nobody else knows of it.
            connection.fail("its connections are being closed")
            with CancelScope(shield=True):
                await connection.wait_closed()
            return
        endpoint = self._endpoint
        if self._retired:
            # In the moment in which it came to be.
            connection.fail("never used")
            return
        endpoint.connected()
        endpoint.connections.append(connection)
        if not endpoint.flapping:
            self._log_up()
        self._pool.made(endpoint, connection)
        if connection.health.leaving:
            # It has said that it is draining right after the handshake.
            self.lost(connection)
            self._pool.close_if_done(connection)

    async def _back_off(self, fault: str) -> None:
        fault = f"{self._endpoint.address}: {fault}"
        if not self._endpoint.connections:
            self._log_down(fault)
        delay = self._endpoint.not_connected(fault)
        self._pool.endpoints.failed(self._endpoint, reached=False)
        self._pool.settle()
        await anyio.sleep(delay)

    def _log_up(self) -> None:
        if self._logged != "":
            self._logged = ""
            logger.info("agent %r at %s: connected", self._client.agent_id, self._endpoint.address)

    def _log_down(self, fault: str) -> None:
        now = time.monotonic()
        if self._logged and (fault == self._logged or now < self._quiet_until):
            return
        self._logged = fault
        self._quiet_until = now + _LOG_INTERVAL
        logger.warning("agent %r at %s; connecting again", self._client.agent_id, fault)

    async def _check(self) -> None:
        while True:
            await anyio.sleep(self._settings.ping_interval)
            for connection in tuple(self._endpoint.connections):
                was_leaving = connection.health.leaving
                connection.check(self._settings.stall_timeout)
                if connection.alive and connection.health.leaving and not was_leaving:
                    self.lost(connection)
                if connection.alive and connection.health.leaving:
                    self._pool.close_if_done(connection)
            self._pool.checked()

    async def _connect(self) -> AgentConnection:
        """Connect, shake hands and configure; raises :class:`AgentError`."""
        settings, pool = self._settings, self._pool
        connection = pool.new_connection(self._endpoint)
        wire: Wire | None = None
        try:
            async with AsyncExitStack() as handing_over:
                with CancelScope(deadline=anyio.current_time() + settings.connect_timeout) as scope:
                    wire = await pool.open_wire(self._endpoint, connection)
                    config = await handing_over.enter_async_context(self._client.handing_over())
                    connection.overwritten = self._client.overwritten
                    await connection.shake_hands(wire, proxy_id=self._client.agent_id, config=config)
                if scope.cancelled_caught:
                    raise AgentConnectionError(
                        f"not connected within {settings.connect_timeout:g} s{pool.handshake_hint}"
                    )
                self._settle_events(connection)
                await self._configure(connection, config)
            if not connection.alive:
                raise AgentConnectionError(connection.fault)
        except BaseException:
            connection.fail("never used")
            if wire is not None:
                # The connection may not have it yet.
                wire.abort()
            raise
        return connection

    def _settle_events(self, connection: AgentConnection) -> None:
        supported, configured = connection.events, self._client.events
        if configured is None:
            if not supported - {EventType.CONFIGURE}:
                names = ", ".join(sorted(supported)) or "none"
                raise AgentConnectionError(f"it supports no events that anybody could ask it about: {names}")
        elif connection.wire_format.capabilities is not None:
            # The published Rust kit names request heads only, whatever its agent implements.
            if not configured <= supported:
                self._client.overrule(supported)
            connection.events = configured | (supported & {EventType.CONFIGURE})

    async def _configure(self, connection: AgentConnection, config: Any) -> None:
        if config is None:
            # Agents of the published kits refuse a configuration that says nothing.
            return
        # In the older framing agents don't say which events they receive, and this is taken to be one of them.
        if EventType.CONFIGURE in connection.events:
            await hand_over(connection, self._client.agent_id, config)
        elif connection.handshake.needs_configure:
            raise AgentConnectionError(
                f"its configuration is longer than the {MAX_HANDSHAKE_REQUEST_BYTES} bytes of a handshake, and it "
                "supports no configure event"
            )


async def hand_over(connection: AgentConnection, agent_id: str, config: Any) -> None:
    """Give the agent its configuration; raises :class:`AgentError` when it doesn't take it."""
    event = ConfigureEvent(agent_id=agent_id, config=config)
    connection.flow.reserve()
    try:
        answer = await connection.call(event, time.monotonic() + _CONFIGURE_TIMEOUT)
    except AgentTimeoutError as exc:
        raise AgentError(f"it has not taken its configuration within {_CONFIGURE_TIMEOUT:g} s") from exc
    if isinstance(answer, Acknowledgement):
        if not answer.success:
            raise AgentError(f"it refused its configuration: {printable(answer.error or 'no reason given')}")
    elif not isinstance(answer, AgentResponse):
        raise AgentError(f"it answered its configuration with a {type(answer).__name__}")
    elif not check_response(answer, may_mutate=True, may_set_host=True).is_allow:
        raise AgentError(f"it refused its configuration: {printable(reason_of(answer))}")
