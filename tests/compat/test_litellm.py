"""LiteLLM's own client of its generic guardrail API, against a text guardrail that is served to it.

OpenAI's own client, against what stands in for OpenAI's moderations in other tests: so it is what that client reads.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest

pytest.importorskip("litellm", reason="LiteLLM is not installed: pip install '.[bench-litellm]'")
pytest.importorskip("openai", reason="the OpenAI client is not installed: pip install '.[compat]'")
pytest.importorskip("litellm.proxy._types", reason="LiteLLM's proxy is not installed: pip install '.[bench-litellm]'")

import openai
from litellm.exceptions import GuardrailRaisedException
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.guardrails.guardrail_hooks.generic_guardrail_api.generic_guardrail_api import GenericGuardrailAPI
from litellm.proxy.guardrails.guardrail_hooks.unified_guardrail.unified_guardrail import UnifiedLLMGuardrails
from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices

from asgi_agents.serve import agent_app
from tests.guardrail_services.speaking import CATEGORIES, FORBIDDEN, SECRET, OpenAISpeaking
from tests.guardrails.detectors import EMAIL
from tests.guardrails.served_agents import BLOCKED, REASON, WRONG, Everything
from tests.support.servers import serve

from .stage import PATIENCE

ADDRESS: Final = "alice@example.com"

pytestmark = [
    # What LiteLLM's own parts say of one another.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with serve(agent_app(Everything(), api="litellm")) as url:
        yield url


def client(url: str, **options: Any) -> GenericGuardrailAPI:
    """As LiteLLM's proxy makes it of `guardrail: generic_guardrail_api`."""
    return GenericGuardrailAPI(
        api_base=url, guardrail_name="ours", event_hook=["pre_call", "post_call"], default_on=True, **options
    )


@pytest.mark.anyio
class TestGenericGuardrailAPI:
    async def test_texts_pass_and_are_masked(self, served: str) -> None:
        texts = ["hello", f"I am {ADDRESS}"]
        inputs: dict[str, Any] = {"texts": texts, "model": "gpt-5"}
        inputs["structured_messages"] = [{"role": "user", "content": text} for text in texts]
        for direction in ("request", "response"):
            found = await client(served).apply_guardrail(inputs, {"metadata": {}}, direction)
            assert found["texts"] == ["hello", "I am [0]"]
            found = await client(served).apply_guardrail({"texts": ["hello"]}, {}, direction)
            assert found["texts"] == ["hello"]

    async def test_a_block_is_raised_with_its_reason(self, served: str) -> None:
        with pytest.raises(GuardrailRaisedException, match=REASON.replace("\u201c", ".").replace("\u201d", ".")):
            await client(served).apply_guardrail({"texts": ["hello", f"so {BLOCKED} it"]}, {}, "request")

    async def test_a_tool_call_is_blocked(self, served: str) -> None:
        function = {"name": "send", "arguments": f'{{"to": "{ADDRESS}"}}'}
        calls = [{"id": "call_1", "type": "function", "function": function, "index": 0}]
        with pytest.raises(GuardrailRaisedException):
            await client(served).apply_guardrail({"texts": [], "tool_calls": calls}, {}, "response")

    async def test_a_guardrail_that_fails_stops_the_call_unless_the_user_has_said_otherwise(self, served: str) -> None:
        inputs = {"texts": [WRONG]}
        with pytest.raises(Exception, match=r"Generic Guardrail API failed: .*500"):
            await client(served).apply_guardrail(inputs, {}, "request")
        found = await client(served, fail_on_error=False).apply_guardrail(inputs, {}, "request")
        assert found["texts"] == [WRONG]


def chunks(text: str, size: int) -> list[ModelResponseStream]:
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    return [
        ModelResponseStream(
            id="chatcmpl-1",
            model="gpt-5",
            choices=[
                StreamingChoices(
                    index=0, delta=Delta(content=part), finish_reason="stop" if index == len(parts) - 1 else None
                )
            ],
        )
        for index, part in enumerate(parts)
    ]


@pytest.mark.anyio
class TestStreams:
    async def stream(self, guardrail: GenericGuardrailAPI, text: str, size: int) -> AsyncIterator[str]:
        async def upstream() -> AsyncIterator[ModelResponseStream]:
            for chunk in chunks(text, size):
                yield chunk

        async for out in UnifiedLLMGuardrails().async_post_call_streaming_iterator_hook(
            user_api_key_dict=UserAPIKeyAuth(request_route="/v1/chat/completions"),
            response=upstream(),
            request_data={"guardrail_to_apply": guardrail, "model": "gpt-5"},
        ):
            yield out.choices[0].delta.content or ""

    @pytest.mark.parametrize("size", [3, 11, 40])
    async def test_a_stream_is_masked_as_the_whole_text_is_and_leaves_before_its_end(
        self, served: str, size: int
    ) -> None:
        text = f"Write to {ADDRESS} or bob@mail.example.org today, {ADDRESS}; that is all there is to it. " * 6
        guardrail = client(served, streaming_transform_mode="incremental_diff", streaming_sampling_rate=2)
        parts = [part async for part in self.stream(guardrail, text, size)]
        assert "".join(parts) == EMAIL.sub("[0]", text)
        assert len([part for part in parts if part]) > 3


class TestModerations:
    def test_the_clients_types_are_those_of_the_stand_in(self) -> None:
        with (
            serve(OpenAISpeaking()) as url,
            openai.OpenAI(base_url=f"{url}v1", api_key=SECRET, max_retries=0, timeout=PATIENCE) as asking,
        ):
            answer = asking.moderations.create(model="omni-moderation-latest", input=f"a {FORBIDDEN} word")
        [result] = answer.results
        assert result.flagged
        assert result.categories.violence
        assert {name for name, flagged in result.categories.model_dump(by_alias=True).items() if flagged} == {
            "violence"
        }
        assert set(CATEGORIES) <= set(result.category_scores.model_dump(by_alias=True))
