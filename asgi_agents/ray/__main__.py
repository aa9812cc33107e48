"""Deploy an agent on Ray Serve: ``python -m asgi_agents.ray waf:Waf``."""

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

from ..agent import Agent
from ..errors import ConfigurationError
from ..terminal.arguments import seconds, whole
from ..terminal.loading import MistakeError, find_agent, find_from_here
from ..transports.ray_serve import require_ray
from .batching import Batching
from .deployment import SERVICER_FUNCTION, agent_deployment

_MISTAKE: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy the agent, and keep a cluster that was started for it until told to stop; the exit code."""
    options = _parser().parse_args(arguments)
    find_from_here()
    try:
        require_ray("asgi_agents.ray")
        _deploy(options)
    except (MistakeError, ConfigurationError) as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return _MISTAKE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asgi_agents.ray", description="Deploy an agent on Ray Serve.", allow_abbrev=False
    )
    parser.add_argument("agent", help="module:name of an Agent's class, or of a function that makes one")
    parser.add_argument("--name", help="of the deployment (the class or function's)")
    parser.add_argument("--app", default="guards", help="the application that it is (guards)")
    parser.add_argument("--config", metavar="JSON", help="what each replica's agent is configured with")
    parser.add_argument("--replicas", metavar="N", help="how many, or MIN:MAX, as many as are needed (1)", default="1")
    parser.add_argument(
        "--max-ongoing-requests", type=whole, default=100, metavar="N", help="calls at a time, per replica (100)"
    )
    parser.add_argument("--batch", type=whole, metavar="N", help="judge up to N inspections at once")
    parser.add_argument(
        "--batch-wait", type=seconds, default=0.005, metavar="S", help="seconds that the first waits for more (0.005)"
    )
    parser.add_argument("--route", metavar="/PREFIX", help="serve it over HTTP too, through Serve's proxy")
    parser.add_argument(
        "--grpc",
        type=whole,
        metavar="PORT",
        help="serve it over gRPC too, through Serve's proxy, which listens on all addresses; needs --route",
    )
    parser.add_argument("--envoy", action="store_true", help="let Envoy ask it, by way of --grpc")
    parser.add_argument(
        "--working-dir",
        metavar="DIR",
        help="hand this directory to the replicas, where their machines don't have the module; all files in it",
    )
    parser.add_argument(
        "--address", default="auto", help="of the cluster (auto: the one that runs here); local: start one, and stay"
    )
    return parser


def _deploy(options: argparse.Namespace) -> None:
    agent = find_agent(options.agent)
    if isinstance(agent, Agent):
        raise MistakeError(f"{options.agent!r} is an Agent, expected what makes one, for each replica: its class")
    if options.grpc is not None and options.route is None:
        raise MistakeError("--grpc needs --route: Serve's proxies know applications that have a route, and no others")
    application = agent_deployment(
        agent,  # type: ignore[arg-type]
        name=options.name,
        config=None if options.config is None else _json(options.config),
        max_ongoing_requests=options.max_ongoing_requests,
        batching=None if options.batch is None else Batching(max_size=options.batch, wait=options.batch_wait),
        envoy=options.envoy,
        **_replicas(options.replicas),
    )
    import ray
    from ray import serve

    local = options.address == "local"
    stopped = threading.Event()
    if local:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
    try:
        environment = None if options.working_dir is None else {"working_dir": options.working_dir}
        ray.init(address=options.address, log_to_driver=False, runtime_env=environment)
    except ValueError as exc:
        raise MistakeError(f"Ray refuses: {exc}") from exc
    except ConnectionError as exc:
        raise MistakeError(f"--address: no Ray cluster at {options.address!r}; --address local starts one") from exc
    try:
        if options.grpc is not None:
            _start_proxy(options.grpc)
        try:
            serve.run(application, name=options.app, route_prefix=options.route)
        except RuntimeError as exc:
            raise MistakeError(f"it can't be deployed: {exc}") from exc
        deployment = serve.status().applications[options.app].deployments
        print(f"deployed: ray://{options.app}/{next(iter(deployment))}", flush=True)  # noqa: T201
        if local:
            stopped.wait()
            serve.shutdown()
    finally:
        ray.shutdown()


def _start_proxy(port: int) -> None:
    """Have Serve listen for gRPC. It takes options when it starts, and never again."""
    import ray
    from ray import serve

    serve.start(grpc_options={"port": port, "grpc_servicer_functions": [SERVICER_FUNCTION]})
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    found = ray.get(controller.get_grpc_config.remote())
    if SERVICER_FUNCTION not in found.grpc_servicer_functions or found.port != port:
        raise MistakeError(
            "--grpc: Serve runs there already, with other gRPC options. It takes them when it starts: serve start "
            f"--grpc-port {port} --grpc-servicer-functions {SERVICER_FUNCTION}"
        )


def _json(given: str) -> Any:
    try:
        return json.loads(given)
    except ValueError as exc:
        raise MistakeError(f"--config: not JSON: {exc}") from exc


def _replicas(given: str) -> dict[str, Any]:
    least, separator, most = given.partition(":")
    try:
        low, high = int(least), int(most or least)
    except ValueError:
        low, high = -1, -1
    if not 0 < low <= high:
        raise MistakeError(f"--replicas: {given!r}, expected a whole number of at least 1, or two: 1:4")
    if not separator:
        return {"num_replicas": low}
    return {"autoscaling_config": {"min_replicas": low, "max_replicas": high}}


if __name__ == "__main__":
    sys.exit(main())
