"""Mistakes in routes, and in handlers that ask for their agents."""

from typing import Final

from .mistake import Mistake


def _protect(routes: str) -> str:
    return f'protect(app, agents=[AgentConfig("waf", Waf())], {routes})'


_ADMIN: Final = """
@app.get("/admin")
async def admin(): ...

@app.get("/admin/users")
async def users(): ...

"""

ROUTES: Final = (
    Mistake(
        title="An id without a list",
        code=_protect('routes=[AgentRoute("/items", agents="waf")]'),
        instead='`agents=["waf"]`',
    ),
    Mistake(
        title="An AgentConfig in a route",
        code='AgentRoute("/items", agents=[AgentConfig("waf", Waf())])',
        instead='`AgentRoute("/items", agents=["waf"])`, and the `AgentConfig` in `protect(app, agents=[...])`',
    ),
    Mistake(
        title="A failure mode that does not exist, on a route",
        code='AgentRoute("/items", agents=[("waf", "fail-open")])',
        instead='`("waf", "open")`',
    ),
    Mistake(
        title="An agent that does not exist",
        code=_protect('routes=[AgentRoute("/items", agents=["wfa"])]'),
        instead='`agents=["waf"]`',
    ),
    Mistake(
        title="A string of default agents",
        code=_protect('routes=[AgentRoute("/items", agents=[])], default_agents="waf"'),
        instead='`default_agents=["waf"]`',
    ),
    Mistake(
        title="A pair in place of an AgentRoute",
        code=_protect('routes=[("/items", ["waf"])]'),
        instead='`AgentRoute("/items", agents=["waf"])`',
    ),
    Mistake(
        title="The methods of a route as a string",
        code='AgentRoute("/items", agents=["waf"], methods="GET")',
        instead='`methods=["GET"]`',
    ),
    Mistake(
        title="A handler that asks for its agents on a path that has none",
        code="""
@app.get("/chat")
async def chat(agents: Agents): ...

protect(app, agents=[AgentConfig("waf", Waf())], routes=[AgentRoute("/items", agents=["waf"])])
""",
        ask="/chat",
        instead='`AgentRoute("/chat", agents=["waf"])`, or `default_agents=["waf"]`',
    ),
    Mistake(
        title="The same without FastAPI",
        code="""
@app.get("/chat")
async def chat(request: Request):
    agents = AgentContext.of(request)

protect(app, agents=[AgentConfig("waf", Waf())], routes=[AgentRoute("/items", agents=["waf"])])
""",
        ask="/chat",
        instead=(
            "The same. `request.state.agents` is an ordinary attribute: on such a path it raises Starlette's"
            " AttributeError."
        ),
    ),
    Mistake(
        title="A guardrail that does not exist",
        code="""
@app.get("/chat")
async def chat(agents: Agents):
    await agents.inspect_guardrail("llm-guard", "hello", inspection_type="prompt_injection")

protect(app, agents=[AgentConfig("waf", Waf())])
""",
        ask="/chat",
        instead='`AgentConfig("llm-guard", ...)` beside the others; it need not be on the route.',
    ),
    Mistake(
        title="A star for all paths below",
        code=_protect('routes=[AgentRoute("/admin/*", agents=["waf"])]'),
        ask="/items",
        instead='`AgentRoute("/admin/{rest:path}", ...)`',
    ),
    Mistake(
        title="A pattern for everything that is not for the root",
        code=_protect('routes=[AgentRoute("{rest:path}", agents=["waf"])]'),
        ask="/items",
        instead='`AgentRoute("/{rest:path}", ...)`, or no routes at all',
    ),
    Mistake(
        title="A route behind one that takes all of its paths",
        code=_protect(
            'routes=[AgentRoute("/{rest:path}", agents=[]), AgentRoute("/admin/{rest:path}", agents=["waf"])]'
        ),
        ask="/items",
        instead="The more particular route first.",
    ),
    Mistake(
        title="An agent that no route names",
        code=(
            'protect(app, agents=[AgentConfig("waf", Waf()), AgentConfig("api-key", Waf())],\n'
            '        routes=[AgentRoute("/items", agents=["waf"])])'
        ),
        ask="/items",
        instead='`agents=["api-key", "waf"]`, or `default_agents`',
    ),
    Mistake(
        title="A full path in a mounted app",
        code="""
inner = FastAPI()
protect(inner, agents=[AgentConfig("waf", Waf())], routes=[AgentRoute("/inner/items", agents=["waf"])])

@inner.get("/items")
async def items(): ...

app.mount("/inner", inner)
""",
        ask="/inner/items",
        instead='Below the mount: `AgentRoute("/items", agents=["waf"])`.',
    ),
    Mistake(
        title="An app that is wrapped twice",
        code="""
app = AgentMiddleware(app, agents=[AgentConfig("waf", Waf())])
app = AgentMiddleware(app, agents=[AgentConfig("waf", Waf())])
""",
        ask="/items",
        instead="Once.",
    ),
    Mistake(
        title="A route for what is below a path, and not for the path itself",
        code=_ADMIN + _protect('routes=[AgentRoute("/admin/{rest:path}", agents=["waf"])]'),
        ask="/admin",
        instead='`AgentRoute("/admin", agents=["waf"])` beside it',
    ),
    Mistake(
        title="A misspelt method",
        code=_protect('routes=[AgentRoute("/items", agents=["waf"], methods=["GTE"])]'),
        ask="/items",
        instead='`methods=["GET"]`',
    ),
    Mistake(
        title="An agent that does not exist, on an endpoint",
        code="""
@app.get("/admin")
@guarded_by("wfa")
async def admin(): ...

protect(app, agents=[AgentConfig("waf", Waf())])
""",
        ask="/admin",
        instead='`@guarded_by("waf")`',
    ),
    Mistake(
        title="A policy above the decorator that registers the endpoint",
        code="""
@guarded_by("waf")
@app.get("/admin")
async def admin(): ...

protect(app, agents=[AgentConfig("waf", Waf())])
""",
        ask="/admin",
        instead='`@app.get("/admin")` first, `@guarded_by("waf")` below it',
    ),
    Mistake(
        title="A policy on an endpoint, and no agents around the app",
        code="""
@app.get("/admin")
@guarded_by("waf")
async def admin(): ...
""",
        ask="/admin",
        instead='`protect(app, agents=[AgentConfig("waf", Waf())])`',
    ),
)
