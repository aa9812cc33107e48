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

#: Seconds within which the first message of a call has to come.
BEGIN_TIMEOUT: float = 10.0

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
    :ivar most_streams: how many calls of ``streams`` there may be at a time, whatever other services have. None: as
        many as the server takes for all of these together.
    """

    name: str
    unary: Mapping[str, UnaryMethod] = {}
    streams: Mapping[str, StreamMethod] = {}
    most_streams: int | None = None

    def serving(self) -> AbstractAsyncContextManager[object]:
        """Around the time for which it is served."""
        return nullcontext()

    async def drain(self) -> None:
        """The server shuts down: end calls that don't end by themselves once they are owed nothing.

        New calls are refused from now on. It is cancelled when the time for that is over.
        """


class Beginnings:
    """Streams that wait for their first message, for :data:`BEGIN_TIMEOUT` seconds, or until the server shuts down.

    :param patience: seconds that one has then, because the message may be on its way. None of it was judged, which some
        clients take for a permission.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._waiting: set[CancelScope] = set()
        self._draining = False

    async def wait_for(self, receive: Callable[[], Awaitable[T]]) -> T:
        """Await ``receive()``.

        :raises StatusError: nothing has come in time, or before the server has shut down.
        """
        with CancelScope(deadline=anyio.current_time() + BEGIN_TIMEOUT) as scope:
            self._waiting.add(scope)
            try:
                if self._draining:
                    self._hurry(scope)
                return await receive()
            finally:
                self._waiting.discard(scope)
        if self._draining:
            raise StatusError("UNAVAILABLE", "the server is shutting down")
        raise too_late()

    def drain(self) -> None:
        """The server shuts down."""
        self._draining = True
        for scope in self._waiting:
            self._hurry(scope)

    def _hurry(self, scope: CancelScope) -> None:
        scope.deadline = min(scope.deadline, anyio.current_time() + self._patience)


def too_late() -> StatusError:
    """What a call ends with whose first message has not come in time."""
    return StatusError("DEADLINE_EXCEEDED", f"no message has come within {BEGIN_TIMEOUT:g} s")


def values_of(metadata: Metadata, names: Sequence[str]) -> dict[str, list[str]]:
    """The entries of ``names`` that are text, as a carrier of trace context."""
    return {
        name: found
        for name in names
        if (found := [value for key, value in metadata if key == name and isinstance(value, str)])
    }
