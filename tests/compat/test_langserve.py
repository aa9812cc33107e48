"""The LangServe recipe: chains and chat models, cut anywhere, as LangServe's client sees them."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI

from asgi_agents import AgentConfig, protect
from asgi_agents.guardrails import Guardrail
from tests.support.servers import serve

from .recipes import Recipe, written

pytest.importorskip("langserve", reason="LangServe is not installed: pip install '.[compat]'")
pytest.importorskip("sse_starlette", reason="sse-starlette is not installed: pip install '.[compat]'")

pytestmark = pytest.mark.filterwarnings("ignore")

import httpx

TEXT = "Write to alice@example.com today."


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    with written("langserve", tmp_path_factory.mktemp("langserve")) as recipe, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield recipe


@pytest.fixture(scope="module")
def url(recipe: Recipe) -> Iterator[str]:
    """An app with a chain, which answers the parts that it is given as JSON, and a chat model with one answer."""
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.runnables import RunnableGenerator
    from langserve import add_routes

    main = recipe.module("main")

    async def parts(questions: Any) -> Any:
        for part in json.loads("".join([question async for question in questions])):
            yield part

    def parts_at_once(questions: Any) -> Any:
        yield from json.loads("".join(questions))

    chain = RunnableGenerator(parts_at_once, parts).with_types(input_type=str, output_type=str)
    model = GenericFakeChatModel(messages=iter([AIMessage(TEXT) for _ in range(9)]))
    app = FastAPI()
    only: Any = ["invoke", "batch", "stream"]
    add_routes(app, chain, path="/parts", enabled_endpoints=only)
    add_routes(app, model, path="/model", enabled_endpoints=only)
    protect(
        app,
        agents=[AgentConfig("policy", main.Policy())],
        guardrails=[Guardrail("policy", on={"output"})],
        dialects=[main.LangServe()],
    )
    with serve(app) as url:
        yield url.rstrip("/")


def remote(url: str, path: str) -> Any:
    from langserve import RemoteRunnable

    return RemoteRunnable(f"{url}/{path}", timeout=60.0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 50])
def test_a_stream_is_redacted_however_it_is_cut(url: str, size: int) -> None:
    parts = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    pieces = list(remote(url, "parts").stream(json.dumps(parts)))
    assert "".join(pieces) == "Write to [email] today."
    assert len(pieces) == len(parts)


def test_the_messages_of_a_chat_model_are_redacted(url: str) -> None:
    assert remote(url, "model").invoke("hi").content == "Write to [email] today."
    assert "".join(chunk.content for chunk in remote(url, "model").stream("hi")) == "Write to [email] today."
    assert [message.content for message in remote(url, "model").batch(["a", "b"])] == ["Write to [email] today."] * 2


def test_a_stream_that_is_stopped_raises_with_the_reason_behind_what_had_left(url: str) -> None:
    received: list[str] = []
    stream = remote(url, "parts").stream(json.dumps(["We plan ", "a ", "mer", "ger"]))
    with pytest.raises(httpx.HTTPStatusError, match="The merger is no topic here") as caught:
        _take_all(stream, received)
    assert caught.value.response.status_code == 400
    assert received == ["We plan ", "a "]


def _take_all(stream: Any, received: list[str]) -> None:
    for piece in stream:
        # Before the next one raises.
        received += [piece]


def test_the_endpoints_that_repeat_text_are_not_there(recipe: Recipe) -> None:
    paths = {route.path for route in recipe.module("main").app.routes if route.path.startswith("/ask/")}
    assert {"/ask/invoke", "/ask/batch", "/ask/stream"} <= paths
    assert not [path for path in paths if "stream_" in path or "playground" in path]
