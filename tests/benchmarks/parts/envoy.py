"""Envoy in front of the same app with the same check, beside the agent on a Unix socket, on the same cores.

Everything that Envoy talks to is on a Unix socket, as our agent is: the app as well as who is asked.
"""

from collections.abc import Callable

from ..fleet import serve
from ..loader import in_rounds, loader
from ..plan import Plan
from ..ratios import over
from ..report import Part
from ..variants import BARE, ENVOYS, HTTP, UNIX_JSON
from .server import job, left_out, requests_table


def run(plan: Plan, progress: Callable[[str], None]) -> Part:
    """:raises StartError: when a server doesn't come up.
    :raises LoadError: when one doesn't answer as it should.
    """
    envoys = tuple(variant for variant in ENVOYS if variant.available)
    if not envoys:
        return Part("envoy", (), {}, left_out=left_out(ENVOYS))
    variants = (BARE, UNIX_JSON, HTTP, *envoys)
    with serve(variants) as servers, loader() as load:
        jobs = {server.variant.name: job(server, plan) for server in servers}
        found = in_rounds(load.load, jobs, plan.rounds, progress)
    rates = {name: tuple(one.rate for one in rounds) for name, rounds in found.items()}
    # The better of them in each round.
    best = tuple(map(max, rates["ext-authz-1"], rates["ext-authz-2"]))
    figures = {f"envoy.{variant.name}.share": over(rates[variant.name], rates["bare"]) for variant in variants}
    figures["envoy.unix-json.over-ext-authz"] = over(rates["unix-json"], best)
    figures["envoy.http.over-ext-authz"] = over(rates["http"], best)
    title = "Beside Envoy: requests per second with one remote agent that allows"
    return Part("envoy", (requests_table(title, variants, found),), figures, left_out=left_out(ENVOYS))
