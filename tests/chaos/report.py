"""What a run has come to, as text. No I/O."""

from collections.abc import Iterable, Mapping
from statistics import quantiles

from .checks import Violation, by_promise
from .clients import Results
from .corruption import Wire
from .schedule import KINDS, Kind

# More of them would say no more.
_SHOWN = 20


def requests(results: Results) -> str:
    """A table of what came of all requests, by path; latencies in milliseconds."""
    outcomes = sorted({outcome for counts in results.outcomes.values() for outcome in counts})
    lines = [
        f"| | {' | '.join(outcomes)} | p50 ms | p99 ms | max ms |",
        f"| --- |{' --: |' * (len(outcomes) + 3)}",
    ]
    for path, counts in sorted(results.outcomes.items()):
        cells = [str(counts[outcome] or "") for outcome in outcomes]
        lines.append(f"| `{path}` | {' | '.join([*cells, *_latencies(results.seconds[path])])} |")
    totals = [str(sum(counts[outcome] for counts in results.outcomes.values())) for outcome in outcomes]
    lines.append(f"| all | {' | '.join([*totals, '', '', ''])} |")
    return "\n".join(lines)


def _latencies(seconds: list[float]) -> list[str]:
    if len(seconds) < 2:
        return ["", "", ""]
    cuts = quantiles(seconds, n=100, method="inclusive")
    return [f"{1000 * value:.0f}" for value in (cuts[49], cuts[98], max(seconds))]


def injections(done: Mapping[Kind, int], met: Mapping[Wire, int]) -> str:
    """A table of what was injected, and how many messages the proxies' share of it has met."""
    lines = ["| injected | times | messages met |", "| --- | --: | --: |"]
    lines += [f"| {kind} | {done.get(kind, 0)} | {_met(kind, met)} |" for kind in KINDS]
    lines.append(f"| all | {sum(done.values())} | {sum(met.values())} |")
    return "\n".join(lines)


def _met(kind: Kind, met: Mapping[Wire, int]) -> str:
    return str(met.get(kind, 0)) if isinstance(kind, Wire) else ""


def violations(found: Iterable[Violation]) -> str:
    """A table of the promises and how often each was broken, and the first of the breaches."""
    found = list(found)
    lines = ["| violations of: never | |", "| --- | --: |"]
    lines += [f"| {promise} | {count} |" for promise, count in by_promise(found).items()]
    for one in found[:_SHOWN]:
        lines.append(f"{one.when:7.2f} s  {one.promise}: {one.path} {one.token}: {one.detail}")
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN} more")
    return "\n".join(lines)
