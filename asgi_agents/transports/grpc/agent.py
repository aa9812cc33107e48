"""``protocol="agent"``: the agent protocol over gRPC. Each connection is a stream, and all streams share a channel."""

import logging
from functools import partial
from typing import Any

from anyio import create_task_group

from ...concurrency.background import BackgroundTask
from ...errors import AgentConnectionError, AgentError, reworded
from ...protocol import EventType
from ...protocol.grpc.events import CARRIED
from ...protocol.grpc.messages import PROCESS_STREAM
from ..stream.client import StreamClient
from ..stream.connection import AgentConnection
from ..stream.endpoint import Endpoint
from ..stream.pool import AgentPool
from ..wire import Wire
from .agent_connection import GrpcConnection
from .channel import Channel, open_channel
from .settings import GrpcSettings, target_of

logger = logging.getLogger("asgi_agents")


class GrpcClient(StreamClient):
    """One agent behind gRPC.

    Published agents name the first event in the handshake, whatever they implement. What ``AgentConfig.events`` names
    is asked about in any case.
    """

    kind = "grpc"

    def __init__(self, settings: GrpcSettings, agent_id: str, events: frozenset[EventType] | None, config: Any) -> None:
        super().__init__(partial(GrpcPool, settings), settings.where, agent_id, events, config)
        if events is None:
            self.hears = CARRIED
        self._not_carried: frozenset[EventType] = frozenset()

    def not_carried(self, events: frozenset[EventType]) -> None:
        """The agent supports ``events``, which gRPC does not carry."""
        new = events - self._not_carried
        if new:
            self._not_carried |= new
            logger.warning(
                "agent %r supports %s: it isn't asked about these, for its answers can't be said over gRPC",
                self.agent_id,
                ", ".join(sorted(new)),
            )


class GrpcPool(AgentPool):
    """The streams to one agent on one event loop, and the channels that they are on."""

    def __init__(self, settings: GrpcSettings, client: GrpcClient) -> None:
        self._grpc_settings = settings
        self._grpc_client = client
        self._channels: dict[Endpoint, Channel] = {}
        super().__init__(settings, client)

    def new_connection(self, endpoint: Endpoint) -> AgentConnection:
        settings = self._grpc_settings
        return GrpcConnection(
            self,
            endpoint.capacity,
            max_calls=settings.max_calls_per_connection,
            address=str(endpoint.address),
            max_event_bytes=settings.max_event_bytes,
            not_carried=self._grpc_client.not_carried,
        )

    async def open_wire(self, endpoint: Endpoint, connection: AgentConnection) -> Wire:
        channel, address = self._channels.get(endpoint), endpoint.address
        if channel is None:
            channel = self._channels[endpoint] = open_channel(
                self._grpc_settings, target_of(address), address.server_name and f"{address.server_name}:{address.port}"
            )
        assert isinstance(connection, GrpcConnection)
        wire = channel.wire(PROCESS_STREAM, connection, metadata=self._grpc_settings.metadata.pairs)
        connection.stream = wire
        return wire

    def dropped(self, endpoint: Endpoint) -> None:
        channel = self._channels.pop(endpoint, None)
        if channel is not None:
            BackgroundTask(channel.aclose)

    async def push_config(self, config: Any, *, again: bool = False) -> None:
        """A configuration travels in the handshake: begin another stream with it, and let the others come to an end.

        The client has it already, and goes back to the one before where this raises.
        """
        reached = False
        for endpoint in tuple(self.rotation.endpoints):
            old = [connection for connection in endpoint.connections if connection.alive]
            if not old:
                continue
            try:
                await self.replace(endpoint, old)
            except AgentError as exc:
                raise reworded(exc, f"{endpoint.address}: {exc}") from exc
            reached = True
        if not reached:
            raise AgentConnectionError(self.rotation.fault or "there is no connection to it")

    async def aclose(self) -> None:
        try:
            await super().aclose()
        finally:
            # All at once: each may wait for gRPC's library.
            async with create_task_group() as tasks:
                for channel in self._channels.values():
                    tasks.start_soon(channel.aclose)


class _AgentProtocol:
    """A :class:`~.transport.GrpcProtocol`."""

    # A configuration goes out in the handshake.
    carries = CARRIED | {EventType.CONFIGURE}
    learns_events = True
    events: frozenset[EventType] | None = None
    several = True

    def bind(
        self,
        settings: GrpcSettings,
        agent_id: str,
        *,
        events: frozenset[EventType] | None,
        config: Any,
        max_concurrent_calls: int,
    ) -> GrpcClient:
        return GrpcClient(settings, agent_id, events, config)


PROTOCOL = _AgentProtocol()
