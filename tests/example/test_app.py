import gzip
import json
import logging

import pytest
from fastapi import Request, Response
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from example_app.app import create_app
from example_app.configuration import agent_configs

from .conftest import ALICE, BOB


def test_health_check_needs_no_key(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("key", ["", "key-of-mallory"])
def test_api_without_a_known_key_is_401(client: TestClient, key: str) -> None:
    response = client.get("/api/orders", headers={"x-api-key": key})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "ApiKey"


def test_a_key_may_come_as_a_token_as_clients_of_openai_send_it(client: TestClient) -> None:
    for authorization, status in (("Bearer key-of-bob", 200), ("Basic key-of-bob", 401), ("Bearer token-of-root", 401)):
        assert client.get("/api/orders", headers={"authorization": authorization}).status_code == status


def test_app_sees_the_user_and_not_the_key(client: TestClient) -> None:
    headers = {**ALICE, "x-user": "root"}
    order = client.post("/api/orders", json={"item": "chair"}, headers=headers).json()
    assert (order["id"], order["customer"]) == (3, "alice")


def test_personal_data_leaves_the_orders_redacted(client: TestClient) -> None:
    orders = client.get("/api/orders", headers=ALICE).json()
    assert [(order["email"], order["phone"], order["card"]) for order in orders] == [
        ("[email]", "[phone]", "[card]")
    ] * 2


def test_app_is_asked_for_whole_and_uncompressed_responses() -> None:
    app = create_app()

    @app.get("/api/echo")
    async def echo(request: Request) -> list[str | None]:
        return [request.headers.get("accept-encoding"), request.headers.get("range")]

    with TestClient(app) as client:
        headers = {**ALICE, "accept-encoding": "gzip", "range": "bytes=0-10"}
        assert client.get("/api/echo", headers=headers).json() == ["identity", None]


def test_compressed_response_is_not_let_through_unread() -> None:
    app = create_app()

    @app.get("/api/zipped")
    async def zipped() -> Response:
        return Response(gzip.compress(b"{}"), media_type="application/json", headers={"content-encoding": "gzip"})

    with TestClient(app) as client:
        assert client.get("/api/zipped", headers=ALICE).status_code == 500


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        (None, rb'{"a": "bob\u0040example.org"}', (200, '{"a": "[email]"}')),
        ("application/json", b'{"a": "x", "a": "bob@example.org"}', (200, '{"a": "x", "a": "[email]"}')),
        ("application/x-ndjson", b'{"a": 4111111111111111}\n{}\n', (200, '{"a": "[card]"}\n{}\n')),
        ("text/event-stream", b"id:1\rdata: bob@exa\r\rdata: mple.org\r\r", (200, "id:1\rdata: [email]\r\rdata: \r\r")),
        ("application/json", b"[" * 5_000 + b"1" + b"]" * 5_000, (200, "[" * 5_000 + "1" + "]" * 5_000)),
        ("application/json", b"bob@example.org", (500, "The response can't be inspected")),
        ("text/plain; charset=utf-16", "bob@example.org".encode("utf-16"), (500, "The response can't be inspected")),
    ],
)
def test_responses_are_redacted_as_what_they_are(
    content_type: str | None, body: bytes, expected: tuple[int, str]
) -> None:
    app = create_app()

    @app.get("/api/anything")
    async def anything() -> Response:
        return Response(body, headers={} if content_type is None else {"content-type": content_type})

    with TestClient(app) as client:
        response = client.get("/api/anything", headers=ALICE)
        assert (response.status_code, response.text) == expected


def test_old_path_redirects_with_its_query(client: TestClient) -> None:
    response = client.get("/old-orders?q=lamp")
    assert (response.status_code, response.headers["location"]) == (308, "/api/orders?q=lamp")


def test_admin_asks_for_a_bearer_token_whatever_the_key(client: TestClient) -> None:
    for path in ("/admin/stats", "/%61dmin/stats"):
        response = client.get(path, headers=ALICE)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Bearer realm="admin"'


def test_admin_takes_the_token(client: TestClient) -> None:
    response = client.get("/admin/stats", headers={"authorization": "bearer token-of-root"})
    assert response.json() == {"orders": 2, "asked_by": "root"}


def test_paths_that_no_route_names_are_behind_the_firewall(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    assert client.get("/docs?q=<script>").status_code == 403


def test_the_docs_page_asks_for_the_credentials_and_not_for_what_agents_set(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert "x-user" not in json.dumps(described)
    asked_for = {path: item["get"].get("security") for path, item in described["paths"].items() if "get" in item}
    assert asked_for == {
        "/healthz": None,
        "/api/orders": [{"APIKeyHeader": []}],
        "/api/reviews": [{"APIKeyHeader": []}],
        "/admin/stats": [{"HTTPBearer": []}],
        "/flaky": None,
    }


def test_shadow_rules_refuse_nothing(client: TestClient) -> None:
    assert client.get("/api/orders?q=select wood", headers=ALICE).status_code == 200


def test_small_upload_is_inspected_and_taken(client: TestClient) -> None:
    response = client.post("/api/upload", files={"file": ("notes.txt", b"x" * 40_000)}, headers=ALICE)
    assert response.json()["size"] == 40_000


def test_attack_deep_inside_an_upload_is_refused(client: TestClient) -> None:
    file = b"x" * 100_000 + b"<script>"
    response = client.post("/api/upload", files={"file": ("notes.txt", file)}, headers=ALICE)
    assert response.status_code == 403


def test_upload_beyond_the_inspection_limit_is_413(client: TestClient) -> None:
    response = client.post("/api/upload", files={"file": ("film.bin", bytes(300 * 1024))}, headers=ALICE)
    assert response.status_code == 413


def test_a_review_with_personal_data_is_refused_and_not_kept(client: TestClient) -> None:
    fine, personal = ({"item": "lamp", "text": text} for text in ("Nice.", "Mail bob@example.org"))
    assert client.post("/api/reviews", json=fine, headers=ALICE).status_code == 201
    refused = client.post("/api/reviews", json=personal, headers=ALICE)
    assert refused.status_code == 422
    assert refused.json()["detail"].endswith("Found: email")
    assert client.get("/api/reviews", headers=BOB).json() == [fine]


def test_room_members_hear_each_other(client: TestClient) -> None:
    with (
        client.websocket_connect("/room/lounge", headers=ALICE) as alice,
        client.websocket_connect("/room/lounge", headers=BOB) as bob,
        client.websocket_connect("/room/garden", headers=BOB) as elsewhere,
    ):
        elsewhere.send_text("anyone?")
        assert elsewhere.receive_text() == "bob: anyone?"
        alice.send_text("hello")
        assert (alice.receive_text(), bob.receive_text()) == ("alice: hello", "alice: hello")


def test_room_does_not_hear_insults(client: TestClient) -> None:
    with client.websocket_connect("/room/lounge", headers=ALICE) as alice:
        alice.send_text("You IDIOTS!")
        alice.send_text("Nitwit!")
        alice.send_text("sorry")
        assert alice.receive_text() == "alice: sorry"


def test_room_goes_on_when_a_member_is_thrown_out(client: TestClient) -> None:
    with (
        client.websocket_connect("/room/lounge", headers=ALICE) as alice,
        client.websocket_connect("/room/lounge", headers=BOB) as bob,
    ):
        for _ in range(3):
            alice.send_text("moron")
        with pytest.raises(WebSocketDisconnect) as caught:
            alice.receive_text()
        assert (caught.value.code, caught.value.reason) == (4003, "repeated insults")
        bob.send_text("at last")
        assert bob.receive_text() == "bob: at last"


def test_room_is_text_only(client: TestClient) -> None:
    with client.websocket_connect("/room/lounge", headers=ALICE) as alice:
        alice.send_bytes(b"moron")
        with pytest.raises(WebSocketDisconnect) as caught:
            alice.receive_text()
        assert caught.value.code == 1003


@pytest.mark.parametrize(
    ("sent", "heard"),
    [
        ("my card is 4111 1111 1111 1111", "alice: my card is [card]"),
        ('{"text": "I am bob@example.org", "n": 1}', {"text": "I am [email]", "n": 1, "from": "alice"}),
        ('{"text": "hi", "from": "root"}', {"text": "hi", "from": "alice"}),
        ('["bob@example.org"]', 'alice: ["[email]"]'),
        ("{no JSON", "alice: {no JSON"),
    ],
)
def test_room_hears_no_personal_data_in_text_and_in_json(
    client: TestClient, sent: str, heard: str | dict[str, object]
) -> None:
    with (
        client.websocket_connect("/room/lounge", headers=ALICE) as alice,
        client.websocket_connect("/room/lounge", headers=BOB) as bob,
    ):
        alice.send_text(sent)
        for member in (alice, bob):
            received = member.receive_text()
            assert (received if isinstance(heard, str) else json.loads(received)) == heard


@pytest.mark.parametrize("parts", [("What is Nightjar?",), ('{"text": "nightjar"}',), ("It is Night", "jar, they say")])
def test_room_is_closed_to_who_names_what_is_not_announced(client: TestClient, parts: tuple[str, ...]) -> None:
    with (
        client.websocket_connect("/room/lounge", headers=ALICE) as alice,
        client.websocket_connect("/room/lounge", headers=BOB) as bob,
    ):
        for part in parts:
            alice.send_text(part)
        with pytest.raises(WebSocketDisconnect) as caught:
            _read_all(alice)
        assert (caught.value.code, caught.value.reason) == (1008, "This names a project that is not announced yet")
        bob.send_text("at last")
        heard = _heard_until(bob, "bob: at last")
        # After a pause the first part was complete.
        assert heard in ([], ["alice: It is Night"])


def _read_all(member: WebSocketTestSession) -> None:
    while True:
        member.receive_text()


def _heard_until(member: WebSocketTestSession, last: str) -> list[str]:
    heard: list[str] = []
    while (text := member.receive_text()) != last:
        heard.append(text)
    return heard


def test_failing_agent_opens_its_breaker(client: TestClient) -> None:
    replies = [client.get("/flaky") for _ in range(3)]
    assert [reply.status_code for reply in replies] == [503, 503, 503]
    assert [reply.text for reply in replies] == ["Agent unavailable", "Agent unavailable", "Service unavailable"]
    assert replies[2].headers["retry-after"] == "1"


def test_audit_log_has_one_line_per_guarded_connection_and_no_secrets(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asgi_agents.audit")
    client.get("/api/orders?q=hush", headers={**ALICE, "x-request-id": "1"})
    client.post("/api/orders", json={"item": "hush"}, headers={**ALICE, "x-request-id": "2", "x-secret": "hush"})
    client.get("/api/orders", headers={"x-request-id": "3"})
    with client.websocket_connect("/room/lounge", headers={**ALICE, "x-request-id": "4"}) as room:
        room.send_text("hush")
        room.receive_text()
    client.get("/healthz", headers={"x-request-id": "5"})

    assert "hush" not in caplog.text
    assert "key-of-alice" not in caplog.text
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "asgi_agents.audit"]
    shown = ("correlation_id", "method", "path", "status", "decided_by")
    assert [tuple(line[name] for name in shown) for line in lines] == [
        ("1", "GET", "/api/orders", 200, None),
        ("2", "POST", "/api/orders", 201, None),
        ("3", "GET", "/api/orders", 401, "api-key"),
        ("4", "GET", "/room/lounge", 101, None),
    ]
    assert {line["headers"]["user-agent"] for line in lines} == {"testclient"}


def test_firewall_can_be_elsewhere() -> None:
    (waf,) = (config for config in agent_configs("http://127.0.0.1:9/") if config.id == "waf")
    assert waf.resolved_transport.remote
    with TestClient(create_app(waf_url="http://127.0.0.1:9/")) as client:
        # Nobody listens there, and the firewall fails closed.
        assert client.get("/api/orders", headers=ALICE).status_code == 503
        assert client.get("/healthz").status_code == 200


def test_agents_hear_no_more_than_they_need() -> None:
    heard = {config.id: sorted(config.hears or ()) for config in agent_configs()}
    assert heard["recommender"] == ["request_body_chunk", "request_headers"]
    assert heard["waf"] == heard["waf-next"] == ["request_body_chunk", "request_headers"]
