"""Paths that the app's own router fails by, and those that take long to match, are no failures of the agent."""

import re
import time
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.convertors import CONVERTOR_TYPES, Convertor
from starlette.routing import Match, Route
from starlette.types import Scope

from asgi_agents import AgentConfig, AgentManager, AgentMiddleware, AuditRecord
from asgi_agents.agents import OpenApiValidation
from asgi_agents.agents.openapi.templates import PARAMETER, Template
from tests.support.asgi import Client

from .openapi_apps import routes

DIGITS = "9" * 4301
UNREADABLE = ["/numbers/" + DIGITS, f"/converted/{DIGITS}/x", f"/sub/numbers/{DIGITS}", "/failing/x", "/foreign"]


class Failing(Convertor[str]):
    """What another programmer has written."""

    regex = "[a-z]+"

    def convert(self, value: str) -> str:
        raise RecursionError

    def to_string(self, value: str) -> str:
        return value


class Foreign(Route):
    """A route with ways of its own."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["path"] == "/foreign":
            raise LookupError
        return Match.NONE, {}


def app_of(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setitem(CONVERTOR_TYPES, "failing", Failing())
    app = routes(FastAPI())
    app.mount("/sub", routes(FastAPI()))
    app.add_api_route("/failing/{x:failing}", lambda: None)
    app.router.routes.append(Foreign("/x", lambda request: None))
    return app


@pytest.mark.parametrize("requests", ["block", "report"])
@pytest.mark.parametrize("undocumented", ["pass", "block"])
async def test_a_path_that_the_router_fails_by_is_refused_and_opens_no_breaker(
    undocumented: Any, requests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(monkeypatch)
    agent = OpenApiValidation(app, requests=requests, undocumented=undocumented)
    records: list[AuditRecord] = []
    config = AgentConfig("openapi", agent, timeout=30)
    async with AgentManager([config]) as manager:
        middleware = AgentMiddleware(app, manager=manager, on_audit=records.append)
        for path in UNREADABLE * 10:
            records.clear()
            client = Client("GET", path)
            if requests == "block":
                await client.call(middleware)
                assert (client.status, records[0].answers[0].reason_codes) == (400, ["path"])
            else:
                # The app has it, and fails.
                with pytest.raises((ValueError, LookupError, RecursionError)):
                    await client.call(middleware)
                assert records[0].answers[0].reason_codes == ["path"]
        assert manager.metrics["openapi"].outcomes.keys() <= {"block", "allow"}
        good = Client("GET", "/numbers/1")
        await good.call(middleware)
        assert good.status == 200


def by_expression(template: str, path: str) -> dict[str, str] | None:
    """As a regular expression finds it, however long that takes."""
    literals = PARAMETER.split(template)[::2]
    found = re.fullmatch("([^/]+)".join(map(re.escape, literals)) + r"\n?", path, re.DOTALL)
    return None if found is None else dict(zip(PARAMETER.findall(template), found.groups(), strict=True))


@given(
    st.lists(st.sampled_from(["{a}", "{b}", "{c}", "/", "-", "--", ".", "x", "{", "}"]), max_size=9).map("".join),
    st.text(st.sampled_from("/-.x{\n"), max_size=14),
)
@example("/{a}-{b}", "/1-2-3")
@example("/{a}{b}.x", "/123.x\n")
@example("/{a}--{b}", "/----")
def test_a_template_finds_what_a_regular_expression_would(template: str, path: str) -> None:
    # One name twice is no template.
    names = iter("pqrstuvwxyz")
    template = PARAMETER.sub(lambda _: f"{{{next(names)}}}", template)
    for text in (path, f"/{path}", template.replace("{", "x").replace("}", "-")):
        assert Template(template).match(text.split("/")) == by_expression(template, text)


@pytest.mark.parametrize("template", ["/{a}-{b}-{c}-{d}.json", "/{a}{b}{c}{d}x", "/{a}--{b}--{c}.x"])
@pytest.mark.parametrize("path", ["/" + "-" * 16, "/" + "-x" * 8, "/" + "x-" * 8])
def test_a_template_takes_time_in_proportion_to_the_path(template: str, path: str) -> None:
    made = Template(template)

    def takes(times: int) -> float:
        segments = ["", path.removeprefix("/") * times]
        found = []
        for _ in range(3):
            began = time.thread_time()
            made.match(segments)
            found.append(time.thread_time() - began)
        return min(found)

    # Sixteen times as long takes 256 times as long where it is quadratic.
    assert takes(16_000) < 50 * (takes(1000) + 0.0005)
