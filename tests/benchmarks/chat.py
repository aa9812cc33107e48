"""A chat that streams its answer, token by token, and what judges it."""

import json
import random
import re
from collections.abc import Sequence
from typing import Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentMiddleware
from asgi_agents.guardrails import Decision, Guardrail, Redact, TextGuardrail, Window

from .driver import http_scope

#: Code points; what the detectors look for is not longer.
HOLD: Final = 64
ADDRESS: Final = "alice.smith@example.com"
CARD_NUMBER: Final = "4111 1111 1111 1111"
REDACTED: Final = "[redacted]"
#: What a stream is stopped at, where anything is.
FORBIDDEN: Final = "FORBIDDEN"

# A counted process takes fifty times as long. No deadline is to pass in it.
_LONG: Final = 300.0
# Code points of a token, on an average.
_TOKEN: Final = 4
# An address or a card number comes once in so many words.
_EVERY: Final = 100

_EMAIL: Final = re.compile(r"[\w.+-]{1,24}@[\w-]{1,20}(?:\.[\w-]{1,10}){1,2}")
_CARD: Final = re.compile(r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)")
#: What is redacted.
ENTITY: Final = re.compile(f"{_EMAIL.pattern}|{_CARD.pattern}")
# What an address or a number may still grow to, at the end of a text.
_TAIL: Final = re.compile(r"(?:[\w.+@-]+|(?:\d[ -]?)+)\Z")

_WORDS: Final = re.findall(
    r"\S+",
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "you were there would her all she their will when who him been has more if no out so what up said about than its "
    "into them can only other new some could time these two may then do first any my now such like our over man even "
    "most made after also did many before must through back years where much your way well down should because each",
)


def _settled(text: str) -> int:
    found = _TAIL.search(text)
    return len(text) if found is None else found.start()


class Unsettled(TextGuardrail):
    """Redacts addresses and card numbers."""

    hold = HOLD

    async def check(self, window: Window) -> Sequence[Decision]:
        return [Redact(m.start(), m.end(), REDACTED) for m in ENTITY.finditer(window.text, window.fresh)]


class Settled(Unsettled):
    """The same, and it says what is settled."""

    def settled(self, text: str) -> int:
        return _settled(text)


class Waiting(Unsettled):
    """The same, and it takes ``seconds`` over each window, in which it waits."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def check(self, window: Window) -> Sequence[Decision]:
        await anyio.sleep(self._seconds)
        return await super().check(window)


class WaitingSettled(Waiting):
    """The same, and it says what is settled."""

    def settled(self, text: str) -> int:
        return _settled(text)


def text(tokens: int) -> str:
    """Enough text for so many tokens. It has addresses and card numbers in it, and is the same each time."""
    rng = random.Random(0)  # noqa: S311 - nothing secret
    words: list[str] = []
    size = 0
    while size < tokens * _TOKEN:
        word = rng.choice(_WORDS)
        if len(words) % _EVERY == _EVERY // 2:
            word = rng.choice((ADDRESS, CARD_NUMBER))
        words.append(word)
        size += len(word) + 1
    return " ".join(words)[: tokens * _TOKEN]


def tokens_of(whole: str) -> list[str]:
    """In parts of four characters, wherever words end."""
    return [whole[at : at + _TOKEN] for at in range(0, len(whole), _TOKEN)]


def chunk(content: str | None, finish: str | None = None) -> bytes:
    """An event as OpenAI's API sends them."""
    delta = {} if content is None else {"content": content}
    value = {
        "id": "chatcmpl-123",
        "object": "chat.completion.chunk",
        "created": 1694268190,
        "model": "gpt-4o-mini",
        "system_fingerprint": "fp_44709d6fcb",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


DONE: Final = b"data: [DONE]\n\n"


def chat_events(tokens: int) -> list[bytes]:
    """A whole stream."""
    # No character of the text is written otherwise in JSON. To encode each event would take longer than to pass it.
    before, _, after = chunk("...").partition(b"...")
    return [*(before + token.encode() + after for token in tokens_of(text(tokens))), chunk(None, "stop"), DONE]


def plain_parts(tokens: int) -> list[bytes]:
    return [token.encode() for token in tokens_of(text(tokens))]


class Streaming:
    """An app that sends the same stream to everybody, each part as a message of its own."""

    def __init__(self, parts: Sequence[bytes], media_type: str = "text/event-stream") -> None:
        head: Message = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", media_type.encode())],
        }
        last: Message = {"type": "http.response.body", "body": b"", "more_body": False}
        self._messages = (
            head,
            *({"type": "http.response.body", "body": part, "more_body": True} for part in parts),
            last,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for message in self._messages:
            await send(message)


_REQUEST: Final = json.dumps({"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "Hi"}]})
CHAT: Final = http_scope(
    "/v1/chat/completions",
    method="POST",
    headers=[(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_REQUEST))],
)
PLAIN: Final = http_scope("/stream", method="POST", headers=[(b"content-length", b"%d" % len(_REQUEST))])
ASKED: Final[Sequence[Message]] = ({"type": "http.request", "body": _REQUEST.encode(), "more_body": False},)


def guarded(app: ASGIApp, *agents: TextGuardrail, timeout: float = _LONG) -> AgentMiddleware:
    """``app`` behind guardrails that judge what it answers."""
    names = [f"guardrail-{number}" for number in range(len(agents))]
    return AgentMiddleware(
        app,
        agents=[AgentConfig(name, agent, timeout=timeout) for name, agent in zip(names, agents, strict=True)],
        guardrails=[Guardrail(name, on={"output"}) for name in names],
    )
