from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from .browser import Visit, chromium, visiting
from .world import World, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One for all tests of the module: while it runs, no event loop can be run beside it."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def start() -> Iterator[Callable[..., World]]:
    """Starts servers, as :func:`running` does. They run until all pages are closed."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(running(*args, **options))


@pytest.fixture
def visit(browser: "Browser", start: object) -> Iterator[Callable[..., Visit]]:
    """Opens pages, as :func:`visiting` says."""
    with visiting(browser) as open_page:
        yield open_page
