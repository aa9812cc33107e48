"""An app, its agents around it, and its handlers."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, assert_type

from fastapi import Depends, FastAPI, Form, Request, WebSocket
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import (
    AgentConfig,
    AgentContext,
    AgentDecision,
    AgentManager,
    AgentMiddleware,
    AgentReference,
    AgentRoute,
    AuditHook,
    AuditMetadata,
    AuditRecord,
    Challenge,
    ChallengeRenderer,
    Configuration,
    ErrorInfo,
    ErrorRenderer,
    FailureMode,
    GuardrailResponse,
    GuardrailUnavailableError,
    InspectedText,
    NoAgentContextError,
    Redact,
    Route,
    UnknownGuardrailError,
    Verdict,
    fastapi_error,
    load,
    protect,
    redact_secrets,
)
from asgi_agents.fastapi import Agents, agent_context, inspected
from asgi_agents.guardrails import Found, ToolPolicy

from .agents import Everything

app = FastAPI()


@app.post("/chat")
async def chat(prompt: str, agents: Agents) -> str:
    """A handler of FastAPI: the parameter has the type of the context."""
    assert_type(agents, AgentContext)
    answer = await agents.inspect_guardrail("llm-guard", prompt, inspection_type="prompt_injection")
    assert_type(answer, GuardrailResponse)
    try:
        await agents.inspect_guardrail("llm-guard", prompt, inspection_type="pii", model="m", categories=["name"])
    except GuardrailUnavailableError as exc:
        assert_type(exc.status_code, int)
    assert_type(agents.correlation_id, str)
    assert_type(agents.route, str | None)
    assert_type(agents.decision, AgentDecision)
    assert_type(agents.decision.verdicts, Sequence[Verdict])
    assert_type(agents.audit, Sequence[tuple[str, AuditMetadata]])
    assert_type(agents.verdicts_forgotten, int)
    return agents.routing_metadata["tenant"]


class Review(BaseModel):
    """A body with a field that is judged."""

    comment: str


@app.post("/review")
async def review(judged: Annotated[Review, Depends(inspected(Review, comment="pii"))]) -> str:
    """A handler that gets its body judged, in the type of the model."""
    assert_type(judged, Review)
    return judged.comment


@app.post("/text")
async def text(prompt: str, agents: Agents) -> str:
    """A handler that has a text judged."""
    try:
        result = await agents.inspect(prompt, guardrail="pii", kind="output", model="m")
    except UnknownGuardrailError:
        return ""
    assert_type(result, InspectedText)
    assert_type(result.blocked, bool)
    assert_type(result.reason, str | None)
    assert_type(result.found, Sequence[Found])
    await agents.inspect(prompt, guardrail="pii", kind="outptu")  # type: ignore[arg-type]
    await agents.inspect(prompt, "pii")  # type: ignore[call-arg]
    return result.text


assert_type(inspected(Review, Form(), comment="pii"), Callable[..., Awaitable[Review]])
inspected(Review, comment=1)  # type: ignore[arg-type]


@app.websocket("/session")
async def session(websocket: WebSocket, agents: Agents) -> None:
    """A websocket handler."""
    assert_type(agents, AgentContext)
    await websocket.accept()


@app.get("/without")
async def without(request: Request) -> dict[str, Any]:
    """A handler without the dependency."""
    try:
        agents = AgentContext.of(request)
    except NoAgentContextError:
        return {}
    assert_type(agents, AgentContext)
    return {"id": agents.correlation_id}


def overridden() -> None:
    """A test puts another context in place of the real one."""
    app.dependency_overrides[agent_context] = lambda: None


def challenged(challenge: Challenge, scope: Scope) -> Response:
    """A renderer of challenges."""
    return Response(challenge.challenge_type, 401)


def rendered(error: ErrorInfo, scope: Scope) -> Response:
    """A renderer of denials and failures."""
    assert_type(error.status, int)
    return JSONResponse({"detail": error.detail}, error.status)


def audited(record: AuditRecord) -> None:
    """A hook for audit records."""
    assert_type(record.decided_by, str | None)


render_challenge: ChallengeRenderer = challenged
render_error: ErrorRenderer = rendered
on_audit: AuditHook = audited
redact: Redact = redact_secrets
references: list[AgentReference] = ["waf", ("llm-guard", "open"), ("other", FailureMode.CLOSED)]
routes = [AgentRoute("/healthz", []), AgentRoute("/api/{rest:path}", references, methods=["GET"])]

guard = protect(
    app,
    agents=[AgentConfig("waf", Everything())],
    routes=routes,
    default_agents=["waf"],
    challenge_renderer=render_challenge,
    render_error=render_error,
    state_key=None,
    stop_grace=2,
    correlation_header="x-correlation-id",
    expose_correlation_id=True,
    audit_headers={"user-agent"},
    on_audit=on_audit,
    audit_redact=redact,
    outside=[Middleware(CORSMiddleware, allow_origins=["*"])],
    debug=True,
)
assert_type(guard, AgentMiddleware)
assert_type(guard.manager, AgentManager)

inner = Starlette()
inner.add_middleware(AgentMiddleware, manager=guard.manager, routes=[Route("/", ["waf"])])
protect(inner, manager=guard.manager, audit_redact=None, render_error=fastapi_error)

configuration = load(
    Path("agents.toml"),
    agents=[AgentConfig("waf", Everything())],
    guardrails=[ToolPolicy(deny=["delete_*"])],
    imports=["my_app.agents"],
    environ={"TOKEN": "x"},
)
assert_type(configuration, Configuration)
assert_type(configuration.agents, Sequence[AgentConfig])
protect(inner, **configuration.arguments)
from_file = protect(inner, config="agents.toml", imports=["my_app.agents"], reload="on-change")
protect(inner, config=Path("agents.toml"), reload="on-sighup", agents=[AgentConfig("waf", Everything())])
protect(inner, config=Path("agents.toml"), reload="always")  # type: ignore[arg-type]


async def reload_it() -> None:
    await from_file.reload()


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI app of no framework."""


wrapped: ASGIApp = AgentMiddleware(plain, agents=[AgentConfig("waf", Everything())])
Injected = Annotated[AgentContext, "a dependency of one's own"]

protect(plain, agents=[])  # type: ignore[arg-type]
AgentMiddleware(plain, [AgentConfig("waf", Everything())])  # type: ignore[arg-type]
AgentMiddleware(plain, agent=[])  # type: ignore[call-arg]
AgentMiddleware(plain, agents=[Everything()])  # type: ignore[list-item]
AgentMiddleware(plain, agents=[], routes=[("/", ["waf"])])  # type: ignore[list-item]
AgentRoute("/")  # type: ignore[call-arg]
AgentRoute("/", [("waf", "fail-open")])  # type: ignore[list-item]
AgentRoute("/", ["waf"], ["GET"])  # type: ignore[call-arg]
