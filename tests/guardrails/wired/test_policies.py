"""Policies choose the calls that a guardrail judges, around an app."""

import json
from typing import Any, Final

import pytest

from asgi_agents import Agent, AgentConfig, AgentResponse, Detection, HeaderOp, RequestHeadersEvent, TextSpan
from asgi_agents.guardrails import CallPolicy, Guardrail, headers, models, tools, users
from tests.guardrails.wired.exchanging import CHAT, ENTITY, Detecting, Finder, Guarded, Sending, asking, one

pytestmark = pytest.mark.anyio

_ANSWER: Final = json.dumps({"detail": ENTITY}).encode()
_REQUEST: Final = {
    "model": "gpt-4o",
    "user": "u-17",
    "tools": [{"type": "function", "function": {"name": "send_email"}}],
    "messages": [{"role": "user", "content": ENTITY}],
}


class Plan(Agent):
    """Says which plan a client has, by its key."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        plan = "internal" if event.header("x-key") == "ours" else "free"
        return AgentResponse.allow(request_headers=[HeaderOp.set("x-plan", plan)])


@pytest.mark.parametrize(
    ("policy", "judged"),
    [
        (models("gpt-*"), True),
        (~models("gpt-*"), False),
        (users("u-*") & tools("send_*"), True),
        (users("u-*") & ~tools("send_*"), False),
        (models("o1") | headers("content-type", "application/*"), True),
    ],
)
@pytest.mark.parametrize(("path", "shape"), [(CHAT, "openai"), ("/v1/messages", "anthropic")])
async def test_the_request_and_the_answer_of_a_call_are_judged_or_not(
    path: str, shape: str, policy: CallPolicy, judged: bool
) -> None:
    app = Sending([_ANSWER], "application/json")
    request: dict[str, Any] = dict(_REQUEST)
    if shape == "anthropic":
        request |= {"metadata": {"user_id": request.pop("user")}, "tools": [{"name": "send_email"}], "max_tokens": 9}
    client = await one(app, Finder(), when=policy).call(asking(path, json.dumps(request).encode()))
    assert (ENTITY.encode() not in app.body) == judged
    assert (ENTITY.encode() not in client.body) == judged


@pytest.mark.parametrize(
    ("given", "judged"),
    [
        ([], True),
        ([(b"x-key", b"ours")], False),
        # The client can't say so itself.
        ([(b"x-plan", b"internal")], True),
        ([(b"X-Plan", b"internal"), (b"x-key", b"theirs")], True),
    ],
)
async def test_a_header_that_only_an_agent_sets_chooses_calls(given: list[tuple[bytes, bytes]], judged: bool) -> None:
    guarded = Guarded(
        Sending([_ANSWER], "application/json"),
        [AgentConfig("plan", Plan(), sets={"x-plan"}), AgentConfig("g", Finder())],
        [Guardrail("g", on={"output"}, when=~headers("x-plan", "internal"))],
    )
    client = await guarded.call(asking(CHAT, json.dumps(_REQUEST).encode(), headers=given))
    assert (ENTITY.encode() not in client.body) == judged


async def test_a_request_that_names_no_model_is_judged_where_some_models_are_left_out() -> None:
    for body in (b"{}", b"", b'{"model": 7}', b'{"model": null, "messages": []}'):
        client = await one(Sending([_ANSWER], "application/json"), Finder(), {"output"}, when=~models("*")).call(
            asking(CHAT, body)
        )
        assert ENTITY.encode() not in client.body, body


@pytest.mark.parametrize(
    ("severity", "least", "judged"),
    [("low", "medium", False), ("medium", "medium", True), ("critical", "high", True), ("low", None, True)],
)
async def test_detections_of_less_severity_are_left(severity: Any, least: Any, judged: bool) -> None:
    class Severe(Detecting):
        async def on_guardrail_inspect(self, event: Any) -> Any:
            answer = await super().on_guardrail_inspect(event)
            found = [
                Detection(category="email", description="", severity=severity, span=TextSpan(*span))
                for span in [(each.span.start, each.span.end) for each in answer.detections if each.span is not None]
            ]
            return type(answer)(detected=bool(found), detections=found)

    guarded = Guarded(
        Sending([_ANSWER], "application/json"),
        [AgentConfig("g", Severe())],
        [Guardrail("g", on={"output"}, min_severity=least)],
    )
    client = await guarded.call(asking(CHAT, b"{}"))
    assert (b"[email]" in client.body) == judged
    assert (ENTITY.encode() in client.body) == (not judged)
