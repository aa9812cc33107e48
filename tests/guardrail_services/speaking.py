"""Services that speak the published formats, and say of a text what the tests want."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from asgi_agents.guardrail_services import (
    AgentgatewayWebhook,
    GuardrailService,
    LiteLLMGuardrail,
    NeMoGuardrails,
    OpenAIModeration,
)
from tests.guardrails.detectors import EMAIL

#: A text with this in it is blocked; one with addresses is masked.
FORBIDDEN: Final = "forbidden"
REASON: Final = "the policy says no"
MASK: Final = "[0]"
SECRET: Final = "sk-very-secret-0123456789"

#: OpenAI's, of its latest model.
CATEGORIES: Final = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def masked(text: str) -> str:
    return EMAIL.sub(MASK, text)


class Speaking:
    """A service: what it was asked, and where, is in ``asked``.

    :ivar instead: called with the question, what it answers in place of its own answer; None: its own.
    :ivar before: awaited before each answer.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.peers: set[tuple[str, int]] = set()
        self.instead: Callable[[Any], Response] | None = None
        self.before: Callable[[], Any] | None = None

    def answer(self, path: str, question: Any) -> Any:
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        request = Request(scope, receive)
        question = json.loads(await request.body())
        assert request.method == "POST"
        assert request.headers["content-type"] == "application/json"
        if request.client is not None:
            self.peers.add((request.client.host, request.client.port))
        self.asked.append((request.url.path, question))
        self.headers.append(request.headers)
        if self.before is not None:
            await self.before()
        if self.instead is not None:
            response = self.instead(question)
        else:
            response = JSONResponse(self.answer(request.url.path, question))
        await response(scope, receive, send)


class LiteLLMSpeaking(Speaking):
    """https://docs.litellm.ai/docs/adding_provider/generic_guardrail_api"""

    def answer(self, path: str, question: Any) -> Any:
        assert path.endswith("/beta/litellm_basic_guardrail_api")
        assert question["input_type"] in ("request", "response")
        assert isinstance(question["request_data"], dict)
        texts = question["texts"]
        if any(FORBIDDEN in text for text in texts):
            return {"action": "BLOCKED", "blocked_reason": REASON}
        after = [masked(text) for text in texts]
        if after == texts:
            return {"action": "NONE"}
        return {"action": "GUARDRAIL_INTERVENED", "texts": after}


class AgentgatewaySpeaking(Speaking):
    """agentgateway's webhooks."""

    def answer(self, path: str, question: Any) -> Any:
        [field] = question["body"]
        assert field == ("messages" if path.endswith("/request") else "choices")
        items = question["body"][field]
        messages = items if field == "messages" else [item["message"] for item in items]
        texts = [message["content"] for message in messages]
        if any(FORBIDDEN in text for text in texts):
            return {"action": {"body": REASON, "status_code": 403, "reason": "forbidden word"}}
        if all(masked(text) == text for text in texts):
            return {"action": {"reason": "nothing there"}}
        after = [{"role": message["role"], "content": masked(message["content"])} for message in messages]
        body = {field: after if field == "messages" else [{"message": message} for message in after]}
        return {"action": {"body": body, "reason": "an address"}}


class OpenAISpeaking(Speaking):
    """https://platform.openai.com/docs/api-reference/moderations"""

    def answer(self, path: str, question: Any) -> Any:
        assert path.endswith("/moderations")
        assert isinstance(question["input"], str)
        found = {"violence"} if FORBIDDEN in question["input"] else set()
        return moderation(question["model"], found)


def moderation(model: str, found: set[str], scores: Mapping[str, float] | None = None) -> dict[str, Any]:
    """An answer of OpenAI's that flags these categories."""
    return {
        "id": "modr-0d9740456c391e43c445bf0f010940c7",
        "model": model,
        "results": [
            {
                "flagged": bool(found),
                "categories": {name: name in found for name in CATEGORIES},
                "category_scores": {
                    **{name: 0.31 if name in found else 0.0001 for name in CATEGORIES},
                    **(scores or {}),
                },
                "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
            }
        ],
    }


REFUSAL: Final = "I'm sorry, I can't respond to that."


class NeMoSpeaking(Speaking):
    """NeMo's servers: newer ones of the library, older ones, and the microservice.

    :param older: the format before the ``guardrails`` object.
    """

    def __init__(self, *, older: bool = False) -> None:
        super().__init__()
        self._older = older

    def answer(self, path: str, question: Any) -> Any:
        content = question["messages"][-1]["content"]
        if path == "/v1/guardrail/checks":
            rail = "self check input" if question["messages"][-1]["role"] == "user" else "self check output"
            status = "blocked" if FORBIDDEN in content else "success"
            return {"status": status, "rails_status": {rail: {"status": status}}, "guardrails_data": {"log": {}}}
        if path == "/v1/checks":
            [rails] = question["guardrails"]["rail_types"]
            if FORBIDDEN in content:
                return {"status": "blocked", "content": content, "rail": f"self check {rails}"}
            after = masked(content)
            return {"status": "passed" if after == content else "modified", "content": after, "rail": None}
        assert path == "/v1/chat/completions"
        options = (question if self._older else question["guardrails"])["options"]
        [rails] = options["rails"]
        assert options["log"] == {"activated_rails": True}
        stop = FORBIDDEN in content
        log = {
            "activated_rails": [
                {"type": rails, "name": f"self check {rails}", "decisions": [], "executed_actions": [], "stop": stop}
            ],
            "stats": {"total_duration": 0.1},
        }
        message = {"role": "assistant", "content": REFUSAL if stop else masked(content)}
        if self._older:
            return {"messages": [message], "log": log}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1700000000,
            "model": question["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "guardrails": {"config_id": "safety", "llm_output": None, "output_data": None, "log": log},
        }


class Case:
    """A service, and the transport that speaks its format.

    :ivar masks: whether it can change texts.
    :ivar reason: what a client is told of a block.
    """

    def __init__(
        self,
        name: str,
        speaking: Callable[[], Speaking],
        make: Callable[..., GuardrailService],
        *,
        masks: bool = True,
        reason: str = REASON,
    ) -> None:
        self.name = name
        self.speaking = speaking
        self.make = make
        self.masks = masks
        self.reason = reason

    def __repr__(self) -> str:
        return self.name

    def within(self, service: Any, **options: Any) -> GuardrailService:
        """The transport, with the service in the same process."""
        return self.make("http://guardrail.internal:8000", transport=httpx.ASGITransport(service), **options)


def _moderation(url: str, **options: Any) -> OpenAIModeration:
    return OpenAIModeration(SECRET, url=f"{url.rstrip('/')}/v1", **options)


def _nemo(endpoint: Any) -> Callable[..., NeMoGuardrails]:
    def make(url: str, **options: Any) -> NeMoGuardrails:
        return NeMoGuardrails(url, config_id="safety", endpoint=endpoint, model="m", api_key=SECRET, **options)

    return make


def _litellm(url: str, **options: Any) -> LiteLLMGuardrail:
    return LiteLLMGuardrail(url, api_key=SECRET, **options)


def _agentgateway(url: str, **options: Any) -> AgentgatewayWebhook:
    return AgentgatewayWebhook(url, api_key=SECRET, **options)


_UNSAID: Final = "The text was blocked by a guardrail"
CASES: Final = (
    Case("litellm", LiteLLMSpeaking, _litellm),
    Case("agentgateway", AgentgatewaySpeaking, _agentgateway),
    Case("openai", OpenAISpeaking, _moderation, masks=False, reason="violence"),
    Case("nemo chat", NeMoSpeaking, _nemo("chat/completions"), reason=REFUSAL),
    Case("nemo chat, older", lambda: NeMoSpeaking(older=True), _nemo("chat/completions"), reason=REFUSAL),
    Case("nemo checks", NeMoSpeaking, _nemo("checks"), reason=_UNSAID),
    Case("nemo microservice", NeMoSpeaking, _nemo("guardrail/checks"), masks=False, reason=_UNSAID),
)
