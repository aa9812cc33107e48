"""Agents that the tests of Ray Serve deploy."""

import os
import time
from collections.abc import Sequence

import anyio

from asgi_agents import (
    Agent,
    AgentResponse,
    ConfigureEvent,
    GuardrailInspectEvent,
    GuardrailResponse,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
)
from asgi_agents.guardrails import Decision, Redact, TextGuardrail, Window


class Paths(Agent):
    """Refuses paths that it is configured with."""

    def __init__(self) -> None:
        self.refused = ["/refused"]

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        if event.config is not None:
            if event.config["paths"] == ["no path"]:
                return AgentResponse.block(500, "these are no paths")
            self.refused = event.config["paths"]
        return None

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        if event.uri == "/fails":
            raise ValueError("what the agent knows")
        return AgentResponse.block(403, "refused") if event.uri in self.refused else None


class Later(Paths):
    """The same, in a later version that hears bodies too."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(403, "no bodies")


class Remembers(Agent):
    """Keeps what it has seen of a request, and refuses a body whose head it has not seen."""

    def __init__(self) -> None:
        self._heads: set[str] = set()

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self._heads.add(event.correlation_id)
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return None if event.correlation_id in self._heads else AgentResponse.block(403, "it came to another replica")

    async def on_request_complete(self, event: RequestCompleteEvent) -> AgentResponse | None:
        self._heads.discard(event.correlation_id)
        return None


class Dies(Agent):
    """Takes its process with it."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        if event.uri == "/dies":
            os._exit(1)


class Slow(Agent):
    """Tells when a hook was cancelled, in a file."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        try:
            await anyio.sleep(float(event.header("x-seconds") or 0))
        except anyio.get_cancelled_exc_class():
            with open(os.environ["TOLD"], "a") as file:  # noqa: ASYNC230
                file.write("x")
            raise
        return None


class Fixed(Agent):
    """A batch takes 20 ms in which the replica does nothing else, however many texts it has; a file tells of each."""

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse | None:
        return (await self.inspect_batch([event]))[0]

    async def inspect_batch(self, events: Sequence[GuardrailInspectEvent]) -> Sequence[GuardrailResponse | None]:
        time.sleep(0.02)  # noqa: ASYNC251 - a model does not give the event loop back
        with open(os.environ["TOLD"], "a") as file:  # noqa: ASYNC230
            file.write("b")
        return [
            GuardrailResponse(detected=True, confidence=1.0) if "attack" in event.content else None for event in events
        ]


class Digits(TextGuardrail):
    """Redacts digits, several windows at once."""

    hold = 8

    async def check(self, window: Window) -> Sequence[Decision]:
        return (await self.check_batch([window]))[0]

    async def check_batch(self, windows: Sequence[Window]) -> Sequence[Sequence[Decision]]:
        return [
            [Redact(at, at + 1, "#") for at in range(window.fresh, len(window.text)) if window.text[at].isdigit()]
            for window in windows
        ]
