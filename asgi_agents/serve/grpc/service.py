"""What is served over gRPC: services, and the calls that come to them. Messages are bytes: this knows no protocol."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, Protocol, TypeVar

import anyio
from anyio import CancelScope

from ...errors import AgentConnectionError
from ...transports.grpc.channel import BidiStream, Metadata, StreamWire
from ...transports.wire import Receiver

logger: Final = logging.getLogger("asgi_agents.serve")

T = TypeVar("T")

UnaryMethod = Callable[[bytes, "Rpc"], Awaitable[bytes]]
StreamMethod = Callable[["ServedRpc"], Awaitable[None]]


class StatusError(Exception):
    """Raised by a method: its call ends with this status.

    :param code: the name of a status of gRPC's, such as ``"UNAVAILABLE"``.
    :param details: what the client is told in words.
    """

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


def status_of(exc: BaseException) -> StatusError:
    """The status that a call ends with whose method has raised ``exc``. What nobody has foreseen is logged."""
    if isinstance(exc, StatusError):
        return exc
    if isinstance(exc, anyio.BrokenResourceError | AgentConnectionError):
        return StatusError("CANCELLED", "the client has gone")
    logger.error("a method has failed", exc_info=exc)
    return StatusError("INTERNAL", "the method has failed")


class Rpc(Protocol):
    """What is known of a call.

    :ivar metadata: what came with it, names in lower case.
    :ivar peer: where it came from, as gRPC's library says it.
    """

    metadata: Metadata
    peer: str


class ServedRpc(Rpc, Protocol):
    """A call with messages in both directions."""

    def wire(self, receiver: Receiver, *, half_open: bool = False) -> StreamWire:
        """Carry the messages. To be called once. The call is over when its method returns.

        :param half_open: the client may go on to read when it sends no more, as it does in most protocols. Otherwise it
            is gone then.
        """
        ...

    def stream(self) -> BidiStream:
        """The same, for tasks that send and receive."""
        return BidiStream(lambda receiver: self.wire(receiver, half_open=True))


class GrpcService:
    """A service. Its methods run on the event loop on which :func:`serve_grpc` was called.

    :ivar name: ``package.Service``.
    :ivar unary: methods that take one message and return one, by name.
    :ivar streams: methods with messages in both directions, by name.
    """

    name: str
    unary: Mapping[str, UnaryMethod] = {}
    streams: Mapping[str, StreamMethod] = {}

    def serving(self) -> AbstractAsyncContextManager[object]:
        """Around the time for which it is served."""
        return nullcontext()

    async def drain(self) -> None:
        """The server shuts down: end calls that don't end by themselves once they are owed nothing.

        New calls are refused from now on. It is cancelled when the time for that is over.
        """


class Beginnings:
    """Streams that wait for their first message. They need not wait any more once the server shuts down.

    :param patience: seconds that one has then, because the message may be on its way. None of it was judged, which some
        clients take for a permission.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._waiting: set[CancelScope] = set()
        self._draining = False

    async def wait_for(self, receive: Callable[[], Awaitable[T]]) -> T:
        """Await ``receive()``.

        :raises StatusError: the server shuts down, and nothing has come.
        """
        with CancelScope() as scope:
            self._waiting.add(scope)
            try:
                if self._draining:
                    self._hurry(scope)
                return await receive()
            finally:
                self._waiting.discard(scope)
        raise StatusError("UNAVAILABLE", "the server is shutting down")

    def drain(self) -> None:
        """The server shuts down."""
        self._draining = True
        for scope in self._waiting:
            self._hurry(scope)

    def _hurry(self, scope: CancelScope) -> None:
        scope.deadline = anyio.current_time() + self._patience


def values_of(metadata: Metadata, names: Sequence[str]) -> dict[str, list[str]]:
    """The entries of ``names`` that are text, as a carrier of trace context."""
    return {
        name: found
        for name in names
        if (found := [value for key, value in metadata if key == name and isinstance(value, str)])
    }
