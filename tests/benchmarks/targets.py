"""What the suite is to find, and whether it did. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .ratios import spread
from .report import Table

Direction = Literal["at most", "at least"]


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio, and the bound that it is to keep.

    :param figure: the name under which a part reports it.
    :param of: what it is a ratio of.
    """

    what: str
    figure: str
    direction: Direction
    bound: float
    of: str
    per_cent: bool = False

    def met_by(self, value: float) -> bool:
        return value <= self.bound if self.direction == "at most" else value >= self.bound

    def show(self, value: float) -> str:
        return f"{value:.1%}" if self.per_cent else f"{value:.3g}"

    @property
    def wanted(self) -> str:
        bound = f"{self.bound * 100:g}%" if self.per_cent else f"{self.bound:g}"
        return f"{'≤' if self.direction == 'at most' else '≥'} {bound} {self.of}"


TARGETS: Final = (
    Target(
        "no agent on the route: time added to a request",
        "direct.headers.none.added",
        "at most",
        0.045,
        "of the bare Starlette app",
        per_cent=True,
    ),
    Target(
        "one in-process agent on headers: time added to a request",
        "direct.headers.1.added-over-base-http",
        "at most",
        0.095,
        "of what an empty `BaseHTTPMiddleware` adds",
    ),
    Target(
        "the same, where it answers `AgentResponse.allow()`",
        "direct.headers.allow.added-over-base-http",
        "at most",
        0.095,
        "of what an empty `BaseHTTPMiddleware` adds",
    ),
    Target(
        "the same: calls of Python functions",
        "direct.headers.1.calls",
        "at most",
        17,
        "beyond those of the app and of the agent",
    ),
    Target(
        "the same through uvicorn: requests per second",
        "server.in-process.share",
        "at least",
        0.85,
        "of the bare app",
    ),
    Target(
        "the same",
        "server.in-process.over-by-hand",
        "at least",
        0.92,
        "of a hand-written middleware that builds the event and asks nobody",
    ),
    Target(
        "three in-process agents that don't suspend: time added to a request",
        "direct.headers.three-over-one.added",
        "at most",
        1.8,
        "times what one adds",
    ),
    Target(
        "the same: time of the whole request",
        "direct.headers.three-over-one.time",
        "at most",
        1.8,
        "times that with one",
    ),
    Target(
        "1 MiB streamed through one read-only in-process agent, through uvicorn: time",
        "server.upload.time",
        "at most",
        1.15,
        "times uninspected",
    ),
    Target("the same: CPU time of the server", "server.upload.cpu", "at most", 1.1, "times uninspected"),
    Target(
        "a server-sent event through one reader: CPU time added",
        "direct.events.1.microseconds",
        "at most",
        12,
        "µs",
    ),
    Target(
        "websocket message through one in-process agent: time added (an echo is two messages, both judged)",
        "server.websocket.added-per-message",
        "at most",
        0.15,
        "of an echo round trip through uvicorn",
        per_cent=True,
    ),
    Target(
        "one remote agent on a Unix socket: requests per second",
        "server.unix-json.share",
        "at least",
        0.56,
        "of the bare app",
    ),
    Target("the same", "server.unix-json.over-by-hand", "at least", 0.78, "of an echo on a Unix socket, by hand"),
    Target(
        "the same",
        "envoy.unix-json.over-ext-authz",
        "at least",
        1.3,
        "times Envoy with HTTP ext_authz, app and check the same",
    ),
    Target(
        "one remote agent over HTTP: requests per second",
        "server.http.over-httpx",
        "at least",
        7.0,
        "times a hand-written middleware with `httpx.AsyncClient`",
    ),
    Target(
        "the same",
        "server.http.over-aiohttp",
        "at least",
        1.2,
        "times a hand-written middleware with aiohttp",
    ),
    Target(
        "the same",
        "envoy.http.over-ext-authz",
        "at least",
        0.6,
        "of Envoy with HTTP ext_authz, app and check the same",
    ),
    Target(
        "one remote agent over gRPC, on a Unix socket: requests per second",
        "server.grpc.over-unix-json",
        "at least",
        0.5,
        "of the same with the stream transport",
    ),
    Target(
        "an agent that is served as Envoy's external processor: requests per second through Envoy",
        "envoy.served-ext-proc.over-bare",
        "at least",
        0.8,
        "of those with grpcio's own handler, which answers without reading",
    ),
    Target(
        "the same: requests for the same CPU time of its process",
        "envoy.served-ext-proc.cpu",
        "at least",
        0.8,
        "of those with that handler",
    ),
    Target(
        "eight agents of 10 ms in parallel: time",
        "growth.agents.all at once.8",
        "at most",
        1.15,
        "times one",
    ),
    Target(
        "finding the last of 1,000 routes: time",
        "growth.routes.to find the route.1000",
        "at most",
        1.3,
        "times the last of 10",
    ),
    Target(
        "memory that one agent adds to an idle websocket, of 5,000",
        "growth.websocket-memory.added.5000",
        "at most",
        4.0,
        "KiB",
    ),
    Target(
        "one guardrail in the process that says what is settled: CPU added to a token of a stream",
        "guardrails.settled.added",
        "at most",
        60.0,
        "µs",
    ),
    Target(
        "a judge of 5 ms beside 2,000 tokens at 100 a second: time added to the stream",
        "guardrails.waiting.5.share",
        "at most",
        0.05,
        "of the unguarded stream",
        per_cent=True,
    ),
    Target(
        "the same with a judge of 300 ms",
        "guardrails.waiting.300.longer",
        "at most",
        0.5,
        "s",
    ),
)


def missed(figures: Mapping[str, Sequence[float]], targets: Sequence[Target] = TARGETS) -> list[str]:
    """The targets that were measured and are not met, by the medians."""
    return [
        f"{target.what}, {target.of}: {target.show(middle)}, wanted {target.wanted}"
        for target in targets
        if (rounds := figures.get(target.figure)) is not None and not target.met_by(middle := spread(rounds).median)
    ]


def judge(figures: Mapping[str, Sequence[float]], targets: Sequence[Target] = TARGETS) -> Table:
    """By the medians. What has not been measured is said to be so."""
    rows = []
    for target in targets:
        rounds = figures.get(target.figure)
        if rounds is None:
            cells = ("not measured", "", "")
        else:
            middle, low, high = spread(rounds)
            verdict = "met" if target.met_by(middle) else "**not met**"
            cells = (target.show(middle), f"{target.show(low)} to {target.show(high)}", verdict)
        rows.append((target.what, target.wanted, *cells))
    return Table("Targets", ("target", "measured", "middle half", ""), tuple(rows))
