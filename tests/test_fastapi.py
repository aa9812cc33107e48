"""The agent context as a parameter of FastAPI handlers."""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from starlette.testclient import TestClient

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentMiddleware,
    AgentResponse,
    AgentsError,
    HeaderOp,
    NoAgentContextError,
    RequestHeadersEvent,
    Route,
    protect,
)
from asgi_agents.fastapi import Agents, agent_context


class Auth(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.allow(
            request_headers=[HeaderOp.set("x-user", "alice")], routing_metadata={"uri": event.uri}
        )


def an_app() -> FastAPI:
    app = FastAPI()
    router = APIRouter(prefix="/routed")

    async def seen_by(agents: Agents) -> Any:
        return agents.routing_metadata["uri"]

    @app.get("/async")
    async def in_the_loop(agents: Agents, request: Request) -> Any:
        assert agents is request.state.asgi_agents
        return agents.routing_metadata

    @app.get("/sync")
    def in_a_thread(agents: Agents, limit: int = 1) -> Any:
        return agents.routing_metadata

    @app.get("/below")
    async def by_a_dependency(uri: Annotated[str, Depends(seen_by)]) -> Any:
        return {"uri": uri}

    @router.get("/{item}")
    async def of_a_router(item: str, agents: Agents) -> Any:
        return agents.routing_metadata

    @app.websocket("/ws")
    async def session(websocket: WebSocket, agents: Agents) -> None:
        await websocket.accept()
        await websocket.send_json(dict(agents.routing_metadata))
        await websocket.close()

    app.include_router(router)
    return app


def client_of(app: Any, backend: str) -> TestClient:
    return TestClient(app, backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/async", "/sync", "/below", "/routed/1"])
@pytest.mark.parametrize("placed", ["protect", "wrapped", "added"])
@pytest.mark.parametrize("state_key", ["agents", None])
def test_a_handler_is_given_the_context_of_its_request(
    anyio_backend: str, path: str, placed: str, state_key: str | None
) -> None:
    app: Any = an_app()
    options: dict[str, Any] = {"agents": [AgentConfig("auth", Auth())], "state_key": state_key}
    if placed == "protect":
        protect(app, **options)
    elif placed == "added":
        app.add_middleware(AgentMiddleware, **options)
    else:
        app = AgentMiddleware(app, **options)
    assert client_of(app, anyio_backend).get(path).json() == {"uri": path}


def test_a_websocket_handler_is_given_the_context_of_its_session(anyio_backend: str) -> None:
    app = an_app()
    protect(app, agents=[AgentConfig("auth", Auth())])
    with client_of(app, anyio_backend).websocket_connect("/ws") as session:
        assert session.receive_json() == {"uri": "/ws"}


def test_the_context_is_no_parameter_of_the_documented_api() -> None:
    operations = an_app().openapi()["paths"]
    assert "parameters" not in operations["/async"]["get"]
    assert [parameter["name"] for parameter in operations["/sync"]["get"]["parameters"]] == ["limit"]


@pytest.mark.parametrize("path", ["/async", "/sync", "/below", "/routed/1", "/ws"])
@pytest.mark.parametrize("guarded", [False, True])
def test_where_no_agents_are_asked_the_error_names_the_path_and_what_to_do(
    anyio_backend: str, path: str, guarded: bool
) -> None:
    app = an_app()
    if guarded:
        protect(app, agents=[AgentConfig("auth", Auth())], routes=[Route("/elsewhere", agents=["auth"])])
    client = client_of(app, anyio_backend)
    ask = client.websocket_connect(path).__enter__ if path == "/ws" else partial(client.get, path)
    message = f"'{path}' asks for its agents, and this path has none; expected protect.*one that gives agents"
    with pytest.raises(NoAgentContextError, match=message):
        ask()
    assert issubclass(NoAgentContextError, AgentsError)


def test_a_path_is_printable_in_the_error(anyio_backend: str) -> None:
    with pytest.raises(NoAgentContextError) as raised:
        client_of(an_app(), anyio_backend).get("/routed/a%0ab%1b")
    assert str(raised.value).isprintable()


def test_something_else_of_that_name_is_no_context(anyio_backend: str) -> None:
    app = an_app()

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["asgi_agents"] = "something else"
        await app(scope, receive, send)

    with pytest.raises(NoAgentContextError):
        client_of(outside, anyio_backend).get("/async")


def test_a_test_can_put_another_context_in_its_place(anyio_backend: str) -> None:
    app = an_app()
    app.dependency_overrides[agent_context] = lambda: SimpleNamespace(routing_metadata={"uri": "stub"})
    assert client_of(app, anyio_backend).get("/sync").json() == {"uri": "stub"}


def test_nobody_needs_fastapi_to_import_the_package() -> None:
    program = """
import sys
sys.modules["fastapi"] = None
import asgi_agents
try:
    import asgi_agents.fastapi
except asgi_agents.ConfigurationError as exc:
    print(exc)
"""
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "asgi_agents.fastapi: expected FastAPI to be there: pip install fastapi"


def test_the_type_of_the_parameter_is_the_contexts() -> None:
    async def handler(agents: Agents) -> str:
        context: AgentContext = agents
        return context.correlation_id

    assert handler.__annotations__["agents"] is Agents
