"""The shop's endpoints. None of them knows about agents, but for the chat, which asks one about the prompt."""

import hashlib
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, HTTPException, Request, UploadFile, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from asgi_agents import AgentContext

from . import chat
from .tracing import TracedRoute

router = APIRouter(route_class=TracedRoute)

# Set by the ApiKey agent, on the routes that name it.
User = Annotated[str, Header(alias="x-user")]


class NewOrder(BaseModel):
    item: str
    note: str = ""


class Order(NewOrder):
    id: int
    customer: str
    email: str
    phone: str
    card: str


class Upload(BaseModel):
    name: str
    size: int
    sha256: str


class Prompt(BaseModel):
    prompt: str


def first_orders() -> list[Order]:
    """What the shop opens with."""
    return [
        Order(
            id=1,
            item="lamp",
            customer="alice",
            email="alice.smith@example.com",
            phone="+1 202 555 0143",
            card="4111 1111 1111 1111",
        ),
        Order(
            id=2,
            item="gift box, select wood",
            customer="bob",
            email="bob@example.org",
            phone="(202) 555-0178",
            card="3782 822463 10005",
        ),
    ]


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/api/orders")
async def list_orders(request: Request, q: str = "") -> list[Order]:
    orders: list[Order] = request.app.state.orders
    return [order for order in orders if q.casefold() in order.item]


@router.post("/api/orders", status_code=201)
async def create_order(request: Request, new: NewOrder, user: User) -> Order:
    orders: list[Order] = request.app.state.orders
    order = Order(**new.model_dump(), id=len(orders) + 1, customer=user, email=f"{user}@example.com", phone="", card="")
    orders.append(order)
    return order


@router.post("/api/upload")
async def upload(file: UploadFile) -> Upload:
    digest, size = hashlib.sha256(), 0
    while piece := await file.read(64 * 1024):
        digest.update(piece)
        size += len(piece)
    return Upload(name=file.filename or "", size=size, sha256=digest.hexdigest())


@router.get("/api/chat")
async def chat_get(request: Request, prompt: str) -> StreamingResponse:
    return await _answer(request, prompt)


@router.post("/api/chat")
async def chat_post(request: Request, body: Prompt) -> StreamingResponse:
    return await _answer(request, body.prompt)


async def _answer(request: Request, prompt: str) -> StreamingResponse:
    agents: AgentContext = request.state.agents
    found = await agents.inspect_guardrail("pii", prompt, inspection_type="pii_detection")
    if found.detected:
        kinds = ", ".join(sorted({detection.category for detection in found.detections}))
        raise HTTPException(422, f"Please ask again without personal data. Found: {kinds}")
    delay: float = request.app.state.token_delay

    async def events() -> AsyncIterator[str]:
        for token in chat.tokens(chat.answer(prompt)):
            yield f"data: {token}\n\n"
            await anyio.sleep(delay)
        yield "event: done\ndata:\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})


@router.get("/admin/stats")
async def stats(request: Request, user: User) -> dict[str, str | int]:
    return {"orders": len(request.app.state.orders), "asked_by": user}


@router.get("/demo/flaky")
async def behind_a_flaky_agent() -> dict[str, str]:
    return {"status": "the agent was well"}


@router.post("/demo/wishes")
async def wish(request: Request) -> dict[str, str]:
    return {"you may like": request.headers.get("x-may-like", "something")}


@router.websocket("/room/{name}")
async def room(websocket: WebSocket, name: str, user: User) -> None:
    await websocket.accept()
    with websocket.app.state.rooms.joined(name, websocket):
        async for text in websocket.iter_text():
            await websocket.app.state.rooms.say(name, f"{user}: {text}")
