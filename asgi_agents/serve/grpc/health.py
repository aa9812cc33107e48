"""grpc.health.v1: whether the server serves, for those who balance loads and run containers.

The messages are two bytes or a name, and are written here by hand: stubs of ours would stand in the way of those that
the application may have.
"""

from enum import IntEnum
from typing import Final

import anyio

from .service import Beginnings, GrpcService, Rpc, ServedRpc, StatusError

# The first field, of wire type 2: a length, and as many bytes (https://protobuf.dev/programming-guides/encoding).
_NAME_TAG: Final = 0x0A
_STATUS_TAG: Final = 0x08
_MAX_NAME: Final = 0x7F
#: Calls of ``Watch`` at a time. They last as long as their clients like.
MAX_WATCHES: Final = 500


class ServingStatus(IntEnum):
    """What ``HealthCheckResponse`` says."""

    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class HealthService(GrpcService):
    """The health of a server, and of each of its services.

    :param names: those of the services. The empty name, which is the server's own, is known as well.
    """

    name = "grpc.health.v1.Health"
    most_streams = MAX_WATCHES

    def __init__(self, names: frozenset[str]) -> None:
        self.unary = {"Check": self._check}
        self.streams = {"Watch": self._watch}
        self._names = names | {""}
        self._draining = False
        self._changed = anyio.Event()
        self._ended = anyio.Event()
        self._beginnings = Beginnings(0.0)

    def stop(self) -> None:
        """Say that the server does not serve any more."""
        self._draining = True
        self._changed.set()
        self._changed = anyio.Event()

    async def drain(self) -> None:
        self.stop()
        self._ended.set()
        self._beginnings.drain()

    def _status(self, name: str | None) -> ServingStatus:
        if name not in self._names:
            return ServingStatus.SERVICE_UNKNOWN
        return ServingStatus.NOT_SERVING if self._draining else ServingStatus.SERVING

    async def _check(self, request: bytes, rpc: Rpc) -> bytes:
        status = self._status(_name_in(request))
        if status is ServingStatus.SERVICE_UNKNOWN:
            raise StatusError("NOT_FOUND", "no such service")
        return _response(status)

    async def _watch(self, rpc: ServedRpc) -> None:
        stream = rpc.stream()
        asked = await self._beginnings.wait_for(stream.receive)
        name = _name_in(asked or b"")
        told: ServingStatus | None = None
        while True:
            changed, status = self._changed, self._status(name)
            if status is not told:
                told = status
                await stream.send(_response(status))
            if self._ended.is_set():
                return
            await changed.wait()


def _response(status: ServingStatus) -> bytes:
    return bytes((_STATUS_TAG, status))


def _name_in(request: bytes) -> str | None:
    """The name in a ``HealthCheckRequest``; None where it is none of a service."""
    if not request:
        return ""
    if len(request) < 2 or request[0] != _NAME_TAG or request[1] > _MAX_NAME or len(request) != 2 + request[1]:
        return None
    return request[2:].decode("utf-8", "replace")
