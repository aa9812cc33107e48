"""``check --fail-unguarded``: what was forgotten is found, what is meant to be open is not, and the table has both."""

from typing import Any

import pytest

from .conftest import Command
from .test_check import APP, kinds

#: Agents that can't stop a request, beside those that can.
WATCHING = """
from asgi_agents import Agent, AgentResponse, guarded_by, unguarded
from asgi_agents.agents import SecurityHeaders
from asgi_agents.guardrails import ToolPolicy


class Answers(Agent):
    async def on_response_headers(self, event): ...
    async def on_response_body_chunk(self, event): ...


class Ends(Agent):
    async def on_request_complete(self, event): ...


async def own(): ...


class Counts(Agent):
    never_stops = True
    async def on_request_headers(self, event): ...
    async def on_request_complete(self, event): ...
"""
HEADERS = 'AgentConfig("headers", SecurityHeaders())'
WAF = 'AgentConfig("waf", Waf())'
TWO = f"agents=[{WAF}, {HEADERS}]"

#: Lines of the app, and how many of its four endpoints are found: two of /items/{id}, /healthz and the websocket.
FOUND: dict[str, tuple[str, int]] = {
    "all are guarded": (f"protect(app, agents=[{WAF}])", 0),
    "a shadow agent": ('protect(app, agents=[AgentConfig("waf", Waf(), enforce=False)])', 4),
    "an agent that receives nothing of http": ('protect(app, agents=[AgentConfig("waf", Frames())])', 3),
    "an agent that only receives the end": (
        'protect(app, agents=[AgentConfig("waf", "tcp://127.0.0.1:9", events=["request_complete"])])',
        4,
    ),
    "the same in the process": ('protect(app, agents=[AgentConfig("waf", Ends())])', 4),
    "an agent that only receives answers": ('protect(app, agents=[AgentConfig("waf", Answers())])', 4),
    "a remote agent that only receives answers": (
        'protect(app, agents=[AgentConfig("waf", "http://127.0.0.1:9", events=["response_headers"])])',
        4,
    ),
    "a ready-made agent that only sets headers": (f"protect(app, agents=[{HEADERS}])", 4),
    "an agent that says that it never stops": ('protect(app, agents=[AgentConfig("waf", Counts())])', 4),
    "several of them": (
        f'protect(app, agents=[{HEADERS}, AgentConfig("a", Answers()), AgentConfig("b", Waf(), enforce=False)])',
        4,
    ),
    "one that can among them": (f"protect(app, {TWO})", 0),
    "a text guardrail": (
        f'protect(app, agents=[{WAF}], routes=[], guardrails=[Guardrail("waf", on={{"input"}})])',
        0,
    ),
    "a text guardrail for calls of tools": (
        f'protect(app, agents=[{WAF}], routes=[], guardrails=[Guardrail("waf", on={{"tool_call"}})])',
        0,
    ),
    "a text guardrail for answers": (
        f'protect(app, agents=[{WAF}], routes=[], guardrails=[Guardrail("waf", on={{"output", "reasoning"}})])',
        4,
    ),
    "a text guardrail that is a shadow": (
        'protect(app, agents=[AgentConfig("waf", Waf(), enforce=False)], routes=[],'
        ' guardrails=[Guardrail("waf", on={"input"})])',
        4,
    ),
    "some of its paths": (
        f'protect(app, {TWO}, routes=[AgentRoute("/items/open", agents=["headers"])], default_agents=["waf"])',
        2,
    ),
    # Meant to be open.
    "a route without agents": (
        f'protect(app, {TWO}, routes=[AgentRoute("/healthz", agents=[])], default_agents=["waf"])',
        0,
    ),
    "a route without agents for some of its paths": (
        f'protect(app, {TWO}, routes=[AgentRoute("/items/open", agents=[])], default_agents=["waf"])',
        0,
    ),
    "a route without agents for a part of an endpoint that is forgotten": (
        f'protect(app, {TWO}, routes=[AgentRoute("/items/open", agents=[])])',
        4,
    ),
    "a route without agents for one method": (
        f'protect(app, {TWO}, routes=[AgentRoute("/items/{{id}}", agents=[], methods=["GET"])])',
        3,
    ),
    "a route without agents for one method of an endpoint with two": (
        'app.add_api_route("/both", healthz, methods=["GET", "POST"])\n'
        f'protect(app, {TWO}, routes=[AgentRoute("/both", agents=[], methods=["GET"])])',
        5,
    ),
    "a route without agents for all that is left": (
        f'protect(app, {TWO}, routes=[AgentRoute("/items/{{id}}", agents=["waf"]),'
        ' AgentRoute("/{x:path}", agents=[])])',
        2,
    ),
    "the same, where an endpoint takes all that is left": (
        'app = FastAPI(openapi_url=None)\napp.add_api_route("/a", healthz)\n'
        'app.add_api_route("/{rest:path}", healthz)\n'
        f'protect(app, {TWO}, routes=[AgentRoute("/{{x:path}}", agents=[])])',
        1,
    ),
    "no default agents": (f"protect(app, {TWO}, routes=[], default_agents=[])", 4),
    "an endpoint that says so": (
        f'app.add_api_route("/own", unguarded(own))\nprotect(app, {TWO}, routes=[])',
        4,
    ),
    "an endpoint with agents that can't stop": (
        f'app.add_api_route("/own", guarded_by("headers")(own))\n'
        f'protect(app, {TWO}, default_agents=["waf"], routes=[])',
        1,
    ),
    "a route with a tool policy alone": (
        f'protect(app, {TWO}, default_agents=["waf"],'
        ' routes=[AgentRoute("/healthz", agents=[], guardrails=[ToolPolicy(allow=[])])])',
        1,
    ),
    "a middleware around, without agents there": (
        f'app = FastAPI(openapi_url=None)\napp.add_api_route("/a", healthz)\n'
        f"protect(app, agents=[{WAF}], routes=[])\n"
        f'app = AgentMiddleware(app, agents=[{HEADERS}], routes=[AgentRoute("/a", agents=[])])',
        1,
    ),
    "a middleware within, without agents there": (
        f'app = FastAPI(openapi_url=None)\napp.add_api_route("/a", healthz)\n'
        f'protect(app, agents=[{WAF}], routes=[AgentRoute("/a", agents=[])])\n'
        f"app = AgentMiddleware(app, agents=[{HEADERS}])",
        0,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_unguarded_endpoints_are_found_where_that_is_asked_for(name: str, command: Command) -> None:
    lines, count = FOUND[name]
    module = f"{APP}\n{WATCHING}\n{lines}\n"
    assert "unguarded" not in kinds(command("check", "main:app", "--offline", "--json", main=module).json)
    done = command("check", "main:app", "--offline", "--json", "--fail-unguarded", main=module)
    assert kinds(done.json).count("unguarded") == count
    assert done.code == (1 if done.json["findings"] else 0)
    open_ones = [one for one in done.json["endpoints"] if one["guarded"] is False]
    assert sum(one["declared"] is None for one in open_ones) == count
    assert all(one["declared"] is None for one in done.json["endpoints"] if one["guarded"])
    text = command("check", "main:app", "--offline", "--fail-unguarded", main=module).out
    assert text.count(" is unguarded") == count
    assert ("hint:  an endpoint that is meant to be open says so with @unguarded" in text) is bool(count)
    assert f" {count} unguarded, " in text


OPEN = f"""
app = FastAPI()
app.add_api_route("/a", healthz)
app.add_api_route("/own", unguarded(own))
app.add_api_route("/watched", item)
app.mount("/static", PlainTextResponse("file"))
protect(
    app,
    agents=[{HEADERS}, AgentConfig("answers", Answers()), AgentConfig("next", Waf(), enforce=False)],
    routes=[AgentRoute("/a", agents=[]), AgentRoute("/watched", agents=["headers", "answers", "next"])],
)
"""
ALLOWED = ["--allow", "/docs", "--allow", "/static/{rest:path}", "--allow", "/{one}.json", "--allow", "/redoc"]


def test_the_table_says_who_has_said_so(command: Command) -> None:
    done = command("check", "main:app", "--fail-unguarded", *ALLOWED, main=APP + WATCHING + OPEN)
    assert done.out.split("\n\n")[0].splitlines() == [
        "METHOD  PATH                   AGENTS",
        "GET     /openapi.json          open: --allow '/{one}.json'",
        "GET     /docs                  open: --allow '/docs'",
        "GET     /docs/oauth2-redirect  UNGUARDED",
        "GET     /redoc                 open: --allow '/redoc'",
        "GET     /a                     open: AgentRoute('/a')",
        "GET     /own                   open: @unguarded",
        "GET     /watched               UNGUARDED (headers (never stops), answers",
        "                               (receives no request), next (shadow))",
        "ANY     /static/{path:path}    open: --allow '/static/{rest:path}'",
    ]
    assert "found: GET /docs/oauth2-redirect is unguarded\n" in done.out
    assert "found: GET /watched is unguarded: none of its agents can stop a request\n" in done.out
    assert "8 endpoints, 2 unguarded, 6 open as declared, 3 agents, 0 failed, 2 found\n" in done.out


def test_the_json_tells_what_is_declared_from_what_is_forgotten(command: Command) -> None:
    done = command("check", "main:app", "--json", *ALLOWED, main=APP + WATCHING + OPEN)
    rows: dict[str, Any] = {one["path"]: one for one in done.json["endpoints"]}
    assert [rows[path]["declared"] for path in ("/docs", "/a", "/own", "/watched", "/docs/oauth2-redirect")] == [
        {"by": "option", "pattern": "/docs"},
        {"by": "route", "pattern": "/a"},
        {"by": "endpoint", "pattern": None},
        None,
        None,
    ]
    assert [(one["id"], one["stops"], one["never_stops"]) for one in rows["/watched"]["agents"]] == [
        ("headers", False, True),
        ("answers", False, False),
        ("next", False, False),
    ]
    # It says what is open, and nothing has to be found for that.
    assert done.code == 0


def test_marks_of_guardrails(command: Command) -> None:
    lines = """
app = FastAPI(openapi_url=None)
app.add_api_route("/a", healthz)
protect(app, agents=[AgentConfig("waf", Waf()), AgentConfig("next", Waf(), enforce=False)], routes=[], guardrails=[
    Guardrail("waf", on={"output"}), Guardrail("next", on={"input"}), Guardrail("waf", on={"input"})])
"""
    done = command("check", "main:app", main=APP + lines)
    assert "GET     /a    text: waf (answers only) + next (shadow) + waf\n" in done.out


def test_what_is_allowed_and_not_there_is_noted(command: Command) -> None:
    lines = f"protect(app, agents=[{WAF}])"
    arguments = ["--fail-unguarded", "--allow", "/doks", "--allow", "/healthz"]
    done = command("check", "main:app", *arguments, "--json", main=f"{APP}\n{lines}\n")
    assert (done.code, kinds(done.json), kinds(done.json, "notes")) == (0, [], ["unmatched_allow"])
    assert done.json["notes"][0]["subject"] == "/doks"


def test_an_endpoint_of_which_nobody_can_tell_may_be_allowed(command: Command) -> None:
    lines = f"""
from starlette.convertors import Convertor, register_url_convertor

class Odd(Convertor):
    regex = "odd-[0-9]+-x"
    def convert(self, value): return value
    def to_string(self, value): return value

register_url_convertor("odd", Odd())
app = FastAPI(openapi_url=None)
app.add_api_route("/a/{{b:odd}}", healthz)
protect(app, agents=[{WAF}])
"""
    found = command("check", "main:app", "--fail-unguarded", main=APP + lines)
    assert "unknown: no path was found that leads here\n" in found.out
    assert found.code == 1
    allowed = command("check", "main:app", "--fail-unguarded", "--allow", "/a/{b:odd}", main=APP + lines)
    assert "unknown: no path was found that leads here, open: --allow '/a/{b:odd}'" in " ".join(allowed.out.split())
    assert allowed.code == 0


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("docs", "expected a pattern that starts with '/'"), ("/static/*", "'*' stands for itself"), ("/{a:b}", "'b'")],
)
def test_what_is_no_pattern_is_a_mistake(pattern: str, message: str, command: Command) -> None:
    done = command("check", "main:app", "--allow", pattern, main=APP)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: --allow {pattern!r}, expected a pattern as of an AgentRoute: ")
    assert message in done.err
