"""What an agent costs through uvicorn."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final

from ..fleet import Server, serve
from ..load import Job, Measurement
from ..loader import Loader, in_rounds, loader
from ..plan import Plan
from ..ratios import added, over
from ..report import Part, Table, ratio
from ..variant import Variant
from ..variants import REQUESTS, UPLOADS, WEBSOCKETS

_UPLOAD: Final = 1024 * 1024
_MESSAGE: Final = 64
# Of large bodies, each of which fills the server for a while.
_UPLOAD_CONNECTIONS: Final = 4

Measurements = Mapping[str, Sequence[Measurement]]


def run(plan: Plan, progress: Callable[[str], None]) -> Part:
    """:raises StartError: when a server doesn't come up.
    :raises LoadError: when one doesn't answer as it should.
    """
    requests = tuple(variant for variant in REQUESTS if variant.available)
    with serve((*requests, *UPLOADS, *WEBSOCKETS)) as servers, loader() as load:
        found = measure(servers, plan, load, progress)
    rates = {name: tuple(one.rate for one in rounds) for name, rounds in found.items()}
    return Part(
        "server",
        (
            requests_table("Through uvicorn: requests per second with one agent that allows", requests, found),
            _time_table(f"Through uvicorn: an upload of {_UPLOAD // 1024 // 1024} MiB, streamed", UPLOADS, found),
            _time_table(f"Through uvicorn: a websocket message of {_MESSAGE} bytes and its echo", WEBSOCKETS, found),
        ),
        {
            **{f"server.{v.name}.share": over(rates[v.name], rates["bare"]) for v in requests},
            **{
                f"server.http.over-{library}": over(rates["http"], rates[f"by-hand-{library}"])
                for library in ("httpx", "aiohttp")
                if f"by-hand-{library}" in rates
            },
            "server.in-process.over-by-hand": over(rates["in-process"], rates["by-hand-in-process"]),
            "server.unix-json.over-by-hand": over(rates["unix-json"], rates["by-hand-echo"]),
            **({"server.grpc.over-unix-json": over(rates["grpc"], rates["unix-json"])} if "grpc" in rates else {}),
            **_cpu_over(found["uploads-read"], found["uploads-bare"]),
            "server.upload.time": over(_times(found["uploads-read"]), _times(found["uploads-bare"])),
            "server.websocket.added-per-message": tuple(
                share / 2 for share in added(_times(found["echo-heard"]), _times(found["echo-bare"]))
            ),
        },
        left_out=left_out(REQUESTS),
    )


def _cpu_over(read: Sequence[Measurement], bare: Sequence[Measurement]) -> dict[str, tuple[float, ...]]:
    """The server's CPU time for an upload; empty where the system does not tell it."""
    times = [[one.cpu[0] / one.rate for one in rounds if one.cpu[0] is not None] for rounds in (read, bare)]
    return {"server.upload.cpu": over(*times)} if all(len(found) == len(read) for found in times) else {}


def left_out(variants: Sequence[Variant]) -> tuple[str, ...]:
    """What is said of those that can't be served."""
    return tuple(
        f"{variant.title}: needs the modules {' and '.join(variant.needs)}, of the `{variant.extra}` extra"
        for variant in variants
        if not variant.available
    )


def measure(
    servers: Sequence[Server], plan: Plan, load: Loader, progress: Callable[[str], None]
) -> dict[str, list[Measurement]]:
    jobs = {server.variant.name: job(server, plan) for server in servers}
    return in_rounds(load.load, jobs, plan.rounds, progress)


def job(server: Server, plan: Plan) -> Job:
    connections, upload, message = plan.connections, None, None
    if server.variant in UPLOADS:
        connections, upload = _UPLOAD_CONNECTIONS, _UPLOAD
    elif server.variant in WEBSOCKETS:
        # Round trips: with several connections, each would wait for the others.
        connections, message = 1, _MESSAGE
    return Job(server.port, connections, plan.warmup, plan.seconds, (server.pid, *server.peer_pids), upload, message)


def requests_table(title: str, variants: Sequence[Variant], found: Measurements) -> Table:
    """Shares are of the first; CPU is in per cent of one core."""
    bare = [one.rate for one in found[variants[0].name]]
    rows = []
    for variant in variants:
        rounds = found[variant.name]
        cores = (
            [one.cpu[0] for one in rounds],
            [_sum(one.cpu[1:-1]) for one in rounds],
            [one.cpu[-1] for one in rounds],
        )
        row = (
            variant.title,
            *ratio(over([one.rate for one in rounds], bare)),
            f"{median(one.rate for one in rounds):.0f}",
            f"{median(one.p50 for one in rounds) * 1000:.2f}",
            f"{median(one.p99 for one in rounds) * 1000:.2f}",
            *map(_per_cent, cores),
        )
        rows.append(row)
    columns = ("share of bare", "middle half", "requests/s", "p50 ms", "p99 ms", "CPU: server", "peers", "load")
    return Table(title, columns, tuple(rows))


def _sum(cores: Sequence[float | None]) -> float | None:
    known = [one for one in cores if one is not None]
    return sum(known) if known else None


def _per_cent(cores: Sequence[float | None]) -> str:
    known = [one for one in cores if one is not None]
    return f"{median(known):.0%}" if known else ""


def _times(rounds: Sequence[Measurement]) -> tuple[float, ...]:
    return tuple(1 / one.rate for one in rounds)


def _time_table(title: str, variants: Sequence[Variant], found: Measurements) -> Table:
    bare = _times(found[variants[0].name])
    rows = tuple(
        (
            variant.title,
            *ratio(over(_times(found[variant.name]), bare)),
            f"{median(one.p50 for one in found[variant.name]) * 1000:.3f}",
            f"{median(one.p99 for one in found[variant.name]) * 1000:.3f}",
        )
        for variant in variants
    )
    return Table(title, ("time, of the first", "middle half", "p50 ms", "p99 ms"), rows)
