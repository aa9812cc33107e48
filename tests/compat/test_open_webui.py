"""The proxy of the Open WebUI recipe, asked as Open WebUI asks: with aiohttp, and line by line.

What it sends is in its ``routers/openai.py``: ``get_headers_and_cookies`` and ``generate_chat_completion``.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from tests.support.servers import serve

from .recipes import Recipe, written
from .stage import PATIENCE

aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install '.[compat]'")

HEADERS = {
    "Content-Type": "application/json",
    "Authorization": "Bearer sk-of-the-model",
    "X-OpenWebUI-User-Name": "Bob",
    "X-OpenWebUI-User-Id": "7b0e",
    "X-OpenWebUI-User-Email": "bob@example.com",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "c1",
}
SYSTEM = {"role": "system", "content": "Today is 2026-01-02. The user is bob@example.com."}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    with written("open-webui", tmp_path_factory.mktemp("open-webui")) as recipe:
        yield recipe


@pytest.fixture(scope="module")
def url(recipe: Recipe) -> str:
    return f"{recipe.served('main')}/v1"


def run(talk: Callable[[Any], Awaitable[None]]) -> None:
    async def talking() -> None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(trust_env=False, timeout=timeout) as session:
            await talk(session)

    asyncio.run(talking())


def asked(question: str, **more: Any) -> dict[str, Any]:
    messages = [SYSTEM, {"role": "user", "content": question}]
    return {"model": "small", "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **more}


def test_the_models_are_listed(url: str) -> None:
    async def talk(session: Any) -> None:
        async with session.get(f"{url}/models", headers=HEADERS) as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["small"]

    run(talk)


@pytest.mark.parametrize(
    ("question", "content"),
    [
        ("hello", "You wrote: hello. Write to [email] today."),
        ("I am bob@example.com", "You wrote: I am [email]. Write to [email] today."),
    ],
)
def test_a_stream_comes_line_by_line(url: str, question: str, content: str) -> None:
    async def talk(session: Any) -> None:
        body = json.dumps(asked(question))
        async with session.request("POST", f"{url}/chat/completions", data=body, headers=HEADERS) as response:
            assert "text/event-stream" in response.headers["Content-Type"]
            lines = [line.decode().strip() async for line in response.content]
        *chunks, done = [line.removeprefix("data: ") for line in lines if line]
        assert done == "[DONE]"
        assert "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks) == content

    run(talk)


def test_a_title_is_asked_for_without_a_stream(url: str) -> None:
    async def talk(session: Any) -> None:
        task = "### Task:\nGenerate a concise title.\n<chat_history>USER: I am bob@example.com</chat_history>"
        body = json.dumps(asked(task, stream=False, max_tokens=1000))
        async with session.request("POST", f"{url}/chat/completions", data=body, headers=HEADERS) as response:
            content = (await response.json())["choices"][0]["message"]["content"]
        assert "USER: I am [email]</chat_history>" in content
        assert "@" not in content

    run(talk)


@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_is_json_with_the_reason(url: str, stream: bool) -> None:
    async def talk(session: Any) -> None:
        body = json.dumps(asked("What of the merger?", stream=stream))
        async with session.request("POST", f"{url}/chat/completions", data=body, headers=HEADERS) as response:
            assert (response.status, response.content_type) == (400, "application/json")
            assert (await response.json())["error"]["message"] == "The merger is no topic here"

    run(talk)


def test_the_model_is_hung_up_on_when_an_answer_is_stopped(
    recipe: Recipe, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    model = FastAPI()

    @model.post("/v1/chat/completions")
    async def chat() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            try:
                for word in ("About ", "the ", "mer", "ger: ", *["more "] * 100_000):
                    yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': word}}]})}\n\n"
                    await anyio.sleep(0.001)
            finally:
                ended.set()

        return StreamingResponse(events(), media_type="text/event-stream")

    with serve(model) as model_url:
        main = recipe.module("main")
        monkeypatch.setattr(main, "UPSTREAM", f"{model_url.rstrip('/')}/v1")
        with serve(main.app, lifespan="on") as other_url:

            async def talk(session: Any) -> None:
                to = f"{other_url.rstrip('/')}/v1/chat/completions"
                async with session.request("POST", to, data=json.dumps(asked("hello")), headers=HEADERS) as response:
                    text = await response.text()
                assert '"finish_reason": "content_filter"' in text.replace('":"', '": "')
                assert "ger" not in text

            run(talk)
            assert ended.wait(PATIENCE)
