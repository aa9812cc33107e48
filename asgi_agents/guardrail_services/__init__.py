"""Guardrail services of others as agents: each class is a transport that speaks the format of one.

::

    protect(
        app,
        agents=[AgentConfig("moderation", OpenAIModeration(os.environ["OPENAI_API_KEY"]))],
        guardrails=[Guardrail("moderation", on={"input"}, action="block")],
    )

Their calls have the deadline, the limit, the circuit breaker and the failure mode of their agent, as all calls have.
"""

from .agentgateway import AgentgatewayWebhook
from .litellm import LiteLLMGuardrail
from .nemo import NeMoEndpoint, NeMoGuardrails
from .openai import OpenAIModeration
from .service import GuardrailService, HttpOptions

__all__ = [
    "AgentgatewayWebhook",
    "GuardrailService",
    "HttpOptions",
    "LiteLLMGuardrail",
    "NeMoEndpoint",
    "NeMoGuardrails",
    "OpenAIModeration",
]
