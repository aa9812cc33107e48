"""A cluster of Ray's with the agent on it: ``python -m tests.benchmarks.ray_cluster SOCKET``, until it is told to stop.

It writes where it is beside the socket, and listens there once all of it is up. Without this command nothing here needs
Ray.
"""

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).parents[2]
#: The application whose deployment is ``Allow``.
APPLICATION: Final = "guards"


class Found(msgspec.Struct, frozen=True):
    """Where the cluster is."""

    address: str
    http_port: int
    grpc_port: int


def found(path: str) -> Found:
    """What the cluster with that socket has written."""
    return msgspec.json.decode(_beside(path).read_bytes(), type=Found)


def _beside(path: str) -> Path:
    return Path(path).with_suffix(".json")


def _run(path: str) -> None:
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    import ray
    from ray import serve

    from asgi_agents.ray import SERVICER_FUNCTION, agent_deployment

    from .agents import Allow

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    http_port, grpc_port = _free_ports()
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    context = ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        namespace="benchmarks",
        num_cpus=8,
        runtime_env=environment,
    )
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": http_port},
            grpc_options={"port": grpc_port, "grpc_servicer_functions": [SERVICER_FUNCTION]},
            logging_config={"enable_access_log": False, "log_level": "ERROR"},
        )
        serve.run(agent_deployment(Allow), name=APPLICATION, route_prefix="/allow")
        where = Found(context.address_info["address"], http_port, grpc_port)
        _beside(path).write_bytes(msgspec.json.encode(where))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            stopped.wait()
        serve.shutdown()
    finally:
        ray.shutdown()


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


if __name__ == "__main__":
    _run(sys.argv[1])
