"""A cluster of Ray's on this machine, with Serve's proxies, and apps whose agents are on it. Imports Ray."""

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from asgi_agents import AgentConfig, AgentMiddleware
from asgi_agents.ray import SERVICER_FUNCTION

ROOT = Path(__file__).parents[2]
# Seconds; more than anything takes here on a busy machine.
PATIENCE = 60.0
CLIENTS = 50


class Nodes:
    """A cluster whose first node has Serve's controller, and room for nothing else."""

    def __init__(self, directory: Path, others: int = 2) -> None:
        self.http_port, self.grpc_port = _free_ports(2)
        #: What a test has deployed, for those that would deploy the same.
        self.deployed: object = None
        #: What agents tell of what happens to them.
        self.told = directory / "told"
        environment = {"PYTHONPATH": str(ROOT), "TOLD": str(self.told)}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        self.others = [self.cluster.add_node(num_cpus=8, resources={"agents": 8}) for _ in range(others)]
        ray.init(
            address=self.cluster.address,
            namespace="serve",
            log_to_driver=False,
            runtime_env={"env_vars": environment},
        )
        serve.start(
            http_options={"host": "127.0.0.1", "port": self.http_port, "location": "HeadOnly"},
            grpc_options={"port": self.grpc_port, "grpc_servicer_functions": [SERVICER_FUNCTION]},
        )

    def run(self, application: Any, route: str | None = None) -> None:
        self.deployed = None
        serve.run(application, name="guards", route_prefix=route)

    def close(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()


@contextmanager
def running(directory: Path, others: int = 2) -> Iterator[Nodes]:
    before = dict(os.environ)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    nodes = Nodes(directory, others)
    try:
        yield nodes
    finally:
        nodes.close()
        os.environ.clear()
        os.environ.update(before)


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on. The system gives none of these to whoever asks for any, as Ray's processes do."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))  # Serve's gRPC proxy listens there
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no port is free")


async def answer(request: Request) -> Response:
    return PlainTextResponse(b"".join([chunk async for chunk in request.stream()]) or b"served")


def guarded(*configs: AgentConfig, **settings: Any) -> AgentMiddleware:
    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    return AgentMiddleware(app, agents=configs, default_agents=[config.id for config in configs], **settings)
