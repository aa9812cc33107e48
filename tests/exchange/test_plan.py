"""The short way of heads and the general one: random agents, apps and requests come to the same on both."""

import logging
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    BadInput,
    CircuitBreakerConfig,
    FailureMode,
    HeaderOp,
    RequestHeadersEvent,
    current_correlation_id,
)
from asgi_agents.exchange.plan import HeadPlan
from asgi_agents.observability.correlation import live_ids
from tests.support.asgi import assert_nothing_left

_DURATION = re.compile(r"duration=[0-9.e-]+")
# Correlation ids, and span contexts that are not the client's.
_MADE_UP = re.compile(
    r"00-(?!0af7651916cd43dd8448eb211c80319c)[0-9a-f]{32}-[0-9a-f]{16}-0\d|[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
)

ANSWERS: dict[str, Callable[[], AgentResponse | None]] = {
    "none": lambda: None,
    "allow": AgentResponse.allow,
    "plain": AgentResponse,
    "tagged": lambda: AgentResponse.allow(audit=AuditMetadata(tags=("seen",))),
    "request header": lambda: AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "ada")]),
    "response header": lambda: AgentResponse.allow(response_headers=[HeaderOp.set("x-seen", "1", always=True)]),
    "needs more": lambda: AgentResponse.allow(needs_more=True),
    "block": lambda: AgentResponse.block(429, "slow down"),
    "redirect": lambda: AgentResponse.redirect("/login", 302),
    "challenge": lambda: AgentResponse.challenge("basic"),
    "invalid": lambda: AgentResponse.block(99),
}
_RAISES: dict[str, Callable[[], Exception]] = {
    "error": lambda: ValueError("no"),
    "bad input": lambda: BadInput("not like this"),
}


@dataclass(frozen=True)
class Script:
    """What one agent does, call by call; ``waits`` are calls at which it suspends first."""

    says: Sequence[str]
    waits: bool
    mode: FailureMode
    enforce: bool
    breaker: bool


@dataclass
class Way:
    """What was seen on one of the two ways."""

    seen: list[Any] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def note(self, *what: Any) -> None:
        """Ids that were made up are named by the order in which they come."""
        self.seen.append(
            _MADE_UP.sub(
                lambda found: self.names.setdefault(found[0], f"id{len(self.names)}"),
                _DURATION.sub("duration=...", repr(what)),
            )
        )


class Scripted(Agent):
    """Suspends only where its script does: it is another class otherwise, whose hook has no ``await``."""

    def __init__(self, name: str, script: Script, way: Way) -> None:
        self.name = name
        self.says = list(script.says)
        self.way = way

    def say(self, event: RequestHeadersEvent) -> AgentResponse | None:
        metadata = event.metadata
        self.way.note(
            self.name,
            event.method,
            event.uri,
            sorted(event.headers.items()),
            metadata.correlation_id,
            metadata.request_id,
            metadata.traceparent,
            metadata.server_name,
            metadata.client_ip,
            metadata.protocol,
            metadata.route_id,
            current_correlation_id(),
        )
        said = self.says.pop(0) if self.says else "none"
        if said in _RAISES:
            raise _RAISES[said]()
        return ANSWERS[said]()

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return self.say(event)


class Waiting(Scripted):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        await checkpoint()
        return self.say(event)


scripts = st.builds(
    Script,
    st.lists(st.sampled_from([*ANSWERS, *_RAISES, "none", "none", "allow"]), max_size=5),
    st.sampled_from([False, False, True]),
    st.sampled_from(list(FailureMode)),
    st.sampled_from([True, True, True, False]),
    st.booleans(),
)
headers = st.lists(
    st.sampled_from(
        [
            (b"host", b"shop.example"),
            (b"Host", b"other.example"),
            (b"x-request-id", b"mine-1"),
            (b"x-request-id", b"not a token"),
            (b"cookie", b"a=1"),
            (b"cookie", b"b=2"),
            (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            (b"accept", b"*/*"),
            (b"x-user", b"mallory"),
        ]
    ),
    max_size=5,
)
requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "HEAD", "POST"]),
        "path": st.sampled_from(["/", "/free", "/caf%C3%A9"]),
        "query": st.sampled_from([b"", b"q=1"]),
        "headers": headers,
        "state": st.sampled_from([None, {}, {"agents": "somebody else's"}, {"other": 1}]),
        "client": st.sampled_from([("10.0.0.1", 4711), None]),
        "raw_path": st.booleans(),
        "app": st.sampled_from(["answers", "answers", "raises", "says nothing"]),
    }
)
options = st.fixed_dictionaries(
    {
        "traced": st.sampled_from([False, False, False, True]),
        "audited": st.sampled_from([False, False, False, True]),
        "exposed": st.sampled_from([False, False, False, True]),
        "state_key": st.sampled_from(["agents", None]),
        "nested": st.sampled_from([False, False, True]),
    }
)


async def drive(
    planned: bool, scripts: Sequence[Script], requests: Sequence[dict[str, Any]], options: dict[str, Any]
) -> list[Any]:
    way = Way()
    exporter = InMemorySpanExporter()
    provider = None
    if options["traced"]:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        context = scope["state"]["asgi_agents"]
        way.note(
            "app",
            sorted(request.headers.items()),
            context.decision,
            context.audit,
            context.correlation_id,
            scope["state"].get("agents") is context,
            current_correlation_id(),
        )
        if scope["app"] == "raises":
            raise LookupError("the app's own")
        if scope["app"] == "answers":
            await PlainTextResponse("hello")(scope, receive, send)

    def configs(tag: str) -> list[AgentConfig]:
        return [
            AgentConfig(
                f"{tag}{number}",
                (Waiting if script.waits else Scripted)(f"{tag}{number}", script, way),
                failure_mode=script.mode,
                enforce=script.enforce,
                circuit_breaker=CircuitBreakerConfig(failure_threshold=2) if script.breaker else None,
            )
            for number, script in enumerate(scripts)
        ]

    middlewares: list[AgentMiddleware] = []
    served: Any = app
    for tag in ("in", "out") if options["nested"] else ("a",):
        served = AgentMiddleware(
            served,
            agents=configs(tag),
            state_key=options["state_key"],
            expose_correlation_id=options["exposed"],
            on_audit=(lambda record: way.note(record.decision, record.decided_by, record.status, record.agents[:0]))
            if options["audited"]
            else None,
            tracer_provider=provider,
        )
        if not planned:
            served._plan = None
        middlewares.append(served)

    for request in requests:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        scope: Scope = {
            "type": "http",
            "asgi": {"spec_version": "2.4"},
            "http_version": "1.1",
            "method": request["method"],
            "path": request["path"],
            "query_string": request["query"],
            "headers": list(request["headers"]),
            "client": request["client"],
            "server": ("127.0.0.1", 80),
            "app": request["app"],
        }
        if request["raw_path"]:
            scope["raw_path"] = request["path"].encode()
        if request["state"] is not None:
            scope["state"] = dict(request["state"])
        try:
            await served(scope, receive, send)
        except LookupError as exc:
            way.note("raised", exc)
        way.note("client", sent, sorted(scope.get("state", {})) if request["state"] else None)
    for middleware in middlewares:
        for agent_id, metrics in middleware.manager.metrics.items():
            way.note(agent_id, metrics.calls, metrics.outcomes, metrics.shadowed, metrics.passed_open)
        assert_nothing_left(middleware.manager)
    for span in exporter.get_finished_spans():
        way.note(span.name, span.status.status_code, sorted(map(str, span.attributes or ())))
    assert not live_ids
    return way.seen


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scripts=st.lists(scripts, min_size=1, max_size=3),
    requests=st.lists(requests, min_size=1, max_size=4),
    options=options,
)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_both_ways_come_to_the_same(
    backend: str,
    scripts: Sequence[Script],
    requests: Sequence[dict[str, Any]],
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "asgi_agents")
    # Where audit records are logged, all requests take the general way.
    caplog.set_level(logging.WARNING, "asgi_agents.audit")
    if backend == "trio":
        # It runs tasks that are ready in any order, so that what comes of several that wait is a matter of luck.
        waiting = [script for script in scripts if script.waits]
        scripts = [replace(script, waits=script is waiting[0]) if waiting else script for script in scripts]
    outcomes = []
    for planned in (True, False):
        caplog.clear()
        seen = anyio.run(drive, planned, scripts, requests, options, backend=backend)
        outcomes.append((seen, [(record.levelname, record.getMessage()) for record in caplog.records]))
    assert outcomes[0] == outcomes[1]


async def taken(monkeypatch: pytest.MonkeyPatch, scope: dict[str, Any], **settings: Any) -> str:
    """Which way a request takes."""

    class Nothing(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None: ...

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("hello")(scope, receive, send)

    middleware = AgentMiddleware(app, agents=[AgentConfig("a", Nothing())], **settings)
    ways: list[str] = []
    general = middleware._serve_guarded
    serve = HeadPlan.serve

    async def counted(*args: Any) -> Any:
        ways.append("general")
        return await general(*args)

    async def planned(self: HeadPlan, *args: Any) -> Any:
        ways.append("short")
        return await serve(self, *args)

    monkeypatch.setattr(HeadPlan, "serve", planned)
    if middleware._plan is not None:
        middleware._plan._general = counted
    monkeypatch.setattr(middleware, "_serve_guarded", counted)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None: ...

    given = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], **deepcopy(scope)}
    await middleware(given, receive, send)
    return ways[-1]


@pytest.mark.parametrize(
    ("scope", "settings", "way"),
    [
        ({}, {}, "short"),
        ({"state": {}}, {}, "short"),
        ({"state": {"agents": 1}}, {}, "general"),
        ({"headers": [(b"x-request-id", b"mine")]}, {}, "short"),
        ({"headers": [(b"x-request-id", b"mine")]}, {"correlation_header": None}, "short"),
        ({"headers": [(b"cookie", b"a=1"), (b"cookie", b"b=2")]}, {}, "general"),
        ({"headers": ((b"host", b"x"),)}, {}, "general"),
        ({}, {"on_audit": print}, "general"),
        ({}, {"expose_correlation_id": True}, "general"),
        ({}, {"tracer_provider": TracerProvider()}, "general"),
    ],
)
async def test_what_takes_which_way(
    monkeypatch: pytest.MonkeyPatch, scope: dict[str, Any], settings: dict[str, Any], way: str
) -> None:
    # Else a fault in the check would have all of them compared with themselves.
    assert await taken(monkeypatch, scope, **settings) == way


async def test_the_id_of_a_request_is_nobody_elses_while_it_lasts() -> None:
    names: list[str] = []

    class Naming(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            names.append(event.metadata.correlation_id)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None: ...

    def scope(*headers: tuple[bytes, bytes]) -> Scope:
        return {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": list(headers)}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if len(names) == 1:
            # A client that has seen the id names its own request so, while the first one lasts.
            await middleware(scope_of_the_other, receive, send)

    middleware = AgentMiddleware(app, agents=[AgentConfig("a", Naming())])
    scope_of_the_other: Scope = {}

    async def other(given: Scope, receive: Receive, send: Send) -> None:
        scope_of_the_other.update(scope((b"x-request-id", names[0].encode())))
        await app(given, receive, send)

    middleware.app = other
    await middleware(scope(), receive, send)
    assert len(set(names)) == 2
    await middleware(scope((b"x-request-id", names[0].encode())), receive, send)
    assert names[2] == names[0]
