"""The recipes of the documentation: their apps under a real server, with the clients that they show."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from fastapi import FastAPI

from asgi_agents import protect
from asgi_agents.guardrails import ToolPolicy
from tests.support.servers import serve

from .recipes import RECIPES, Recipe, blocks, written

#: What each recipe needs.
NEEDS: Final = {
    "open-webui": ["openai"],
    "langserve": ["langserve", "sse_starlette"],
    "gradio": ["gradio", "gradio_client"],
    "fastmcp": ["fastmcp"],
}

pytestmark = [
    # What others' packages say of one another.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ImportWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Recipe]:
    for module in NEEDS[request.param]:
        pytest.importorskip(module, reason=f"{module} is not installed: pip install '.[compat]'")
    with written(str(request.param), tmp_path) as recipe:
        yield recipe


@pytest.mark.parametrize(("recipe", "page"), [(name, name) for name in NEEDS], indirect=["recipe"])
def test_the_client_prints_what_the_page_shows(recipe: Recipe, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = recipe.served("main")
    client = recipe.module("client")
    capsys.readouterr()
    client.main(url)
    (shown,) = [block.code for block in blocks(page) if "printed by" in block.marks]
    assert capsys.readouterr().out == shown


def test_a_server_that_is_mounted_in_fastapi_is_guarded() -> None:
    """As the page of FastMCP says below its client."""
    fastmcp = pytest.importorskip("fastmcp", reason="fastmcp is not installed: pip install '.[compat]'")
    server = fastmcp.FastMCP("users")
    server.tool(delete_user)
    server.tool(get_user)
    mcp_app = server.http_app()
    app = FastAPI(lifespan=mcp_app.lifespan)
    app.mount("/tools", mcp_app)
    protect(app, guardrails=[ToolPolicy(deny=["delete_*"])])

    async def talk(url: str) -> list[str]:
        async with fastmcp.Client(f"{url}tools/mcp") as client:
            return [tool.name for tool in await client.list_tools()]

    with serve(app, lifespan="on") as url:
        assert asyncio.run(talk(url)) == ["get_user"]


def delete_user(name: str) -> str:
    """Delete one."""
    return name


def get_user(name: str) -> str:
    """Get one."""
    return name


def test_each_recipe_is_a_page_with_an_app_and_a_client() -> None:
    assert {page.stem for page in RECIPES.glob("*.md")} == {*NEEDS, "index"}
    for name in NEEDS:
        titles = [block.title for block in blocks(name) if "run by" in block.marks]
        assert {"main.py", "client.py"} <= set(titles)
        assert all(block.title for block in blocks(name) if block.language == "python")
