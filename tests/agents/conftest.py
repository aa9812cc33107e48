"""What the tests of several ready-made agents need."""

from types import SimpleNamespace

import pytest

from .clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("asgi_agents.agents.counters", "asgi_agents.agents.memory_storage", "limits.aio.strategies"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=clock))
    return clock
