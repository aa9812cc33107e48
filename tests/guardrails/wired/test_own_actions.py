"""What a detection says is to be done with it, against the action of its guardrail, wherever the text is."""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    Detection,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    HttpTransport,
    ResponseAborted,
    TextSpan,
)
from asgi_agents.guardrails import Decision, Guardrail, Kind, Redact, TextGuardrail, Window
from asgi_agents.guardrails.verdicts import Action
from asgi_agents.serve import agent_app
from tests.exchange.test_websocket import App, Server, run
from tests.guardrails.wired.exchanging import CHAT, SSE, Finder, Guarded, Sending, asking
from tests.guardrails.wired.test_endings import event

pytestmark = pytest.mark.anyio

_SECRET: Final = "hunter2"
_TEXT: Final = f"the word is {_SECRET}, keep it"
_ON: Final[set[Kind]] = {"input", "output", "tool_call"}
#: Of another guardrail, which redacts.
_OTHER: Final = "alice@example.com"


class Saying(Agent):
    """Finds the secret wherever it is, and says of it what it is given."""

    def __init__(self, **said: Any) -> None:
        self.said = said

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        places = [match.span() for match in re.finditer(_SECRET, event.content)]
        detections = [
            Detection(category="word", description="", span=TextSpan(*place), **self.said) for place in places
        ]
        return GuardrailResponse(detected=bool(places), confidence=1.0, detections=detections)


async def of_request(guarded: Callable[[Any], Guarded], text: str) -> str | None:
    app = Sending([b"{}"], "application/json")
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    client = await guarded(app).call(asking(CHAT, body))
    if client.status != 200:
        return None
    said: str = json.loads(app.body)["messages"][0]["content"]
    return said


async def of_answer(guarded: Callable[[Any], Guarded], text: str) -> str | None:
    app = Sending([json.dumps({"a": text}).encode()], "application/json", length=True)
    client = await guarded(app).call(asking("/x", b""))
    if client.status != 200:
        return None
    said: str = json.loads(client.body)["a"]
    return said


async def of_events(guarded: Callable[[Any], Guarded], text: str) -> str | None:
    app = Sending([*(event(text[at : at + 3]) for at in range(0, len(text), 3)), b"data: [DONE]\n\n"], SSE)
    client = await guarded(app).call(asking(CHAT, b"{}"))
    lines = [line[6:] for line in client.body.decode().split("\n") if line.startswith("data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines]
    if any(choice.get("finish_reason") == "content_filter" for choice in choices):
        return None
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def of_plain_text(guarded: Callable[[Any], Guarded], text: str) -> str | None:
    app = Sending([text[at : at + 3].encode() for at in range(0, len(text), 3)], "text/plain; charset=utf-8")
    client = asking("/x", b"")
    try:
        await guarded(app).call(client)
    except ResponseAborted:
        return None
    return client.body.decode() if client.status == 200 else None


async def of_arguments(guarded: Callable[[Any], Guarded], text: str) -> str | None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": text})}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    app = Sending([json.dumps({"choices": [{"index": 0, "message": message}]}).encode()], "application/json")
    client = await guarded(app).call(asking(CHAT, b"{}"))
    if client.status != 200:
        return None
    arguments = json.loads(client.body)["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    said: str = json.loads(arguments)["a"]
    return said


async def of_handler(guarded: Callable[[Any], Guarded], text: str) -> str | None:
    said: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        agents: AgentContext = scope["state"]["asgi_agents"]
        result = await agents.inspect(text, guardrail="g")
        said.append(None if result.blocked else result.text)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    await guarded(app).call(asking("/x", b""))
    return said[0]


async def of_frames(guarded: Callable[[Any], Guarded], text: str) -> str | None:
    app, server = App(), Server(*(text[at : at + 3] for at in range(0, len(text), 3)), then_leaves=True)
    await run(guarded(app).middleware, server)
    # A client that has left is not told why.
    return "".join(map(str, app.got)) or None


Place = Callable[[Callable[[Any], Guarded], str], Awaitable[str | None]]
_PLACES: Final[Sequence[Place]] = (
    of_request,
    of_answer,
    of_events,
    of_plain_text,
    of_arguments,
    of_handler,
    of_frames,
)
places = pytest.mark.parametrize("place", _PLACES, ids=lambda place: place.__name__)


def guarding(agent: AgentConfig, action: Action) -> Callable[[Any], Guarded]:
    return lambda app: Guarded(app, [agent], [Guardrail("g", on=_ON, action=action)])


@places
@pytest.mark.parametrize("action", ["redact", "block", "flag"])
@pytest.mark.parametrize("own", [None, "redact", "block", "flag"])
@pytest.mark.parametrize("replacement", [None, "***", ""])
async def test_what_a_detection_says_itself_is_done(
    place: Place, action: Action, own: Action | None, replacement: str | None
) -> None:
    agent = AgentConfig("g", Saying(action=own, replacement=replacement))
    instead = "[word]" if replacement is None else replacement
    expected = {"redact": _TEXT.replace(_SECRET, instead), "block": None, "flag": _TEXT}[own or action]
    assert await place(guarding(agent, action), _TEXT) == expected


@places
@pytest.mark.parametrize("action", ["redact", "block", "flag"])
@pytest.mark.parametrize("first", [True, False])
async def test_it_is_done_beside_guardrails_that_redact(place: Place, action: Action, first: bool) -> None:
    """The text that it has found something in is not the text as they leave it: nothing of either is lost."""
    if place is of_handler:
        pytest.skip("one guardrail judges what a handler asks about")
    text = f"{_OTHER}: {_TEXT}, {_OTHER}, {_SECRET}"
    guardrails = [Guardrail("g", on=_ON, action=action), Guardrail("emails", on=_ON)][:: 1 if first else -1]
    agents = [AgentConfig("g", Saying(action="redact")), AgentConfig("emails", Finder())]

    def guarded(app: Any) -> Guarded:
        return Guarded(app, agents, guardrails)

    assert await place(guarded, text) == text.replace(_SECRET, "[word]").replace(_OTHER, "[0]")


class Words(TextGuardrail):
    hold = 20

    async def check(self, window: Window) -> Sequence[Decision]:
        at = window.text.find(_SECRET, window.fresh)
        return [] if at < 0 else [Redact(at, at + len(_SECRET), "***")]


@places
@pytest.mark.parametrize("action", ["redact", "block", "flag"])
async def test_what_a_served_text_guardrail_decides_is_done_whatever_the_action(place: Place, action: Action) -> None:
    transport = HttpTransport("http://agent/", transport=httpx.ASGITransport(agent_app(Words())))
    agent = AgentConfig("g", transport, events={EventType.GUARDRAIL_INSPECT})
    assert await place(guarding(agent, action), _TEXT) == _TEXT.replace(_SECRET, "***")


@pytest.mark.parametrize("action", ["block", "flag"])
async def test_what_is_redacted_beside_the_others_is_recorded_once(action: Action) -> None:
    for place in (of_request, of_answer, of_events, of_plain_text):
        made: list[Guarded] = []

        def guarded(app: Any, made: list[Guarded] = made) -> Guarded:
            made.append(guarding(AgentConfig("g", Saying(action="redact")), action)(app))
            return made[-1]

        await place(guarded, _TEXT)
        at = _TEXT.index(_SECRET)
        [report] = made[0].record.guardrails
        assert report.counts == {"redact": 1}
        assert [span[1:3] for span in report.spans] == [(at, at + len(_SECRET))]


@pytest.mark.parametrize("own", [None, "redact", "block", "flag"])
@pytest.mark.parametrize("action", ["block", "flag"])
async def test_what_judges_beside_the_app_can_not_redact_and_fails(own: Action | None, action: Action) -> None:
    app = Sending([b"{}"], "application/json")
    guardrail = Guardrail("g", on={"input"}, action=action, overlap=True)
    guarded = Guarded(app, [AgentConfig("g", Saying(action=own))], [guardrail])
    client = await guarded.call(asking(CHAT, json.dumps({"messages": [{"role": "user", "content": _TEXT}]}).encode()))
    assert client.status == {"redact": 503, "block": 400, "flag": 200}[own or action]
