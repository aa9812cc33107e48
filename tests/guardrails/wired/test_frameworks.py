"""Guardrails around apps of Starlette and FastAPI: what these do behind them goes on."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_agents import AgentConfig, AgentMiddleware, protect
from asgi_agents.errors import ResponseAborted
from asgi_agents.guardrails import Guardrail
from asgi_agents.guardrails.slots import KINDS
from tests.guardrails.detectors import CARD, EMAIL, detector
from tests.guardrails.samples import events_of
from tests.guardrails.wired.exchanging import (
    CHAT,
    ENTITY,
    SSE,
    Finder,
    SettlingFinder,
    SlowFinder,
    asking,
    blocking,
)
from tests.guardrails.wired.test_endings import event
from tests.support.asgi import Client

pytestmark = pytest.mark.anyio

_AGENTS: Final = [Finder, SettlingFinder, SlowFinder]
_SPLIT: Final = ("I am alice.smith", "@example.com", ", hello.")


def text_of(body: bytes) -> str:
    return "".join(choice["delta"].get("content", "") for each in events_of(body) for choice in each.get("choices", ()))


def guarding(app: Any, agent: Any, **options: Any) -> Any:
    return AgentMiddleware(app, agents=[AgentConfig("g", agent)], guardrails=[Guardrail("g", on=KINDS)], **options)


class Chatting:
    """An app that streams a chat, and notes what becomes of it."""

    def __init__(self, *texts: str, pause: float = 0.0, error: Exception | None = None) -> None:
        self.texts = texts or _SPLIT
        self.pause = pause
        self.error = error
        self.ran: list[str] = []
        self.closed = 0
        self.body = b""
        self.app = Starlette(routes=[Route(CHAT, self.answer, methods=["POST"])])

    async def events(self) -> AsyncIterator[bytes]:
        try:
            for text in self.texts:
                yield event(text)
                await anyio.sleep(self.pause)
            if self.error is not None:
                raise self.error
            yield b"data: [DONE]\n\n"
        finally:
            self.closed += 1

    async def answer(self, request: Request) -> Response:
        self.body = await request.body()
        task = BackgroundTask(self.run_later, "task")
        return StreamingResponse(self.events(), media_type=SSE, background=task)

    async def run_later(self, name: str) -> None:
        self.ran.append(name)


@pytest.mark.parametrize("agent", _AGENTS)
async def test_background_tasks_run_after_a_streamed_answer(agent: Any) -> None:
    chat = Chatting()
    protect(chat.app, agents=[AgentConfig("g", agent())], guardrails=[Guardrail("g", on=KINDS)])
    client = asking(CHAT, b'{"messages": []}')
    await client.call(chat.app)
    assert text_of(client.body) == "I am [0], hello."
    assert client.complete
    assert chat.ran == ["task"]
    assert chat.closed == 1


@pytest.mark.parametrize("agent", _AGENTS)
async def test_background_tasks_run_after_a_whole_answer_that_is_blocked(agent: Any) -> None:
    ran: list[int] = []

    async def answer(request: Request) -> Response:
        return JSONResponse({"detail": ENTITY}, background=BackgroundTask(ran.append, 1))

    app = Starlette(routes=[Route("/x", answer)])
    protect(app, agents=[AgentConfig("g", agent(blocking(ENTITY)))], guardrails=[Guardrail("g", on=KINDS)])
    client = Client("GET", "/x")
    await client.call(app)
    assert client.status == 400
    assert ran == [1]


@pytest.mark.parametrize("agent", _AGENTS)
async def test_an_exception_in_the_middle_of_a_stream_comes_out(agent: Any) -> None:
    chat = Chatting(error=LookupError("gone wrong"))
    app = guarding(chat.app, agent())
    client = asking(CHAT, b'{"messages": []}')
    with pytest.raises(LookupError, match="gone wrong"):
        await client.call(app)
    assert client.status == 200
    assert not client.complete
    assert b"alice" not in client.body
    assert chat.closed == 1


@pytest.mark.parametrize("agent", _AGENTS)
async def test_an_exception_before_the_answer_is_the_apps_own_500(agent: Any) -> None:
    async def fail(request: Request) -> Response:
        raise LookupError(ENTITY)

    async def refuse(request: Request) -> Response:
        raise HTTPException(403, f"not for {ENTITY}")

    app = Starlette(routes=[Route("/fail", fail), Route("/refuse", refuse)])
    protect(app, agents=[AgentConfig("g", agent())], guardrails=[Guardrail("g", on=KINDS)])
    client = Client("GET", "/fail")
    with pytest.raises(LookupError):
        await client.call(app)
    assert client.status == 500
    assert client.body == b"Internal Server Error"
    client = Client("GET", "/refuse")
    await client.call(app)
    assert (client.status, client.body) == (403, b"not for [0]")


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize("agent", _AGENTS)
async def test_a_streaming_response_ends_when_its_client_leaves(agent: Any, spec_version: str) -> None:
    chat = Chatting(*["word " * 40] * 1000, pause=0.1)
    app = guarding(chat.app, agent())
    client = asking(CHAT, b'{"messages": []}', spec_version=spec_version)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            try:
                await client.call(app)
            except Exception as exc:
                # Starlette's own, from version 2.4 on.
                assert type(exc).__name__ == "ClientDisconnect"  # noqa: PT017

        tasks.start_soon(serve)
        await anyio.sleep(1)
        client.leave()
        began = anyio.current_time()
    assert anyio.current_time() - began < 2
    # With version 2.4 the generator is left to the event loop, as it is without guardrails.
    assert chat.closed <= 1


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize("agent", _AGENTS)
async def test_a_streaming_response_ends_when_it_is_blocked(agent: Any, spec_version: str) -> None:
    chat = Chatting("fine. ", "bad. ", *["word " * 40] * 1000, pause=0.1)
    app = guarding(chat.app, agent(blocking("bad")), stop_grace=3.0)
    client = asking(CHAT, b'{"messages": []}', spec_version=spec_version)
    began = anyio.current_time()
    await client.call(app)
    assert anyio.current_time() - began < 5
    assert client.complete
    assert b'"content_filter"' in client.body
    assert "bad" not in text_of(client.body)


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-passed"] = "1"
        return response


class Reading(BaseHTTPMiddleware):
    """Reads the body itself."""

    async def dispatch(self, request: Request, call_next: Any) -> Any:
        body = await request.body()
        response = await call_next(request)
        response.headers["x-read"] = str(len(body))
        return response


@pytest.mark.parametrize("where", ["around", "inside", "both"])
@pytest.mark.parametrize("agent", _AGENTS)
async def test_base_http_middlewares_stand_around_and_inside(agent: Any, where: str) -> None:
    chat = Chatting()
    app: Any = chat.app
    if where != "around":
        app = Reading(Passing(app))
    app = guarding(app, agent())
    if where != "inside":
        app = Reading(Passing(app))
    body = json.dumps({"messages": [{"role": "user", "content": ENTITY}]}).encode()
    client = asking(CHAT, body)
    await client.call(app)
    assert text_of(client.body) == "I am [0], hello."
    assert client.complete
    assert json.loads(chat.body)["messages"][0]["content"] == "[0]"
    assert chat.ran == ["task"]
    read = [value for name, value in client.headers if name == b"x-read"]
    judged = len(chat.body)
    # The one that is outside has the last word.
    assert read == [b"%d" % (judged if where == "inside" else len(body))]


@pytest.mark.parametrize("where", ["around", "inside"])
@pytest.mark.parametrize("agent", _AGENTS)
async def test_a_block_ends_a_stream_through_base_http_middlewares(agent: Any, where: str) -> None:
    chat = Chatting("fine. ", "bad. ", *["word " * 40] * 100, pause=0.1)
    app: Any = Passing(chat.app) if where == "inside" else chat.app
    app = guarding(app, agent(blocking("bad")))
    if where == "around":
        app = Passing(app)
    client = asking(CHAT, b'{"messages": []}')
    began = anyio.current_time()
    await client.call(app)
    assert anyio.current_time() - began < 5
    assert client.complete
    assert b'"content_filter"' in client.body
    assert "bad" not in text_of(client.body)


async def test_text_that_is_cut_off_never_looks_complete_through_a_base_http_middleware() -> None:
    class Texts:
        def __init__(self) -> None:
            self.left = ["word " * 100, "bad ", "fine " * 100]

        def __aiter__(self) -> "Texts":
            return self

        async def __anext__(self) -> str:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    async def answer(request: Request) -> Response:
        return StreamingResponse(Texts(), media_type="text/plain")

    inner = Starlette(routes=[Route("/x", answer)])
    for agent in (SettlingFinder(blocking("bad")), Finder(blocking("bad")), SlowFinder(blocking("bad"))):
        client = Client("GET", "/x", lenient=True)
        with pytest.raises(Exception):  # noqa: B017, PT011
            await client.call(Passing(guarding(inner, agent)))
        assert not client.complete
        assert b"bad" not in client.body


@pytest.mark.parametrize("inner", _AGENTS)
@pytest.mark.parametrize("outer", _AGENTS)
async def test_one_agent_middleware_in_another(inner: Any, outer: Any) -> None:
    chat = Chatting("I am alice.smith", "@example.com, 4111 1111 ", "1111 1111, hello.")
    app = guarding(guarding(chat.app, inner(detector(EMAIL))), outer(detector(CARD)))
    body = json.dumps({"messages": [{"role": "user", "content": f"{ENTITY}, 4111 1111 1111 1111."}]}).encode()
    client = asking(CHAT, body)
    await client.call(app)
    assert text_of(client.body) == "I am [0], [0], hello."
    assert json.loads(chat.body)["messages"][0]["content"] == "[0], [0]."
    assert client.complete


@pytest.mark.parametrize("agent", _AGENTS)
async def test_a_block_inside_ends_through_an_agent_middleware_around(agent: Any) -> None:
    chat = Chatting("fine. ", "bad. ", *["word " * 40] * 100, pause=0.1)
    app = guarding(guarding(chat.app, agent(blocking("bad"))), SlowFinder(detector(CARD)))
    client = asking(CHAT, b'{"messages": []}')
    await client.call(app)
    assert client.complete
    assert b'"content_filter"' in client.body


async def test_gzip_stands_outside() -> None:
    chat = Chatting()
    protect(
        chat.app,
        agents=[AgentConfig("g", Finder())],
        guardrails=[Guardrail("g", on=KINDS)],
        outside=[Middleware(GZipMiddleware, minimum_size=1)],
    )
    client = asking(CHAT, b'{"messages": []}', headers=[(b"accept-encoding", b"gzip")])
    await client.call(chat.app)
    assert text_of(client.body) == "I am [0], hello."


async def test_gzip_inside_compresses_nothing() -> None:
    inner = Starlette(routes=[Route("/x", lambda request: JSONResponse({"detail": ENTITY * 100}))])
    client = Client("GET", "/x", headers=[(b"accept-encoding", b"gzip")])
    await client.call(guarding(GZipMiddleware(inner, minimum_size=1), Finder()))
    assert json.loads(client.body) == {"detail": detected()}


def detected() -> str:
    from tests.guardrails.detectors import redacted

    return redacted(ENTITY * 100, detector(EMAIL))


# As users call them


class Message(BaseModel):
    content: str


def fastapi_app() -> FastAPI:
    app = FastAPI()

    @app.post("/echo")
    async def echo(message: Message) -> Message:
        return Message(content=f"{message.content} by bob@mail.example.org")

    @app.get("/text", response_class=PlainTextResponse)
    def text() -> str:
        return f"I am {ENTITY}"

    @app.get("/lines")
    def lines() -> StreamingResponse:
        def produce() -> Iterator[str]:
            for part in _SPLIT:
                yield json.dumps({"token": part}) + "\n"

        return StreamingResponse(produce(), media_type="application/x-ndjson")

    @app.get("/file/{name:path}")
    def file(name: str) -> FileResponse:
        return FileResponse(name, media_type="text/plain")

    return app


def protected(*, agent: Any = None) -> TestClient:
    app = fastapi_app()
    protect(app, agents=[AgentConfig("g", agent or Finder())], guardrails=[Guardrail("g", on=KINDS)])
    return TestClient(app)


@pytest.mark.parametrize("agent", _AGENTS)
def test_fastapi_reads_and_answers_redacted_models(agent: Any) -> None:
    client = protected(agent=agent())
    assert client.post("/echo", json={"content": ENTITY}).json() == {"content": "[0] by [0]"}
    assert client.get("/text").text == "I am [0]"
    assert "".join(json.loads(line)["token"] for line in client.get("/lines").text.splitlines()) == "I am [0], hello."


def test_fastapi_answers_422_with_the_input_redacted() -> None:
    answer = protected().post("/echo", json={"contents": ENTITY})
    assert answer.status_code == 422
    assert ENTITY not in answer.text


def test_fastapi_documents_itself_behind_guardrails() -> None:
    client = protected()
    assert client.get("/openapi.json").json()["paths"].keys() == {"/echo", "/text", "/lines", "/file/{name}"}
    assert client.get("/docs").status_code == 200


def test_files_are_judged_and_have_the_right_length(tmp_path: Path) -> None:
    file = tmp_path / "mail.txt"
    file.write_text(f"I am {ENTITY}, " * 5000)
    answer = protected().get(f"/file/{file}", headers={"range": "bytes=0-9"})
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.text == "I am [0], " * 5000


def test_a_cut_off_text_raises_for_the_server() -> None:
    app = FastAPI()

    @app.get("/x")
    def text() -> StreamingResponse:
        return StreamingResponse(iter(["fine " * 100, "bad ", "word"]), media_type="text/plain")

    protect(app, agents=[AgentConfig("g", SettlingFinder(blocking("bad")))], guardrails=[Guardrail("g", on=KINDS)])
    with pytest.raises(ResponseAborted):
        TestClient(app).get("/x")
