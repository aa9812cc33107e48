"""The rows: one app, bare and behind middlewares."""

from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from asgi_agents import AgentConfig, AgentMiddleware, StreamTransport

from .agents import allow
from .handwritten import AiohttpPost, HttpxPost, InProcess, UnixSocketEcho
from .variant import Peer, Variant

STREAM_AGENT: Final = Peer(
    "stream-agent", ("-m", "asgi_agents.serve", "tests.benchmarks.agents:allow", "--bind", "unix://{socket}")
)
HTTP_AGENT: Final = Peer(
    "http-agent",
    (
        *("-m", "uvicorn", "tests.benchmarks.agents:http_allow", "--uds", "{socket}"),
        *("--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--no-access-log"),
    ),
)
ECHO: Final = Peer("echo", ("-m", "tests.benchmarks.echo", "{socket}"))


async def _say_hello(request: Request) -> Response:
    return JSONResponse({"message": "Hello, world!"})


#: As small as an app of Starlette's gets.
hello: Final = Starlette(routes=[Route("/items/{id:int}", _say_hello)])


def _in_process(directory: Path) -> ASGIApp:
    return AgentMiddleware(hello, agents=[AgentConfig("allow", allow)])


def _unix_json(directory: Path) -> ASGIApp:
    return AgentMiddleware(hello, agents=[AgentConfig("allow", f"unix://{STREAM_AGENT.socket(directory)}")])


def _unix_msgpack(directory: Path) -> ASGIApp:
    transport = StreamTransport(f"unix://{STREAM_AGENT.socket(directory)}", encoding="msgpack")
    return AgentMiddleware(hello, agents=[AgentConfig("allow", transport)])


async def _pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


VARIANTS: Final = (
    Variant("bare", "no middleware", lambda directory: hello),
    Variant("in-process", "asgi_agents, agent in the process", _in_process),
    Variant(
        "unix-json",
        "asgi_agents, agent on a Unix socket, JSON",
        _unix_json,
        peers=(STREAM_AGENT,),
        needs="asgi_agents.serve.__main__",
    ),
    Variant(
        "unix-msgpack",
        "asgi_agents, agent on a Unix socket, msgpack",
        _unix_msgpack,
        peers=(STREAM_AGENT,),
        needs="asgi_agents.serve.__main__",
    ),
    Variant("by-hand-in-process", "by hand: a call in the process", lambda directory: InProcess(hello)),
    Variant(
        "by-hand-echo",
        "by hand: echo on a Unix socket, JSON, one connection",
        lambda directory: UnixSocketEcho(hello, ECHO.socket(directory)),
        peers=(ECHO,),
    ),
    Variant(
        "by-hand-aiohttp",
        "by hand: a POST with aiohttp",
        lambda directory: AiohttpPost(hello, HTTP_AGENT.socket(directory)),
        peers=(HTTP_AGENT,),
    ),
    Variant("base-http", "an empty BaseHTTPMiddleware", lambda directory: BaseHTTPMiddleware(hello, _pass_on)),
    Variant(
        "by-hand-httpx",
        "by hand: a POST with httpx.AsyncClient",
        lambda directory: HttpxPost(hello, HTTP_AGENT.socket(directory)),
        peers=(HTTP_AGENT,),
    ),
)
