"""The MCP server as clients have it, with its tool policy and its guardrail."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.testclient import TestClient

from asgi_agents import AuditRecord
from example_app.app import create_app
from example_app.mcp import TOOLS

BEARER = {"authorization": "Bearer key-of-alice", "accept": "application/json, text/event-stream"}
SECRETS = ("@example", "4111", "3782")


def asked(method: str, **params: Any) -> Mapping[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


def answer_to(client: TestClient, method: str, **params: Any) -> Any:
    response = client.post("/mcp", json=asked(method, **params), headers=BEARER)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", 7)
    return answer


@pytest.mark.parametrize(
    ("version", "spoken"),
    [("2025-06-18", "2025-06-18"), ("2025-03-26", "2025-03-26"), ("1999-01-01", "2025-11-25"), (None, "2025-11-25")],
)
def test_it_speaks_the_clients_version_where_it_knows_it(client: TestClient, version: str | None, spoken: str) -> None:
    result = answer_to(client, "initialize", protocolVersion=version)["result"]
    assert result["protocolVersion"] == spoken
    assert result["capabilities"] == {"tools": {}}
    assert answer_to(client, "ping")["result"] == {}


def test_denied_tools_are_not_listed(client: TestClient) -> None:
    tools = answer_to(client, "tools/list")["result"]["tools"]
    assert [tool["name"] for tool in tools] == ["find_orders", "refund_order"]
    assert set(TOOLS) - {tool["name"] for tool in tools} == {"delete_order"}
    assert tools[1]["inputSchema"]["required"] == ["order", "amount"]


def test_a_result_is_redacted_as_text_and_as_data(client: TestClient) -> None:
    result = answer_to(client, "tools/call", name="find_orders", arguments={"item": "lamp"})["result"]
    (order,) = result["structuredContent"]["orders"]
    assert (order["email"], order["card"]) == ("[email]", "[card]")
    assert json.loads(result["content"][0]["text"]) == result["structuredContent"]


def test_who_asks_for_progress_gets_a_stream_that_is_redacted_too(client: TestClient) -> None:
    body = asked("tools/call", name="find_orders", arguments={}, _meta={"progressToken": "p"})
    response = client.post("/mcp", json=body, headers=BEARER)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [secret for secret in SECRETS if secret in response.text] == []
    *progress, answer = (
        json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: ")
    )
    assert [told["params"] for told in progress] == [
        {"progressToken": "p", "progress": number, "message": "that of [email]"} for number in (1, 2)
    ]
    assert (answer["id"], len(answer["result"]["structuredContent"]["orders"])) == (7, 2)
    # A client that takes no streams gets JSON.
    plain = client.post("/mcp", json=body, headers={**BEARER, "accept": "application/json"})
    assert plain.json() == answer


@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        ("delete_order", {"order": 1}, "nothing is deleted"),
        ("delete_everything", {}, "nothing is deleted"),
        ("refund_order", {"order": 1, "amount": 50.01}, "no refund over 50"),
        ("refund_order", {"order": 1, "amount": "1e3"}, "no refund over 50"),
        # What the policy can't judge is denied.
        ("refund_order", {"order": 1}, "no refund over 50"),
        ("refund_order", {"order": 1, "amount": "much"}, "no refund over 50"),
    ],
)
def test_a_denied_call_has_the_reason_and_is_not_made(tool: str, arguments: Mapping[str, Any], reason: str) -> None:
    app = create_app()
    with TestClient(app) as client:
        answer = answer_to(client, "tools/call", name=tool, arguments=arguments)
        assert (answer["error"]["code"], answer["error"]["message"]) == (-32090, reason)
        assert len(app.state.orders) == 2
        # The session goes on.
        refund = answer_to(client, "tools/call", name="refund_order", arguments={"order": 1, "amount": 50})
        assert refund["result"]["structuredContent"] == {"refunded": 50}


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("resources/list", {}, -32601),
        ("tools/call", {"name": "find_everything"}, -32602),
    ],
)
def test_what_is_not_there_is_an_error(client: TestClient, method: str, params: Mapping[str, Any], code: int) -> None:
    assert answer_to(client, method, **params)["error"]["code"] == code


def test_arguments_that_do_not_fit_are_told_to_the_model(client: TestClient) -> None:
    result = answer_to(client, "tools/call", name="find_orders", arguments={"item": 7})["result"]
    assert result["isError"] is True
    assert "item" in result["content"][0]["text"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ('{"jsonrpc": "2.0", "method": "notifications/initialized"}', 202, None),
        ('{"jsonrpc": "2.0", "id": 1, "result": {}}', 202, None),
        ('{"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "delete_order"}}', 202, None),
        ("{", 400, -32700),
        ("[]", 400, -32600),
        ('{"jsonrpc": "2.0", "id": 1, "method": 7}', 400, -32600),
        ('{"id": 1, "method": "ping"}', 400, -32600),
    ],
)
def test_what_nobody_waits_for_is_202_and_what_is_no_message_is_400(
    client: TestClient, body: str, status: int, code: int | None
) -> None:
    response = client.post("/mcp", content=body, headers={**BEARER, "content-type": "application/json"})
    assert response.status_code == status
    assert (response.json()["error"]["code"] if response.content else None) == code
    assert len(answer_to(client, "tools/call", name="find_orders")["result"]["structuredContent"]["orders"]) == 2


def test_it_takes_a_key_and_has_no_stream_of_its_own(client: TestClient) -> None:
    assert client.post("/mcp", json=asked("ping")).status_code == 401
    assert client.get("/mcp", headers=BEARER).status_code == 405


def test_the_record_says_who_did_what() -> None:
    records: list[AuditRecord] = []
    with TestClient(create_app(on_audit=records.append)) as client:
        answer_to(client, "tools/list")
        answer_to(client, "tools/call", name="delete_order", arguments={"order": 1})
        answer_to(client, "tools/call", name="find_orders", arguments={"item": "lamp"})
    did = [{done.agent: done.counts for done in record.guardrails if done.counts} for record in records]
    assert did[:2] == [{"tool policy": {"hide": 1}}, {"tool policy": {"block": 1}}]
    assert set(did[2]) == {"personal-data"}
    assert [record.decided_by for record in records] == [None, "tool policy", None]
