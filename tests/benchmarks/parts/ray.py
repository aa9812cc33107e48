"""An agent that is a deployment on Ray Serve, beside the agent on a Unix socket, on the same cores.

A call by a handle passes two processes of Ray's, one through Serve's proxies passes the proxy as well.
"""

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from ..fleet import Server, serve
from ..load import Job
from ..loader import in_rounds, loader
from ..plan import Plan
from ..ratios import over
from ..report import Part
from ..variants import BARE, RAYS, UNIX_JSON
from .server import job, left_out, requests_table

# Seconds.
_WARMUP: Final = 1.0
_LEAST: Final = 1.0


def run(plan: Plan, progress: Callable[[str], None]) -> Part:
    """:raises StartError: when a server doesn't come up.
    :raises LoadError: when one doesn't answer as it should.
    """
    rays = tuple(variant for variant in RAYS if variant.available)
    if not rays:
        return Part("ray", (), {}, left_out=left_out(RAYS))
    variants = (BARE, UNIX_JSON, *rays)
    with serve(variants) as servers, loader() as load:
        jobs = {server.variant.name: _job(server, plan) for server in servers}
        found = in_rounds(load.load, jobs, plan.rounds, progress)
    rates = {name: tuple(one.rate for one in rounds) for name, rounds in found.items()}
    figures = {f"ray.{variant.name}.share": over(rates[variant.name], rates["bare"]) for variant in variants}
    figures |= {f"ray.{variant.name}.over-unix-json": over(rates[variant.name], rates["unix-json"]) for variant in rays}
    title = "On Ray Serve: requests per second with one agent that allows (without the CPU of Ray's processes)"
    return Part("ray", (requests_table(title, variants, found),), figures, left_out=left_out(RAYS))


def _job(server: Server, plan: Plan) -> Job:
    given = job(server, plan)
    # A call takes milliseconds, and the first ones longer: they begin what Ray has not begun yet.
    return replace(given, warmup=max(given.warmup, _WARMUP), seconds=max(given.seconds, _LEAST))
