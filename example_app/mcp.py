"""The shop for language models: an MCP server with three tools, over streamable HTTP, and what stands in front of it.

It is written by hand, so that the example needs no SDK. It keeps no sessions, and sends nothing that is not asked for.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from anyio import sleep
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError

from asgi_agents.guardrails import Guardrail, ToolPolicy, ToolRule

from .api_key import TAKES_KEY
from .observability import TracedRoute
from .shop import Order

_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
_INVALID_REQUEST, _NO_METHOD, _INVALID_PARAMS = -32600, -32601, -32602

router = APIRouter(route_class=TracedRoute, dependencies=[TAKES_KEY])


def is_large(arguments: Mapping[str, Any]) -> bool:
    """Whether this refund is one for people to decide on."""
    return float(arguments["amount"]) > 50


MCP_GUARDRAILS = (
    ToolPolicy(
        deny=[
            ToolRule("delete_*", reason="nothing is deleted"),
            ToolRule("refund_order", is_large, reason="no refund over 50"),
        ]
    ),
    Guardrail("personal-data", on={"output", "tool_result"}),
)


class Message(BaseModel):
    """A request, a notification (which has no id), or the client's answer (which has no method)."""

    jsonrpc: Literal["2.0"]
    id: int | str | None = None
    method: str | None = None
    params: dict[str, Any] = {}

    @property
    def waits(self) -> bool:
        """Whether somebody waits for an answer."""
        return self.id is not None and self.method is not None

    @property
    def progress_token(self) -> Any:
        """What the client wants to hear of progress under; None if it does not."""
        meta = self.params.get("_meta")
        return meta.get("progressToken") if isinstance(meta, dict) else None


class FindOrders(BaseModel):
    item: str = ""


class OneOrder(BaseModel):
    order: int


class Refund(OneOrder):
    amount: float


class Tool(NamedTuple):
    """What it is for, what it takes, and what it does with the orders."""

    description: str
    arguments: type[BaseModel]
    run: Callable[[list[Order], Any], Mapping[str, Any]]


def _find(orders: list[Order], asked: FindOrders) -> Mapping[str, Any]:
    return {"orders": [order.model_dump(exclude={"phone"}) for order in orders if asked.item in order.item]}


def _refund(orders: list[Order], asked: Refund) -> Mapping[str, Any]:
    return {"refunded": asked.amount}


def _delete(orders: list[Order], asked: OneOrder) -> Mapping[str, Any]:
    orders[:] = [order for order in orders if order.id != asked.order]
    return {"deleted": asked.order}


TOOLS: Mapping[str, Tool] = {
    "find_orders": Tool("Finds orders by a part of their item.", FindOrders, _find),
    "refund_order": Tool("Refunds an amount of an order.", Refund, _refund),
    "delete_order": Tool("Deletes an order, for good.", OneOrder, _delete),
}


@router.post("/mcp", response_model=None)
async def mcp(request: Request) -> Response:
    try:
        message = Message.model_validate_json(await request.body())
    except ValidationError:
        return JSONResponse(_error(None, _INVALID_REQUEST, "this is no message of JSON-RPC"), 400)
    if not message.waits:
        return Response(status_code=202)
    orders: list[Order] = request.app.state.orders
    if message.progress_token is None or "text/event-stream" not in request.headers.get("accept", ""):
        return JSONResponse(_answer(message, orders))
    events = _events(message, orders, request.app.state.token_delay)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _events(message: Message, orders: list[Order], delay: float) -> AsyncIterator[str]:
    """A notification for each order that is looked at, then the answer."""
    for number, order in enumerate(tuple(orders), 1):
        told = {"progressToken": message.progress_token, "progress": number, "message": f"that of {order.email}"}
        yield _event({"jsonrpc": "2.0", "method": "notifications/progress", "params": told})
        await sleep(delay)
    yield _event(_answer(message, orders))


def _event(message: Mapping[str, Any]) -> str:
    return f"event: message\ndata: {json.dumps(message)}\n\n"


def _answer(message: Message, orders: list[Order]) -> Mapping[str, Any]:
    match message.method:
        case "initialize":
            asked = message.params.get("protocolVersion")
            return _result(
                message,
                protocolVersion=asked if asked in _VERSIONS else _VERSIONS[0],
                capabilities={"tools": {}},
                serverInfo={"name": "shop", "version": "1"},
            )
        case "ping":
            return _result(message)
        case "tools/list":
            return _result(message, tools=_listed())
        case "tools/call":
            return _called(message, orders)
        case _:
            return _error(message.id, _NO_METHOD, f"there is no method {message.method}")


def _listed() -> Sequence[Mapping[str, Any]]:
    return [
        {"name": name, "description": tool.description, "inputSchema": tool.arguments.model_json_schema()}
        for name, tool in TOOLS.items()
    ]


def _called(message: Message, orders: list[Order]) -> Mapping[str, Any]:
    tool = TOOLS.get(str(message.params.get("name")))
    if tool is None:
        return _error(message.id, _INVALID_PARAMS, "there is no such tool")
    try:
        arguments = tool.arguments.model_validate(message.params.get("arguments") or {})
    except ValidationError as exc:
        # The model is told, and may try again.
        return _result(message, content=[{"type": "text", "text": str(exc)}], isError=True)
    found = tool.run(orders, arguments)
    return _result(message, content=[{"type": "text", "text": json.dumps(found)}], structuredContent=found)


def _result(message: Message, **result: Any) -> Mapping[str, Any]:
    return {"jsonrpc": "2.0", "id": message.id, "result": result}


def _error(message_id: int | str | None, code: int, text: str) -> Mapping[str, Any]:
    return {"jsonrpc": "2.0", "id": message_id, "error": {"code": code, "message": text}}
