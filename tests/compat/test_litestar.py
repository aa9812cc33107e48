"""Litestar."""

from typing import Annotated, Any

import pytest
from starlette.types import ASGIApp

from .cases import EVENT_STREAM
from .promises import Promises
from .stage import Handlers

pytest.importorskip("litestar", reason="Litestar is not installed: pip install '.[compat]'")

from litestar import Litestar, Request, get, post
from litestar.datastructures import UploadFile
from litestar.enums import RequestEncodingType
from litestar.params import Body
from litestar.response import Stream


class TestLitestar(Promises):
    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        @post("/echo", status_code=200, media_type="text/plain")
        async def echo(request: Request[Any, Any, Any]) -> bytes:
            with handlers.one():
                return await request.body()

        @post("/form", status_code=200, media_type="text/plain")
        async def form(data: Annotated[dict[str, Any], Body(media_type=RequestEncodingType.MULTI_PART)]) -> str:
            with handlers.one():
                file: UploadFile = data["file"]
                return f"{data['note']} {(await file.read()).decode()}"

        @get("/events")
        async def events() -> Stream:
            return Stream(handlers.words(), media_type=EVENT_STREAM)

        @get("/pieces")
        async def pieces() -> Stream:
            return Stream(handlers.pieces(), media_type="text/plain")

        @get("/endless")
        async def endless() -> Stream:
            return Stream(handlers.endless(), media_type=EVENT_STREAM)

        return Litestar([echo, form, events, pieces, endless])
