"""Mistakes in putting agents around an app."""

from typing import Final

from .mistake import Mistake

PLACEMENT: Final = (
    Mistake(
        title="No agents",
        code="protect(app)",
        instead='`protect(app, agents=[AgentConfig("waf", Waf())])`',
    ),
    Mistake(
        title="An empty list of agents",
        code="protect(app, agents=[])",
        instead="`manager=AgentManager()` where agents are added later.",
    ),
    Mistake(
        title="An agent without its configuration",
        code="protect(app, agents=[Waf()])",
        instead='`agents=[AgentConfig("waf", Waf())]`',
    ),
    Mistake(
        title="One agent without a list",
        code='protect(app, agents=AgentConfig("waf", Waf()))',
        instead='`agents=[AgentConfig("waf", Waf())]`',
    ),
    Mistake(
        title="Arguments without their names",
        code='AgentMiddleware(app, [AgentConfig("waf", Waf())])',
        instead="`AgentMiddleware(app, agents=[...])`",
    ),
    Mistake(
        title="Two calls for two agents",
        code="""
protect(app, agents=[AgentConfig("waf", Waf())])
protect(app, agents=[AgentConfig("waf-2", Waf())])
""",
        instead="One call with both.",
    ),
    Mistake(
        title="A middleware beside protect",
        code="""
app.add_middleware(AgentMiddleware, agents=[AgentConfig("waf", Waf())])
protect(app, agents=[AgentConfig("waf", Waf())])
""",
        instead="`protect` alone.",
    ),
    Mistake(
        title="An app that is no Starlette app",
        code="""
async def plain(scope, receive, send): ...

protect(plain, agents=[AgentConfig("waf", Waf())])
""",
        instead="`plain = AgentMiddleware(plain, agents=[...])`",
    ),
    Mistake(
        title="The class of a middleware in outside",
        code='protect(app, agents=[AgentConfig("waf", Waf())], outside=[CORSMiddleware])',
        instead="`outside=[Middleware(CORSMiddleware, allow_origins=[...])]`",
    ),
    Mistake(
        title="A name in outside",
        code='protect(app, agents=[AgentConfig("waf", Waf())], outside=["cors"])',
        instead="`outside=[Middleware(CORSMiddleware, allow_origins=[...])]`",
    ),
    Mistake(
        title="The middleware as a function",
        code='app.middleware("http")(AgentMiddleware)',
        ask="/items",
        instead="`protect(app, agents=[...])`",
    ),
    Mistake(
        title="An instance in add_middleware",
        code='app.add_middleware(AgentMiddleware(app, agents=[AgentConfig("waf", Waf())]))',
        ask="/items",
        instead="The class: `app.add_middleware(AgentMiddleware, agents=[...])`; or `protect(app, agents=[...])`.",
    ),
    Mistake(
        title="A list of agents for the status page",
        code='app.mount("/-/agents", status_app([AgentConfig("waf", Waf())]))',
        instead=(
            "One manager for both: `manager = AgentManager([...])`, `protect(app, manager=manager)`,"
            " `status_app(manager)`."
        ),
    ),
    Mistake(
        title="The middleware for the status page",
        code="""
guard = protect(app, agents=[AgentConfig("waf", Waf())])
app.mount("/-/agents", status_app(guard))
""",
        instead="`status_app(guard.manager)`",
    ),
)
