"""The shop's own endpoints. None of them knows about agents."""

import hashlib

from fastapi import APIRouter, Request, UploadFile
from pydantic import BaseModel

from .api_key import TAKES_KEY, TAKES_TOKEN, User
from .observability import TracedRoute

router = APIRouter(route_class=TracedRoute)


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


@router.get("/api/orders", dependencies=[TAKES_KEY])
async def list_orders(request: Request, q: str = "") -> list[Order]:
    orders: list[Order] = request.app.state.orders
    return [order for order in orders if q.casefold() in order.item]


@router.post("/api/orders", status_code=201, dependencies=[TAKES_KEY])
async def create_order(request: Request, new: NewOrder, user: User) -> Order:
    orders: list[Order] = request.app.state.orders
    order = Order(**new.model_dump(), id=len(orders) + 1, customer=user, email=f"{user}@example.com", phone="", card="")
    orders.append(order)
    return order


@router.post("/api/upload", dependencies=[TAKES_KEY])
async def upload(file: UploadFile) -> Upload:
    digest, size = hashlib.sha256(), 0
    while piece := await file.read(64 * 1024):
        digest.update(piece)
        size += len(piece)
    return Upload(name=file.filename or "", size=size, sha256=digest.hexdigest())


@router.get("/admin/stats", dependencies=[TAKES_TOKEN])
async def stats(request: Request, user: User) -> dict[str, str | int]:
    return {"orders": len(request.app.state.orders), "asked_by": user}
