"""Guardrail services behind real sockets, and one of ours among them."""

import json
from collections.abc import Iterator
from typing import Any, Final

import anyio
import pytest

from asgi_agents import Agent, AgentConfig
from asgi_agents.guardrail_services import AgentgatewayWebhook, GuardrailService, LiteLLMGuardrail
from asgi_agents.guardrails import Guardrail
from asgi_agents.serve import agent_app
from tests.guardrails.detectors import redacted
from tests.guardrails.driving import EVERYTHING
from tests.guardrails.samples import Cut
from tests.guardrails.served_agents import BLOCKED, REASON, Everything
from tests.guardrails.wired.exchanging import CHAT, Guarded, Sending, asking, seeded
from tests.guardrails.wired.test_endings import event
from tests.support.servers import serve

from .speaking import CASES, Case, LiteLLMSpeaking
from .test_services import question
from .test_wired import DONE, STREAM, content_of, finishes_of, prompt, some_text

pytestmark = pytest.mark.anyio

# Seconds. A busy machine makes no failures.
_PATIENCE: Final = 60.0


@pytest.fixture(scope="module")
def ours() -> Iterator[str]:
    """A text guardrail, served as LiteLLM and agentgateway would call it."""
    with serve(agent_app(Everything(), api="litellm")) as url:
        yield url


def guarded_by(app: Any, transport: Agent | GuardrailService, on: set[Any]) -> Guarded:
    guardrail: Any = Guardrail("judge", on=on, hold=90)
    return Guarded(app, [AgentConfig("judge", transport, timeout=_PATIENCE)], [guardrail])


@pytest.mark.parametrize("speak", [LiteLLMGuardrail, AgentgatewayWebhook])
async def test_an_agent_behind_a_gateways_format_does_what_it_does_in_the_process(
    speak: type[LiteLLMGuardrail | AgentgatewayWebhook], ours: str, http_client: str
) -> None:
    text = some_text(f"{speak.__name__} {http_client}")
    app = Sending([event(part) for part in Cut(seeded(speak), longest=30)(text)] + [DONE])
    transport = speak(ours)
    try:
        with anyio.fail_after(_PATIENCE):
            client = await guarded_by(app, transport, {"output"}).call(asking(CHAT, STREAM))
        assert content_of(client.body) == redacted(text, EVERYTHING)
        blocked = await guarded_by(Sending([b"{}"]), transport, {"input"}).call(
            asking(CHAT, prompt(f"so {BLOCKED} it"))
        )
        assert (blocked.status, json.loads(blocked.body)["error"]["message"]) == (400, REASON)
        app = Sending([event("fine words, " * 50), event(BLOCKED), DONE])
        stopped = await guarded_by(app, transport, {"output"}).call(asking(CHAT, STREAM))
        assert finishes_of(stopped.body) == ["content_filter"]
        assert BLOCKED not in content_of(stopped.body)
    finally:
        await transport.retire()


@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_connections_are_used_again(case: Case, http_client: str) -> None:
    service = case.speaking()
    with serve(service) as url:
        transport = case.make(url)
        await transport.connect()
        for _ in range(5):
            await transport.call(question("hello"))
        await transport.aclose()
        # agentgateway's other path has connections of its own.
        assert len(service.peers) == 1
        await transport.call(question("hello"))
        assert len(service.peers) == 2
        await transport.retire()


@pytest.mark.slow
async def test_a_service_that_is_late_is_left(http_client: str) -> None:
    service = LiteLLMSpeaking()
    arrived = 0

    async def wait() -> None:
        nonlocal arrived
        arrived += 1
        await anyio.sleep(_PATIENCE)

    service.before = wait
    with serve(service) as url:
        transport = LiteLLMGuardrail(url)
        with pytest.raises(TimeoutError):
            with anyio.fail_after(1):
                await transport.call(question("hello"))
        await transport.retire()
    assert arrived == 1
