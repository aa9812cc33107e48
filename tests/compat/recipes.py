"""The recipes of the documentation, as files that can be imported."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from tests.docs.markdown import Block, blocks_of
from tests.docs.pages import DOCS
from tests.support.servers import serve

RECIPES: Final = DOCS / "recipes"
# Nothing is told to anybody.
_QUIET: Final = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "LANGCHAIN_TRACING_V2": "false"}


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


@contextmanager
def written(name: str, directory: Path) -> Iterator[Recipe]:
    """Within, the files of a recipe can be imported. They are written to ``directory``."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for variable, value in _QUIET.items():
            patch.setenv(variable, value)
        patch.syspath_prepend(str(directory))
        recipe = Recipe(name, directory, stack)
        stack.callback(_forget, recipe)
        _forget(recipe)
        if "model.py" in recipe.files:
            patch.setenv("UPSTREAM", f"{recipe.served('model')}/v1")
        yield recipe


def _forget(recipe: Recipe) -> None:
    for title in recipe.files:
        sys.modules.pop(Path(title).stem, None)
