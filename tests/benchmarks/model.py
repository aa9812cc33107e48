"""What stands in for a model's provider, and a proxy in front of it, bare and guarded: apps for uvicorn.

``MODEL_URL`` in the environment is where the provider is.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Final

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from asgi_agents import AgentConfig, AgentMiddleware
from asgi_agents.guardrails import Block, Decision, Guardrail, Window

from .chat import DONE, FORBIDDEN, Settled, chunk, text, tokens_of

#: Tokens of an answer.
TOKENS: Final = 1000
#: Seconds between two of them, so that each is read for itself.
PACE: Final = 0.004

_EVENTS: Final = [*map(chunk, tokens_of(text(TOKENS)))]
_HALF: Final = len(FORBIDDEN) // 2
#: What must not be said, in one event and cut over two.
_SAID: Final = {"whole": [FORBIDDEN], "cut": [FORBIDDEN[:_HALF], FORBIDDEN[_HALF:]]}


async def _complete(request: Request) -> Response:
    [*_, message] = (await request.json())["messages"]
    events = _EVENTS
    if said := _SAID.get(message["content"]):
        events = [*_EVENTS[:20], *map(chunk, [" ", *said, " "]), *_EVENTS[20:40]]

    async def stream() -> AsyncIterator[bytes]:
        for event in (*events, chunk(None, "stop"), DONE):
            await asyncio.sleep(PACE)
            yield event

    return StreamingResponse(stream(), media_type="text/event-stream")


async def _hello(request: Request) -> Response:
    return JSONResponse({})


class _Relay:
    """Passes on what the provider sends."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(base_url=os.environ.get("MODEL_URL", ""), timeout=60)

    async def __call__(self, request: Request) -> Response:
        asked = self._client.build_request(
            "POST", request.url.path, content=await request.body(), headers={"content-type": "application/json"}
        )
        answer = await self._client.send(asked, stream=True)

        async def stream() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            finally:
                await answer.aclose()

        return StreamingResponse(stream(), answer.status_code, media_type=answer.headers["content-type"])


class _Policy(Settled):
    """Redacts, and stops at what must not be said."""

    async def check(self, window: Window) -> Sequence[Decision]:
        if FORBIDDEN in window.text:
            return [Block("content policy")]
        return await super().check(window)

    def settled(self, text: str) -> int:
        for size in range(len(FORBIDDEN) - 1, 0, -1):
            if text.endswith(FORBIDDEN[:size]):
                return min(super().settled(text), len(text) - size)
        return super().settled(text)


_PATH: Final = "/v1/chat/completions"
provider: Final = Starlette(routes=[Route("/", _hello), Route(_PATH, _complete, methods=["POST"])])
relay: Final = Starlette(routes=[Route("/", _hello), Route(_PATH, _Relay().__call__, methods=["POST"])])
guarded_relay: Final = AgentMiddleware(
    relay, agents=[AgentConfig("policy", _Policy())], guardrails=[Guardrail("policy", on={"output"})]
)
