"""How the cost grows: with agents in parallel, routes, bodies, open websockets."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import Agent, AgentConfig, AgentMiddleware, RequestHeadersEvent, Route
from asgi_agents.routing.routes import Router

from .. import apps
from ..agents import Allow
from ..driver import body_messages, drive, http_scope
from ..fleet import serve
from ..load import Job
from ..loader import Loader, in_rounds, loader
from ..plan import Plan
from ..ratios import over
from ..report import Curve, Part, Table, ratio
from ..turns import take_turns
from ..variants import UPLOADS
from .websockets import grow_websockets

_AGENTS: Final = (1, 2, 4, 8, 16, 32, 64)
_SECONDS: Final = 0.01
_ROUTES: Final = (1, 3, 10, 30, 100, 300, 1000)
_SIZES: Final = (10, 1024, 16 * 1024, 256 * 1024, 1024**2, 8 * 1024**2, 64 * 1024**2)
# Of large bodies; more of them would only wait for each other.
_CONNECTIONS: Final = 2


class Slow(Agent):
    """Takes 10 ms, waiting."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        await anyio.sleep(_SECONDS)


def run(plan: Plan, progress: Callable[[str], None]) -> Part:
    """:raises StartError: when a server doesn't come up.
    :raises LoadError: when one doesn't answer as it should.
    """
    progress("growth: agents in parallel")
    agents = agents_curve(asyncio.run(measure_agents(_AGENTS, plan)))
    progress("growth: routes")
    routes = routes_curve(*asyncio.run(measure_routes(_ROUTES, plan)))
    with serve(UPLOADS) as servers, loader() as load:
        bodies = _grow_bodies({server.variant.name: server.port for server in servers}, load, plan, progress)
    websockets, memory = grow_websockets(plan, progress)
    curves = (agents, routes, bodies, *websockets)
    found = {name: rounds for curve in curves for name, rounds in figures(curve).items()}
    return Part("growth", tuple(map(_table, curves)), {**found, **memory}, curves)


def figures(curve: Curve) -> dict[str, tuple[float, ...]]:
    """By the curve's name, the line's, and where on it."""
    return {
        f"growth.{curve.name}.{line}.{x:g}": rounds
        for line, points in curve.lines.items()
        for x, rounds in zip(curve.x, points, strict=True)
    }


async def measure_agents(counts: Sequence[int], plan: Plan) -> list[tuple[float, ...]]:
    """Seconds of a request, for each count of agents in parallel."""

    def guarded(count: int) -> ASGIApp:
        return AgentMiddleware(apps.hello, agents=[AgentConfig(f"slow-{number}", Slow()) for number in range(count)])

    scope, messages = http_scope("/items/42"), body_messages(b"")
    turns = [functools.partial(drive, guarded(count), scope, messages) for count in counts]
    return await take_turns(turns, max(5, plan.turns // 2), _SECONDS)


def agents_curve(seconds: Sequence[tuple[float, ...]]) -> Curve:
    return Curve(
        "agents",
        "Agents of 10 ms in parallel",
        "agents",
        "time of a request, of that with one",
        _AGENTS,
        {"all at once": tuple(over(one, seconds[0]) for one in seconds)},
    )


def routes(count: int) -> list[Route]:
    """As an API has them: the last is not told from the others before its number."""
    return [Route(f"/api/resource{number}/{{id:int}}", agents=["allow"]) for number in range(count)]


async def measure_routes(counts: Sequence[int], plan: Plan) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Seconds to find the last route, and of a request on it."""

    def finding(count: int) -> Callable[[int], Awaitable[None]]:
        router, scope = Router(routes(count), None), http_scope(f"/api/resource{count - 1}/42")
        assert router.agents_of(router.match(scope))[1] == f"/api/resource{count - 1}/{{id:int}}"

        async def find(times: int) -> None:
            for _ in range(times):
                router.match(scope)

        return find

    def requesting(count: int) -> Callable[[int], Awaitable[object]]:
        app = AgentMiddleware(_answer, agents=[AgentConfig("allow", Allow())], routes=routes(count))
        return functools.partial(drive, app, http_scope(f"/api/resource{count - 1}/42"), body_messages(b""))

    turns = [*map(finding, counts), *map(requesting, counts)]
    taken = await take_turns(turns, plan.turns, plan.turn_seconds)
    return taken[: len(counts)], taken[len(counts) :]


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    # Without a router of its own, which would grow with the routes as well.
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})


def routes_curve(finding: Sequence[tuple[float, ...]], requests: Sequence[tuple[float, ...]]) -> Curve:
    ten = _ROUTES.index(10)
    return Curve(
        "routes",
        "Routes, the last of which is asked for",
        "routes",
        "time, of that with ten",
        _ROUTES,
        {
            "to find the route": tuple(over(one, finding[ten]) for one in finding),
            "of a request with one agent": tuple(over(one, requests[ten]) for one in requests),
        },
    )


def _grow_bodies(ports: dict[str, int], load: Loader, plan: Plan, progress: Callable[[str], None]) -> Curve:
    jobs = {
        (name, size): Job(port, _CONNECTIONS, plan.warmup / 3, _seconds(size, plan), upload=size)
        for name, port in ports.items()
        for size in _SIZES
    }
    found = in_rounds(load.load, jobs, plan.growth_rounds, progress)
    return Curve(
        "bodies",
        "Bodies streamed through one agent that reads, through uvicorn",
        "bytes",
        "time of a request, of that uninspected",
        _SIZES,
        {
            "one agent": tuple(
                over(
                    [1 / one.rate for one in found["uploads-read", size]],
                    [1 / one.rate for one in found["uploads-bare", size]],
                )
                for size in _SIZES
            )
        },
    )


def _seconds(size: int, plan: Plan) -> float:
    # Of the largest, a few have to fit.
    return plan.growth_seconds + 1.5 * size / _SIZES[-1]


def _table(curve: Curve) -> Table:
    rows = []
    for name, points in curve.lines.items():
        cells = [ratio(rounds) for rounds in points]
        rows.append(
            (
                name,
                *(
                    middle if len(rounds) == 1 else f"{middle} ({half})"
                    for (middle, half), rounds in zip(cells, points, strict=True)
                ),
            )
        )
    title = f"Growth: {curve.title[0].lower()}{curve.title[1:]}; {curve.y_label} (and the middle half)"
    return Table(title, curve.x_names, tuple(rows))
