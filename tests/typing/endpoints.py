"""Policies on endpoints: a decorator gives back the type of the handler, a router its own."""

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.routing import Host, Mount, Router
from starlette.websockets import WebSocket

from asgi_agents import AgentConfig, FailureMode, guard_router, guarded_by, protect, unguarded
from asgi_agents.fastapi import describe_agents
from asgi_agents.guardrails import Guardrail, ToolPolicy

from .agents import Everything

app = FastAPI()


@app.get("/orders")
@guarded_by("api-key", ("waf", FailureMode.OPEN), ("pii", "closed"))
async def orders(limit: int, after: str = "") -> list[str]:
    """A handler with a policy, called as if it had none."""
    return [after] * limit


@guarded_by("waf", guardrails=[Guardrail("pii", on={"output"}), ToolPolicy(allow=["search"])])
def sync(item_id: int) -> str:
    """One that is not async."""
    return str(item_id)


@unguarded
async def session(websocket: WebSocket) -> None:
    """A websocket handler without agents."""


@guarded_by("waf")
class Endpoint(HTTPEndpoint):
    """A class, which stays that class."""

    size = 3


async def called() -> None:
    """What the decorators give back has the types of before."""
    assert_type(await orders(1, after="x"), list[str])
    assert_type(sync(1), str)
    assert_type(Endpoint.size, int)
    await orders("1")  # type: ignore[arg-type]
    sync()  # type: ignore[call-arg]


plain: Callable[[int], str] = sync
socket: Callable[[WebSocket], Coroutine[Any, Any, None]] = session
assert_type(guard_router(APIRouter(), "auth"), APIRouter)
assert_type(guard_router(app, "auth"), FastAPI)
assert_type(guard_router(Mount("/", Starlette()), ("auth", "open")), Mount)
assert_type(guard_router(Host("a", Router()), "auth", guardrails=[]), Host)
assert_type(describe_agents(app, protect(app, agents=[AgentConfig("auth", Everything())])), None)

guarded_by("waf", ("pii", "fail-open"))  # type: ignore[arg-type]
guarded_by(["waf"])  # type: ignore[arg-type]
guarded_by("waf")(1)  # type: ignore[type-var]
guard_router(orders, "auth")  # type: ignore[type-var]
