"""The options of ``python -m asgi_agents.serve``."""

import argparse
import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, NamedTuple, get_args

from ..agent import Agent
from ..errors import ConfigurationError
from ..imports.extras import missing
from ..protocol.stream import Framing
from ..terminal.arguments import seconds, whole
from ..terminal.loading import MistakeError
from ..transports.wire import Address, parse_address
from .activation import is_activated
from .held import MAX_HELD_BYTES
from .http import Api


class GrpcOption(NamedTuple):
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


GRPC_OPTIONS: Final = (
    GrpcOption(
        "--grpc",
        ".grpc.agent",
        "AgentService",
        "serve the agent protocol over gRPC, as the Rust proxy calls it",
        ("configurable",),
    ),
    GrpcOption(
        "--ext-proc",
        ".grpc.ext_proc",
        "ExtProcService",
        "serve it as an external processor for Envoy",
        ("judges", "body_access"),
    ),
    GrpcOption("--ext-authz", ".grpc.ext_authz", "ExtAuthzService", "serve it as an external authorizer for Envoy"),
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
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
        help="unix:///path (not on Windows), tcp://host:port, or systemd:NAME, a socket that systemd hands over; may "
        "be repeated",
    )
    parser.add_argument(
        "--http", metavar="HOST:PORT", help="serve over HTTP as well, there or on systemd:NAME; needs uvicorn"
    )
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
    for each in GRPC_OPTIONS:
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
    parser.add_argument(
        "--no-configure", dest="configurable", action="store_false", help="refuse configurations of clients"
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
    # Where a worker writes a byte once it serves.
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    return parser


def check(options: argparse.Namespace) -> None:
    """Raise what is wrong with the options: :class:`MistakeError` or :class:`ConfigurationError`."""
    over_grpc = grpc_services(options)
    if not (options.bind or options.http or options.fd or options.http_fd or over_grpc):
        *others, last = ("--bind", "--http", *(each.option for each in GRPC_OPTIONS))
        raise MistakeError(f"nothing to bind: give {', '.join(others)} or {last}, or several of them")
    for bind in options.bind:
        if not is_activated(bind):
            parse_address("--bind", bind, also=("systemd:NAME",))
    if options.api != "agent" and not (options.http or options.http_fd):
        raise MistakeError(f"--api {options.api} is what --http serves: give --http")
    if options.no_mask_responses and options.api == "agent":
        raise MistakeError("--no-mask-responses is for gateways: give --api litellm")
    if options.http is not None and not is_activated(options.http):
        http_address(options)
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


def grpc_services(options: argparse.Namespace) -> dict[Address, list[GrpcOption]]:
    """What is served at each address."""
    # Imported here because it is not needed for the rest.
    from .grpc.binds import parse_bind

    found: dict[Address, list[GrpcOption]] = {}
    for each in GRPC_OPTIONS:
        for given in getattr(options, each.option.removeprefix("--").replace("-", "_")):
            if is_activated(given):
                raise MistakeError(
                    f"{each.option}: {given!r}, expected unix:///path or host:port: gRPC's library listens by itself, "
                    "and takes no socket that is handed over"
                )
            found.setdefault(parse_bind(each.option, given), []).append(each)
    return found


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Not even the package that it would be in.
        return False


def http_address(options: argparse.Namespace) -> Address:
    """Where ``--http`` says."""
    try:
        return parse_address("--http", f"tcp://{options.http}")
    except ConfigurationError:
        # Not in its words, which are about an address that nobody has written.
        port = options.http.removeprefix(":")
        likely = f"127.0.0.1:{port}" if port.isascii() and port.isdecimal() else None
        right = likely or "host:port, such as 127.0.0.1:9000, or systemd:NAME"
        raise MistakeError(f"--http: {options.http!r}, expected {right}") from None
