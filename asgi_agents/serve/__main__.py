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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, NamedTuple, get_args

import anyio
from anyio import create_task_group
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream
from starlette.types import ASGIApp

from ..agent import Agent
from ..errors import ConfigurationError
from ..imports.extras import missing
from ..protocol.stream import Framing
from ..terminal.arguments import seconds, whole
from ..terminal.loading import MistakeError, find_agent, find_from_here, load_agent
from ..terminal.output import complain
from ..transports.wire import Address, parse_address
from .held import MAX_HELD_BYTES
from .http import Api, agent_app
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
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    find_from_here()
    try:
        _check(options)
        if options.workers > 1:
            find_agent(options.agent)
            _run(_supervise, options)
        else:
            _run(_serve, options, load_agent(options.agent), worker=_is_worker(options))
    except (Exception, BaseExceptionGroup) as exc:
        culprit = _culprit(exc)
        if not isinstance(culprit, MistakeError | ConfigurationError | WorkerMistake | OSError):
            raise
        told = culprit.strerror if isinstance(culprit, OSError) and culprit.filename is None else None
        complain(told or str(culprit))
        return _MISTAKE
    return 0


def _check(options: argparse.Namespace) -> None:
    over_grpc = _grpc_services(options)
    if not (options.bind or options.http or options.fd or options.http_fd or over_grpc):
        raise MistakeError("nothing to bind: give --bind, --http or --grpc, or several of them")
    for bind in options.bind:
        parse_address("--bind", bind)
    if options.api != "agent" and not (options.http or options.http_fd):
        raise MistakeError(f"--api {options.api} is what --http serves: give --http")
    if options.no_mask_responses and options.api == "agent":
        raise MistakeError("--no-mask-responses is for gateways: give --api litellm")
    if options.http is not None:
        _http_address(options)
    if (options.http or options.http_fd) and find_spec("uvicorn") is None:
        raise MistakeError(missing("--http", "serve", "uvicorn"))
    if over_grpc:
        for name in ("grpc", "google.protobuf"):
            if not _is_there(name):
                option = next(iter(over_grpc.values()))[0].option
                raise MistakeError(missing(option, "grpc", name))
        # Or else gRPC's library writes to standard error whatever happens to connections.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        for address, services in over_grpc.items():
            if options.workers > 1 and address.path is not None:
                raise MistakeError(
                    f"{services[0].option}: {address}, expected host:port where there are several workers: they share "
                    "ports, and no Unix sockets"
                )


class _GrpcOption(NamedTuple):
    """An option that serves the agent over gRPC, and the class that does it: made with the agent and its limits."""

    option: str
    module: str
    name: str
    help: str
    settings: tuple[str, ...] = ()

    def service(self, agent: Agent, options: argparse.Namespace) -> Any:
        """The service. What it needs is imported now, for it takes long."""
        made = getattr(import_module(self.module, __package__), self.name)
        settings = {name: getattr(options, name) for name in ("max_concurrency", "max_held_bytes", *self.settings)}
        return made(agent, **settings)


_GRPC_OPTIONS: Final = (
    _GrpcOption(
        "--grpc", ".grpc.agent", "AgentService", "serve the agent protocol over gRPC, as the Rust proxy calls it"
    ),
    _GrpcOption(
        "--ext-proc",
        ".grpc.ext_proc",
        "ExtProcService",
        "serve it as an external processor for Envoy",
        ("judges", "body_access"),
    ),
    _GrpcOption("--ext-authz", ".grpc.ext_authz", "ExtAuthzService", "serve it as an external authorizer for Envoy"),
)


def _grpc_services(options: argparse.Namespace) -> dict[Address, list[_GrpcOption]]:
    """What is served at each address."""
    # Imported here because it is not needed for the rest.
    from .grpc.binds import parse_bind

    found: dict[Address, list[_GrpcOption]] = {}
    for each in _GRPC_OPTIONS:
        for given in getattr(options, each.option.removeprefix("--").replace("-", "_")):
            found.setdefault(parse_bind(each.option, given), []).append(each)
    return found


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Not even the package that it would be in.
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asgi_agents.serve",
        description="Serve an agent on Unix sockets, TCP and HTTP.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "agent", help="module:name of an Agent, or of what makes one when it's called without arguments"
    )
    parser.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="unix:///path (not on Windows) or tcp://host:port; may be repeated",
    )
    parser.add_argument("--http", metavar="HOST:PORT", help="serve over HTTP as well; needs uvicorn")
    parser.add_argument(
        "--api",
        choices=get_args(Api),
        default="agent",
        help="whom --http answers: middlewares of this package, LiteLLM and agentgateway, or reverse proxies (agent)",
    )
    parser.add_argument(
        "--no-mask-responses",
        action="store_true",
        help="with --api litellm: block answers in which something would be redacted",
    )
    for each in _GRPC_OPTIONS:
        parser.add_argument(
            each.option,
            action="append",
            default=[],
            metavar="ADDRESS",
            help=f"{each.help}: unix:///path (not on Windows) or host:port; may be repeated; needs grpcio",
        )
    parser.add_argument(
        "--judges",
        type=lambda given: given.split(","),
        metavar="KINDS",
        help="--ext-proc: the kinds of text that a text guardrail judges, such as output,tool_call (all)",
    )
    parser.add_argument(
        "--body-access", choices=["read", "write"], default="write", help="--ext-proc: may it change bodies (write)"
    )
    parser.add_argument("--workers", type=whole, default=1, metavar="N", help="processes (1)")
    parser.add_argument(
        "--max-concurrency", type=whole, default=100, metavar="N", help="hooks at work at a time, per address (100)"
    )
    parser.add_argument(
        "--max-held-bytes",
        type=whole,
        default=MAX_HELD_BYTES,
        metavar="N",
        help=f"bytes of events without an answer, per address ({MAX_HELD_BYTES})",
    )
    parser.add_argument(
        "--drain-timeout", type=seconds, default=30.0, metavar="S", help="seconds for calls under way at the end (30)"
    )
    parser.add_argument("--framing", choices=[str(framing) for framing in Framing], default=str(Framing.V2))
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error", "critical"], default="info")
    # Sockets that the parent of a worker has bound.
    parser.add_argument("--fd", action="append", default=[], type=int, help=argparse.SUPPRESS)
    parser.add_argument("--http-fd", action="append", default=[], type=int, help=argparse.SUPPRESS)
    # Whether this is a worker that shares its ports with others.
    parser.add_argument("--reuse-port", action="store_true", help=argparse.SUPPRESS)
    return parser


# One process


def _run(function: Any, *arguments: object, worker: bool = False) -> None:
    options: dict[str, Any] = {"use_uvloop": find_spec("uvloop") is not None}
    if worker and sys.platform == "win32":
        # The default there, a proactor, can't accept on a socket on which another process' proactor does.
        options["loop_factory"] = asyncio.SelectorEventLoop
    anyio.run(function, *arguments, backend_options=options)


def _is_worker(options: argparse.Namespace) -> bool:
    return bool(options.fd or options.http_fd or options.reuse_port)


async def _serve(options: argparse.Namespace, agent: Agent) -> None:
    # Before anything is bound: it may refuse the agent.
    app = _app(options, agent) if options.http is not None or options.http_fd else None
    shutdown = anyio.Event()
    # Of workers, the parent speaks.
    level = logging.DEBUG if _is_worker(options) else logging.INFO
    async with create_task_group() as supervision:
        supervision.start_soon(_stop_on_signal, shutdown.set)
        async with create_task_group() as tasks:
            async for bind, sock in _streams(options):
                address = await tasks.start(
                    partial(
                        serve_stream,
                        agent,
                        bind,
                        framing=options.framing,
                        max_concurrency=options.max_concurrency,
                        max_held_bytes=options.max_held_bytes,
                        drain_timeout=options.drain_timeout,
                        sock=sock,
                        shutdown=shutdown,
                    )
                )
                logger.log(level, "listening on %s", address)
            posts = [socket.socket(fileno=fd) for fd in options.http_fd]
            if options.http is not None:
                posts = [each.sock for each in await listen(_http_address(options))]
            if app is not None:
                await tasks.start(_serve_http, app, posts, options, shutdown)
                logger.log(level, "listening on %s", describe(posts[0]).replace("tcp:", "http:", 1))
            for place, services in _grpc_services(options).items():
                logger.log(
                    level, "listening on %s", await tasks.start(_serve_grpc, agent, place, services, options, shutdown)
                )
            if level == logging.DEBUG:
                supervision.start_soon(_stop_without_parent, shutdown.set)
        supervision.cancel_scope.cancel()
    logger.log(level, "stopped")


async def _streams(options: argparse.Namespace) -> AsyncIterator[tuple[str, socket.socket | None]]:
    for bind in options.bind:
        yield bind, None
    for fd in options.fd:
        sock = socket.socket(fileno=fd)
        yield describe(sock), sock


def _http_address(options: argparse.Namespace) -> Address:
    try:
        return parse_address("--http", f"tcp://{options.http}")
    except ConfigurationError:
        # Not in its words, which are about an address that nobody has written.
        port = options.http.removeprefix(":")
        right = f"127.0.0.1:{port}" if port.isascii() and port.isdecimal() else "host:port, such as 127.0.0.1:9000"
        raise MistakeError(f"--http: {options.http!r}, expected {right}") from None


def _app(options: argparse.Namespace, agent: Agent) -> ASGIApp:
    return agent_app(
        agent,
        api=options.api,
        mask_responses=not options.no_mask_responses,
        max_concurrency=options.max_concurrency,
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
    services: list[_GrpcOption],
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


async def _supervise(options: argparse.Namespace) -> None:
    streams: list[Listening] = []
    posts: list[Listening] = []
    reserved: list[socket.socket] = []
    try:
        for bind in options.bind:
            streams += await listen(parse_address("--bind", bind))
        if options.http is not None:
            posts += await listen(_http_address(options))
        everything = [*streams, *posts]
        shared = [(each, reserve(address)) for address, found in _grpc_services(options).items() for each in found]
        reserved += [sock for _, sock in shared]
        command = [sys.executable, "-m", "asgi_agents.serve", options.agent]
        passed_on = ("api", "body_access", "max_concurrency", "max_held_bytes", "drain_timeout", "framing", "log_level")
        for option in passed_on:
            command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
        command += ["--no-mask-responses"] * options.no_mask_responses
        command += [f"--judges={','.join(options.judges)}"] if options.judges else []
        command += [f"--fd={each.sock.fileno()}" for each in streams]
        command += [f"--http-fd={each.sock.fileno()}" for each in posts]
        command += [f"{each.option}={describe(sock)}" for each, sock in shared]
        command += ["--reuse-port"] * bool(shared)
        workers = Workers(command, [fd for each in everything for fd in each.descriptors])

        def stop() -> None:
            # Nobody else is let in, while the workers answer whom they have.
            for each in everything:
                each.close()
            workers.stop(options.drain_timeout + _GRACE)

        async with create_task_group() as supervision:
            supervision.start_soon(partial(_stop_on_signal, stop, also=workers.signal))
            for each in streams:
                logger.info("listening on %s with %d workers", each.address, options.workers)
            for each in posts:
                address = each.address.replace("tcp:", "http:", 1)
                logger.info("listening on %s with %d workers", address, options.workers)
            for _, sock in shared:
                address = describe(sock).replace("tcp:", "grpc:", 1)
                logger.info("listening on %s with %d workers", address, options.workers)
            await workers.run(options.workers)
            supervision.cancel_scope.cancel()
    finally:
        for each in (*streams, *posts):
            each.close()
        for sock in reserved:
            sock.close()
    logger.info("stopped")


def _culprit(exc: BaseException) -> BaseException:
    # Several workers may fail at the same moment, and each says the same.
    while isinstance(exc, BaseExceptionGroup) and (len(exc.exceptions) == 1 or exc.split(WorkerMistake)[1] is None):
        exc = exc.exceptions[0]
    return exc


if __name__ == "__main__":
    sys.exit(main())
