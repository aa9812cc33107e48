"""An agent on a Unix socket or a TCP port, for the stream transport."""

import math
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED, create_task_group, move_on_after
from anyio.abc import TaskGroup, TaskStatus

from .._version import __version__
from ..agent import Agent
from ..errors import ConfigurationError
from ..protocol import EventType
from ..protocol.stream import EVENT_NUMBERS, AgentCapabilities, AgentFeatures, AgentLimits, Framing
from ..transports.wire import parse_address
from .accept import Accepting
from .connection import Service
from .framings import new_connection
from .held import MAX_HELD_BYTES
from .hooks import Hooks, require_agent, require_flag, require_positive
from .sockets import Listening, listen

# A client that is drained has this many seconds to send what it was about to. They are counted in ticks: of a time in
# which the event loop stood still, it has had nothing.
QUIET: float = 1.0
_TICK: Final = 0.02
# Seconds for the last answers to leave.
_CLOSING: Final = 1.0


async def serve_stream(
    agent: Agent,
    bind: str,
    *,
    framing: Framing | str = Framing.V2,
    max_concurrency: int = 100,
    max_body_size: int = 10 * 1024 * 1024,
    max_held_bytes: int = MAX_HELD_BYTES,
    name: str | None = None,
    configurable: bool = True,
    drain_timeout: float = 30.0,
    ssl_context: ssl.SSLContext | None = None,
    sock: socket.socket | None = None,
    shutdown: anyio.Event | None = None,
    task_status: TaskStatus[str] = TASK_STATUS_IGNORED,
) -> None:
    """Serve ``agent`` on ``unix:///path`` or ``tcp://host:port`` until cancelled, or drained by way of ``shutdown``.

    Events of a connection are answered concurrently. Hooks that never await run one after the other, as in the
    middleware's own process. A Unix socket is open to its owner and group (0660); one that nobody listens on any more
    is replaced, anything else at its path is left alone. As long as it is served, a lock file stands beside it
    (``/path.lock``), so that two servers never take it from each other. On TCP nothing authenticates the client but an
    ``ssl_context`` that does: bind it where only the middleware gets at it.

    :param framing: ``"v2"``, or ``"envelope"`` for clients that speak the older framing.
    :param max_concurrency: how many hooks may be at work at a time, over all connections; the rest wait.
    :param max_body_size: the bytes of a body that the agent takes at once.
    :param max_held_bytes: the bytes of events without an answer, and of frames that have begun, over all connections;
        of one connection's unanswered events an eighth. A client that sends more has to wait, and after 5 s it is
        refused.
    :param name: what the agent calls itself; its class' name by default.
    :param configurable: clients may configure the agent. False: a configuration is refused.
    :param drain_timeout: seconds that events under way have to end in when it is shut down.
    :param ssl_context: for TLS; tcp only.
    :param sock: a socket that listens on ``bind`` already. It is closed in the end, its file is not removed.
    :param shutdown: set it to stop listening, tell the clients so, answer what is under way, and return. Clients that
        don't name their calls, as other hosts of the protocol, are not told: their connections are closed once they are
        owed no answer, and what they send until then is refused.
    :param task_status: started with the address, in which port 0 has become the actual one.
    :raises ConfigurationError: for arguments that can't work.
    :raises OSError: for an address that is in use or can't be had.
    """
    require_agent("serve_stream", agent)
    address = parse_address("serve_stream: bind", bind)
    if framing not in list(Framing):
        raise ConfigurationError(
            f"serve_stream: framing={framing!r}, expected {' or '.join(map(repr, map(str, Framing)))}"
        )
    require_positive("serve_stream", "max_concurrency", max_concurrency)
    require_positive("serve_stream", "max_body_size", max_body_size)
    require_positive("serve_stream", "max_held_bytes", max_held_bytes)
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigurationError(f"serve_stream: name={name!r}, expected text or None")
    require_flag("serve_stream", "configurable", configurable)
    if not isinstance(drain_timeout, int | float) or not 0 <= drain_timeout < math.inf:
        raise ConfigurationError(f"serve_stream: drain_timeout={drain_timeout!r}, expected seconds")
    if ssl_context is not None:
        if address.path is not None or not isinstance(ssl_context, ssl.SSLContext):
            raise ConfigurationError("serve_stream: ssl_context, expected an ssl.SSLContext, and a tcp:// address")
        _require_server(ssl_context)
    if sock is not None and not (isinstance(sock, socket.socket) and _is_listening(sock)):
        raise ConfigurationError(f"serve_stream: sock={sock!r}, expected a listening stream socket")

    hooks = Hooks(agent, name, configurable=configurable)
    capabilities = capabilities_of(hooks, max_concurrency, max_body_size)
    listening = await listen(address) if sock is None else [Listening(sock)]
    try:
        async with create_task_group() as tasks:
            service = Service(
                hooks, Framing(framing), capabilities, max_concurrency, max_body_size, tasks, max_held_bytes
            )
            try:
                await _serve(
                    service, tasks, listening, ssl_context, drain_timeout, shutdown, task_status, alone=sock is None
                )
            finally:
                await service.stop()
                tasks.cancel_scope.cancel()
    finally:
        for each in listening:
            each.close()


async def _serve(
    service: Service,
    tasks: TaskGroup,
    listening: Sequence[Listening],
    tls: ssl.SSLContext | None,
    drain_timeout: float,
    shutdown: anyio.Event | None,
    task_status: TaskStatus[str],
    *,
    alone: bool,
) -> None:
    client = partial(new_connection, service)
    accepting = [Accepting(each.sock, tls, client, tasks, alone=alone) for each in listening]
    try:
        task_status.started(listening[0].address)
        await (anyio.sleep_forever() if shutdown is None else shutdown.wait())
    finally:
        for each, door in zip(listening, accepting, strict=True):
            # The file first: whoever sees the socket refuse may replace it.
            each.unlink()
            door.stop()
    service.drain()
    with move_on_after(drain_timeout):
        for door in accepting:
            await door.settled()
        await drained(service)
    # What is still at work is cancelled when its connection is gone. It gets no answer: the client, which has not given
    # it up, would take any for the agent's.
    for connection in list(service.connections):
        connection.close()
    with move_on_after(_CLOSING):
        for connection in list(service.connections):
            await connection.wait_closed()


async def drained(service: Service) -> None:
    """Wait until a service that drains owes no answers, and its clients have sent what they were about to."""
    quiet = 0.0
    while service.connections and quiet < QUIET:
        heard = service.heard
        await anyio.sleep(_TICK)
        quiet = quiet + _TICK if service.heard == heard and not service.owes else 0.0


def _require_server(context: ssl.SSLContext) -> None:
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    except ssl.SSLError as exc:
        raise ConfigurationError(
            "serve_stream: ssl_context is for clients, expected ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"
        ) from exc


def _is_listening(sock: socket.socket) -> bool:
    # Not on every system can a socket be asked whether it listens.
    return sock.type == socket.SOCK_STREAM and sock.fileno() >= 0


def capabilities_of(hooks: Hooks, max_concurrency: int, max_body_size: int) -> AgentCapabilities:
    """What an agent says of itself in the handshake."""
    events = hooks.events
    return AgentCapabilities(
        agent_id=hooks.name,
        name=hooks.name,
        version=__version__,
        supported_events=sorted(EVENT_NUMBERS[event] for event in events),
        features=AgentFeatures(
            streaming_body=bool(events & {EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK}),
            websocket=EventType.WEBSOCKET_FRAME in events,
            guardrails=EventType.GUARDRAIL_INSPECT in events,
            config_push=EventType.CONFIGURE in events,
            concurrent_requests=max_concurrency,
            cancellation=True,
            health_reporting=True,
            call_ids=True,
        ),
        limits=AgentLimits(max_body_size=max_body_size, max_concurrency=max_concurrency),
    )
