"""What agents in the process add when nothing but the app and the middleware runs: no server, no sockets."""

import asyncio
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope

from asgi_agents import Agent, AgentConfig, AgentMiddleware, BodyMode, Route

from .. import apps
from ..agents import Allow, AllowAnswers, AllowBody, AllowFrames, SayAllow
from ..driver import body_messages, drive, frame_messages, http_scope, websocket_scope
from ..plan import Plan
from ..ratios import added, added_over, over
from ..report import Part, Table, ratio
from ..turns import take_turns

_AGENTS: Final = (1, 3, 8)
_MESSAGES: Final = 200
# Its hook, and what that asks of the event: two functions of the package.
_CALLS_OF_THE_AGENT: Final = 3

_ORDER: Final = json.dumps(
    {"lines": [{"article": f"A{at:06}", "quantity": at % 7, "note": "-" * 40} for at in range(178)]}
)
_CHUNK: Final = b"x" * 64 * 1024


@dataclass(frozen=True)
class Scenario:
    """What is sent, and to which app.

    :param name: for the figures.
    :param title: for the table.
    :param agent: makes an agent that hears what is sent.
    :param options: of its configuration.
    :param also: other agents, each alone: title and agent, by the name of the row.
    """

    name: str
    title: str
    app: ASGIApp
    scope: Scope
    messages: Sequence[Message]
    agent: Callable[[], Agent]
    options: Mapping[str, Any]
    also: Mapping[str, tuple[str, Callable[[], Agent]]] = field(default_factory=dict)

    @property
    def rows(self) -> Sequence[tuple[str, str, ASGIApp]]:
        """Name, title and app of everything that takes turns."""
        nobody = self._guarded(1, [Route(self.scope["path"], agents=[])])
        return (
            ("bare", "no middleware", self.app),
            ("base-http", "an empty `BaseHTTPMiddleware`", BaseHTTPMiddleware(self.app, _pass_on)),
            ("none", "no agent on the route", nobody),
            *((str(count), f"{count} agent{'s' * (count > 1)}", self._guarded(count)) for count in _AGENTS),
            *(
                (name, title, AgentMiddleware(self.app, agents=[AgentConfig("agent", agent(), **self.options)]))
                for name, (title, agent) in self.also.items()
            ),
        )

    def _guarded(self, count: int, routes: Sequence[Route] | None = None) -> ASGIApp:
        agents = [AgentConfig(f"agent-{number}", self.agent(), **self.options) for number in range(count)]
        return AgentMiddleware(self.app, agents=agents, routes=routes)


async def _pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


def scenarios() -> Sequence[Scenario]:
    post = functools.partial(http_scope, method="POST")
    json_headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_ORDER)).encode())]
    upload_headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"1048576")]
    return (
        Scenario(
            "headers",
            "request, headers only",
            apps.hello,
            http_scope("/items/42"),
            body_messages(b""),
            Allow,
            {},
            {"allow": ("1 agent that answers `AgentResponse.allow()`", SayAllow)},
        ),
        Scenario(
            "json",
            "request with 16 KiB of JSON, buffered",
            apps.orders,
            post("/orders", headers=json_headers),
            body_messages(_ORDER.encode()),
            AllowBody,
            {},
        ),
        Scenario(
            "stream",
            "request with 1 MiB, streamed in chunks of 64 KiB",
            apps.uploads,
            post("/uploads", headers=upload_headers),
            body_messages(*[_CHUNK] * 16),
            AllowBody,
            {"request_body_mode": BodyMode.STREAM},
        ),
        Scenario(
            "events",
            f"request answered with {apps.EVENTS} server-sent events",
            apps.events,
            http_scope("/events"),
            body_messages(b""),
            AllowAnswers,
            {"response_body_mode": BodyMode.STREAM},
        ),
        Scenario(
            "websocket",
            "websocket message and its echo",
            apps.echo,
            websocket_scope("/echo"),
            frame_messages("x" * 64, _MESSAGES),
            AllowFrames,
            {},
        ),
    )


def run(plan: Plan, progress: Callable[[str], None]) -> Part:
    tables: list[Table] = []
    figures: dict[str, tuple[float, ...]] = {}
    for scenario in scenarios():
        progress(f"direct: {scenario.title}")
        seconds = asyncio.run(measure(scenario, plan))
        table, found = judge(scenario, seconds)
        tables.append(table)
        figures |= found
        if scenario.name == "events":
            figures["direct.events.1.microseconds"] = tuple(
                (one - bare) / apps.EVENTS * 1e6 for one, bare in zip(seconds["1"], seconds["bare"], strict=True)
            )
    figures["direct.headers.1.calls"] = (asyncio.run(count_calls(scenarios()[0])),)
    return Part("direct", tuple(tables), figures)


async def count_calls(scenario: Scenario) -> float:
    """How many Python functions one agent has called for a request, beyond those of the bare app and of the agent."""
    counts: dict[str, int] = {}
    for name, _, app in scenario.rows:
        if name not in ("bare", "1"):
            continue
        for times in (20, 0):
            await drive(app, scenario.scope, scenario.messages, times)
        calls = 0

        def note(frame: FrameType, event: str, arg: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(note)
        try:
            await drive(app, scenario.scope, scenario.messages, 1)
        finally:
            sys.setprofile(None)
        counts[name] = calls
    return float(counts["1"] - counts["bare"] - _CALLS_OF_THE_AGENT)


async def measure(scenario: Scenario, plan: Plan) -> dict[str, tuple[float, ...]]:
    """Seconds by the name of the row."""
    rows = scenario.rows
    turns = [functools.partial(drive, app, scenario.scope, scenario.messages) for _, _, app in rows]
    for turn in turns:
        _check(await turn(1))
    # In CPU time, which holds still where other processes run as well.
    taken = await take_turns(turns, plan.turns, plan.turn_seconds, time.process_time)
    return {name: seconds for (name, _, _), seconds in zip(rows, taken, strict=True)}


def _check(sent: Sequence[Message]) -> None:
    first = sent[0]
    if first["type"] != "websocket.accept" and first.get("status") != 200:
        raise RuntimeError(f"the app answers {first!r}")


def judge(scenario: Scenario, seconds: Mapping[str, tuple[float, ...]]) -> tuple[Table, dict[str, tuple[float, ...]]]:
    bare, base = seconds["bare"], seconds["base-http"]
    through_base = scenario.scope["type"] == "http"
    figures: dict[str, tuple[float, ...]] = {}
    rows: list[tuple[str, ...]] = []
    for name, title, _ in scenario.rows:
        if name == "bare" or (name == "base-http" and not through_base):
            continue
        figures[f"{name}.time"] = over(seconds[name], bare)
        figures[f"{name}.added"] = added(seconds[name], bare)
        cells: tuple[str, ...] = (title, *ratio(figures[f"{name}.time"]), *ratio(figures[f"{name}.added"], 3))
        if through_base:
            figures[f"{name}.added-over-base-http"] = added_over(seconds[name], base, bare)
            cells += ratio(figures[f"{name}.added-over-base-http"], 3)
        rows.append(cells)
    figures["three-over-one.added"] = added_over(seconds["3"], seconds["1"], bare)
    figures["three-over-one.time"] = over(seconds["3"], seconds["1"])
    columns: tuple[str, ...] = (
        "time, of the bare app's",
        "middle half",
        "time added, of the bare app's",
        "middle half",
    )
    if through_base:
        columns += ("time added, of what an empty `BaseHTTPMiddleware` adds", "middle half")
    table = Table(f"Driven directly: a {scenario.title}", columns, tuple(rows))
    return table, {f"direct.{scenario.name}.{name}": rounds for name, rounds in figures.items()}
