"""What clients, models and tools can do with the text that guardrails judge."""

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as AppRoute
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_agents import AgentConfig, AgentMiddleware, FailureMode
from asgi_agents.exchange import text_answer, text_request
from asgi_agents.guardrails import Block, Decision, Guardrail, Redact, TextGuardrail, Window
from asgi_agents.guardrails.slots import KINDS

SECRET = re.compile("hunter2|@secret")
CHAT = "/v1/chat/completions"
MESSAGE = {"messages": [{"role": "user", "content": "hello"}]}
EVENTS = {"content-type": "text/event-stream"}


class Secrets(TextGuardrail):
    hold = 10

    def __init__(self, *, block: bool = False) -> None:
        self.shown = ""
        self._block = block

    async def check(self, window: Window) -> Sequence[Decision]:
        self.shown += window.text[window.fresh :]
        found = list(SECRET.finditer(window.text, window.fresh))
        if found and self._block:
            return [Block("no secrets")]
        return [Redact(match.start(), match.end(), "[secret]") for match in found]


class Answering:
    """An app that remembers its requests, and answers with the pieces that it is given."""

    def __init__(self, pieces: Sequence[bytes] = (b"{}",), headers: Mapping[str, str] | None = None) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self._pieces = pieces
        self._given = {"content-type": "application/json"} if headers is None else headers
        self.app = Starlette(
            routes=[
                AppRoute("/{rest:path}", self.answer, methods=["GET", "POST"]),
                WebSocketRoute("/{rest:path}", self.echo),
            ]
        )

    async def answer(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        self.headers.append(dict(request.headers))

        async def stream() -> Any:
            for piece in self._pieces:
                yield piece

        return StreamingResponse(stream(), headers=self._given)

    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()


def behind(answering: Answering, agent: TextGuardrail, **options: Any) -> TestClient:
    config = AgentConfig("secrets", agent, **options)
    return TestClient(
        AgentMiddleware(answering.app, agents=[config], guardrails=[Guardrail("secrets", on=KINDS)]),
        raise_server_exceptions=False,
    )


def chat(delta: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()


STOP = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def content_of(stream: str) -> str:
    lines = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.parametrize("at", range(len("so hunter2 it is") + 1))
def test_a_value_that_is_split_over_events_is_redacted(at: int) -> None:
    said = "so hunter2 it is"
    stream = chat({"content": said[:at]}) + chat({"content": said[at:]}) + STOP
    # Every event is split over messages too.
    app = Answering([stream[place : place + 7] for place in range(0, len(stream), 7)], EVENTS)

    assert content_of(behind(app, Secrets()).post(CHAT, json=MESSAGE).text) == "so [secret] it is"


@pytest.mark.parametrize("at", range(len("so hunter2 it is") + 1))
def test_a_value_that_is_split_over_messages_of_a_websocket_is_redacted(at: int) -> None:
    said = "so hunter2 it is"

    async def say(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(said[:at])
        await websocket.send_text(said[at:])
        await websocket.close()

    app = AgentMiddleware(
        Starlette(routes=[WebSocketRoute("/say", say)]),
        agents=[AgentConfig("secrets", Secrets())],
        # No machine is slower.
        guardrails=[Guardrail("secrets", on=KINDS, max_hold=60)],
    )
    with TestClient(app).websocket_connect("/say") as session:
        assert session.receive_text() + session.receive_text() == "so [secret] it is"


@pytest.mark.parametrize(
    "message", [b"\xff hunter2", "hunter2".encode("utf-16"), b'\xef\xbb\xbf{"a": "hunter\\u0032"}']
)
def test_a_message_that_can_not_be_read_reaches_no_app(message: bytes) -> None:
    agent = Secrets()
    with behind(Answering(), agent).websocket_connect("/ws") as session:
        session.send_bytes(message)
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_text()
    assert (closed.value.code, agent.shown) == (1011, "")


@pytest.mark.parametrize("cut", range(1, 30))
def test_arguments_of_a_tool_are_judged_whole_and_decoded(cut: int) -> None:
    arguments = '{"to": "a\\u0040secret", "n": 1}'
    opening = {"index": 0, "id": "call_1", "function": {"name": "mail", "arguments": arguments[:cut]}}
    rest = {"index": 0, "function": {"arguments": arguments[cut:]}}
    pieces = [chat({"tool_calls": [opening]}), chat({"tool_calls": [rest]}), STOP]

    redacted = behind(Answering(pieces, EVENTS), Secrets()).post(CHAT, json=MESSAGE).text
    blocked = behind(Answering(pieces, EVENTS), Secrets(block=True)).post(CHAT, json=MESSAGE).text

    lines = [json.loads(line.removeprefix("data: ")) for line in redacted.splitlines() if line.startswith("data: {")]
    calls = [call for line in lines for call in line["choices"][0]["delta"].get("tool_calls", [])]
    assert json.loads("".join(call["function"].get("arguments", "") for call in calls)) == {"to": "a[secret]", "n": 1}
    assert "call_1" not in blocked
    assert "mail" not in blocked


def test_text_that_a_stream_repeats_is_redacted_everywhere() -> None:
    place = {"item_id": "i", "output_index": 0, "content_index": 0}
    events = [
        {"type": "response.output_text.delta", **place, "delta": "so hun", "logprobs": [{"token": "so hun"}]},
        {"type": "response.output_text.delta", **place, "delta": "ter2", "logprobs": [{"token": "ter2"}]},
        {"type": "response.output_text.done", **place, "text": "so hunter2", "logprobs": [{"token": "hunter2"}]},
    ]
    pieces = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]

    received = behind(Answering(pieces, EVENTS), Secrets()).post("/v1/responses", json={"input": "hello"}).text

    assert '"text": "so [secret]"' in received
    assert "hunter2" not in received
    assert "ter2" not in received


@pytest.mark.parametrize(
    ("content_type", "body", "arrives"),
    [
        ("application/json", b'{"a": "hunter2", "a": "b"}', b'{"a": "[secret]", "a": "b"}'),
        ("application/json", b'{"a": "\\u0068unter2", "n": 1.0}', b'{"a": "[secret]", "n": 1.0}'),
        ("application/x-www-form-urlencoded", b"a=%68unter2&b=1", b"a=%5Bsecret%5D&b=1"),
        ("text/plain", b"it is hunter2", b"it is [secret]"),
        (None, b"it is hunter2", b"it is [secret]"),
    ],
)
def test_a_request_is_judged_however_its_text_is_written(content_type: str | None, body: bytes, arrives: bytes) -> None:
    app = Answering()
    headers = {} if content_type is None else {"content-type": content_type}

    assert behind(app, Secrets()).post("/ask", content=body, headers=headers).status_code == 200
    assert app.bodies == [arrives]


UNREADABLE = [
    ("application/json", b'{"a": "hunter2', {}),
    ("application/json", b"[" * 300, {}),
    ("application/json", '{"a": "hunter2"}'.encode("utf-16"), {}),
    ("application/json", gzip.compress(b'{"a": "hunter2"}', mtime=0), {"content-encoding": "br"}),
    ("application/json", gzip.compress(b'{"a": "hunter2"}', mtime=0)[:-1], {"content-encoding": "gzip"}),
    ("application/json", gzip.compress(b'{"a": "hunter2"}', mtime=0) + b"x", {"content-encoding": "gzip"}),
    ("application/json", gzip.compress(b" " * 1_000_000 + b'{"a": "hunter2"}'), {"content-encoding": "gzip"}),
    ("multipart/form-data; boundary=x", b"--x\r\n\r\nhunter2\r\n--x--", {}),
    ("application/octet-stream", b"hunter2", {}),
]


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize(("content_type", "body", "headers"), UNREADABLE)
def test_a_request_that_can_not_be_read_is_refused_and_fails_no_agent(
    content_type: str, body: bytes, headers: Mapping[str, str], mode: FailureMode
) -> None:
    app, agent = Answering(), Secrets()
    client = behind(app, agent, failure_mode=mode)

    answers = [client.post("/ask", content=body, headers={"content-type": content_type, **headers}) for _ in range(6)]

    assert {answer.status_code for answer in answers} == {400}
    assert (app.bodies, agent.shown) == ([], "")
    # The breaker is closed.
    assert client.post("/ask", json={}).status_code == 200


def test_an_app_is_given_the_content_that_was_judged_and_no_encoded_body() -> None:
    app = Answering()
    # Some readers take the first member for all of it.
    packed = gzip.compress(b'{"a": "fine", ', mtime=0) + gzip.compress(b'"b": "hunter2"}', mtime=0)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}

    assert behind(app, Secrets()).post("/ask", content=packed, headers=headers).status_code == 200
    assert app.bodies == [b'{"a": "fine", "b": "[secret]"}']
    assert "content-encoding" not in app.headers[0]


ANSWERS = [
    ({"content-type": "text/event-stream"}, b'data: {"type": "odd", "words": ["hunter2"]}\n\n'),
    ({"content-type": "text/event-stream"}, b"data: it is hunter2\n\n"),
    ({"content-type": "application/x-ndjson"}, b'{"type": "odd", "words": ["hunter2"]}\n'),
    ({"content-type": "application/json"}, b'{"type": "odd", "words": ["hunter2"]}'),
    ({"content-type": "application/json"}, b'{"a": "hunter2", "a": "b"}'),
    ({"content-type": "application/json"}, b'{"a": "hunter2'),
    ({"content-type": "application/octet-stream"}, b"it is hunter2"),
    ({"content-type": "application/json", "content-encoding": "gzip"}, gzip.compress(b'{"a": "hunter2"}', mtime=0)),
    ({}, b"it is hunter2"),
]


@pytest.mark.parametrize(("headers", "body"), ANSWERS)
def test_an_answer_that_nobody_knows_is_judged_or_stopped(headers: Mapping[str, str], body: bytes) -> None:
    answer = behind(Answering([body], headers), Secrets()).post(CHAT, json=MESSAGE)

    assert "hunter2" not in answer.text
    assert "[secret]" in answer.text or (answer.status_code == 500 and "unreadable" in answer.text)


def test_an_app_whose_answers_are_judged_is_asked_for_no_part_and_no_compression() -> None:
    app = Answering()
    behind(app, Secrets()).get("/file", headers={"range": "bytes=0-3", "accept-encoding": "gzip"})

    assert app.headers[0].keys().isdisjoint({"range", "if-range", "accept-encoding"})


def test_what_is_too_long_to_be_held_passes_no_fail_closed_guardrail() -> None:
    long = b'"%b"' % bytes(b"x" * max(text_request.MAX_REQUEST_BYTES, text_answer.MAX_ANSWER_BYTES))
    app = Answering()
    asked = behind(app, Secrets()).post("/ask", content=long, headers={"content-type": "application/json"})
    answered = behind(Answering([long]), Secrets()).get("/")

    assert (asked.status_code, app.bodies) == (413, [])
    assert (answered.status_code, answered.text) == (500, "Response too large for security inspection")


def test_a_find_that_is_longer_than_hold_may_leave_in_part() -> None:
    class Words(TextGuardrail):
        hold = 4

        async def check(self, window: Window) -> Sequence[Decision]:
            return [Redact(m.start(), m.end()) for m in re.compile("<[a-z]+>").finditer(window.text, window.fresh)]

    pieces = [chat({"content": said}) for said in ("<abcdefgh", "ijklmnop", "> end")]
    received = content_of(behind(Answering([*pieces, STOP], EVENTS), Words()).post(CHAT, json=MESSAGE).text)

    assert received.startswith("<abcd")


def test_keys_of_json_are_not_judged() -> None:
    app = Answering([b'{"hunter2": "a"}'])

    assert behind(app, Secrets()).post("/ask", json={"hunter2": "b"}).json() == {"hunter2": "a"}
    assert app.bodies == [b'{"hunter2":"b"}']


@pytest.mark.parametrize("media_type", ["image/png", "audio/mpeg", "application/pdf", "application/zip"])
def test_answers_without_text_pass(media_type: str) -> None:
    answer = behind(Answering([b"hunter2"], {"content-type": media_type}), Secrets()).get("/file")

    assert answer.content == b"hunter2"


def test_a_fail_open_guardrail_is_passed_by_what_is_too_long() -> None:
    long = b'"hunter2%b"' % bytes(b"x" * text_request.MAX_REQUEST_BYTES)
    app = Answering()
    client = behind(app, Secrets(), failure_mode=FailureMode.OPEN)

    assert client.post("/ask", content=long, headers={"content-type": "application/json"}).status_code == 200
    assert app.bodies == [long]
