"""An app that says where it was led by a target, and where the agents were."""

from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from asgi_agents import Agent, AgentConfig, AgentMiddleware, AgentResponse, HeaderOp, RequestHeadersEvent, Route


class Judging(Agent):
    """Hands on what it is shown of the target."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.allow(request_headers=[HeaderOp.set("x-judged", quote(event.uri, safe="/%?*"))])


async def lenient(scope: Scope, receive: Receive, send: Send) -> None:
    """As some frameworks do, it takes a path out of whatever it is asked for."""
    if scope["type"] != "http":
        raise RuntimeError("it serves HTTP alone")
    path, root = scope["path"], scope.get("root_path", "")
    if root and path.startswith(f"{root}/"):
        path = path.removeprefix(root)
    if not path.startswith("/"):
        path = urlsplit(path).path or "/"
        path = path if path.startswith("/") else f"/{path}"
    judged = Request(scope).headers.get("x-judged")
    await JSONResponse({"went": path, "judged": judged})(scope, receive, send)


#: All targets are judged.
app = AgentMiddleware(lenient, agents=[AgentConfig("waf", Judging(), sets={"x-judged"})])
#: Those of one path.
routed = AgentMiddleware(
    lenient,
    agents=[AgentConfig("waf", Judging(), sets={"x-judged"})],
    routes=[Route(path, ["waf"]) for path in ("/admin", "/outer/admin")],
)
