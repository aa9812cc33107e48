"""How long text waits for a judge that takes its time. For virtual time: nothing here depends on the machine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents.guardrails import TextGuardrail

from .chat import ASKED, CHAT, DONE, chunk, guarded, text, tokens_of

#: Tokens a second, as a model says them.
RATE: Final = 100.0
TOKENS: Final = 2000


@dataclass
class Passage:
    """When, in seconds, each event came from the app and left for the client. The first is that of the first token."""

    parts: Sequence[str]
    came: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)

    @property
    def total(self) -> float:
        return self.left[-1] - self.came[0]

    @property
    def parts_before_the_first(self) -> int:
        """How many parts the app had sent when the first one left."""
        return sum(came <= self.left[0] for came in self.came[: len(self.parts)])

    @property
    def longest(self) -> float:
        """Seconds for which an event has waited at most."""
        return max(left - came for came, left in zip(self.came, self.left, strict=True))


class _Paced:
    """An app that passes on what a model says. That goes on saying it, whether or not its words can be passed on.

    :param stall: after how many parts the model says nothing, and for how many seconds.
    """

    def __init__(self, passage: Passage, rate: float, stall: tuple[int, float] | None) -> None:
        self._passage = passage
        self._rate = rate
        self._stall = stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        due = anyio.current_time()
        events = [*map(chunk, self._passage.parts), chunk(None, "stop"), DONE]
        for number, event in enumerate(events):
            if number < len(self._passage.parts):
                due += 1 / self._rate
                if self._stall is not None and number == self._stall[0]:
                    due += self._stall[1]
            if due > anyio.current_time():
                await anyio.sleep_until(due)
            self._passage.came.append(anyio.current_time())
            await send({"type": "http.response.body", "body": event, "more_body": event is not DONE})


async def passage(
    agent: TextGuardrail | None,
    *,
    parts: Sequence[str] | None = None,
    rate: float = RATE,
    stall: tuple[int, float] | None = None,
) -> Passage:
    """One stream of :data:`TOKENS` tokens, or of ``parts``, past ``agent``; None: unguarded."""
    passed = Passage(tokens_of(text(TOKENS)) if parts is None else parts)
    app: ASGIApp = _Paced(passed, rate, stall)
    if agent is not None:
        app = guarded(app, agent)
    asked = iter(ASKED)

    async def receive() -> Message:
        for message in asked:
            return message
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        body = message.get("body", b"")
        passed.received.append(body)
        passed.left.extend([anyio.current_time()] * body.count(b"\n\n"))

    await app({**CHAT, "headers": [*CHAT["headers"]], "state": {}}, receive, send)
    return passed
