"""The recipes of the documentation: their apps under a real server, with the clients that they show."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from tests.docs.markdown import Block, blocks_of
from tests.docs.pages import DOCS
from tests.support.servers import serve

RECIPES: Final = DOCS / "recipes"
#: What each recipe needs; all but the last are of others.
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


def blocks(recipe: str) -> list[Block]:
    return list(blocks_of((RECIPES / f"{recipe}.md").read_text()))


class Recipe:
    """The files of a page, as modules."""

    def __init__(self, name: str, directory: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.files = {block.title: block.code for block in blocks(name) if block.title is not None}
        for title, code in self.files.items():
            (directory / title).write_text(code)

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(name)

    def served(self, name: str) -> str:
        """The URL of the app of a module."""
        return self._stack.enter_context(serve(self.module(name).app, lifespan="on")).rstrip("/")


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    name = str(request.param)
    for module in NEEDS[name]:
        pytest.importorskip(module, reason=f"{module} is not installed: pip install '.[compat]'")
    # Nothing is told to anybody.
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LANGCHAIN_TRACING_V2", "false")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ExitStack() as stack:
        made = Recipe(name, tmp_path, stack)
        for title in made.files:
            monkeypatch.delitem(sys.modules, Path(title).stem, raising=False)
        if "model.py" in made.files:
            monkeypatch.setenv("UPSTREAM", f"{made.served('model')}/v1")
        yield made
        for title in made.files:
            sys.modules.pop(Path(title).stem, None)


@pytest.mark.parametrize(("recipe", "page"), [(name, name) for name in NEEDS], indirect=["recipe"])
def test_the_client_prints_what_the_page_shows(recipe: Recipe, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = recipe.served("main")
    client = recipe.module("client")
    capsys.readouterr()
    client.main(url)
    (shown,) = [block.code for block in blocks(page) if "printed by" in block.marks]
    assert capsys.readouterr().out == shown


def test_each_recipe_is_a_page_with_an_app_and_a_client() -> None:
    assert {page.stem for page in RECIPES.glob("*.md")} == {*NEEDS, "index"}
    for name in NEEDS:
        titles = [block.title for block in blocks(name) if "run by" in block.marks]
        assert {"main.py", "client.py"} <= set(titles)
        assert all(block.title for block in blocks(name) if block.language == "python")
