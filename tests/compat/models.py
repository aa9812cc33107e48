"""An app that speaks as language models do, and the promises to their clients."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import pytest
from anyio.lowlevel import checkpoint
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Scope

from asgi_agents import BodyMode, ErrorInfo, EventType

from .cases import CASES, EVENT_STREAM, EVENTS, STOPPED, UNAVAILABLE, WHOLE, Act, Case, Seen
from .promises import complaints
from .stage import Handlers, Stage


class ModelPromises:
    """What holds for clients of language models. A subclass has a client and what it raises."""

    error: ClassVar[type[Exception]]
    dialects: ClassVar[tuple[str, ...]]

    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        return make_app(handlers)

    def read(self, url: str, dialect: str, *, stream: bool) -> Iterator[str]:
        """The text that the client gets for a prompt, piece by piece."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def everything_ends(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        yield
        assert stage.handlers.all_ended(), f"{stage.handlers.begun} handlers have begun, {stage.handlers.ended} ended"
        assert not complaints(caplog)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_a_stopped_stream_is_an_error_of_the_clients_own(self, stage: Stage, case: Case) -> None:
        stage.guard(case.agent(EventType.RESPONSE_BODY_CHUNK))
        for dialect in self.dialects:
            assert self.seen(stage.url, dialect, stream=True) == EVENTS[case.act]._replace(status=200)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_a_stopped_answer_is_an_error_of_the_clients_own(self, stage: Stage, case: Case) -> None:
        stage.guard(case.agent(EventType.RESPONSE_BODY_CHUNK))
        for dialect in self.dialects:
            assert self.seen(stage.url, dialect, stream=False) == WHOLE[case.act]._replace(status=200)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_a_stopped_prompt_is_an_error_of_the_clients_own(self, stage: Stage, case: Case) -> None:
        stage.guard(case.agent(EventType.REQUEST_BODY_CHUNK))
        # The prompt has all the words, and the answers have those of the prompt.
        for dialect in self.dialects:
            assert self.seen(stage.url, dialect, stream=True) == WHOLE[case.act]._replace(status=200)

    @pytest.mark.parametrize("act", [Act.BEFORE, Act.MIDWAY, Act.FAIL], ids=str)
    def test_replies_can_have_the_shape_in_which_clients_look_for_messages(self, stage: Stage, act: Act) -> None:
        stage.guard(Case(act, BodyMode.BUFFER, False).agent(EventType.REQUEST_BODY_CHUNK), render_error=model_error)
        for dialect in self.dialects:
            with pytest.raises(self.error, match=str(WHOLE[act].error)):
                list(self.read(stage.url, dialect, stream=True))

    def seen(self, url: str, dialect: str, *, stream: bool) -> Seen:
        """What the client's user sees; the status is not for users."""
        words: list[str] = []
        try:
            for text in self.read(url, dialect, stream=stream):
                words += text.split()
        except self.error as exc:
            # What comes instead of a stream is not always in the text of the error, but in the error.
            told = f"{exc} {getattr(exc, 'body', None)}"
            messages = [message for message in (STOPPED, UNAVAILABLE) if message in told]
            return Seen(200, tuple(words), messages[0] if len(messages) == 1 else f"an error of another kind: {told}")
        return Seen(200, tuple(words))


def model_error(error: ErrorInfo, scope: Scope) -> Response:
    """A denial or failure as clients of language models expect them."""
    return JSONResponse(
        {"type": "error", "error": {"message": error.detail, "type": error.kind, "code": str(error.status)}},
        error.status,
    )


def make_app(handlers: Handlers) -> ASGIApp:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        words = body["messages"][0]["content"].split()
        common = {"id": "c1", "created": 0, "model": "m"}
        if not body.get("stream"):
            message = {"role": "assistant", "content": " ".join(words)}
            choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            return JSONResponse(common | {"object": "chat.completion", "choices": [choice]})

        async def events() -> AsyncIterator[str]:
            for word in words:
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                yield event(common | {"object": "chat.completion.chunk", "choices": [choice]})
            yield "data: [DONE]\n\n"

        return streamed(events())

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        body = await request.json()
        words = body["input"].split()
        whole = response_object(" ".join(words))
        if not body.get("stream"):
            return JSONResponse(whole)

        async def events() -> AsyncIterator[str]:
            begun = whole | {"status": "in_progress", "output": []}
            yield named({"type": "response.created", "sequence_number": 0, "response": begun})
            place = {"item_id": "m1", "output_index": 0, "content_index": 0, "logprobs": []}
            for number, word in enumerate(words, 1):
                delta = {"type": "response.output_text.delta", "sequence_number": number, "delta": word}
                yield named(delta | place)
            ended = whole | {"output": []}
            yield named({"type": "response.completed", "sequence_number": len(words) + 1, "response": ended})

        return streamed(events())

    @app.post("/v1/messages")
    async def messages(request: Request) -> Response:
        body = await request.json()
        words = body["messages"][0]["content"].split()
        whole = {
            "id": "m1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [{"type": "text", "text": " ".join(words)}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 4},
        }
        if not body.get("stream"):
            return JSONResponse(whole)

        async def events() -> AsyncIterator[str]:
            yield named({"type": "message_start", "message": whole | {"content": [], "stop_reason": None}})
            yield named({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
            for word in words:
                delta = {"type": "text_delta", "text": f"{word} "}
                yield named({"type": "content_block_delta", "index": 0, "delta": delta})
            yield named({"type": "content_block_stop", "index": 0})
            stop = {"stop_reason": "end_turn", "stop_sequence": None}
            yield named({"type": "message_delta", "delta": stop, "usage": {"output_tokens": 4}})
            yield named({"type": "message_stop"})

        return streamed(events())

    def streamed(events: AsyncIterator[str]) -> Response:
        async def counted() -> AsyncIterator[str]:
            with handlers.one():
                async for item in events:
                    yield item
                    await checkpoint()

        return StreamingResponse(counted(), media_type=EVENT_STREAM)

    return app


def event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"


def named(document: dict[str, Any]) -> str:
    return f"event: {document['type']}\n{event(document)}"


def response_object(text: str) -> dict[str, Any]:
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "id": "r1",
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "model": "m",
        "output": [{"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": [content]}],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }
