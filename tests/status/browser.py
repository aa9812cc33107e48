"""A headless Chromium, and what went wrong in its pages."""

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000  # ms after which a test that waits has failed


def sync_api() -> Any:
    """Playwright. Without it whoever asks is skipped, but fails where it has to be there."""
    if importlib.util.find_spec("playwright") is None:
        _go_without("no playwright: pip install 'asgi-agents[test]'")
    return importlib.import_module("playwright.sync_api")


@contextmanager
def chromium() -> Iterator["Browser"]:
    """The system's Chromium. Without it the test is skipped, but fails where there has to be one."""
    executable = shutil.which("chromium")
    if executable is None:
        _go_without("no `chromium` on the PATH: apt-get install chromium")
    with sync_api().sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def _go_without(reason: str) -> None:
    if os.environ.get("REQUIRE_BROWSER"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)


class Visit:
    """A page, and everything that its console and its scripts complained of."""

    def __init__(self, context: "BrowserContext") -> None:
        self.complaints: list[str] = []
        self.dialogs: list[str] = []
        self.requests: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()


@contextmanager
def visiting(browser: "Browser") -> Iterator[Callable[..., Visit]]:
    """Within: a function that opens the page at a URL, in a context with the given options.

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
