"""``check``: the table, what it finds, and the shape of its JSON."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from .conftest import Command

APP = """
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Match, Mount, Route
from starlette.middleware import Middleware
from starlette.applications import Starlette
from asgi_agents import AgentConfig, AgentManager, AgentMiddleware, AgentRoute, FailureMode, protect
from asgi_agents.guardrails import Guardrail
from house import Auth, Broken, Frames, Refusing, Waf

app = FastAPI(openapi_url=None)


@app.get("/items/{id}")
async def item(id: str): ...


@app.post("/items/{id}")
async def change(id: str): ...


@app.get("/healthz")
async def healthz(): ...


@app.websocket("/room")
async def room(websocket: WebSocket): ...
"""
PROTECTED = """
protect(
    app,
    agents=[AgentConfig("waf", Waf()), AgentConfig("auth", Auth())],
    routes=[
        AgentRoute("/items/secret", agents=["auth", "waf"]),
        AgentRoute("/items/{id}", agents=["waf"], methods=["GET"]),
        AgentRoute("/items/{id}", agents=[("waf", "open"), "auth"]),
        AgentRoute("/healthz", agents=[]),
    ],
    default_agents=["auth"],
)
"""


def agents_by_row(report: Any) -> dict[str, Any]:
    """The agents of each line, by method, host and path."""
    found: dict[str, Any] = {}
    for row in report["endpoints"]:
        method = "WS" if row["kind"] == "websocket" else ",".join(row["methods"] or ["ANY"])
        where = f"{method} {row['host'] or ''}{row['only'] or row['path']}"
        found[where] = [agent["id"] + (" open" if agent["failure_mode"] == "open" else "") for agent in row["agents"]]
    return found


def kinds(report: Any, part: str = "findings") -> list[str]:
    return [finding["kind"] for finding in report[part]]


def test_endpoints_are_listed_with_their_agents_in_order(command: Command) -> None:
    done = command("check", "main:app", main=APP + PROTECTED)
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "METHOD  PATH             AGENTS\n"
        "GET     /items/{id}      waf\n"
        "GET       /items/secret  auth, waf\n"
        "POST    /items/{id}      waf (open), auth\n"
        "POST      /items/secret  auth, waf\n"
        "GET     /healthz         open: AgentRoute('/healthz')\n"
        "WS      /room            auth\n"
        "\n"
        "AGENT  FAILS   STATE  WHERE AND WHAT IT RECEIVES\n"
        "waf    closed  ready  in_process: request_headers, request_body_chunk,\n"
        "                      response_body_chunk, websocket_frame, guardrail_inspect\n"
        "auth   closed  ready  in_process: request_headers\n"
        "\n"
        "4 endpoints, 0 unguarded, 1 open as declared, 2 agents, 0 failed, 0 found\n"
    )


def test_the_json_says_all_of_it(command: Command) -> None:
    report = command("check", "main:app", "--json", main=APP + PROTECTED).json
    assert list(report) == ["command", "format", "app", "endpoints", "agents", "findings", "notes"]
    assert (report["command"], report["format"], report["app"]) == ("check", 1, "main:app")
    assert report["endpoints"][0] == {
        "kind": "http",
        "path": "/items/{id}",
        "methods": ["GET"],
        "host": None,
        "name": "item",
        "only": None,
        "example": "/items/an-example",
        "taken_by": None,
        "guarded": True,
        "declared": None,
        "agents": [
            {
                "id": "waf",
                "decided_by": "route",
                "failure_mode": "closed",
                "enforced": True,
                "events": ["request_headers", "request_body_chunk", "response_body_chunk", "guardrail_inspect"],
                "stops": True,
                "never_stops": False,
            }
        ],
        "guardrails": [],
        "tools": [],
    }
    assert report["agents"][1] == {
        "id": "auth",
        "transport": "in_process",
        "address": None,
        "failure_mode": "closed",
        "enforced": True,
        "events": ["request_headers"],
        "events_known": True,
        "state": "ready",
        "error": None,
    }


GUARDED: dict[str, tuple[str, dict[str, Any]]] = {
    "add_middleware": (
        'app.add_middleware(AgentMiddleware, agents=[AgentConfig("waf", Waf())])',
        {"GET /items/{id}": ["waf"], "POST /items/{id}": ["waf"], "GET /healthz": ["waf"], "WS /room": ["waf"]},
    ),
    "wrapped": (
        'app = AgentMiddleware(app, agents=[AgentConfig("waf", Waf())], routes=[AgentRoute("/room", agents=["waf"])])',
        {"GET /items/{id}": [], "POST /items/{id}": [], "GET /healthz": [], "WS /room": ["waf"]},
    ),
    "two around one another": (
        'protect(app, agents=[AgentConfig("auth", Auth())])\n'
        'app = AgentMiddleware(app, agents=[AgentConfig("waf", Waf())])',
        {name: ["waf", "auth"] for name in ("GET /items/{id}", "POST /items/{id}", "GET /healthz", "WS /room")},
    ),
    "a mounted app with agents of its own": (
        "inner = FastAPI(openapi_url=None)\n"
        'inner.add_api_route("/a", healthz)\n'
        'protect(inner, agents=[AgentConfig("auth", Auth())])\n'
        'app.mount("/v2/{version}", inner)\n'
        'protect(app, agents=[AgentConfig("waf", Waf())], routes=[AgentRoute("/v2/{v}/{x:path}", agents=["waf"])])',
        {
            "GET /items/{id}": [],
            "POST /items/{id}": [],
            "GET /healthz": [],
            "WS /room": [],
            "GET /v2/{version}/a": ["waf", "auth"],
        },
    ),
    "an included router, a host, a route with a middleware, an app without routes": (
        "router = APIRouter()\n"
        'router.add_api_route("/b", healthz)\n'
        'outer = APIRouter(prefix="/in")\n'
        'outer.include_router(router, prefix="/deep")\n'
        "app = FastAPI(openapi_url=None)\n"
        'app.include_router(outer, prefix="/all")\n'
        'agents = [AgentConfig("auth", Auth())]\n'
        'app.routes.append(Route("/one", healthz, middleware=[Middleware(AgentMiddleware, agents=agents)]))\n'
        'app.routes.append(Host("{sub}.example.org", Starlette(routes=[Route("/c", healthz, methods=["PUT"])])))\n'
        'app.mount("/static", PlainTextResponse("file"))\n'
        'protect(app, agents=[AgentConfig("waf", Waf())], routes=[\n'
        '    AgentRoute("/all/in/deep/b", agents=["waf"]), AgentRoute("/static/x.js", agents=[("waf", "open")])])',
        {
            "GET /all/in/deep/b": ["waf"],
            "GET,HEAD /one": ["auth"],
            "PUT {sub}.example.org/c": [],
            "ANY /static/{path:path}": [],
            "ANY /static/x.js": ["waf open"],
        },
    ),
    "two around one another, for different parts of the paths of one endpoint": (
        "app = FastAPI(openapi_url=None)\n"
        'app.add_api_route("/e/{x}/{y}", healthz)\n'
        'protect(app, agents=[AgentConfig("auth", Auth())], routes=[AgentRoute("/e/{x}/b", agents=["auth"])])\n'
        'routes = [AgentRoute("/e/a/{y}", agents=["waf"])]\n'
        'app = AgentMiddleware(app, agents=[AgentConfig("waf", Waf())], routes=routes)',
        {"GET /e/{x}/{y}": [], "GET /e/a/{y}": ["waf"], "GET /e/{x}/b": ["auth"], "GET /e/a/b": ["waf", "auth"]},
    ),
    "around a middleware that hides the app": (
        "class Hiding:\n"
        "    def __init__(self, app):\n"
        "        self._hidden = app\n"
        "    async def __call__(self, *arguments):\n"
        "        await self._hidden(*arguments)\n"
        "app = FastAPI(openapi_url=None)\n"
        'app.add_api_route("/one", healthz)\n'
        'app.add_api_route("/{name}", healthz)\n'
        'ours = [AgentRoute("/{name}", agents=["auth"]), AgentRoute("/one", agents=["waf"])]\n'
        'agents = [AgentConfig("auth", Auth()), AgentConfig("waf", Waf())]\n'
        "app.add_middleware(Hiding)\n"
        "app.add_middleware(AgentMiddleware, agents=agents, routes=ours)",
        {"GET /one": ["waf"], "GET /{name}": ["auth"]},
    ),
    "below a root path": (
        'app = FastAPI(openapi_url=None)\napp.root_path = "/api"\n'
        "inner = FastAPI(openapi_url=None)\n"
        'inner.add_api_route("/a/{b}", healthz)\n'
        'protect(inner, agents=[AgentConfig("auth", Auth())], routes=[AgentRoute("/a/c", agents=["auth"])])\n'
        'app.add_api_route("/d/{e}", healthz)\n'
        'app.mount("/v2", inner)\n'
        'protect(app, agents=[AgentConfig("waf", Waf())], routes=[AgentRoute("/d/f", agents=["waf"])])',
        {"GET /d/{e}": [], "GET /d/f": ["waf"], "GET /v2/a/{b}": [], "GET /v2/a/c": ["auth"]},
    ),
    "no router": (
        "async def app(scope, receive, send): ...\n"
        'app = AgentMiddleware(app, agents=[AgentConfig("waf", Waf())], routes=[AgentRoute("/a/{b}", agents=["waf"])])',
        {"ANY /{path:path}": [], "ANY /a/{b}": ["waf"]},
    ),
}


@pytest.mark.parametrize("name", GUARDED)
def test_agents_are_found_wherever_they_stand(name: str, command: Command) -> None:
    lines, expected = GUARDED[name]
    done = command("check", "main:app", "--json", main=f"{APP}\n{lines}\n")
    assert agents_by_row(done.json) == expected


def test_policies_on_endpoints_are_listed(command: Command) -> None:
    lines = """
from asgi_agents import guarded_by, unguarded
app = FastAPI(openapi_url=None)
app.add_api_route("/a", guarded_by("auth", ("waf", "open"))(item))
app.add_api_route("/b", unguarded(healthz))
app.add_api_route("/c", change)
protect(app, agents=[AgentConfig("waf", Waf()), AgentConfig("auth", Auth())], default_agents=["waf"], routes=[])
"""
    report = command("check", "main:app", "--json", main=APP + lines).json
    assert agents_by_row(report) == {"GET /a": ["auth", "waf open"], "GET /b": [], "GET /c": ["waf"]}
    assert [[agent["decided_by"] for agent in row["agents"]] for row in report["endpoints"]] == [
        ["endpoint", "endpoint"],
        [],
        ["default"],
    ]


TOOLS = """
from asgi_agents import guarded_by
from asgi_agents.guardrails import ToolPolicy

removes = ("shell", lambda arguments: True)
app = FastAPI(openapi_url=None)
app.add_api_route("/mcp", item, methods=["POST"])
app.add_api_route("/a", healthz)
own = [ToolPolicy(allow=["get_*", removes], deny=["get_key"])]
app.add_api_route("/own", guarded_by("waf", guardrails=own)(change))
app.add_api_websocket_route("/mcp", room)
policy = ToolPolicy(deny=["delete_*", removes])
protect(
    app,
    agents=[AgentConfig("waf", Waf())],
    default_agents=["waf"],
    routes=[AgentRoute("/mcp", agents=[], guardrails=[policy, Guardrail("waf", on={"input"})]),
            AgentRoute("/mcp/none", agents=[]), AgentRoute("/a", agents=[], guardrails=[ToolPolicy(allow=[])])],
)
"""


def test_tool_policies_are_listed_on_endpoints_and_websockets(command: Command) -> None:
    assert command("check", "main:app", main=APP + TOOLS).out.split("\n\n")[0] == (
        "METHOD  PATH  AGENTS\n"
        "POST    /mcp  text: waf, tools: all but delete_* + shell (some calls)\n"
        "GET     /a    UNGUARDED (tools: none)\n"
        "GET     /own  waf, tools: get_* + shell (some calls) but get_key\n"
        "WS      /mcp  text: waf, tools: all but delete_* + shell (some calls)"
    )
    report = command("check", "main:app", "--json", "--fail-unguarded", main=APP + TOOLS).json
    assert [row["tools"] for row in report["endpoints"]][1:3] == [
        [{"allow": [], "deny": []}],
        [
            {
                "allow": [{"name": "get_*", "conditional": False}, {"name": "shell", "conditional": True}],
                "deny": [{"name": "get_key", "conditional": False}],
            }
        ],
    ]
    # It looks at calls of tools alone.
    assert kinds(report).count("unguarded") == 1


def test_a_part_of_an_endpoint_with_another_tool_policy_is_a_line(command: Command) -> None:
    lines = """
from asgi_agents.guardrails import ToolPolicy
app = FastAPI(openapi_url=None)
app.add_api_route("/mcp/{server}", item)
route = AgentRoute("/mcp/shell", agents=["waf"], guardrails=[ToolPolicy(allow=[])])
protect(app, agents=[AgentConfig("waf", Waf())], default_agents=["waf"], routes=[route])
"""
    assert command("check", "main:app", main=APP + lines).out.startswith(
        "METHOD  PATH           AGENTS\nGET     /mcp/{server}  waf\nGET       /mcp/shell   waf, tools: none\n"
    )


def test_an_endpoint_is_unguarded_where_only_paths_of_some_length_are_guarded(command: Command) -> None:
    lines = """
app = FastAPI(openapi_url=None)
app.add_api_route("/{path:path}", item)
protect(app, agents=[AgentConfig("waf", Waf())], routes=[AgentRoute("/{one}/{two}", agents=["waf"])])
"""
    done = command("check", "main:app", "--fail-unguarded", main=APP + lines)
    assert done.out.splitlines()[1:3] == ["GET     /{path:path}    UNGUARDED", "GET       /{one}/{two}  waf"]
    assert "found: GET /{path:path} is unguarded" in done.out


BY_POLICY = """
from asgi_agents import guarded_by

@app.get("/a")
@guarded_by("nobody")
async def own(): ...

protect(app, agents=[AgentConfig("waf", Waf())])
"""
ODD = """
class Odd(BaseRoute):
    def matches(self, scope):
        raise LookupError("this route is like no other")

app.routes.append(Odd())
app.add_api_route("/b", change)
protect(app, agents=[AgentConfig("waf", Waf())])
"""
FINDINGS: dict[str, tuple[str, int, list[str], list[str]]] = {
    "nothing": ('protect(app, agents=[AgentConfig("waf", Waf())])', 0, [], []),
    "no agents": ("", 1, ["no_agents"], []),
    "refused when made": ('protect(app, agents=[AgentConfig("waf", "ftp://a")])', 1, ["configuration"], []),
    "refused when the app is built": (
        'app.add_middleware(AgentMiddleware, agents=[AgentConfig("waf", "ftp://a")])',
        1,
        ["configuration"],
        [],
    ),
    "refused when the stack is built": (
        'app.add_middleware(AgentMiddleware, agents=[AgentConfig("waf", Waf())], routes=7)',
        1,
        ["configuration"],
        [],
    ),
    "an agent that refuses its configuration": (
        'protect(app, agents=[AgentConfig("waf", Refusing())])',
        1,
        ["agent_refused"],
        [],
    ),
    "nobody listens": (
        'protect(app, agents=[AgentConfig("waf", "tcp://127.0.0.1:9"), AgentConfig("b", "unix:///nowhere/a.sock")])',
        1,
        ["agent_unreachable", "agent_unreachable"],
        [],
    ),
    "nobody listens to http": (
        'protect(app, agents=[AgentConfig("waf", "http://127.0.0.1:9", events=["request_headers"])])',
        1,
        ["agent_unreachable"],
        [],
    ),
    "a policy that can't be carried out": (BY_POLICY, 1, ["warning"], []),
    "a route that raises": (ODD, 0, [], []),
    "what the log warns of": (
        'protect(app, agents=[AgentConfig("waf", Waf(), timeout=5000)])',
        1,
        ["warning"],
        [],
    ),
    "a route that is misspelt": (
        'protect(app, agents=[AgentConfig("waf", Waf())], routes=[AgentRoute("/itmes/{id}", agents=["waf"])])',
        1,
        ["warning"],
        ["unmatched_route"],
    ),
    "a route that nothing matches": (
        'protect(app, agents=[AgentConfig("waf", Waf())], routes=[AgentRoute("/old", agents=["waf"])])',
        0,
        [],
        ["unmatched_route"],
    ),
    "an endpoint behind another": (
        'app.add_api_route("/items/last", healthz)\nprotect(app, agents=[AgentConfig("waf", Waf())])',
        0,
        [],
        ["never_runs"],
    ),
    "a fallback": (
        'app.router.default = healthz\nprotect(app, agents=[AgentConfig("waf", Waf())])',
        0,
        [],
        ["open_ended"],
    ),
    "no routes": (
        'async def inner(scope, receive, send): ...\napp = AgentMiddleware(inner, agents=[AgentConfig("waf", Waf())])',
        0,
        [],
        ["unreadable"],
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_what_is_found_and_what_is_only_noted(name: str, command: Command) -> None:
    lines, code, findings, notes = FINDINGS[name]
    done = command("check", "main:app", "--json", main=f"{APP}\n{lines}\n")
    report = done.json
    assert (done.code, kinds(report), kinds(report, "notes")) == (code, findings, notes), report["findings"]
    text = command("check", "main:app", main=f"{APP}\n{lines}\n").out
    assert text.count("found: ") == len(findings)


CONFIGURED = """
from fastapi import FastAPI
from asgi_agents import protect

app = FastAPI()
protect(app, config="agents.json", imports=["house"])
"""


def test_each_mistake_of_a_file_is_found_and_its_place_is_shown(command: Command, tmp_path: Path) -> None:
    # Places that are named like secrets, which are no secrets.
    (tmp_path / "agents.json").write_text("""{
        "stop_grace": -1, "routs": [], "password": "hunter2-and-more",
        "agents": [{"id": "waf", "transport": "house:Waf", "timeuot": 2, "authorization": "Bearer hunter2-and-more"}]
    }""")
    done = command("check", "main:app", "--json", main=CONFIGURED)
    lines = [each["message"].partition("agents.json: ")[2] for each in done.json["findings"]]
    assert kinds(done.json) == ["configuration"] * 5
    begins = ["routs: no", "password: no", "agents[0].timeuot: no", "agents[0].authorization: no", "stop_grace: found"]
    for begin in begins:
        assert any(line.startswith(begin) for line in lines), lines
    assert "hunter2" not in done.out
    shown = command("check", "main:app", main=CONFIGURED)
    assert shown.out.count("found: ") == 5
    assert "5 found" in shown.out


@pytest.mark.parametrize("name", ["password", "authorization", "api_key", "x", "cookie"])
def test_the_name_of_a_variable_without_braces_is_shown(name: str, command: Command, tmp_path: Path) -> None:
    config = {name: "$PATH", "token": "abcd1234"}
    data = {"agents": [{"id": "waf", "transport": "house:Waf", "config": config}]}
    (tmp_path / "agents.json").write_text(json.dumps(data))
    done = command("check", "main:app", "--json", main=CONFIGURED)
    [warning] = [each["message"] for each in done.json["findings"] if "is read as text" in each["message"]]
    assert f"agents.json: agents[0].config.{name}: $PATH is read as text" in warning
    assert "abcd1234" not in done.out


def test_offline_asks_no_agent(command: Command) -> None:
    lines = 'protect(app, agents=[AgentConfig("waf", Refusing()), AgentConfig("b", "tcp://127.0.0.1:9")])'
    done = command("check", "main:app", "--offline", "--json", main=f"{APP}\n{lines}\n")
    assert done.code == 0
    assert [(agent["state"], agent["events_known"]) for agent in done.json["agents"]] == [
        ("not asked", True),
        ("not asked", False),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["main"], "'main', expected module:name"),
        (["nowhere:app"], "can't import 'nowhere': ModuleNotFoundError: No module named 'nowhere'"),
        (["broken:app"], "can't import 'broken': ZeroDivisionError: division by zero (PLACE/broken.py:3)"),
        (["unreadable:app"], "can't import 'unreadable': SyntaxError: invalid syntax (unreadable.py, line 1)"),
        (["main:wave"], "'main' has no 'wave'"),
        (["house:words"], "'house:words' is a str, expected an ASGI app"),
        (["house:fail"], "'house:fail' takes no scope, receive and send, expected an ASGI app; give --factory"),
        (["house:Waf"], "'house:Waf' is a type, expected an ASGI app; for a function that makes one, give --factory"),
        (["house:fail", "--factory"], "'house:fail' can't be called: LookupError: no such luck (PLACE/house.py:"),
        (["house:words", "--factory"], "'house:words' is a str, expected a function that makes an app"),
        (["ending:app"], "can't import 'ending': SystemExit: 0 (PLACE/ending.py:1)"),
        (["late:app"], "the app can't be built: LookupError: no such luck (PLACE/house.py:"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments: list[str], message: str, command: Command) -> None:
    late = APP + "from house import fail\napp.add_middleware(lambda app: fail())\n"
    done = command("check", *arguments, main=APP, late=late)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith(f"error: {message}")
    assert done.out == ""
    as_json = command("check", *arguments, "--json", main=APP, late=late)
    assert as_json.code == 2
    assert list(as_json.json) == ["command", "format", "error"]
    assert as_json.json["error"].startswith(message)


def test_a_factory_makes_the_app(command: Command) -> None:
    make = "def make():\n    protect(app, agents=[AgentConfig('waf', Waf())])\n    print('made')\n    return app\n"
    done = command("check", "main:make", "--factory", "--json", main=f"{APP}\n{make}")
    assert done.json["endpoints"][0]["agents"][0]["id"] == "waf"
    assert done.err == "made\n"


def test_a_remote_agent_that_is_there_is_ready(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        lines = f'protect(app, agents=[AgentConfig("waf", "http://127.0.0.1:{port}", events=["request_headers"])])'
        done = command("check", "main:app", "--json", main=f"{APP}\n{lines}\n")
    assert done.code == 0
    assert (done.json["agents"][0]["state"], done.json["agents"][0]["address"]) == ("ready", f"127.0.0.1:{port}")


def test_the_example_is_checked(command: Command) -> None:
    done = command("check", "example_app.app:create_app", "--factory", "--offline", "--json")
    rows = agents_by_row(done.json)
    assert done.code == 0
    assert rows["GET /api/orders"] == ["api-key", "waf", "waf-next", "pii"]
    assert rows["POST /wishes"] == ["recommender open"]
    assert rows["WS /room/{name}"] == ["api-key", "waf", "moderator"]
    assert rows["GET /healthz"] == []
