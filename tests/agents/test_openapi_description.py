"""Which description OpenApiValidation judges by: of apps within apps, of files, and of what is wrong in them."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route

from asgi_agents import AgentError, AgentMiddleware, AuditRecord, ConfigurationError
from asgi_agents.agents import OpenApiValidation
from tests.support.asgi import App, Client
from tests.support.examples import some_are_short
from tests.unjudged.asking import ask, config, protect

from .openapi_apps import guarded_app, routes

PROBLEM = "application/problem+json"
LIMIT = {"name": "limit", "in": "query", "schema": {"$ref": "#/components/schemas/Limit"}}
DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Shop", "version": "1"},
    "paths": {
        "/items/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}],
            "get": {"parameters": [{"$ref": "#/components/parameters/Limit"}], "responses": {}},
            "put": {"requestBody": {"$ref": "#/components/requestBodies/Item"}, "responses": {}},
        },
        "/items/new": {"get": {"responses": {}}},
        "/reports/{year}-{month}": {
            "get": {"parameters": [{"name": "month", "in": "path", "schema": {"maxLength": 2}, "required": True}]}
        },
        "/a~1b/{x y}/%7B": {"get": {"parameters": [LIMIT]}},
        "/styles": {
            "get": {
                "parameters": [
                    {**LIMIT, "name": "deep", "style": "deepObject", "required": True},
                    {
                        "name": "csv",
                        "in": "query",
                        "explode": False,
                        "schema": {"type": "array", "items": {"type": "integer"}},
                    },
                    {"name": "Accept", "in": "header", "required": True, "schema": {"const": "x"}},
                    {"name": "Json", "in": "header", "content": {"application/json": {"schema": {"const": 1}}}},
                ]
            }
        },
    },
    "components": {
        "schemas": {"Limit": {"type": "integer", "maximum": 9}, "Item": {"type": "object", "required": ["n"]}},
        "parameters": {"Limit": LIMIT},
        "requestBodies": {
            "Item": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Item"}},
                    "text/*": {},
                },
            }
        },
    },
}


def changed(*keys: str | int, to: Any) -> dict[str, Any]:
    """The description with something else in one place."""
    root = deepcopy(DESCRIPTION)
    node: Any = root
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = to
    return root


def asking(method: str, target: str, headers: dict[str, str], body: bytes | None = None) -> Client:
    path, _, query = target.partition("?")
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    client = Client(method, path, headers=fields, body=body)
    client.scope["query_string"] = query.encode()
    return client


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status"),
    [
        ("GET", "/items/1?limit=9", None, {}, 200),
        ("GET", "/items/1?limit=10", None, {}, 422),
        ("GET", "/items/x", None, {}, 422),
        ("HEAD", "/items/x", None, {}, 422),
        ("GET", "/items/new", None, {}, 200),
        ("PUT", "/items/1", b'{"n":1}', {"content_type": "application/json"}, 200),
        ("PUT", "/items/1", b"{}", {"content_type": "application/json"}, 422),
        ("PUT", "/items/1", b"{}", {"content_type": "text/csv"}, 200),
        ("PUT", "/items/1", b"{}", {"content_type": "image/png"}, 415),
        ("PUT", "/items/1", None, {}, 422),
        ("GET", "/reports/2026-12", None, {}, 200),
        ("GET", "/reports/2026-123", None, {}, 422),
        ("GET", "/a~1b/1/%7B?limit=x", None, {}, 422),
        ("GET", "/styles?csv=1,2", None, {"json": "2"}, 422),
        ("GET", "/styles?csv=1,x&deep=x", None, {"json": "2"}, 200),
        ("GET", "/items/1/more", None, {}, 200),
        ("GET", "/styles\n", None, {"json": "2"}, 422),  # Starlette runs the route
        ("DELETE", "/items/1", None, {}, 200),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
async def test_a_description_alone_will_do(
    tmp_path: Path, as_file: bool, method: str, target: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    source: Any = DESCRIPTION
    if as_file:
        source = tmp_path / "openapi.json"
        source.write_text(json.dumps(DESCRIPTION))
    app = App()
    client = asking(method, target, headers, body)
    if "%" in target:
        client.scope["path"] = "/a~1b/1/%7B"
        client.scope["raw_path"] = b"/a~1b/1/%257B"
    await ask(app, config(OpenApiValidation(source)), client=client)
    assert client.status == status
    assert app.calls == (status == 200)


OBJECT = {"$ref": "#/components/schemas/Range"}
LIST = {"type": "array", "items": {"type": "integer"}}


@pytest.mark.parametrize(
    ("parameter", "target", "headers", "status"),
    [
        ({"in": "query", "style": "deepObject", "schema": OBJECT}, "/x?range[min]=1", {}, 200),
        ({"in": "query", "style": "deepObject", "schema": OBJECT}, "/x?ranges[min]=1", {}, 422),
        ({"in": "query", "schema": OBJECT}, "/x?min=1", {}, 200),
        ({"in": "query", "schema": {"anyOf": [OBJECT, {"type": "null"}]}}, "/x?min=1", {}, 200),
        ({"in": "query", "explode": False, "schema": OBJECT}, "/x?range=min,1", {}, 200),
        ({"in": "query", "explode": False, "schema": OBJECT}, "/x?min=1", {}, 422),
        ({"in": "query", "style": "pipeDelimited", "explode": False, "schema": LIST}, "/x?range=1|2", {}, 200),
        ({"in": "query", "schema": LIST}, "/x?range=1&range=2", {}, 200),
        ({"in": "query", "schema": LIST}, "/x?range=1,2", {}, 422),
        ({"in": "header", "schema": OBJECT}, "/x", {"range": "min,1"}, 200),
        ({"in": "header", "schema": LIST}, "/x", {"range": "1"}, 200),
        ({"in": "header", "schema": LIST}, "/x", {"range": "1, 2"}, 200),
        ({"in": "header", "schema": LIST}, "/x", {"range": "1, x"}, 422),
        ({"in": "header", "schema": LIST}, "/x", {}, 422),
        ({"in": "path", "schema": OBJECT}, "/min,1", {}, 200),
        ({"in": "path", "style": "label", "schema": LIST}, "/.1.2", {}, 200),
    ],
)
async def test_parameters_of_other_styles_are_refused_where_they_are_missing_alone(
    parameter: dict[str, Any], target: str, headers: dict[str, str], status: int
) -> None:
    described = {**parameter, "name": "range", "required": True}
    source = changed("paths", to={"/{range}": {"get": {"parameters": [described]}}})
    source["components"]["schemas"]["Range"] = {"type": "object", "properties": {"min": {"type": "integer"}}}
    app, client = App(), asking("GET", target, headers)
    await ask(app, config(OpenApiValidation(source)), client=client)
    assert client.status == status
    assert app.calls == (status == 200)


@pytest.mark.parametrize(
    ("described", "status"),
    [({"type": "integer"}, 422), ({"type": "object"}, 200), ({"type": "array", "items": {"properties": {}}}, 200)],
)
async def test_forms_with_objects_are_left_to_the_app(described: dict[str, Any], status: int) -> None:
    schema = {"type": "object", "properties": {"range": described}}
    content = {"application/x-www-form-urlencoded": {"schema": schema}}
    source = changed("paths", to={"/x": {"post": {"requestBody": {"content": content}}}})
    client = asking("POST", "/x", {"content_type": "application/x-www-form-urlencoded"}, b"range=%7B%22min%22:1%7D")
    await ask(App(), config(OpenApiValidation(source)), client=client)
    assert client.status == status


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("GET", "/api/items/1", {}, 200),
        ("GET", "/items/1", {}, 200),
        ("GET", "/api/items/x", {}, 422),
        ("GET", "/apiitems/1", {}, 404),
        ("GET", "/items/1/more", {}, 404),
        ("DELETE", "/items/1", {}, 404),
        ("OPTIONS", "/items/1", {}, 404),
        ("OPTIONS", "/items/1", {"origin": "https://a.example", "access_control_request_method": "PUT"}, 404),
    ],
)
async def test_what_a_description_lacks_may_be_blocked(
    method: str, target: str, headers: dict[str, str], status: int
) -> None:
    agent = OpenApiValidation(DESCRIPTION, undocumented="block", root_path="/api/")
    client = await ask(App(), config(agent), client=asking(method, target, headers))
    assert client.status == status


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no source": (3, {}, "source is 3, expected a FastAPI app, an OpenAPI description or a path"),
    "an app of Starlette": (Starlette(), {}, "source is a Starlette, expected a FastAPI app"),
    "no file": ("/nowhere/openapi.json", {}, "'/nowhere/openapi.json' can't be read: "),
    "no object": ({}, {}, "openapi is None, expected '3.1.0' or later"),
    "3.0": (changed("openapi", to="3.0.3"), {}, "openapi is '3.0.3', expected '3.1.0' or later"),
    "no JSON": (changed("x", to={1, 2}), {}, "the description is no JSON: "),
    "no paths": (changed("paths", to=[]), {}, "paths is a list, expected an object"),
    "no path": (changed("paths", "/x", to=[]), {}, "#/paths/~1x is a list, expected an object"),
    "no operation": (changed("paths", "/x", to={"get": []}), {}, "#/paths/~1x/get is no object, expected an operation"),
    "no parameter": (
        changed("paths", "/items/{id}", "get", "parameters", to=[{"name": "x"}]),
        {},
        "#/paths/~1items~1{id}/get/parameters/0 is no parameter, expected one with name and in",
    ),
    "no type": (
        changed("components", "schemas", "Limit", "type", to="int"),
        {},
        "the schema at #/components/parameters/Limit/schema: ",
    ),
    "no pattern": (
        changed("components", "schemas", "Limit", "pattern", to="("),
        {},
        "the schema at #/components/parameters/Limit/schema: ",
    ),
    "nothing there": (
        changed("components", "parameters", to={}),
        {},
        "#/paths/~1items~1{id}/get/parameters/0 refers to #/components/parameters/Limit, which is not there",
    ),
    "elsewhere": (
        changed("components", "schemas", "Limit", "$ref", to="http://127.0.0.1:9/x.json"),
        {},
        "http://127.0.0.1:9/x.json",
    ),
    "in circles": (
        changed("components", "parameters", "Limit", to={"$ref": "#/components/parameters/Limit"}),
        {},
        "#/paths/~1items~1{id}/get/parameters/0 refers to itself",
    ),
    "requests": (DESCRIPTION, {"requests": "deny"}, "requests='deny', expected one of block, report, off"),
    "responses": (DESCRIPTION, {"responses": True}, "responses=True, expected one of block, report, off"),
    "undocumented": (DESCRIPTION, {"undocumented": "deny"}, "undocumented='deny', expected one of pass, block"),
    "nothing": (DESCRIPTION, {"requests": "off"}, "requests and responses are 'off'"),
    "both": (
        DESCRIPTION,
        {"requests": "off", "responses": "report", "undocumented": "block"},
        "undocumented='block' with requests='off'",
    ),
    "root path": (DESCRIPTION, {"root_path": 1}, "root_path=1, expected such as '/api'"),
    "threads": (DESCRIPTION, {"threads": 0}, "threads=0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_an_error_that_says_where(name: str) -> None:
    source, options, message = WRONG[name]
    with pytest.raises(ConfigurationError) as error:
        OpenApiValidation(source, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def places(node: Any, *keys: str | int) -> Iterator[tuple[str | int, ...]]:
    """Where something is in the description."""
    if keys:
        yield keys
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(inner, *keys, key)


@pytest.mark.parametrize(
    "other",
    some_are_short([None, 1, "x", [], True, {}, {"$ref": "#/x"}, ["x"], {"x": 1}, {"$ref": "#"}], one_in=3),
    ids=repr,
)
async def test_anything_anywhere_in_a_description_is_an_error_or_works(other: Any) -> None:
    worked = 0
    for keys in places(DESCRIPTION):
        try:
            agent = OpenApiValidation(changed(*keys, to=other))
        except ConfigurationError:
            continue
        worked += 1
        for client in (
            asking("GET", "/items/1?limit=x", {}),
            asking("PUT", "/items/1", {"content-type": "application/json"}, b"{}"),
            asking("GET", "/styles?csv=1&deep=x", {"json": "2"}),
        ):
            await ask(App(), config(agent), client=client)
            assert client.status in (200, 415, 422), keys
    assert worked


def test_a_file_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    for content in ("openapi: 3.1.0", "[]", "[" * 100_000):
        (tmp_path / "openapi.json").write_text(content)
        with pytest.raises(ConfigurationError, match=r"openapi\.json"):
            OpenApiValidation(str(tmp_path / "openapi.json"))


def test_an_app_that_describes_itself_wrongly_is_never_judged_by_that(caplog: pytest.LogCaptureFixture) -> None:
    app = routes(FastAPI())
    describe = app.openapi
    app.openapi = lambda: {**describe(), "openapi": "3.0.2"}  # type: ignore[method-assign]
    with TestClient(guarded_app(app)) as client:
        assert client.get("/search").status_code == 503
    asked = routes(FastAPI())
    asked.openapi = app.openapi  # type: ignore[method-assign]
    protect(asked, agents=[config(OpenApiValidation(asked), require_at_startup=True)])
    with pytest.raises(AgentError, match=r"openapi is '3\.0\.2'"), TestClient(asked):
        pytest.fail("it has started")
    assert "refused its configuration: OpenApiValidation: openapi is '3.0.2', expected '3.1.0' or later" in caplog.text


def test_routes_are_described_when_the_agent_starts() -> None:
    app = FastAPI()
    guarded_app(app)
    routes(app)
    with TestClient(app) as client:
        assert client.get("/search?i=x").headers["content-type"] == PROBLEM

        @app.get("/later")
        async def later(n: int) -> int:
            return n

        refused = client.get("/later?n=x")
        assert refused.status_code == 422
        assert refused.headers["content-type"] == "application/json", "the app's own"


def small() -> FastAPI:
    app = FastAPI()

    @app.get("/n/{n}")
    async def number(n: Annotated[int, Field(ge=1)]) -> int:
        return n

    return app


def test_routers_and_apps_within_are_judged_by_their_own_descriptions() -> None:
    app = small()
    router, inner = APIRouter(prefix="/inner"), APIRouter(prefix="/more")

    @inner.get("/{rest:path}/{n:int}")
    async def deep(rest: str, n: Annotated[int, Field(le=9)]) -> str:
        return rest

    router.include_router(inner)
    app.include_router(router, prefix="/v1")
    app.mount("/sub", small())
    app.mount("/wrapped", CORSMiddleware(small(), allow_origins=["*"]))
    app.mount("/plain", Starlette(routes=[Route("/x", lambda request: PlainTextResponse("x"))]))
    app.router.routes.append(Host("other.example", app=small()))
    rooted = small()
    rooted.root_path = "/elsewhere"
    app.mount("/rooted", rooted)
    app.mount("/deeper", Starlette(routes=[Mount("/still", app=small())]))
    guarded_app(app)
    with TestClient(app) as client:
        for url, status in (
            ("/n/1", 200),
            ("/n/0", 422),
            ("/v1/inner/more/a/b/9", 200),
            ("/v1/inner/more/a/b/10", 422),
            ("/sub/n/1", 200),
            ("/sub/n/0", 422),
            ("/wrapped/n/0", 422),
        ):
            response = client.get(url)
            assert response.status_code == status, url
            assert (response.headers["content-type"] == PROBLEM) == (status == 422), url
        assert client.get("/plain/x").text == "x"
        assert client.get("/rooted/n/0").status_code == 404, "with such a root path the app finds nothing there"
        assert client.get("/deeper/still/n/0").headers["content-type"] == PROBLEM
        assert client.get("/sub/openapi.json").status_code == 200
        assert client.get("/n/0", headers={"host": "other.example"}).headers["content-type"] == PROBLEM


@pytest.mark.parametrize(
    ("own", "given", "path", "root_path"),
    [
        ("/api", None, "/n/{}", ""),
        ("/api", None, "/api/n/{}", ""),
        ("", None, "/api/n/{}", "/api"),
        ("", None, "/n/{}", "/api"),
        ("", "/api", "/api/n/{}", "/api"),
    ],
)
async def test_a_root_path_is_none_of_the_paths(own: str, given: str | None, path: str, root_path: str) -> None:
    app = small()
    app.root_path = own
    guarded_app(app, root_path=given)
    for number, status in (("1", 200), ("0", 422)):
        client = Client("GET", path.format(number))
        client.scope["root_path"] = root_path
        await app(client.scope, client.receive, client.send)
        assert client.status == status
        assert (client.header(b"content-type") == PROBLEM.encode()) == (status == 422)


@pytest.mark.parametrize("own", ["", "/x"])
@pytest.mark.parametrize("servers", ["", "/x", "/api", "/x/api"])
def test_the_root_path_is_the_apps_own_where_the_middleware_is_around_it_too(own: str, servers: str) -> None:
    app = small()
    app.root_path = own
    guarded = AgentMiddleware(app, agents=[config(OpenApiValidation(app))])
    with TestClient(guarded, root_path=servers) as client:
        answers = [client.get(f"{before}/n/0") for before in ("", "/x", "/api", "/x/api", "/api/x")]
    assert 422 in [answer.status_code for answer in answers]
    assert all(answer.headers["content-type"] == PROBLEM for answer in answers if answer.status_code == 422)


def test_what_browsers_ask_first_is_answered() -> None:
    app = routes(FastAPI())
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["POST"])
    guarded_app(app, undocumented="block")
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with TestClient(app) as client:
        assert client.options("/everything", headers=headers).status_code == 200


class Node(BaseModel):
    value: int = 0
    word: str = Field(default="", pattern="^a*$")
    child: "Node | Other | None" = None


class Other(BaseModel):
    value: int = 0
    child: "Node | Other | None" = None
    more: str = ""


class Costly(BaseModel):
    # Python's own engine would not end.
    word: str = Field(pattern=r"^(a+)+$")


def test_no_request_takes_longer_than_its_length_allows() -> None:
    app = FastAPI()

    @app.post("/tree")
    async def tree(node: Node | Other) -> str:
        return "ok"

    @app.post("/costly")
    async def costly(body: Costly) -> str:
        return "ok"

    @app.post("/numbers")
    async def numbers(body: list[str] | list[bool]) -> str:
        return "ok"

    guarded_app(app)
    deep: Any = {"value": "x"}
    for _ in range(90):
        # Each level may be of two kinds, and is wrong in both: Pydantic tries 2 ** 90 ways.
        deep = {"child": deep}
    with TestClient(app) as client:
        assert client.post("/tree", json=deep).headers["content-type"] == PROBLEM
        assert client.post("/costly", json={"word": "a" * 100_000 + "!"}).headers["content-type"] == PROBLEM
        assert client.post("/costly", json={"word": "a" * 1000}).status_code == 200
        refused = client.post("/numbers", json=[1] * 200_000)
        assert refused.json()["errors"] == [{"in": "body", "at": "", "problem": "invalid", "rule": "anyOf"}]
    looking: Any = {"type": "string", "pattern": r"^(?=a)(a|aa)+$"}
    agent = OpenApiValidation(changed("components", "schemas", "Limit", to=looking))
    for source in (agent, _of_app(looking)):
        with TestClient(_echo(source)) as client:
            assert client.get("/items/1?limit=" + "a" * 5000 + "!").status_code == 422
            assert client.get("/items/1?limit=aaa").status_code == 200


def _echo(agent: OpenApiValidation) -> FastAPI:
    app = small()
    app.get("/items/{id}")(lambda: "ok")
    protect(app, agents=[config(agent)])
    return app


def _of_app(schema: dict[str, Any]) -> OpenApiValidation:
    """The same, where a FastAPI app has the description."""
    app = small()
    app.get("/items/{id}")(lambda: "ok")
    app.openapi = lambda: changed("components", "schemas", "Limit", to=schema)  # type: ignore[method-assign]
    return OpenApiValidation(app)


async def test_what_is_remembered_of_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from asgi_agents.agents.openapi import validation

    monkeypatch.setattr(validation, "MAX_EXCHANGES", 2)
    agent = OpenApiValidation(DESCRIPTION)
    records: list[AuditRecord] = []
    for target in ("/items/1", "/items/x", "/nothing"):
        await ask(App(), config(agent), client=asking("GET", target, {}), on_audit=records.append)
    assert not agent._open
