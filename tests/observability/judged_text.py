"""An app whose text is judged, and an agent that does what the text says. For tests of what is told of it."""

import json
from collections.abc import Sequence
from typing import Any, Final

from anyio.lowlevel import checkpoint
from starlette.types import Message, Receive, Scope, Send

from asgi_agents.guardrails import Block, Decision, Flag, Redact, TextGuardrail, Window
from tests.support.asgi import Client

#: Is in every text that is judged. Nothing that is written down may have it in it.
MARKER: Final = "s3cr3t-0f-the-cl1ent"
PATH: Final = "/v1/chat/completions"
_WORDS: Final = ("redact", "block", "flag", "fail", "misplace", "mistake")


class Obedient(TextGuardrail):
    """Does to each ``<word>:<MARKER>`` of a text what the word says."""

    hold = 40

    def __init__(self) -> None:
        self.windows: list[Window] = []

    async def check(self, window: Window) -> Sequence[Decision]:
        return self.decide(window)

    def decide(self, window: Window) -> Sequence[Decision]:
        self.windows.append(window)
        decisions: list[Decision] = []
        for word in _WORDS:
            sought = f"{word}:{MARKER}"
            start = window.text.find(sought, window.fresh)
            while start >= 0:
                decisions.append(self._decide(word, start, start + len(sought), window.text))
                start = window.text.find(sought, start + 1)
        return decisions

    def _decide(self, word: str, start: int, end: int, text: str) -> Decision:
        match word:
            case "redact":
                return Redact(start, end, "[gone]")
            case "block":
                return Block("against the rules")
            case "flag":
                return Flag(start, end, "suspicious")
            case "misplace":
                return Redact(start, len(text) + 1)
            case "mistake":
                return Redact(text, end)  # type: ignore[arg-type]
            case _:
                raise ValueError(text)


class Pausing(Obedient):
    """The same; it takes a turn of the event loop first."""

    async def check(self, window: Window) -> Sequence[Decision]:
        await checkpoint()
        return self.decide(window)


class Chat:
    """An app that answers with a stream of these texts, or with ``raw`` in place of its events."""

    def __init__(self, *texts: str, raw: bytes = b"", between: Any = checkpoint) -> None:
        self._texts = texts
        self._raw = raw
        self._between = between

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for text in self._texts:
            await send(_event({"content": text}))
            await self._between()
        if self._raw:
            await send({"type": "http.response.body", "body": self._raw, "more_body": True})
        await send(_event({}, "stop"))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def _event(delta: dict[str, str], finish_reason: str | None = None) -> Message:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    data = json.dumps({"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}


def asking(text: str = "hello") -> Client:
    """The client of a chat that says ``text``."""
    request = {"model": "m", "stream": True, "messages": [{"role": "user", "content": text}]}
    headers = [(b"content-type", b"application/json"), (b"x-request-id", b"the-id")]
    return Client("POST", PATH, headers=headers, body=json.dumps(request).encode())


def raw_request(body: bytes) -> Client:
    """The client of a chat that sends ``body``."""
    return Client("POST", PATH, headers=[(b"content-type", b"application/json")], body=body)
