from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from .browser import Visit, chromium
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
    """Opens the page at a URL, in a context with the given options.

    Nothing may have been complained of in the end, but what the test has taken out of ``complaints``.
    """
    contexts = []
    visits = []

    def open_page(url: str, *, clock: bool = False, **options: Any) -> Visit:
        context = browser.new_context(**options)
        contexts.append(context)
        visited = Visit(context)
        visits.append(visited)
        if clock:
            visited.page.clock.install()
        response = visited.page.goto(url)
        assert response is not None
        assert response.status == 200
        return visited

    yield open_page
    for context in contexts:
        context.close()
    assert [visited.complaints for visited in visits if visited.complaints] == []
    assert [visited.dialogs for visited in visits if visited.dialogs] == []
