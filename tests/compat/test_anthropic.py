"""The Anthropic client, against an app that speaks messages."""

from collections.abc import Iterator

import pytest

from .cases import TEXT
from .models import ModelPromises
from .stage import PATIENCE

pytest.importorskip("anthropic", reason="the Anthropic client is not installed: pip install '.[compat]'")

import anthropic


class TestAnthropic(ModelPromises):
    error = anthropic.AnthropicError
    dialects = ("messages", "helper")

    def read(self, url: str, dialect: str, *, stream: bool) -> Iterator[str]:
        with anthropic.Anthropic(base_url=url, api_key="k", max_retries=0, timeout=PATIENCE) as client:
            if not stream:
                message = client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": TEXT}])
                for block in message.content:
                    if block.type == "text":
                        yield block.text
            elif dialect == "messages":
                for event in client.messages.create(
                    model="m", max_tokens=9, messages=[{"role": "user", "content": TEXT}], stream=True
                ):
                    if event.type == "content_block_delta" and event.delta.type == "text_delta":
                        yield event.delta.text
            else:
                with client.messages.stream(
                    model="m", max_tokens=9, messages=[{"role": "user", "content": TEXT}]
                ) as events:
                    yield from events.text_stream
