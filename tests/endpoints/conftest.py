from collections.abc import Iterator

import pytest

from asgi_agents.messages.throttle import Throttle
from asgi_agents.routing import refusal
from asgi_agents.routing.marks import marks


@pytest.fixture(autouse=True)
def marks_are_new(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test makes the first mark of its process, and none is left for the tests of other modules."""
    monkeypatch.setattr(refusal, "_throttle", Throttle())
    before, marks.used = marks.used, False
    yield
    marks.used = before
