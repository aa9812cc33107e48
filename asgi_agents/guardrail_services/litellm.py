"""Services that speak LiteLLM's generic guardrail API.

https://docs.litellm.ai/docs/adding_provider/generic_guardrail_api (read 2026-11, LiteLLM 1.108)
"""

from collections.abc import Mapping
from typing import Any, Unpack

from ..errors import AgentProtocolError, ConfigurationError
from ..messages.naming import kind_of, named
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
from .wire import LITELLM_PATH, LiteLLMRequest, LiteLLMVerdict


class LiteLLMGuardrail(GuardrailService):
    """A service that LiteLLM's proxy could call as a ``generic_guardrail_api``.

    Texts of requests go out with the input type ``request``, and what a model has written with ``response``. Where the
    service blocks, the client is told its reason. What it has changed is found by comparing words, and is replaced if
    ``Guardrail.action`` is ``redact``.

    :param url: of the service; ``/beta/litellm_basic_guardrail_api`` is put behind it, as LiteLLM does.
    :param api_key: sent as ``x-api-key``, as LiteLLM does. None: none is.
    :param parameters: the ``additional_provider_specific_params`` of each question; plain data.
    :param options: parameters of :class:`~asgi_agents.HttpTransport`.
    :raises ConfigurationError: for arguments that can't work.
    """

    finds = frozenset({MASKED})
    says_severity = False

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        **options: Unpack[HttpOptions],
    ) -> None:
        if not isinstance(parameters, Mapping | None):
            raise ConfigurationError(f"LiteLLMGuardrail: parameters is {kind_of(parameters)}, expected a mapping")
        secrets = key_header("LiteLLMGuardrail", "x-api-key", api_key)
        self._endpoint = ServiceEndpoint("LiteLLMGuardrail", below(url, LITELLM_PATH), secrets, **options)
        self._parameters = dict(parameters or {})
        super().__init__(self._endpoint)

    async def inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        question = LiteLLMRequest(
            input_type="response" if is_answered(event) else "request",
            texts=[event.content],
            model=event.model,
            litellm_call_id=event.correlation_id,
            request_data={},
            additional_provider_specific_params=self._parameters,
        )
        verdict: LiteLLMVerdict = await self._endpoint.ask(question, LiteLLMVerdict)
        if verdict.action == "BLOCKED":
            return blocked(verdict.blocked_reason)
        if not verdict.texts:
            if verdict.action == "NONE":
                return passed()
            raise AgentProtocolError("texts: expected the text as it was changed, got none")
        if len(verdict.texts) != 1:
            raise AgentProtocolError(f"texts: expected 1, as many as were asked about, got {named(len(verdict.texts))}")
        check_text("texts[0]", verdict.texts[0])
        # Also where it says that it has done nothing: so does LiteLLM, and a mask that is dropped is a leak.
        return masked(event.content, verdict.texts[0])
