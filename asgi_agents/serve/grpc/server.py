"""A gRPC server for agents: it listens, tells of its health, and is drained."""

import logging
import math
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import grpc
import grpc.aio
from anyio import TASK_STATUS_IGNORED, CancelScope, create_task_group, move_on_after
from anyio.abc import TaskStatus

from ...agent import Agent
from ...concurrency.background import on_trio
from ...errors import ConfigurationError
from ...imports.extras import from_extra
from ...transports.grpc.thread import AsyncioThread
from ...transports.grpc.transport import MAX_EVENT_BYTES
from ...transports.tls import ClientCertificate, PemFiles, server_pem_files
from ...transports.wire import Address
from ..held import MAX_HELD_BYTES
from ..hooks import require_positive
from ..sockets import claim, explained, identity, listen, remove
from .binds import parse_bind
from .calls import MethodLoop, Methods, OtherLoop, SameLoop
from .health import MAX_WATCHES, HealthService
from .service import GrpcService

if TYPE_CHECKING:
    from ..lock import Lock

logger: Final = logging.getLogger("asgi_agents.serve")

T = TypeVar("T")

# Owner and group may connect, nobody else.
_MODE: Final = 0o660
# Milliseconds between the pings of a client that is served, and between those of the server.
_CLIENTS_PINGS: Final = 5_000
_PINGS: Final = 30_000
_PING_TIMEOUT: Final = 10_000
# Calls that a client may have under way on one connection.
_STREAMS: Final = 1_000
# Calls with messages in both directions, over all clients, beside ten for each hook that may be at work.
_MORE_STREAMS: Final = 1_000
# Calls with one message and one answer, at a time, beside all streams.
_SHORT_CALLS: Final = 1_000
# Seconds for the rest to end, once the time for draining is over.
_CLOSING: Final = 1.0
_FOR_EVER: Final = 365 * 24 * 3600.0


async def serve_grpc(
    services: Agent | GrpcService | Sequence[Agent | GrpcService],
    bind: str,
    *,
    max_concurrency: int = 100,
    max_event_bytes: int = MAX_EVENT_BYTES,
    max_held_bytes: int = MAX_HELD_BYTES,
    drain_timeout: float = 30.0,
    cert: ClientCertificate | None = None,
    verify: str | None = None,
    reuse_port: bool = False,
    shutdown: anyio.Event | None = None,
    task_status: TaskStatus[str] = TASK_STATUS_IGNORED,
) -> None:
    """Serve on ``unix:///path`` or ``host:port`` until cancelled, or drained by way of ``shutdown``.

    An :class:`~asgi_agents.Agent` is served as ``zentinel.agent.v2.AgentServiceV2``, the agent protocol of the Rust
    proxy. The server answers ``grpc.health.v1`` as well. A Unix socket is open to its owner and group (0660); one that
    nobody listens on any more is replaced. On TCP nothing authenticates the client but ``verify``: bind it where only
    those get at it who may.

    On asyncio gRPC's library runs on the running event loop. On trio it runs in a thread, and hooks on trio.

    :param services: one or several, each of another name.
    :param max_concurrency: how many hooks of an agent may be at work at a time; the rest wait.
    :param max_event_bytes: a longer message ends its call. 4 MiB is what clients expect that were not told otherwise.
    :param max_held_bytes: the bytes of events of an agent without an answer; see
        :func:`~asgi_agents.serve.serve_stream`.
    :param drain_timeout: seconds that calls under way have to end in when it is shut down.
    :param cert: for TLS: the path of a PEM file, or a tuple of certificate and key. The key has no password.
    :param verify: whom clients need a certificate from, a PEM file or a directory of them; None: they need none.
    :param reuse_port: other processes may listen on the same port. Linux spreads connections over them.
    :param shutdown: set it to say that the server does not serve any more, refuse new calls, answer what is under way,
        and return.
    :param task_status: started with the address, in which port 0 has become the actual one.
    :raises ConfigurationError: for arguments that can't work.
    :raises OSError: for an address that is in use or can't be had.
    """
    address = parse_bind("serve_grpc: bind", bind)
    require_positive("serve_grpc", "max_concurrency", max_concurrency)
    require_positive("serve_grpc", "max_event_bytes", max_event_bytes)
    require_positive("serve_grpc", "max_held_bytes", max_held_bytes)
    if not isinstance(drain_timeout, int | float) or not 0 <= drain_timeout < math.inf:
        raise ConfigurationError(f"serve_grpc: drain_timeout={drain_timeout!r}, expected seconds")
    if cert is None and verify is not None:
        raise ConfigurationError("serve_grpc: verify without cert, expected both")
    tls = None if cert is None else server_pem_files("serve_grpc", verify, cert)
    given = services if isinstance(services, Sequence) else [services]
    served = [
        _agent_service(each, max_concurrency, max_held_bytes) if isinstance(each, Agent) else each for each in given
    ]
    if not served or not all(isinstance(each, GrpcService) for each in served):
        raise ConfigurationError(f"serve_grpc: services={services!r}, expected an Agent or a GrpcService, or several")
    by_name = {each.name: each for each in served}
    if len(by_name) < len(served):
        raise ConfigurationError(f"serve_grpc: services={services!r}, expected each to have a name of its own")
    health = HealthService(frozenset(by_name))
    by_name[health.name] = health
    options = [
        ("grpc.max_receive_message_length", max_event_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", int(reuse_port)),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.http2.min_ping_interval_without_data_ms", _CLIENTS_PINGS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _PINGS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT),
    ]
    socket = await _Socket.claim(address)
    async with AsyncExitStack() as stack:
        stack.callback(socket.close)
        if not reuse_port:
            await _explain(address)
        tasks = await stack.enter_async_context(create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        loop: MethodLoop = SameLoop()
        run: Callable[[Callable[[], Awaitable[Any]]], Coroutine[Any, Any, Any]] = _call
        if on_trio():
            thread = AsyncioThread.acquire()
            stack.callback(thread.release)
            loop, run = OtherLoop(thread, tasks), thread.run
        for each in by_name.values():
            await stack.enter_async_context(each.serving())
        most_streams = 10 * max_concurrency + _MORE_STREAMS
        methods = Methods(by_name, loop, most_streams=most_streams)
        # However many streams there are, there is room for calls that are over in a moment.
        listening = _Listening(methods, options, tls, most_streams + MAX_WATCHES + _SHORT_CALLS)
        stack.push_async_callback(_shielded, partial(run, listening.stop))
        port = await run(partial(listening.start, address))
        socket.bound()
        task_status.started(_describe(address, port))
        await (anyio.sleep_forever() if shutdown is None else shutdown.wait())
        health.stop()
        with move_on_after(drain_timeout):
            async with create_task_group() as draining:
                draining.start_soon(run, listening.drain)
                for each in by_name.values():
                    draining.start_soon(each.drain)


class _Listening:
    """grpc.aio's server. All of it runs in one thread, which may be another than that of :func:`serve_grpc`."""

    def __init__(
        self, methods: Methods, options: Sequence[tuple[str, Any]], tls: PemFiles | None, most_calls: int
    ) -> None:
        self._methods = methods
        self._options = options
        self._tls = tls
        self._most_calls = most_calls
        self._server: Any = None

    async def start(self, address: Address) -> int:
        """Listen; returns the port. Raises OSError where it can't, after all."""
        self._server = grpc.aio.server(
            handlers=[self._methods], options=self._options, maximum_concurrent_rpcs=self._most_calls
        )
        where = f"unix:{address.path}" if address.path is not None else _host_and_port(address)
        try:
            port = self._add_port(where)
        except RuntimeError as exc:
            raise OSError(f"{address}: {exc}") from exc
        await self._server.start()
        return port

    def _add_port(self, where: str) -> int:
        tls = self._tls
        if tls is None:
            port: int = self._server.add_insecure_port(where)
        else:
            pair = (tls.key or b"", tls.certificate or b"")
            authorities = tls.authorities or None
            credentials = grpc.ssl_server_credentials([pair], authorities, require_client_auth=authorities is not None)
            port = self._server.add_secure_port(where, credentials)
        return port

    async def drain(self) -> None:
        """Refuse new calls, and wait for the end of the others. It may be cancelled."""
        if self._server is not None:
            # Never for a time that ends. When it has, grpc.aio ends the calls itself: a `stop` that is cancelled then
            # cancels what every later one waits for, and one beside another may touch a server that this has freed.
            await self._server.stop(_FOR_EVER)

    async def stop(self) -> None:
        """Refuse new calls, and end the others. Not while :meth:`drain` waits."""
        if self._server is not None:
            await self._server.stop(None)


class _Socket:
    """The file of a Unix socket that gRPC's library makes. Does nothing for TCP."""

    def __init__(self, path: str | None, lock: "Lock | None") -> None:
        self._path = path
        self._lock = lock
        self._made: tuple[int, int] | None = None

    @classmethod
    async def claim(cls, address: Address) -> "_Socket":
        """Keep other servers from the path."""
        with explained(address):
            return cls(address.path, None if address.path is None else await claim(address))

    def bound(self) -> None:
        """The library listens there."""
        if self._path is not None:
            os.chmod(self._path, _MODE)
            self._made = identity(self._path)

    def close(self) -> None:
        """Remove the file, unless it is another's, and let others have the path."""
        if self._path is not None:
            remove(self._path, self._made)
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _agent_service(agent: Agent, max_concurrency: int, max_held_bytes: int) -> GrpcService:
    # Imported here because its messages come with it, which services of other protocols don't need.
    with from_extra("serve_grpc", "grpc", ConfigurationError):
        from .agent import AgentService

    return AgentService(agent, max_concurrency=max_concurrency, max_held_bytes=max_held_bytes)


async def _explain(address: Address) -> None:
    """Raise the OSError that says why nobody can listen there. gRPC's library says that it can't, and no more."""
    if address.path is None:
        for each in await listen(address):
            each.close()


async def _call(function: Callable[[], Awaitable[T]]) -> T:
    return await function()


async def _shielded(function: Callable[[], Awaitable[object]]) -> None:
    with CancelScope(shield=True), move_on_after(_CLOSING):
        await function()


def _host_and_port(address: Address, port: int | None = None) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port if port is None else port}"


def _describe(address: Address, port: int) -> str:
    return str(address) if address.path is not None else f"grpc://{_host_and_port(address, port)}"
