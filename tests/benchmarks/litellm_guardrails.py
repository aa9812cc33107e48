"""Guardrails for LiteLLM's proxy, as its users write them. It loads them from where its configuration is."""

from collections.abc import AsyncIterator
from typing import Any

from litellm.integrations.custom_guardrail import CustomGuardrail

from tests.benchmarks.chat import ENTITY, FORBIDDEN, REDACTED


class PerEvent(CustomGuardrail):
    """Judges each event for itself."""

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: Any
    ) -> AsyncIterator[Any]:
        async for event in response:
            for choice in event.choices:
                if choice.delta.content:
                    choice.delta.content = _judged(choice.delta.content)
            yield event


class Buffered(CustomGuardrail):
    """Judges the whole answer when it is there, and sends its text in the first event."""

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: Any
    ) -> AsyncIterator[Any]:
        events = [event async for event in response]
        deltas = [choice.delta for event in events for choice in event.choices if choice.delta.content]
        text = _judged("".join(delta.content for delta in deltas))
        for delta in deltas:
            delta.content, text = text, ""
        for event in events:
            yield event


def _judged(text: str) -> str:
    if FORBIDDEN in text:
        raise ValueError("content policy")
    return ENTITY.sub(REDACTED, text)
