"""FastAPI apps for the tests of OpenApiValidation: the same routes, with and without the agent."""

from datetime import date
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Body, Cookie, FastAPI, File, Form, Header, Path, Query, UploadFile, WebSocket
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from starlette.requests import Request

from asgi_agents import AuditRecord, protect
from asgi_agents.agents import OpenApiValidation
from tests.unjudged.asking import config


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str = Field(max_length=5)


def _shape(value: Any) -> str:
    return "circle" if isinstance(value, dict) and "radius" in value else "any"


class Circle(BaseModel):
    radius: int = 0


class AnyShape(BaseModel):
    corners: int = 0


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    a: int
    b: str | None = None


class Everything(BaseModel):
    text: str = Field(min_length=1, max_length=8, pattern=r"^[\w ]+$")
    number: int = Field(ge=-5, lt=100)
    ratio: float | None = None
    flag: bool = False
    colour: Colour = Colour.RED
    size: Size | None = None
    literal: Literal["x", 3] = "x"
    price: Decimal | None = None
    day: date | None = None
    id: UUID | None = None
    either: int | list[str] | None = None
    table: dict[str, int] = {}
    pair: tuple[int, str] | None = None
    tags: set[str] = Field(default_factory=set, max_length=3)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    shape: (
        Annotated[Annotated[Circle, Tag("circle")] | Annotated[AnyShape, Tag("any")], Discriminator(_shape)] | None
    ) = None
    strict: Strict | None = None
    inner: "list[Everything]" = Field(default=[], max_length=2)
    renamed: int = Field(default=1, alias="re-named", multiple_of=3)
    anything: Any = None


class FormModel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    n: int
    s: str = "x"


def routes(app: FastAPI) -> FastAPI:
    """Adds a route for each kind of thing that a request may have."""

    @app.post("/everything")
    async def everything(body: Everything) -> str:
        return "ok"

    @app.post("/list")
    async def many(body: list[int]) -> str:
        return "ok"

    @app.post("/optional")
    async def optional(body: Strict | None = None) -> str:
        return "ok"

    @app.post("/two")
    async def two(a: Annotated[int, Body()], b: Annotated[Strict, Body()]) -> str:
        return "ok"

    @app.get("/search")
    async def search(
        i: Annotated[int | None, Query(ge=0)] = None,
        f: float | None = None,
        b: bool = False,
        s: Annotated[str | None, Query(max_length=5, pattern=r"^\w*$")] = None,
        c: Colour | None = None,
        z: Size | None = None,
        d: date | None = None,
        many: Annotated[list[int], Query(max_length=3)] = [],  # noqa: B006
        mixed: Annotated[list[int | bool | str] | None, Query()] = None,
        dec: Decimal | None = None,
        pair: Annotated[tuple[int, str] | None, Query()] = None,
        trio: Annotated[tuple[bool, int, Colour] | None, Query()] = None,
    ) -> str:
        return "ok"

    @app.get("/headers")
    async def headers(
        x_count: Annotated[int, Header()],
        x_many: Annotated[list[int], Header()] = [],  # noqa: B006
        session: Annotated[int | None, Cookie()] = None,
    ) -> str:
        return "ok"

    @app.get("/paths/{n}/{word}")
    async def paths(n: Annotated[int, Path(ge=1)], word: Annotated[str, Path(max_length=3)]) -> str:
        return "ok"

    @app.get("/converted/{n:int}/{rest:path}")
    async def converted(n: Annotated[int, Path(le=9)], rest: str) -> str:
        return rest

    @app.get("/numbers/{n:int}")
    async def numbers(n: int) -> str:
        return "ok"

    @app.get("/words/{word}")
    async def words(word: int) -> str:
        return "ok"

    @app.websocket("/words/ws")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    @app.websocket("/sockets/{name}")
    async def other_socket(websocket: WebSocket, name: str) -> None:
        await socket(websocket)

    @app.post("/form")
    async def form(
        n: Annotated[int, Form()],
        b: Annotated[bool, Form()] = False,
        s: Annotated[str, Form(max_length=3)] = "",
        many: Annotated[list[int], Form()] = [],  # noqa: B006
    ) -> str:
        return "ok"

    @app.post("/form-model")
    async def form_model(data: Annotated[FormModel, Form()]) -> str:
        return "ok"

    @app.post("/upload")
    async def upload(file: Annotated[UploadFile, File()], n: Annotated[int, Form()] = 1) -> int:
        return len(await file.read())

    @app.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @app.get("/hidden", include_in_schema=False)
    async def hidden() -> str:
        return "ok"

    return app


def guarded_app(app: FastAPI, records: list[AuditRecord] | None = None, source: Any = None, **options: Any) -> FastAPI:
    """The app behind the agent."""
    agent = OpenApiValidation(app if source is None else source, **options)
    protect(app, agents=[config(agent, "openapi")], on_audit=None if records is None else records.append)
    return app
