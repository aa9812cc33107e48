"""Serve an agent: ``python -m asgi_agents.serve mymodule:waf --bind unix:///run/waf.sock``."""

import argparse
import asyncio
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import anyio
from anyio import create_task_group
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream
from starlette.types import ASGIApp

from ..agent import Agent
from ..errors import ConfigurationError
from ..terminal.loading import MistakeError, find_agent, find_from_here, load_agent
from ..terminal.output import complain
from ..transports.wire import Address, parse_address
from .activation import TakenSockets, is_activated, take_sockets
from .http import agent_app
from .notify import Notifier
from .options import GrpcOption, check, grpc_services, http_address, make_parser
from .sockets import Listening, describe, listen, reserve
from .stream import serve_stream
from .workers import WorkerMistake, Workers

logger: Final = logging.getLogger("asgi_agents.serve")

_MISTAKE: Final = 2
# SIGBREAK, which is Ctrl-Break, only Windows has.
_STOPPING_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)
)
# Seconds that a worker has beyond its own drain timeout.
_GRACE: Final = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit code."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    find_from_here()
    try:
        check(options)
        notifier = Notifier.from_environment(os.environ, os.getpid())
        taken = _sockets(options)
        if options.workers > 1:
            find_agent(options.agent)
            _run(_supervise, options, taken, notifier)
        else:
            _run(_serve, options, load_agent(options.agent), taken, notifier, worker=_is_worker(options))
    except (Exception, BaseExceptionGroup) as exc:
        culprit = _culprit(exc)
        if not isinstance(culprit, MistakeError | ConfigurationError | WorkerMistake | OSError):
            raise
        told = culprit.strerror if isinstance(culprit, OSError) and culprit.filename is None else None
        complain(told or str(culprit))
        return _MISTAKE
    return 0


def _sockets(options: argparse.Namespace) -> TakenSockets:
    """Those that listen already: the parent of a worker has made them, or the service manager."""
    if _is_worker(options):
        return TakenSockets(*([socket.socket(fileno=fd) for fd in fds] for fds in (options.fd, options.http_fd)))
    taken = take_sockets(os.environ, os.getpid(), options.bind, options.http)
    options.bind = [bind for bind in options.bind if not is_activated(bind)]
    options.http = None if taken.http else options.http
    return taken


# One process


def _run(function: Any, *arguments: object, worker: bool = False) -> None:
    options: dict[str, Any] = {"use_uvloop": find_spec("uvloop") is not None}
    if worker and sys.platform == "win32":
        # The default there, a proactor, can't accept on a socket on which another process' proactor does.
        options["loop_factory"] = asyncio.SelectorEventLoop
    anyio.run(function, *arguments, backend_options=options)


def _is_worker(options: argparse.Namespace) -> bool:
    return bool(options.fd or options.http_fd or options.reuse_port)


async def _serve(options: argparse.Namespace, agent: Agent, taken: TakenSockets, notifier: Notifier) -> None:
    # Before anything is bound: it may refuse the agent.
    app = _app(options, agent) if options.http is not None or taken.http else None
    shutdown = anyio.Event()
    # Of workers, the parent speaks.
    level = logging.DEBUG if _is_worker(options) else logging.INFO

    def stop() -> None:
        notifier.stopping()
        shutdown.set()

    async with create_task_group() as supervision:
        supervision.start_soon(_stop_on_signal, stop)
        async with create_task_group() as tasks:
            streams: list[tuple[str, socket.socket | None]] = [(bind, None) for bind in options.bind]
            for bind, sock in [*streams, *((describe(sock), sock) for sock in taken.streams)]:
                address = await tasks.start(
                    partial(
                        serve_stream,
                        agent,
                        bind,
                        framing=options.framing,
                        max_concurrency=options.max_concurrency,
                        max_held_bytes=options.max_held_bytes,
                        configurable=options.configurable,
                        drain_timeout=options.drain_timeout,
                        sock=sock,
                        shutdown=shutdown,
                    )
                )
                logger.log(level, "listening on %s", address)
            posts = taken.http
            if options.http is not None:
                posts = [each.sock for each in await listen(http_address(options))]
            if app is not None:
                await tasks.start(_serve_http, app, posts, options, shutdown)
                logger.log(level, "listening on %s", _describe_http(posts[0]))
            for place, services in grpc_services(options).items():
                logger.log(
                    level, "listening on %s", await tasks.start(_serve_grpc, agent, place, services, options, shutdown)
                )
            if level == logging.DEBUG:
                supervision.start_soon(_stop_without_parent, shutdown.set)
            if options.ready_fd is not None:
                _say_ready(options.ready_fd)
            notifier.ready()
            supervision.start_soon(notifier.keep_alive)
        supervision.cancel_scope.cancel()
    logger.log(level, "stopped")


def _say_ready(fd: int) -> None:
    # The parent may have heard enough.
    with suppress(BrokenPipeError):
        os.write(fd, b".")
    os.close(fd)


def _describe_http(sock: socket.socket) -> str:
    return describe(sock).replace("tcp:", "http:", 1).replace("unix:", "http+unix:", 1)


def _app(options: argparse.Namespace, agent: Agent) -> ASGIApp:
    return agent_app(
        agent,
        api=options.api,
        mask_responses=not options.no_mask_responses,
        max_concurrency=options.max_concurrency,
        configurable=options.configurable,
    )


async def _serve_http(
    app: ASGIApp,
    posts: list[socket.socket],
    options: argparse.Namespace,
    shutdown: anyio.Event,
    *,
    task_status: TaskStatus[None],
) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # They are for the whole process, not only for this.
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            task_status.started()

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=math.ceil(options.drain_timeout),
    )
    server = Server(config)

    async def stop() -> None:
        await shutdown.wait()
        server.should_exit = True

    async with create_task_group() as tasks:
        tasks.start_soon(stop)
        try:
            await server.serve(sockets=posts)
        finally:
            for sock in posts:
                sock.close()
        tasks.cancel_scope.cancel()


async def _serve_grpc(
    agent: Agent,
    address: Address,
    services: list[GrpcOption],
    options: argparse.Namespace,
    shutdown: anyio.Event,
    *,
    task_status: TaskStatus[str],
) -> None:
    from .grpc.server import serve_grpc

    await serve_grpc(
        [each.service(agent, options) for each in services],
        str(address),
        max_concurrency=options.max_concurrency,
        drain_timeout=options.drain_timeout,
        reuse_port=options.reuse_port,
        shutdown=shutdown,
        task_status=task_status,
    )


async def _stop_on_signal(stop: Callable[[], None], *, also: Callable[[int], None] = lambda signum: None) -> None:
    with _signals() as signals:
        stopping = False
        async for signum in signals:
            also(signum)
            if stopping:
                logging.shutdown()
                os._exit(128 + signum)
            stopping = True
            stop()


@contextmanager
def _signals() -> Iterator[MemoryObjectReceiveStream[int]]:
    """The signals that tell this process to stop, as they come.

    Not anyio's receiver of signals, because on Windows asyncio has no way to add a signal handler to an event loop.
    """
    loop = asyncio.get_running_loop()
    streams = anyio.create_memory_object_stream[int](math.inf)
    sending, receiving = streams

    def handle(signum: int, frame: object) -> None:
        loop.call_soon_threadsafe(pass_on, signum)

    def pass_on(signum: int) -> None:
        # One that comes in the very end is received by nobody.
        with suppress(anyio.ClosedResourceError):
            sending.send_nowait(signum)

    before = [(signum, signal.signal(signum, handle)) for signum in _STOPPING_SIGNALS]
    with sending, receiving:
        try:
            yield receiving
        finally:
            for signum, handler in before:
                signal.signal(signum, handler)


async def _stop_without_parent(stop: Callable[[], None]) -> None:
    """The parent holds the other end of standard input, and never writes."""
    loop = asyncio.get_running_loop()
    closed = anyio.Event()

    def read() -> None:
        with suppress(OSError):
            os.read(stdin, 1)
        # Nobody waits any more where the event loop is closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(closed.set)

    stdin = sys.stdin.fileno()
    # A thread, because on Windows no event loop waits for pipes. A daemon, because nothing else ends its reading.
    threading.Thread(target=read, name="asgi_agents stdin", daemon=True).start()
    await closed.wait()
    stop()


# Several


async def _supervise(options: argparse.Namespace, taken: TakenSockets, notifier: Notifier) -> None:
    streams = [Listening(sock) for sock in taken.streams]
    posts = [Listening(sock) for sock in taken.http]
    reserved: list[socket.socket] = []
    ready = _Pipe() if notifier.wanted else None
    try:
        for bind in options.bind:
            streams += await listen(parse_address("--bind", bind))
        if options.http is not None:
            posts += await listen(http_address(options))
        everything = [*streams, *posts]
        shared = [(each, reserve(address)) for address, found in grpc_services(options).items() for each in found]
        reserved += [sock for _, sock in shared]
        command = _worker_command(options, streams, posts, shared)
        inherited = [fd for each in everything for fd in each.descriptors]
        if ready is not None:
            command.append(f"--ready-fd={ready.writing}")
            inherited.append(ready.writing)
        workers = Workers(command, inherited)

        def stop() -> None:
            notifier.stopping()
            # Nobody else is let in, while the workers answer whom they have.
            for each in everything:
                each.close()
            workers.stop(options.drain_timeout + _GRACE)

        async def tell() -> None:
            if ready is not None:
                await ready.read(options.workers)
                notifier.ready()
            await notifier.keep_alive()

        async with create_task_group() as supervision:
            supervision.start_soon(partial(_stop_on_signal, stop, also=workers.signal))
            supervision.start_soon(tell)
            addresses = [each.address for each in streams]
            addresses += [_describe_http(each.sock) for each in posts]
            addresses += [describe(sock).replace("tcp:", "grpc:", 1) for sock in reserved]
            for address in addresses:
                logger.info("listening on %s with %d workers", address, options.workers)
            await workers.run(options.workers)
            supervision.cancel_scope.cancel()
    finally:
        for each in (*streams, *posts):
            each.close()
        for sock in reserved:
            sock.close()
        if ready is not None:
            ready.close()
    logger.info("stopped")


def _worker_command(
    options: argparse.Namespace,
    streams: Sequence[Listening],
    posts: Sequence[Listening],
    shared: Sequence[tuple[GrpcOption, socket.socket]],
) -> list[str]:
    command = [sys.executable, "-m", "asgi_agents.serve", options.agent]
    passed_on = ("api", "body_access", "max_concurrency", "max_held_bytes", "drain_timeout", "framing", "log_level")
    for option in passed_on:
        command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
    command += ["--no-mask-responses"] * options.no_mask_responses
    command += ["--no-configure"] * (not options.configurable)
    command += [f"--judges={','.join(options.judges)}"] if options.judges else []
    command += [f"--fd={each.sock.fileno()}" for each in streams]
    command += [f"--http-fd={each.sock.fileno()}" for each in posts]
    command += [f"{each.option}={describe(sock)}" for each, sock in shared]
    command += ["--reuse-port"] * bool(shared)
    return command


class _Pipe:
    """By which workers say that they serve, a byte each."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()

    async def read(self, count: int) -> None:
        """Wait for so many bytes."""
        while count > 0:
            await anyio.wait_readable(self._reading)
            count -= len(os.read(self._reading, count))

    def close(self) -> None:
        os.close(self._reading)
        os.close(self.writing)


def _culprit(exc: BaseException) -> BaseException:
    # Several workers may fail at the same moment, and each says the same.
    while isinstance(exc, BaseExceptionGroup) and (len(exc.exceptions) == 1 or exc.split(WorkerMistake)[1] is None):
        exc = exc.exceptions[0]
    return exc


if __name__ == "__main__":
    sys.exit(main())
