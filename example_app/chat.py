"""A chat whose handler asks an agent about the prompt before it begins to answer.

The answers come from no model: the same prompt always gets the same one, in pieces as small as a model's.
"""

import re
import zlib
from collections.abc import AsyncIterator, Iterator

import anyio
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from asgi_agents.fastapi import Agents

from .api_key import TAKES_KEY
from .observability import TracedRoute

_ANSWERS = {
    "contact": "You can write to alice.smith@example.com, or call her at +1 202 555 0143 on weekdays.",
    "pay": "The card on file is 4111 1111 1111 1111, and the receipt went to bob@example.org. Anything else?",
}
_OPENINGS = ("Good question.", "Let me see.", "With pleasure.")
_REMARKS = ("Lamps ship within two days.", "Desks take a week.", "Chairs are on sale until Friday.")

# Cuts words, addresses and numbers in the middle.
_TOKEN = re.compile(r"\s*\S{1,4}")

router = APIRouter(prefix="/api/chat", route_class=TracedRoute, dependencies=[TAKES_KEY])


class Prompt(BaseModel):
    prompt: str


@router.get("")
async def chat_get(request: Request, prompt: str, agents: Agents) -> StreamingResponse:
    await refuse_personal_data(prompt, agents)
    return _stream(prompt, request.app.state.token_delay)


@router.post("")
async def chat_post(request: Request, body: Prompt, agents: Agents) -> StreamingResponse:
    await refuse_personal_data(body.prompt, agents)
    return _stream(body.prompt, request.app.state.token_delay)


async def refuse_personal_data(prompt: str, agents: Agents) -> None:
    found = await agents.inspect_guardrail("pii", prompt, inspection_type="pii_detection")
    if found.detected:
        kinds = ", ".join(sorted({detection.category for detection in found.detections}))
        raise HTTPException(422, f"Please ask again without personal data. Found: {kinds}")


def _stream(prompt: str, delay: float) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        for token in _tokens(_answer(prompt)):
            yield f"data: {token}\n\n"
            await anyio.sleep(delay)
        yield "event: done\ndata:\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def _answer(prompt: str) -> str:
    """The answer to ``prompt``, in one line."""
    for topic, text in _ANSWERS.items():
        if topic in prompt.casefold():
            return text
    number = zlib.crc32(prompt.encode("utf-8", "replace"))
    return f"{_OPENINGS[number % 3]} {_REMARKS[number // 3 % 3]}"


def _tokens(text: str) -> Iterator[str]:
    """``text`` in pieces of up to four letters."""
    return (match[0] for match in _TOKEN.finditer(text))
