"""Where credentials, bodies and configuration must not end up."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    BodyMutation,
    ConfigurationError,
    ConfigureEvent,
    EventType,
    FailureMode,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    HttpTransport,
    InspectionType,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    Route,
    StreamTransport,
    WebSocketFrameEvent,
)
from asgi_agents.prometheus import metrics_app
from asgi_agents.protocol import Opcode
from asgi_agents.status import status_app
from tests.support.asgi import Probe

SECRET = "hunter2"

VALUES: list[object] = [
    ConfigureEvent(agent_id="a", config={"key": SECRET}),
    RequestBodyChunkEvent(correlation_id="c", data=SECRET.encode(), is_last=True),
    ResponseBodyChunkEvent(correlation_id="c", data=SECRET.encode(), is_last=True),
    WebSocketFrameEvent(
        correlation_id="c",
        opcode=Opcode.TEXT,
        data=SECRET.encode(),
        client_to_server=True,
        frame_index=0,
        client_ip="192.0.2.7",
    ),
    GuardrailInspectEvent(
        correlation_id="c",
        inspection_type=InspectionType.PII_DETECTION,
        content=SECRET,
        metadata={"token": SECRET},
    ),
    HeaderOp.set("authorization", SECRET),
    BodyMutation(SECRET.encode()),
    AgentResponse.allow(request_headers=[HeaderOp.set("authorization", SECRET)]),
    AgentResponse.block(403, SECRET, headers={"set-cookie": SECRET}, audit=AuditMetadata(custom={"token": SECRET})),
    AgentResponse.redirect(f"https://login.example/?code={SECRET}"),
    AgentResponse.challenge("captcha", {"key": SECRET}),
    GuardrailResponse(detected=True, redacted_content=SECRET),
    AgentConfig("a", Probe(), config={"key": SECRET}),
    HttpTransport(f"https://agent.example/?key={SECRET}", headers={"authorization": SECRET}),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_repr_of_events_answers_and_configuration_shows_no_content(value: object) -> None:
    assert SECRET not in repr(value)
    assert SECRET not in str(list(getattr(value, "__rich_repr__", list)()))
    assert type(value).__name__ in repr(value)


WRONG: list[Callable[[], object]] = [
    lambda: AgentConfig("a", f"https://user:{SECRET}@agent.example/"),
    lambda: AgentConfig("a", f"ftp://user:{SECRET}@agent.example/"),
    lambda: AgentConfig("a", f"tcp://user:{SECRET}@agent.example:9000"),
    lambda: AgentConfig("a", [f"tcp://user:{SECRET}@agent.example:9000", f"http://user:{SECRET}@agent.example/"]),
    lambda: StreamTransport(f"tcp://{SECRET}@agent.example:9000"),
    lambda: StreamTransport("unix:///run/a.sock", verify=False, cert=("a", "b", SECRET, "c")),  # type: ignore[arg-type]
    lambda: HttpTransport("https://agent.example/", headers={"authorization": f"{SECRET}\r\n"}),
    lambda: HttpTransport("https://agent.example/", headers={"authorization": SECRET.encode()}),  # type: ignore[dict-item]
    lambda: HttpTransport("https://agent.example/", cert=(SECRET,)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("make", WRONG, ids=range(len(WRONG)))
def test_a_configuration_error_quotes_no_credentials(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()

    told: BaseException | None = caught.value
    while told is not None:
        assert SECRET not in str(told)
        told = told.__cause__ or told.__context__


class Leaky(Agent):
    """Knows everything of a request, and fails in the way that its path names, with all of it in what it says."""

    async def on_configure(self, event: ConfigureEvent) -> None:
        pass

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        known = f"{event.header('authorization')} {event.header('cookie')} {event.uri}"
        match event.uri.partition("?")[0]:
            case "/raise":
                raise RuntimeError(known)
            case "/raise-group":
                raise ExceptionGroup(known, [ValueError(known)])
            case "/bad-header":
                return AgentResponse.allow(request_headers=[HeaderOp.set("x-known", f"{known}\r\n")])
            case "/bad-answer":
                return AgentResponse(decision=known)  # type: ignore[arg-type]
            case "/bad-audit":
                return AgentResponse(audit=known)  # type: ignore[arg-type]
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        if event.data.startswith(b"raise"):
            raise RuntimeError(event.data)
        if event.data.startswith(b"write"):
            return AgentResponse.allow(request_body_mutation=BodyMutation(event.data + event.data))
        return None


async def hello(request: Request) -> Response:
    await request.body()
    return PlainTextResponse("hello")


REQUESTS = ["/raise", "/raise-group", "/bad-header", "/bad-answer", "/bad-audit", "/hello"]


@pytest.mark.parametrize("failure_mode", FailureMode)
def test_nothing_that_is_written_down_or_answered_has_secrets_in_it(
    log: pytest.LogCaptureFixture, failure_mode: FailureMode, http_client: str
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    nowhere = HttpTransport(f"http://127.0.0.1:9/?key={SECRET}", headers={"authorization": f"Bearer {SECRET}"})
    options: dict[str, Any] = {"failure_mode": failure_mode, "circuit_breaker": None, "config": {"key": SECRET}}
    manager = AgentManager(
        [
            AgentConfig("leaky", Leaky(), **options),
            AgentConfig("nowhere", nowhere, events={EventType.REQUEST_HEADERS}, **options),
        ],
        tracer_provider=provider,
    )
    app = AgentMiddleware(
        Starlette(
            routes=[
                Mount("/-/status", status_app(manager)),
                AppRoute("/-/metrics", metrics_app(manager)),
                AppRoute("/{any:path}", hello, methods=["GET", "POST"]),
            ]
        ),
        manager=manager,
        routes=[
            Route("/-/{rest:path}", []),
            Route("/nowhere", ["nowhere"]),
            Route("/{rest:path}", ["leaky"]),
        ],
    )
    credentials = {
        "authorization": f"Bearer {SECRET}",
        "cookie": f"session={SECRET}",
        "x-api-key": SECRET,
        "x-request-id": f"{SECRET}/@",  # no token
    }
    client = TestClient(app, headers=credentials)

    answers = [client.get(path, params={"token": SECRET}) for path in (*REQUESTS, "/nowhere")]
    answers += [client.post("/hello", content=f"{word}{SECRET}") for word in ("raise", "write", "")]
    shown = [client.get(path).text for path in ("/-/status/status.json", "/-/metrics")]

    expected = 503 if failure_mode is FailureMode.CLOSED else 200
    assert [answer.status_code for answer in answers] == [*[expected] * 5, 200, *[expected] * 3, 200]
    for answer in answers:
        assert SECRET not in answer.text
        assert SECRET not in str(answer.headers)
    assert "raised RuntimeError" in shown[0]
    assert not [text for text in shown if SECRET in text]
    lines = [logging.Formatter().format(record) for record in log.records if record.name.startswith("asgi_agents")]
    assert any("raised RuntimeError" in line for line in lines)
    assert any('"decision":' in line for line in lines)  # audit records
    assert not [line for line in lines if SECRET in line]
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    assert len(spans) > len(answers)
    assert not [span for span in spans if SECRET in span]


def test_agents_are_shown_everything_credentials_included() -> None:
    """By design: an agent is trusted with what it is there to judge."""
    heard: list[tuple[str | None, str | None, str]] = []

    class Curious(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            heard.append((event.header("authorization"), event.header("cookie"), event.uri))

    app = AgentMiddleware(Starlette(routes=[AppRoute("/", hello)]), agents=[AgentConfig("curious", Curious())])
    TestClient(app).get("/?token=t", headers={"authorization": "Bearer b", "cookie": "session=s"})

    assert heard == [("Bearer b", "session=s", "/?token=t")]
