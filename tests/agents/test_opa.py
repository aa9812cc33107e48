"""Opa, with a real OPA where there is one, and with a server that says what no OPA would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from asgi_agents import AuditRecord, ConfigurationError
from asgi_agents.agents import Opa
from tests.support.asgi import App, Client, guarded
from tests.support.examples import some_are_short
from tests.support.servers import serve
from tests.unjudged.asking import Echo, Session, ask, ask_again, config

from .opa_server import opa_server

POLICY = """
package app

default allow := false

allow if {
    input.method == "GET"
    input.parsed_path[0] == "public"
}

allow if input.headers["x-user"] == ["alice"]

by_path if input.path == "/a b/ü"

by_query if input.parsed_query.tag == ["x", "y"]

nobody if input.client_ip == ""

authz := {"allow": true, "headers": {"x-role": "admin"}, "reasons": ["is-admin"]} if input.path == "/admin"

authz := {
    "allow": false, "status": 451, "body": "Not here", "headers": {"x-why": "law"}, "reasons": ["law", "region"],
} if input.path == "/law"

authz := {"allow": false} if input.path == "/plain"
"""


@pytest.fixture(scope="module")
def opa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with opa_server(POLICY, tmp_path_factory.mktemp("opa")) as url:
        yield f"{url}/v1/data/app"


def asking(target: str, client: Client) -> Client:
    path, _, query = target.partition("?")
    client.scope["path"], client.scope["query_string"] = path, query.encode()
    client.scope["raw_path"] = None
    return client


@pytest.mark.parametrize(
    ("method", "path", "users", "status"),
    [
        ("GET", "/public/a", [], 200),
        ("POST", "/public/a", [], 403),
        ("GET", "/private", [], 403),
        ("GET", "/private", [b"alice"], 200),
        ("GET", "/private", [b"bob"], 403),
        ("GET", "/private", [b"alice", b"bob"], 403),
    ],
)
async def test_a_policy_allows_or_denies(opa: str, method: str, path: str, users: list[bytes], status: int) -> None:
    app, client = App(), Client(method, path, headers=[(b"x-user", user) for user in users])
    assert (await ask(app, config(Opa(f"{opa}/allow")), client=client)).status == status
    assert app.calls == (status == 200)


@pytest.mark.parametrize(
    ("rule", "target", "status"),
    [
        ("by_path", "/a b/ü", 200),
        ("by_path", "/other", 403),
        ("by_query", "/?tag=x&tag=y", 200),
        ("by_query", "/?tag=y&tag=x", 403),
        ("not_there", "/", 403),
        ("by_query", "/?" + "a=1&" * 1001, 400),
    ],
)
async def test_a_policy_sees_path_and_query_and_what_is_undefined_is_denied(
    opa: str, rule: str, target: str, status: int
) -> None:
    records: list[AuditRecord] = []
    agent = config(Opa(f"{opa}/{rule}"))
    client = await ask(App(), agent, client=asking(target, Client()), on_audit=records.append)
    assert client.status == status
    assert records[0].answers[0].failure is None
    if status == 403:
        assert records[0].answers[0].reason_codes == ["undefined"]


async def test_a_path_that_is_encoded_is_shown_as_the_app_reads_it(opa: str) -> None:
    client = Client()
    client.scope["raw_path"], client.scope["path"] = b"/a%20b%2F%C3%BC", "/a b/ü"
    assert (await ask(App(), config(Opa(f"{opa}/by_path")), client=client)).status == 200


async def test_who_has_no_address_is_asked_about_as_well(opa: str) -> None:
    client = Client()
    client.scope["client"] = None
    assert (await ask(App(), config(Opa(f"{opa}/nobody")), client=client)).status == 200
    assert (await ask(App(), config(Opa(f"{opa}/nobody")))).status == 403


async def test_an_object_says_what_is_answered_and_why(opa: str) -> None:
    records: list[AuditRecord] = []
    client = await ask(App(), config(Opa(f"{opa}/authz")), client=Client(path="/law"), on_audit=records.append)
    assert (client.status, client.body, client.header(b"x-why")) == (451, b"Not here", b"law")
    assert records[0].answers[0].reason_codes == ["law", "region"]
    assert (await ask(App(), config(Opa(f"{opa}/authz")), client=Client(path="/plain"))).status == 403


async def test_headers_of_an_allow_are_for_the_app(opa: str) -> None:
    app, records = App(), list[AuditRecord]()
    await ask(app, config(Opa(f"{opa}/authz")), client=Client(path="/admin"), on_audit=records.append)
    assert app.header(b"x-role") == b"admin"
    assert records[0].answers[0].reason_codes == ["is-admin"]


DECISIONS: dict[str, tuple[object, int]] = {
    "boolean": (True, 200),
    "bare": ({"allow": True}, 200),
    "one of them": ({"allow": True, "headers": {"x-role": "user"}}, 200),
    "in capitals": ({"allow": True, "headers": {"X-Role": "user", "x-team": "a"}}, 200),
    "another": ({"allow": True, "headers": {"x-role": "user", "x-other": "a"}}, 503),
    "another spelling": ({"allow": True, "headers": {"x_role": "user"}}, 503),
    "of the answer": ({"allow": False, "headers": {"x-why": "law"}}, 403),
}


@pytest.mark.parametrize("spelling", [b"x-role", b"X-Role", b"X_Role"])
@pytest.mark.parametrize("decision", DECISIONS)
async def test_what_a_policy_sets_for_some_nobody_else_writes(decision: str, spelling: bytes) -> None:
    given, status = DECISIONS[decision]
    with serve(JSONResponse({"result": given}), lifespan="off") as url:
        agent = Opa(f"{url}v1/data/app/authz", sets=["X-Role", "x-team"])
        app = App()
        client = Client(headers=[(spelling, b"admin"), (b"x-team", b"admins")])
        await ask(app, config(agent), client=client)
    assert (client.status, app.calls) == (status, int(status == 200))
    if app.calls:
        values = {name: value for name, value in app.headers if b"role" in name.lower() or b"team" in name}
        expected = given.get("headers", {}) if isinstance(given, dict) else {}
        assert values == {name.lower().encode(): value.encode() for name, value in expected.items()}


async def test_a_handshake_is_asked_about(opa: str) -> None:
    for path, accepted in (("/public/ws", True), ("/private", False)):
        session = Session("hello", path=path)
        await session.call(guarded(Echo(), config(Opa(f"{opa}/allow"))))
        assert session.accepted == accepted


async def test_opa_may_ask_for_a_token(tmp_path: Path) -> None:
    rules = tmp_path / "system.rego"
    rules.write_text(
        "package system.authz\n\ndefault allow := false\n\n"
        'allow if input.identity == "s3cret"\n\nallow if input.path == ["health"]\n'
    )
    with opa_server(POLICY, tmp_path, "--authentication=token", "--authorization=basic", str(rules)) as url:
        right, wrong = (Opa(f"{url}/v1/data/app/allow", token=token) for token in ("s3cret", "wrong"))
        assert (await ask(App(), config(right), client=Client(path="/public/a"))).status == 200
        assert (await ask(App(), config(wrong), client=Client(path="/public/a"))).status == 503


@pytest.mark.parametrize(("mode", "status"), [("closed", 503), ("open", 200)])
async def test_an_opa_that_is_down_is_a_failure_and_one_that_is_back_is_asked(
    tmp_path: Path, mode: str, status: int
) -> None:
    with opa_server(POLICY, tmp_path) as url:
        agent = config(Opa(f"{url}/v1/data/app/allow"), failure_mode=mode)
        app = guarded(App(), agent)
        assert (await ask_again(app, Client(path="/private"))).status == 403
    assert (await ask_again(app, Client(path="/private"))).status == status
    port = url.rsplit(":", 1)[1]
    with opa_server(POLICY, tmp_path, "--addr", f"127.0.0.1:{port}"):
        assert (await ask_again(app, Client(path="/private"))).status == 403


@pytest.mark.parametrize(
    "answer",
    some_are_short(
        [
            b'{"result": "yes"}',
            b'{"result": 1}',
            b'{"result": null}',
            b'{"result": [true]}',
            b'{"result": {}}',
            b'{"result": {"allow": "true"}}',
            b'{"result": {"allow": 1}}',
            b'{"result": {"allow": false, "status": 200}}',
            b'{"result": {"allow": false, "status": "403"}}',
            b'{"result": {"allow": false, "body": 1}}',
            b'{"result": {"allow": true, "headers": {"x": 1}}}',
            b'{"result": {"allow": true, "headers": {"x": "a\\nb"}}}',
            b'{"result": {"allow": true, "headers": []}}',
            b'{"result": {"allow": true, "reasons": "r"}}',
            b"[true]",
            b"true",
            b"no JSON",
            b"[" * 100_000,
            b'{"result": true, "x": "' + b"x" * 70_000 + b'"}',
            500,
            404,
            302,
        ],
        one_in=3,
    ),
    ids=lambda answer: str(answer)[:50],
)
async def test_an_answer_that_is_no_decision_is_a_failure(answer: bytes | int) -> None:
    async def respond(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()
        if isinstance(answer, int):
            response = Response(b'{"result": true}', answer, {"location": "/v1/data/app/allow"})
        else:
            response = Response(answer, media_type="application/json")
        await response(scope, receive, send)

    records: list[AuditRecord] = []
    with serve(respond) as url:
        client = await ask(App(), config(Opa(f"{url}v1/data/app/allow")), on_audit=records.append)
    assert client.status == 503
    assert records[0].answers[0].failure is not None


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("127.0.0.1:8181/v1/data/a", {}, "url="),
        ("http://127.0.0.1:8181", {}, "url="),
        ("http://127.0.0.1:8181/v1/data/", {}, "url="),
        ("http:///v1/data/a", {}, "url="),
        (1, {}, "url=1"),
        ("http://127.0.0.1/v1/data/a", {"headers": "x-user"}, "headers="),
        ("http://127.0.0.1/v1/data/a", {"headers": ["a b"]}, "headers="),
        ("http://127.0.0.1/v1/data/a", {"token": "a\nb"}, "token is"),
        ("http://127.0.0.1/v1/data/a", {"sets": "x-role"}, "sets="),
        ("http://127.0.0.1/v1/data/a", {"sets": ["host"]}, "sets='host' belongs to the server"),
    ],
)
def test_what_can_not_work_is_a_configuration_error(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^Opa: {message}"):
        Opa(given, **options)
