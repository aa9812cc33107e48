"""A chat that speaks as OpenAI's does. It knows nothing of agents, nor of guardrails.

The answers come from no model: the same question always gets the same one, in pieces as small as a model's.
"""

import json
import re
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from anyio import sleep
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from .api_key import TAKES_KEY
from .observability import TracedRoute

_ANSWERS = {
    "contact": "You can write to alice.smith@example.com, or come to the shop on weekdays.",
    "card": "The card on file is 4111 1111 1111 1111, and the receipt went to bob@example.org. Anything else?",
    "spring": "In spring we open a second shop, in Lyon. It goes by the name of Nightjar, and sells lamps only.",
}
_OPENINGS = ("Good question.", "Let me see.", "With pleasure.")
_REMARKS = ("Lamps ship within two days.", "Desks take a week.", "Chairs are on sale until Friday.")
_LOOKUP = {"order": 1, "email": "alice.smith@example.com"}

# Cuts words, addresses and numbers in the middle.
_TOKEN = re.compile(r"\s*\S{1,4}")

router = APIRouter(prefix="/v1", route_class=TracedRoute, dependencies=[TAKES_KEY])


class Message(BaseModel):
    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """What is in there to read."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(str(part.get("text", "")) for part in self.content or ())


class ChatRequest(BaseModel):
    messages: list[Message] = Field(min_length=1)
    model: str = "shop-assistant"
    stream: bool = False
    tools: list[dict[str, Any]] = []


class Answer(NamedTuple):
    """A text, or a call of the tool ``lookup_order`` with these arguments."""

    text: str | None = None
    arguments: str | None = None

    @property
    def finish_reason(self) -> str:
        """Why the answer ends."""
        return "stop" if self.arguments is None else "tool_calls"


@router.post("/chat/completions", response_model=None)
async def chat_completions(request: Request, asked: ChatRequest) -> Response:
    answer = _answer(asked.messages, asked.tools)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
    if asked.stream:
        events = _events({**head, "object": "chat.completion.chunk"}, answer, request.app.state.token_delay)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
    choice = {"index": 0, "message": _message(answer), "finish_reason": answer.finish_reason}
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice]})


async def _events(head: Mapping[str, Any], answer: Answer, delay: float) -> AsyncIterator[str]:
    def event(delta: Mapping[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    for delta in _deltas(answer):
        yield event(delta)
        await sleep(delay)
    yield event({}, answer.finish_reason)
    yield "data: [DONE]\n\n"


def _deltas(answer: Answer) -> Iterator[Mapping[str, Any]]:
    yield {"role": "assistant", "content": None if answer.text is None else ""}
    for token in _tokens(answer.text or ""):
        yield {"content": token}
    if answer.arguments is not None:
        yield {"tool_calls": [{"index": 0, **_call("")}]}
        for token in _tokens(answer.arguments):
            yield {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}


def _message(answer: Answer) -> Mapping[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    return message if answer.arguments is None else {**message, "tool_calls": [_call(answer.arguments)]}


def _call(arguments: str) -> Mapping[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "lookup_order", "arguments": arguments}}


def _answer(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Answer:
    last = messages[-1]
    if last.role == "tool":
        return Answer("Your order is on its way.")
    question = last.text.casefold()
    if "order" in question and any(tool.get("function", {}).get("name") == "lookup_order" for tool in tools):
        return Answer(arguments=json.dumps(_LOOKUP))
    for topic, text in _ANSWERS.items():
        if topic in question:
            return Answer(text)
    number = zlib.crc32(question.encode("utf-8", "replace"))
    return Answer(f"{_OPENINGS[number % 3]} {_REMARKS[number // 3 % 3]}")


def _tokens(text: str) -> Iterator[str]:
    """``text`` in pieces of up to four letters."""
    return (match[0] for match in _TOKEN.finditer(text))
