"""To say where a body is wrong takes no more than to judge it a few times, however it is nested."""

import json
from typing import Any

import pytest

from asgi_agents.agents.openapi.document import ApiDocument
from asgi_agents.agents.openapi.json_bodies import json_violations

SCHEMA = "#/components/schemas/Node"
NODE: dict[str, Any] = {
    "type": "object",
    "properties": {"kids": {"type": "array", "items": {"$ref": SCHEMA}}},
}
EITHER = {"anyOf": [{"$ref": SCHEMA}, {"type": "null"}]}


def document_of(node: dict[str, Any]) -> ApiDocument:
    paths: dict[str, Any] = {"/": {"get": {"responses": {}}}}
    document = ApiDocument({"openapi": "3.1.0", "paths": paths, "components": {"schemas": {"Node": node}}})
    document.prepare(SCHEMA)
    return document


def nested(depth: int, items: int) -> bytes:
    inner = '{"kids":[' + "{}," * items + "1]}"
    for _ in range(depth):
        inner = '{"kids":[' + inner + "]}"
    return inner.encode()


@pytest.mark.parametrize("items", [EITHER, {"$ref": SCHEMA}, {"allOf": [{"$ref": SCHEMA}]}])
@pytest.mark.parametrize("depth", [0, 5, 60, 95])
def test_the_work_is_no_multiple_of_the_depth(depth: int, items: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    document = document_of({**NODE, "properties": {"kids": {"type": "array", "items": items}}})
    judged = 0
    is_valid = ApiDocument.is_valid

    def counting(self: ApiDocument, pointer: str, value: Any, *more: Any) -> bool:
        nonlocal judged
        # By one keyword such as `type`, a value is looked at and not into.
        judged += 0 if more else len(json.dumps(value))
        return is_valid(self, pointer, value, *more)

    monkeypatch.setattr(ApiDocument, "is_valid", counting)
    body = nested(depth, 200_000)
    found = json_violations(document, SCHEMA, body)
    assert [one.problem for one in found] == ["invalid"]
    assert judged < 20 * len(body)


@pytest.mark.parametrize("depth", [0, 5, 20])
def test_of_a_short_body_all_is_said(depth: int) -> None:
    (found,) = json_violations(document_of(NODE), SCHEMA, nested(depth, 2))
    assert found.at == "/kids/0" * depth + "/kids/2"
