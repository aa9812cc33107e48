"""Services that speak the guardrail webhooks of agentgateway, which kgateway and Gloo have too.

https://github.com/agentgateway/agentgateway, ``crates/agentgateway/src/llm/policy/webhook.rs`` (read at 75b4e6c), and
https://kgateway.dev/docs/main/agentgateway/llm/guardrail-api/openapi-spec
"""

from typing import Unpack

from ..errors import AgentProtocolError
from ..guardrails.text_guardrail import ROLE
from ..protocol import GuardrailInspectEvent, GuardrailResponse
from ..protocol.validation import check_text
from .service import (
    MASKED,
    GuardrailService,
    HttpOptions,
    ServiceEndpoint,
    below,
    blocked,
    is_answered,
    key_header,
    masked,
    passed,
)
from .wire import (
    CHOICES_PATH,
    PROMPTS_PATH,
    AnsweredChoice,
    PromptMessage,
    WebhookBody,
    WebhookRequest,
    WebhookVerdict,
)


class AgentgatewayWebhook(GuardrailService):
    """A service that agentgateway could call as a guardrail webhook.

    Texts of requests are posted to ``/request``, as one message, and what a model has written to ``/response``, as one
    choice. Where the service rejects, the client is told the body of the rejection; its status code is not used,
    because a stream that has begun has none. What it has masked is found by comparing words, and is replaced if
    ``Guardrail.action`` is ``redact``.

    :param url: of the service; ``/request`` and ``/response`` are put behind it.
    :param api_key: sent as ``authorization: Bearer …``. None: none is.
    :param options: parameters of :class:`~asgi_agents.HttpTransport`.
    :raises ConfigurationError: for arguments that can't work.
    """

    finds = frozenset({MASKED})
    says_severity = False

    def __init__(self, url: str, *, api_key: str | None = None, **options: Unpack[HttpOptions]) -> None:
        where = "AgentgatewayWebhook"
        secrets = key_header(where, "authorization", api_key, "Bearer ")
        self._prompts = ServiceEndpoint(where, below(url, PROMPTS_PATH), secrets, **options)
        self._choices = ServiceEndpoint(where, below(url, CHOICES_PATH), secrets, **options)
        super().__init__(self._prompts, self._choices)

    async def inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        answered = is_answered(event)
        message = PromptMessage(event.metadata.get(ROLE) or ("assistant" if answered else "user"), event.content)
        if answered:
            question = WebhookRequest(WebhookBody(choices=[AnsweredChoice(message)]))
        else:
            question = WebhookRequest(WebhookBody(messages=[message]))
        verdict: WebhookVerdict = await (self._choices if answered else self._prompts).ask(question, WebhookVerdict)
        action = verdict.action
        if isinstance(action.body, str):
            if action.status_code is None:
                raise AgentProtocolError("action.status_code: expected an int beside a body that is a text, got none")
            return blocked(action.body, description=action.reason or "")
        if action.body is None:
            if action.status_code is not None:
                raise AgentProtocolError("action.body: expected a text beside status_code, got none")
            return passed()
        return masked(event.content, _text_of(action.body, answered=answered))


def _text_of(body: WebhookBody, *, answered: bool) -> str:
    """The text of the only message, or choice, of a mask."""
    field = "choices" if answered else "messages"
    found = body.messages
    if answered:
        found = None if body.choices is None else [choice.message for choice in body.choices]
    if found is None or len(found) != 1:
        got = "none" if found is None else str(len(found))
        raise AgentProtocolError(f"action.body.{field}: expected 1, as many as were asked about, got {got}")
    check_text(f"action.body.{field}[0]", found[0].content)
    return found[0].content
