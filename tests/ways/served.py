"""All agents of the table, each served in all ways at once, in one thread of this process."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from anyio.from_thread import start_blocking_portal
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import ConfigurationError
from asgi_agents.serve import agent_app, serve_stream
from asgi_agents.serve.grpc.ext_authz import ExtAuthzService
from asgi_agents.serve.grpc.ext_proc import ExtProcService
from asgi_agents.serve.grpc.server import serve_grpc
from tests.support.servers import serve

from .agents import Judge, Texts, agent_of
from .case import Kind

APIS: Final = ("agent", "forward_auth", "ext_authz")


@dataclass(frozen=True)
class Served:
    """Where the agent of a kind is.

    :ivar http: the URL, behind which comes the name of an API.
    """

    agent: Judge | Texts
    unix: str
    tcp: str
    http: str
    grpc: str


def nowhere(agent: Judge | Texts) -> Served:
    """Addresses where nobody listens, to see what is refused before anything is connected."""
    return Served(agent, "unix:///nowhere", "tcp://127.0.0.1:1", "http://127.0.0.1:1", "grpc://127.0.0.1:1")


@contextmanager
def serving(directory: Path) -> Iterator[dict[Kind, Served]]:
    """Serve all of them until the end of the block."""
    agents = {kind: agent_of(kind) for kind in Kind}
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        url = stack.enter_context(serve(_by_prefix(agents), lifespan="off"))

        def start(function: Any) -> str:
            future, address = portal.start_task(function)
            stack.callback(future.cancel)
            return str(address)

        yield {
            kind: Served(
                agent,
                start(partial(serve_stream, agent, f"unix://{directory}/{kind.value}")),
                start(partial(serve_stream, agent, "tcp://127.0.0.1:0")),
                f"{url}{kind.value}",
                start(partial(serve_grpc, services_of(agent), "127.0.0.1:0")),
            )
            for kind, agent in agents.items()
        }


def services_of(agent: Judge | Texts) -> list[Any]:
    """All that serve this agent over gRPC."""
    services: list[Any] = [agent]
    for make in (ExtProcService, ExtAuthzService):
        try:
            services.append(make(agent))
        except ConfigurationError:
            # The test sees to it that it is refused where it should be.
            continue
    return services


def _by_prefix(agents: dict[Kind, Judge | Texts]) -> ASGIApp:
    """An app for each agent and API, as if it were at the root: Envoy puts the path of the request behind it."""
    apps: dict[tuple[str, str], ASGIApp] = {}
    for kind, agent in agents.items():
        for api in APIS:
            try:
                apps[kind.value, api] = agent_app(agent, api=api)
            except ConfigurationError:
                continue

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        _, kind, api, *rest = scope["raw_path"].decode().split("/", 3)
        path = "/" + "".join(rest)
        await apps[kind, api]({**scope, "path": path, "raw_path": path.encode()}, receive, send)

    return dispatch
