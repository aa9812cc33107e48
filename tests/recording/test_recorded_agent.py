"""An app is tested with recorded answers: what was recorded comes again, and what was not is a failure of the agent."""

import logging
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    BodyMode,
    BodyMutation,
    CircuitBreakerConfig,
    ConfigurationError,
    Detection,
    EventType,
    FailureMode,
    GuardrailInspectEvent,
    GuardrailResponse,
    GuardrailUnavailableError,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    protect,
    redact_secrets,
)
from asgi_agents.audit import Redact
from asgi_agents.recording import RecordedAgent, RecordingError, record, recorded_agent, replay
from tests.fuzz.agents import Hired, Scripted, hire
from tests.fuzz.choices import Choices
from tests.support.asgi import App, Client, body, start
from tests.support.sample_events import HEAD, QUESTION, head

from .judges import Heads, Judge, answering, ask, ask_all


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


def shop(transport: Any, **settings: Any) -> FastAPI:
    app = FastAPI()

    @app.post("/orders/{number}")
    async def order(number: int, request: Request) -> str:
        return f"{number}: {(await request.body()).decode()} for {request.headers.get('x-user')}"

    @app.websocket("/live")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    protect(app, agents=[AgentConfig("judge", transport, body_access="write", **settings)])
    return app


def use(app: FastAPI) -> list[Any]:
    """What a client gets."""
    found: list[Any] = []
    with TestClient(app) as client:
        for number in range(30):
            response = client.post(f"/orders/{number}", content=f"order {number}", follow_redirects=False)
            headers = {name: value for name, value in response.headers.items() if name.startswith("x-")}
            found.append((response.status_code, response.text, headers))
        try:
            with client.websocket_connect("/live") as session:
                for number in range(10):
                    session.send_text(f"message {number}")
                session.send_text("last")
                while (text := session.receive_text()) != "last":
                    found.append(text)
        except Exception as exc:
            found.append(repr(exc))
    return found


@pytest.mark.parametrize("repeats", [1, 2])
def test_an_app_with_recorded_answers_does_the_same_without_the_agent(repeats: int, path: Path) -> None:
    app = shop(Judge())
    with record(app, path, bodies=True):
        expected = use(app)
    assert {status for status, *_ in expected[:30]} >= {200, 403, 307}
    again = shop(RecordedAgent(path, repeat=repeats > 1), circuit_breaker=None)
    for _ in range(repeats):
        assert use(again) == expected


def test_what_was_not_recorded_is_a_failure_that_says_what_was_asked(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = shop(Judge())
    with record(app, path, bodies=True), TestClient(app) as client:
        client.post("/orders/1", content=b"one")
    for mode, status in ((FailureMode.CLOSED, 503), (FailureMode.OPEN, 200)):
        caplog.clear()
        again = shop(RecordedAgent(path), failure_mode=mode)
        with caplog.at_level(logging.WARNING, "asgi_agents"), TestClient(again) as client:
            assert client.post("/orders/2?token=abcdefgh", content=b"two").status_code == status
        (message,) = [entry.getMessage() for entry in caplog.records if "is not in" in entry.getMessage()]
        assert f"POST /orders/2?token=[redacted] is not in {path}: no connection in the recording begins so" in message


# How connections and events are recognised


class Says(Agent):
    """Answers each head with the value of a header, and each body with its own."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.allow(routing_metadata={"said": event.header("x-say") or ""})

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        return AgentResponse.block(403, event.data.decode())

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> AgentResponse | None:
        return AgentResponse.block(403, event.content) if event.content else None


async def said(manager: AgentManager, number: int, say: str, uri: str = "/") -> str:
    """What comes of a head, or the kind of the failure."""
    decision = await manager.process_request_headers(head(f"c-{number}", uri, {"x-say": [say]}))
    if decision.failure is not None:
        return decision.failure.kind.value
    return decision.routing_metadata["said"]


async def record_heads(path: Path, *says: str) -> None:
    async with AgentManager([AgentConfig("says", Says())]) as manager, record(manager, path, bodies=True):
        for number, say in enumerate(says):
            await said(manager, number, say)


def manager_of(*args: Any, **options: Any) -> AgentManager:
    return AgentManager([AgentConfig("says", RecordedAgent(*args, **options), circuit_breaker=None)])


@pytest.mark.parametrize(
    ("options", "asked", "expected"),
    [
        ({}, ["a", "b", "c"], ["a", "b", "c"]),
        # Without the header the order alone counts.
        ({}, ["c", "b", "a"], ["a", "b", "c"]),
        ({}, ["a", "b", "c", "a"], ["a", "b", "c", "error"]),
        ({"repeat": True}, ["a", "b", "c", "a", "b"], ["a", "b", "c", "a", "b"]),
        ({"headers": ["X-Say"]}, ["c", "b", "a"], ["c", "b", "a"]),
        ({"headers": ["x-say"]}, ["a", "a", "b"], ["a", "error", "b"]),
        ({"headers": ["x-say"], "repeat": True}, ["a", "a", "b"], ["a", "a", "b"]),
        ({"headers": ["x-say"]}, ["d"], ["error"]),
    ],
)
async def test_connections_are_recognised_by_their_first_event(
    options: dict[str, Any], asked: list[str], expected: list[str], path: Path
) -> None:
    await record_heads(path, "a", "b", "c")
    async with manager_of(path, **options) as manager:
        assert [await said(manager, number, say) for number, say in enumerate(asked)] == expected


async def test_names_of_headers_may_come_from_an_iterator(path: Path) -> None:
    await record_heads(path, "a", "b")
    async with manager_of(path, headers=iter(["x-say"])) as manager:
        assert [await said(manager, number, say) for number, say in enumerate(["b", "c"])] == ["b", "error"]


async def test_connections_that_are_open_at_a_time_keep_to_their_own(path: Path) -> None:
    async with AgentManager([AgentConfig("says", Says())]) as manager, record(manager, path, bodies=True):
        for name in ("x", "y"):
            await manager.process_request_headers(head(name, f"/{name}"))
            await manager.process_request_body(chunk(name, name.encode()))
    async with manager_of(path) as manager:
        for name in ("x", "y"):
            await manager.process_request_headers(head(f"{name}2", f"/{name}"))
        for name in ("y", "x"):
            decision = await manager.process_request_body(chunk(f"{name}2", name.encode()))
            assert decision.decision.body == name  # type: ignore[union-attr]


def chunk(name: str, data: bytes) -> RequestBodyChunkEvent:
    return RequestBodyChunkEvent(correlation_id=name, data=data, is_last=True, total_size=len(data))


@pytest.mark.parametrize(
    ("bodies", "data", "fault"),
    [
        (True, b"one", ""),
        (True, b"two", "in this connection the recording has with other content"),
        (False, b"one", ""),
        (False, b"two", ""),
        (False, b"three", "in this connection the recording has with other content"),
    ],
)
async def test_a_body_has_to_be_the_recorded_one_or_as_long(bodies: bool, data: bytes, fault: str, path: Path) -> None:
    async with AgentManager([AgentConfig("says", Says())]) as manager, record(manager, path, bodies=bodies):
        await manager.process_request_headers(HEAD)
        await manager.process_request_body(chunk("c", b"one"))
    async with manager_of(path) as manager:
        await manager.process_request_headers(HEAD)
        decision = await manager.process_request_body(chunk("c", data))
        assert decision.failure is None or fault in decision.failure.message
        assert (decision.failure is None) is (not fault)
        if not fault:
            again = await manager.process_request_body(chunk("c", data))
            assert again.failure is not None
            assert "no more of them" in again.failure.message


async def test_questions_of_a_connection_may_come_in_any_order(path: Path) -> None:
    questions = [
        GuardrailInspectEvent(correlation_id="c", inspection_type="x", content=content) for content in ("a", "b", "")
    ]
    async with AgentManager([AgentConfig("says", Says())]) as manager, record(manager, path, bodies=True):
        expected = [await manager.call_guardrail_agent("says", question) for question in questions]
    async with manager_of(path) as manager:
        # The first says which connection it is.
        order = [0, 2, 1]
        found = [await manager.call_guardrail_agent("says", questions[index]) for index in order]
        assert found == [expected[index] for index in order]
        with pytest.raises(GuardrailUnavailableError):
            await manager.call_guardrail_agent("says", questions[0])


async def test_an_answer_whose_content_was_not_recorded_is_a_failure(path: Path) -> None:
    class Mutates(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            return AgentResponse.allow(request_body_mutation=BodyMutation(b"changed"))

    config = AgentConfig("says", Mutates(), body_access="write")
    async with AgentManager([config]) as manager, record(manager, path):
        await manager.process_request_body(chunk("c", b"one"))
    again = AgentConfig("says", RecordedAgent(path), body_access="write")
    async with AgentManager([again]) as manager:
        decision = await manager.process_request_body(chunk("c", b"one"))
    assert decision.failure is not None
    assert "its answer was recorded without request_body_mutation; record with bodies=True" in decision.failure.message


TOKEN = "token=abcdefgh"
REDACTED_PARTS: dict[str, tuple[AgentResponse, str]] = {
    "redirect": (AgentResponse.redirect(f"/login?{TOKEN}"), "decision"),
    "block": (AgentResponse.block(403, TOKEN), "decision"),
    "header of a block": (AgentResponse.block(403, headers={"x-token": "a"}), "decision"),
    "challenge": (AgentResponse.challenge("bearer", {"nonce": TOKEN}), "decision"),
    "operation": (AgentResponse.allow(request_headers=[HeaderOp.set("x-auth-user", "ada")]), "request_headers"),
    "response operation": (AgentResponse.allow(response_headers=[HeaderOp.add("x-a", TOKEN)]), "response_headers"),
    "routing": (AgentResponse.allow(routing_metadata={"session": "a"}), "routing_metadata"),
    "audit": (AgentResponse.block(403, audit=AuditMetadata(custom={"a": TOKEN}, tags=(TOKEN,))), ""),
    "nothing": (AgentResponse.redirect("/login"), ""),
}


@pytest.mark.parametrize("redact", [redact_secrets, lambda text: text.replace(TOKEN, "***"), None])
@pytest.mark.parametrize("case", REDACTED_PARTS)
async def test_what_was_replaced_in_an_answer_is_not_applied_as_if_the_agent_had_said_it(
    case: str, redact: Redact | None, path: Path
) -> None:
    answer, part = REDACTED_PARTS[case]
    agents = [AgentConfig("says", Heads(lambda event: answer))]
    async with AgentManager(agents) as manager, record(manager, path, bodies=True, redact=redact):
        expected = await manager.process_request_headers(HEAD)
    async with manager_of(path, redact=redact or redact_secrets) as manager:
        found = await manager.process_request_headers(HEAD)
    if part and redact is not None:
        assert found.failure is not None
        assert f"recorded with a secret replaced in {part}; record with redact=None" in found.failure.message
    else:
        assert found.failure is None
        assert (found.decision, found.request_headers) == (expected.decision, expected.request_headers)
        assert found.routing_metadata == expected.routing_metadata


@pytest.mark.parametrize(
    "data", [f"a {TOKEN}".encode(), f'{{"a":"{TOKEN}"}}'.encode("utf-16"), b"p=%7B%22otp%22%3A1%7D"]
)
async def test_a_body_in_which_something_was_replaced_is_not_put_in_the_place_of_another(
    data: bytes, path: Path
) -> None:
    class Mutates(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
            return AgentResponse.allow(request_body_mutation=BodyMutation(data if event.data == b"one" else b"two"))

    config = AgentConfig("says", Mutates(), body_access="write")
    async with AgentManager([config]) as manager, record(manager, path, bodies=True):
        for name in ("one", "other"):
            await manager.process_request_body(chunk(name, name.encode()))
    again = AgentConfig("says", RecordedAgent(path), body_access="write", circuit_breaker=None)
    async with AgentManager([again]) as manager:
        decision = await manager.process_request_body(chunk("one", b"one"))
        other = await manager.process_request_body(chunk("other", b"other"))
    assert decision.failure is not None
    assert "with a secret replaced in request_body_mutation" in decision.failure.message
    assert other.failure is None


async def test_a_text_in_which_something_was_replaced_is_not_put_in_the_place_of_another(path: Path) -> None:
    detections = {
        "redacted": GuardrailResponse(detected=True, redacted_content=f"a {TOKEN}"),
        "replacement": GuardrailResponse(
            detected=True, detections=(Detection(category="x", description="", replacement=TOKEN),)
        ),
        "description": GuardrailResponse(detected=True, detections=(Detection(category="x", description=TOKEN),)),
    }

    class Finds(Agent):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
            return detections[event.content]

    questions = [
        GuardrailInspectEvent(correlation_id="c", inspection_type="x", content=content) for content in detections
    ]
    async with AgentManager([AgentConfig("says", Finds())]) as manager, record(manager, path, bodies=True):
        for question in questions:
            await manager.call_guardrail_agent("says", question)
    async with manager_of(path) as manager:
        for question in questions[:2]:
            with pytest.raises(GuardrailUnavailableError):
                await manager.call_guardrail_agent("says", question)
        assert (await manager.call_guardrail_agent("says", questions[2])).detected


@pytest.mark.parametrize("recorded", ["the same", "their own"])
@pytest.mark.parametrize("asked", ["the same", "their own"])
async def test_requests_may_have_the_same_correlation_id(recorded: str, asked: str, path: Path) -> None:
    async def use(manager: AgentManager, ids: str) -> list[str | None]:
        found = []
        for number, say in enumerate("abcab"):
            name = "same" if ids == "the same" else f"c-{number}"
            decision = await manager.process_request_headers(head(name, "/", {"x-say": [say]}))
            found.append(None if decision.failure else decision.routing_metadata["said"])
            body = await manager.process_request_body(chunk(name, say.encode()))
            found.append(None if body.failure else getattr(body.decision, "body", ""))
        return found

    async with AgentManager([AgentConfig("says", Says())]) as manager, record(manager, path, bodies=True):
        expected = await use(manager, recorded)
    assert None not in expected
    async with manager_of(path) as manager:
        assert await use(manager, asked) == expected


async def test_failures_come_again_as_they_were(path: Path) -> None:
    class Fails(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            if event.uri == "/hangs":
                await anyio.sleep_forever()
            raise ValueError

    breaker = CircuitBreakerConfig(failure_threshold=2)
    config = AgentConfig("says", Fails(), timeout=0.02, circuit_breaker=breaker)
    async with AgentManager([config]) as manager, record(manager, path):
        expected = [await _failure(manager, number, uri) for number, uri in enumerate(("/hangs", "/", "/"))]
    assert expected == ["timeout", "error", "breaker_open"]
    async with manager_of(path) as manager:
        assert [await _failure(manager, number, uri) for number, uri in enumerate(("/hangs", "/", "/"))] == expected


async def _failure(manager: AgentManager, number: int, uri: str) -> str | None:
    decision = await manager.process_request_headers(head(str(number), uri))
    return None if decision.failure is None else decision.failure.kind.value


async def test_the_oldest_connections_are_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_agent, "MAX_CONNECTIONS", 3)
    await record_heads(path, *"abcde")
    async with manager_of(path) as manager:
        for number, say in enumerate("abcde"):
            await said(manager, number, say)
        transport = manager.__dict__["_registry"].guard("says").config.resolved_transport
    assert list(transport._open) == ["c-2", "c-3", "c-4"]


# Generated


def _hired(seed: int) -> Hired:
    return hire(Choices(bytes((seed * 37 + index * 101) % 251 for index in range(200))), 0, backend="trio")


@pytest.mark.parametrize("seed", range(24))
async def test_whatever_an_agent_answers_and_however_it_is_configured_comes_again(seed: int, path: Path) -> None:
    hired = _hired(seed)
    settings = {
        name: getattr(hired.config, name)
        for name in ("request_body_mode", "response_body_mode", "body_access", "enforce", "failure_mode")
    }
    # No agent that suspends: what it is told to do takes hours of virtual time.
    agent = Scripted(hired.agent.events or frozenset({EventType.REQUEST_HEADERS}), hired.agent._reactions, False)

    def app(transport: Any) -> AgentMiddleware:
        config = AgentConfig("a", transport, circuit_breaker=None, **settings)
        messages = (start(200, (b"content-type", b"text/plain")), body(b"one ", more=True), body(b"two"))
        return AgentMiddleware(App(*messages), agents=[config])

    recorded = app(agent)
    async with record(recorded, path, bodies=True, redact=None):
        expected = await _messages(recorded)
    if "given_up" not in _text(path):
        assert await _messages(app(RecordedAgent(path))) == expected


async def _messages(middleware: AgentMiddleware) -> list[Any]:
    found: list[Any] = []
    for number in range(4):
        client = Client("POST", f"/{number % 2}", body=[b"piece", b" by piece"])
        try:
            await client.call(middleware)
        except Exception as exc:
            found.append(type(exc).__name__)
        found.append(client.messages)
    return found


def _text(path: Path) -> str:
    return path.read_text()


# What can't work


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"headers": "x-say"}, ConfigurationError, "RecordedAgent: headers='x-say', expected a list of header names"),
        ({"headers": [1]}, ConfigurationError, "RecordedAgent: headers=a list, expected a list of header names"),
        ({"headers": 1}, ConfigurationError, "RecordedAgent: headers=1, expected a list of header names"),
        ({"repeat": 1}, ConfigurationError, "RecordedAgent: repeat=1, expected True or False"),
        ({"agent": "waf"}, RecordingError, "no agent has the id 'waf'; there are: a, b"),
        ({}, RecordingError, "expected the id of one of its agents; there are: a, b"),
    ],
)
def test_what_can_not_work_is_refused(options: dict[str, Any], kind: type[Exception], message: str, path: Path) -> None:
    agents = [AgentConfig(name, Says()) for name in "ab"]
    anyio.run(_record_all, AgentMiddleware(answering(), agents=agents), path)
    with pytest.raises(kind, match=message):
        RecordedAgent(path, **options)


async def _record_all(app: AgentMiddleware, path: Path) -> None:
    async with record(app, path):
        await ask(app, "/")


def test_an_agent_that_is_named_is_taken_with_its_events(path: Path) -> None:
    agents = [AgentConfig("a", Says()), AgentConfig("judge", Judge(), request_body_mode=BodyMode.STREAM)]
    anyio.run(_record_all, AgentMiddleware(answering(), agents=agents), path)
    assert RecordedAgent(path, agent="judge").events == Judge().events
    assert RecordedAgent(path, agent="a").events == Says().events


async def test_a_configuration_is_taken_and_means_nothing(path: Path) -> None:
    await record_heads(path, "a")
    config = AgentConfig("says", RecordedAgent(path), config={"any": 1})
    async with AgentManager([config]) as manager:
        assert await said(manager, 0, "a") == "a"


async def test_a_replay_of_a_recording_by_itself_is_the_same(path: Path) -> None:
    app = AgentMiddleware(answering(), agents=[AgentConfig("judge", Judge(), body_access="write")])
    async with record(app, path, bodies=True):
        await ask_all(app, 30)
    report = await replay(path, RecordedAgent(path))
    assert (report.ok, report.failed) == (True, 0)
    assert QUESTION.event_type in RecordedAgent(path).events  # type: ignore[operator]
