"""LiteLLM's own client of its generic guardrail API, and its proxy, against a text guardrail that is served to it."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

pytest.importorskip("litellm", reason="LiteLLM is not installed: pip install '.[bench-litellm]'")
pytest.importorskip("openai", reason="the OpenAI client is not installed: pip install '.[compat]'")
pytest.importorskip("litellm.proxy._types", reason="LiteLLM's proxy is not installed: pip install '.[bench-litellm]'")

import openai
import yaml
from litellm.exceptions import GuardrailRaisedException
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.guardrails.guardrail_hooks.generic_guardrail_api.generic_guardrail_api import GenericGuardrailAPI
from litellm.proxy.guardrails.guardrail_hooks.unified_guardrail.unified_guardrail import UnifiedLLMGuardrails
from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from asgi_agents.serve import agent_app
from tests.benchmarks.litellm_proxy import start_litellm, stop, wait
from tests.docs.markdown import blocks_of
from tests.docs.pages import DOCS
from tests.guardrails.detectors import EMAIL
from tests.guardrails.served_agents import BLOCKED, REASON, WRONG, Everything
from tests.support.servers import serve

ADDRESS: Final = "alice@example.com"
PAGE: Final = DOCS / "guide" / "guardrail-services.md"

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


class Provider:
    """A model behind OpenAI's API. What it was asked is in ``asked``."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.text = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        question = json.loads(await Request(scope, receive).body())
        self.asked.append(question)
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini"}
        if not question.get("stream"):
            message = {"role": "assistant", "content": self.text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            await JSONResponse({**whole, "choices": [choice]})(scope, receive, send)
            return
        await StreamingResponse(self._events(whole), media_type="text/event-stream")(scope, receive, send)

    async def _events(self, whole: dict[str, Any]) -> AsyncIterator[str]:
        for at in range(0, len(self.text), 7):
            choice = {"index": 0, "delta": {"content": self.text[at : at + 7]}, "finish_reason": None}
            yield f"data: {json.dumps({**whole, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield f"data: {json.dumps({**whole, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"


# The proxy imports for half a minute.
@pytest.mark.slow
class TestProxy:
    """LiteLLM's proxy with the configuration of the guide, and a text guardrail of ours behind it."""

    def test_the_proxy_masks_and_blocks_as_the_guardrail_says(self, served: str, tmp_path: Path) -> None:
        [shown] = [block.code for block in blocks_of(PAGE.read_text()) if block.language == "yaml"]
        configuration = yaml.safe_load(shown)
        configuration["guardrails"][0]["litellm_params"]["api_base"] = served
        provider = Provider()
        processes: list[Any] = []
        with serve(provider) as url, ExitStack() as stack:
            stack.callback(stop, processes)
            params = {"model": "openai/gpt-4o-mini", "api_base": f"{url}v1", "api_key": "none"}
            configuration["model_list"] = [{"model_name": "gpt-4o-mini", "litellm_params": params}]
            proxy = start_litellm(tmp_path, configuration, processes)
            wait(processes[0], proxy.port)
            with openai.OpenAI(
                base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=proxy.key, max_retries=0, timeout=60
            ) as asking:
                self._ask(asking, provider)

    def _ask(self, asking: Any, provider: Provider) -> None:
        def ask(text: str, **more: Any) -> Any:
            return asking.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": text}], **more
            )

        provider.text = f"Write to {ADDRESS} or bob@mail.example.org today; that is all. " * 6
        answer = ask(f"I am {ADDRESS}")
        assert provider.asked[0]["messages"] == [{"role": "user", "content": "I am [0]"}]
        assert answer.choices[0].message.content == EMAIL.sub("[0]", provider.text)
        parts = [chunk.choices[0].delta.content or "" for chunk in ask("hello", stream=True) if chunk.choices]
        assert "".join(parts) == EMAIL.sub("[0]", provider.text)
        assert len([part for part in parts if part]) > 3
        with pytest.raises(openai.OpenAIError, match="the policy says no"):
            ask(f"so {BLOCKED} it")
        assert len(provider.asked) == 2
