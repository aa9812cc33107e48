"""OpenApiValidation of responses: what breaks the description is blocked or reported, and all else passes."""

import gzip
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from asgi_agents import AuditRecord
from asgi_agents.agents import OpenApiValidation
from tests.unjudged.asking import config, protect

JSON = "application/json"
HEADERS = {200: {"headers": {"X-Rest": {"required": True, "schema": {"type": "integer", "minimum": 0}}}}}


class Item(BaseModel):
    name: str
    price: float | None = None


def shop() -> FastAPI:
    """Says what the request asks it to say, whatever its description has."""
    app = FastAPI()

    @app.api_route("/item", methods=["GET"], response_model=Item, responses={404: {"model": Item}, "5XX": {}})
    async def item(body: str, status: int = 200, media: str = JSON, encoding: str = "") -> Response:
        data = body.encode()
        headers = {"content-encoding": encoding} if encoding else {}
        return Response(gzip.compress(data) if encoding else data, status, headers, media_type=media)

    @app.get("/right", response_model=Item)
    async def right() -> Any:
        return {"name": "lamp", "price": 3, "secret": "x"}

    @app.get("/errors")
    async def errors(kind: str) -> Any:
        if kind == "redirect":
            return RedirectResponse("/right")
        if kind == "http":
            raise HTTPException(418, "teapot")
        raise RuntimeError(kind)

    @app.get("/no-content", status_code=204)
    async def no_content() -> None:
        return None

    @app.get("/rest", responses=HEADERS)  # type: ignore[arg-type]
    async def rest(value: str | None = None) -> JSONResponse:
        return JSONResponse(1, headers={} if value is None else {"x-rest": value})

    @app.get("/stream", response_class=StreamingResponse)
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b"x" * 100_000

        return StreamingResponse(pieces(), media_type="text/plain")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, exc: RequestValidationError) -> Response:
        return JSONResponse({"detail": {"not": "as FastAPI says it"}}, 422)

    @app.get("/hidden", include_in_schema=False)
    async def hidden() -> str:
        return "anything"

    return app


def guarded(records: list[AuditRecord], action: str, **options: Any) -> FastAPI:
    app = shop()
    agent = OpenApiValidation(app, requests="off", responses=action)  # type: ignore[arg-type]
    protect(app, agents=[config(agent, "contract", **options)], on_audit=records.append)
    return app


@pytest.fixture(params=["block", "report"])
def asked(request: pytest.FixtureRequest) -> Iterator[tuple[str, TestClient, list[AuditRecord]]]:
    records: list[AuditRecord] = []
    with TestClient(guarded(records, request.param), raise_server_exceptions=False) as client:
        yield request.param, client, records


def given(body: Any, **query: Any) -> dict[str, Any]:
    return {"body": body if isinstance(body, str) else json.dumps(body), **query}


@pytest.mark.parametrize(
    ("url", "query", "code", "rule"),
    [
        ("/item", given({}), "response_body", "#/components/schemas/Item/required"),
        ("/item", given({"name": 1}), "response_body", "#/components/schemas/Item/properties/name/type"),
        ("/item", given("{"), "response_body", None),
        ("/item", given('{"name":"a","name":"b"}'), "response_body", None),
        ("/item", given('{"name":"a","price":NaN}'), "response_body", None),
        ("/item", given({}, status=404), "response_body", "#/components/schemas/Item/required"),
        ("/item", given("x", media="text/html"), "response_content_type", "#/paths/~1item/get/responses/200/content"),
        ("/item", given("x", media=""), "response_content_type", "#/paths/~1item/get/responses/200/content"),
        ("/item", given({"name": "a"}, status=201), "response_status", "#/paths/~1item/get/responses"),
        ("/rest", {}, "response_header", "#/paths/~1rest/get/responses/200/headers/X-Rest/required"),
        ("/rest", {"value": "-1"}, "response_header", "#/paths/~1rest/get/responses/200/headers/X-Rest/schema/minimum"),
    ],
)
def test_what_breaks_the_description_is_blocked_or_reported(
    asked: tuple[str, TestClient, list[AuditRecord]], url: str, query: dict[str, Any], code: str, rule: str | None
) -> None:
    action, client, records = asked
    response = client.get(url, params=query)
    [answer] = [answer for answer in records[0].answers if answer.reason_codes]
    assert (answer.reason_codes, answer.rule_ids, answer.tags) == ([code], [rule] if rule else [], ["openapi"])
    if action == "block":
        assert response.status_code == 500
        assert response.json() == {
            "type": "about:blank",
            "title": "Internal Server Error",
            "status": 500,
            "detail": "The response does not conform to the description of the API",
        }
    else:
        assert response.status_code == query.get("status", 200)
        assert response.text == query.get("body", "1")


@pytest.mark.parametrize(
    ("url", "query", "status"),
    [
        ("/item", given({"name": "a", "price": 1, "more": 1}), 200),
        ("/item", given({"name": "a"}, media="application/json; charset=utf-8"), 200),
        ("/item", given({"name": "a"}, media="application/hal+json"), 200),
        ("/item", given("x", status=500, media="text/plain"), 500),
        ("/right", {}, 200),
        ("/errors", {"kind": "http"}, 418),
        ("/errors", {"kind": "bug"}, 500),
        ("/errors", {}, 422),
        ("/no-content", {}, 204),
        ("/rest", {"value": "3"}, 200),
        ("/stream", {}, 200),
        ("/hidden", {}, 200),
        ("/nothing", {}, 404),
        ("/openapi.json", {}, 200),
        ("/docs", {}, 200),
    ],
)
def test_what_the_description_allows_or_says_nothing_of_passes(
    asked: tuple[str, TestClient, list[AuditRecord]], url: str, query: dict[str, Any], status: int
) -> None:
    _, client, records = asked
    assert client.get(url, params=query).status_code == status
    assert not [answer for answer in records[0].answers if answer.reason_codes or answer.failure]
    redirected = client.get("/errors", params={"kind": "redirect"}, follow_redirects=False)
    assert redirected.status_code == 307


def test_a_compressed_response_is_judged_where_it_is_decoded_and_never_taken_for_judged() -> None:
    for decode, status, failures in ((True, 200, 0), (False, 503, 1)):
        records: list[AuditRecord] = []
        with TestClient(guarded(records, "block", decode=decode)) as client:
            query = given({"name": "a"}, encoding="gzip")
            assert client.get("/item", params=query, headers={"accept-encoding": "gzip"}).status_code == status
            assert len([answer for answer in records[0].answers if answer.failure]) == failures
            if decode:
                query = given({}, encoding="gzip")
                assert client.get("/item", params=query, headers={"accept-encoding": "gzip"}).status_code == 500
