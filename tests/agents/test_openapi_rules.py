"""What OpenApiValidation says of a request that it refuses: the keyword of the schema that it breaks."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema_rs
import pytest
from fastapi import Body, FastAPI, Form, Header, Query
from fastapi.testclient import TestClient
from pydantic import Field

from asgi_agents import AuditRecord
from asgi_agents.agents import OpenApiValidation
from asgi_agents.agents.openapi.bodies import violations
from asgi_agents.agents.openapi.document import ApiDocument
from tests.docs.markdown import blocks_of
from tests.support.asgi import App, Client
from tests.unjudged.asking import ask, config

from .openapi_apps import Strict, guarded_app, routes

CANARY = "c4n4ry"
POINTER = "#/components/schemas/It"


def document(schema: Any, **schemas: Any) -> ApiDocument:
    return ApiDocument({"openapi": "3.1.0", "components": {"schemas": {"It": schema, **schemas}}})


def rules(schema: Any, value: Any, **schemas: Any) -> list[tuple[str, str, str]]:
    """Of each violation the place, the keyword, and the rest of the rule's pointer."""
    found = violations(document(schema, **schemas), POINTER, value)
    return [(one.at, one.keyword or one.problem, one.rule.removeprefix(POINTER)) for one in found]


# A value that is wrong, and the keyword that says so; the other keywords beside it hold.
KEYWORDS: list[tuple[str, Any, Any]] = [
    ("type", "integer", "x"),
    ("type", ["string", "null"], 1),
    ("enum", ["a", "b"], "c"),
    ("const", 3, 4),
    ("pattern", "^a+$", "b"),
    ("maxLength", 2, "abc"),
    ("minLength", 2, "a"),
    ("maximum", 10, 11),
    ("exclusiveMaximum", 10, 10),
    ("minimum", 1, 0.5),
    ("exclusiveMinimum", 1, 1),
    ("multipleOf", 3, 4),
    ("maxItems", 1, [1, 2]),
    ("minItems", 1, []),
    ("uniqueItems", True, [1, 1]),
    ("maxProperties", 1, {"a": 1, "b": 1}),
    ("minProperties", 1, {}),
    ("dependentRequired", {"a": ["b"]}, {"a": 1}),
    ("additionalProperties", False, {CANARY: 1}),
    ("additionalProperties", {"type": "integer"}, {CANARY: "x"}),
    ("anyOf", [{"maximum": 1}, {"minimum": 9}], 5),
    ("oneOf", [{"maximum": 9}, {"minimum": 1}], 5),
    ("allOf", [{"maximum": 9}, {"maximum": 8}], 10),
]


@pytest.mark.parametrize(("keyword", "limit", "value"), KEYWORDS, ids=[one[0] for one in KEYWORDS])
def test_the_keyword_that_is_broken_is_named_wherever_the_schema_is(keyword: str, limit: Any, value: Any) -> None:
    schema = {"title": "It", "description": "x", keyword: limit}
    assert rules(schema, value) == [("", keyword, f"/{keyword}")]
    within = {"type": "object", "properties": {"a/b": schema}}
    assert rules(within, {"a/b": value}) == [("/a~1b", keyword, f"/properties/a~1b/{keyword}")]
    assert rules({"items": schema}, [value]) == [("/0", keyword, f"/items/{keyword}")]
    assert rules({"prefixItems": [{}, schema]}, [1, value]) == [("/1", keyword, f"/prefixItems/1/{keyword}")]
    assert rules({"$ref": "#/components/schemas/Of~1it"}, value, **{"Of/it": schema}) == [
        ("", keyword, f"#/components/schemas/Of~1it/{keyword}")
    ]


def test_of_an_optional_value_it_is_the_keyword_of_what_it_may_be() -> None:
    optional = {"anyOf": [{"type": "integer", "maximum": 10}, {"type": "null"}]}
    assert rules(optional, 11) == [("", "maximum", "/anyOf/0/maximum")]
    assert rules(optional, "x") == [("", "type", "/anyOf")]
    assert rules({**optional, "multipleOf": 2}, 5) == [("", "multipleOf", "/multipleOf")]
    of_list = {"anyOf": [{"type": "array", "items": {"type": "string"}, "maxItems": 2}, {"type": "null"}]}
    assert rules(of_list, ["a", 1]) == [("/1", "type", "/anyOf/0/items/type")]
    assert rules(of_list, ["a", "b", "c"]) == [("", "maxItems", "/anyOf/0/maxItems")]


def test_of_a_union_whose_members_are_told_apart_it_is_that_of_the_member() -> None:
    cat = {"type": "object", "required": ["kind"], "properties": {"kind": {"const": "cat"}, "lives": {"maximum": 9}}}
    dog = {"type": "object", "required": ["kind"], "properties": {"kind": {"const": "dog"}, "name": {"maxLength": 9}}}
    mapping = {"cat": "#/components/schemas/Cat", "dog": "#/components/schemas/Dog", "bird": "#/nowhere"}
    pet = {
        "discriminator": {"propertyName": "kind", "mapping": mapping},
        "oneOf": [{"$ref": "#/components/schemas/Cat"}, {"$ref": "#/components/schemas/Dog"}],
    }
    said = rules(pet, {"kind": "cat", "lives": 10}, Cat=cat, Dog=dog)
    assert said == [("/lives", "maximum", "#/components/schemas/Cat/properties/lives/maximum")]
    for other in ({"kind": CANARY}, {"kind": [1]}, {}):
        assert rules(pet, other, Cat=cat, Dog=dog) == [("", "oneOf", "/oneOf")]
    assert rules(pet, {"kind": "bird"}, Cat=cat, Dog=dog) == [("", "invalid", "")]


def test_where_it_is_not_clear_the_schema_is_named_alone() -> None:
    unclear: list[Any] = [{"not": {}}, False, {"if": {}, "then": False}, {"contains": {"type": "string"}}]
    for schema in unclear:
        assert rules(schema, [1]) == [("", "invalid", "")]


def test_of_a_list_the_first_eight_wrong_items_are_named() -> None:
    values = [index if index % 2 else "x" for index in range(100)]
    assert rules({"items": {"type": "integer"}}, values) == [
        (f"/{index}", "type", "/items/type") for index in range(0, 16, 2)
    ]
    lists = {"items": {"items": {"maximum": 1}}}
    assert [at for at, *_ in rules(lists, [[1, 2], [0], [3, 4]])] == ["/0/1", "/2/0", "/2/1"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[TestClient, list[AuditRecord]]]:
    app, records = routes(FastAPI()), list[AuditRecord]()

    @app.get("/parameters")
    async def parameters(
        optional: Annotated[int | None, Query(le=10)] = None,
        word: Annotated[str | None, Query(pattern="^a*$")] = None,
        kind: Literal["a", "b"] = "a",
        many: Annotated[list[Annotated[int, Field(le=5)]] | None, Query(max_length=2)] = None,
        wait: timedelta | None = None,
        x_count: Annotated[int, Header(multiple_of=2)] = 2,
    ) -> str:
        return "ok"

    @app.post("/fields")
    async def fields(n: Annotated[int | None, Form(ge=3)] = None, w: Annotated[str, Form(min_length=2)] = "xx") -> str:
        return "ok"

    @app.post("/pair")
    async def pair(body: Annotated[tuple[int, str] | None, Body()], strict: Strict | None = None) -> str:
        return "ok"

    with TestClient(guarded_app(app, records)) as client:
        yield client, records


SAID: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("/parameters?optional=11", {}, [("optional", "maximum")]),
    ("/parameters?optional=x", {}, [("optional", "type")]),
    ("/parameters?word=b", {}, [("word", "pattern")]),
    ("/parameters?kind=c", {}, [("kind", "enum")]),
    ("/parameters?many=1&many=6", {}, [("many", "maximum")]),
    ("/parameters?many=1&many=2&many=3", {}, [("many", "maxItems")]),
    ("/parameters?many=x", {}, [("many", "type")]),
    ("/parameters", {"headers": {"x-count": "3"}}, [("x-count", "multipleOf")]),
    ("/fields", {"data": {"n": "2", "w": "x"}}, [("/n", "minimum"), ("/w", "minLength")]),
    ("/form-model", {"data": {"n": "1", CANARY: "1"}}, [("", "additionalProperties")]),
    ("/pair", {"json": {"body": [1, 2, 3]}}, [("/body/1", "type")]),
    ("/pair", {"json": {"body": [1, "a", 3]}}, [("/body", "maxItems")]),
    ("/pair", {"json": {"body": None, "strict": {"a": 1, CANARY: 1}}}, [("/strict", "additionalProperties")]),
    ("/list", {"json": [1, "a", 2, "b"]}, [("/1", "type"), ("/3", "type")]),
    (
        "/everything",
        {"json": {"text": "a", "number": 1, "pet": {"kind": "cat", "lives": 99}}},
        [("/pet/lives", "maximum")],
    ),
]


@pytest.mark.parametrize(("url", "request_", "said"), SAID, ids=[f"{one[0]} {one[2][0][1]}" for one in SAID])
def test_a_refusal_names_the_keyword_and_nothing_that_was_sent(
    guarded: tuple[TestClient, list[AuditRecord]], url: str, request_: Any, said: list[tuple[str, str]]
) -> None:
    client, records = guarded
    records.clear()
    response = client.request("GET" if url.startswith("/parameters") else "POST", url, **request_)
    assert response.status_code == 422
    assert [(error["at"], error["rule"]) for error in response.json()["errors"]] == said
    assert CANARY not in response.text
    [answer] = [one for one in records[0].answers if one.reason_codes]
    assert answer.rule_ids is not None
    # Of a value that is of none of the types in a union it is the union.
    ends = {rule.rpartition("/")[2].replace("anyOf", "type") for rule in answer.rule_ids}
    assert ends == {keyword for _, keyword in said}


def test_a_body_of_another_type_is_told_which_there_may_be(guarded: tuple[TestClient, list[AuditRecord]]) -> None:
    refused = guarded[0].post("/form", json={})
    assert refused.json()["errors"][0]["expected"] == ["application/x-www-form-urlencoded"]


async def test_an_own_type_of_a_file_is_named_as_well() -> None:
    media: Any = {"application/vnd.shop+json": {}, "text/csv": {}}
    agent = OpenApiValidation({"openapi": "3.1.0", "paths": {"/": {"post": {"requestBody": {"content": media}}}}})
    client = Client("POST", "/", headers=[(b"content-type", b"image/png"), (b"content-length", b"1")], body=b"x")
    await ask(App(), config(agent), client=client)
    assert client.status == 415
    assert b'"expected": ["application/vnd.shop+json", "text/csv"]' in client.body


def test_a_refusal_is_as_the_page_has_it_described() -> None:
    page = Path(__file__).parents[2] / "docs/pages/agents/openapi-validation.md"
    [block] = [block for block in blocks_of(page.read_text()) if block.title == "described.py"]
    names: dict[str, Any] = {}
    exec(block.code, names)  # noqa: S102 - it is of our own page
    app = routes(names["app"])
    with TestClient(guarded_app(app, responses="block")) as client:
        refused = client.get("/search?i=-1")
        missing = client.post("/everything", json={})
        assert client.get("/search?d=x").headers["content-type"] == "application/json", "the app's own 422"
    described = client.app.openapi()["paths"]["/search"]["get"]["responses"]["422"]  # type: ignore[attr-defined]
    schema = described["content"]["application/problem+json"]["schema"]
    for response in (refused, missing):
        assert response.status_code == 422
        jsonschema_rs.validate(schema, response.json())
        assert set(response.json()["errors"][0]) <= set(schema["properties"]["errors"]["items"]["properties"])
