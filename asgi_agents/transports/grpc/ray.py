"""``protocol="ray"``: a deployment of ``asgi_agents.ray``, from outside of its cluster: through Ray Serve's gRPC proxy.

What is asked and replied is what crosses by a deployment's handle. Nothing here needs Ray.
"""

import re
from hashlib import blake2b
from typing import Any, Final

import grpc

from ...errors import AgentConnectionError, AgentUnavailableError, ConfigurationError, EventTooLargeError
from ...protocol import EventType
from ..ray_client import RayClient
from .channel import Channels
from .settings import GrpcSettings
from .status import EndedWithStatusError

SERVICE: Final = "asgi_agents.ray.v1.Deployment"
METHOD: Final = f"/{SERVICE}/Ask"
#: Serve's proxy finds the deployment by this metadata. Without it, or where there is one application only, it passes
#: calls on to that, whatever its name: the replica compares the names.
APPLICATION: Final = "application"
#: What Serve's router chooses the replica by.
SESSION: Final = "session_id"

_PLAIN: Final = re.compile(r"[!-~]{1,128}")
_IN_WORDS: Final = {
    grpc.StatusCode.NOT_FOUND: (AgentConnectionError, "Ray Serve has no such application with a route"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (AgentUnavailableError, "the deployment's queue is full"),
}


class ProxyLink:
    """A :class:`~..ray_client.RayLink`: calls through Serve's gRPC proxy, which cancels them at the replica too."""

    def __init__(self, settings: GrpcSettings) -> None:
        self._settings = settings
        self._channels = Channels(settings)

    async def ask(self, data: bytes, session_id: str, deadline: float) -> object:
        if len(data) > self._settings.max_event_bytes:
            raise EventTooLargeError(f"the event has more than max_event_bytes={self._settings.max_event_bytes}")
        metadata = self._settings.metadata.pairs
        if session_id:
            metadata = (*metadata, (SESSION, as_metadata(session_id)))
        channel = await self._channels.get()
        try:
            return await channel.unary(METHOD, data, deadline=deadline, metadata=metadata)
        except EndedWithStatusError as exc:
            known = _IN_WORDS.get(exc.code)
            if known is None:
                raise
            kind, words = known
            raise kind(words) from exc

    async def aclose(self) -> None:
        await self._channels.aclose()

    async def retire(self) -> None:
        await self._channels.aclose_everywhere()


def as_metadata(session_id: str) -> str:
    """The id, or something in its place that metadata can carry."""
    return (
        session_id
        if _PLAIN.fullmatch(session_id)
        else blake2b(session_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    )


class RayProtocol:
    """A :class:`~.transport.GrpcProtocol`."""

    carries = frozenset(EventType)
    learns_events = True
    events: frozenset[EventType] | None = None
    several = False

    def bind(
        self,
        settings: GrpcSettings,
        agent_id: str,
        *,
        events: frozenset[EventType] | None,
        config: Any,
        max_concurrent_calls: int,
    ) -> RayClient:
        """:raises ConfigurationError: without the name of the application, or with a configuration."""
        where = f"AgentConfig({agent_id!r})"
        if APPLICATION not in dict(settings.metadata.pairs):
            raise ConfigurationError(
                f"{where}: protocol='ray' without an application, expected metadata={{'application': …}}"
            )
        if config is not None:
            raise ConfigurationError(
                f"{where}: config, which Serve's proxy does not carry to replicas; expected agent_deployment(config=…)"
            )
        return RayClient(ProxyLink(settings), settings.where, events, config)


PROTOCOL: Final = RayProtocol()
