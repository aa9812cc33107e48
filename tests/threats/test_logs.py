"""What clients and agents can bring into logs, audit, status page and metrics, and ids that aren't theirs."""

import json
import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    EventType,
    HttpTransport,
    RequestHeadersEvent,
    Route,
)
from asgi_agents.prometheus import metrics_app
from asgi_agents.serve import agent_app
from asgi_agents.status import status_app
from tests.support.asgi import App, Client, Held, Probe, SlowProbe, guarded
from tests.support.servers import serve

from .raw import get

# A line of its own, a colour, the other direction of writing, an element, and what no encoding can carry.
EVIL = "x\r\nERROR forged\u2028ERROR\x85ERROR\x1b[31m\u202e\u061c\U000e0041<script>alert(1)</script>'\"\ud800\x00"


def is_harmless(text: str) -> bool:
    """Whether it is one line that does nothing to a terminal."""
    return text.isprintable() and not any(ord(char) > 0xD7FF and ord(char) < 0xE000 for char in text)


class Rude(Agent):
    """Fails with a text of its own, and fills its audit with it."""

    def __init__(self, text: str = EVIL) -> None:
        self.text = text

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        audit = AuditMetadata(tags=[self.text], rule_ids=[self.text], reason_codes=[self.text])
        if event.header("x-fail"):
            return AgentResponse(version=self.text, audit=audit)  # type: ignore[arg-type]
        return AgentResponse.block(403, "no", audit=audit)


async def show_id(request: Request) -> Response:
    return JSONResponse(request.state.agents.correlation_id)


def world(agent: AgentConfig) -> TestClient:
    manager = AgentManager([agent])
    app = Starlette(
        routes=[
            Mount("/-/status", status_app(manager)),
            AppRoute("/-/metrics", metrics_app(manager)),
        ]
    )
    routes = [Route("/-/{rest:path}", []), Route("/{rest:path}", [agent.id])]
    return TestClient(AgentMiddleware(app, manager=manager, routes=routes, audit_headers=["x-evil"]))


def lines_of(log: pytest.LogCaptureFixture) -> list[str]:
    return [logging.Formatter().format(record) for record in log.records if record.name.startswith("asgi_agents")]


def test_nothing_from_clients_or_agents_forges_a_log_line(log: pytest.LogCaptureFixture) -> None:
    client = world(AgentConfig("agent", Rude()))
    evil = EVIL.encode("utf-8", "surrogatepass")

    client.get("/%0d%0aERROR%20forged%1b[31m%e2%80%ae%ed%a0%80", headers={b"x-evil": evil, b"x-request-id": evil})
    client.get("/", headers={"x-fail": "1"})

    lines = lines_of(log)
    audit = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(audit) == 2
    assert len(lines) == 3
    for line in lines:
        assert is_harmless(line)
        assert len(line) < 10_000
    assert "ERROR forged" in audit[0]["path"]


@pytest.mark.parametrize("fault", ["refused", "text"])
def test_what_a_remote_agent_says_of_its_failure_is_one_short_line(log: pytest.LogCaptureFixture, fault: str) -> None:
    class Refusing(Agent):
        async def on_configure(self, event: Any) -> AgentResponse:
            return AgentResponse.block(403, EVIL * 1000)

        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            return None

    if fault == "refused":
        with serve(agent_app(Refusing())) as url:
            client = world(AgentConfig("agent", url, events={EventType.REQUEST_HEADERS}, config={"a": 1}, timeout=10))
            assert client.get("/").status_code == 503
    else:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            answer = {"decision": EVIL.replace("\ud800", "") * 1000}
            await JSONResponse(answer)(scope, receive, send)

        with serve(app) as url:
            client = world(AgentConfig("agent", HttpTransport(url), events={EventType.REQUEST_HEADERS}, timeout=10))
            assert client.get("/").status_code == 503

    lines = [line for line in lines_of(log) if not line.startswith("{")]
    assert lines
    for line in lines:
        assert is_harmless(line)
        assert len(line) < 600


def test_nothing_from_clients_or_agents_is_markup_on_the_status_page() -> None:
    """Its page is fixed, its data is JSON that scripts set as text, and its policy lets no other script run."""
    client = world(AgentConfig("agent", Rude()))
    for headers in ({}, {"x-fail": "1"}):
        client.get("/%3Cscript%3E", headers={"x-request-id": "a|b'~!", **headers})

    page = client.get("/-/status/")
    data = client.get("/-/status/status.json")

    assert "<script" not in data.text.replace("<script>alert(1)</script>", "")
    assert data.headers["content-type"] == "application/json"
    for answer in (page, data):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert page.content == world(AgentConfig("other", Rude())).get("/-/status/").content
    assert "innerHTML" not in client.get("/-/status/page.js").text
    shown = data.json()["agents"][0]
    assert {incident["outcome"] for incident in shown["failures"] + shown["denials"]} == {"error", "block"}


def test_nothing_from_clients_is_a_label_of_the_metrics() -> None:
    client = world(AgentConfig("agent", Rude()))
    for number in range(50):
        client.get(f"/{number}", headers={"x-request-id": f"id-{number}", "user-agent": EVIL[:1] * number})

    exposed = client.get("/-/metrics").text
    labels = {
        (name, value)
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
        for name, value in sample.labels.items()
        if name != "le"
    }

    assert {name for name, _ in labels} <= {"agent_id", "event", "decision", "enforced", "breaker_state"}
    assert len(labels) < 20


NO_IDS = [b"", b"a b", b"a" * 129, b"a,b", b"<a>", b"a\tb", b"\xff", b'"a"', b"a/b", b"a;b", b"{a}", b"a\x7f"]


@pytest.mark.parametrize("given", NO_IDS, ids=repr)
def test_an_id_from_a_client_is_a_short_token_or_not_taken(server: dict[str, Any], given: bytes) -> None:
    app = Starlette(routes=[AppRoute("/", show_id)])
    guarded_app = AgentMiddleware(app, agents=[AgentConfig("agent", Probe())], expose_correlation_id=True)
    with serve(guarded_app, **server) as url:
        answered = get(url, b"/", b"x-request-id: " + given)
        taken = get(url, b"/", b"x-request-id: a-Token!")

    assert b'"a-Token!"' in taken
    if b" 400 " not in answered[:20]:
        assert (given or b"x-request-id: \r\n") not in answered.replace(b'"', b"", 2) or given in (b"", b'"a"')
        made = json.loads(answered.rpartition(b"\r\n\r\n")[2])
        assert len(made) == 36


async def test_a_client_can_not_take_the_id_of_a_connection_that_is_open() -> None:
    """State that an agent keeps under it, and answers that name it, stay with whoever was first."""
    held = Held()
    probe = SlowProbe(request_headers=held)
    middleware = guarded(App(), AgentConfig("agent", probe))
    theirs, spoofed = (Client(headers=[(b"x-request-id", b"theirs")]) for _ in range(2))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(theirs.call, middleware)
        await held.reached.wait()
        tasks.start_soon(spoofed.call, middleware)
        while len(probe.heard) < 2:
            await anyio.lowlevel.checkpoint()
        held.gate.set()

    ids = [event.correlation_id for event in probe.heard if isinstance(event, RequestHeadersEvent)]
    assert ids[0] == "theirs"
    assert ids[1] != "theirs"
    assert (theirs.status, spoofed.status) == (200, 200)


@pytest.mark.parametrize("where", ["status", "metrics"])
def test_status_page_and_metrics_show_nothing_to_whom_authorize_refuses(where: str) -> None:
    manager = AgentManager([AgentConfig("agent", Rude())])
    asked: list[str] = []

    def authorize(request: Request) -> Any:
        asked.append(request.url.path)
        match request.headers.get("x-as"):
            case "operator":
                return True
            case "nobody":
                return PlainTextResponse("who are you?", 401)
            case "truthy":
                return 1
        return None

    make: Any = status_app if where == "status" else metrics_app
    client = TestClient(Starlette(routes=[Mount("/ops", make(manager, authorize=authorize))]), follow_redirects=False)
    paths = ["/", "/status.json", "/events", "/page.js", "/nothing", "//status.json", "/./", "/status.json/"]

    for path in paths:
        for method in ("GET", "HEAD", "POST", "get"):
            assert client.request(method, f"/ops{path}").status_code == 403
            assert client.request(method, f"/ops{path}", headers={"x-as": "truthy"}).status_code == 403
            assert client.request(method, f"/ops{path}", headers={"x-as": "nobody"}).status_code == 401
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ops/events"):
        pass
    assert len(asked) == len(paths) * 4 * 3
    assert client.get("/ops/", headers={"x-as": "operator"}).status_code == 200


def test_status_page_and_metrics_are_not_there_unless_they_are_mounted() -> None:
    app = AgentMiddleware(Starlette(), agents=[AgentConfig("agent", Probe())])
    client = TestClient(app)
    for path in ("/-/agents/", "/-/status/", "/-/metrics", "/metrics", "/status.json"):
        assert client.get(path).status_code == 404
