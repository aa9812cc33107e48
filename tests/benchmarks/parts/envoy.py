"""Envoy in front of the same app with the same check, beside the agent on a Unix socket, on the same cores.

Everything that Envoy talks to is on a Unix socket, as our agent is: the app as well as who is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from ..fleet import serve
from ..load import Measurement
from ..loader import in_rounds, loader
from ..plan import Plan
from ..ratios import fastest, over
from ..report import Part
from ..variants import BARE, ENVOYS, HTTP, UNIX_JSON
from .server import job, left_out, requests_table

# grpcio's own handler, and the agent that is served, each behind Envoy with one worker.
_PROCESSORS: Final = ("ext-proc-1", "served-ext-proc-1")
# The place of the processor's CPU time in a measurement: behind Envoy's and the app's.
_PROCESSOR: Final = 2


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
        # In many short rounds: what else the machine does spoils some of them, and the fastest count.
        processors = {
            name: replace(jobs[name], warmup=plan.processor_warmup, seconds=plan.processor_seconds)
            for name in _PROCESSORS
            if name in jobs
        }
        short = in_rounds(load.load, processors, plan.processor_rounds, progress)
    rates = {name: tuple(one.rate for one in rounds) for name, rounds in found.items()}
    # The better of them in each round.
    best = tuple(map(max, rates["ext-authz-1"], rates["ext-authz-2"]))
    figures = {f"envoy.{variant.name}.share": over(rates[variant.name], rates["bare"]) for variant in variants}
    figures["envoy.unix-json.over-ext-authz"] = over(rates["unix-json"], best)
    figures["envoy.http.over-ext-authz"] = over(rates["http"], best)
    if len(short) == len(_PROCESSORS):
        figures |= processor_figures(*(short[name] for name in _PROCESSORS))
    title = "Beside Envoy: requests per second with one remote agent that allows"
    return Part("envoy", (requests_table(title, variants, found),), figures, left_out=left_out(ENVOYS))


def processor_figures(bare: Sequence[Measurement], served: Sequence[Measurement]) -> Mapping[str, tuple[float, ...]]:
    """The served agent as a share of the bare handler: by requests per second, and by CPU time for each request.

    CPU times are those of the fastest tenth of the rounds. Without the second where the system does not tell them.
    """
    figures = {
        "envoy.served-ext-proc.over-bare": over([one.rate for one in served], [one.rate for one in bare]),
    }
    times = [[_seconds_each(one) for one in rounds] for rounds in (bare, served)]
    if all(None not in found for found in times):
        bare_time, served_time = (fastest([one for one in found if one is not None]) for found in times)
        figures["envoy.served-ext-proc.cpu"] = (bare_time / served_time,)
    return figures


def _seconds_each(one: Measurement) -> float | None:
    cores = one.cpu[_PROCESSOR]
    return None if cores is None else cores / one.rate
